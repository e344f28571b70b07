//! A connection is served by [`http1`] or [`http2`], as was agreed on, until it ends or is ended.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use http::{Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use super::{http1, http2, service::Service, tls::Accepted};
use crate::{
    body::{ResponseBody, client::ClientBody},
    forward::{Forwarder, Origin},
    limits::Limits,
    metrics::{Limit, Metrics},
    status::Refusal,
};

/// What a connection is served with.
pub(super) struct Terms<'a> {
    pub(super) forwarder: Arc<Forwarder>,
    pub(super) origin: Origin,
    pub(super) limits: &'a Limits,
    /// Cancelled when the agent takes no new request.
    pub(super) drain: &'a CancellationToken,
    /// Cancelled when the session is over.
    pub(super) ended: &'a CancellationToken,
}

impl Terms<'_> {
    fn answers(&self) -> Answers<'_> {
        Answers {
            forwarder: &self.forwarder,
            origin: &self.origin,
        }
    }

    /// Has a connection served, which is told when no new request is taken.
    async fn until_stopped<E>(
        &self,
        connection: impl Future<Output = Result<(), E>>,
        stopping: &AtomicBool,
    ) -> Result<(), E> {
        let mut connection = pin!(connection);
        tokio::select! {
            outcome = connection.as_mut() => outcome,
            () = self.stopped() => {
                stopping.store(true, Ordering::Relaxed);
                connection.await
            }
        }
    }

    /// No new request is taken.
    async fn stopped(&self) {
        tokio::select! {
            () = self.drain.cancelled() => {}
            () = self.ended.cancelled() => {}
        }
    }
}

/// Serves a connection until the client leaves it, the agent drains, or the session ends.
pub(super) async fn serve(accepted: Accepted, terms: Terms<'_>) {
    match accepted {
        Accepted::Tls(stream) if stream.is_http2() => {
            serve_http2(stream, terms).await;
        }
        Accepted::Tls(stream) => serve_http1(stream, terms).await,
        Accepted::Plain(stream) => serve_http1(stream, terms).await,
    }
}

/// Answers what comes over either.
struct Answers<'t> {
    forwarder: &'t Forwarder,
    origin: &'t Origin,
}

impl Service for Answers<'_> {
    type Body = ResponseBody;

    fn serve(&self, request: Request<ClientBody>) -> impl Future<Output = Response<ResponseBody>> + Send {
        self.forwarder.serve(self.origin, request)
    }

    fn refuse(&self, refused: &Request<()>, refusal: Refusal) -> Response<ResponseBody> {
        count(&self.forwarder.metrics, refusal);
        self.forwarder.decline(self.origin, refused, refusal)
    }
}

async fn serve_http1<S>(stream: S, terms: Terms<'_>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (service, stopping) = (terms.answers(), AtomicBool::new(false));
    let connection = http1::serve(stream, terms.limits, &service, &stopping);
    if let Err(error) = terms.until_stopped(connection, &stopping).await {
        tracing::debug!(%error, "a client's connection was cut");
    }
}

async fn serve_http2<S>(stream: S, terms: Terms<'_>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let (service, stopping) = (terms.answers(), AtomicBool::new(false));
    let connection = http2::serve(stream, terms.limits, &service, &stopping);
    if let Err(error) = terms.until_stopped(connection, &stopping).await {
        if matches!(error, http2::Cut::Late) {
            terms.forwarder.metrics.limit_hit(Limit::HeaderTimeout);
        }
        tracing::debug!(%error, "a client's connection broke");
    }
}

fn count(metrics: &Metrics, refusal: Refusal) {
    match refusal {
        Refusal::HeadTooLarge => metrics.limit_hit(Limit::HeaderBytes),
        Refusal::TooManyHeaders => metrics.limit_hit(Limit::Headers),
        Refusal::RequestTimeout => metrics.limit_hit(Limit::HeaderTimeout),
        _ => {}
    }
}
