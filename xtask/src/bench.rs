//! The benchmark: release builds, peers, and then the program that runs it.

use std::ffi::OsString;
use std::process::Command;

use anyhow::Result;

use crate::build;
use crate::chores::become_root;
use crate::image;
use crate::setup;
use crate::workspace;

/// Builds all that is measured and measures it. `arguments` are the program's own.
///
/// # Errors
/// Where set-up or a build fails, or the program can't be started. Otherwise this doesn't return.
pub(crate) fn bench(arguments: &[OsString]) -> Result<()> {
    let peers = setup::peers()?;
    let agent = image::static_agent(false)?;
    let binaries = build::benchmark()?;
    let mut command = Command::new(binaries.path("understudy-bench")?);
    command.env("UNDERSTUDY_BIN", agent).envs(binaries.variables());
    if let Some(envoy) = &peers.envoy {
        command.arg("--envoy").arg(envoy);
    }
    if let Some(go) = &peers.go {
        command.arg("--go").arg(go);
    }
    for (peer, why) in &peers.missing {
        command.arg(format!("--missing={peer}={why}"));
    }
    command.arg("--output").arg(workspace::target().join("bench"));
    become_root(command.args(arguments))
}
