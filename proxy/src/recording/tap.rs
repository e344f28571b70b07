//! One end of a recorded stream. Bytes pass as they come; what is read of them goes to the recording's task, and there is
//! room for it there before anything is read.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::mpsc,
    time::{Sleep, sleep},
};
use tokio_util::sync::PollSender;

use super::{
    recorder::{Failure, Passed, Reader, Shared},
    stream::{Channel, Seen, Side},
    transcript::Piece,
};

/// How long a stream that needn't be recorded waits for its recording.
const PATIENCE: Duration = Duration::from_secs(2);

/// One end of a stream, with what is read from it recorded.
#[derive(Debug)]
pub struct Tapped<I> {
    io: I,
    side: Side,
    shared: Arc<Shared>,
    /// None once the stream isn't recorded any further.
    tap: Option<Tap>,
}

#[derive(Debug)]
struct Tap {
    reader: Arc<Mutex<Reader>>,
    passed: PollSender<Passed>,
    /// How long a stream waits that needn't.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<I> Tapped<I> {
    pub(super) fn new(
        io: I,
        side: Side,
        reader: Arc<Mutex<Reader>>,
        passed: mpsc::Sender<Passed>,
        shared: Arc<Shared>,
    ) -> Self {
        let tap = Tap {
            reader,
            passed: PollSender::new(passed),
            waiting: None,
        };
        Self {
            io,
            side,
            shared,
            tap: Some(tap),
        }
    }

    /// Waits for room in the queue. Without a tap there's no need to.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(tap) = &mut self.tap else {
            return Poll::Ready(());
        };
        if !self.shared.has_failed() {
            match tap.passed.poll_reserve(cx) {
                Poll::Ready(Ok(())) => {
                    tap.waiting = None;
                    return Poll::Ready(());
                }
                // Its task has gone: it failed, or the runtime is going down.
                Poll::Ready(Err(_)) => self.shared.fail(&Failure::Stopped),
                Poll::Pending if self.shared.terms().required => return Poll::Pending,
                Poll::Pending => {
                    let waiting = tap.waiting.get_or_insert_with(|| Box::pin(sleep(PATIENCE)));
                    ready!(waiting.as_mut().poll(cx));
                    self.shared.fail(&Failure::Slow);
                }
            }
        }
        self.tap = None;
        Poll::Ready(())
    }

    /// Something was read.
    fn saw(&mut self, bytes: &[u8]) {
        let Some(tap) = &mut self.tap else { return };
        let stdin = self.shared.terms().stdin;
        let mut pieces = Vec::new();
        let read = {
            // A poisoned lock is taken over: what it guards judges every byte anew.
            let mut reader = tap.reader.lock().unwrap_or_else(PoisonError::into_inner);
            match &mut *reader {
                Reader::Channels(decoder) => decoder.read(self.side, bytes, &mut |seen| match seen {
                    Seen::Bytes(Channel::Stdin, _) | Seen::Closed(Channel::Stdin) if !stdin => {}
                    seen => Piece::add(&mut pieces, seen),
                }),
                Reader::Ports(ports) => ports.read(self.side, bytes, &mut |event| Piece::add_port(&mut pieces, event)),
            }
        };
        let at = self.shared.elapsed();
        let sent = pieces.is_empty() || tap.passed.send_item(Passed { at, pieces }).is_ok();
        if let Err(lost) = read {
            self.shared.fail(&lost.into());
        } else if !sent {
            self.shared.fail(&Failure::Stopped);
        } else {
            return;
        }
        self.tap = None;
    }

    /// What mustn't go unrecorded doesn't go on.
    fn may_go_on(&self) -> io::Result<()> {
        if self.tap.is_none() && self.shared.terms().required {
            return Err(io::Error::other("the stream isn't recorded any further"));
        }
        Ok(())
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Tapped<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_room(cx));
        self.may_go_on()?;
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        self.saw(&buf.filled()[before..]);
        Poll::Ready(self.may_go_on())
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Tapped<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
