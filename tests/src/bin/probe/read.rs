//! One large answer, read as fast as it comes or no faster than told.

use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use http_body_util::BodyExt as _;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::time::{Instant, sleep_until};

use super::client::Server;

/// Reads one answer and prints `status N`, `read N` once a second, and `end N`.
#[derive(Debug, Args)]
pub(crate) struct Read {
    #[command(flatten)]
    server: Server,
    /// Path and query.
    path: String,
    /// Bytes a second at most.
    #[arg(long)]
    rate: Option<u64>,
    /// Ask over HTTP/2.
    #[arg(long)]
    http2: bool,
}

impl Read {
    pub(crate) async fn run(self) -> Result<()> {
        let answer = if self.http2 {
            let stream = TokioIo::new(self.server.connect("h2").await?);
            let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream)
                .await
                .context("the HTTP/2 handshake")?;
            tokio::spawn(connection);
            sender.send_request(self.server.get(&self.path).await?).await?
        } else {
            let stream = TokioIo::new(self.server.connect("http/1.1").await?);
            let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
            tokio::spawn(connection);
            sender.send_request(self.server.get_http1(&self.path).await?).await?
        };
        super::say(format_args!("status {}", answer.status().as_u16()));

        let start = Instant::now();
        let mut told = start;
        let mut total = 0;
        let mut body = answer.into_body();
        while let Some(frame) = body.frame().await {
            total += frame?.data_ref().map_or(0, |data| data.len() as u64);
            if told.elapsed() >= Duration::from_secs(1) {
                told = Instant::now();
                super::say(format_args!("read {total}"));
            }
            if let Some(rate) = self.rate {
                sleep_until(start + Duration::from_millis(total.saturating_mul(1000) / rate.max(1))).await;
            }
        }
        super::say(format_args!("end {total}"));
        Ok(())
    }
}
