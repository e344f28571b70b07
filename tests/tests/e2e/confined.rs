//! Invariant 3, and what an agent that somebody else steers could do: it holds what it works with, and no more.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context as _, Result};
use understudy_tests::node::{AgentOptions, ApiServer, Node, PodSpec, Session};

use crate::world::{World, becomes, curl, whoami};

/// `CAP_BPF` (39), `CAP_SYS_ADMIN` (21), `CAP_SYS_PTRACE` (19), `CAP_NET_ADMIN` (12).
const KEPT: &str = "0000008000281000";
const NONE: &str = "0000000000000000";

/// The capabilities that `deploy/` grants, as it names them.
fn deployed() -> Result<Vec<String>> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/base/daemonset.yaml");
    let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    let mut lines = text.lines().map(str::trim);
    lines.find(|line| *line == "drop: [ALL]").context("deploy/ drops all")?;
    lines.find(|line| *line == "add:").context("deploy/ adds some")?;
    let names = lines.map_while(|line| line.strip_prefix("- "));
    Ok(names
        .filter_map(|name| name.split_whitespace().next())
        .map(str::to_owned)
        .collect())
}

/// Of each thread of the agent's, the lines of its status that tell of its rights.
fn rights(pid: i32) -> Result<BTreeSet<Vec<(String, String)>>> {
    const LINES: [&str; 8] = [
        "CapInh",
        "CapPrm",
        "CapEff",
        "CapBnd",
        "CapAmb",
        "NoNewPrivs",
        "Seccomp",
        "Seccomp_filters",
    ];
    let mut threads = BTreeSet::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        // One that has just ended has no status any more.
        let Ok(status) = fs::read_to_string(thread?.path().join("status")) else {
            continue;
        };
        let lines = status.lines().filter_map(|line| line.split_once(":\t"));
        threads.insert(
            lines
                .filter(|(name, _)| LINES.contains(name))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
        );
    }
    Ok(threads)
}

fn documented() -> BTreeSet<Vec<(String, String)>> {
    let lines = [
        ("CapInh", NONE),
        ("CapPrm", KEPT),
        ("CapEff", KEPT),
        ("CapBnd", KEPT),
        ("CapAmb", NONE),
        ("NoNewPrivs", "1"),
        // A filter; one from before the first thread, and one from when it serves.
        ("Seccomp", "2"),
        ("Seccomp_filters", "2"),
    ];
    BTreeSet::from([lines.map(|(name, value)| (name.to_owned(), value.to_owned())).into()])
}

/// Started by root with all rights there are.
#[tokio::test]
async fn every_thread_of_the_agent_has_given_up_what_it_does_not_need() -> Result<()> {
    let world = World::with_test_server().await?;
    assert_eq!(whoami(&world.pod).await?, world.viewer());
    let pid = world.agent.pid()?.as_raw();
    assert_eq!(rights(pid)?, documented());
    // Nobody of the same user reads its memory: it belongs to root alone, whoever it runs as.
    let limits = fs::read_to_string(format!("/proc/{pid}/limits"))?;
    assert!(
        limits.contains("Max core file size        0                    0"),
        "{limits}"
    );
    Ok(())
}

/// What `deploy/` grants is enough for everything that an agent does, and for `understudy check` to say so.
#[tokio::test]
async fn the_deployed_capabilities_suffice() -> Result<()> {
    let names = deployed()?;
    assert_eq!(names.len(), 4, "{names:?}");
    let node = Node::new()?;
    let api = ApiServer::start(&node).await?;
    let options = AgentOptions::default().capabilities(&names);
    let world = World::around(node, api, PodSpec::named("shell"), options.clone()).await?;
    assert_eq!(whoami(&world.pod).await?, world.viewer());
    assert_eq!(rights(world.agent.pid()?.as_raw())?, documented());

    // A pod that comes later, of whose namespace nothing is known yet.
    let later = world.node.pod(PodSpec::named("later"))?;
    let session = Session::named("support", "later")
        .acting_as(&world.node.accounts().viewer)
        .for_pod(&later);
    world.node.sessions().write(&session)?;
    becomes(&later, &world.viewer()).await?;

    // Taking over what an agent before has left in force.
    let checked = understudy_tests::node::Agent::check(&world.node, &options)?
        .output()
        .await?;
    assert!(checked.succeeded(), "{checked:?}");
    let agent = world.agent.restart().await?;
    let answer = curl(&world.pod, "/version", &[]).await?;
    assert_eq!(answer.code, 200);
    assert_eq!(rights(agent.pid()?.as_raw())?, documented());
    Ok(())
}
