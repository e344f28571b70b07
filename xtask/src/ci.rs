//! What must hold before a change lands, the quick things first.

use std::process::Command;

use anyhow::{Context, Result};

use crate::chores::{self, Selection};
use crate::command::{cargo, probe, progress, run};
use crate::instructions::{self, Kept};
use crate::refused::Page;
use crate::setup::{self, Toolchain};
use crate::{boundaries, build, fuzz, invariants, manifests};

const ADVISORY_DATABASE: &str = "https://github.com/RustSec/advisory-db";

/// Format, lints, where unsafe code is, the invariants' tests, the dependencies' terms, what an operator applies, the
/// fuzz targets, and all tests.
///
/// # Errors
/// At the first of them that doesn't hold.
pub(crate) fn ci() -> Result<()> {
    setup::linters()?;
    run(cargo().args(["fmt", "--all", "--check"])).context("run `cargo fmt --all`")?;
    let toolchain = setup::ebpf()?;
    clippy_ebpf(&toolchain)?;
    build::ebpf(&toolchain, false)?;
    run(cargo()
        .args([
            "clippy",
            "--workspace",
            "--exclude",
            "understudy-ebpf",
            "--all-targets",
            "--locked",
        ])
        .args(["--", "--deny", "warnings"]))?;
    // As it is tested; what is above is as it is delivered.
    run(cargo()
        .args(["clippy", "--package", "understudy", "--all-targets", "--locked"])
        .args(["--features", build::TRACES, "--", "--deny", "warnings"]))?;
    boundaries::check()?;
    deny()?;
    invariants::check()?;
    manifests::check()?;
    fuzz::smoke()?;
    instructions::instructions(Kept::Check)?;
    chores::test(&Selection::default(), Page::Check)
}

fn clippy_ebpf(toolchain: &Toolchain) -> Result<()> {
    let clippy = setup::ebpf_clippy(toolchain)?;
    run(build::ebpf_cargo(toolchain, &clippy, "clippy").args(["--", "--deny", "warnings"]))
}

fn deny() -> Result<()> {
    let cargo_deny = setup::cargo_deny()?;
    let mut checks = vec!["bans", "licenses", "sources"];
    if advisories_are_reachable() {
        checks.push("advisories");
    } else {
        progress(format!(
            "{ADVISORY_DATABASE} can't be reached from here: advisories are NOT checked"
        ));
    }
    run(Command::new(cargo_deny)
        .args(["--workspace", "--all-features", "check"])
        .args(checks))
}

/// Whether the advisory database answers, decided within seconds.
fn advisories_are_reachable() -> bool {
    probe(
        Command::new("timeout")
            .args(["10", "git", "ls-remote", "--exit-code", ADVISORY_DATABASE, "HEAD"])
            .env("GIT_TERMINAL_PROMPT", "0"),
    )
    .is_some()
}
