//! Fuzzing: building the targets of `proxy/fuzz`, and running them over the kept corpora and what they find beside.

use std::env::consts::ARCH;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command::run;
use crate::setup::{self, Fuzzer};
use crate::workspace;

/// What one target is run for where nothing else is said: whichever is reached first.
const RUNS: u64 = 10_000_000;
const SECONDS: u64 = 600;
/// In CI: over the kept corpus, and a little beyond.
const SMOKE_RUNS: u64 = 4_000;
const SMOKE_SECONDS: u64 = 12;

/// Which targets to run, for how long, and what to do with what they found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// One target's name; all of them where there is none.
    pub(crate) target: Option<String>,
    /// Executions of each.
    pub(crate) runs: Option<u64>,
    /// Seconds of each.
    pub(crate) seconds: Option<u64>,
    /// Put what covers more into the kept corpora.
    pub(crate) keep: bool,
}

/// Builds the targets and runs them.
///
/// # Errors
/// Where something can't be built, or a target finds something.
pub(crate) fn fuzz(options: &Options) -> Result<()> {
    let targets = match &options.target {
        Some(target) => vec![target.clone()],
        None => targets()?,
    };
    let (runs, seconds) = match (options.runs, options.seconds) {
        (None, None) => (RUNS, SECONDS),
        (runs, seconds) => (runs.unwrap_or(u64::MAX), seconds.unwrap_or(0)),
    };
    let built = build()?;
    for target in &targets {
        let found = found(target)?;
        run(command(&built, target)?
            .arg(&found)
            .arg(kept(target))
            .args(limits(runs, seconds))
            .arg("-print_final_stats=1"))
        .with_context(|| format!("{target} doesn't hold: the input is in {}", artifacts(target).display()))?;
        if options.keep {
            // Short ones only: seeds are read by people, and stay in the tree for good.
            run(command(&built, target)?
                .args(["-merge=1", "-max_len=512"])
                .arg(kept(target))
                .arg(&found))?;
        }
    }
    Ok(())
}

/// Every target over its kept corpus and a few thousand inputs more, the same ones each time.
///
/// # Errors
/// As of [`fuzz`].
pub(crate) fn smoke() -> Result<()> {
    let built = build()?;
    for target in targets()? {
        // What is found goes to the first of the directories, and the kept corpus stays as it is.
        let beside = workspace::emptied(&format!("fuzz-smoke/{target}"))?;
        run(command(&built, &target)?
            .arg(&beside)
            .arg(kept(&target))
            .args(["-seed=1", "-verbosity=0"])
            .args(limits(SMOKE_RUNS, SMOKE_SECONDS)))
        .with_context(|| {
            format!(
                "{target} doesn't hold: the input is in {}",
                artifacts(&target).display()
            )
        })?;
    }
    Ok(())
}

fn directory() -> PathBuf {
    workspace::root().join("proxy/fuzz")
}

fn kept(target: &str) -> PathBuf {
    directory().join("corpus").join(target)
}

fn artifacts(target: &str) -> PathBuf {
    directory().join("artifacts").join(target)
}

/// Where a target's finds beyond the kept corpus go.
fn found(target: &str) -> Result<PathBuf> {
    let path = workspace::target().join("fuzz-corpus").join(target);
    fs::create_dir_all(&path).with_context(|| format!("could not make {}", path.display()))?;
    Ok(path)
}

/// By their files.
fn targets() -> Result<Vec<String>> {
    let path = directory().join("fuzz_targets");
    let mut names = Vec::new();
    for entry in fs::read_dir(&path).with_context(|| format!("could not list {}", path.display()))? {
        let file = entry?.path();
        names.extend(file.file_stem().map(|name| name.to_string_lossy().into_owned()));
    }
    names.sort();
    if names.is_empty() {
        bail!("{} has no targets", path.display());
    }
    Ok(names)
}

fn limits(runs: u64, seconds: u64) -> [String; 5] {
    [
        format!("-runs={}", i64::try_from(runs).map_or(-1, |runs| runs)),
        format!("-max_total_time={seconds}"),
        "-timeout=10".to_owned(),
        "-rss_limit_mb=2048".to_owned(),
        "-max_len=8192".to_owned(),
    ]
}

/// Builds all targets, and says where they are.
fn build() -> Result<PathBuf> {
    let Fuzzer {
        cargo_fuzz,
        cargo,
        sanitizer,
    } = setup::fuzzer()?;
    let target_dir = workspace::target().join("fuzz");
    let mut build = Command::new(cargo_fuzz);
    build
        .current_dir(workspace::root())
        .args(["build", "--fuzz-dir", "proxy/fuzz", "--sanitizer", sanitizer])
        .arg("--target-dir")
        .arg(&target_dir)
        .env_remove("RUSTUP_TOOLCHAIN")
        // cargo-fuzz asks for coverage by options that a stable compiler takes only so.
        .env("RUSTC_BOOTSTRAP", "1")
        // It asks for line tables too, which are four fifths of each target's 200 MB: compressed, a fourth of that.
        .env("RUSTFLAGS", "-Clink-arg=-Wl,--compress-debug-sections=zlib");
    if let Some(cargo) = cargo {
        build.env("RUSTC", cargo.with_file_name("rustc")).env("CARGO", cargo);
    }
    run(&mut build).context("the fuzz targets don't build")?;
    Ok(target_dir.join(format!("{ARCH}-unknown-linux-gnu")).join("release"))
}

fn command(built: &Path, target: &str) -> Result<Command> {
    let program = built.join(target);
    if !program.is_file() {
        bail!("there is no fuzz target {target}: `ls proxy/fuzz/fuzz_targets` lists them");
    }
    let artifacts = artifacts(target);
    fs::create_dir_all(&artifacts).with_context(|| format!("could not make {}", artifacts.display()))?;
    let mut command = Command::new(program);
    command.arg(format!("-artifact_prefix={}/", artifacts.display()));
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_is_a_binary_of_the_package() {
        let manifest = fs::read_to_string(directory().join("Cargo.toml")).unwrap();
        let names = targets().unwrap();
        for name in &names {
            assert!(
                manifest.contains(&format!("name = {name:?}\npath = \"fuzz_targets/{name}.rs\"")),
                "{name}"
            );
        }
        assert_eq!(manifest.matches("[[bin]]").count(), names.len());
    }

    #[test]
    fn corpora_stay_small() {
        let mut bytes = 0;
        for target in targets().unwrap() {
            for seed in fs::read_dir(kept(&target)).unwrap() {
                bytes += seed.unwrap().metadata().unwrap().len();
            }
        }
        assert!((1..1_000_000).contains(&bytes), "{bytes} bytes of corpora");
    }
}
