//! The agent's death and its upgrade under a load of short requests, each on a connection of its own: nothing gets
//! through unrewritten, and an upgrade doesn't show.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result};
use serde::Deserialize;
use understudy_tests::node::{Agent, AgentOptions, ApiServer, Mark, Node, PodSpec, Running, binaries, eventually};

use crate::world::{World, curl_raw, whoami};

const PODS: &str = "/api/v1/namespaces/prod/pods";

/// What came of the requests, as the probe tells it.
#[derive(Debug, Deserialize)]
struct Tally {
    answered: BTreeMap<u16, usize>,
    refused: usize,
    failed: BTreeMap<String, usize>,
}

/// A load from the pod for so long, begun when this returns.
async fn load(world: &World, seconds: u64) -> Result<Running> {
    let mut load = world
        .pod
        .command(binaries::probe()?)
        .args(["hammer", PODS, "--tasks", "4", "--seconds", &seconds.to_string()])
        .spawn()?;
    load.stdout_until(|text| text.contains("begun")).await?;
    Ok(load)
}

async fn tally(load: Running) -> Result<Tally> {
    let output = load.wait(Duration::from_mins(1)).await?.success()?;
    let line = output.stdout.lines().last().context("the probe's last line")?;
    Ok(serde_json::from_str(line)?)
}

/// Every request that came to the API server under the load was the session's.
async fn assert_only_the_session_came(world: &World, mark: Mark, at_least: usize) -> Result<()> {
    let listed: Vec<_> = world
        .api
        .seen_since(mark)
        .await?
        .into_iter()
        .filter(|request| request.path() == PODS)
        .collect();
    for request in &listed {
        assert_eq!(request.user, world.viewer(), "{request:?}");
        assert!(!request.holds(world.pod.token()), "{request:?}");
    }
    assert!(
        listed.len() >= at_least,
        "{} requests came of {at_least} answered",
        listed.len()
    );
    Ok(())
}

/// Invariants 1 and 6.
#[tokio::test]
async fn killed_and_restarted_under_load_the_agent_lets_nothing_through_unrewritten() -> Result<()> {
    let mut world = World::new().await?;
    let mark = world.api.mark().await?;
    let load = load(&world, 8).await?;
    for _ in 0..2 {
        world.agent.kill9().await?;
        // Longer than the heartbeat is good for, so that both what is stale and what has no listener is met.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        world.agent = world.agent.restart().await?;
    }
    let tally = tally(load).await?;
    assert!(tally.refused > 0, "the agent was away: {tally:?}");
    let answered = tally.answered.get(&200).copied().unwrap_or(0);
    assert!(answered > 0, "{tally:?}");
    assert_only_the_session_came(&world, mark, answered).await
}

/// Invariants 1 and 6: the new agent starts beside the old one, takes over, and the old one is told to end.
#[tokio::test]
async fn in_a_rolling_upgrade_under_load_no_new_connection_fails() -> Result<()> {
    let node = Node::new()?;
    let api = ApiServer::start(&node).await?;
    let options = AgentOptions::default().log_level("debug");
    let mut world = World::around(node, api, PodSpec::named("shell"), options.clone()).await?;
    // What was open before lives on in the old agent until its deadline.
    let mut watch = world
        .pod
        .kubectl_command(["get", "configmaps", "-n", "prod", "--watch", "-o", "name"])?
        .spawn()?;
    watch.stdout_until(|text| text.contains("configmap/settings")).await?;

    let mark = world.api.mark().await?;
    let load = load(&world, 15).await?;
    for number in 1..=3 {
        let next = Agent::start(&world.node, options.clone().beside(number)).await?;
        let mut old = std::mem::replace(&mut world.agent, next);
        if number == 1 {
            // The old agent has handed over and still carries it.
            world
                .api
                .admin(["create", "configmap", "after-the-upgrade", "-n", "prod"])?
                .stdout()
                .await?;
            watch
                .stdout_until(|text| text.contains("configmap/after-the-upgrade"))
                .await?;
        }
        old.terminate()?;
        let status = old.ended(Duration::from_secs(40)).await?;
        assert!(status.success(), "{status}");
    }
    let tally = tally(load).await?;
    assert_eq!(tally.refused, 0, "{tally:?}");
    assert!(tally.failed.is_empty(), "{tally:?}");
    assert_eq!(tally.answered.keys().collect::<Vec<_>>(), [&200], "{tally:?}");
    assert_only_the_session_came(&world, mark, tally.answered[&200]).await?;
    assert_eq!(whoami(&world.pod).await?, world.viewer());
    Ok(())
}

/// An upgrade that fails half-way is none: the old agent goes on, or takes up again what it had handed over.
#[tokio::test]
async fn a_new_agent_that_dies_on_its_way_leaves_the_old_one_in_charge() -> Result<()> {
    let world = World::new().await?;
    let mark = world.api.mark().await?;
    let mut died = 0;
    for (number, milliseconds) in (1..).zip([20, 60, 100, 140, 180, 220, 300, 400]) {
        let mut new = Agent::launch(&world.node, AgentOptions::default().beside(number))?;
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        new.kill9().await?;
        if new.log().contains("taken over from the agent before") {
            // It had arrived, and the old one gone: that is a killed agent, and another test.
            break;
        }
        died += 1;
        eventually("the old agent serves", async || {
            let output = curl_raw(&world.pod, PODS, &[]).await?;
            Ok(output.succeeded().then_some(()))
        })
        .await?;
    }
    assert!(died > 0, "none was killed on its way");
    assert_only_the_session_came(&world, mark, died).await
}
