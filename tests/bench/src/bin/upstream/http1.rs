//! HTTP/1.1, read by httparse and written as it stands: no client is as quick as to wait for this.

use std::{
    io::{self, Write as _},
    sync::{Arc, LazyLock, atomic::Ordering},
};

use anyhow::{Result, bail};
use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;
use understudy_bench::content;
use understudy_tests::apiserver::Exec;

use super::{
    Open, Shared,
    answer::{REFUSAL, SMALL, Wanted},
    events,
    identity::Shown,
};

/// Headers at most.
const HEADERS: usize = 64;
/// A head at most.
const HEAD: usize = 64 * 1024;
/// What is written of a list at once.
const CHUNK: usize = 64 * 1024;

/// The small object's answer, head and all.
static SMALL_ANSWER: LazyLock<Bytes> = LazyLock::new(|| whole("200 OK", &SMALL));

/// What a request's head says.
struct Head {
    length: usize,
    wanted: Wanted,
    admitted: bool,
    /// Bytes of the body that follow.
    body: usize,
    /// No other request follows.
    last: bool,
    /// Of a request to switch protocols.
    exec: Option<Result<Exec, ()>>,
}

/// Serves the requests of a connection, one after the other.
pub(crate) async fn serve(mut stream: TlsStream<TcpStream>, shared: &Arc<Shared>) -> Result<()> {
    let mut buffer = BytesMut::with_capacity(2048);
    loop {
        let Some(head) = read_head(&buffer, shared)? else {
            if buffer.len() > HEAD || stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
            continue;
        };
        buffer.advance(head.length);
        discard(&mut stream, &mut buffer, head.body).await?;
        if !head.admitted {
            shared.counts.refused.fetch_add(1, Ordering::Relaxed);
            stream.write_all(&whole("403 Forbidden", REFUSAL)).await?;
            stream.flush().await?;
            continue;
        }
        shared.counts.requests.fetch_add(1, Ordering::Relaxed);
        match head.wanted {
            Wanted::Small => stream.write_all(&SMALL_ANSWER).await?,
            Wanted::Health => stream.write_all(&whole("200 OK", b"ok")).await?,
            Wanted::List { bytes, chunked } => list(&mut stream, bytes, chunked).await?,
            Wanted::Watch => return watch(stream, shared).await,
            Wanted::Switch => match head.exec {
                Some(Ok(exec)) => return switch(stream, buffer, exec).await,
                _ => stream.write_all(&whole("400 Bad Request", REFUSAL)).await?,
            },
        }
        stream.flush().await?;
        if head.last {
            stream.shutdown().await?;
            return Ok(());
        }
    }
}

/// The first head in the buffer; none where it isn't all there.
fn read_head(buffer: &[u8], shared: &Shared) -> Result<Option<Head>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(length) = request.parse(buffer)? else {
        return Ok(None);
    };
    let wanted = Wanted::of(request.path.unwrap_or_default());
    let mut shown = Shown::default();
    let mut body = 0;
    let mut last = request.version == Some(0);
    for header in request.headers.iter() {
        shared.expected.look(&mut shown, header.name, header.value);
        match header.name.len() {
            14 if header.name.eq_ignore_ascii_case("content-length") => {
                body = std::str::from_utf8(header.value)?.trim().parse()?;
            }
            17 if header.name.eq_ignore_ascii_case("transfer-encoding") => bail!("no load sends such a body"),
            10 if header.name.eq_ignore_ascii_case("connection") => {
                last = match header.value.to_ascii_lowercase().as_slice() {
                    b"close" => true,
                    b"keep-alive" => false,
                    _ => last,
                };
            }
            _ => {}
        }
    }
    let exec = (wanted == Wanted::Switch).then(|| exec(&request));
    Ok(Some(Head {
        length,
        admitted: wanted == Wanted::Health || shared.expected.admits(&shown),
        wanted,
        body,
        last,
        exec,
    }))
}

fn exec(request: &httparse::Request<'_, '_>) -> Result<Exec, ()> {
    let uri = request.path.unwrap_or_default().parse().map_err(drop)?;
    let mut headers = HeaderMap::new();
    for header in request.headers.iter() {
        let name = HeaderName::from_bytes(header.name.as_bytes()).map_err(drop)?;
        headers.append(name, HeaderValue::from_bytes(header.value).map_err(drop)?);
    }
    Exec::agree(&uri, &headers).map_err(drop)
}

async fn discard(stream: &mut TlsStream<TcpStream>, buffer: &mut BytesMut, mut body: usize) -> Result<()> {
    loop {
        let here = body.min(buffer.len());
        buffer.advance(here);
        body -= here;
        if body == 0 {
            return Ok(());
        }
        if stream.read_buf(buffer).await? == 0 {
            bail!("the body breaks off");
        }
    }
}

/// An answer with its length.
fn whole(status: &str, body: &[u8]) -> Bytes {
    let mut answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    answer.extend_from_slice(body);
    answer.into()
}

async fn list(stream: &mut TlsStream<TcpStream>, bytes: u64, chunked: bool) -> io::Result<()> {
    let framing = if chunked {
        "transfer-encoding: chunked".to_owned()
    } else {
        format!("content-length: {bytes}")
    };
    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n{framing}\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let mut sent = 0;
    let mut framed = Vec::with_capacity(CHUNK + 16);
    while sent < bytes {
        let left = usize::try_from(bytes - sent).unwrap_or(usize::MAX);
        let data = content::at(sent, CHUNK.min(left));
        if chunked {
            framed.clear();
            write!(framed, "{:x}\r\n", data.len())?;
            framed.extend_from_slice(&data);
            framed.extend_from_slice(b"\r\n");
            stream.write_all(&framed).await?;
        } else {
            stream.write_all(&data).await?;
        }
        sent += data.len() as u64;
    }
    if chunked {
        stream.write_all(b"0\r\n\r\n").await?;
    }
    Ok(())
}

async fn watch(mut stream: TlsStream<TcpStream>, shared: &Shared) -> Result<()> {
    let mut events = shared.events.follow();
    let _open = Open::count(&shared.counts.watches);
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await?;
    stream.flush().await?;
    let mut ignored = [0; 64];
    loop {
        tokio::select! {
            event = events::next(&mut events) => {
                let Some(line) = event else { return Ok(()) };
                let mut chunk = format!("{:x}\r\n", line.len()).into_bytes();
                chunk.extend_from_slice(&line);
                chunk.extend_from_slice(b"\r\n");
                stream.write_all(&chunk).await?;
                stream.flush().await?;
            }
            read = stream.read(&mut ignored) => {
                if read? == 0 {
                    return Ok(());
                }
            }
        }
    }
}

async fn switch(mut stream: TlsStream<TcpStream>, glued: BytesMut, exec: Exec) -> Result<()> {
    let mut head = b"HTTP/1.1 101 Switching Protocols\r\n".to_vec();
    for (name, value) in exec.headers() {
        write!(head, "{name}: ")?;
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    stream.write_all(&head).await?;
    stream.flush().await?;
    Box::pin(exec.run(Glued { glued, stream })).await;
    Ok(())
}

/// A connection, of which some has been read already.
struct Glued<S> {
    glued: BytesMut,
    stream: S,
}

impl<S: AsyncRead + Unpin> AsyncRead for Glued<S> {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        if self.glued.is_empty() {
            return std::pin::Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let some = self.glued.len().min(buffer.remaining());
        buffer.put_slice(&self.glued.split_to(some));
        std::task::Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Glued<S> {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<io::Result<usize>> {
        std::pin::Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
