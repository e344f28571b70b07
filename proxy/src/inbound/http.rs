//! HTTP/1.1, by [`http1`], and HTTP/2, by hyper, over one connection, within limits that are set here and not left to
//! defaults.

use std::{
    convert::Infallible,
    future::pending,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{Method, Request, Response};
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::{io::InspectReader, sync::CancellationToken};

use super::{http1, tls::Accepted};
use crate::{
    body::{ResponseBody, client::ClientBody},
    forward::{Forwarder, Origin},
    gather::Gather,
    limits::Limits,
    metrics::{Limit, Metrics},
    status::Refusal,
};

const STREAM_WINDOW: u32 = 256 * 1024;
/// Enough for a few uploads at once; one that the upstream doesn't take holds no more than its stream's window.
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
const SEND_BUFFER: usize = 64 * 1024;
const PING: Duration = Duration::from_secs(30);
const PONG: Duration = Duration::from_secs(20);
/// Streams that a client opened and reset before they were served (CVE-2023-44487). Beyond, the connection ends with
/// `ENHANCE_YOUR_CALM`. A client that gives up requests does so after they were begun, and isn't counted.
const RESETS_BEFORE_SERVED: usize = 20;
/// Streams that we had to reset because of what a client sent on them (CVE-2025-8671). Beyond, likewise.
const RESETS_OF_OURS: usize = 64;
/// What a field counts for in HTTP/2 besides its name and value (RFC 9113, section 6.5.2).
const FIELD_OVERHEAD: u32 = 32;
/// What an HTTP/2 client sends first (RFC 9113, section 3.4).
const PREFACE: usize = 24;

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

/// Answers what comes over HTTP/1.1.
struct Http1<'t> {
    forwarder: &'t Forwarder,
    origin: &'t Origin,
}

impl http1::Service for Http1<'_> {
    type Body = ResponseBody;

    fn serve(&self, request: Request<ClientBody>) -> impl Future<Output = Response<ResponseBody>> + Send {
        self.forwarder.serve(self.origin, request)
    }

    fn refuse(&self, verdict: &http1::Verdict) -> Response<ResponseBody> {
        let mut refused = Request::new(());
        refused.method_mut().clone_from(&verdict.method);
        refused.uri_mut().clone_from(&verdict.target);
        count(&self.forwarder.metrics, verdict.refusal);
        self.forwarder.decline(self.origin, &refused, verdict.refusal)
    }
}

async fn serve_http1<S>(stream: S, terms: Terms<'_>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = Http1 {
        forwarder: &terms.forwarder,
        origin: &terms.origin,
    };
    let stopping = AtomicBool::new(false);
    let mut connection = pin!(http1::serve(stream, terms.limits, &service, &stopping));
    let outcome = tokio::select! {
        outcome = connection.as_mut() => outcome,
        () = terms.stopped() => {
            stopping.store(true, Ordering::Relaxed);
            connection.await
        }
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "a client's connection was cut");
    }
}

async fn serve_http2<S>(stream: S, terms: Terms<'_>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let limits = terms.limits.clone();
    let read = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&read);
    let stream = InspectReader::new(stream, move |bytes: &[u8]| {
        counted.fetch_add(bytes.len(), Ordering::Relaxed);
    });
    let (forwarder, origin) = (Arc::clone(&terms.forwarder), terms.origin.clone());
    let service = service_fn(move |request: Request<Incoming>| {
        let (forwarder, origin) = (Arc::clone(&forwarder), origin.clone());
        let beyond = beyond(&limits, &request);
        let request = request.map(ClientBody::from);
        let is_head = request.method() == Method::HEAD;
        // Boxed: hyper keeps its room until the answer's body has ended, which for a watch is long.
        Box::pin(async move {
            let answer = match beyond {
                Some(refusal) => {
                    count(&forwarder.metrics, refusal);
                    forwarder.decline(&origin, &request, refusal)
                }
                None => forwarder.serve(&origin, request).await,
            };
            // hyper would send a refusal's content all the same, which clients take for a breach of the protocol.
            Ok::<_, Infallible>(if is_head {
                answer.map(ResponseBody::of_head)
            } else {
                answer
            })
        })
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(terms.limits.max_streams_per_connection)
        .max_pending_accept_reset_streams(RESETS_BEFORE_SERVED)
        .max_local_error_reset_streams(RESETS_OF_OURS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(most_decoded(terms.limits))
        .keep_alive_interval(PING)
        .keep_alive_timeout(PONG)
        .serve_connection(TokioIo::new(stream), service);
    // Once greeted, hyper keeps a client to its time by PING, which none can answer in the middle of a frame or a head.
    let silent = async {
        tokio::time::sleep(terms.limits.header_timeout).await;
        if read.load(Ordering::Relaxed) >= PREFACE {
            pending::<()>().await;
        }
        terms.forwarder.metrics.limit_hit(Limit::HeaderTimeout);
    };
    let connection = pin!(connection);
    let mut connection = Gather::new(connection);
    let outcome = tokio::select! {
        outcome = &mut connection => outcome,
        () = terms.stopped() => {
            connection.get_mut().as_mut().graceful_shutdown();
            connection.await
        }
        () = silent => Ok(()),
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "a client's connection broke");
    }
}

/// How much of a head is decoded at all. What is beyond the limit and within this is refused by ourselves, with a
/// `Status`; what is beyond both the `h2` crate refuses bare.
fn most_decoded(limits: &Limits) -> u32 {
    limits
        .max_header_bytes
        .saturating_add(limits.max_headers.saturating_mul(FIELD_OVERHEAD))
        .saturating_mul(2)
}

/// The limit that a request's head is beyond.
fn beyond<B>(limits: &Limits, request: &Request<B>) -> Option<Refusal> {
    let headers = request.headers();
    if headers.len() > limits.max_headers as usize {
        return Some(Refusal::TooManyHeaders);
    }
    let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    let fields: usize = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum();
    (target + fields > limits.max_header_bytes as usize).then_some(Refusal::HeadTooLarge)
}

fn count(metrics: &Metrics, refusal: Refusal) {
    match refusal {
        Refusal::HeadTooLarge => metrics.limit_hit(Limit::HeaderBytes),
        Refusal::TooManyHeaders => metrics.limit_hit(Limit::Headers),
        Refusal::RequestTimeout => metrics.limit_hit(Limit::HeaderTimeout),
        _ => {}
    }
}
