//! A peer on an HTTP/2 connection that has one thing to say.

use std::{
    cell::Cell,
    io,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, Waker},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A peer that greets, and, when it is told, says what it says, whatever it hears, and closes.
pub(super) struct Said<'b> {
    greeting: &'b [u8],
    left: &'b [u8],
    size: usize,
    told: Rc<Cell<bool>>,
    pub(super) written: usize,
}

impl<'b> Said<'b> {
    /// It, and what to tell it by.
    pub(super) fn new(greeting: &'b [u8], left: &'b [u8], size: usize) -> (Self, Rc<Cell<bool>>) {
        let told = Rc::new(Cell::new(false));
        let said = Self {
            greeting,
            left,
            size,
            told: Rc::clone(&told),
            written: 0,
        };
        (said, told)
    }
}

impl AsyncRead for Said<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let greeting = std::mem::take(&mut self.greeting);
        if !greeting.is_empty() {
            buf.put_slice(greeting);
            return Poll::Ready(Ok(()));
        }
        if !self.told.get() {
            return Poll::Pending;
        }
        let here = self.left.len().min(self.size).min(buf.remaining());
        let (now, later) = self.left.split_at(here);
        buf.put_slice(now);
        self.left = later;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Said<'_> {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.written += buf.len();
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Polls as a runtime would, but not for ever.
pub(super) fn finish<F: Future>(future: F) -> Option<F::Output> {
    const TURNS: usize = 100_000;
    let mut future = pin!(future);
    let mut cx = Context::from_waker(Waker::noop());
    (0..TURNS).find_map(|_| match future.as_mut().poll(&mut cx) {
        Poll::Ready(output) => Some(output),
        Poll::Pending => None,
    })
}
