//! The certificate that workloads see, by the mode that the operator chose.

use std::collections::BTreeSet;

use anyhow::Context;
use kube::Client;
use tokio::sync::watch;

use crate::{
    admin::Condition,
    cli::{AgentOptions, TrustMode},
    clock::Clock,
    metrics::{Followed, Metrics},
    trust::{
        ServedNames, bundle,
        cluster_signed::{ClusterSigned, serve_cluster_signed},
        own_ca::{CaSecret, serve_own_ca, serve_own_ca_secret},
        pair::serve_pair,
        serving::ServingCert,
    },
};

/// What a certificate is made of and for, beside the options.
pub(super) struct Surroundings {
    /// The API server, as the agent itself.
    pub(super) client: Client,
    /// What has to be named.
    pub(super) names: watch::Receiver<ServedNames>,
    /// The namespaces with tagged pods on this node. Where there are none to know of, as with session files, `None`:
    /// the own CA is kept on the node then, and isn't published.
    pub(super) namespaces: Option<watch::Receiver<BTreeSet<String>>>,
}

/// Waits for the first certificate, which may take an operator's approval; `readiness` says so.
pub(super) async fn serving_certificate(
    options: &AgentOptions,
    around: Surroundings,
    clock: &Clock,
    metrics: &Metrics,
    readiness: Condition,
) -> anyhow::Result<ServingCert> {
    let failures = metrics.reload_failures(Followed::Certificate);
    let Surroundings {
        client,
        names,
        namespaces,
    } = around;
    let trust = &options.trust;
    let ca_file = options.cluster.ca_file.clone();
    let certificate = match (trust.trust, namespaces) {
        (TrustMode::Files, _) => {
            let (certificate, key) = trust.files().context("--trust files needs --tls-cert and --tls-key")?;
            serve_pair(certificate, key, clock.clone(), failures).await?
        }
        (TrustMode::ClusterSigned, _) => {
            let settings = ClusterSigned {
                node_name: options.node_name.clone(),
                signer: trust.signer_name.clone(),
                ca_file,
            };
            // It keeps its condition itself: a certificate that can't be renewed expires at last.
            return Ok(serve_cluster_signed(client, settings, names, clock.clone(), failures, readiness).await?);
        }
        (TrustMode::OwnCa, None) => serve_own_ca(&trust.trust_dir, names, clock.clone(), failures).await?,
        (TrustMode::OwnCa, Some(namespaces)) => {
            let secret = CaSecret {
                namespace: options.namespace.clone(),
                name: trust.trust_secret.clone(),
            };
            let (certificate, own) = serve_own_ca_secret(
                client.clone(),
                secret,
                names,
                clock.clone(),
                failures.clone(),
                &readiness,
            )
            .await?;
            let publisher = bundle::Publisher::start(client, ca_file, own, failures).await?;
            tokio::spawn(publisher.run(namespaces));
            certificate
        }
    };
    tokio::spawn(keep(certificate.clone(), clock.clone(), readiness));
    Ok(certificate)
}

/// Ready while the certificate in service hasn't expired.
async fn keep(mut certificate: ServingCert, clock: Clock, readiness: Condition) {
    /// It expires without changing.
    const LOOK: std::time::Duration = std::time::Duration::from_secs(10);
    loop {
        if clock.now() < certificate.expiry() {
            readiness.ready();
        } else {
            readiness.not_ready("the certificate has expired; the agent's log says why there is no other");
        }
        let _ = tokio::time::timeout(LOOK, certificate.changed()).await;
    }
}
