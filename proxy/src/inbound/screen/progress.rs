//! What the screen and those who serve its requests tell each other.

use std::{
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http_body::{Body, Frame, SizeHint};

use super::head::Verdict;
use crate::body::{BodyError, ResponseBody};

/// How far a connection's requests have come. They are served in their order, one at a time, so that a number tells one
/// from the other.
#[derive(Debug, Default)]
pub(in crate::inbound) struct Progress {
    /// Heads that were handed on.
    passed: AtomicU64,
    /// Requests that were begun to be served.
    begun: AtomicU64,
    /// Those whose answer is known: twice the number of the last, and one more where it switched protocols.
    answered: AtomicU64,
    /// Those whose answer is at its end.
    ended: AtomicU64,
    /// The one head that was handed on in place of a request that is refused. It is the last.
    verdict: OnceLock<(u64, Verdict)>,
    /// Waits for an answer.
    screen: AtomicWaker,
}

/// A request that is being served.
pub(in crate::inbound) struct Turn {
    number: u64,
    progress: Arc<Progress>,
}

impl Progress {
    /// Heads were handed on.
    pub(super) fn pass(&self, heads: u64) -> u64 {
        self.passed.fetch_add(heads, Ordering::AcqRel) + heads
    }

    /// A head was handed on in place of a request that is refused so.
    pub(super) fn refuse(&self, verdict: Verdict) {
        let _ = self.verdict.set((self.pass(1), verdict));
    }

    /// Whether nothing is being served.
    pub(super) fn is_idle(&self) -> bool {
        self.ended.load(Ordering::Acquire) == self.passed.load(Ordering::Acquire)
    }

    /// Whether the answer to the last head that was handed on switches protocols, once it is known.
    pub(super) fn poll_switched(&self, cx: &Context<'_>) -> Poll<bool> {
        self.wait(cx.waker());
        let answered = self.answered.load(Ordering::Acquire);
        if answered / 2 < self.passed.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        Poll::Ready(answered % 2 == 1)
    }

    fn wait(&self, waker: &Waker) {
        self.screen.register(waker);
    }

    /// The next request is served now.
    pub(in crate::inbound) fn begin(self: &Arc<Self>) -> Turn {
        Turn {
            number: self.begun.fetch_add(1, Ordering::AcqRel) + 1,
            progress: Arc::clone(self),
        }
    }
}

impl Turn {
    /// Why the request isn't the client's, but stands for one that is refused.
    pub(in crate::inbound) fn verdict(&self) -> Option<&Verdict> {
        match self.progress.verdict.get() {
            Some((number, verdict)) if *number == self.number => Some(verdict),
            _ => None,
        }
    }

    /// The answer's head is known.
    pub(in crate::inbound) fn answer(self, switched: bool, body: ResponseBody) -> Answer {
        let answered = self.number * 2 + u64::from(switched);
        self.progress.answered.store(answered, Ordering::Release);
        self.progress.screen.wake();
        Answer { body, _turn: self }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.progress.ended.fetch_add(1, Ordering::AcqRel);
    }
}

/// An answer's body, in its turn until it ends.
pub(in crate::inbound) struct Answer {
    body: ResponseBody,
    _turn: Turn,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
