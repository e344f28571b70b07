//! The API server of the benchmark: as fast as can be, so that what stands before it is what is measured. It answers
//! what its loads ask for and nothing else, but that rightly; and it refuses every request that doesn't carry the
//! identity that the proxies are to put on, so that a proxy that does less than its work gets no figures.

mod answer;
mod control;
mod events;
mod http1;
mod http2;
mod identity;

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use rustls::{
    HandshakeKind, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use serde::Serialize;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime,
};
use tokio_rustls::TlsAcceptor;
use understudy_bench::room;

use self::{events::Events, identity::Expected};

/// Connections that there must be room for, and more where the limit allows it: ten thousand watches through a proxy that
/// opens a connection for each.
const CONNECTIONS: u64 = 12_000;
/// What may wait to be accepted.
const BACKLOG: i32 = 16_384;

/// Serves until it is ended.
#[derive(Debug, Parser)]
struct Arguments {
    /// An address to listen on.
    #[arg(long, required = true)]
    listen: Vec<SocketAddr>,
    /// The certificate chain, in PEM.
    #[arg(long)]
    cert: PathBuf,
    /// Its key, in PEM.
    #[arg(long)]
    key: PathBuf,
    /// The file with the one bearer token that is let in.
    #[arg(long)]
    token_file: PathBuf,
    /// Whom every request is to impersonate.
    #[arg(long)]
    user: Option<String>,
    /// The unix socket on which events are ordered and counts are asked for.
    #[arg(long)]
    control: PathBuf,
    /// How many threads serve.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// How many streams a client may have open on one HTTP/2 connection.
    #[arg(long, default_value_t = 250)]
    max_streams: u32,
}

/// What all connections share.
#[derive(Debug)]
struct Shared {
    expected: Expected,
    events: Events,
    counts: Counts,
    max_streams: u32,
}

/// What has come so far.
#[derive(Debug, Default, Serialize)]
struct Counts {
    /// Requests that were answered as they asked.
    requests: AtomicU64,
    /// Requests that lacked the identity, carried another one, or couldn't be read.
    refused: AtomicU64,
    /// Connections accepted.
    connections: AtomicU64,
    /// Of these, those that are open.
    open: AtomicU64,
    /// Watches that are open.
    watches: AtomicU64,
    /// Handshakes with a certificate.
    handshakes_full: AtomicU64,
    /// Handshakes that resumed an earlier one's session.
    handshakes_resumed: AtomicU64,
}

/// Something that is counted while it is open.
#[derive(Debug)]
struct Open<'a>(&'a AtomicU64);

impl<'a> Open<'a> {
    fn count(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    room::make_for(CONNECTIONS)?;
    let tls = TlsAcceptor::from(Arc::new(tls(&arguments)?));
    let shared = Arc::new(Shared {
        expected: Expected::new(&arguments.token_file, arguments.user.clone())?,
        events: Events::default(),
        counts: Counts::default(),
        max_streams: arguments.max_streams,
    });
    let mut threads = Vec::new();
    for number in 1..arguments.threads {
        let listeners = listen(&arguments.listen)?;
        let (tls, shared) = (tls.clone(), Arc::clone(&shared));
        let thread = thread::Builder::new().name(format!("upstream-{number}"));
        threads.push(thread.spawn(move || runtime()?.block_on(serve(listeners, tls, shared)))?);
    }
    let listeners = listen(&arguments.listen)?;
    runtime()?.block_on(async {
        let control = control::listen(&arguments.control)?;
        tokio::spawn(control::serve(control, Arc::clone(&shared)));
        ready(&arguments.listen)?;
        serve(listeners, tls, shared).await
    })
}

fn runtime() -> Result<runtime::Runtime> {
    Ok(runtime::Builder::new_current_thread().enable_all().build()?)
}

/// Says where it listens.
#[expect(clippy::print_stdout, reason = "whoever started it waits for this line")]
fn ready(addresses: &[SocketAddr]) -> Result<()> {
    println!("{}", serde_json::to_string(&serde_json::json!({ "ready": addresses }))?);
    Ok(())
}

fn tls(arguments: &Arguments) -> Result<ServerConfig> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&arguments.cert)
        .and_then(Iterator::collect)
        .with_context(|| format!("reading {}", arguments.cert.display()))?;
    let key =
        PrivateKeyDer::from_pem_file(&arguments.key).with_context(|| format!("reading {}", arguments.key.display()))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    Ok(config)
}

/// Listeners of a thread's own, among which the kernel shares connections out.
fn listen(addresses: &[SocketAddr]) -> Result<Vec<std::net::TcpListener>> {
    let listen = |address: &SocketAddr| -> std::io::Result<std::net::TcpListener> {
        let socket = Socket::new(Domain::for_address(*address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&(*address).into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    addresses
        .iter()
        .map(|address| listen(address).with_context(|| format!("listening on {address}")))
        .collect()
}

async fn serve(listeners: Vec<std::net::TcpListener>, tls: TlsAcceptor, shared: Arc<Shared>) -> Result<()> {
    let mut accepting = tokio::task::JoinSet::new();
    for listener in listeners {
        let listener = TcpListener::from_std(listener)?;
        accepting.spawn(accept(listener, tls.clone(), Arc::clone(&shared)));
    }
    while let Some(ended) = accepting.join_next().await {
        ended??;
    }
    bail!("it was given no address to listen on")
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, shared: Arc<Shared>) -> Result<()> {
    loop {
        let (stream, _) = listener.accept().await.context("accepting a connection")?;
        let (tls, shared) = (tls.clone(), Arc::clone(&shared));
        tokio::spawn(async move {
            // A client that goes, in whatever way, is none of the others' business.
            let _gone = connection(stream, tls, &shared).await;
        });
    }
}

async fn connection(stream: TcpStream, tls: TlsAcceptor, shared: &Arc<Shared>) -> Result<()> {
    shared.counts.connections.fetch_add(1, Ordering::Relaxed);
    let _open = Open::count(&shared.counts.open);
    stream.set_nodelay(true)?;
    let stream = tls.accept(stream).await?;
    let session = stream.get_ref().1;
    let kind = match session.handshake_kind() {
        Some(HandshakeKind::Resumed) => &shared.counts.handshakes_resumed,
        _ => &shared.counts.handshakes_full,
    };
    kind.fetch_add(1, Ordering::Relaxed);
    if session.alpn_protocol() == Some(b"h2") {
        http2::serve(stream, shared).await
    } else {
        http1::serve(stream, shared).await
    }
}
