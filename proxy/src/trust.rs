//! TLS on both sides: the certificate that a workload is shown, and the roots by which the API server is verified.
//! What is read from files is followed; a bad new version never takes the place of a good one. Nothing here dials
//! or accepts.

pub mod own_ca;
pub mod pair;
pub mod roots;
pub mod serving;
pub mod unverified;

mod authority;
mod pem;

use std::{io, path::PathBuf, sync::Arc};

use jiff::Timestamp;
use rustls::crypto::{CryptoProvider, aws_lc_rs};

use crate::files::ReadError;

/// Why a certificate, a key or a CA can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// A file can't be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A file holds no certificate.
    #[error("{0} holds no certificate: put at least one there, in PEM form (-----BEGIN CERTIFICATE-----)")]
    NoCertificate(PathBuf),
    /// A certificate can't be parsed.
    #[error("{0} holds a certificate that cannot be parsed: replace it")]
    BadCertificate(PathBuf),
    /// A file holds no private key.
    #[error("{0} holds no private key: put one there, in PEM form (-----BEGIN PRIVATE KEY-----)")]
    NoKey(PathBuf),
    /// A private key is of a kind that can't sign here.
    #[error(
        "{0} holds a private key that cannot be used: use an ECDSA P-256 or P-384, Ed25519 or RSA key of at least 2048 bits"
    )]
    BadKey(PathBuf),
    /// The key isn't the certificate's.
    #[error("the key in {key} does not belong to the certificate in {certificate}: replace them together")]
    Mismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// The certificate's time is over.
    #[error("the certificate in {path} expired at {expiry}: replace it, or check this machine's clock")]
    Expired {
        /// The file.
        path: PathBuf,
        /// When.
        expiry: Timestamp,
    },
    /// The own CA's directory can't be used.
    #[error("the CA directory {path} cannot be used ({source}): make it writable for the agent, or choose another")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Another process holds the own CA's directory for too long.
    #[error("{0} stays locked by another process: find it with `fuser` and end it")]
    Locked(PathBuf),
    /// The own CA's certificate is there, and its key isn't.
    #[error(
        "{key} is missing beside {certificate}: restore it; or remove {certificate} to have a new CA made, and distribute that"
    )]
    KeyGone {
        /// Where the key should be.
        key: PathBuf,
        /// The certificate that is there.
        certificate: PathBuf,
    },
    /// The certificate isn't a CA's.
    #[error(
        "the certificate in {0} is not a CA's: put a CA certificate with keyCertSign there, or remove it and its key to have a CA made"
    )]
    NotACa(PathBuf),
    /// A certificate can't be made.
    #[error("cannot make a certificate ({0}): check the configured addresses and names")]
    Issue(#[from] rcgen::Error),
    /// rustls refuses the configuration.
    #[error("TLS cannot be configured ({0}): please report this")]
    Tls(#[from] rustls::Error),
    /// The runtime is going down.
    #[error("the agent is shutting down")]
    Stopped,
}

/// The cryptography, named rather than taken from the process's default: what a dependency installs doesn't change it.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

#[cfg(test)]
mod tests;
