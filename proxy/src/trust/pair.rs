//! `files`: a certificate and its key that the operator provides, followed as they are renewed.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;
use rustls::{Error, InconsistentKeys, sign::CertifiedKey};
use tokio::sync::watch;

use super::{
    TrustError, pem, provider,
    serving::{Serving, ServingCert},
};
use crate::{
    clock::Clock,
    files::{self, FileWatch},
};

/// Serves the certificate chain in `certificate` with the key in `key`, both PEM, and follows them.
///
/// A new pair that can't be used is logged and counted in `failures`, and the pair in service stays. Certificate and
/// key may be written one after the other: until both are there they don't match.
///
/// # Errors
/// If the pair can't be used at the start. The error names the file.
pub async fn serve_pair(
    certificate: impl Into<PathBuf>,
    key: impl Into<PathBuf>,
    clock: Clock,
    failures: Counter,
) -> Result<ServingCert, TrustError> {
    let (certificate, key) = (certificate.into(), key.into());
    let mut watch = FileWatch::new([&certificate, &key]).await;
    let (publish, serving) = watch::channel(load(&certificate, &key, clock.now()).await?);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = watch.changed() => {}
                () = publish.closed() => return,
            }
            match load(&certificate, &key, clock.now()).await {
                Ok(serving) => {
                    tracing::info!(path = %certificate.display(), expiry = %serving.expiry, "serving a new certificate");
                    publish.send_replace(serving);
                }
                Err(error) => {
                    failures.inc();
                    tracing::error!(%error, "the new certificate cannot be used; the one in service stays");
                }
            }
        }
    });
    Ok(ServingCert::new(serving))
}

async fn load(certificate: &Path, key: &Path, now: Timestamp) -> Result<Serving, TrustError> {
    let chain = pem::certificates(&files::read(certificate).await?, certificate)?;
    let private = pem::private_key(&files::read(key).await?, key)?;
    let signing = provider()
        .key_provider
        .load_private_key(private)
        .map_err(|_| TrustError::BadKey(key.to_owned()))?;
    let certified = CertifiedKey::new(chain, signing);
    match certified.keys_match() {
        // Unknown: a kind of key that can't be compared. A handshake will tell.
        Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
        Err(Error::InconsistentKeys(_)) => {
            return Err(TrustError::Mismatch {
                certificate: certificate.to_owned(),
                key: key.to_owned(),
            });
        }
        Err(_) => return Err(TrustError::BadCertificate(certificate.to_owned())),
    }
    let expiry = pem::expiry(certified.end_entity_cert()?, certificate)?;
    if expiry <= now {
        return Err(TrustError::Expired {
            path: certificate.to_owned(),
            expiry,
        });
    }
    Ok(Serving {
        key: Arc::new(certified),
        expiry,
    })
}
