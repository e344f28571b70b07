//! What reads from a connection and writes to it.

use std::{
    io,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, Waker, ready},
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::poll_read_buf;

use super::{
    ErrorCode, Fault, Http2Error,
    frame::{put_goaway, put_ping, put_settings_ack},
    hpack::decoder::Decoder,
    parser::{Event, Parser},
    streams::{CALM, Shared, State},
};

/// What is read at a time, in bytes: a TLS record.
const READ_FIRST: usize = 16 * 1024;
/// And of a connection that fills that.
const READ_MOST: usize = 64 * 1024;
/// A peer that doesn't take what it is told isn't listened to while so many bytes wait for it: it has us answer its PINGs.
const WAITING_MOST: usize = 256 * 1024;
/// So many reads in one turn, then others have theirs.
const READS: usize = 16;

/// A coded head.
pub(crate) struct Block<'b> {
    pub(super) stream: u32,
    pub(super) code: &'b [u8],
    pub(super) is_last: bool,
    pub(super) decoder: &'b mut Decoder,
}

/// What is one side's alone.
pub(crate) trait Role {
    /// Writes what is said first.
    fn greet(&self, out: &mut BytesMut);

    /// A head came, or what follows a body. It has to be decoded: the next builds on it.
    ///
    /// # Errors
    /// If a rule is broken that holds for the connection.
    fn headers(&mut self, state: &mut State, block: Block<'_>, woken: &mut Vec<Waker>) -> Result<(), Fault>;

    /// The peer begins no stream any more, or takes none after `last`.
    fn go_away(&mut self, shared: &Shared, state: &mut State, last: u32, code: ErrorCode, woken: &mut Vec<Waker>);

    /// The peer gives up a stream, which is to be told to whoever holds it.
    ///
    /// # Errors
    /// If it does so too often.
    fn reset(&mut self, _stream: u32) -> Result<(), Fault> {
        Ok(())
    }
}

/// A connection, to be polled for as long as it lasts. Dropped before, it takes its streams along.
#[derive(Debug)]
pub(crate) struct Driver<I, R> {
    io: I,
    pub(super) role: R,
    shared: Arc<Shared>,
    read: BytesMut,
    appetite: usize,
    /// What is being sent.
    writing: BytesMut,
    /// Something was handed to `io`, and may still be in it.
    is_unflushed: bool,
    parser: Parser,
    decoder: Decoder,
    /// How many frames have come, and parts of bodies.
    events: u64,
    woken: Vec<Waker>,
    /// The last has been said: what is left is to send it.
    closing: bool,
}

impl<I: AsyncRead + AsyncWrite + Unpin, R: Role> Driver<I, R> {
    pub(super) fn new(io: I, role: R, parser: Parser, shared: Arc<Shared>) -> Self {
        let mut writing = BytesMut::new();
        role.greet(&mut writing);
        Self {
            io,
            role,
            shared,
            read: BytesMut::new(),
            appetite: READ_FIRST,
            writing,
            is_unflushed: false,
            parser,
            decoder: Decoder::new(),
            events: 0,
            woken: Vec::new(),
            closing: false,
        }
    }

    /// What it speaks over.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) const fn io(&self) -> &I {
        &self.io
    }

    /// Whether the peer has said what it must say first.
    pub(super) const fn is_greeted(&self) -> bool {
        self.parser.has_begun()
    }

    /// How much has come so far that was whole, counted in frames and parts of bodies.
    pub(super) const fn events(&self) -> u64 {
        self.events
    }

    /// Sends what is to be sent. Pending where the connection doesn't take all of it.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.writing.is_empty() {
                let mut state = self.shared.state();
                if state.out.is_empty() {
                    break;
                }
                // What was sent leaves its room to what is sent next.
                std::mem::swap(&mut state.out, &mut self.writing);
                state.wake_next();
            }
            while !self.writing.is_empty() {
                let sent = ready!(Pin::new(&mut self.io).poll_write(cx, &self.writing))?;
                if sent == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.is_unflushed = true;
                self.writing.advance(sent);
            }
            if self.writing.capacity() > READ_MOST {
                self.writing = BytesMut::new();
            } else {
                self.writing.clear();
            }
        }
        if self.is_unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.is_unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Reads once, and tells the streams what came.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Http2Error>> {
        self.read.reserve(self.appetite);
        let polled = poll_read_buf(Pin::new(&mut self.io), cx, &mut self.read);
        if self.read.is_empty() {
            // A connection that waits has no buffer.
            self.read = BytesMut::new();
        }
        let read = ready!(polled)?;
        if read == 0 {
            return Poll::Ready(Err(Http2Error::Closed));
        }
        self.appetite = if read >= READ_FIRST { READ_MOST } else { READ_FIRST };
        Poll::Ready(self.take().map_err(Into::into))
    }

    /// Takes apart what was read.
    fn take(&mut self) -> Result<(), Fault> {
        let shared = &self.shared;
        let mut state = shared.state();
        let woken = &mut self.woken;
        let outcome = loop {
            let event = match self.parser.next(&mut self.read) {
                Ok(Some(event)) => event,
                Ok(None) => break Ok(()),
                Err(fault) => break Err(fault),
            };
            let taken = match event {
                Event::Data {
                    stream,
                    data,
                    held,
                    is_last,
                } => state.data(stream, data, held, is_last, woken),
                Event::Headers { stream, block, is_last } => {
                    let block = Block {
                        stream,
                        code: &block,
                        is_last,
                        decoder: &mut self.decoder,
                    };
                    self.role.headers(&mut state, block, woken)
                }
                Event::Reset { stream, code } => {
                    let role = &mut self.role;
                    role.reset(stream).and_then(|()| state.reset(stream, code, woken))
                }
                Event::Settings(settings) => {
                    put_settings_ack(&mut state.out);
                    if let Some(streams) = settings.streams {
                        shared.limit.store(streams, Ordering::Relaxed);
                    }
                    shared.is_greeted.store(true, Ordering::Relaxed);
                    state.set(&settings, woken)
                }
                Event::Ping(payload) => {
                    put_ping(&mut state.out, payload, true);
                    Ok(())
                }
                Event::Pong(payload) => {
                    // A number that we didn't send says nothing.
                    if payload <= state.pings {
                        shared.pongs.fetch_max(payload, Ordering::SeqCst);
                        shared.ponged.notify_waiters();
                    }
                    Ok(())
                }
                Event::GoAway { last, code } => {
                    self.role.go_away(shared, &mut state, last, code, woken);
                    Ok(())
                }
                Event::WindowUpdate { stream, more } => state.widen(stream, more, woken),
                Event::SettingsAck => Ok(()),
            };
            self.events += 1;
            if taken.is_err() {
                break taken;
            }
            if state.is_trouble() {
                break Err(CALM);
            }
        };
        drop(state);
        self.woken.drain(..).for_each(Waker::wake);
        outcome
    }

    fn poll_drive(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Http2Error>> {
        for _ in 0..READS {
            let sent = self.poll_send(cx)?;
            if self.closing {
                ready!(sent);
                return Pin::new(&mut self.io).poll_shutdown(cx).map_err(Into::into);
            }
            {
                let mut state = self.shared.state();
                if state.is_over() {
                    self.closing = true;
                    if state.left_at.is_none() {
                        let last = state.last_begun();
                        put_goaway(&mut state.out, last, ErrorCode::NO_ERROR);
                    }
                    continue;
                }
                if sent.is_pending() && state.out.len() + self.writing.len() > WAITING_MOST {
                    return Poll::Pending;
                }
            }
            if self.poll_receive(cx)?.is_pending() {
                let mut state = self.shared.state();
                // What others have done since it was looked at is seen to first: they woke nobody.
                if sent.is_ready() && !state.out.is_empty() || state.is_over() {
                    continue;
                }
                state.driver = Some(cx.waker().clone());
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin, R: Role + Unpin> Future for Driver<I, R> {
    type Output = Result<(), Http2Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let outcome = ready!(this.poll_drive(cx));
        if let Err(error) = &outcome {
            if let Http2Error::Fault(fault) = error {
                // It is told as far as it listens; nobody waits for that.
                let mut state = this.shared.state();
                let last = state.last_begun();
                put_goaway(&mut state.out, last, fault.code);
                drop(state);
                let _ = this.poll_send(cx);
            }
            this.end(error);
        }
        Poll::Ready(outcome)
    }
}

impl<I: AsyncRead + AsyncWrite + Unpin, R: Role> Driver<I, R> {
    /// Sends what is left to be sent, tells the peer that nothing follows, and reads on, that it gets to read that: what is closed with
    /// bytes unread is reset. Ready when the peer has closed as well, or `most` bytes more have come.
    pub(super) fn poll_farewell(&mut self, cx: &mut Context<'_>, most: &mut usize) -> Poll<()> {
        if !self.closing {
            if ready!(self.poll_send(cx)).is_err() || ready!(Pin::new(&mut self.io).poll_shutdown(cx)).is_err() {
                return Poll::Ready(());
            }
            self.closing = true;
        }
        loop {
            self.read.clear();
            self.read.reserve(READ_FIRST);
            let read = ready!(poll_read_buf(Pin::new(&mut self.io), cx, &mut self.read)).unwrap_or_default();
            *most = most.saturating_sub(read);
            if read == 0 || *most == 0 {
                return Poll::Ready(());
            }
        }
    }
}

impl<I, R> Driver<I, R> {
    /// Nobody waits any longer.
    fn end(&mut self, error: &Http2Error) {
        self.shared.close();
        self.shared.state().end(error, &mut self.woken);
        self.woken.drain(..).for_each(Waker::wake);
    }
}

impl<I, R> Drop for Driver<I, R> {
    fn drop(&mut self) {
        self.end(&Http2Error::Dropped);
    }
}
