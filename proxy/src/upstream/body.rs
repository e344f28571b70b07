//! The body of an upstream's answer, over either protocol, holding its place in the pool until it ends.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio_util::sync::DropGuard;

use super::{
    direct::{DirectBody, DirectError},
    h1::Lease,
    h2::Slot,
};
use crate::http2::{AnswerBody, BodyPiece, Http2Error};

/// An answer's body.
#[derive(Debug)]
pub struct UpstreamBody(Inner);

#[derive(Debug)]
enum Inner {
    Http1 {
        body: Incoming,
        lease: Option<Lease>,
    },
    Direct(DirectBody),
    Http2 {
        body: AnswerBody,
        slot: Option<Slot>,
        /// Gives the upload up when the answer is dropped before its end.
        upload: Option<DropGuard>,
    },
}

/// The upstream broke off before the body's end. The client must see a truncation, never a clean end.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamBodyError {
    /// Over HTTP/1.1.
    #[error("the upstream broke off: {0}")]
    Http1(#[from] hyper::Error),
    /// Over an HTTP/1.1 connection that the reader drives itself.
    #[error("the upstream broke off: {0}")]
    Direct(#[from] DirectError),
    /// Over HTTP/2.
    #[error("the upstream broke off: {0}")]
    Http2(#[from] Http2Error),
}

impl UpstreamBody {
    /// The whole answer to an upgrade that was refused, on a connection that is not used again.
    #[must_use]
    pub fn unpooled(body: Incoming) -> Self {
        Self::http1(body, None)
    }

    pub(super) fn http1(body: Incoming, lease: Option<Lease>) -> Self {
        Self(Inner::Http1 { body, lease })
    }

    pub(super) fn direct(body: DirectBody) -> Self {
        Self(Inner::Direct(body))
    }

    pub(super) fn http2(body: AnswerBody, slot: Option<Slot>, upload: Option<DropGuard>) -> Self {
        Self(Inner::Http2 { body, slot, upload })
    }
}

impl Drop for UpstreamBody {
    /// A reader that knows the length stops before the end is polled: an answer read to its last byte has ended well.
    fn drop(&mut self) {
        match &mut self.0 {
            Inner::Http1 { body, lease } if body.is_end_stream() => {
                if let Some(lease) = lease.take() {
                    lease.give_back();
                }
            }
            Inner::Http2 { body, upload, .. } if body.is_end() => {
                upload.take().map(DropGuard::disarm);
            }
            _ => {}
        }
    }
}

impl Body for UpstreamBody {
    type Data = Bytes;
    type Error = UpstreamBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UpstreamBodyError>>> {
        match &mut self.0 {
            Inner::Http1 { body, lease } => {
                let frame = ready!(Pin::new(body).poll_frame(cx)).map(|frame| frame.map_err(Into::into));
                if frame.is_none()
                    && let Some(lease) = lease.take()
                {
                    lease.give_back();
                }
                Poll::Ready(frame)
            }
            Inner::Direct(body) => body.poll_frame(cx).map_err(Into::into),
            Inner::Http2 { body, slot, upload } => match ready!(body.poll_piece(cx)) {
                Some(Ok(BodyPiece::Data(data))) => Poll::Ready(Some(Ok(Frame::data(data)))),
                Some(Ok(BodyPiece::Trailers(fields))) => Poll::Ready(Some(Ok(Frame::trailers(fields)))),
                Some(Err(error)) => Poll::Ready(Some(Err(error.into()))),
                None => {
                    slot.take();
                    // A server may answer whole and still read on.
                    upload.take().map(DropGuard::disarm);
                    Poll::Ready(None)
                }
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Inner::Http1 { body, .. } => body.is_end_stream(),
            Inner::Direct(body) => body.is_end(),
            Inner::Http2 { body, .. } => body.is_end(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Inner::Http1 { body, .. } => body.size_hint(),
            Inner::Direct(body) => body.left().map_or_else(SizeHint::default, SizeHint::with_exact),
            Inner::Http2 { .. } => SizeHint::default(),
        }
    }
}
