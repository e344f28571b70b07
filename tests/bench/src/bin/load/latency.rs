//! How long a small GET takes: one after the other, or as many a second as were asked for, timed from when each was
//! due. What waits for a slow one is as late as its user would find it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde_json::json;
use tokio::task::JoinSet;
use understudy_bench::durations::Durations;

use super::{
    http::{Connection, SMALL_TARGET},
    say,
    server::Server,
    timer::Timer,
};

/// How many requests warm each connection up.
const WARM: usize = 20;

/// Prints the percentiles.
#[derive(Debug, Args)]
pub(crate) struct Latency {
    #[command(flatten)]
    server: Server,
    /// For how long.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// On how many connections.
    #[arg(long, default_value_t = 1)]
    connections: u32,
    /// How many requests a second in all; 0 is one after the other on each connection.
    #[arg(long, default_value_t = 0.0)]
    rate: f64,
}

/// When a connection's requests are due.
#[derive(Debug, Clone, Copy)]
struct Schedule {
    first: Instant,
    /// None where the next is due when the last was answered.
    every: Option<Duration>,
    end: Instant,
}

impl Latency {
    pub(crate) async fn run(self) -> Result<()> {
        ensure!(self.connections > 0, "no connection, no latency");
        let dialler = self.server.dialler(true)?;
        let mut connections = Vec::new();
        for _ in 0..self.connections {
            let mut connection = Connection::open(&dialler).await?;
            for _ in 0..WARM {
                connection.get_small(SMALL_TARGET).await?;
            }
            connections.push(connection);
        }
        let begun = Instant::now();
        let end = begun + Duration::try_from_secs_f64(self.seconds)?;
        let every = (self.rate > 0.0)
            .then(|| Duration::try_from_secs_f64(f64::from(self.connections) / self.rate))
            .transpose()?;
        let mut tasks = JoinSet::new();
        for (index, connection) in (0..self.connections).zip(connections) {
            // Connections take turns: no two are due at once.
            let first = begun + every.map_or(Duration::ZERO, |every| every * index / self.connections);
            tasks.spawn(ask(connection, Schedule { first, every, end }));
        }
        let mut durations = Durations::default();
        let mut late = 0;
        while let Some(done) = tasks.join_next().await {
            let (these, of_them) = done??;
            durations.extend(these);
            late += of_them;
        }
        let elapsed = begun.elapsed().as_secs_f64();
        let count = durations.count();
        let mut figures = serde_json::to_value(durations.percentiles().context("no request was answered")?)?;
        figures["requests"] = json!(count);
        figures["seconds"] = json!(elapsed);
        figures["late"] = json!(late);
        say(&figures)
    }
}

/// Asks by the schedule: how long each took, and how many were due before the one before was answered.
async fn ask(mut connection: Connection, schedule: Schedule) -> Result<(Durations, usize)> {
    let mut timer = Timer::new()?;
    let mut durations = Durations::default();
    let mut late = 0;
    let mut due = schedule.first;
    while due < schedule.end {
        if due <= Instant::now() && schedule.every.is_some() {
            late += 1;
        }
        timer.until(due).await?;
        connection.get_small(SMALL_TARGET).await?;
        let now = Instant::now();
        durations.push(now - due);
        due = schedule.every.map_or(now, |every| due + every);
    }
    Ok((durations, late))
}
