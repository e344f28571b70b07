//! A connection upstream as one of those that its session may have: its place is given back when it is closed, whatever
//! it was used for.

use std::{
    io,
    pin::Pin,
    sync::Weak,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::OwnedSemaphorePermit,
};

use super::pool::Shared;
use crate::{metrics::OpenStream, tls};

/// A place among the connections that a session may have.
#[derive(Debug)]
pub(super) struct Permit {
    /// None while it is being given back.
    place: Option<OwnedSemaphorePermit>,
    home: Weak<Shared>,
    _counted: OpenStream,
}

impl Permit {
    pub(super) fn new(permit: OwnedSemaphorePermit, home: Weak<Shared>, counted: OpenStream) -> Self {
        Self {
            place: Some(permit),
            home,
            _counted: counted,
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        // Given back first: whoever hears of it finds it.
        self.place = None;
        if let Some(home) = self.home.upgrade() {
            home.connection_closed();
        }
    }
}

/// A verified connection and its place.
#[derive(Debug)]
pub(super) struct Socket {
    io: tls::Dialled,
    _permit: Permit,
}

impl Socket {
    pub(super) fn new(io: tls::Dialled, permit: Permit) -> Self {
        Self { io, _permit: permit }
    }

    /// Whether both sides have settled on HTTP/2.
    pub(super) fn is_http2(&self) -> bool {
        self.io.is_http2()
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
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
