//! What an exec feels like: round trips of a few bytes, and bytes in bulk.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use clap::{Args, ValueEnum};
use serde_json::json;
use understudy_bench::durations::Durations;
use understudy_tests::apiserver::{LOG_FILE, log};

use super::{
    exec::{Came, Exec, Transport},
    list::megabytes,
    say,
    server::Server,
};

/// How many round trips warm it up.
const WARM: usize = 20;
/// What is written at once.
const CHUNK: usize = 32 * 1024;

/// Prints the percentiles of round trips through `cat`.
#[derive(Debug, Args)]
pub(crate) struct Echo {
    #[command(flatten)]
    server: Server,
    /// How it is framed.
    #[arg(long, value_enum)]
    transport: Transport,
    /// For how long.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Of how many bytes.
    #[arg(long, default_value_t = 64)]
    bytes: usize,
}

/// Which way the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Direction {
    Down,
    Up,
}

/// What the program prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Content {
    Zeros,
    Lines,
}

impl Content {
    fn file(self) -> &'static str {
        match self {
            Self::Zeros => "/dev/zero",
            Self::Lines => LOG_FILE,
        }
    }

    /// Whether these bytes are what it prints from an offset on.
    fn is_at(self, offset: usize, data: &[u8]) -> bool {
        match self {
            Self::Zeros => data.iter().all(|byte| *byte == 0),
            Self::Lines => {
                let log = log();
                let start = &log[offset % log.len()..];
                match data.split_at_checked(start.len()) {
                    None => start.starts_with(data),
                    Some((first, rest)) => start == first && rest.chunks(log.len()).all(|part| log.starts_with(part)),
                }
            }
        }
    }
}

/// Prints how fast many bytes go to a program or come of one.
#[derive(Debug, Args)]
pub(crate) struct Bulk {
    #[command(flatten)]
    server: Server,
    /// How it is framed.
    #[arg(long, value_enum)]
    transport: Transport,
    /// How many bytes.
    #[arg(long, default_value_t = 268_435_456)]
    bytes: usize,
    /// From the program, or to it.
    #[arg(long, value_enum, default_value = "down")]
    direction: Direction,
    /// Of which kind, where they come from it.
    #[arg(long, value_enum, default_value = "zeros")]
    content: Content,
}

impl Echo {
    pub(crate) async fn run(self) -> Result<()> {
        let mut exec = Exec::start(&self.server, self.transport, &["cat"]).await?;
        let line: Bytes = vec![b'e'; self.bytes.max(1)].into();
        for _ in 0..WARM {
            round_trip(&mut exec, &line).await?;
        }
        let begun = Instant::now();
        let end = begun + Duration::try_from_secs_f64(self.seconds)?;
        let mut durations = Durations::default();
        while Instant::now() < end {
            let begun = Instant::now();
            round_trip(&mut exec, &line).await?;
            durations.push(begun.elapsed());
        }
        exec.write(&Bytes::new()).await?;
        ensure!(
            matches!(exec.read().await?, Came::End),
            "something was echoed that wasn't written"
        );
        let count = durations.count();
        let mut figures = serde_json::to_value(durations.percentiles().context("no round trip was made")?)?;
        figures["round_trips"] = json!(count);
        say(&figures)
    }
}

async fn round_trip(exec: &mut Exec, line: &Bytes) -> Result<()> {
    exec.write(line).await?;
    let mut came = 0;
    while came < line.len() {
        match exec.read().await? {
            Came::Stdout(data) => {
                ensure!(data.iter().all(|byte| *byte == b'e'), "what was echoed wasn't written");
                came += data.len();
            }
            Came::End => bail!("the program ended"),
        }
    }
    ensure!(came == line.len(), "more was echoed than was written");
    Ok(())
}

impl Bulk {
    pub(crate) async fn run(self) -> Result<()> {
        let elapsed = match self.direction {
            Direction::Down => self.down().await?,
            Direction::Up => self.up().await?,
        };
        say(&json!({
            "bytes": self.bytes,
            "seconds": elapsed.as_secs_f64(),
            "mb_per_second": megabytes(self.bytes as u64) / elapsed.as_secs_f64(),
        }))
    }

    /// From the first byte that comes to the end.
    async fn down(&self) -> Result<Duration> {
        let length = self.bytes.to_string();
        let mut exec = Exec::start(
            &self.server,
            self.transport,
            &["head", "-c", &length, self.content.file()],
        )
        .await?;
        let mut begun = None;
        let mut came = 0;
        while let Came::Stdout(data) = exec.read().await? {
            begun.get_or_insert_with(Instant::now);
            ensure!(self.content.is_at(came, &data), "something else came than was printed");
            came += data.len();
        }
        ensure!(came == self.bytes, "{came} bytes came in place of {}", self.bytes);
        Ok(begun.context("nothing came")?.elapsed())
    }

    /// From the first byte that is written until the program says how many there were.
    async fn up(&self) -> Result<Duration> {
        let mut exec = Exec::start(&self.server, self.transport, &["wc", "-c"]).await?;
        let zeros = Bytes::from(vec![0; CHUNK]);
        let begun = Instant::now();
        let mut left = self.bytes;
        while left > 0 {
            let some = left.min(CHUNK);
            exec.write(&zeros.slice(..some)).await?;
            left -= some;
        }
        exec.write(&Bytes::new()).await?;
        let mut said = Vec::new();
        while let Came::Stdout(data) = exec.read().await? {
            said.extend_from_slice(&data);
        }
        let said = String::from_utf8(said)?;
        ensure!(
            said.trim() == self.bytes.to_string(),
            "{said} bytes arrived in place of {}",
            self.bytes
        );
        Ok(begun.elapsed())
    }
}
