//! What a session that comes into force is given: a credential, and a way upstream.

use std::{path::Path, sync::Arc};

use prometheus_client::metrics::counter::Counter;
use tokio::sync::watch;

use crate::{
    clock::Clock,
    cluster::{ObjectKey, secrets::follow_token},
    credentials::{CredentialError, TokenFile},
    metrics::Metrics,
    sessions::{live::Credential, spec::SessionSpec, store::Outfitter},
    upstream::{
        Upstream,
        pool::{Bounds, DialCounts},
        roots::Roots,
        target::Target,
    },
};

/// The cluster's API server and the agent's own token, and how to follow files of a session's own.
pub(super) struct Outfit {
    pub(super) cluster: Target,
    pub(super) cluster_roots: Roots,
    pub(super) own_token: TokenFile,
    pub(super) clock: Clock,
    pub(super) dials: Arc<DialCounts>,
    pub(super) bounds: Bounds,
    pub(super) failed_reads: Counter,
    /// What Secrets are read with, where the sessions are the cluster's.
    pub(super) secrets: Option<(kube::Client, Metrics)>,
}

impl Outfitter for Outfit {
    fn upstream(&self, spec: &SessionSpec) -> Upstream {
        let (target, roots) = match spec.server() {
            None => (self.cluster.clone(), self.cluster_roots.clone()),
            Some(server) => (
                server.target.clone(),
                server.roots(&self.cluster_roots, &self.failed_reads),
            ),
        };
        Upstream::new(target, roots, Arc::clone(&self.dials), self.bounds)
    }

    fn own_token(&self) -> Credential {
        Credential::File(self.own_token.clone())
    }

    async fn token_file(&self, path: &Path) -> Credential {
        Credential::File(TokenFile::follow(path, self.clock.clone(), self.failed_reads.clone()).await)
    }

    fn secret_token(&self, namespace: &str, name: &str, key: &str) -> Credential {
        let secret = ObjectKey {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        Credential::Watched(match &self.secrets {
            Some((client, metrics)) => follow_token(client.clone(), secret, key, metrics),
            // Session files can't name one.
            None => {
                watch::channel(Err(CredentialError::Secret {
                    secret: secret.to_string(),
                    reason: "there is no cluster to read it from: use tokenFile".to_owned(),
                }))
                .1
            }
        })
    }
}
