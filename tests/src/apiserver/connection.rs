//! Connections: the accept loop, TLS, HTTP/1.1 or HTTP/2 as ALPN chose, and the handles by which a fault can break
//! one. What a request gets is `serve`'s.

use std::{
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use hyper::{server::conn::http1, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::Notify,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;

use super::{Shared, client_ca::Acceptors, record::Origin, serve, sync::lock};

/// What is known of one open connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionInfo {
    /// As in [`super::Recorded::connection`].
    pub id: u64,
    /// The client's address.
    pub peer: SocketAddr,
    /// The protocol that ALPN chose; empty if the client offered none.
    pub alpn: String,
    /// The server name that the client asked for.
    pub server_name: Option<String>,
    /// Requests open now.
    pub streams: usize,
    /// The most that were ever open at once.
    pub peak_streams: usize,
    /// All requests so far.
    pub requests: u64,
}

/// A connection, as its requests and faults see it.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) id: u64,
    pub(crate) peer: SocketAddr,
    pub(crate) local: SocketAddr,
    alpn: String,
    server_name: Option<String>,
    /// What the client showed in the handshake; that it has the key is all that was looked at.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    streams: AtomicUsize,
    peak: AtomicUsize,
    requests: AtomicU64,
    aborted: AtomicBool,
    /// Ends everything on this connection at once.
    pub(crate) stop: CancellationToken,
    goaway: Notify,
    after_101: Mutex<Option<Bytes>>,
}

impl Connection {
    pub(crate) fn info(&self) -> ConnectionInfo {
        ConnectionInfo {
            id: self.id,
            peer: self.peer,
            alpn: self.alpn.clone(),
            server_name: self.server_name.clone(),
            streams: self.streams.load(Ordering::Relaxed),
            peak_streams: self.peak.load(Ordering::Relaxed),
            requests: self.requests.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn origin(&self) -> Origin {
        Origin {
            connection: self.id,
            peer: self.peer,
            local: self.local,
        }
    }

    /// Breaks it with a TCP reset.
    pub(crate) fn reset(&self) {
        self.aborted.store(true, Ordering::Release);
        self.stop.cancel();
    }

    /// Says GOAWAY (HTTP/2) or `Connection: close` (HTTP/1.1); open requests go on.
    pub(crate) fn go_away(&self) {
        self.goaway.notify_one();
    }

    /// Bytes that will leave in the same write as the head of the next 101.
    pub(crate) fn glue_to_101(&self, bytes: Bytes) {
        *lock(&self.after_101) = Some(bytes);
    }

    /// Counts a request in until the guard is dropped; says how many are open.
    pub(crate) fn enter(self: &Arc<Self>) -> (StreamGuard, usize) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let open = self.streams.fetch_add(1, Ordering::Relaxed) + 1;
        self.peak.fetch_max(open, Ordering::Relaxed);
        (StreamGuard(self.clone()), open)
    }
}

/// A request that is open on its connection.
#[derive(Debug)]
pub(crate) struct StreamGuard(Arc<Connection>);

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Accepts until the server stops.
pub(crate) async fn accept(listener: TcpListener, acceptors: Arc<Acceptors>, shared: Arc<Shared>) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shared.stop.cancelled() => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, mostly: others must close theirs before this can go on.
                tracing::warn!(%error, "accept");
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                continue;
            }
        };
        let (acceptors, shared) = (acceptors.clone(), shared.clone());
        tokio::spawn(async move {
            let tls = acceptors.current(&shared).await;
            if let Err(error) = connect(stream, peer, &tls, shared).await {
                tracing::debug!(%peer, %error, "handshake");
            }
        });
    }
}

async fn connect(stream: TcpStream, peer: SocketAddr, tls: &TlsAcceptor, shared: Arc<Shared>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let local = stream.local_addr()?;
    let stream = tls.accept(stream).await?;
    let session = stream.get_ref().1;
    let alpn = session.alpn_protocol().unwrap_or_default().to_vec();
    let connection = Arc::new(Connection {
        id: shared.next_connection.fetch_add(1, Ordering::Relaxed) + 1,
        peer,
        local,
        server_name: session.server_name().map(ToOwned::to_owned),
        alpn: String::from_utf8_lossy(&alpn).into_owned(),
        chain: session
            .peer_certificates()
            .unwrap_or_default()
            .iter()
            .map(|certificate| certificate.clone().into_owned())
            .collect(),
        streams: AtomicUsize::new(0),
        peak: AtomicUsize::new(0),
        requests: AtomicU64::new(0),
        aborted: AtomicBool::new(false),
        stop: shared.stop.child_token(),
        goaway: Notify::new(),
        after_101: Mutex::new(None),
    });
    lock(&shared.connections).insert(connection.id, connection.clone());
    let io = Wire {
        shared: shared.clone(),
        stream,
        connection: connection.clone(),
        pending: BytesMut::new(),
    };
    if alpn == b"h2" {
        serve_http2(io, &connection, &shared).await;
    } else {
        serve_http1(io, &connection, &shared).await;
    }
    Ok(())
}

async fn serve_http2(io: Wire, connection: &Arc<Connection>, shared: &Arc<Shared>) {
    let max_streams = lock(&shared.settings).max_streams;
    let mut serving = pin!(
        http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(max_streams)
            // As Go's server, which doesn't count what was on its way on a stream when that was answered early.
            .max_local_error_reset_streams(None)
            .serve_connection(TokioIo::new(io), {
                let (connection, shared) = (connection.clone(), shared.clone());
                service_fn(move |request| serve::serve(shared.clone(), connection.clone(), request))
            })
    );
    loop {
        tokio::select! {
            result = serving.as_mut() => return ended(connection, result),
            () = connection.goaway.notified() => serving.as_mut().graceful_shutdown(),
            () = connection.stop.cancelled() => return,
        }
    }
}

async fn serve_http1(io: Wire, connection: &Arc<Connection>, shared: &Arc<Shared>) {
    let mut serving = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .serve_connection(TokioIo::new(io), {
                let (connection, shared) = (connection.clone(), shared.clone());
                service_fn(move |request| serve::serve(shared.clone(), connection.clone(), request))
            })
            .with_upgrades()
    );
    loop {
        tokio::select! {
            result = serving.as_mut() => return ended(connection, result),
            () = connection.goaway.notified() => serving.as_mut().graceful_shutdown(),
            () = connection.stop.cancelled() => return,
        }
    }
}

fn ended(connection: &Connection, result: hyper::Result<()>) {
    if let Err(error) = result {
        tracing::debug!(connection = connection.id, %error, "connection ended");
    }
}

/// The TLS stream, with the two faults that only the wire can make: a reset in place of a close, and bytes glued
/// to the head of a 101.
struct Wire {
    shared: Arc<Shared>,
    stream: TlsStream<TcpStream>,
    connection: Arc<Connection>,
    pending: BytesMut,
}

impl Wire {
    fn poll_pending(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.pending.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.pending))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.pending.advance(written);
        }
        Poll::Ready(Ok(()))
    }

    /// Takes the whole of a 101's head and the glued bytes, to leave in one record.
    fn glue(&mut self, head: &[u8]) -> bool {
        if !head.starts_with(b"HTTP/1.1 101") {
            return false;
        }
        let Some(glued) = lock(&self.connection.after_101).take() else {
            return false;
        };
        self.pending.extend_from_slice(head);
        self.pending.extend_from_slice(&glued);
        true
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_pending(cx))?;
        if self.glue(buf) {
            return Poll::Ready(Ok(buf.len()));
        }
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_pending(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_pending(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if self.connection.aborted.load(Ordering::Acquire)
            && let Err(error) = self.stream.get_ref().0.set_zero_linger()
        {
            tracing::warn!(%error, "this will be a close, not a reset");
        }
        self.connection.stop.cancel();
        lock(&self.shared.connections).remove(&self.connection.id);
    }
}
