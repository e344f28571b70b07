//! Bytes in bulk: lists, slow readers of them, and exec.

use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::time::sleep;

use super::{Meter, Terms, Transport, Values, limit, memory::Held};
use crate::{
    clients,
    process::resident,
    stage::{Target, printed},
};

/// 100 MB, in MB of a million bytes as they are counted.
const LIST: u64 = 100_000_000;
/// What slow readers take, each in a second.
const SLOW: u64 = 1_000_000;
/// How many of them there are.
const READERS: u64 = 50;

/// Lists, one after the other over one connection.
pub(super) async fn list(target: &Target, terms: Terms) -> Result<Values> {
    let command = target
        .load("list")
        .args(["--bytes", &LIST.to_string(), "--connections", "1"])
        .args(["--seconds", &terms.seconds.to_string()]);
    transfer(target, command, limit(terms.seconds)).await
}

/// Bytes down through one exec.
pub(super) async fn bulk(target: &Target, terms: Terms, transport: Transport) -> Result<Values> {
    let bytes: u64 = if terms.quick { 100_000_000 } else { 500_000_000 };
    let command = target
        .load("bulk")
        .args(["--transport", transport.argument(), "--bytes", &bytes.to_string()])
        .args(["--direction", "down"]);
    transfer(target, command, limit(60)).await
}

async fn transfer(target: &Target, command: understudy_tests::node::Command, limit: Duration) -> Result<Values> {
    let meter = Meter::start(target)?;
    let result = clients::last_line(&printed(command, limit).await?)?;
    let used = meter.seconds()?;
    let megabytes = clients::number(&result, "bytes")? / 1e6;
    let mut values = vec![("mb-per-second", megabytes / clients::number(&result, "seconds")?)];
    if let Some(used) = used {
        values.push(("mb-per-cpu-second", megabytes / used));
    }
    Ok(values)
}

/// The most memory that a fresh proxy takes while many read slowly what the upstream would send at once.
pub(super) async fn readers(target: &mut Target, terms: Terms) -> Result<Values> {
    target.restart().await?;
    let process = target.process()?.context("there is a proxy to look at")?;
    let command = target
        .load("readers")
        .args(["--count", &READERS.to_string(), "--bytes", &LIST.to_string()])
        .args(["--rate", &SLOW.to_string()]);
    let held = Held::open(command, READERS).await?;
    let mut most = 0;
    for _ in 0..terms.seconds * 10 {
        sleep(Duration::from_millis(100)).await;
        most = most.max(resident(process)?);
    }
    held.close().await?;
    #[expect(clippy::cast_precision_loss, reason = "bytes of memory are far below 2^52")]
    Ok(vec![("rss-mib", most as f64 / 1024.0 / 1024.0)])
}
