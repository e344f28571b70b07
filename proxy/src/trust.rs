//! TLS on both sides: the certificate that a workload is shown, and the roots by which the API server is verified.
//! What is read from files, or from the cluster, is followed; a bad new version never takes the place of a good one.
//! Nothing here dials or accepts: what is asked of the API server goes through the client that is handed in.

pub mod bundle;
pub mod cluster_signed;
pub mod own_ca;
pub mod pair;
pub mod roots;
pub mod serving;
pub mod unverified;

mod ask;
mod authority;
mod names;
pub(crate) mod pem;

use std::{io, path::PathBuf, sync::Arc};

use jiff::Timestamp;
use rustls::{
    CipherSuite,
    crypto::{CryptoProvider, aws_lc_rs},
};
use tokio::sync::watch;

pub use self::names::ServedNames;
pub(crate) use self::pem::certificates as pem_certificates;
use crate::files::ReadError;

/// Why a certificate, a key or a CA can't be used. The place that an error names is a file's path, or an object's name
/// and the key in it.
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
    /// The Secret that keeps the own CA is gone from under a running agent.
    #[error(
        "{0} is gone: restore it from a backup; or restart an agent to have a new CA made, which all agents then take up"
    )]
    SecretGone(String),
    /// The Secret that keeps the own CA is written by others all the time.
    #[error("{0} changes faster than it can be written: find who else writes to it")]
    Contended(String),
    /// The API server forbids it.
    #[error("the agent may not {what} ({message}): give its service account that right, as deploy/ has it")]
    Forbidden {
        /// What the agent asked for.
        what: String,
        /// What the API server said.
        message: String,
    },
    /// The API server refuses it.
    #[error("the API server doesn't {what} ({message}): see whether an admission policy or a quota stands in the way")]
    Refused {
        /// What the agent asked for.
        what: String,
        /// What the API server said.
        message: String,
    },
    /// The API server gave no answer that can be understood.
    #[error("cannot {what} ({source}): it is tried again; see whether the API server is well")]
    Unanswered {
        /// What the agent asked for.
        what: String,
        /// How it failed.
        source: Box<kube::Error>,
    },
    /// The API server gave no answer in time.
    #[error("cannot {what}, for the API server gives no answer: it is tried again; see whether the API server is well")]
    Silent {
        /// What the agent asked for.
        what: String,
    },
    /// What the API server sent isn't a Secret. What it was isn't shown: it may hold a key.
    #[error("the API server sent something else when asked to {what}: see whether a proxy stands before it")]
    NotASecret {
        /// What the agent asked for.
        what: String,
    },
    /// A certificate that the cluster is to sign is asked for in a node's name.
    #[error("--trust cluster-signed needs the node's name: set NODE_NAME from spec.nodeName, or give --node-name")]
    NoNodeName,
    /// A request for a certificate was turned down.
    #[error(
        "the certificate request {request} was {outcome} ({message}): allow it, or choose another --signer-name or --trust"
    )]
    TurnedDown {
        /// Its name.
        request: String,
        /// `denied`, or `failed by the signer`.
        outcome: &'static str,
        /// What whoever did it left as a reason.
        message: String,
    },
    /// A request for a certificate is gone before it was answered.
    #[error("the certificate request {0} was removed before it was signed: another is made; let it be approved sooner")]
    RequestGone(String),
    /// The certificate that the cluster signed can't be used.
    #[error("the certificate that {signer} signed for {request} {flaw}: change that signer's policy, or --signer-name")]
    Unfit {
        /// The request's name.
        request: String,
        /// Who signed.
        signer: String,
        /// What is wrong with it.
        flaw: String,
    },
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
///
/// AES-128 with SHA-256 comes first, as in Go's `crypto/tls` and so with the API server itself: processors have
/// instructions for both, and hardly one for the SHA-384 that goes with AES-256.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    // What is alike stays in rustls' order.
    provider.cipher_suites.sort_by_key(|suite| {
        !matches!(
            suite.suite(),
            CipherSuite::TLS13_AES_128_GCM_SHA256
                | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
                | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
        )
    });
    Arc::new(provider)
}

/// Waits for another value; a dropped sender isn't one.
async fn changed<T>(receiver: &mut watch::Receiver<T>) {
    if receiver.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

#[cfg(test)]
mod tests;
