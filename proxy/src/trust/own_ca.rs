//! `own-ca`: a CA made once and kept in a directory or a Secret, and a serving certificate under it that lives in
//! memory, is renewed before it ends, and is issued anew when the addresses to serve change.

mod directory;
mod secret;

use std::{future::Future, path::PathBuf, sync::Arc, time::Duration};

use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;
use rustls::pki_types::CertificateDer;
use tokio::{sync::watch, time};

pub use self::directory::{CERTIFICATE, KEY};
pub use super::names::ServedNames;
use super::{
    TrustError,
    authority::{Authority, Issued},
    changed,
    serving::ServingCert,
};
use crate::{admin::Condition, clock::Clock};

/// How often it is looked whether a renewal is due: often, because a timer doesn't notice that the clock was set.
const LOOK: Duration = Duration::from_hours(1);

/// The Secret that keeps the CA.
#[derive(Debug, Clone)]
pub struct CaSecret {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// The CA's certificates, for consumers to trust, as they are now.
#[derive(Debug, Clone)]
pub struct CaCertificates(pub(super) watch::Receiver<Arc<[CertificateDer<'static>]>>);

/// Serves under the CA in `directory`, which is made there if there is none yet, and keeps the certificate naming
/// what `names` says. What goes wrong later is logged and counted in `failures`, and the certificate in service stays.
///
/// Several agents may start on one directory at once: one makes the CA, all use it.
///
/// # Errors
/// If the directory can't be used, or what is in it isn't a CA and its key.
pub async fn serve_own_ca(
    directory: impl Into<PathBuf>,
    names: watch::Receiver<ServedNames>,
    clock: Clock,
    failures: Counter,
) -> Result<ServingCert, TrustError> {
    let (keeper, authority) = directory::Followed::start(directory.into(), clock.now()).await?;
    Ok(serve(keeper, authority, names, clock, failures)?.0)
}

/// Like [`serve_own_ca`], with the CA in a Secret (type `kubernetes.io/tls`) that all agents of the cluster share: one
/// of them makes it, all use it, and what an operator puts in its place is taken up. Also returns the certificates
/// that workloads are to be given.
///
/// While the API server doesn't answer or forbids it, this waits, and `readiness` says for what.
///
/// # Errors
/// If what is in the Secret isn't a CA and its key.
pub async fn serve_own_ca_secret(
    client: kube::Client,
    secret: CaSecret,
    names: watch::Receiver<ServedNames>,
    clock: Clock,
    failures: Counter,
    readiness: &Condition,
) -> Result<(ServingCert, CaCertificates), TrustError> {
    let (keeper, authority) = secret::Followed::start(client, secret, &clock, &failures, readiness).await?;
    let served = serve(keeper, authority, names, clock, failures)?;
    readiness.ready();
    Ok(served)
}

/// Where a CA is kept.
trait Keeper: Send + 'static {
    /// The CA of now, renewed if it is time; an error if there is none any more. Under a running agent a CA that
    /// vanished is a mishap: a new one would be trusted by nobody.
    fn open(&mut self, now: Timestamp) -> impl Future<Output = Result<Authority, TrustError>> + Send;

    /// Waits until it may be another one. May be cancelled.
    fn changed(&mut self) -> impl Future<Output = ()> + Send;
}

fn serve(
    mut keeper: impl Keeper,
    mut authority: Authority,
    mut names: watch::Receiver<ServedNames>,
    clock: Clock,
    failures: Counter,
) -> Result<(ServingCert, CaCertificates), TrustError> {
    let mut served = names.borrow_and_update().clone();
    let Issued { serving, mut renew_at } = authority.issue(&served, clock.now())?;
    let (publish, serving) = watch::channel(serving);
    let (publish_ca, certificates) = watch::channel(authority.certificates().into());

    tokio::spawn(async move {
        let complain = |error: TrustError| {
            failures.inc();
            tracing::error!(%error, "the own CA cannot be used as it is now; the last good certificate stays");
        };
        loop {
            let look = tokio::select! {
                () = keeper.changed() => true,
                // The CA at hand does for that, also while where it is kept can't be reached.
                () = changed(&mut names) => false,
                () = time::sleep(LOOK) => true,
                () = publish.closed() => return,
            };
            if look {
                match keeper.open(clock.now()).await {
                    Ok(found) if found.is_same(&authority) => {}
                    Ok(found) => {
                        authority = found;
                        renew_at = clock.now();
                        publish_ca.send_replace(authority.certificates().into());
                    }
                    Err(error) => complain(error),
                }
            }
            let now = clock.now();
            let wanted = names.borrow_and_update().clone();
            if now < renew_at && wanted == served {
                continue;
            }
            match authority.issue(&wanted, now) {
                Ok(issued) => {
                    tracing::info!(expiry = %issued.serving.expiry, names = ?wanted, "serving a new certificate of the own CA");
                    renew_at = issued.renew_at;
                    served = wanted;
                    publish.send_replace(issued.serving);
                }
                Err(error) => complain(error),
            }
        }
    });
    Ok((ServingCert::new(serving), CaCertificates(certificates)))
}

/// What to do where there is no CA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum IfEmpty {
    Make,
    Refuse,
}
