//! The API server away, before the agent starts and while it runs.

use std::time::{Duration, Instant};

use anyhow::Result;
use understudy_tests::node::{Agent, AgentOptions, Node, PodSpec, Session, eventually};

use crate::{
    cluster::Cluster,
    world::{becomes, curl, curl_raw, whoami},
};

const PODS: &str = "/api/v1/namespaces/prod/pods";

/// The seventh thing that must be shown, in less than its minute.
#[tokio::test]
async fn sessions_are_in_force_while_the_api_server_is_away() -> Result<()> {
    const AWAY: Duration = Duration::from_secs(5);
    let mut cluster = Cluster::new().await?;
    let other = Session::named("support", "bob").acting_as(&cluster.node.accounts().viewer);
    cluster.api.write_session(&other).await?;
    let pod = cluster.pod_in_session().await?;
    let other_pod = cluster
        .pod(PodSpec::named("other").namespace("support").session("bob"))
        .await?;
    becomes(&other_pod, &cluster.viewer()).await?;
    let pid = cluster.agent.pid()?;
    cluster.api.kill9().await?;
    let away = Instant::now();
    while away.elapsed() < AWAY {
        // Ours, not the kernel's refusal and not the API server's: the pod is turned to the agent, which can't go on.
        let answer = curl(&pod, PODS, &[]).await?;
        assert!((500..600).contains(&answer.code), "{answer:?}");
        assert_eq!(answer.json()?["kind"], "Status", "{answer:?}");
    }
    let mark = cluster.api.start_again().await?;
    let back = Instant::now();
    // As early as can be, so that nothing has heard of it on the way.
    cluster.api.delete_session(&other).await?;
    eventually("the pod acts again", async || {
        let output = curl_raw(&pod, PODS, &[]).await?;
        Ok((output.succeeded() && output.stderr.contains(" 200")).then_some(()))
    })
    .await?;
    let acts = back.elapsed();
    assert_eq!(whoami(&pod).await?, cluster.viewer());
    assert_eq!(cluster.agent.pid()?, pid);

    tokio::time::sleep(Duration::from_secs(5).saturating_sub(back.elapsed())).await;
    let agent = cluster.node.accounts().agent.username();
    let seen = cluster.api.seen_since(mark).await?;
    let asked = seen.iter().filter(|request| request.user == agent).count();
    assert!(asked <= 30, "the agent itself asked {asked} times: {seen:?}");
    for request in &seen {
        assert_ne!(request.user, cluster.powerless(), "{request:?}");
    }

    // What has changed since is heard when the backoff is over.
    let ends = eventually("the deletion is heard of", async || {
        // The very request that meets the end is cut short.
        let refused = curl(&other_pod, PODS, &[]).await.is_ok_and(|answer| answer.code == 403);
        Ok(refused.then(|| back.elapsed()))
    })
    .await?;
    println!(
        "after {AWAY:?} away: a pod acts after {acts:?}; the agent asked {asked} times in 5 s; a deletion shows after {ends:?}"
    );
    let ended: Vec<_> = cluster
        .agent
        .log()
        .lines()
        .filter(|line| line.contains("a session ends"))
        .map(str::to_owned)
        .collect();
    assert!(
        ended.iter().all(|line| line.contains("support/bob")),
        "no other session ended on the way: {ended:?}"
    );
    Ok(())
}

/// An agent that starts while the API server can't be reached waits, and says so.
#[tokio::test]
async fn an_agent_waits_for_the_api_server() -> Result<()> {
    let mut cluster = Cluster::new().await?;
    let pod = cluster.pod_in_session().await?;
    cluster.agent.kill9().await?;
    cluster.api.kill9().await?;
    let again = Agent::launch(&cluster.node, AgentOptions::cluster())?;
    eventually("it says what it waits for", async || {
        Ok(again.log().contains("waiting for this node's pods").then_some(()))
    })
    .await?;
    let refused = curl_raw(&pod, PODS, &[]).await?;
    assert!(!refused.succeeded(), "the pod stays refused meanwhile: {refused:?}");
    cluster.api.start_again().await?;
    // The backoff may have come far by now.
    let began = Instant::now();
    while !curl_raw(&pod, PODS, &[]).await?.stderr.contains(" 200") {
        assert!(began.elapsed() < Duration::from_mins(1), "it never goes on");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    Ok(())
}

/// A start that has to wait ends when it is told to: kubelet would kill it otherwise.
#[tokio::test]
async fn sigterm_ends_an_agent_that_waits_for_the_api_server() -> Result<()> {
    let node = Node::new()?;
    let mut agent = Agent::launch(&node, AgentOptions::cluster())?;
    eventually("it says what it waits for", async || {
        Ok(agent.log().contains("waiting for this node's pods").then_some(()))
    })
    .await?;
    agent.terminate()?;
    let status = agent.ended(Duration::from_secs(5)).await?;
    assert!(status.success(), "{status}");
    assert!(!node.pin_dir().exists(), "nothing was put in force");
    Ok(())
}
