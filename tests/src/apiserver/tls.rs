//! The server's certificate: read from files, or made under a CA of its own whose certificate is written out for
//! clients to trust.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::danger::ClientCertVerifier,
};

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read or isn't PEM.
    #[error("{0}: {1}")]
    File(PathBuf, String),
    /// A certificate can't be made.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// The certificate and key don't serve.
    #[error("the certificate and key cannot be used: {0}")]
    Use(#[from] rustls::Error),
}

/// A CA made on the spot.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    /// Makes one.
    ///
    /// # Errors
    /// If no key can be made.
    pub fn new(name: &str) -> Result<Self, TlsError> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Ok(Self(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?))
    }

    /// Its certificate, in PEM.
    #[must_use]
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A server's certificate for these names and addresses.
    ///
    /// # Errors
    /// If a name isn't a DNS name, or no key can be made.
    pub fn issue(&self, names: &[String], addresses: &[IpAddr]) -> Result<Identity, TlsError> {
        let mut all = names.to_vec();
        all.extend(addresses.iter().map(ToString::to_string));
        let mut params = CertificateParams::new(all)?;
        params.distinguished_name.push(DnType::CommonName, "kube-apiserver");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.0)?;
        Ok(Identity {
            chain: vec![certificate.der().clone()],
            key: PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        })
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

/// What a server shows, and proves.
#[derive(Debug)]
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    /// Reads a certificate chain and its key from PEM files.
    ///
    /// # Errors
    /// Names the file that can't be used.
    pub fn from_files(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let failed =
            |path: &Path, error: rustls::pki_types::pem::Error| TlsError::File(path.to_owned(), error.to_string());
        Ok(Self {
            chain: CertificateDer::pem_file_iter(certificate)
                .and_then(Iterator::collect)
                .map_err(|error| failed(certificate, error))?,
            key: PrivateKeyDer::from_pem_file(key).map_err(|error| failed(key, error))?,
        })
    }

    /// How a server of HTTP/2 and HTTP/1.1 uses it, which asks its clients for certificates if it is told how.
    pub(crate) fn server_config(
        &self,
        clients: Option<Arc<dyn ClientCertVerifier>>,
    ) -> Result<Arc<rustls::ServerConfig>, TlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let builder = match clients {
            Some(clients) => builder.with_client_cert_verifier(clients),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}
