//! What stands between a client's bytes and hyper's parser, on an HTTP/1 connection.
//!
//! hyper is lenient here and there: it settles for one reading of a request that can be read in two, and answers what
//! it can't read with a bare code that nobody writes down. The screen frames the stream itself, strictly ([`head`],
//! [`chunks`]), and hands good bytes on as they are. In place of the first request that isn't good it hands on one of
//! its own, with the [`Verdict`] beside it, and nothing after: so the refusal comes in its turn, behind the answers to
//! what was asked before, by the way of all others, and what follows it is never taken for a request.

mod chunks;
pub(crate) mod framer;
mod head;
mod progress;
#[cfg(test)]
mod tests;

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use http::Method;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};
use tokio_util::io::poll_read_buf;

use self::framer::{Framer, Shown, Then};
pub(super) use self::{head::Verdict, progress::Progress};
use crate::{limits::Limits, status::Refusal};

/// How much is read at a time while a head is waited for in pieces.
const PIECE: usize = 8 * 1024;
/// How long, and for how much, a client is listened to that still sends when it has had its answer. A connection that
/// is closed with bytes unread is reset, and the answer may be lost with it.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 4 * 1024 * 1024;

/// A client's connection, screened.
pub(super) struct Screen<S> {
    io: S,
    framer: Framer,
    progress: Arc<Progress>,
    mode: Mode,
    /// What was read and not handed on yet.
    held: BytesMut,
    /// So much of it is good.
    good: usize,
    patience: Duration,
    awaited: Awaited,
    deadline: Instant,
    timer: Pin<Box<Sleep>>,
    /// What may still come while the connection is being closed.
    lingers: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Requests are framed.
    Screening,
    /// The last head asks for an upgrade.
    Undecided,
    /// It was upgraded: bytes pass.
    Through,
    /// A request was refused, and nothing more is read.
    Refused,
    /// A body that was begun has no end.
    Broken,
}

/// What the client is to send in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Awaited {
    Nothing,
    Request,
    RestOfHead,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Screen<S> {
    pub(super) fn new(io: S, limits: &Limits, progress: Arc<Progress>) -> Self {
        let deadline = Instant::now() + limits.header_timeout;
        Self {
            io,
            framer: Framer::new(limits),
            progress,
            mode: Mode::Screening,
            held: BytesMut::new(),
            good: 0,
            patience: limits.header_timeout,
            awaited: Awaited::Request,
            deadline,
            timer: Box::pin(sleep_until(deadline)),
            lingers: None,
        }
    }

    /// Takes note of what became of the bytes that were shown.
    fn take(&mut self, shown: Then, heads: u64) {
        if heads > 0 {
            self.progress.pass(heads);
            self.awaited = Awaited::Nothing;
        }
        match shown {
            Then::More => {}
            Then::Decide => self.mode = Mode::Undecided,
            Then::Break => self.mode = Mode::Broken,
            Then::Refuse(verdict) => self.refuse(verdict),
        }
    }

    /// Has a request of our own follow what is good, and nothing else.
    fn refuse(&mut self, verdict: Verdict) {
        self.held.truncate(self.good);
        // An answer to HEAD has no body (RFC 9110, section 9.3.2), and hyper sees to that.
        let method = if verdict.method == Method::HEAD { "HEAD" } else { "GET" };
        self.held.extend_from_slice(method.as_bytes());
        self.held
            .extend_from_slice(b" / HTTP/1.1\r\nhost: understudy\r\nconnection: close\r\n\r\n");
        self.good = self.held.len();
        self.awaited = Awaited::Nothing;
        self.mode = Mode::Refused;
        self.progress.refuse(verdict);
    }

    fn show_held(&mut self) {
        let Shown { good, heads, then } = self.framer.show(&self.held);
        self.good = good;
        self.take(then, heads);
    }

    /// Reads straight into the reader's buffer. Ready where it has something, or the stream has ended.
    fn poll_read_past(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<bool>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        let new = &buf.filled()[before..];
        if new.is_empty() {
            return Poll::Ready(Ok(true));
        }
        let Shown { good, heads, then } = self.framer.show(new);
        self.held.extend_from_slice(&new[good..]);
        buf.set_filled(before + good);
        self.take(then, heads);
        Poll::Ready(Ok(good > 0))
    }

    /// Reads on behind what is held. Ready with whether the stream has ended.
    fn poll_read_on(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        self.held.reserve(PIECE);
        if ready!(poll_read_buf(Pin::new(&mut self.io), cx, &mut self.held))? == 0 {
            return Poll::Ready(Ok(true));
        }
        self.show_held();
        Poll::Ready(Ok(false))
    }

    fn poll_screened(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.good > 0 {
                let here = self.good.min(buf.remaining());
                buf.put_slice(&self.held[..here]);
                self.held.advance(here);
                self.good -= here;
                return Poll::Ready(Ok(()));
            }
            match self.mode {
                Mode::Screening if self.held.is_empty() => {
                    if ready!(self.poll_read_past(cx, buf))? {
                        return Poll::Ready(Ok(()));
                    }
                }
                Mode::Screening => {
                    if ready!(self.poll_read_on(cx))? {
                        return Poll::Ready(Ok(()));
                    }
                }
                Mode::Undecided => ready!(self.poll_decided(cx))?,
                Mode::Through if self.held.is_empty() => return Pin::new(&mut self.io).poll_read(cx, buf),
                Mode::Through => self.good = self.held.len(),
                // The answer is still to be written, and then hyper closes.
                Mode::Refused => return Poll::Pending,
                Mode::Broken => return Poll::Ready(Ok(())),
            }
        }
    }

    /// Waits for the answer to an upgrade, and for the client to leave meanwhile. What it sends is held: one piece, for
    /// nobody has to read more of it.
    fn poll_decided(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Poll::Ready(switched) = self.progress.poll_switched(cx) {
            if switched {
                self.mode = Mode::Through;
            } else {
                self.mode = Mode::Screening;
                self.framer.stay();
                self.show_held();
            }
            return Poll::Ready(Ok(()));
        }
        if !self.held.is_empty() {
            return Poll::Pending;
        }
        self.held.reserve(PIECE);
        match ready!(poll_read_buf(Pin::new(&mut self.io), cx, &mut self.held)) {
            // hyper is told as it would be without a screen: whom it serves has left.
            Ok(0) => Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into())),
            Ok(_) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    /// Counts the time that the client takes. Ready when it has taken too long.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let awaited = match self.mode {
            Mode::Screening if self.held.len() > self.good => Awaited::RestOfHead,
            Mode::Screening if self.framer.is_between_requests() && self.progress.is_idle() => Awaited::Request,
            _ => Awaited::Nothing,
        };
        if awaited != self.awaited {
            self.awaited = awaited;
            self.deadline = Instant::now() + self.patience;
        }
        if awaited == Awaited::Nothing {
            return Poll::Pending;
        }
        // Set anew only when it has run out: most of what is waited for comes long before.
        while self.timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= self.deadline {
                return Poll::Ready(());
            }
            let deadline = self.deadline;
            self.timer.as_mut().reset(deadline);
        }
        Poll::Pending
    }

    /// Reads on for a while, so that the client gets to read its answer.
    fn poll_linger(&mut self, cx: &mut Context<'_>, mut left: usize) -> Poll<()> {
        let mut scratch = [0; 4096];
        while left > 0 && self.timer.as_mut().poll(cx).is_pending() {
            self.lingers = Some(left);
            let mut buf = ReadBuf::new(&mut scratch);
            match ready!(Pin::new(&mut self.io).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => left = left.saturating_sub(buf.filled().len()),
                _ => break,
            }
        }
        self.lingers = Some(0);
        Poll::Ready(())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Screen<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if let Poll::Ready(read) = this.poll_screened(cx, buf) {
                return Poll::Ready(read);
            }
            ready!(this.poll_late(cx));
            if this.awaited == Awaited::Request {
                return Poll::Ready(Ok(()));
            }
            this.refuse(Verdict::on(&this.held, Refusal::RequestTimeout));
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Screen<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        // hyper doesn't always read again when an answer is at its end, and the time for the next request begins then.
        if self.poll_late(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let left = if let Some(left) = this.lingers {
            left
        } else {
            ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
            if this.mode == Mode::Through || this.mode == Mode::Screening && this.framer.is_between_requests() {
                0
            } else {
                this.timer.as_mut().reset(Instant::now() + LINGER);
                LINGER_BYTES
            }
        };
        this.poll_linger(cx, left).map(Ok)
    }
}
