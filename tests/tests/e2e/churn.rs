//! What a hundred thousand connections leave behind in the agent and the kernel: nothing.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result};
use serde::Deserialize;
use understudy_cases::{Area, seen};
use understudy_tests::node::{AgentOptions, Patience, TestServerOptions, binaries};

use crate::world::{World, whoami};

const PATH: &str = "/api/v1/namespaces/prod/configmaps/settings";
/// After these the agent has grown to what it needs: it has no more after 280,000.
const WARM_UP: usize = 40_000;
const REST: usize = 60_000;
/// How many connections there are at a time.
const AT_ONCE: usize = 64;
/// How long a connection may linger that the agent isn't told the end of; and one upstream that nobody uses, which is looked
/// at every 45 seconds and closed when it has been idle for as long.
const PATIENCE: Patience = Patience(Duration::from_mins(2));

/// What came of the connections, as the probe tells it.
#[derive(Debug, Deserialize)]
struct Tally {
    dropped: BTreeMap<String, usize>,
    failed: BTreeMap<String, usize>,
}

/// Connections upstream that the pool may keep open, idle, beyond those that it had.
const POOLED: usize = 4;

/// What the agent holds.
#[derive(Debug, Clone, Copy)]
struct Holding {
    connections: f64,
    streams: f64,
    flow_records: f64,
    files: usize,
    rss_kib: u64,
}

impl Holding {
    async fn of(world: &World) -> Result<Self> {
        let metrics = world.agent.metrics().await?;
        Ok(Self {
            connections: metrics.sum("understudy_inbound_connections_open", &[]),
            streams: metrics.sum("understudy_streams", &[]),
            flow_records: metrics.sum("understudy_flow_records", &[]),
            files: world.agent.open_files()?,
            rss_kib: world.agent.rss_kib()?,
        })
    }

    fn is_idle(&self) -> bool {
        self.connections + self.streams + self.flow_records < 0.5
    }
}

async fn churn(world: &World, count: usize) -> Result<Tally> {
    let (count, tasks) = (count.to_string(), AT_ONCE.to_string());
    let printed = world
        .pod
        .command(binaries::probe()?)
        .args(["churn", PATH, "--count", &count, "--tasks", &tasks])
        .limit(Duration::from_mins(10))
        .stdout()
        .await?;
    let line = printed.lines().last().context("the probe's last line")?;
    Ok(serde_json::from_str(line)?)
}

/// Invariant 7, over time: what is gone costs nothing.
#[tokio::test]
async fn a_hundred_thousand_connections_leave_nothing() -> Result<()> {
    // Tracing all of it would measure the log.
    let options = AgentOptions::default().log_level("info");
    let world = World::with(&TestServerOptions::default(), options).await?;
    churn(&world, WARM_UP).await?;
    let before = PATIENCE
        .until("the agent is idle", async || {
            let holding = Holding::of(&world).await?;
            Ok(holding.is_idle().then_some(holding))
        })
        .await?;
    let counted = world.agent.metrics().await?;

    let tally = churn(&world, REST).await?;
    assert_eq!(tally.failed, BTreeMap::new());
    assert_eq!(tally.dropped.values().sum::<usize>(), REST);
    let after = PATIENCE
        .until("the agent holds no more than before", async || {
            let holding = Holding::of(&world).await?;
            let small = holding.files <= before.files + POOLED && holding.rss_kib * 10 <= before.rss_kib * 11;
            Ok((holding.is_idle() && small).then_some(holding))
        })
        .await;
    let now = Holding::of(&world).await?;
    let after = after.with_context(|| format!("before: {before:?}; now: {now:?}"))?;

    let metrics = world.agent.metrics().await?;
    let grown = |name: &str| metrics.sum(name, &[]) - counted.sum(name, &[]);
    let accepted = grown("understudy_inbound_connections_total");
    let refused = grown("understudy_inbound_refusals_total");
    let all = f64::from(u32::try_from(REST)?);
    // The kernel forgets a connection that its client has left. One that is left before it is accepted is closed for
    // that, or isn't seen at all.
    let early = [
        "close-at-once",
        "reset-at-once",
        "close-in-the-hello",
        "reset-in-the-hello",
    ];
    let early = early.iter().filter_map(|way| tally.dropped.get(*way)).sum::<usize>();
    let early = f64::from(u32::try_from(early)?);
    assert!(accepted >= all - early, "{accepted} of {all} were accepted");
    assert!(accepted + refused <= all, "{accepted} and {refused} of {all}");
    assert!(refused <= early, "{refused} weren't vouched for: {}", metrics.text());
    assert_eq!(whoami(&world.pod).await?, world.viewer(), "and it serves on");
    println!("before: {before:?}\nafter: {after:?}");
    let outcome = format!(
        "{}, {} and {}; the next request is served",
        if after.files <= before.files + POOLED {
            "no more files open than before, but for a few idle connections upstream"
        } else {
            "more files open"
        },
        if after.flow_records < 0.5 {
            "no flow record left"
        } else {
            "flow records left"
        },
        if after.rss_kib * 10 <= before.rss_kib * 11 {
            "resident memory within 10 %"
        } else {
            "more memory"
        },
    );
    seen(
        Area::Faults,
        "100,000 connections opened and dropped, in ten ways",
        outcome,
    );
    Ok(())
}
