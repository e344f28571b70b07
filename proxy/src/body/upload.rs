//! The body of a request over HTTP/1.1, between the connection that reads it and whoever takes it.
//!
//! It holds one piece. The connection reads no further until that was taken, and not before the first is asked for: whoever
//! takes it may be another task than the connection's.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

/// Why an upload has no end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UploadError {
    /// Its framing can't be understood.
    #[error("its framing can't be understood")]
    Malformed,
    /// The client sent no more of it, or isn't listened to any more.
    #[error("the connection ended in the middle of it")]
    Closed,
}

#[derive(Debug, Default)]
struct State {
    piece: Option<Bytes>,
    end: Option<Result<(), UploadError>>,
    /// It was asked for once.
    asked: bool,
    /// Nobody takes it any more.
    dropped: bool,
    taker: Option<Waker>,
    reader: Option<Waker>,
}

#[derive(Debug, Default)]
struct Shared(Mutex<State>);

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The connection's end. An upload whose connection is gone has no end.
#[derive(Debug)]
pub(crate) struct Feed(Arc<Shared>);

/// A body that is uploaded.
#[derive(Debug)]
pub struct Upload {
    shared: Arc<Shared>,
    /// Bytes still to come, where the head says how many.
    left: Option<u64>,
}

/// An upload, of a length that is known or isn't.
pub(crate) fn upload(length: Option<u64>) -> (Feed, Upload) {
    let shared = Arc::<Shared>::default();
    let upload = Upload {
        shared: Arc::clone(&shared),
        left: length,
    };
    (Feed(shared), upload)
}

impl Feed {
    /// Ready once a piece is wanted, or, with false, once nobody takes it any more.
    pub(crate) fn poll_wanted(&self, cx: &Context<'_>) -> Poll<bool> {
        let mut state = self.0.state();
        if state.dropped {
            return Poll::Ready(false);
        }
        if state.asked && state.piece.is_none() {
            return Poll::Ready(true);
        }
        if !state.reader.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            state.reader = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Hands on a piece, the last or not.
    pub(crate) fn put(&self, piece: Bytes, is_last: bool) {
        self.set(|state| {
            state.piece = Some(piece);
            if is_last {
                state.end = Some(Ok(()));
            }
        });
    }

    /// Says how it ends.
    pub(crate) fn end(&self, end: Result<(), UploadError>) {
        self.set(|state| state.end = Some(end));
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.0.state();
        change(&mut state);
        let waker = state.taker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.set(|state| {
            state.end.get_or_insert(Err(UploadError::Closed));
            state.reader = None;
        });
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        let mut state = self.shared.state();
        let frame = match (state.piece.take(), state.end) {
            (Some(piece), _) => Some(Ok(Frame::data(piece))),
            (None, Some(end)) => end.err().map(Err),
            (None, None) => {
                state.taker = Some(cx.waker().clone());
                None
            }
        };
        let ended = state.end.is_some();
        state.asked = true;
        let reader = if ended { None } else { state.reader.take() };
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
        if let (Some(left), Some(Ok(frame))) = (&mut self.left, &frame) {
            *left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len) as u64);
        }
        if frame.is_none() && !ended {
            return Poll::Pending;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        let state = self.shared.state();
        state.piece.is_none() && state.end == Some(Ok(()))
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.dropped = true;
        state.piece = None;
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    fn wanted(feed: &Feed) -> Poll<bool> {
        feed.poll_wanted(&Context::from_waker(Waker::noop()))
    }

    #[tokio::test]
    async fn nothing_is_read_before_it_is_asked_for_and_one_piece_at_a_time() {
        let (feed, mut upload) = upload(Some(5));
        assert_eq!((wanted(&feed), upload.size_hint().exact()), (Poll::Pending, Some(5)));
        assert!(futures_util::poll!(upload.frame()).is_pending());
        assert_eq!(wanted(&feed), Poll::Ready(true));
        feed.put("abc".into(), false);
        assert_eq!((wanted(&feed), upload.is_end_stream()), (Poll::Pending, false));
        assert_eq!(upload.frame().await.unwrap().unwrap().into_data().unwrap(), "abc");
        assert_eq!(
            (wanted(&feed), upload.size_hint().exact()),
            (Poll::Ready(true), Some(2))
        );
        feed.put("de".into(), true);
        assert_eq!(upload.frame().await.unwrap().unwrap().into_data().unwrap(), "de");
        assert!(upload.is_end_stream() && upload.frame().await.is_none());
    }

    #[tokio::test]
    async fn an_upload_whose_connection_is_gone_has_no_end() {
        let (feed, mut upload) = upload(None);
        let read = tokio::spawn(async move { (upload.frame().await.unwrap().err(), upload.is_end_stream()) });
        tokio::task::yield_now().await;
        drop(feed);
        assert_eq!(read.await.unwrap(), (Some(UploadError::Closed), false));
    }

    #[tokio::test]
    async fn who_takes_it_no_more_is_noticed() {
        let (feed, upload) = upload(None);
        let noticed = tokio::spawn(async move { std::future::poll_fn(|cx| feed.poll_wanted(cx)).await });
        tokio::task::yield_now().await;
        drop(upload);
        assert!(!noticed.await.unwrap());
    }
}
