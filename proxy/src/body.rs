//! The bodies of requests and answers on their way through: counted, ended with their session, and otherwise
//! left as they are.

pub mod client;
pub mod pace;
pub mod upload;

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use self::{
    client::{ClientBody, ClientBodyError},
    pace::Pace,
};
use crate::{
    exchange::Exchange,
    status::Refusal,
    upstream::{UpstreamBody, body::UpstreamBodyError},
};

/// Why a body ended before its time. The peer sees a truncation: a reset stream, or a closed connection.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The session ended.
    #[error("the session has ended")]
    SessionEnded,
    /// The client's upload came too slowly.
    #[error("the client uploads too slowly")]
    TooSlow,
    /// The client broke off.
    #[error("the client broke off: {0}")]
    Client(#[from] ClientBodyError),
    /// The upstream broke off.
    #[error(transparent)]
    Upstream(#[from] UpstreamBodyError),
}

/// Wakes a body when its session ends. Boxed: a body must be `Unpin`, and most bodies are too short to need one.
type Ended = Pin<Box<WaitForCancellationFutureOwned>>;

fn poll_ended(ended: &mut Option<Ended>, cx: &mut Context<'_>) -> Result<(), BodyError> {
    if ended.as_mut().is_some_and(|ended| ended.as_mut().poll(cx).is_ready()) {
        Err(BodyError::SessionEnded)
    } else {
        Ok(())
    }
}

/// A request's body on its way upstream.
pub struct RequestBody {
    source: Option<RequestSource>,
    exchange: Option<Arc<Exchange>>,
    ended: Option<Ended>,
    session: CancellationToken,
    /// None for a stream.
    pace: Option<Pace>,
}

enum RequestSource {
    Client(ClientBody),
    Ours(Bytes),
}

impl RequestBody {
    /// No body at all.
    #[must_use]
    pub fn empty() -> Self {
        Self::ours(Bytes::new())
    }

    /// Bytes of a request that the agent makes for itself.
    #[must_use]
    pub fn ours(bytes: Bytes) -> Self {
        Self {
            source: Some(bytes).filter(|bytes| !bytes.is_empty()).map(RequestSource::Ours),
            exchange: None,
            ended: None,
            session: CancellationToken::new(),
            pace: None,
        }
    }

    /// Cancelled when the session under which it is uploaded ends.
    #[must_use]
    pub fn ended(&self) -> CancellationToken {
        self.session.clone()
    }

    /// The client's body, counted in `exchange`, broken off when `ended` is cancelled. One that says its length has to
    /// keep the pace.
    #[must_use]
    pub fn new(body: ClientBody, exchange: Arc<Exchange>, ended: &CancellationToken, pace: Option<Pace>) -> Self {
        if body.is_end_stream() {
            return Self::empty();
        }
        Self {
            pace: pace.filter(|_| body.size_hint().exact().is_some()),
            source: Some(RequestSource::Client(body)),
            exchange: Some(exchange),
            ended: Some(Box::pin(ended.clone().cancelled_owned())),
            session: ended.clone(),
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        poll_ended(&mut this.ended, cx)?;
        let body = match &mut this.source {
            None => return Poll::Ready(None),
            Some(RequestSource::Ours(bytes)) => {
                let bytes = std::mem::take(bytes);
                this.source = None;
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            Some(RequestSource::Client(body)) => body,
        };
        loop {
            let polled = Pin::new(&mut *body).poll_frame(cx);
            if polled.is_pending()
                && let Some(pace) = &mut this.pace
            {
                ready!(pace.poll_lost(cx));
                if let Some(exchange) = &this.exchange {
                    exchange.break_off(Refusal::RequestTimeout);
                }
                return Poll::Ready(Some(Err(BodyError::TooSlow)));
            }
            let frame = match ready!(polled) {
                None => return Poll::Ready(None),
                Some(Ok(frame)) => frame,
                Some(Err(error)) => {
                    if let Some(exchange) = &this.exchange {
                        exchange.break_off(Refusal::BadRequest);
                    }
                    return Poll::Ready(Some(Err(error.into())));
                }
            };
            if let (Some(pace), Some(data)) = (&mut this.pace, frame.data_ref()) {
                pace.came(data.len());
            }
            // Trailers go no further: the API server reads none, and they could carry a credential (invariant 2).
            if let Ok(data) = frame.into_data() {
                if let Some(exchange) = &this.exchange {
                    exchange.request_passes(&data);
                }
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            None => true,
            Some(RequestSource::Ours(_)) => false,
            Some(RequestSource::Client(body)) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            None => SizeHint::with_exact(0),
            Some(RequestSource::Ours(bytes)) => SizeHint::with_exact(bytes.len() as u64),
            Some(RequestSource::Client(body)) => body.size_hint(),
        }
    }
}

/// An answer's body on its way to the client: the upstream's, or one of ours.
pub struct ResponseBody {
    source: Source,
    exchange: Option<Arc<Exchange>>,
    ended: Option<Ended>,
}

enum Source {
    Ours(Option<Bytes>),
    Upstream(UpstreamBody),
}

impl ResponseBody {
    /// Bytes of ours.
    #[must_use]
    pub fn ours(bytes: Bytes) -> Self {
        Self {
            source: Source::Ours(Some(bytes).filter(|bytes| !bytes.is_empty())),
            exchange: None,
            ended: None,
        }
    }

    /// The upstream's body, broken off when `ended` is cancelled.
    #[must_use]
    pub fn upstream(body: UpstreamBody, ended: &CancellationToken) -> Self {
        let ended = (!body.is_end_stream()).then(|| Box::pin(ended.clone().cancelled_owned()));
        Self {
            source: Source::Upstream(body),
            exchange: None,
            ended,
        }
    }

    /// Counts what passes in `exchange`, and keeps that open until the body ends.
    #[must_use]
    pub fn counted(mut self, exchange: Arc<Exchange>) -> Self {
        self.exchange = Some(exchange);
        self
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if let Err(ended) = poll_ended(&mut this.ended, cx) {
            if let Some(exchange) = &this.exchange {
                exchange.cut_short();
            }
            return Poll::Ready(Some(Err(ended)));
        }
        let frame = match &mut this.source {
            Source::Ours(bytes) => bytes.take().map(|bytes| Ok(Frame::data(bytes))),
            Source::Upstream(body) => ready!(Pin::new(body).poll_frame(cx)),
        };
        if let Some(exchange) = &this.exchange {
            match &frame {
                Some(Ok(frame)) => exchange.response_passes(frame.data_ref().map_or(&[], |data| data)),
                Some(Err(_)) => exchange.cut_short(),
                None => {}
            }
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Ours(bytes) => bytes.is_none(),
            Source::Upstream(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Ours(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Source::Upstream(body) => body.size_hint(),
        }
    }
}
