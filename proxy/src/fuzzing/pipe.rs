//! The pipe between two ends of an upgraded stream.
//!
//! The bytes are a script for both ends, read in turns: what arrives next from one and how much it takes at once, with
//! pauses, half-closes and breaks wherever they stand.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::Future as _,
    io,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, Waker},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::upgrade;

/// What an end does when it is read from.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// This many bytes have arrived.
    Bytes(u8),
    /// Nothing has, yet.
    Pause,
    /// It has closed its side.
    Close,
    /// It has closed its side, without a `close_notify`.
    CloseAbruptly,
    /// The connection is lost.
    Break,
}

/// What has become of an end.
#[derive(Default)]
struct Seen {
    said: Vec<u8>,
    got: Vec<u8>,
    closed: u32,
    broken: bool,
}

struct End {
    steps: VecDeque<Step>,
    /// How much it takes at once, in turns; 0 for a pause.
    takes: VecDeque<u8>,
    next: u8,
    seen: Rc<RefCell<Seen>>,
}

/// Each end gets what the other said: each byte once, in order, and the end after the last of them; a break loses the
/// tail at most.
pub(super) fn holds(bytes: &[u8]) {
    let (client, client_seen) = End::scripted(bytes.iter().step_by(2));
    let (upstream, upstream_seen) = End::scripted(bytes.iter().skip(1).step_by(2));
    let (up, down) = (Cell::new(0), Cell::new(0));
    let joined = {
        let joined = upgrade::join(
            client,
            upstream,
            |read| up.set(up.get() + read),
            |read| down.set(down.get() + read),
        );
        let mut joined = pin!(joined);
        let mut context = Context::from_waker(Waker::noop());
        // Every poll takes one step of either script at least.
        (0..=2 * bytes.len() + 64).find_map(|_| match joined.as_mut().poll(&mut context) {
            Poll::Ready(outcome) => Some(outcome),
            Poll::Pending => None,
        })
    };
    let (client, upstream) = (client_seen.borrow(), upstream_seen.borrow());
    let broken = client.broken || upstream.broken;
    match joined {
        None => panic!("the pipe stalls"),
        Some(Err(error)) => assert!(broken, "the pipe broke by itself: {error}"),
        Some(Ok(())) => {
            assert!(!broken, "a break is taken for an end");
            assert_eq!((client.closed, upstream.closed), (1, 1), "ends are told once");
        }
    }
    for (from, to, counted) in [(&client, &upstream, up.get()), (&upstream, &client, down.get())] {
        assert_eq!(counted, from.said.len() as u64, "what was read is counted");
        if broken {
            assert!(from.said.starts_with(&to.got), "out of order, or twice");
        } else {
            assert_eq!(from.said, to.got);
        }
    }
}

impl End {
    fn scripted<'b>(script: impl Iterator<Item = &'b u8>) -> (Self, Rc<RefCell<Seen>>) {
        let (mut steps, mut takes) = (VecDeque::new(), VecDeque::new());
        for (index, byte) in script.enumerate() {
            if index % 2 == 1 {
                takes.push_back(*byte);
                continue;
            }
            steps.push_back(match byte {
                0..8 => Step::Pause,
                8..12 => Step::Close,
                12..16 => Step::CloseAbruptly,
                16 => Step::Break,
                byte => Step::Bytes(*byte),
            });
        }
        let seen = Rc::new(RefCell::new(Seen::default()));
        let end = Self {
            steps,
            takes,
            next: 0,
            seen: Rc::clone(&seen),
        };
        (end, seen)
    }
}

fn pause<T>(context: &Context<'_>) -> Poll<T> {
    context.waker().wake_by_ref();
    Poll::Pending
}

impl AsyncRead for End {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.steps.pop_front().unwrap_or(Step::Close) {
            Step::Pause => return pause(cx),
            Step::Bytes(length) => {
                let room = usize::from(length).min(buf.remaining());
                for _ in 0..room {
                    let byte = self.next;
                    buf.put_slice(&[byte]);
                    self.seen.borrow_mut().said.push(byte);
                    self.next = byte.wrapping_mul(5).wrapping_add(3);
                }
            }
            Step::Close => self.steps.push_front(Step::Close),
            Step::CloseAbruptly => {
                self.steps.push_front(Step::Close);
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            Step::Break => {
                self.seen.borrow_mut().broken = true;
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for End {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let room = match self.takes.pop_front() {
            Some(0) => return pause(cx),
            Some(room) => usize::from(room).min(buf.len()),
            None => buf.len(),
        };
        let mut seen = self.seen.borrow_mut();
        assert_eq!(seen.closed, 0, "bytes after the end");
        seen.got.extend_from_slice(&buf[..room]);
        Poll::Ready(Ok(room))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.seen.borrow_mut().closed += 1;
        Poll::Ready(Ok(()))
    }
}
