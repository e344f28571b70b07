//! Requests over one connection, as whoever answers has them.

use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode};
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite};

pub(crate) use super::serving::{Asked, Terms, Wrong};
use super::{
    Driver, ErrorCode, Http2Error,
    fields::CONNECTIONS,
    frame::{MAX_WINDOW, put_goaway, put_headers, put_ping},
    parser::{Parser, Peer},
    serving::Serving,
    streams::{HELD, Hold, Piece, Shared, State},
};

/// A client's connection, to be polled for as long as it lasts.
#[derive(Debug)]
pub(crate) struct Server<I> {
    driver: Driver<I, Serving>,
    shared: Arc<Shared>,
    /// The PING behind the first leave-taking.
    leaving: Option<u64>,
}

/// Answers a request. Dropped before the answer's end, it resets the stream.
#[derive(Debug)]
pub(crate) struct Responder(Hold);

/// The body of a request.
#[derive(Debug)]
pub(crate) struct RequestBody {
    hold: Hold,
    /// What is to come of it, where that was said.
    left: Option<u64>,
    /// The client waits to be told to send it (RFC 9110, section 10.1.1).
    expects: bool,
}

impl<I: AsyncRead + AsyncWrite + Unpin> Server<I> {
    pub(crate) fn new(io: I, terms: Terms) -> Self {
        let shared = Arc::new(Shared::new(Peer::Client, HELD));
        let parser = Parser::new(Peer::Client, terms.block());
        Self {
            driver: Driver::new(io, Serving::new(terms), parser, Arc::clone(&shared)),
            shared,
            leaving: None,
        }
    }

    /// Sends and receives. Ready when the connection is at its end.
    pub(crate) fn poll_drive(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Http2Error>> {
        loop {
            if let Poll::Ready(outcome) = Pin::new(&mut self.driver).poll(cx) {
                return Poll::Ready(outcome);
            }
            let is_heard = |ping| self.shared.pongs.load(Ordering::SeqCst) >= ping;
            if !self.driver.role.is_left && !self.leaving.is_some_and(is_heard) || self.has_left() {
                return Poll::Pending;
            }
            self.leave();
        }
    }

    /// Whatever streams do while this task polls them it sees for itself: they needn't wake it.
    pub(crate) fn attends(&self) {
        self.shared.state().driver = None;
    }

    /// Whether the client has said what it must say first.
    pub(crate) fn is_greeted(&self) -> bool {
        self.driver.is_greeted()
    }

    /// What it speaks over.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) const fn io(&self) -> &I {
        self.driver.io()
    }

    /// How much has come so far that was whole.
    pub(crate) fn events(&self) -> u64 {
        self.driver.events()
    }

    /// The next request that nobody has begun to answer. Its body is none where none follows.
    pub(crate) fn next(&mut self) -> Option<(Asked, Responder, Option<RequestBody>)> {
        let asked = self.driver.role.asked.pop_front()?;
        let hold = || Hold {
            shared: Arc::clone(&self.shared),
            id: asked.id,
        };
        let body = (!asked.is_whole).then(|| RequestBody {
            hold: hold(),
            left: asked.length,
            expects: expects(&asked.request),
        });
        let responder = Responder(hold());
        Some((asked, responder, body))
    }

    /// Has the client answer, or show that it doesn't.
    pub(crate) fn ping(&self) {
        ping(&mut self.shared.state());
    }

    /// Takes no further request. The client is told so, and what it sent before it knew is still taken (RFC 9113, section 6.8).
    pub(crate) fn begin_to_leave(&mut self) {
        if self.leaving.is_none() && !self.has_left() {
            let mut state = self.shared.state();
            put_goaway(&mut state.out, MAX_WINDOW, ErrorCode::NO_ERROR);
            self.leaving = Some(ping(&mut state));
        }
    }

    fn has_left(&self) -> bool {
        self.shared.state().left_at.is_some()
    }

    fn leave(&mut self) {
        self.leaving = None;
        let mut state = self.shared.state();
        let last = state.last_begun();
        put_goaway(&mut state.out, last, ErrorCode::NO_ERROR);
        state.left_at = Some(last);
        state.is_done = true;
    }

    /// What the client is told last, and what it still says: to be polled where the connection can't go on. Ready when the client has
    /// closed it, or has sent `most` bytes more.
    pub(crate) fn poll_farewell(&mut self, cx: &mut Context<'_>, most: &mut usize) -> Poll<()> {
        self.driver.poll_farewell(cx, most)
    }
}

/// Whether a field is one of a connection's, which no message has over HTTP/2.
pub(crate) fn is_connections(name: &HeaderName) -> bool {
    CONNECTIONS.contains(name)
}

fn expects<B>(request: &Request<B>) -> bool {
    let expected = request.headers().get(http::header::EXPECT);
    expected.is_some_and(|expected| expected.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

fn ping(state: &mut State) -> u64 {
    state.pings += 1;
    let number = state.pings;
    put_ping(&mut state.out, number, false);
    number
}

impl Responder {
    /// Ready when the client doesn't want the answer any more, or can't have it.
    pub(crate) fn poll_unwanted(&self, cx: &Context<'_>) -> Poll<()> {
        match self.0.shared.state().stopped(self.0.id, cx.waker()) {
            Some(_) => Poll::Ready(()),
            None => Poll::Pending,
        }
    }

    /// Sends the head of an answer, with which the answer may end.
    pub(crate) fn head<'h>(
        &self,
        status: StatusCode,
        fields: impl Iterator<Item = (&'h HeaderName, &'h HeaderValue)>,
        is_last: bool,
    ) {
        self.0.shared.state().answer(self.0.id, Some(status), fields, is_last);
    }

    /// Sends what may be sent of a body; `is_last`: nothing follows it.
    pub(crate) fn poll_data(&self, cx: &Context<'_>, data: &mut Bytes, is_last: bool) -> Poll<Result<(), Http2Error>> {
        let mut state = self.0.shared.state();
        while !data.is_empty() {
            if !state.send(self.0.id, data, is_last, cx.waker())? {
                return Poll::Pending;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// The body is at its end.
    pub(crate) fn finish(&self) {
        // Where the stream is gone, so is whoever would be told.
        let _ = self.0.shared.state().finish(self.0.id);
    }

    /// The body is at its end, and these follow.
    pub(crate) fn trailers(&self, fields: &HeaderMap) {
        self.0.shared.state().answer(self.0.id, None, fields.iter(), true);
    }
}

impl State {
    /// Sends the head of an answer, or, without a status, what follows its body.
    fn answer<'h>(
        &mut self,
        id: u32,
        status: Option<StatusCode>,
        fields: impl Iterator<Item = (&'h HeaderName, &'h HeaderValue)>,
        is_last: bool,
    ) {
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.failed.is_none()) else {
            return;
        };
        stream.is_sent |= is_last;
        let (encoder, max_frame) = (&mut self.encoder, self.max_frame as usize);
        put_headers(&mut self.out, id, is_last, max_frame, |out| {
            encoder.encode_answer(out, status, fields);
        });
        self.wake_driver();
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Http2Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Http2Error>>> {
        let this = &mut *self;
        let mut state = this.hold.shared.state();
        match state.take_piece(this.hold.id, cx.waker()) {
            Some(Ok(Piece::Data(data))) => {
                if let Some(left) = &mut this.left {
                    *left = left.saturating_sub(data.len() as u64);
                }
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Some(Ok(Piece::Trailers(fields))) => Poll::Ready(Some(Ok(Frame::trailers(fields)))),
            Some(Ok(Piece::End)) => Poll::Ready(None),
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
            None => {
                if std::mem::take(&mut this.expects) {
                    state.answer(this.hold.id, Some(StatusCode::CONTINUE), std::iter::empty(), false);
                }
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.hold.shared.state().is_read(self.hold.id)
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
