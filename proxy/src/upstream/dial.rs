//! One verified connection to an upstream.

use std::{io, sync::Arc, time::Duration};

use rustls::ClientConfig;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::TcpStream,
    time::{error::Elapsed, timeout},
};

use super::{direct::DirectError, target::Target};
use crate::{http2::Http2Error, limits::descriptors, metrics::Limit, tls};

/// How long a connection may take to come about: TCP and TLS together.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(30))
    .with_interval(Duration::from_secs(15));

/// The protocols to offer by ALPN.
pub(super) const ALPN_ANY: [&[u8]; 2] = [b"h2", b"http/1.1"];
pub(super) const ALPN_HTTP1: [&[u8]; 1] = [b"http/1.1"];

/// Why an upstream couldn't be asked, or didn't answer. A variant for each way; the client is told which
/// kind, never the detail.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// The name didn't resolve, or nothing answered there.
    #[error("connect to {url}: {source}: check that the API server is up and reachable from this node")]
    Connect {
        /// Where.
        url: String,
        /// Why not.
        source: io::Error,
    },
    /// The TLS handshake failed: another CA, another name, out of date. No request byte was sent.
    #[error("TLS with {url}: {source}: check the CA file and the server's name")]
    Tls {
        /// Where.
        url: String,
        /// Why.
        source: io::Error,
    },
    /// It took longer than [`DIAL_TIMEOUT`].
    #[error("connect to {url}: not done in {}s: check that the API server is up and reachable", DIAL_TIMEOUT.as_secs())]
    Timeout {
        /// Where.
        url: String,
    },
    /// No verified roots to trust at the moment.
    #[error("no CA to verify the upstream with: {0}")]
    NoRoots(String),
    /// The HTTP/2 connection or stream failed before an answer.
    #[error("HTTP/2 to the upstream: {0}")]
    Http2(#[from] Http2Error),
    /// The HTTP/1.1 connection failed before an answer.
    #[error("HTTP/1.1 to the upstream: {0}")]
    Http1(#[from] hyper::Error),
    /// The HTTP/1.1 connection of a request without a body failed before an answer.
    #[error("HTTP/1.1 to the upstream: {0}")]
    Direct(#[from] DirectError),
    /// The server was reached, and then didn't speak HTTP/2 as it had said.
    #[error("greeting {url} over HTTP/2: {source}: check what stands before the API server")]
    Greeting {
        /// Where.
        url: String,
        /// Why.
        source: Http2Error,
    },
    /// As many connections as there may be, and no stream came free on any.
    #[error("no stream upstream came free in time: end some of the session's watches")]
    Exhausted,
    /// The process has no file descriptor left for it.
    #[error("no file descriptor is left for a connection upstream: raise the agent's limit on open files")]
    Descriptors,
    /// The request couldn't be put in the upstream's form.
    #[error("the request can't be sent on: {0}")]
    Request(#[from] http::Error),
    /// A dial that others waited for failed; its own error is in the log.
    #[error("the upstream can't be reached: {0}")]
    Shared(Arc<UpstreamError>),
}

impl UpstreamError {
    /// The limit that was come up against, if it is that.
    #[must_use]
    pub fn limit(&self) -> Option<Limit> {
        match self {
            Self::Exhausted => Some(Limit::UpstreamConnections),
            Self::Descriptors => Some(Limit::OpenFiles),
            Self::Shared(error) => error.limit(),
            _ => None,
        }
    }

    /// Whether we ended it ourselves, since the client broke its own body off.
    #[must_use]
    pub fn given_up(&self) -> bool {
        matches!(self, Self::Http2(Http2Error::GivenUp))
    }

    /// Whether it is certain that no byte of the request was sent.
    #[must_use]
    pub fn nothing_sent(&self) -> bool {
        match self {
            Self::Connect { .. }
            | Self::Tls { .. }
            | Self::Timeout { .. }
            | Self::Greeting { .. }
            | Self::NoRoots(_)
            | Self::Exhausted
            | Self::Descriptors
            | Self::Request(_) => true,
            Self::Http2(_) | Self::Http1(_) | Self::Direct(_) => false,
            Self::Shared(error) => error.nothing_sent(),
        }
    }
}

/// Opens a TCP connection and verifies the server's certificate against the pinned name.
///
/// # Errors
/// Whatever stands in the way; there is no fallback to an unverified connection.
pub async fn dial(target: &Target, config: Arc<ClientConfig>) -> Result<tls::Dialled, UpstreamError> {
    let connected = timeout(DIAL_TIMEOUT, async {
        let connect = |source| UpstreamError::Connect {
            url: target.to_string(),
            source,
        };
        let tcp = TcpStream::connect(target.address()).await.map_err(connect)?;
        if descriptors::is_reserved(&tcp) {
            return Err(UpstreamError::Descriptors);
        }
        tcp.set_nodelay(true).map_err(connect)?;
        SockRef::from(&tcp).set_tcp_keepalive(&KEEPALIVE).map_err(connect)?;
        tls::connect(tcp, config, target.server_name().clone())
            .await
            .map_err(|source| UpstreamError::Tls {
                url: target.to_string(),
                source,
            })
    });
    connected.await.map_err(|_: Elapsed| UpstreamError::Timeout {
        url: target.to_string(),
    })?
}
