//! Short requests without a pause, each on a connection of its own: what an upgrade of the agent must not show to.

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use clap::Args;
use http_body_util::BodyExt as _;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde::Serialize;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
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
    /// How long each rests after an answer, in milliseconds.
    #[arg(long, default_value_t = 0)]
    rest: u64,
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
    /// How long answers took from before the dial to their end, in microseconds: half of them no longer than this.
    p50: u64,
    /// And 99 of a hundred.
    p99: u64,
    #[serde(skip)]
    took: Vec<u64>,
}

impl Hammer {
    pub(crate) async fn run(self) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(self.seconds);
        let hammer = Arc::new(self);
        let mut tally = Tally::default();
        tally.count(hammer.once("h2").await, Duration::ZERO);
        super::say("begun");
        let mut tasks = JoinSet::new();
        for index in 0..hammer.tasks {
            let hammer = Arc::clone(&hammer);
            let protocol = if index % 2 == 0 { "h2" } else { "http/1.1" };
            tasks.spawn(async move {
                let mut tally = Tally::default();
                while Instant::now() < end {
                    let begun = Instant::now();
                    let outcome = hammer.once(protocol).await;
                    tally.count(outcome, begun.elapsed());
                    if hammer.rest > 0 {
                        sleep(Duration::from_millis(hammer.rest)).await;
                    }
                }
                tally
            });
        }
        while let Some(other) = tasks.join_next().await {
            tally.add(other?);
        }
        tally.rank();
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
    fn count(&mut self, outcome: Result<u16>, took: Duration) {
        match outcome {
            Ok(code) => {
                *self.answered.entry(code).or_default() += 1;
                if !took.is_zero() {
                    self.took.push(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
                }
            }
            Err(error) if is_refusal(&error) => self.refused += 1,
            Err(error) => *self.failed.entry(format!("{error:#}")).or_default() += 1,
        }
    }

    fn rank(&mut self) {
        self.took.sort_unstable();
        let at = |hundredths: usize| {
            let rank = (self.took.len() * hundredths).div_ceil(100).saturating_sub(1);
            self.took.get(rank).copied().unwrap_or(0)
        };
        (self.p50, self.p99) = (at(50), at(99));
    }

    fn add(&mut self, other: Self) {
        for (code, count) in other.answered {
            *self.answered.entry(code).or_default() += count;
        }
        self.refused += other.refused;
        self.took.extend(other.took);
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
