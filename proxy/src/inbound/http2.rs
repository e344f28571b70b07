//! HTTP/2 as the agent serves it: one connection, all its requests in one task.
//!
//! What its streams have to say in the same moment goes out with one write, for they are polled before anything is sent. The
//! protocol is [`crate::http2`]'s; here requests meet whoever answers them, and the client's time is kept.

mod exchanging;

use std::{
    future::{poll_fn, ready},
    pin::Pin,
    sync::atomic::{AtomicBool, Ordering},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, Sleep, sleep, timeout},
};

use self::exchanging::{Exchanging, Serving};
use super::service::Service;
use crate::{
    body::client::ClientBody,
    http2::{
        Http2Error,
        server::{Server, Terms, Wrong},
    },
    limits::Limits,
    status::Refusal,
};

/// A client that has said nothing for so long is asked whether it is there,
const PING: Duration = Duration::from_secs(30);
/// and has so long to say so. It can't in the middle of a frame or a head: that has to come in this time as well.
const PONG: Duration = Duration::from_secs(20);
/// How often a connection's streams have their turn before other connections have.
const TURNS: usize = 8;
/// How long, and for how much, a client that broke the protocol is listened to, so that it gets to read why it isn't any more.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 4 * 1024 * 1024;

/// Why a connection ended with something open.
#[derive(Debug, thiserror::Error)]
pub(super) enum Cut {
    #[error("the client didn't greet in time")]
    Late,
    #[error("the client no longer answers")]
    Silent,
    #[error(transparent)]
    Http2(#[from] Http2Error),
}

/// Serves a connection until the client leaves it, or, once `stopping` is set and it is polled again, until all answers at
/// hand have ended.
///
/// # Errors
/// If it ended otherwise.
pub(super) async fn serve<S, V>(io: S, limits: &Limits, service: &V, stopping: &AtomicBool) -> Result<(), Cut>
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
    V: Service,
{
    let terms = Terms {
        streams: limits.max_streams_per_connection,
        head: limits.max_header_bytes as usize,
        fields: limits.max_headers as usize,
    };
    let mut connection = Connection {
        server: Server::new(io, terms),
        exchanges: FuturesUnordered::new(),
        service,
        watch: Watch::new(limits.header_timeout),
    };
    let outcome = poll_fn(|cx| connection.poll(cx, stopping)).await;
    if let Err(Cut::Http2(Http2Error::Fault(_))) = &outcome {
        let Connection {
            mut server, exchanges, ..
        } = connection;
        drop(exchanges);
        let mut most = LINGER_BYTES;
        let _ = timeout(LINGER, poll_fn(|cx| server.poll_farewell(cx, &mut most))).await;
    }
    outcome
}

/// A client's connection, with what is being answered on it.
struct Connection<'s, S, V: Service> {
    server: Server<S>,
    exchanges: FuturesUnordered<Exchanging<'s, V::Body>>,
    service: &'s V,
    watch: Watch,
}

impl<S: AsyncRead + AsyncWrite + Unpin, V: Service> Connection<'_, S, V> {
    fn poll(&mut self, cx: &mut Context<'_>, stopping: &AtomicBool) -> Poll<Result<(), Cut>> {
        if stopping.load(Ordering::Relaxed) {
            self.server.begin_to_leave();
        }
        for _ in 0..TURNS {
            self.server.attends();
            while let Poll::Ready(Some(())) = self.exchanges.poll_next_unpin(cx) {}
            if let Poll::Ready(outcome) = self.server.poll_drive(cx) {
                return Poll::Ready(outcome.or_else(left));
            }
            if self.begin() {
                continue;
            }
            match self.watch.poll(cx, &self.server) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(cut)) => return Poll::Ready(Err(cut)),
                Poll::Pending => return Poll::Pending,
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Begins to answer what was asked, and says whether that was anything.
    fn begin(&mut self) -> bool {
        let mut begun = false;
        while let Some((asked, responder, body)) = self.server.next() {
            begun = true;
            let (service, body) = (self.service, body.map_or_else(ClientBody::nothing, ClientBody::from));
            let method = asked.request.method().clone();
            let serving: Serving<'_, V::Body> = match asked.wrong {
                None => Box::pin(service.serve(asked.request.map(|()| body))),
                Some(wrong) => Box::pin(ready(service.refuse(&asked.request, refusal(wrong)))),
            };
            self.exchanges.push(Exchanging::new(responder, &method, serving));
        }
        begun
    }
}

fn refusal(wrong: Wrong) -> Refusal {
    match wrong {
        Wrong::Malformed => Refusal::BadRequest,
        Wrong::TooLarge => Refusal::HeadTooLarge,
        Wrong::TooMany => Refusal::TooManyHeaders,
    }
}

/// A client may leave whenever it likes.
fn left(error: Http2Error) -> Result<(), Cut> {
    match error {
        Http2Error::Closed => Ok(()),
        error => Err(error.into()),
    }
}

/// Keeps a client's time.
struct Watch {
    timer: Pin<Box<Sleep>>,
    /// Whether it has greeted, and how much had come when last looked.
    is_greeted: bool,
    events: u64,
    is_asked: bool,
}

impl Watch {
    fn new(greeting: Duration) -> Self {
        Self {
            timer: Box::pin(sleep(greeting)),
            is_greeted: false,
            events: 0,
            is_asked: false,
        }
    }

    /// Ready when it was asked whether it is there, which is to be sent, or with why the connection ends.
    fn poll<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        server: &Server<S>,
    ) -> Poll<Result<(), Cut>> {
        while self.timer.as_mut().poll(cx).is_ready() {
            if !self.is_greeted && !server.is_greeted() {
                return Poll::Ready(Err(Cut::Late));
            }
            self.is_greeted = true;
            let events = server.events();
            let has_spoken = std::mem::replace(&mut self.events, events) != events;
            let was_asked = std::mem::replace(&mut self.is_asked, !has_spoken);
            let wait = if has_spoken { PING } else { PONG };
            self.timer.as_mut().reset(Instant::now() + wait);
            if !has_spoken {
                if was_asked {
                    return Poll::Ready(Err(Cut::Silent));
                }
                server.ping();
                return Poll::Ready(Ok(()));
            }
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests;
