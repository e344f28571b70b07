//! What it costs to hold something open while nothing happens.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::time::sleep;
use understudy_tests::node::{Command, Patience, Running};

use super::{Protocol, Terms, Values, limit};
use crate::{
    clients,
    process::resident,
    stage::{Target, printed},
};

/// How many watches there are to be, where files allow it.
const WATCHES: u64 = 10_000;
/// And idle connections.
const IDLE: u64 = 2_000;
/// Files that a process needs beside connections.
const SPARE_FILES: u64 = 600;
/// How long a proxy may take to give memory back.
const SETTLING: u32 = 5;

pub(super) async fn watches(target: &mut Target, terms: Terms, protocol: Protocol) -> Result<Values> {
    let wanted = if terms.quick { WATCHES / 10 } else { WATCHES };
    let count = wanted.min(possible(target));
    let command = move |target: &Target| {
        target
            .load("watches")
            .args(["--count", &count.to_string(), "--protocol", protocol.argument()])
    };
    hold(target, terms, count, command).await
}

pub(super) async fn idle(target: &mut Target, terms: Terms) -> Result<Values> {
    let count = if terms.quick { IDLE / 4 } else { IDLE };
    let command = move |target: &Target| target.load("idle").args(["--count", &count.to_string()]);
    hold(target, terms, count, command).await
}

/// What a proxy can hold that needs two files for each.
fn possible(target: &Target) -> u64 {
    let files = target.stage.open_files().saturating_sub(SPARE_FILES);
    if target.peer.doubles_connections() {
        files / 2
    } else {
        files
    }
}

/// A fresh proxy, warmed up by requests, before, with and after `count` of what `command` holds.
async fn hold(target: &mut Target, terms: Terms, count: u64, command: impl Fn(&Target) -> Command) -> Result<Values> {
    target.restart().await?;
    let process = target.process()?.context("there is a proxy to look at")?;
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let warm = target.load("latency").args([
            "--seconds",
            "1",
            "--connections",
            "16",
            "--protocol",
            protocol.argument(),
        ]);
        printed(warm, limit(terms.seconds)).await?;
    }
    sleep(Duration::from_secs(2)).await;
    let before = resident(process)?;
    let held = Held::open(command(target), count).await?;
    sleep(Duration::from_secs(1)).await;
    let during = resident(process)?;
    held.close().await?;
    let mut after = u64::MAX;
    for _ in 0..SETTLING {
        sleep(Duration::from_secs(1)).await;
        after = after.min(resident(process)?);
    }
    #[expect(clippy::cast_precision_loss, reason = "bytes of memory are far below 2^52")]
    let [before, during, after, count] = [before as f64, during as f64, after as f64, count as f64];
    Ok(vec![
        ("kib-each", (during - before) / count / 1024.0),
        ("after", after / before),
    ])
}

/// A client that holds something open until its standard input ends.
pub(super) struct Held(Running);

impl Held {
    /// Starts it, and waits until all `count` are open.
    pub(super) async fn open(command: Command, count: u64) -> Result<Self> {
        let mut running = command.spawn()?;
        let opened = Patience(Duration::from_mins(2)).until("all are open", async || {
            if let Some(line) = clients::lines(&running.stdout()).first() {
                return Ok(Some(clients::number(line, "open")?));
            }
            ensure!(!running.has_ended()?, "the client ended: {}", running.stderr().trim());
            Ok(None)
        });
        let opened = opened.await.with_context(|| running.stderr())?;
        #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
        let wanted = count as f64;
        ensure!(opened >= wanted, "{opened} of {count} are open");
        Ok(Self(running))
    }

    /// Lets go, and holds the client to having lost nothing.
    pub(super) async fn close(mut self) -> Result<()> {
        self.0.close_stdin();
        let Ok(output) = self.0.wait(Duration::from_mins(2)).await else {
            bail!("the client didn't let go");
        };
        ensure!(output.succeeded(), "the client failed: {}", output.stderr.trim());
        if let Ok(lost) = clients::number(&clients::last_line(&output.stdout)?, "lost") {
            ensure!(lost < 1.0, "{lost} were lost");
        }
        Ok(())
    }
}
