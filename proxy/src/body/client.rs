//! The body of a request as it comes from the client, over either protocol.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::upload::{Upload, UploadError};
use crate::upgrade::Takeover;

/// A request's body.
pub struct ClientBody(Inner);

enum Inner {
    Nothing,
    /// Nothing, and the connection is to be had for another protocol.
    Upgradable(Takeover),
    Http1(Upload),
    Http2(Incoming),
}

/// Why a client's body has no end.
#[derive(Debug, thiserror::Error)]
pub enum ClientBodyError {
    /// Over HTTP/1.1.
    #[error(transparent)]
    Http1(#[from] UploadError),
    /// Over HTTP/2.
    #[error(transparent)]
    Http2(#[from] hyper::Error),
}

impl ClientBody {
    /// None at all.
    pub(crate) fn nothing() -> Self {
        Self(Inner::Nothing)
    }

    /// None, on a connection that can go on in another protocol.
    pub(crate) fn upgradable(takeover: Takeover) -> Self {
        Self(Inner::Upgradable(takeover))
    }

    /// What the connection goes on as, where it can. It can once.
    pub(crate) fn takeover(&mut self) -> Option<Takeover> {
        match std::mem::replace(&mut self.0, Inner::Nothing) {
            Inner::Upgradable(takeover) => Some(takeover),
            other => {
                self.0 = other;
                None
            }
        }
    }
}

impl From<Incoming> for ClientBody {
    fn from(incoming: Incoming) -> Self {
        Self(Inner::Http2(incoming))
    }
}

impl From<Upload> for ClientBody {
    fn from(upload: Upload) -> Self {
        Self(Inner::Http1(upload))
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = ClientBodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ClientBodyError>>> {
        match &mut self.0 {
            Inner::Nothing | Inner::Upgradable(_) => Poll::Ready(None),
            Inner::Http1(upload) => Pin::new(upload).poll_frame(cx).map_err(Into::into),
            Inner::Http2(incoming) => Pin::new(incoming).poll_frame(cx).map_err(Into::into),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Inner::Nothing | Inner::Upgradable(_) => true,
            Inner::Http1(upload) => upload.is_end_stream(),
            Inner::Http2(incoming) => incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Inner::Nothing | Inner::Upgradable(_) => SizeHint::with_exact(0),
            Inner::Http1(upload) => upload.size_hint(),
            Inner::Http2(incoming) => incoming.size_hint(),
        }
    }
}
