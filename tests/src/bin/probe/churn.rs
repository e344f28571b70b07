//! Connections opened and dropped by the thousand, in every way in which a client can drop one: what it leaves in the
//! agent, if anything, adds up.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde::Serialize;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::client::TlsStream;

use super::client::{Dialler, Server};

/// How long one connection may take.
const ONE: Duration = Duration::from_secs(30);

/// Opens connections, each of which is dropped in the next way of all there are, and prints what came of them.
#[derive(Debug, Args)]
pub(crate) struct Churn {
    #[command(flatten)]
    server: Server,
    /// Path and query, for those that ask.
    path: String,
    /// How many connections.
    #[arg(long, default_value_t = 1000)]
    count: usize,
    /// How many at a time.
    #[arg(long, default_value_t = 32)]
    tasks: usize,
}

/// How a connection is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Way {
    CloseAtOnce,
    ResetAtOnce,
    CloseInTheHello,
    ResetInTheHello,
    CloseAfterTheHandshake,
    ResetInTheHead,
    CloseInTheBody,
    ResetBeforeTheAnswer,
    CloseAfterTheAnswer,
    ResetInAnswersOverHttp2,
}

/// All of them; those that cost little twice, so that most of the time isn't spent on cryptography.
const WAYS: [Way; 14] = [
    Way::CloseAtOnce,
    Way::ResetAtOnce,
    Way::CloseInTheHello,
    Way::ResetInTheHello,
    Way::CloseAfterTheHandshake,
    Way::ResetInTheHead,
    Way::CloseInTheBody,
    Way::CloseAtOnce,
    Way::ResetAtOnce,
    Way::CloseInTheHello,
    Way::ResetInTheHello,
    Way::ResetBeforeTheAnswer,
    Way::CloseAfterTheAnswer,
    Way::ResetInAnswersOverHttp2,
];

/// What came of the connections.
#[derive(Debug, Default, Serialize)]
struct Tally {
    /// Those that went as they were meant to, by way.
    dropped: BTreeMap<Way, usize>,
    /// The others, by what happened.
    failed: BTreeMap<String, usize>,
}

/// What every connection is made with.
struct Means {
    http1: Dialler,
    http2: Dialler,
    hello: Vec<u8>,
    path: String,
}

impl Churn {
    pub(crate) async fn run(self) -> Result<()> {
        let http1 = self.server.dialler("http/1.1")?;
        let means = Arc::new(Means {
            hello: http1.client_hello()?,
            http2: self.server.dialler("h2")?,
            http1,
            path: self.path.clone(),
        });
        let mut tasks = JoinSet::new();
        for first in 0..self.tasks {
            let means = Arc::clone(&means);
            let (count, step) = (self.count, self.tasks);
            tasks.spawn(async move {
                let mut tally = Tally::default();
                for index in (first..count).step_by(step) {
                    let way = WAYS[index % WAYS.len()];
                    let outcome = timeout(ONE, means.drop_one(way)).await.context("it hangs");
                    match outcome.and_then(|outcome| outcome) {
                        Ok(()) => *tally.dropped.entry(way).or_default() += 1,
                        Err(error) => *tally.failed.entry(format!("{way:?}: {error:#}")).or_default() += 1,
                    }
                }
                tally
            });
        }
        let mut tally = Tally::default();
        while let Some(other) = tasks.join_next().await {
            let other = other?;
            for (way, count) in other.dropped {
                *tally.dropped.entry(way).or_default() += count;
            }
            for (what, count) in other.failed {
                *tally.failed.entry(what).or_default() += count;
            }
        }
        super::say(serde_json::to_string(&tally)?);
        Ok(())
    }
}

impl Means {
    async fn drop_one(&self, way: Way) -> Result<()> {
        match way {
            Way::CloseAtOnce => drop(self.http1.tcp().await?),
            Way::ResetAtOnce => reset(&self.http1.tcp().await?)?,
            Way::CloseInTheHello => drop(self.half_hello().await?),
            Way::ResetInTheHello => reset(&self.half_hello().await?)?,
            Way::CloseAfterTheHandshake => drop(self.http1.tls().await?),
            Way::ResetInTheHead => {
                let stream = self.sent("GET / HTTP/1.1\r\nHost: ").await?;
                reset(stream.get_ref().0)?;
            }
            Way::CloseInTheBody => {
                let head = self.head("POST", "Content-Type: application/json\r\nContent-Length: 1000\r\n");
                drop(self.sent(&format!("{head}{{\"half\":")).await?);
            }
            Way::ResetBeforeTheAnswer => {
                let stream = self.sent(&self.head("GET", "")).await?;
                reset(stream.get_ref().0)?;
            }
            Way::CloseAfterTheAnswer => {
                let mut stream = self.sent(&self.head("GET", "Connection: close\r\n")).await?;
                let mut answer = Vec::new();
                stream.read_to_end(&mut answer).await.context("reading the answer")?;
                ensure!(
                    answer.starts_with(b"HTTP/1.1 200"),
                    "answered {:?}",
                    answer.first_chunk::<12>()
                );
                stream.shutdown().await?;
            }
            Way::ResetInAnswersOverHttp2 => self.reset_http2().await?,
        }
        Ok(())
    }

    async fn half_hello(&self) -> Result<TcpStream> {
        let mut stream = self.http1.tcp().await?;
        stream.write_all(&self.hello[..self.hello.len() / 2]).await?;
        Ok(stream)
    }

    async fn sent(&self, text: &str) -> Result<TlsStream<TcpStream>> {
        let mut stream = self.http1.tls().await?;
        stream.write_all(text.as_bytes()).await?;
        stream.flush().await?;
        Ok(stream)
    }

    fn head(&self, method: &str, more: &str) -> String {
        let host = self.http1.authority();
        format!("{method} {} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n", self.path)
    }

    /// Several requests at once; the connection goes as soon as something comes back.
    async fn reset_http2(&self) -> Result<()> {
        let mut stream = self.http2.tls().await?;
        let mut sent = super::attack::frames::opening();
        for stream in [1, 3, 5] {
            sent.extend(super::attack::frames::get(stream, &self.http2.authority(), &self.path));
        }
        stream.write_all(&sent).await?;
        stream.flush().await?;
        let read = stream.read(&mut [0; 256]).await.context("reading the first frames")?;
        ensure!(read > 0, "the connection was closed");
        reset(stream.get_ref().0)
    }
}

/// The connection ends with a reset once it is dropped.
fn reset(stream: &TcpStream) -> Result<()> {
    Ok(stream.set_zero_linger()?)
}
