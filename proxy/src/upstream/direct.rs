//! Requests without a body over a kept-alive HTTP/1.1 connection, driven by whoever waits for the answer: no task of its own, no
//! channel, no head that is kept for a second try.
//!
//! What is read here is the answer alone ([`answer`]). A connection is lent for one request at a time, and goes back to the pool
//! when the answer has been read to its end and nothing came after it.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, Request, Response, Uri, header};
use http_body::Frame;
use tokio::{
    io::{AsyncRead, AsyncWriteExt, ReadBuf},
    time::Instant,
};
use tokio_util::io::poll_read_buf;

use super::{
    answer::{self, Chunks, Framing, Malformed, Piece},
    pool::LinePlace,
    roots::RootsVersion,
    socket::Socket,
    target::Target,
};
use crate::body::RequestBody;

/// How much is read at a time: a TLS record.
const PIECE: usize = 16 * 1024;
/// How much of a small answer is expected.
const SMALL: usize = 4 * 1024;
/// A longer head isn't read to its end. hyper's own limit is of this order.
const LONGEST_HEAD: usize = 256 * 1024;

/// Why a request wasn't answered, or its answer has no end.
#[derive(Debug, thiserror::Error)]
pub enum DirectError {
    /// The connection broke.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The server closed the connection before the end.
    #[error("the server closed the connection before the end")]
    Closed,
    /// The answer can't be read, or can be read in two ways.
    #[error("the answer is malformed: {0}")]
    Malformed(#[from] Malformed),
}

/// A connection, for one request at a time.
pub(super) struct Line {
    /// Boxed: its state is large, and a line is moved about with each request and in each answer's body.
    io: Box<Socket>,
    /// What was read and isn't handed on yet.
    read: BytesMut,
    vouched: RootsVersion,
    place: LinePlace,
    /// It has carried a request before.
    used: bool,
    idle_since: Instant,
}

/// A failure, and the request where another connection may have it: the server closed this one, which had been idle, and said
/// nothing.
pub(super) type Failed = (DirectError, Option<Request<RequestBody>>);

/// Whether a request can go this way: it has no body, and changes nothing, so that it may be sent again where the server closes an
/// idle connection as the request comes.
pub(super) fn carries(request: &Request<RequestBody>) -> bool {
    request.method().is_safe() && http_body::Body::is_end_stream(request.body())
}

impl Line {
    pub(super) fn new(io: Socket, vouched: RootsVersion, place: LinePlace) -> Self {
        Self {
            io: Box::new(io),
            read: BytesMut::new(),
            vouched,
            place,
            used: false,
            idle_since: Instant::now(),
        }
    }

    /// The CA that the server was verified by.
    pub(super) fn vouched(&self) -> &RootsVersion {
        &self.vouched
    }

    pub(super) fn idle_for(&self, now: Instant) -> Duration {
        now.duration_since(self.idle_since)
    }

    /// Whether the server has said nothing since the last answer, nor closed. It costs no system call where nothing came.
    pub(super) fn is_quiet(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        let mut byte = [0];
        let mut buf = ReadBuf::new(&mut byte);
        self.read.is_empty() && Pin::new(&mut self.io).poll_read(&mut cx, &mut buf).is_pending()
    }

    /// Sends a request that [`carries`] allows, and waits for the head of the answer.
    pub(super) async fn send(
        mut self,
        url: &Target,
        request: Request<RequestBody>,
    ) -> Result<Response<DirectBody>, Failed> {
        let mut head = Vec::with_capacity(2 * SMALL);
        write_head(&mut head, url, request.method(), request.uri(), request.headers());
        match self.exchange(&head, request.method()).await {
            Ok((answer, framing)) => Ok(answer.map(|()| DirectBody::new(self, framing))),
            Err((error, said_nothing)) => Err((error, (self.used && said_nothing).then_some(request))),
        }
    }

    /// With an error, whether the server closed the connection and hadn't said anything.
    async fn exchange(&mut self, head: &[u8], method: &Method) -> Result<(Response<()>, Framing), (DirectError, bool)> {
        let sent = async {
            self.io.write_all(head).await?;
            self.io.flush().await
        };
        sent.await.map_err(|error| (error.into(), true))?;
        loop {
            match answer::read(&mut self.read, method) {
                Ok(Some(answer)) => return Ok(answer),
                Ok(None) if self.read.len() > LONGEST_HEAD => return Err((Malformed::Long.into(), false)),
                Ok(None) => {}
                Err(error) => return Err((error.into(), false)),
            }
            let said_nothing = self.read.is_empty();
            self.read.reserve(SMALL);
            let read = std::future::poll_fn(|cx| poll_read_buf(Pin::new(&mut self.io), cx, &mut self.read)).await;
            match read {
                Ok(0) => return Err((DirectError::Closed, said_nothing)),
                Ok(_) => {}
                Err(error) => return Err((error.into(), said_nothing)),
            }
        }
    }

    fn give_back(mut self) {
        self.used = true;
        self.idle_since = Instant::now();
        if let Some(home) = self.place.home() {
            home.give_back_line(self);
        }
    }

    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.read.reserve(PIECE);
        poll_read_buf(Pin::new(&mut self.io), cx, &mut self.read)
    }
}

impl std::fmt::Debug for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Line")
    }
}

/// In origin form. What says how long a body is stays behind, for there is none; the name of the server is ours to say.
fn write_head(out: &mut Vec<u8>, url: &Target, method: &Method, uri: &Uri, headers: &HeaderMap) {
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    for part in [
        method.as_str(),
        " ",
        path,
        " HTTP/1.1\r\nhost: ",
        url.authority().as_str(),
        "\r\n",
    ] {
        out.extend_from_slice(part.as_bytes());
    }
    for (name, value) in headers {
        if [header::HOST, header::CONTENT_LENGTH, header::TRANSFER_ENCODING].contains(name) {
            continue;
        }
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

/// The body of an answer, read as it is asked for. The connection goes back when it ends as it should.
#[derive(Debug)]
pub(super) struct DirectBody {
    /// None once the body is at its end.
    line: Option<Line>,
    left: Left,
    reusable: bool,
    /// How it broke off, until that is said.
    broken: Option<DirectError>,
}

#[derive(Debug)]
enum Left {
    Sized(u64),
    Chunked(Chunks),
    /// All until the connection is closed.
    Rest,
}

impl DirectBody {
    fn new(line: Line, framing: Framing) -> Self {
        let Framing { length, reusable } = framing;
        let left = match length {
            answer::Length::Sized(length) => Left::Sized(length),
            answer::Length::Chunked => Left::Chunked(Chunks::default()),
            answer::Length::Rest => Left::Rest,
        };
        let mut body = Self {
            line: Some(line),
            left,
            reusable,
            broken: None,
        };
        if matches!(body.left, Left::Sized(0)) {
            body.end();
        }
        body
    }

    /// The last byte was read.
    fn end(&mut self) {
        // Bytes that nobody asked for: what comes on this connection isn't to be relied on.
        if let Some(line) = self.line.take().filter(|line| self.reusable && line.read.is_empty()) {
            line.give_back();
        }
    }

    pub(super) fn is_end(&self) -> bool {
        self.line.is_none() && self.broken.is_none()
    }

    pub(super) fn left(&self) -> Option<u64> {
        match (&self.line, &self.left) {
            (None, _) if self.broken.is_none() => Some(0),
            (_, Left::Sized(left)) => Some(*left),
            _ => None,
        }
    }

    /// The next frame. That it broke off is said a turn later than it could be: whoever writes the answer gives up at once, and
    /// what came before is to reach the client first.
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, DirectError>>> {
        if let Some(error) = self.broken.take() {
            return Poll::Ready(Some(Err(error)));
        }
        match self.poll_next(cx) {
            Poll::Ready(Some(Err(error))) => {
                self.line = None;
                self.broken = Some(error);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            polled => polled,
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, DirectError>>> {
        loop {
            let Some(line) = &mut self.line else {
                return Poll::Ready(None);
            };
            let piece = match &mut self.left {
                Left::Sized(left) => {
                    let here = usize::try_from(*left).unwrap_or(usize::MAX).min(line.read.len());
                    *left -= here as u64;
                    let data = line.read.split_to(here).freeze();
                    if *left == 0 {
                        self.end();
                    }
                    data
                }
                Left::Chunked(chunks) => match chunks.next(&mut line.read)? {
                    Piece::Data(data) => data,
                    Piece::More => Bytes::new(),
                    Piece::End(trailers) => {
                        self.end();
                        return Poll::Ready((!trailers.is_empty()).then(|| Ok(Frame::trailers(trailers))));
                    }
                },
                Left::Rest => line.read.split().freeze(),
            };
            if !piece.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            let Some(line) = &mut self.line else { continue };
            if ready!(line.poll_more(cx))? == 0 {
                self.line = None;
                let is_whole = matches!(self.left, Left::Rest);
                return Poll::Ready((!is_whole).then_some(Err(DirectError::Closed)));
            }
        }
    }
}
