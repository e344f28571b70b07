//! Connections, again and again, each with one request.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use rustls::HandshakeKind;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;
use understudy_bench::durations::Durations;

use super::{
    http::SMALL_TARGET,
    say,
    server::{Dialler, Protocol, Server},
};

/// The most that an answer's head and body take.
const ANSWER: usize = 16 * 1024;

/// Prints how many there were, and how long they took from the dial to the end of the answer.
#[derive(Debug, Args)]
pub(crate) struct Handshakes {
    #[command(flatten)]
    server: Server,
    /// For how long.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// How many at the same time.
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// Resume the session of TLS of the connection before.
    #[arg(long)]
    resume: bool,
}

impl Handshakes {
    pub(crate) async fn run(self) -> Result<()> {
        let begun = Instant::now();
        let end = begun + Duration::try_from_secs_f64(self.seconds)?;
        let mut tasks = JoinSet::new();
        for _ in 0..self.connections {
            // A memory of sessions for each: none takes another's ticket.
            let dialler = self.server.dialler_for(Protocol::Http1, self.resume)?;
            tasks.spawn(again_and_again(dialler, end));
        }
        let mut durations = Durations::default();
        let mut resumed = 0;
        while let Some(done) = tasks.join_next().await {
            let (these, of_them) = done??;
            durations.extend(these);
            resumed += of_them;
        }
        let elapsed = begun.elapsed().as_secs_f64();
        let count = durations.count();
        // The first of each has nothing to resume.
        let resumable = count.saturating_sub(self.connections);
        ensure!(
            !self.resume || resumed >= resumable,
            "{resumed} of {resumable} handshakes were resumed"
        );
        let mut figures = serde_json::to_value(durations.percentiles().context("no handshake was made")?)?;
        figures["handshakes"] = json!(count);
        figures["resumed"] = json!(resumed);
        figures["seconds"] = json!(elapsed);
        #[expect(clippy::cast_precision_loss, reason = "nobody counts so far")]
        let per_second = count as f64 / elapsed;
        figures["per_second"] = json!(per_second);
        say(&figures)
    }
}

async fn again_and_again(dialler: Dialler, end: Instant) -> Result<(Durations, usize)> {
    let request = request(&dialler);
    let mut durations = Durations::default();
    let mut resumed = 0;
    while Instant::now() < end {
        let begun = Instant::now();
        let mut stream = dialler.tls().await?;
        resumed += usize::from(stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed));
        stream.write_all(&request).await?;
        stream.flush().await?;
        read(&mut stream).await?;
        durations.push(begun.elapsed());
        close(stream).await?;
    }
    Ok((durations, resumed))
}

/// The small object's GET.
fn request(dialler: &Dialler) -> Vec<u8> {
    let mut request = format!("GET {SMALL_TARGET} HTTP/1.1\r\nhost: {}\r\n", dialler.host).into_bytes();
    for (name, value) in dialler.headers.iter() {
        request.extend_from_slice(name.as_str().as_bytes());
        request.extend_from_slice(b": ");
        request.extend_from_slice(value.as_bytes());
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    request
}

/// Reads a whole answer of 200 that says its length.
async fn read(stream: &mut TlsStream<TcpStream>) -> Result<()> {
    let mut answer = Vec::with_capacity(4096);
    loop {
        if let Some(length) = whole(&answer)? {
            ensure!(answer.len() <= length, "more came than was asked for");
            if answer.len() == length {
                return Ok(());
            }
        }
        ensure!(answer.len() < ANSWER, "the answer has no end");
        ensure!(stream.read_buf(&mut answer).await? > 0, "the answer breaks off");
    }
}

/// How long the answer is, head and body, once its head is there.
fn whole(answer: &[u8]) -> Result<Option<usize>> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head) = response.parse(answer)? else {
        return Ok(None);
    };
    ensure!(response.code == Some(200), "answered {:?}", response.code);
    let length = response
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("content-length"))
        .context("the answer doesn't say its length")?;
    let body: usize = std::str::from_utf8(length.value)?.trim().parse()?;
    Ok(Some(head + body))
}

/// Closes for good: ports that wait out their minute would run out within seconds.
async fn close(mut stream: TlsStream<TcpStream>) -> Result<()> {
    stream.shutdown().await?;
    socket2::SockRef::from(stream.get_ref().0).set_linger(Some(Duration::ZERO))?;
    Ok(())
}
