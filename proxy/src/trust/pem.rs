//! Reading certificates and keys from PEM, and what a certificate says of itself.

use std::{collections::HashSet, path::Path};

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::TrustError;

/// Characters in a line (RFC 7468).
const LINE: usize = 64;

/// At least one certificate.
pub(crate) fn certificates(pem: &[u8], path: &Path) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates = certificates.map_err(|_| TrustError::BadCertificate(path.to_owned()))?;
    if certificates.is_empty() {
        return Err(TrustError::NoCertificate(path.to_owned()));
    }
    Ok(certificates)
}

/// Certificates as PEM, each once. What else stood beside them where they came from, a key say, is left behind.
pub(super) fn encode<'a>(certificates: impl IntoIterator<Item = &'a CertificateDer<'static>>) -> String {
    let mut pem = String::new();
    let mut seen = HashSet::new();
    for certificate in certificates {
        if !seen.insert(certificate) {
            continue;
        }
        let base64 = STANDARD.encode(certificate);
        pem.push_str("-----BEGIN CERTIFICATE-----\n");
        let mut rest = base64.as_str();
        while !rest.is_empty() {
            let (line, further) = rest.split_at(rest.len().min(LINE));
            pem.push_str(line);
            pem.push('\n');
            rest = further;
        }
        pem.push_str("-----END CERTIFICATE-----\n");
    }
    pem
}

/// The first private key. The parser's own error is dropped, as it may quote the file.
pub(crate) fn private_key(pem: &[u8], path: &Path) -> Result<PrivateKeyDer<'static>, TrustError> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|_| TrustError::NoKey(path.to_owned()))
}

/// When a certificate ends.
pub(super) fn expiry(certificate: &[u8], path: &Path) -> Result<Timestamp, TrustError> {
    let bad = || TrustError::BadCertificate(path.to_owned());
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| bad())?;
    Timestamp::from_second(parsed.validity().not_after.timestamp()).map_err(|_| bad())
}
