//! How soon: one pod that appears, hundreds at once, a thousand across an agent's restart. Each figure is printed, and
//! held to a limit that a busy machine keeps.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use serde_json::Value;
use understudy_tests::node::{
    Agent, AgentOptions, LightPod, LightPods, Patience, PodSpec, binaries, eventually, network::SERVICE_V4,
};

use crate::{
    cluster::Cluster,
    world::{curl_raw, whoami},
};

const PODS: &str = "/api/v1/namespaces/prod/pods";

/// EPERM and ECONNREFUSED: what a `connect()` is answered when the agent is dead, and when its heartbeat isn't stale yet.
const REFUSED: [i32; 2] = [1, 111];

/// When the pods that the agent's log has after so many bytes were enrolled.
fn enrolled(agent: &Agent, after: usize) -> Result<Vec<Timestamp>> {
    let log = agent.log();
    let lines = log.get(after..).context("the log grows")?.lines();
    let enrolled = lines.filter(|line| line.contains(" enrolled pod="));
    enrolled
        .map(|line| {
            let stamp = line.split_whitespace().next().unwrap_or_default();
            stamp.parse().with_context(|| format!("no time: {line}"))
        })
        .collect()
}

/// When the last of so many pods was.
async fn last_enrolled(agent: &Agent, pods: usize, after: usize) -> Result<Timestamp> {
    let all = Patience(Duration::from_mins(1)).until("all pods are enrolled", async || {
        let all = enrolled(agent, after)?;
        Ok((all.len() >= pods).then_some(all))
    });
    all.await?.into_iter().max().context("a pod")
}

/// From `begun` until then, by the agent's own clock, which is ours.
async fn time_to_enrol(agent: &Agent, pods: usize, after: usize, begun: Timestamp) -> Result<Duration> {
    let last = last_enrolled(agent, pods, after).await?;
    Ok(last.duration_since(begun).try_into()?)
}

/// Pods of the session, as objects and as processes, which appear when they are told to.
#[expect(clippy::print_stdout, reason = "figures are for whoever reads the test's output")]
async fn crowd(cluster: &Cluster, pods: usize) -> Result<LightPods> {
    let specs = (0..pods).map(|index| {
        PodSpec::named(&format!("pod-{index}"))
            .namespace("support")
            .session("alice")
    });
    let begun = Instant::now();
    let specs = cluster.api.create_pods(specs.collect()).await?;
    let objects = begun.elapsed();
    let crowd = cluster.node.light_pods(specs)?;
    println!(
        "{pods} pods: objects in {objects:?}, with their processes in {:?}",
        begun.elapsed()
    );
    Ok(crowd)
}

/// What comes of a dial to the API server from some of the pods, which have no other way anywhere than the agent's.
async fn dial(crowd: &LightPods) -> Result<Vec<Value>> {
    let some = crowd.pods().iter().step_by(crowd.pods().len() / 10);
    let mut seen = Vec::new();
    for pod in some {
        seen.push(dial_from(crowd, pod).await?);
    }
    Ok(seen)
}

async fn dial_from(crowd: &LightPods, pod: &LightPod) -> Result<Value> {
    let dial = crowd.command(pod, binaries::probe()?);
    let printed = dial.args(["dial", &SERVICE_V4.to_string()]).stdout().await?;
    Ok(serde_json::from_str(&printed)?)
}

/// All of them reach the API server's address, by way of the agent.
async fn assert_turned(crowd: &LightPods) -> Result<()> {
    for seen in dial(crowd).await? {
        assert_eq!(seen["peer"], SERVICE_V4.to_string(), "{seen}");
    }
    Ok(())
}

async fn until_status_counts(cluster: &Cluster, pods: usize) -> Result<()> {
    eventually("the session's status counts them", async || {
        Ok((cluster.status().await?["pods"] == pods).then_some(()))
    })
    .await
}

/// The first thing that must be shown, in figures: the pod's object is there before its cgroup, as with kubelet. Its
/// process comes into the cgroup a moment before it comes into the pod's namespace, as a container runtime's does, and
/// is enrolled twice where the agent looks between the two; the last counts.
#[tokio::test]
async fn a_pod_acts_in_its_session_as_soon_as_it_appears() -> Result<()> {
    let cluster = Cluster::with(AgentOptions::cluster().log_level("info")).await?;
    let mut taken = Vec::new();
    for number in 0..5 {
        let spec = PodSpec::named(&format!("shell-{number}"))
            .namespace("support")
            .session("alice");
        let spec = cluster.api.create_pod(spec).await?;
        let prepared = cluster.node.prepare_pod(spec)?;
        let after = cluster.agent.log().len();
        let begun = Timestamp::now();
        let pod = prepared.appear()?;
        eventually("the pod is answered", async || {
            let output = curl_raw(&pod, PODS, &[]).await?;
            Ok((output.succeeded() && output.stderr.contains(" 200")).then_some(()))
        })
        .await?;
        let answered: Duration = Timestamp::now().duration_since(begun).try_into()?;
        taken.push((time_to_enrol(&cluster.agent, 1, after, begun).await?, answered));
        assert_eq!(whoami(&pod).await?, cluster.viewer());
    }
    println!("since its cgroup appeared, a pod was enrolled, and its first request was answered, within {taken:?}");
    let (enrolled, answered) = taken.iter().min().context("a pod")?;
    assert!(*enrolled < Duration::from_secs(1), "{taken:?}");
    assert!(*answered < Duration::from_secs(2), "{taken:?}");
    Ok(())
}

/// The third.
#[tokio::test]
async fn pods_that_appear_at_once_are_enrolled_within_seconds() -> Result<()> {
    const COUNT: usize = 250;
    let cluster = Cluster::with(AgentOptions::cluster().log_level("info")).await?;
    let mut crowd = crowd(&cluster, COUNT).await?;
    let after = cluster.agent.log().len();
    let begun = Timestamp::now();
    let before = crowd.appear()?;
    let appeared = before.elapsed();
    let taken = time_to_enrol(&cluster.agent, COUNT, after, begun).await?;
    println!("{COUNT} pods appeared within {appeared:?} and were enrolled within {taken:?}");
    assert!(taken < appeared + Duration::from_secs(5), "{taken:?}");
    assert_turned(&crowd).await?;
    until_status_counts(&cluster, COUNT).await
}

/// The third, across restarts: refused while the agent is dead, and all there again soon after it is back.
#[tokio::test]
async fn a_thousand_pods_are_enrolled_again_within_seconds_of_a_restart() -> Result<()> {
    const COUNT: usize = 1000;
    let mut cluster = Cluster::with(AgentOptions::cluster().log_level("info")).await?;
    let mut crowd = crowd(&cluster, COUNT).await?;
    crowd.appear()?;
    last_enrolled(&cluster.agent, COUNT, 0).await?;
    cluster.agent.kill9().await?;
    for seen in dial(&crowd).await? {
        assert!(REFUSED.map(Value::from).contains(&seen["errno"]), "{seen}");
    }
    let after = cluster.agent.log().len();
    let begun = Timestamp::now();
    cluster.agent = cluster.agent.restart().await?;
    let ready: Duration = Timestamp::now().duration_since(begun).try_into()?;
    let taken = time_to_enrol(&cluster.agent, COUNT, after, begun).await?;
    println!("{COUNT} pods were enrolled again within {taken:?} of the start, and the agent ready within {ready:?}");
    assert!(taken < Duration::from_secs(10), "{taken:?}");
    assert_turned(&crowd).await?;
    until_status_counts(&cluster, COUNT).await
}
