//! Reading certificates and keys from PEM, and what a certificate says of itself.

use std::path::Path;

use jiff::Timestamp;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::TrustError;

/// At least one certificate.
pub(super) fn certificates(pem: &[u8], path: &Path) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates = certificates.map_err(|_| TrustError::BadCertificate(path.to_owned()))?;
    if certificates.is_empty() {
        return Err(TrustError::NoCertificate(path.to_owned()));
    }
    Ok(certificates)
}

/// The first private key. The parser's own error is dropped, as it may quote the file.
pub(super) fn private_key(pem: &[u8], path: &Path) -> Result<PrivateKeyDer<'static>, TrustError> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|_| TrustError::NoKey(path.to_owned()))
}

/// When a certificate ends.
pub(super) fn expiry(certificate: &[u8], path: &Path) -> Result<Timestamp, TrustError> {
    let bad = || TrustError::BadCertificate(path.to_owned());
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| bad())?;
    Timestamp::from_second(parsed.validity().not_after.timestamp()).map_err(|_| bad())
}
