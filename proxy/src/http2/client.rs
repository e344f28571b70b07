//! Requests over one connection, as whoever asks has them.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, Response};
use tokio::io::{AsyncRead, AsyncWrite};

pub(crate) use super::asking::Head;
use super::{
    Driver, Http2Error,
    asking::Asking,
    fields::HEADER_LIST,
    frame::{MAX_WINDOW, put_ping},
    parser::{Parser, Peer},
    streams::{Hold, Piece, Shared},
};

/// A connection to begin streams on. It is closed when the client is dropped and the last stream has ended.
#[derive(Debug)]
pub(crate) struct Client(Arc<Shared>);

/// An answer that is waited for.
#[derive(Debug)]
pub(crate) struct Answer(Option<Hold>);

/// The body of an answer.
#[derive(Debug)]
pub(crate) struct AnswerBody(Hold);

/// The body of a request, to be sent.
#[derive(Debug)]
pub(crate) struct Upload(Hold);

impl Client {
    /// Greets the server, and waits until its SETTINGS are known.
    ///
    /// # Errors
    /// If the connection ends before.
    pub(crate) async fn greet<I: AsyncRead + AsyncWrite + Unpin>(
        io: I,
    ) -> Result<(Self, Driver<I, Asking>), Http2Error> {
        let shared = Arc::new(Shared::new(Peer::Server, MAX_WINDOW));
        let client = Self(Arc::clone(&shared));
        let mut driver = Driver::new(io, Asking, Parser::new(Peer::Server, HEADER_LIST as usize), shared);
        poll_fn(|cx| match Pin::new(&mut driver).poll(cx) {
            Poll::Ready(ended) => Poll::Ready(ended.and(Err(Http2Error::Closed))),
            Poll::Pending if client.0.is_greeted.load(Ordering::Relaxed) => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        })
        .await?;
        Ok((client, driver))
    }

    /// Whether a stream may be begun.
    pub(crate) fn is_open(&self) -> bool {
        self.0.is_open.load(Ordering::SeqCst)
    }

    /// No stream is begun any more.
    pub(crate) fn close(&self) {
        self.0.close();
    }

    /// How many streams the server allows at once. Whoever asks sees to it that there are no more.
    pub(crate) fn limit(&self) -> usize {
        self.0.limit.load(Ordering::Relaxed) as usize
    }

    /// Sends a request without a body.
    ///
    /// # Errors
    /// If no stream can be begun any more. Nothing was sent.
    pub(crate) fn send(&self, head: Head<'_>) -> Result<Answer, Http2Error> {
        let id = self.0.state().begin(head, true, 1)?;
        Ok(Answer(Some(self.hold(id))))
    }

    /// Sends the head of a request, whose body follows.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub(crate) fn send_head(&self, head: Head<'_>) -> Result<(Answer, Upload), Http2Error> {
        let id = self.0.state().begin(head, false, 2)?;
        Ok((Answer(Some(self.hold(id))), Upload(self.hold(id))))
    }

    fn hold(&self, id: u32) -> Hold {
        Hold {
            shared: Arc::clone(&self.0),
            id,
        }
    }

    /// Whom to ask whether the server still answers.
    pub(crate) fn pinger(&self) -> Pinger {
        Pinger(Arc::clone(&self.0))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.0.close();
        let mut state = self.0.state();
        state.is_done = true;
        state.wake_driver();
    }
}

/// Asks the server whether it is there. It keeps no connection open.
#[derive(Debug)]
pub(crate) struct Pinger(Arc<Shared>);

impl Pinger {
    /// Waits for the answer to a PING (RFC 9113, section 6.7).
    pub(crate) async fn ping(&self) {
        let number = {
            let mut state = self.0.state();
            state.pings += 1;
            let number = state.pings;
            put_ping(&mut state.out, number, false);
            state.wake_driver();
            number
        };
        loop {
            let ponged = self.0.ponged.notified();
            tokio::pin!(ponged);
            ponged.as_mut().enable();
            if self.0.pongs.load(Ordering::SeqCst) >= number {
                return;
            }
            ponged.await;
        }
    }
}

impl Future for Answer {
    type Output = Result<Response<AnswerBody>, Http2Error>;

    /// # Panics
    /// After it was ready.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(hold) = self.0.take() else {
            unreachable!("an answer is waited for once");
        };
        let head = hold.shared.state().take_head(hold.id, cx.waker());
        if let Some(head) = head {
            return Poll::Ready(head.map(|head| head.map(|()| AnswerBody(hold))));
        }
        self.0 = Some(hold);
        Poll::Pending
    }
}

impl AnswerBody {
    /// The next piece; none at the end.
    pub(crate) fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<BodyPiece, Http2Error>>> {
        match self.0.shared.state().take_piece(self.0.id, cx.waker()) {
            Some(Ok(Piece::Data(data))) => Poll::Ready(Some(Ok(BodyPiece::Data(data)))),
            Some(Ok(Piece::Trailers(fields))) => Poll::Ready(Some(Ok(BodyPiece::Trailers(fields)))),
            Some(Ok(Piece::End)) => Poll::Ready(None),
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
            None => Poll::Pending,
        }
    }

    /// Whether it was read to its end.
    pub(crate) fn is_end(&self) -> bool {
        self.0.shared.state().is_read(self.0.id)
    }
}

/// A piece of a body.
#[derive(Debug)]
pub(crate) enum BodyPiece {
    Data(Bytes),
    /// The fields behind it.
    Trailers(HeaderMap),
}

impl Upload {
    /// Sends all of `data`, as the server takes it.
    ///
    /// # Errors
    /// If the server, or the connection, ends it.
    pub(crate) async fn send(&mut self, mut data: Bytes) -> Result<(), Http2Error> {
        let Hold { shared, id } = &self.0;
        while !data.is_empty() {
            poll_fn(|cx| match shared.state().send(*id, &mut data, false, cx.waker()) {
                Ok(true) => Poll::Ready(Ok(())),
                Ok(false) => Poll::Pending,
                Err(error) => Poll::Ready(Err(error)),
            })
            .await?;
        }
        Ok(())
    }

    /// The body is at its end.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub(crate) fn finish(&mut self) -> Result<(), Http2Error> {
        self.0.shared.state().finish(self.0.id)
    }

    /// Waits until the server, or the connection, ends it before its time.
    pub(crate) async fn stopped(&mut self) -> Http2Error {
        let Hold { shared, id } = &self.0;
        poll_fn(|cx| match shared.state().stopped(*id, cx.waker()) {
            Some(error) => Poll::Ready(error),
            None => Poll::Pending,
        })
        .await
    }

    /// Resets the stream, so that the server doesn't take a part for the whole. Whoever reads the answer sees
    /// [`Http2Error::GivenUp`].
    pub(crate) fn give_up(&mut self) {
        self.0.shared.state().give_up(self.0.id);
    }
}
