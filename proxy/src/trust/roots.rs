//! The client's side: the CAs by which an upstream is verified.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use prometheus_client::metrics::counter::Counter;
use rustls::{
    ClientConfig, RootCertStore,
    version::{TLS12, TLS13},
};
use tokio::sync::watch;

use super::{TrustError, pem, provider};
use crate::files::{self, FileWatch};

/// Reads the CA certificates in a PEM file.
///
/// # Errors
/// If the file is missing, can't be read, or holds no certificate that can be trusted. The error names the file.
pub async fn load_roots(path: &Path) -> Result<RootCertStore, TrustError> {
    parse_roots(&files::read(path).await?, path)
}

pub(crate) fn parse_roots(pem: &[u8], path: &Path) -> Result<RootCertStore, TrustError> {
    let certificates = pem::certificates(pem, path)?;
    let mut roots = RootCertStore::empty();
    let (added, ignored) = roots.add_parsable_certificates(certificates);
    if added == 0 {
        return Err(TrustError::BadCertificate(path.to_owned()));
    }
    if ignored > 0 {
        tracing::warn!(path = %path.display(), ignored, "some CA certificates cannot be parsed and are left out");
    }
    Ok(roots)
}

/// TLS 1.2 and 1.3 to a server that `roots` vouch for, offering `alpn`. No early data, no client certificate.
///
/// # Errors
/// If rustls refuses the configuration.
pub fn client_config(roots: RootCertStore, alpn: &[&[u8]]) -> Result<ClientConfig, TrustError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13, &TLS12])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.enable_early_data = false;
    Ok(config)
}

/// CA certificates that stand in a session itself. Two of the same text are the same.
#[derive(Clone)]
pub struct CaBundle {
    pem: Arc<str>,
    config: Arc<ClientConfig>,
}

impl CaBundle {
    /// Reads certificates in PEM form.
    ///
    /// # Errors
    /// If there is none, or none that can be trusted. The error begins with `field`.
    pub fn parse(field: &str, pem: &str) -> Result<Self, TrustError> {
        let roots = parse_roots(pem.as_bytes(), Path::new(field))?;
        Ok(Self {
            pem: Arc::from(pem),
            config: Arc::new(client_config(roots, &[])?),
        })
    }

    /// The terms to dial under, apart from ALPN.
    #[must_use]
    pub fn client_config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.config)
    }
}

impl PartialEq for CaBundle {
    fn eq(&self, other: &Self) -> bool {
        self.pem == other.pem
    }
}

impl Eq for CaBundle {}

impl fmt::Debug for CaBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CaBundle({} bytes)", self.pem.len())
    }
}

/// The same terms, offering other protocols. They share resumable sessions.
#[must_use]
pub fn with_alpn(config: &ClientConfig, alpn: &[&[u8]]) -> Arc<ClientConfig> {
    let mut config = config.clone();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    Arc::new(config)
}

/// A CA file that is followed. A new version that can't be used is logged and counted, and the roots in force stay.
#[derive(Debug, Clone)]
pub struct UpstreamRoots(watch::Receiver<Arc<ClientConfig>>);

impl UpstreamRoots {
    /// Reads the CA file and follows it from then on.
    ///
    /// # Errors
    /// As [`load_roots`].
    pub async fn follow(path: impl Into<PathBuf>, failures: Counter) -> Result<Self, TrustError> {
        let path = path.into();
        let mut watch = FileWatch::new([&path]).await;
        let (publish, config) = watch::channel(load(&path).await?);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = watch.changed() => {}
                    () = publish.closed() => return,
                }
                match load(&path).await {
                    Ok(config) => {
                        tracing::info!(path = %path.display(), "verifying upstream by new CA certificates");
                        publish.send_replace(config);
                    }
                    Err(error) => {
                        failures.inc();
                        tracing::error!(%error, "the new CA file cannot be used; the roots in force stay");
                    }
                }
            }
        });
        Ok(Self(config))
    }

    /// The version in force, to compare with another by identity (`Arc::ptr_eq`).
    #[must_use]
    pub fn version(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.0.borrow())
    }

    /// The terms to dial under now, offering `alpn`. All of one version share their resumable sessions; a new version
    /// begins with none, so that a server which only the old roots vouched for must prove itself anew.
    #[must_use]
    pub fn client_config(&self, alpn: &[&[u8]]) -> Arc<ClientConfig> {
        with_alpn(&self.0.borrow(), alpn)
    }

    /// Waits until other roots are in force, so that connections made under the old can be let go.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            // A task that is gone isn't new roots.
            std::future::pending::<()>().await;
        }
    }
}

async fn load(path: &Path) -> Result<Arc<ClientConfig>, TrustError> {
    client_config(load_roots(path).await?, &[]).map(Arc::new)
}
