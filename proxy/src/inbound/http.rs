//! HTTP/1.1 and HTTP/2 over one connection, by hyper.

use std::{convert::Infallible, pin::pin, sync::Arc, time::Duration};

use http::{Request, Response};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::{Service, service_fn},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use super::tls::Accepted;
use crate::{
    body::ResponseBody,
    forward::{Forwarder, Origin},
    limits::Limits,
};

const STREAM_WINDOW: u32 = 256 * 1024;
/// Enough for a few uploads at once; one that the upstream doesn't take holds no more than its stream's window.
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
const SEND_BUFFER: usize = 64 * 1024;
const PING: Duration = Duration::from_secs(30);
const PONG: Duration = Duration::from_secs(20);

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

/// Serves a connection until the client leaves it, the agent drains, or the session ends.
pub(super) async fn serve(accepted: Accepted, terms: Terms<'_>) {
    match accepted {
        Accepted::Tls(stream) if stream.get_ref().1.alpn_protocol() == Some(b"h2") => {
            serve_http2(*stream, terms).await;
        }
        Accepted::Tls(stream) => serve_http1(*stream, terms).await,
        Accepted::Plain(stream) => serve_http1(stream, terms).await,
    }
}

macro_rules! until_closed {
    ($connection:expr, $drain:expr, $ended:expr) => {
        let mut connection = pin!($connection);
        let outcome = tokio::select! {
            outcome = connection.as_mut() => outcome,
            () = async { tokio::select! { () = $drain.cancelled() => {}, () = $ended.cancelled() => {} } } => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = outcome {
            tracing::debug!(%error, "a client's connection broke");
        }
    };
}

async fn serve_http1<S>(stream: S, terms: Terms<'_>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(terms.limits.header_timeout)
        .max_headers(terms.limits.max_headers as usize)
        .max_buf_size(terms.limits.max_header_bytes as usize)
        .serve_connection(TokioIo::new(stream), requests_to(terms.forwarder, terms.origin))
        .with_upgrades();
    until_closed!(connection, terms.drain, terms.ended);
}

async fn serve_http2<S>(stream: S, terms: Terms<'_>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(terms.limits.max_streams_per_connection)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(terms.limits.max_header_bytes)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PONG)
        .serve_connection(TokioIo::new(stream), requests_to(terms.forwarder, terms.origin));
    until_closed!(connection, terms.drain, terms.ended);
}

fn requests_to(
    forwarder: Arc<Forwarder>,
    origin: Origin,
) -> impl Service<Request<Incoming>, Response = Response<ResponseBody>, Error = Infallible, Future: Send + 'static> {
    service_fn(move |request| {
        let (forwarder, origin) = (Arc::clone(&forwarder), origin.clone());
        async move { Ok(forwarder.serve(&origin, request).await) }
    })
}
