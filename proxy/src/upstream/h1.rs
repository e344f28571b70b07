//! Requests over HTTP/1.1: for servers that offer nothing else, and for upgrades.

use std::sync::Weak;

use http::{HeaderValue, Request, Response, Uri, Version, header};
use hyper::{
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use super::{UpstreamBody, UpstreamError, pool::Shared, roots::RootsVersion, socket::Socket, target::Target};
use crate::body::RequestBody;

/// A connection that waits for its next request.
pub(super) struct Idle {
    sender: SendRequest<RequestBody>,
    vouched: RootsVersion,
    since: Instant,
}

/// A connection out on loan to one request; given back when the answer has been read to its end.
pub(super) struct Lease {
    sender: SendRequest<RequestBody>,
    vouched: RootsVersion,
    home: Weak<Shared>,
}

impl Idle {
    pub(super) fn usable(&self, now: Instant, limit: std::time::Duration) -> bool {
        self.sender.is_ready() && now.duration_since(self.since) < limit
    }

    /// The CA that the server was verified by.
    pub(super) fn vouched(&self) -> &RootsVersion {
        &self.vouched
    }

    pub(super) fn lend(self, home: Weak<Shared>) -> Lease {
        Lease {
            sender: self.sender,
            vouched: self.vouched,
            home,
        }
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Lease")
    }
}

impl Lease {
    /// Begins HTTP/1.1 on a fresh connection. It can be upgraded.
    pub(super) async fn open(io: Socket, vouched: RootsVersion, home: Weak<Shared>) -> Result<Self, UpstreamError> {
        let (sender, connection) = http1::Builder::new().handshake(TokioIo::new(io)).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "an upstream connection failed");
            }
        });
        Ok(Self { sender, vouched, home })
    }

    /// Hands the connection back to the pool, if there still is one and the connection is fit.
    pub(super) fn give_back(self) {
        if let Some(home) = self.home.upgrade()
            && !self.sender.is_closed()
        {
            home.give_back(Idle {
                sender: self.sender,
                vouched: self.vouched,
                since: Instant::now(),
            });
        }
    }

    /// Sends a request. On failure the request comes back if it is certain that it wasn't begun.
    pub(super) async fn send(
        mut self,
        url: &Target,
        request: Request<RequestBody>,
    ) -> Result<Response<UpstreamBody>, (UpstreamError, Option<Request<RequestBody>>)> {
        let request = in_origin_form(url, request).map_err(|error| (error, None))?;
        if let Err(error) = self.sender.ready().await {
            return Err((error.into(), Some(request)));
        }
        match self.sender.try_send_request(request).await {
            Ok(answer) => Ok(answer.map(|body| UpstreamBody::http1(body, Some(self)))),
            Err(mut failed) => {
                let request = failed.take_message();
                Err((failed.into_error().into(), request))
            }
        }
    }

    /// Sends a request that asks for an upgrade. The connection is never used again, whatever the answer
    /// (CVE-2018-1002105 is what comes of doing otherwise).
    pub(super) async fn send_upgrade(
        mut self,
        url: &Target,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, UpstreamError> {
        let request = in_origin_form(url, request)?;
        self.sender.ready().await?;
        Ok(self.sender.send_request(request).await?)
    }
}

fn in_origin_form(url: &Target, mut request: Request<RequestBody>) -> Result<Request<RequestBody>, UpstreamError> {
    *request.version_mut() = Version::HTTP_11;
    let path_and_query = request.uri().path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() = path_and_query.parse::<Uri>().map_err(http::Error::from)?;
    let host = HeaderValue::from_str(url.authority().as_str()).map_err(http::Error::from)?;
    request.headers_mut().insert(header::HOST, host);
    Ok(request)
}
