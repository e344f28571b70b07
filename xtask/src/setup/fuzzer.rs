//! What `cargo xtask fuzz` needs: cargo-fuzz, a C++ compiler for libFuzzer, and a compiler that takes its options.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::apt;
use crate::command::{cargo, on_path, probe, progress, run, without_cargo_env};
use crate::workspace;

const CARGO_FUZZ_VERSION: &str = "0.13.2";

/// How targets are built here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fuzzer {
    /// The program.
    pub(crate) cargo_fuzz: PathBuf,
    /// The cargo of a nightly toolchain; the person's own where there is none.
    pub(crate) cargo: Option<PathBuf>,
    /// As cargo-fuzz calls it: `address` with a nightly, which has what it links against, else `none`.
    pub(crate) sanitizer: &'static str,
}

/// Finds or brings it.
///
/// # Errors
/// Where cargo-fuzz can't be built.
pub(crate) fn fuzzer() -> Result<Fuzzer> {
    if on_path("c++").is_none() {
        apt::ensure(&["g++"], "cargo xtask fuzz")?;
    }
    let nightly = probe(Command::new("rustup").args(["which", "--toolchain", "nightly", "cargo"]));
    let cargo = nightly.map(|path| PathBuf::from(path.trim()));
    Ok(Fuzzer {
        cargo_fuzz: cargo_fuzz()?,
        sanitizer: if cargo.is_some() { "address" } else { "none" },
        cargo,
    })
}

/// The one on `PATH`, else a pinned one of our own.
fn cargo_fuzz() -> Result<PathBuf> {
    if let Some(path) = on_path("cargo-fuzz") {
        return Ok(path);
    }
    let ours = workspace::tools().join("bin/cargo-fuzz");
    let runs = |path: &PathBuf| {
        probe(Command::new(path).arg("--version")).is_some_and(|version| version.contains(CARGO_FUZZ_VERSION))
    };
    if !runs(&ours) {
        progress("building cargo-fuzz, which takes a minute or two");
        run(without_cargo_env(&mut cargo())
            .args(["install", "--locked", "--root"])
            .arg(workspace::tools())
            .arg("--target-dir")
            .arg(workspace::tools().join("build"))
            .args(["cargo-fuzz", "--version", CARGO_FUZZ_VERSION]))?;
    }
    Some(ours).filter(runs).with_context(|| {
        format!("cargo-fuzz doesn't run. Type:\n\n    cargo install --locked cargo-fuzz@{CARGO_FUZZ_VERSION}\n")
    })
}
