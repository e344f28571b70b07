//! How long it takes until pods that appear are enrolled.

use std::time::Duration;

use anyhow::Result;
use jiff::Timestamp;
use serde::Serialize;
use understudy_tests::node::Node;

use super::stage;

/// How many pods appear at once, and how often.
const CROWDS: [(usize, usize); 3] = [(1, 5), (250, 1), (1000, 1)];

/// What came of a crowd.
#[derive(Debug, Serialize)]
pub(crate) struct Enrolment {
    /// How many pods.
    pods: usize,
    /// How long it took to make all their cgroups, in milliseconds.
    appeared_ms: f64,
    /// How long it took from the first's cgroup until the last was enrolled, in milliseconds; the median, of several.
    enrolled_ms: f64,
}

pub(crate) async fn measure(quick: bool) -> Result<Vec<Enrolment>> {
    let mut figures = Vec::new();
    for (pods, times) in CROWDS.into_iter().take(if quick { 2 } else { CROWDS.len() }) {
        figures.push(crowds(pods, times).await?);
    }
    Ok(figures)
}

async fn crowds(pods: usize, times: usize) -> Result<Enrolment> {
    let node = Node::new()?;
    let agent = stage::agent(&node).await?;
    let mut taken = Vec::new();
    let mut crowds = Vec::new();
    for number in 0..times {
        let mut crowd = stage::crowd(&node, &format!("crowd-{number}"), pods)?;
        settle(&agent, number + 1).await?;
        let after = agent.log().len();
        let begun = Timestamp::now();
        let before = crowd.appear()?;
        let appeared = before.elapsed();
        let enrolled = stage::last_enrolled(&agent, pods, after).await?;
        taken.push((Duration::try_from(enrolled.duration_since(begun))?, appeared));
        crowds.push(crowd);
    }
    taken.sort_unstable();
    let (enrolled, appeared) = taken[taken.len() / 2];
    Ok(Enrolment {
        pods,
        appeared_ms: appeared.as_secs_f64() * 1e3,
        enrolled_ms: enrolled.as_secs_f64() * 1e3,
    })
}

/// Waits until the agent has so many sessions in force: it knows then which pods it waits for.
async fn settle(agent: &understudy_tests::node::Agent, sessions: usize) -> Result<()> {
    understudy_tests::node::eventually("the session is in force", async || {
        let log = agent.log();
        let in_force = log.lines().filter(|line| line.contains(IN_FORCE)).count();
        Ok((in_force >= sessions).then_some(()))
    })
    .await
}

/// What the log says of a session that comes into force.
const IN_FORCE: &str = "a session comes into force";
