//! How long an event takes to reach all watches, by the stamp that the upstream puts on it.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use nix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
    sync::mpsc,
    task::JoinSet,
    time::{sleep, timeout},
};
use understudy_bench::durations::Durations;

use super::{
    say,
    server::Server,
    watches::{self, Opened},
};

/// How long an event may take to reach all.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two events, so that each finds everything at rest.
const PAUSE: Duration = Duration::from_millis(200);
/// How many events are sent, at most, until others' watches have closed.
const WARM: usize = 100;

/// Prints the percentiles of arrival over all watches and events.
#[derive(Debug, Args)]
pub(crate) struct Fanout {
    #[command(flatten)]
    server: Server,
    /// How many watches.
    #[arg(long)]
    count: usize,
    /// How many streams go over one HTTP/2 connection.
    #[arg(long, default_value_t = 100)]
    streams: usize,
    /// The upstream's control socket.
    #[arg(long)]
    control: PathBuf,
    /// How many events.
    #[arg(long, default_value_t = 20)]
    events: usize,
}

impl Fanout {
    pub(crate) async fn run(self) -> Result<()> {
        let Opened { bodies, connections } = watches::open(&self.server, self.count, self.streams).await?;
        let (arrived, mut arrivals) = mpsc::unbounded_channel();
        let mut watching = JoinSet::new();
        for body in bodies {
            watching.spawn(watch(body, arrived.clone()));
        }
        drop(arrived);
        let stream = UnixStream::connect(&self.control)
            .await
            .with_context(|| format!("the upstream's control socket {}", self.control.display()))?;
        let (reader, mut control) = stream.into_split();
        let mut answers = BufReader::new(reader).lines();
        let mut durations = Durations::default();
        // The first ones warm up what has never run, until only these watches are left at the upstream: those of the peer
        // before may still be closing.
        let (mut warm, mut event, mut alone) = (0, 0, false);
        while event < self.events {
            sleep(PAUSE).await;
            control.write_all(b"event\n").await?;
            let answer = answers.next_line().await?.context("the upstream has gone")?;
            let told: Value = serde_json::from_str(&answer)?;
            let all = async {
                for _ in 0..self.count {
                    let arrival: Duration = arrivals.recv().await.context("the watches have ended")?;
                    if alone {
                        durations.push(arrival);
                    }
                }
                anyhow::Ok(())
            };
            let all = timeout(PATIENCE, all).await;
            if let Some(ended) = watching.try_join_next() {
                ended??;
            }
            all.context("an event didn't reach all watches within its time")??;
            if alone {
                ensure!(told["watches"] == self.count, "the upstream's: {answer}");
                event += 1;
            } else {
                alone = told["watches"] == self.count;
                warm += 1;
                ensure!(alone || warm < WARM, "other watches stay at the upstream: {answer}");
            }
        }
        drop(connections);
        let percentiles = durations.percentiles().context("no event was sent")?;
        let mut figures = serde_json::to_value(percentiles)?;
        figures["watches"] = json!(self.count);
        figures["events"] = json!(self.events);
        say(&figures)
    }
}

/// Reads events off a watch, and says how long ago each was sent.
async fn watch(mut body: Incoming, arrived: mpsc::UnboundedSender<Duration>) -> Result<()> {
    let mut rest = Vec::new();
    loop {
        let frame = body.frame().await.context("a watch has ended")??;
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
        let now = Duration::from(now);
        let Some(data) = frame.data_ref() else { continue };
        rest.extend_from_slice(data);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let event: Value = serde_json::from_slice(&rest[..end])?;
            rest.drain(..=end);
            let sent = event["object"]["data"]["sent"].as_str().context("a stamp")?;
            let sent = Duration::from_nanos(sent.parse()?);
            if arrived.send(now.saturating_sub(sent)).is_err() {
                return Ok(());
            }
        }
    }
}
