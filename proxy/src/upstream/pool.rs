//! The connections of one session to its server: as many as its concurrent streams need.
//!
//! Every session has a pool of its own, so that one session's stalls, resets and refusals touch no other. Here is how a request
//! finds its connection and is sent; [`shared`] keeps the connections, and [`lines`] those that carry one short request at a time.

mod counts;
mod lines;
mod shared;

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use http::{Request, Response};
use hyper::body::Incoming;

use self::shared::{Dialled, Found, Protocol};
use super::{
    UpstreamBody, UpstreamError,
    dial::{ALPN_HTTP1, dial},
    direct,
    h1::Lease,
    h2::{self, Unanswered},
    roots::Roots,
    socket::Socket,
    target::Target,
};
use crate::{body::RequestBody, limits::Limits};

pub use counts::DialCounts;
pub(super) use lines::LinePlace;
pub(super) use shared::Shared;

/// How far a pool goes.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Connections at once, those for upgrades among them.
    pub connections: usize,
    /// How long a request waits for a stream. It should be longer than a dial and its greeting may take.
    pub patience: Duration,
}

impl From<&Limits> for Bounds {
    fn from(limits: &Limits) -> Self {
        Self {
            connections: limits.max_upstream_connections as usize,
            patience: limits.queue_timeout,
        }
    }
}

/// A session's way upstream. Cheap to clone.
#[derive(Clone)]
pub struct Upstream(Arc<Shared>);

impl Upstream {
    /// An empty pool; the first request dials.
    #[must_use]
    pub fn new(url: Target, roots: Roots, counts: Arc<DialCounts>, bounds: Bounds) -> Self {
        Self(Shared::new(url, roots, counts, bounds))
    }

    /// Where it goes.
    #[must_use]
    pub fn url(&self) -> &Target {
        &self.0.url
    }

    /// Sends a request and waits for the head of the answer. Redirects are not followed.
    ///
    /// A request is sent a second time only where it is certain that it wasn't begun, or where the server says
    /// that it wasn't and the request is safe and without a body.
    ///
    /// # Errors
    /// If no connection comes about, or the one that carries the request fails before an answer.
    pub async fn send(&self, mut request: Request<RequestBody>) -> Result<Response<UpstreamBody>, UpstreamError> {
        let mut was_refused = false;
        loop {
            let (error, unsent) = match self.0.connection().await? {
                Found::Slot(slot) => match h2::send(slot, request).await {
                    Ok(answer) => return Ok(answer),
                    Err((error, Unanswered::Unsent(request))) => (error, Some(request)),
                    Err((error, Unanswered::Refused(request))) if !was_refused => {
                        was_refused = true;
                        (error, Some(request))
                    }
                    Err((error, _)) => (error, None),
                },
                Found::Lease(lease) => match Box::pin(lease.send(&self.0.url, request)).await {
                    Ok(answer) => return Ok(answer),
                    Err(failed) => failed,
                },
                Found::Dial(permit) => match Box::pin(self.0.dial(permit)).await? {
                    Dialled::Http2(connection) => {
                        self.0.add(connection);
                        continue;
                    }
                    Dialled::Http1(lease) => {
                        let answer = Box::pin(lease.send(&self.0.url, request)).await;
                        return answer.map_err(|(error, _)| error);
                    }
                },
                Found::Failed(error) => return Err(UpstreamError::Shared(error)),
            };
            // A connection that takes none is not offered again, so that this comes to an end.
            let Some(unsent) = unsent else { return Err(error) };
            request = unsent;
            tracing::debug!(%error, "an upstream connection took no request; on another");
        }
    }

    /// Sends a request that will be answered soon, and waits for the head of the answer: over a kept-alive HTTP/1.1
    /// connection where that can be, which costs less than a stream of HTTP/2; otherwise as [`Self::send`] does.
    ///
    /// It is sent a second time, on a new connection, only where it changes nothing, has no body, and the server closed
    /// the connection, which had been idle, without a word.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn send_short(&self, mut request: Request<RequestBody>) -> Result<Response<UpstreamBody>, UpstreamError> {
        let mut line = if direct::carries(&request) {
            match self.0.idle_line() {
                Some(line) => Some(line),
                None => Box::pin(self.0.new_line()).await?,
            }
        } else {
            None
        };
        while let Some(found) = line {
            request = match found.send(&self.0.url, request).await {
                Ok(answer) => return Ok(answer.map(UpstreamBody::direct)),
                Err((error, None)) => return Err(error.into()),
                Err((error, Some(unsent))) => {
                    tracing::debug!(%error, "an idle upstream connection was closed; on another");
                    unsent
                }
            };
            line = Box::pin(self.0.new_line()).await?;
        }
        Box::pin(self.send(request)).await
    }

    /// Sends a request that asks for an upgrade, on an HTTP/1.1 connection of its own.
    ///
    /// # Errors
    /// If the connection doesn't come about or fails before an answer.
    pub async fn send_upgrade(&self, request: Request<RequestBody>) -> Result<Response<Incoming>, UpstreamError> {
        let permit = self.0.place().await?;
        let dialled = async {
            let (tls, vouched) = self.0.roots.client_config(&ALPN_HTTP1).await?;
            let socket = Socket::new(dial(&self.0.url, tls).await?, permit);
            Lease::open(socket, vouched, Weak::new()).await
        };
        let lease = dialled.await;
        let spoken = lease.as_ref().ok().map(|_| Protocol::Http1);
        self.0.counts.dialled(spoken);
        lease?.send_upgrade(&self.0.url, request).await
    }

    /// Finds a place as a request does, and gives it back: what that alone takes is measured by it.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn check_out(&self) -> Result<(), UpstreamError> {
        self.0.connection().await.map(drop)
    }
}
