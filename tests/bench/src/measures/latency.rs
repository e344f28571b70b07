//! How long an answer takes, seen from the client.

use anyhow::Result;

use super::{Terms, Values, limit};
use crate::{
    clients,
    report::progress,
    stage::{Target, printed},
};

/// One connection, one request at a time.
pub(super) async fn alone(target: &Target, terms: Terms) -> Result<Values> {
    run(target, terms, &["--connections", "1"]).await
}

/// 16 connections, at the run's half load, timed from when each was due.
pub(super) async fn half(target: &Target, terms: Terms) -> Result<Values> {
    let rate = format!("{:.0}", terms.half_load);
    run(target, terms, &["--connections", "16", "--rate", &rate]).await
}

async fn run(target: &Target, terms: Terms, arguments: &[&str]) -> Result<Values> {
    let command = target
        .load("latency")
        .args(["--seconds", &terms.seconds.to_string()])
        .args(arguments);
    let result = clients::last_line(&printed(command, limit(terms.seconds)).await?)?;
    Ok(vec![
        ("p50-us", clients::number(&result, "p50_us")?),
        ("p99-us", clients::number(&result, "p99_us")?),
    ])
}

/// Half of what the slowest of the targets carries over 16 connections, in requests per second; targets that answer badly
/// don't count.
pub async fn half_load(targets: &[Target], seconds: u32) -> f64 {
    let mut slowest = f64::INFINITY;
    for target in targets {
        match carries(target, seconds).await {
            Ok(rate) => slowest = slowest.min(rate),
            Err(error) => progress(format!("what {} carries: VOID: {error:#}", target.peer)),
        }
    }
    // Where none did, the slices will say so by themselves.
    if slowest.is_finite() { slowest / 2.0 } else { 1.0 }
}

async fn carries(target: &Target, seconds: u32) -> Result<f64> {
    let command = target
        .load("latency")
        .args(["--seconds", &seconds.to_string(), "--connections", "16"]);
    let result = clients::last_line(&printed(command, limit(seconds)).await?)?;
    Ok(clients::number(&result, "requests")? / clients::number(&result, "seconds")?)
}
