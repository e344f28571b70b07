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
        stream: ::h2::RecvStream,
        slot: Option<Slot>,
        /// Gives the upload up when the answer is dropped before its end.
        upload: Option<DropGuard>,
        data_done: bool,
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
    Http2(#[from] ::h2::Error),
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

    pub(super) fn http2(stream: ::h2::RecvStream, slot: Slot, upload: Option<DropGuard>) -> Self {
        Self(Inner::Http2 {
            stream,
            slot: Some(slot),
            upload,
            data_done: false,
        })
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
            Inner::Http2 { stream, upload, .. } if stream.is_end_stream() => {
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
            Inner::Http2 {
                stream,
                slot,
                upload,
                data_done,
            } => {
                if !*data_done {
                    if let Some(data) = ready!(stream.poll_data(cx)) {
                        let data = data?;
                        // Credit goes back as the chunk is handed on: the reader holds one chunk at a time.
                        stream.flow_control().release_capacity(data.len())?;
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                    *data_done = true;
                }
                let trailers = ready!(stream.poll_trailers(cx))?;
                if trailers.is_none() {
                    slot.take();
                    // A server may answer whole and still read on.
                    upload.take().map(DropGuard::disarm);
                }
                Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Inner::Http1 { body, .. } => body.is_end_stream(),
            Inner::Direct(body) => body.is_end(),
            Inner::Http2 { stream, .. } => stream.is_end_stream(),
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
