//! A node with an agent that has its sessions from files, and light pods that are its.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use understudy_tests::node::{Agent, AgentOptions, LightPods, Node, Patience, PodSpec, Session};

/// How long many pods may take.
const PATIENCE: Duration = Duration::from_mins(2);

/// A program that lies beside this one.
pub(crate) fn beside(program: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("where this program is")?;
    Ok(own.with_file_name(program))
}

/// Starts the agent as an operator would, but for its log, which has to say when pods were enrolled.
pub(crate) async fn agent(node: &Node) -> Result<Agent> {
    Agent::start(node, AgentOptions::default().log_level("info")).await
}

/// Light pods of a session of their own, which the agent waits for.
pub(crate) fn crowd(node: &Node, session: &str, count: usize) -> Result<LightPods> {
    let specs = (0..count).map(|index| PodSpec::named(&format!("{session}-{index}")));
    let crowd = node.light_pods(specs)?;
    let session = Session::named("bench", session).acting_as(&node.accounts().viewer);
    let session = crowd.pods().iter().fold(session, Session::for_light_pod);
    node.sessions().write(&session)?;
    Ok(crowd)
}

/// Waits until so many pods have been enrolled since the log was so long, and says when the last was.
pub(crate) async fn last_enrolled(agent: &Agent, count: usize, after: usize) -> Result<Timestamp> {
    let all = Patience(PATIENCE).until("all pods are enrolled", async || {
        let enrolled = enrolled(agent.log().get(after..).context("the log grows")?)?;
        Ok((enrolled.len() >= count).then_some(enrolled))
    });
    all.await?.into_iter().max().context("a pod")
}

/// When the pods that a log tells of were enrolled.
fn enrolled(log: &str) -> Result<Vec<Timestamp>> {
    let lines = log.lines().filter(|line| line.contains(" enrolled pod="));
    lines
        .map(|line| {
            let stamp = line.split_whitespace().next().unwrap_or_default();
            stamp.parse().with_context(|| format!("no time: {line}"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_says_when_pods_were_enrolled() {
        let log = "2026-11-22T07:00:00.5Z  INFO understudy::enrol: enrolled pod=a\n\
                   2026-11-22T07:00:01Z  INFO understudy::app: ready\n";
        let stamps = enrolled(log).unwrap();
        assert_eq!(stamps, ["2026-11-22T07:00:00.5Z".parse().unwrap()]);
        assert!(enrolled("soon  INFO enrolled pod=a\n").is_err());
    }
}
