//! Who vouches for an upstream: the cluster's CA, one of the session's own, or nobody.

use std::{path::PathBuf, sync::Arc};

use prometheus_client::metrics::counter::Counter;
use rustls::ClientConfig;
use tokio::sync::OnceCell;

use super::UpstreamError;
use crate::trust::{
    roots::{CaBundle, UpstreamRoots, with_alpn},
    unverified::Unverified,
};

/// The CA that an upstream's certificate is verified by. Asked at each dial, so that a new version of it holds
/// from the next connection on.
#[derive(Debug, Clone)]
pub struct Roots(Source);

#[derive(Debug, Clone)]
enum Source {
    Followed(UpstreamRoots),
    /// Read at the first dial, and again at the next while it can't be: a session's CA may come after the session.
    File {
        path: PathBuf,
        followed: Arc<OnceCell<UpstreamRoots>>,
        failures: Counter,
    },
    /// The same for as long as there is the session.
    Fixed(Arc<ClientConfig>),
}

impl Roots {
    /// A CA that has been read, and is followed.
    #[must_use]
    pub fn followed(roots: UpstreamRoots) -> Self {
        Self(Source::Followed(roots))
    }

    /// The CA in a file. Readings that fail are counted.
    #[must_use]
    pub fn in_file(path: PathBuf, failures: Counter) -> Self {
        Self(Source::File {
            path,
            followed: Arc::default(),
            failures,
        })
    }

    /// CA certificates that stand in a session.
    #[must_use]
    pub fn bundle(bundle: &CaBundle) -> Self {
        Self(Source::Fixed(bundle.client_config()))
    }

    /// No CA: the server isn't verified.
    #[must_use]
    pub fn unverified(unverified: &Unverified) -> Self {
        Self(Source::Fixed(unverified.client_config()))
    }

    /// The terms to dial under now, offering `alpn`, and the version of the CA that they hold for.
    ///
    /// # Errors
    /// If the CA can't be read. There is no connection then, verified or not.
    pub async fn client_config(&self, alpn: &[&[u8]]) -> Result<(Arc<ClientConfig>, RootsVersion), UpstreamError> {
        let roots = match &self.0 {
            Source::Fixed(config) => return Ok((with_alpn(config, alpn), RootsVersion(Arc::clone(config)))),
            Source::Followed(roots) => roots,
            Source::File {
                path,
                followed,
                failures,
            } => followed
                .get_or_try_init(|| UpstreamRoots::follow(path, failures.clone()))
                .await
                .map_err(|error| {
                    failures.inc();
                    UpstreamError::NoRoots(error.to_string())
                })?,
        };
        // The version first: if another comes between the two, the connection counts as the older's.
        let version = RootsVersion(roots.version());
        Ok((roots.client_config(alpn), version))
    }

    /// Whether this version of the CA is the one in force. A connection made under another carries no new request.
    #[must_use]
    pub fn are(&self, version: &RootsVersion) -> bool {
        let in_force = match &self.0 {
            Source::Fixed(config) => Some(Arc::clone(config)),
            Source::Followed(roots) => Some(roots.version()),
            Source::File { followed, .. } => followed.get().map(UpstreamRoots::version),
        };
        in_force.is_some_and(|config| Arc::ptr_eq(&config, &version.0))
    }
}

/// One version of a CA.
#[derive(Debug, Clone)]
pub struct RootsVersion(Arc<ClientConfig>);
