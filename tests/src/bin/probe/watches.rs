//! Many watches over one HTTP/2 connection, and which events reach all of them.

use anyhow::{Context as _, Result, bail};
use clap::Args;
use http_body_util::{BodyExt as _, Empty};
use hyper::{body::Incoming, client::conn::http2::SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{sync::mpsc, task::JoinSet};

use super::client::Server;

/// Opens the watches, prints `open N` when all have answered, then `saw MARKER N` as each marker has come to all of
/// them, in the order given.
#[derive(Debug, Args)]
pub(crate) struct Watches {
    #[command(flatten)]
    server: Server,
    /// Path and query of the watch.
    path: String,
    /// How many.
    #[arg(long)]
    count: usize,
    /// A word of an event that every watch must get.
    #[arg(long = "marker", required = true)]
    markers: Vec<String>,
}

enum News {
    Open,
    Saw(usize),
}

impl Watches {
    pub(crate) async fn run(self) -> Result<()> {
        let stream = TokioIo::new(self.server.connect("h2").await?);
        let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream)
            .await
            .context("the HTTP/2 handshake")?;
        tokio::spawn(connection);

        let (news, mut heard) = mpsc::unbounded_channel();
        let mut watches = JoinSet::new();
        for _ in 0..self.count {
            let request = self.server.get(&self.path).await?;
            watches.spawn(watch(sender.clone(), request, self.markers.clone(), news.clone()));
        }
        drop(news);

        let mut open = 0;
        let mut saw = vec![0; self.markers.len()];
        loop {
            tokio::select! {
                Some(word) = heard.recv() => match word {
                    News::Open => {
                        open += 1;
                        if open == self.count {
                            super::say(format_args!("open {open}"));
                        }
                    }
                    News::Saw(marker) => {
                        saw[marker] += 1;
                        if saw[marker] == self.count {
                            super::say(format_args!("saw {} {}", self.markers[marker], self.count));
                        }
                    }
                },
                Some(ended) = watches.join_next() => ended??,
                else => return Ok(()),
            }
        }
    }
}

async fn watch(
    mut sender: SendRequest<Empty<&'static [u8]>>,
    request: http::Request<Empty<&'static [u8]>>,
    markers: Vec<String>,
    news: mpsc::UnboundedSender<News>,
) -> Result<()> {
    sender.ready().await?;
    let answer = sender.send_request(request).await?;
    if !answer.status().is_success() {
        bail!("a watch was answered {}", answer.status());
    }
    news.send(News::Open)?;
    let mut lines = Lines {
        body: answer.into_body(),
        rest: Vec::new(),
    };
    for (index, marker) in markers.iter().enumerate() {
        loop {
            let line = lines.next().await?.context("a watch ended before it saw everything")?;
            if line.contains(marker.as_str()) {
                break;
            }
        }
        news.send(News::Saw(index))?;
    }
    Ok(())
}

struct Lines {
    body: Incoming,
    rest: Vec<u8>,
}

impl Lines {
    async fn next(&mut self) -> Result<Option<String>> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Ok(Some(String::from_utf8(line)?));
            }
            let Some(frame) = self.body.frame().await else {
                return Ok(None);
            };
            if let Some(data) = frame?.data_ref() {
                self.rest.extend_from_slice(data);
            }
        }
    }
}
