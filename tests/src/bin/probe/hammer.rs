//! Short requests without a pause, each on a connection of its own: what an upgrade of the agent must not show to.

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use clap::Args;
use http_body_util::BodyExt as _;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::Serialize;
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};

use super::client::Server;

/// How long one connection with its request may take.
const ONE: Duration = Duration::from_secs(10);

/// Asks for a path again and again, prints `begun` after the first answer, and at the end what came of all.
#[derive(Debug, Args)]
pub(crate) struct Hammer {
    #[command(flatten)]
    server: Server,
    /// Path and query.
    path: String,
    /// For how long, in seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// How many at a time.
    #[arg(long, default_value_t = 4)]
    tasks: usize,
}

/// What came of the requests.
#[derive(Debug, Default, Serialize)]
struct Tally {
    /// Answers, by status.
    answered: BTreeMap<u16, usize>,
    /// Connections that the kernel refused (EPERM).
    refused: usize,
    /// Everything else that isn't an answer, by what it was.
    failed: BTreeMap<String, usize>,
}

impl Hammer {
    pub(crate) async fn run(self) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(self.seconds);
        let hammer = Arc::new(self);
        let mut tally = Tally::default();
        tally.count(hammer.once("h2").await);
        super::say("begun");
        let mut tasks = JoinSet::new();
        for index in 0..hammer.tasks {
            let hammer = Arc::clone(&hammer);
            let protocol = if index % 2 == 0 { "h2" } else { "http/1.1" };
            tasks.spawn(async move {
                let mut tally = Tally::default();
                while Instant::now() < end {
                    tally.count(hammer.once(protocol).await);
                }
                tally
            });
        }
        while let Some(other) = tasks.join_next().await {
            tally.add(other?);
        }
        super::say(serde_json::to_string(&tally)?);
        Ok(())
    }

    async fn once(&self, protocol: &str) -> Result<u16> {
        timeout(ONE, self.ask(protocol)).await.context("no answer in time")?
    }

    async fn ask(&self, protocol: &str) -> Result<u16> {
        let stream = TokioIo::new(self.server.connect(protocol).await?);
        let answer = if protocol == "h2" {
            let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await?;
            tokio::spawn(connection);
            sender.send_request(self.server.get(&self.path).await?).await?
        } else {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
            tokio::spawn(connection);
            sender.send_request(self.server.get_http1(&self.path).await?).await?
        };
        let code = answer.status().as_u16();
        answer.into_body().collect().await.context("reading the answer")?;
        Ok(code)
    }
}

impl Tally {
    fn count(&mut self, outcome: Result<u16>) {
        match outcome {
            Ok(code) => *self.answered.entry(code).or_default() += 1,
            Err(error) if is_refusal(&error) => self.refused += 1,
            Err(error) => *self.failed.entry(format!("{error:#}")).or_default() += 1,
        }
    }

    fn add(&mut self, other: Self) {
        for (code, count) in other.answered {
            *self.answered.entry(code).or_default() += count;
        }
        self.refused += other.refused;
        for (what, count) in other.failed {
            *self.failed.entry(what).or_default() += count;
        }
    }
}

fn is_refusal(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|error| error.kind() == io::ErrorKind::PermissionDenied)
}
