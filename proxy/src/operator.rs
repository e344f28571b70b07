//! What an operator asks an agent: who is on, and why a pod is or isn't intercepted. HTTP with JSON on a socket of the
//! node's, for its root; and, where the agent is told so, on a loopback address of the agent's pod, to which the API
//! server forwards a port. Nobody is somebody for having reached that: [`access`] asks for a token.
//!
//! It only answers, from what is known anyway; nothing can be changed through it, and no secret is told. Some answers go
//! on ([`live`]): who is on, again and again, and audit events as they come.

pub mod access;
mod answers;
mod live;
mod socket;
pub mod view;

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{Either, Full};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use percent_encoding::percent_decode_str;
use serde::Serialize;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::{OwnedSemaphorePermit, Semaphore},
    time,
};
use tokio_util::sync::CancellationToken;

use self::{
    access::Access,
    live::{Body, Live, Reader, Times},
    view::ErrorView,
};
use crate::audit::tail::Filter;

pub use self::{
    answers::{Answers, KernelLook},
    socket::{SOCKET, Socket, SocketError, remove},
};

/// So many clients at once; further ones wait in the kernel's queue.
const CLIENTS: usize = 24;
/// So many of them may look on; further ones are refused.
const LOOKING_ON: usize = 8;
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// A head of a client of ours is a tenth of it, its token included.
const HEAD: usize = 16 * 1024;
/// After an accept that failed, others are left the time to close their descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// Why the address isn't served.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    /// It can't be listened on.
    #[error(
        "cannot listen on the operators' address {address} ({source}): choose another with --operator-address, or end what holds it"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
}

/// What answers operators.
#[derive(Debug)]
pub struct Operator {
    answers: Arc<Answers>,
    clients: Arc<Semaphore>,
    looking_on: Arc<Semaphore>,
    times: Times,
}

impl Operator {
    /// One that answers so, to a bounded number of clients over all of its doors.
    #[must_use]
    pub fn new(answers: Answers) -> Arc<Self> {
        Self::with_times(answers, Times::default())
    }

    fn with_times(answers: Answers, times: Times) -> Arc<Self> {
        Arc::new(Self {
            answers: Arc::new(answers),
            clients: Arc::new(Semaphore::new(CLIENTS)),
            looking_on: Arc::new(Semaphore::new(LOOKING_ON)),
            times,
        })
    }

    /// Answers on the node's socket until `stop` is cancelled: to processes of the agent's own user alone.
    pub async fn serve_socket(self: Arc<Self>, socket: Socket, stop: CancellationToken) {
        loop {
            let accepted = tokio::select! {
                accepted = async { (self.place().await, socket.accept().await) } => accepted,
                () = stop.cancelled() => return,
            };
            match accepted {
                (permit, Ok(Some(stream))) => self.spawn(stream, None, permit, &stop),
                (_, Ok(None)) => tracing::warn!("another user's process asks on the operators' socket: refused"),
                (_, Err(error)) => {
                    tracing::warn!(%error, "the operators' socket cannot accept a connection");
                    time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Answers on a TCP address until `stop` is cancelled, to whom `access` lets in.
    pub async fn serve_tcp(self: Arc<Self>, listener: TcpListener, access: Access, stop: CancellationToken) {
        let access = Arc::new(access);
        loop {
            let accepted = tokio::select! {
                accepted = async { (self.place().await, listener.accept().await) } => accepted,
                () = stop.cancelled() => return,
            };
            match accepted {
                (permit, Ok((stream, _))) => self.spawn(stream, Some(Arc::clone(&access)), permit, &stop),
                (_, Err(error)) => {
                    tracing::warn!(%error, "the operators' address cannot accept a connection");
                    time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// The semaphore is never closed.
    async fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.clients).acquire_owned().await.ok()
    }

    fn spawn<S>(
        self: &Arc<Self>,
        stream: S,
        access: Option<Arc<Access>>,
        permit: Option<OwnedSemaphorePermit>,
        stop: &CancellationToken,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (operator, stop, lifetime) = (Arc::clone(self), stop.clone(), self.times.lifetime);
        tokio::spawn(async move {
            // Cut off where a live answer isn't read; until one begins, the connection has its time.
            let (cut, goes_on) = (CancellationToken::new(), CancellationToken::new());
            let door = Door {
                access,
                cut: cut.clone(),
                goes_on: goes_on.clone(),
            };
            let service = service_fn(move |request| {
                let (operator, door) = (Arc::clone(&operator), door.clone());
                async move { Ok::<_, Infallible>(operator.answer(door, &request).await) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .max_buf_size(HEAD)
                .serve_connection(TokioIo::new(stream), service);
            let time_is_up = async {
                // A client asks, reads, and goes, unless it looks on.
                time::sleep(lifetime).await;
                if goes_on.is_cancelled() {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                served = connection => if let Err(error) = served {
                    tracing::debug!(%error, "an operator's connection broke");
                },
                () = time_is_up => {}
                () = cut.cancelled() => {}
                () = stop.cancelled() => {}
            }
            drop(permit);
        });
    }

    async fn answer<B>(&self, door: Door, request: &Request<B>) -> Response<Body> {
        if request.method() != Method::GET {
            return refused(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered here");
        }
        // Before anything of the request is looked at: whether there is such a pod is told to nobody else.
        if let Some(access) = &door.access
            && let Err(denied) = access.admit(request.headers()).await
        {
            return refused(denied.code(), &denied.to_string());
        }
        let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
        if path == "/v1/sessions" {
            let every = query.strip_prefix("every=").and_then(|seconds| seconds.parse().ok());
            return match every {
                None if query.is_empty() => json(StatusCode::OK, &self.answers.sessions()),
                Some(seconds @ 1..=60) => self.go_on(door, request, Live::Sessions(Duration::from_secs(seconds))),
                _ => refused(
                    StatusCode::BAD_REQUEST,
                    "every= takes seconds, from 1 to 60, and there is nothing else",
                ),
            };
        }
        if path == "/v1/events" {
            return match Filter::from_query(query) {
                Ok(filter) => self.go_on(door, request, Live::Events(self.answers.tail.listen(filter))),
                Err(error) => refused(StatusCode::BAD_REQUEST, &error.to_string()),
            };
        }
        if let Some(pod) = path.strip_prefix("/v1/pods/").filter(|pod| !pod.is_empty()) {
            let Ok(pod) = percent_decode_str(pod).decode_utf8() else {
                return refused(StatusCode::BAD_REQUEST, "the pod's name is not UTF-8");
            };
            return json(StatusCode::OK, &self.answers.why(&pod).await);
        }
        refused(
            StatusCode::NOT_FOUND,
            "try /v1/sessions, /v1/events or /v1/pods/<namespace>/<name>",
        )
    }

    /// Begins an answer that goes on, where there is a place for one.
    fn go_on<B>(&self, door: Door, request: &Request<B>, live: Live) -> Response<Body> {
        let Ok(place) = Arc::clone(&self.looking_on).try_acquire_owned() else {
            let message = format!("{LOOKING_ON} look on at this agent already: end a tail or a top");
            return refused(StatusCode::SERVICE_UNAVAILABLE, &message);
        };
        let mut headers = HeaderMap::new();
        if let Some(shown) = request.headers().get(header::AUTHORIZATION) {
            headers.insert(header::AUTHORIZATION, shown.clone());
        }
        door.goes_on.cancel();
        let reader = Reader {
            access: door.access,
            headers,
            cut: door.cut,
            times: self.times,
            _place: place,
        };
        reader.begin(Arc::clone(&self.answers), live)
    }
}

/// The way that a client came by.
#[derive(Debug, Clone)]
struct Door {
    /// Who is let in; nobody is asked at the node's own.
    access: Option<Arc<Access>>,
    /// Ends the connection.
    cut: CancellationToken,
    /// An answer that goes on has begun.
    goes_on: CancellationToken,
}

/// Listens on the operators' address.
///
/// # Errors
/// If it can't be had.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, OperatorError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| OperatorError::Listen { address, source })
}

fn refused(code: StatusCode, message: &str) -> Response<Body> {
    json(
        code,
        &ErrorView {
            message: message.to_owned(),
        },
    )
}

fn json(code: StatusCode, view: &impl Serialize) -> Response<Body> {
    // Our own types: they have a form in JSON.
    let body = serde_json::to_vec(view).unwrap_or_default();
    let mut response = of_type("application/json", Either::Left(Full::new(Bytes::from(body))));
    *response.status_mut() = code;
    response
}

/// An answer that is kept nowhere.
fn of_type(media_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests;
