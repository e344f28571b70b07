//! `cluster-signed`: a serving certificate from a signer of the cluster's, so that workloads trust it as they are. The
//! key is nowhere but in memory, and a new one is made for each certificate.
//!
//! A certificate is asked for with a `CertificateSigningRequest`, which the agent approves itself where it may; otherwise
//! it waits for an operator, and says what to type. Until the first is there, this doesn't return: nothing is turned
//! in the kernel before. Later the old one stays in service until the next is there.

mod order;
mod request;
mod standing;

use std::{path::PathBuf, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use kube::Client;
use prometheus_client::metrics::counter::Counter;
use rustls::{
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    pki_types::{ServerName, UnixTime},
    sign::CertifiedKey,
};
use tokio::{sync::watch, time};

use self::{order::Orders, request::Signed, standing::Standing};
use super::{
    TrustError, changed,
    names::ServedNames,
    provider,
    roots::load_roots,
    serving::{Serving, ServingCert},
};
use crate::{
    admin::Condition,
    backoff::{self, Backoff},
    clock::Clock,
};

/// The signer whose certificates every cluster's own components trust.
pub const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";

/// How often it is looked whether a renewal is due: often, because a timer doesn't notice that the clock was set.
const LOOK: Duration = Duration::from_hours(1);
/// Between attempts while they fail.
const RETRY: std::ops::Range<Duration> = Duration::from_secs(2)..Duration::from_mins(10);
/// New names are asked for within this time: all agents hear of them at once.
const SPREAD: Duration = Duration::from_secs(2);

/// How to come by a certificate.
#[derive(Debug)]
pub struct ClusterSigned {
    /// This node, in whose name it is asked for.
    pub node_name: String,
    /// Who is to sign: `kubernetes.io/kubelet-serving`, or a signer of the operator's.
    pub signer: String,
    /// The cluster's CA, which workloads trust. A certificate that it doesn't vouch for is complained of by name.
    pub ca_file: PathBuf,
}

/// Serves a certificate that `settings.signer` signs, for what `names` says, renewed at about two thirds of its life.
///
/// Waits for the first certificate; `readiness` says for what, is met once there is one, and unmet when it has
/// expired. What goes wrong is logged, counted in `failures`, and tried again.
///
/// # Errors
/// If the node has no name.
pub async fn serve_cluster_signed(
    client: Client,
    settings: ClusterSigned,
    mut names: watch::Receiver<ServedNames>,
    clock: Clock,
    failures: Counter,
    readiness: Condition,
) -> Result<ServingCert, TrustError> {
    if settings.node_name.is_empty() {
        return Err(TrustError::NoNodeName);
    }
    let service = Service {
        standing: Standing::new(readiness, clock.clone()),
        orders: Orders::new(client, settings.node_name, settings.signer),
        ca_file: settings.ca_file,
        clock,
        failures,
    };
    let first = service.obtain(&mut names).await;
    let (publish, serving) = watch::channel(first.serving.clone());
    tokio::spawn(async move {
        tokio::select! {
            () = service.renew(first, names, &publish) => {}
            () = publish.closed() => {}
        }
    });
    Ok(ServingCert::new(serving))
}

struct Service {
    standing: Standing,
    orders: Orders,
    ca_file: PathBuf,
    clock: Clock,
    failures: Counter,
}

/// A certificate in service.
struct InService {
    serving: Serving,
    names: ServedNames,
    renew_at: Timestamp,
}

impl Service {
    /// Replaces `current` for as long as it runs.
    async fn renew(
        &self,
        mut current: InService,
        mut names: watch::Receiver<ServedNames>,
        publish: &watch::Sender<Serving>,
    ) {
        loop {
            let due = Duration::try_from(current.renew_at.duration_since(self.clock.now())).unwrap_or_default();
            tokio::select! {
                () = time::sleep(due.min(LOOK)) => {}
                () = changed(&mut names) => {}
            }
            // Names that are no longer wanted do no harm until the renewal; they may come back.
            let lacks_names = !current.names.cover(&names.borrow_and_update());
            if !lacks_names && self.clock.now() < current.renew_at {
                continue;
            }
            if lacks_names {
                time::sleep(backoff::within(SPREAD)).await;
            }
            current = self.obtain(&mut names).await;
            publish.send_replace(current.serving.clone());
        }
    }

    /// Asks until there is a certificate for what `names` says.
    async fn obtain(&self, names: &mut watch::Receiver<ServedNames>) -> InService {
        let mut backoff = Backoff::new(RETRY);
        loop {
            let wanted = names.borrow_and_update().clone();
            let outcome = tokio::select! {
                outcome = self.orders.fulfil(&wanted, &self.clock, &self.standing) => outcome,
                // What was asked for is withdrawn, and more asked for.
                () = outgrown(names, &wanted) => continue,
                never = self.standing.keep() => match never {},
            };
            match outcome {
                Ok(signed) => return self.take_up(signed, wanted).await,
                Err(error) => {
                    self.failures.inc();
                    tracing::error!(%error, "no certificate yet; one that is in service stays");
                    self.standing.trouble(error.to_string());
                }
            }
            tokio::select! {
                () = time::sleep(backoff.wait()) => {}
                () = outgrown(names, &wanted) => {}
                never = self.standing.keep() => match never {},
            }
        }
    }

    async fn take_up(&self, signed: Signed, names: ServedNames) -> InService {
        let Signed { key, expiry } = signed;
        self.compare_with_cluster(&key, &names).await;
        let now = self.clock.now();
        let life = Duration::try_from(expiry.duration_since(now)).unwrap_or_default();
        // About two thirds, and no two agents at once.
        let wait = life.mul_f64(0.6 + 0.1 * fastrand::f64());
        let renew_at = SignedDuration::try_from(wait)
            .ok()
            .and_then(|wait| now.checked_add(wait).ok())
            .unwrap_or(expiry);
        tracing::info!(%expiry, ?names, "serving a new certificate of the cluster's signer");
        self.standing.good(expiry);
        InService {
            serving: Serving { key, expiry },
            names,
            renew_at,
        }
    }

    /// Complains if workloads that trust the cluster's CA alone won't trust this.
    async fn compare_with_cluster(&self, key: &CertifiedKey, names: &ServedNames) {
        let distrusted = match self.distrusted(key, names).await {
            Ok(distrusted) => distrusted,
            Err(error) => {
                tracing::warn!(%error, "cannot tell whether the cluster's CA vouches for the certificate");
                return;
            }
        };
        if let Some(error) = distrusted {
            self.failures.inc();
            tracing::warn!(
                signer = self.orders.signer(), ca_file = %self.ca_file.display(), %error,
                "workloads that trust the cluster's CA alone will refuse the certificate: choose a --signer-name whose \
                 CA is in their ca.crt, or --trust own-ca"
            );
        }
    }

    async fn distrusted(&self, key: &CertifiedKey, names: &ServedNames) -> Result<Option<rustls::Error>, TrustError> {
        let roots = Arc::new(load_roots(&self.ca_file).await?);
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, provider())
            .build()
            .map_err(|_| TrustError::BadCertificate(self.ca_file.clone()))?;
        let now = u64::try_from(self.clock.now().as_second()).unwrap_or(0);
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
        let (leaf, chain) = (key.end_entity_cert()?, key.cert.get(1..).unwrap_or_default());
        let dns_names = names.all_dns_names().into_iter().map(str::to_owned);
        let dns_names = dns_names.filter_map(|name| ServerName::try_from(name).ok());
        let addresses = names.all_addresses().into_iter().map(ServerName::from);
        Ok(dns_names
            .chain(addresses)
            .find_map(|name| verifier.verify_server_cert(leaf, chain, &name, &[], now).err()))
    }
}

/// Waits until what is asked for is no longer enough.
async fn outgrown(names: &mut watch::Receiver<ServedNames>, asked: &ServedNames) {
    loop {
        changed(names).await;
        if !asked.cover(&names.borrow_and_update()) {
            return;
        }
    }
}
