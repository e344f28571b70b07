//! Much at once: many streams, large bodies, slow readers.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result};
use rstest::rstest;
use understudy_tests::node::{AgentOptions, Patience, Running, TestServerOptions, binaries};

use crate::world::{World, curl};

const MIB: u64 = 1024 * 1024;
/// The stated limit on how much the agent may grow.
const GROWTH_KIB: u64 = 32 * 1024;
const LARGE_LIST: &str = "/api/v1/namespaces/prod/configmaps?understudySize=1Gi";

/// Tracing a gigabyte would measure the log.
fn quiet() -> AgentOptions {
    AgentOptions::default().log_level("info")
}

#[tokio::test]
async fn a_thousand_watches_over_one_connection_pass_an_api_server_that_allows_a_hundred_streams() -> Result<()> {
    let world = World::with(&TestServerOptions::default().max_streams(100), quiet()).await?;
    let mark = world.api.mark().await?;
    let path = "/api/v1/namespaces/prod/configmaps?watch=true";
    let watches = world
        .pod
        .command(binaries::probe()?)
        .args(["watches", path, "--count", "1000"]);
    let mut watches = watches
        .args(["--marker", "marker-one", "--marker", "marker-two"])
        .spawn()?;
    watches.stdout_until(|text| text.contains("open 1000")).await?;
    for marker in ["marker-one", "marker-two"] {
        world
            .api
            .admin(["create", "configmap", marker, "-n", "prod"])?
            .stdout()
            .await?;
        watches
            .stdout_until(|text| text.contains(&format!("saw {marker} 1000")))
            .await?;
    }
    let mut on_each = BTreeMap::new();
    for seen in world.api.seen_since(mark).await? {
        *on_each.entry(seen.connection).or_insert(0) += 1;
    }
    assert!(on_each.values().all(|streams| *streams <= 100), "{on_each:?}");
    assert!(
        on_each.len() <= 20,
        "as many connections as their streams need: {on_each:?}"
    );
    Ok(())
}

/// How much larger the agent got while `running` went on, in KiB, looked at often.
async fn growth(world: &World, running: &mut Running, base: u64, limit: Duration) -> Result<u64> {
    let mut most = 0;
    let watched = Patience(limit).until("it ends", async || {
        most = most.max(world.agent.rss_kib()?.saturating_sub(base));
        Ok(running.has_ended()?.then_some(()))
    });
    // A reader that goes on is as good as one that ends: it was watched for as long as was asked.
    drop(watched.await);
    Ok(most)
}

/// Invariant 7.
#[rstest]
#[case::http1(&[])]
#[case::http2(&["--http2"])]
#[tokio::test]
async fn a_gigabyte_passes_through_in_bounded_memory(#[case] protocol: &[&str]) -> Result<()> {
    let world = World::with(&TestServerOptions::default(), quiet()).await?;
    curl(&world.pod, "/api/v1/namespaces/prod/pods", &[]).await?;
    let base = world.agent.rss_kib()?;
    let mut reader = world
        .pod
        .command(binaries::probe()?)
        .args(["read", LARGE_LIST])
        .args(protocol)
        .spawn()?;
    let grown = growth(&world, &mut reader, base, Duration::from_mins(3)).await?;
    let output = reader.wait(Duration::from_secs(5)).await?.success()?;
    assert!(
        output.stdout.contains(&format!("end {}", 1024 * MIB)),
        "{}",
        output.stdout
    );
    assert!(grown < GROWTH_KIB, "the agent grew by {grown} KiB");
    Ok(())
}

/// Invariant 7.
#[rstest]
#[case::http1(&[])]
#[case::http2(&["--http2"])]
#[tokio::test]
async fn a_slow_reader_costs_bounded_memory_and_slows_itself_alone(#[case] protocol: &[&str]) -> Result<()> {
    let world = World::with(&TestServerOptions::default(), quiet()).await?;
    curl(&world.pod, "/api/v1/namespaces/prod/pods", &[]).await?;
    let base = world.agent.rss_kib()?;
    let slow = ["read", LARGE_LIST, "--rate", "1048576"];
    let mut reader = world
        .pod
        .command(binaries::probe()?)
        .args(slow)
        .args(protocol)
        .spawn()?;
    reader.stdout_until(|text| text.contains("read ")).await?;
    let grown = growth(&world, &mut reader, base, Duration::from_secs(8)).await?;
    assert!(!reader.has_ended()?, "it is still reading: {}", reader.stderr());
    assert!(grown < GROWTH_KIB, "the agent grew by {grown} KiB");
    // Meanwhile, another of the same session gets many times as much.
    let other = world
        .pod
        .command(binaries::probe()?)
        .args(["read", "/api/v1/namespaces/prod/configmaps?understudySize=32Mi"]);
    let other = other.args(protocol).stdout().await?;
    assert!(other.contains(&format!("end {}", 32 * MIB)), "{other}");
    let read = reader
        .stdout()
        .lines()
        .filter_map(|line| line.strip_prefix("read ")?.parse::<u64>().ok())
        .max();
    assert!(read.context("it has read")? < 64 * MIB, "it is slow: {read:?}");
    Ok(())
}
