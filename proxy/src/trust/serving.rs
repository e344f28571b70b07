//! The certificate in service, whatever it came from, and the TLS terms under which pods are served.

use std::sync::Arc;

use jiff::Timestamp;
use rustls::{
    DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{WebPkiSupportedAlgorithms, aws_lc_rs::Ticketer, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, UnixTime},
    server::{
        ClientHello, ResolvesServerCert, ServerSessionMemoryCache,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};
use tokio::sync::watch;

use super::{TrustError, provider};

/// Tickets for each connection, as many as the API server's own TLS gives: each costs every handshake an encryption.
const TICKETS: usize = 1;
/// Sessions of TLS 1.2 clients that don't take tickets.
const STATEFUL_SESSIONS: usize = 1024;

/// The certificate that every client is shown, whatever name it asks for: dials by IP address carry none, and a
/// client that expects another name finds out by itself. Its owner replaces it while connections go on.
#[derive(Debug, Clone)]
pub struct ServingCert(watch::Receiver<Serving>);

#[derive(Debug, Clone)]
pub(super) struct Serving {
    pub(super) key: Arc<CertifiedKey>,
    pub(super) expiry: Timestamp,
}

impl ServingCert {
    pub(super) fn new(serving: watch::Receiver<Serving>) -> Self {
        Self(serving)
    }

    /// When the certificate in service ends.
    #[must_use]
    pub fn expiry(&self) -> Timestamp {
        self.0.borrow().expiry
    }

    /// The certificate in service, and those between it and its CA.
    #[must_use]
    pub fn certified_key(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.0.borrow().key)
    }

    /// Waits until another certificate is in service.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            // An owner that is gone isn't a new certificate.
            std::future::pending::<()>().await;
        }
    }
}

impl ResolvesServerCert for ServingCert {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.certified_key())
    }
}

/// The terms of [`server_config`] with a certificate that nobody vouches for.
///
/// # Errors
/// If there are no random bytes for a key.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn self_signed() -> Result<Arc<ServerConfig>, Box<dyn std::error::Error>> {
    Ok(server_config(self_signed_cert()?)?)
}

/// A certificate that nobody vouches for, without an end.
///
/// # Errors
/// As [`self_signed`].
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn self_signed_cert() -> Result<ServingCert, Box<dyn std::error::Error>> {
    let made = rcgen::generate_simple_self_signed(["kubernetes.default.svc".to_owned()])?;
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let key = CertifiedKey::from_der(vec![made.cert.der().clone()], key.into(), &provider())?;
    let serving = Serving {
        key: Arc::new(key),
        expiry: Timestamp::MAX,
    };
    Ok(ServingCert::new(watch::channel(serving).1))
}

/// TLS 1.2 and 1.3, HTTP/2 before HTTP/1.1, resumption by tickets whose keys change every six hours, and by session ids.
///
/// No early data: it could be replayed. No client certificates: who a client is, the kernel says.
///
/// # Errors
/// If the platform gives no random bytes for the ticket keys.
pub fn server_config(certificate: ServingCert) -> Result<Arc<ServerConfig>, TrustError> {
    terms(certificate, None)
}

/// The same, asking the client for a certificate, which it may leave out. That it holds the certificate's key is seen to
/// here; whether the certificate is good is judged for each request. Sessions are resumed under these terms only: the
/// ticket keys are others.
///
/// # Errors
/// As [`server_config`].
pub fn asking_server_config(certificate: ServingCert) -> Result<Arc<ServerConfig>, TrustError> {
    terms(
        certificate,
        Some(Arc::new(AnyClient(provider().signature_verification_algorithms))),
    )
}

fn terms(certificate: ServingCert, asks: Option<Arc<dyn ClientCertVerifier>>) -> Result<Arc<ServerConfig>, TrustError> {
    let config = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13, &TLS12])?;
    let config = match asks {
        None => config.with_no_client_auth(),
        Some(asks) => config.with_client_cert_verifier(asks),
    };
    let mut config = config.with_cert_resolver(Arc::new(certificate));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ticketer = Ticketer::new()?;
    config.session_storage = ServerSessionMemoryCache::new(STATEFUL_SESSIONS);
    config.max_early_data_size = 0;
    // Our order of cipher suites, not the client's: see `provider`.
    config.ignore_client_order = true;
    config.send_tls13_tickets = TICKETS;
    Ok(Arc::new(config))
}

/// Takes any certificate whose key the client holds. It proves nothing by itself.
#[derive(Debug)]
struct AnyClient(WebPkiSupportedAlgorithms);

impl ClientCertVerifier for AnyClient {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
