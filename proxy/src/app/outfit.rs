//! What a session that comes into force is given: a credential, and a way upstream.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use prometheus_client::metrics::counter::Counter;
use tokio::sync::watch;

use crate::{
    caller::{
        Prover,
        authorities::{self, Authorities, Bundle},
        review::Reviewer,
    },
    clock::Clock,
    cluster::{ObjectKey, secrets::follow_token},
    credentials::{CredentialError, TokenFile},
    metrics::{Followed, Metrics},
    sessions::{
        live::Credential,
        spec::{AuthMethod, CallerIdentity, SessionSpec, Signer},
        store::Outfitter,
    },
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
    /// What the agent asks the cluster with who its callers are.
    pub(super) client: kube::Client,
    pub(super) metrics: Metrics,
    pub(super) client_ca: ClientCa,
}

/// The cluster's own client CA, followed from when a session first asks for it.
pub(super) struct ClientCa {
    /// Where the operator says it is.
    pub(super) file: Option<PathBuf>,
    pub(super) followed: OnceLock<Option<watch::Receiver<Bundle>>>,
}

impl Outfit {
    /// `None` where there is nowhere to read it from.
    fn cluster_client_ca(&self) -> Option<watch::Receiver<Bundle>> {
        let follow = || match (&self.client_ca.file, &self.secrets) {
            (Some(path), _) => Some(self.client_ca_file(path)),
            (None, Some((client, metrics))) => Some(authorities::of_cluster(client.clone(), metrics)),
            (None, None) => None,
        };
        self.client_ca.followed.get_or_init(follow).clone()
    }

    fn client_ca_file(&self, path: &Path) -> watch::Receiver<Bundle> {
        authorities::in_file(path.to_owned(), self.metrics.reload_failures(Followed::ClientCa))
    }

    fn authorities(&self, caller: &CallerIdentity) -> Authorities {
        let signer = caller.signer.as_ref().map(|signer| match signer {
            Signer::Bundle(bundle) => bundle.authorities(),
            Signer::File(path) => self.client_ca_file(path),
        });
        let cluster = caller.cluster_client_ca.then(|| self.cluster_client_ca()).flatten();
        Authorities::union(signer.into_iter().chain(cluster))
    }
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

    fn prover(&self, spec: &SessionSpec) -> Arc<Prover> {
        let (authorities, audiences) = match &spec.method {
            AuthMethod::CallerIdentity(caller) => (self.authorities(caller), Arc::clone(&caller.audiences)),
            // The pod's own token alone, as it is made for the API server.
            AuthMethod::ServiceAccountToken(..) | AuthMethod::GatewayKubernetesAuth(_) => {
                (Authorities::default(), Arc::from([]))
            }
        };
        let reviewer = Reviewer::new(self.client.clone(), audiences, self.clock.clone());
        Arc::new(Prover::new(authorities, reviewer, self.metrics.clone()))
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
