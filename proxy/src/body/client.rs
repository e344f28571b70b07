//! The body of a request as it comes from the client, over either protocol.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::{runtime::Handle, time::timeout};

use super::upload::{Upload, UploadError};
use crate::{
    http2::{Http2Error, server::RequestBody},
    upgrade::Takeover,
};

/// How much is read of a body that nobody wants to its end, and for how long.
const UNWANTED: u64 = 64 * 1024;
const UNWANTED_WAIT: Duration = Duration::from_secs(1);

/// A request's body.
pub struct ClientBody(Inner);

enum Inner {
    Nothing,
    /// Nothing, and the connection is to be had for another protocol.
    Upgradable(Takeover),
    Http1(Upload),
    Http2(RequestBody),
}

/// Why a client's body has no end.
#[derive(Debug, thiserror::Error)]
pub enum ClientBodyError {
    /// Over HTTP/1.1.
    #[error(transparent)]
    Http1(#[from] UploadError),
    /// Over HTTP/2.
    #[error(transparent)]
    Http2(#[from] Http2Error),
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

impl Drop for ClientBody {
    /// An HTTP/2 stream is reset when its request is let go of before its end, be it answered (RFC 9113, section 8.1). A client
    /// that still sends may lose the answer with it, as curl does before 8.0: so what is small is read first. Over HTTP/1.1 the
    /// connection sees to it.
    fn drop(&mut self) {
        let Inner::Http2(incoming) = std::mem::replace(&mut self.0, Inner::Nothing) else {
            return;
        };
        if incoming.is_end_stream() || incoming.size_hint().lower() > UNWANTED {
            return;
        }
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(timeout(UNWANTED_WAIT, read_off(incoming)));
        }
    }
}

/// Reads what is left, and forgets it.
async fn read_off(mut incoming: RequestBody) {
    let mut left = UNWANTED;
    while let Some(Ok(frame)) = incoming.frame().await {
        let length = frame.data_ref().map_or(0, Bytes::len) as u64;
        let Some(rest) = left.checked_sub(length) else {
            return;
        };
        left = rest;
    }
}

impl From<RequestBody> for ClientBody {
    fn from(incoming: RequestBody) -> Self {
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
