//! What the acts are played on: a node, an API server, three pods, two sessions and the agent.

use std::time::Duration;

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use understudy_tests::node::{Agent, AgentOptions, ApiServer, Node, Pod, PodSpec, Session, Trust, binaries};

use crate::page::Page;

/// Everything that is on.
pub(crate) struct Stage {
    pub(crate) agent: Agent,
    pub(crate) api: ApiServer,
    pub(crate) tagged: Pod,
    pub(crate) untagged: Pod,
    pub(crate) ended: Pod,
    pub(crate) node: Node,
}

impl Stage {
    /// Builds it, and says so line by line.
    pub(crate) async fn set(page: &Page) -> Result<Self> {
        page.title("Understudy: a pod acts as the service account that its session names");
        let kubectl = binaries::kubectl()?;

        let node = Node::new()?;
        page.step("a node in a box: network namespaces and cgroups of its own, no way out");
        let api = ApiServer::start(&node).await?;
        page.step(&format!("{} on 10.96.0.1:443 and [fd00:96::1]:443", api.description()));

        let tagged = node.pod(PodSpec::named("tagged"))?;
        let untagged = node.pod(PodSpec::named("untagged"))?;
        let ended = node.pod(PodSpec::named("ended"))?;
        page.step(&format!(
            "three pods; each holds only the token of {}, which may do nothing",
            powerless(&node)
        ));

        let viewer = &node.accounts().viewer;
        let running = Session::named("support", "alice").acting_as(viewer).for_pod(&tagged);
        let an_hour_ago = Timestamp::now()
            .checked_sub(Duration::from_hours(1))
            .context("the clock")?;
        let over = Session::named("support", "bob")
            .acting_as(viewer)
            .until(an_hour_ago)
            .for_pod(&ended);
        node.sessions().write(&running)?;
        node.sessions().write(&over)?;
        page.step(&format!(
            "session support/alice for pod tagged, acting as {}",
            viewer.username()
        ));
        page.step("session support/bob for pod ended, which ended an hour ago");

        let agent = Agent::start(&node, AgentOptions::default().trust(Trust::OwnCa)).await?;
        agent.publish_ca([&tagged, &ended])?;
        page.step("understudy agent: its programs are in the kernel, its listeners in the two pods with a session");
        page.step(&format!("{}, unmodified, without a kubeconfig", kubectl.display()));
        Ok(Self {
            agent,
            api,
            tagged,
            untagged,
            ended,
            node,
        })
    }

    /// Leaves the person in the tagged pod until they leave it.
    pub(crate) async fn shell(&self) -> Result<()> {
        let (shell, arguments): (_, &[&str]) = match binaries::on_path("bash") {
            Some(bash) => (bash, &["--norc", "--noprofile"]),
            None => ("/bin/sh".into(), &[]),
        };
        let mut path = std::env::var("PATH").unwrap_or_default();
        // The kubectl that the demo was told to use comes first.
        if let Some(directory) = binaries::kubectl()?.parent() {
            path = format!("{}:{path}", directory.display());
        }
        let shell = self
            .tagged
            .command(shell)
            .args(arguments)
            .env("PATH", &path)
            .env("PS1", "tagged-pod$ ");
        // Its exit code is that of the person's last command, which is none of ours.
        shell.interactive().await.map(drop)
    }
}

fn powerless(node: &Node) -> String {
    node.accounts().powerless.username()
}
