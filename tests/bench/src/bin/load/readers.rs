//! Many who read a large answer slowly, while somebody measures what of it is held for them.

use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;
use serde_json::json;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep_until},
};
use understudy_bench::room;

use super::{
    list::{Reading, target},
    say,
    server::Server,
    watches::{connect, until_told},
};

/// Prints `open` when all have the heads of their answers, and how much they have read when standard input has ended.
#[derive(Debug, Args)]
pub(crate) struct Readers {
    #[command(flatten)]
    server: Server,
    /// How many.
    #[arg(long, default_value_t = 50)]
    count: usize,
    /// How long each answer is.
    #[arg(long, default_value_t = 104_857_600)]
    bytes: u64,
    /// How many bytes a second each reads.
    #[arg(long, default_value_t = 1_048_576)]
    rate: u64,
}

impl Readers {
    pub(crate) async fn run(self) -> Result<()> {
        room::make_for(self.count as u64)?;
        let dialler = self.server.dialler(true)?;
        let mut connections = connect(&dialler, self.count, false).await?;
        let (stop, stopped) = watch::channel(());
        let mut tasks = JoinSet::new();
        for connection in &mut connections {
            let answer = connection.get(&target(self.bytes, false)).await?;
            let reading = Reading::of(answer.into_body());
            tasks.spawn(read(reading, self.bytes, self.rate, stopped.clone()));
        }
        say(&json!({ "open": tasks.len() }))?;
        until_told().await?;
        stop.send_replace(());
        let mut read = Vec::with_capacity(self.count);
        while let Some(done) = tasks.join_next().await {
            read.push(done??);
        }
        say(&json!({
            "bytes": read.iter().sum::<u64>(),
            "least": read.iter().min(),
            "most": read.iter().max(),
        }))
    }
}

/// Reads no faster than told, to the end of the answer or until it is to stop.
async fn read(mut reading: Reading, bytes: u64, rate: u64, mut stopped: watch::Receiver<()>) -> Result<u64> {
    let begun = Instant::now();
    loop {
        let due = begun + Duration::from_millis(reading.so_far().saturating_mul(1000) / rate.max(1));
        tokio::select! {
            _ = stopped.changed() => return Ok(reading.so_far()),
            () = sleep_until(due) => {}
        }
        tokio::select! {
            _ = stopped.changed() => return Ok(reading.so_far()),
            more = reading.next() => if !more? {
                ensure!(reading.so_far() == bytes, "the answer ends after {} bytes", reading.so_far());
                return Ok(bytes);
            }
        }
    }
}
