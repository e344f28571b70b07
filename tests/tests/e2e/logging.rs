//! The log's levels, changed while the agent runs.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill};
use tokio::time::sleep;
use understudy_tests::node::{AgentOptions, TestServerOptions, binaries, eventually};

use crate::world::World;

/// What only debug level says.
const DETAIL: &str = "a connection was not served";

/// Whether the agent's log has details now: the pod is made to give it one, by speaking HTTP without TLS.
async fn says_details(world: &World) -> Result<bool> {
    let before = world.agent.log().matches(DETAIL).count();
    let curl = binaries::on_path("curl").context("curl is not on PATH: apt-get install curl")?;
    let dial = world
        .pod
        .command(curl)
        .args(["--silent", "http://kubernetes.default.svc:443/api"]);
    dial.output().await?.success()?;
    // The answer comes before the line.
    sleep(Duration::from_millis(300)).await;
    Ok(world.agent.log().matches(DETAIL).count() > before)
}

#[tokio::test]
async fn levels_change_by_a_file_and_by_signals() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("level");
    let options = AgentOptions::default()
        .log_level("info")
        .args(["--log-level-file", &file.display().to_string()]);
    let world = World::with(&TestServerOptions::default(), options).await?;
    let changes = |count: usize| {
        let world = &world;
        async move {
            eventually("the levels are changed", async || {
                Ok((world.agent.log().matches("the log's levels were changed").count() >= count).then_some(()))
            })
            .await
        }
    };
    assert!(!says_details(&world).await?);
    fs::write(&file, "info,understudy=debug\n")?;
    changes(1).await?;
    assert!(says_details(&world).await?);
    kill(world.agent.pid()?, Signal::SIGUSR2)?;
    changes(2).await?;
    assert!(!says_details(&world).await?);
    kill(world.agent.pid()?, Signal::SIGUSR1)?;
    changes(3).await?;
    assert!(says_details(&world).await?);
    // What can't be understood is complained of, and changes nothing.
    fs::write(&file, "understudy=loud\n")?;
    eventually("the file is complained of", async || {
        Ok(world
            .agent
            .log()
            .contains("the log's levels stay as they were")
            .then_some(()))
    })
    .await?;
    assert!(says_details(&world).await?);
    Ok(())
}
