//! What a hostile pod does to the agent, in every way at once: each at a bounded rate, so that what others notice of it
//! is the agent's doing and not the machine's being busy.

mod assault;
pub(crate) mod frames;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use serde::Serialize;
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use self::assault::Target;
use super::client::Server;

/// Attacks for a while; prints `begun` once every kind has had a first go, and at the end how often each was done.
#[derive(Debug, Args)]
pub(crate) struct Attack {
    #[command(flatten)]
    server: Server,
    /// What to do; everything where nothing is said.
    kinds: Vec<Kind>,
    /// For how long, in seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// How often each kind is begun, in a second.
    #[arg(long, default_value_t = 5)]
    rate: u32,
    /// How many of each kind may go on at a time.
    #[arg(long, default_value_t = 40)]
    at_once: usize,
    /// Path and query that are asked for where an answer is wanted.
    #[arg(long, default_value = "/api/v1/namespaces/prod/configmaps")]
    path: String,
}

/// A kind of attack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// Connects and resets.
    DroppedConnects,
    /// Connects and says nothing.
    SilentConnections,
    /// Says half of a `ClientHello`, and waits.
    HalfHandshakes,
    /// Brings handshakes to their end and leaves.
    Handshakes,
    /// Sends bytes that aren't TLS.
    Garbage,
    /// A head that comes byte by byte.
    Slowloris,
    /// Heads that no server may accept.
    MalformedHeads,
    /// Heads beyond every limit.
    LargeHeads,
    /// Uploads without an end.
    Uploads,
    /// A large answer that nobody reads.
    SlowReaders,
    /// Streams opened and taken back at once.
    RapidReset,
    /// A head over HTTP/2 that doesn't end.
    Continuation,
    /// Headers that unpack to many times their size.
    HpackBomb,
    /// SETTINGS without an end.
    Settings,
    /// PING without an end.
    Pings,
    /// Watches by the hundred.
    Watches,
}

impl Attack {
    pub(crate) async fn run(self) -> Result<()> {
        ensure!(self.rate > 0, "--rate must be at least 1");
        let end = Instant::now() + Duration::from_secs(self.seconds);
        let target = Arc::new(Target::new(&self.server, &self.path, end)?);
        let kinds = if self.kinds.is_empty() {
            Kind::value_variants()
        } else {
            &self.kinds
        };
        let mut tasks = JoinSet::new();
        for kind in kinds {
            tasks.spawn(repeat(*kind, Arc::clone(&target), self.rate, self.at_once, end));
        }
        sleep_until((Instant::now() + Duration::from_secs(1)).min(end)).await;
        super::say("begun");
        let mut done = BTreeMap::new();
        while let Some(ended) = tasks.join_next().await {
            let (kind, tally) = ended?;
            done.insert(kind, tally);
        }
        super::say(serde_json::to_string(&done)?);
        Ok(())
    }
}

/// How often an attack was done.
#[derive(Debug, Default, Serialize)]
struct Tally {
    /// Begun.
    begun: usize,
    /// Of these, the ones that were cut short: refused, reset or closed by the other side.
    ended_by_server: usize,
}

/// Begins one kind again and again until the end; what goes on then is dropped.
async fn repeat(kind: Kind, target: Arc<Target>, rate: u32, at_once: usize, end: Instant) -> (Kind, Tally) {
    let room = Arc::new(Semaphore::new(at_once));
    let mut ticks = interval(Duration::from_secs(1) / rate);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut going_on: JoinSet<Result<()>> = JoinSet::new();
    let mut tally = Tally::default();
    loop {
        tokio::select! {
            () = sleep_until(end) => return (kind, tally),
            Some(ended) = going_on.join_next() => {
                tally.ended_by_server += usize::from(!matches!(ended, Ok(Ok(()))));
            }
            _ = ticks.tick() => {
                let Ok(permit) = Arc::clone(&room).try_acquire_owned() else { continue };
                tally.begun += 1;
                let target = Arc::clone(&target);
                going_on.spawn(async move {
                    let _permit = permit;
                    target.attack(kind).await
                });
            }
        }
    }
}
