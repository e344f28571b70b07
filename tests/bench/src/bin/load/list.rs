//! Large answers, one after the other, of which every byte is checked.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytes::Bytes;
use clap::Args;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::json;
use tokio::task::JoinSet;
use understudy_bench::content;

use super::{http::Connection, say, server::Server};

/// Prints how much came, and how fast.
#[derive(Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    server: Server,
    /// How long each answer is.
    #[arg(long, default_value_t = 104_857_600)]
    bytes: u64,
    /// For how long new ones are asked for; each is read to its end.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// On how many connections.
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// Answers that don't say their length beforehand.
    #[arg(long)]
    chunked: bool,
}

/// The target of a list of so many bytes.
pub(crate) fn target(bytes: u64, chunked: bool) -> String {
    format!("/api/v1/namespaces/bench/configmaps?bytes={bytes}&chunked={chunked}")
}

/// An answer as it is read.
pub(crate) struct Reading {
    body: Incoming,
    read: u64,
}

impl Reading {
    pub(crate) fn of(body: Incoming) -> Self {
        Self { body, read: 0 }
    }

    /// How much has been read.
    pub(crate) fn so_far(&self) -> u64 {
        self.read
    }

    /// Reads what comes next, and says whether anything did.
    pub(crate) async fn next(&mut self) -> Result<bool> {
        let Some(frame) = self.body.frame().await else {
            return Ok(false);
        };
        let frame = frame?;
        let data = frame.data_ref().map_or(&[][..], Bytes::as_ref);
        ensure!(
            content::is_at(self.read, data),
            "wrong bytes at {} or after it",
            self.read
        );
        self.read += data.len() as u64;
        Ok(true)
    }
}

impl List {
    pub(crate) async fn run(self) -> Result<()> {
        let begun = Instant::now();
        let end = begun + Duration::try_from_secs_f64(self.seconds)?;
        let dialler = self.server.dialler(true)?;
        let mut tasks = JoinSet::new();
        for _ in 0..self.connections {
            let (dialler, bytes) = (dialler.clone(), self.bytes);
            let target = target(bytes, self.chunked);
            tasks.spawn(async move {
                let mut connection = Connection::open(&dialler).await?;
                let mut requests = 0;
                while Instant::now() < end {
                    let mut reading = Reading::of(connection.get(&target).await?.into_body());
                    while reading.next().await? {}
                    let read = reading.so_far();
                    ensure!(read == bytes, "{read} bytes came in place of {bytes}");
                    requests += 1;
                }
                Ok(requests)
            });
        }
        let mut requests: u64 = 0;
        while let Some(done) = tasks.join_next().await {
            requests += done??;
        }
        let elapsed = begun.elapsed().as_secs_f64();
        let bytes = requests * self.bytes;
        say(&json!({
            "bytes": bytes,
            "requests": requests,
            "seconds": elapsed,
            "mb_per_second": megabytes(bytes) / elapsed,
        }))
    }
}

/// So many millions of bytes.
#[expect(clippy::cast_precision_loss, reason = "nobody counts so far")]
pub(crate) fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
