//! Building: the kernel programs, and the binaries that the demo and the tests start.

use std::collections::BTreeMap;
use std::env::{self, consts::ARCH};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::command::{cargo, probe, progress, run, without_cargo_env};
use crate::setup::Toolchain;
use crate::workspace;

/// Builds the kernel programs and leaves their object where the agent's build script looks for it.
///
/// # Errors
/// Where the build fails or its result can't be put in place.
pub(crate) fn ebpf(toolchain: &Toolchain, logging: bool) -> Result<()> {
    let mut build = ebpf_cargo(toolchain, &toolchain.cargo, "build");
    if logging {
        build.args(["--features", "log"]);
    }
    run(&mut build).context("the kernel programs don't build")?;
    let objects = ebpf_target().join("bpfel-unknown-none/release");
    put_if_changed(&objects.join("understudy-shortcut"), &workspace::shortcut_object())?;
    put_if_changed(&objects.join("understudy-ebpf"), &workspace::ebpf_object())
}

fn ebpf_target() -> PathBuf {
    workspace::target().join("ebpf-build")
}

/// A cargo subcommand over the kernel programs, for their target and with their linker. `program` is the toolchain's
/// cargo or, for a subcommand that isn't cargo's own, its executable.
pub(crate) fn ebpf_cargo(toolchain: &Toolchain, program: &Path, subcommand: &str) -> Command {
    let flags = [
        format!("-Clinker={}", toolchain.linker.display()),
        "-Clink-arg=--btf".to_owned(),
        // BTF is made from debug information; the profile's line tables alone would leave types out.
        "-Cdebuginfo=2".to_owned(),
        format!("--cfg=bpf_target_arch=\"{ARCH}\""),
    ];
    let mut command = Command::new(program);
    without_cargo_env(&mut command)
        .current_dir(workspace::root())
        .env("CARGO", &toolchain.cargo)
        .env("RUSTC", &toolchain.rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .args([
            subcommand,
            "--quiet",
            "--locked",
            "--package",
            "understudy-ebpf",
            "--release",
        ])
        .args(["--target", "bpfel-unknown-none", "-Zbuild-std=core", "--target-dir"])
        .arg(ebpf_target());
    command
}

/// Executables that cargo built, by the name of their target.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Binaries(BTreeMap<String, PathBuf>);

impl Binaries {
    /// Where that executable is.
    ///
    /// # Errors
    /// Where there is none of that name.
    pub(crate) fn path(&self, name: &str) -> Result<&Path> {
        self.0
            .get(name)
            .map(PathBuf::as_path)
            .with_context(|| format!("cargo built no binary named `{name}`"))
    }

    /// The environment variables that tell the demo and the tests where the executables are: `UNDERSTUDY_BIN` for the
    /// agent, `UNDERSTUDY_<NAME>` for the others.
    pub(crate) fn variables(&self) -> Vec<(String, PathBuf)> {
        let variable = |name: &str| match name {
            "understudy" => "UNDERSTUDY_BIN".to_owned(),
            other => format!("UNDERSTUDY_{}", other.to_uppercase().replace('-', "_")),
        };
        self.0
            .iter()
            .map(|(name, path)| (variable(name), path.clone()))
            .collect()
    }
}

/// The feature that the agent is tested with: it adds to what can be asked for, and the other build is that without these parts.
pub(crate) const TRACES: &str = "understudy/otlp";

/// Builds the agent and the test programs, and says where cargo put them.
///
/// # Errors
/// Where the build fails.
pub(crate) fn binaries() -> Result<Binaries> {
    progress("building the agent and the test programs ...");
    programs(
        &["understudy", "understudy-tests", "understudy-instructions"],
        &["--features", TRACES],
    )
}

/// Builds the benchmark's programs in the release profile, and says where cargo put them. The agent isn't one of them:
/// what is measured is what is delivered, [`static_agent`], without the features that its tests ask of what it uses.
///
/// # Errors
/// Where the build fails.
pub(crate) fn benchmark() -> Result<Binaries> {
    progress("building the benchmark in the release profile: minutes, the first time ...");
    programs(&["understudy-bench", "understudy-tests"], &["--release", "--locked"])
}

fn programs(packages: &[&str], options: &[&str]) -> Result<Binaries> {
    let output = cargo()
        .current_dir(workspace::root())
        .arg("build")
        .args(packages.iter().flat_map(|package| ["--package", package]))
        .arg("--bins")
        .args(options)
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit())
        .output()
        .context("could not start cargo")?;
    if !output.status.success() {
        bail!("the agent and the programs around it don't build");
    }
    Ok(executables(&String::from_utf8_lossy(&output.stdout)))
}

/// Builds the agent as it is delivered, a static executable in the profile `dist`, and says where it is.
///
/// What is in it says nothing of this machine: paths of the tree and of the registry are replaced, so that the same
/// commit and the same compiler make the same bytes. A directory of its own keeps it apart from daily builds, which
/// have other flags.
///
/// # Errors
/// Where the build fails.
pub(crate) fn static_agent(traces: bool) -> Result<PathBuf> {
    progress("building the agent as it is delivered: minutes, the first time ...");
    let triple = format!("{ARCH}-unknown-linux-gnu");
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(env::home_dir()?.join(".cargo")))
        .context("there is neither CARGO_HOME nor a home directory")?;
    let remap = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
    let flags = [
        "-Ctarget-feature=+crt-static".to_owned(),
        // Relocations take 24 bytes each otherwise, all of them read at the start and kept in memory.
        "-Clink-arg=-Wl,-z,pack-relative-relocs".to_owned(),
        remap(&workspace::root(), "/understudy"),
        remap(&cargo_home, "/cargo"),
    ];
    let output = cargo()
        .current_dir(workspace::root())
        .env_remove("RUSTFLAGS")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .args([
            "build",
            "--profile=dist",
            "--locked",
            "--package",
            "understudy",
            "--bins",
        ])
        .args(traces.then_some(["--features", TRACES]).into_iter().flatten())
        // For understudy_build_info. Daily builds have none: each commit would build the agent anew.
        .envs(revision().map(|revision| ("UNDERSTUDY_REVISION", revision)))
        // Naming the target, though it is this machine's, keeps the flags off build scripts and macros.
        .args(["--target", &triple, "--target-dir"])
        .arg(workspace::target().join("image-build"))
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit())
        .output()
        .context("could not start cargo")?;
    if !output.status.success() {
        bail!("the agent doesn't build as a static executable");
    }
    let binaries = executables(&String::from_utf8_lossy(&output.stdout));
    binaries.path("understudy").map(Path::to_path_buf)
}

/// The commit that was built, where the tree is one; `-dirty` behind it where it isn't only that.
pub(crate) fn revision() -> Option<String> {
    let git = |arguments: &[&str]| probe(Command::new("git").current_dir(workspace::root()).args(arguments));
    let commit = git(&["rev-parse", "--verify", "HEAD"])?;
    let changes = git(&["status", "--porcelain", "--untracked-files=no"])?;
    let suffix = if changes.trim().is_empty() { "" } else { "-dirty" };
    Some(format!("{}{suffix}", commit.trim()))
}

/// Picks the executables out of cargo's messages, one JSON object a line.
fn executables(messages: &str) -> Binaries {
    let executable = |line: &str| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let name = message.get("target")?.get("name")?.as_str()?;
        Some((name.to_owned(), message.get("executable")?.as_str()?.into()))
    };
    Binaries(messages.lines().filter_map(executable).collect())
}

/// Copies a file unless the destination already holds the same, so that what depends on it isn't built again.
fn put_if_changed(from: &Path, to: &Path) -> Result<()> {
    let new = fs::read(from).with_context(|| format!("the eBPF build left no {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).with_context(|| format!("could not make {}", parent.display()))?;
    }
    // Whole or not at all: a build script may be reading it.
    let partial = to.with_extension("partial");
    fs::write(&partial, &new).with_context(|| format!("could not write {}", partial.display()))?;
    fs::rename(&partial, to).with_context(|| format!("could not write {}", to.display()))?;
    progress(format!("{} is new: {} bytes", to.display(), new.len()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_executables_among_cargos_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"rustls"},"executable":null}
{"reason":"compiler-artifact","target":{"name":"understudy"},"executable":"/t/debug/understudy"}
{"reason":"compiler-artifact","target":{"name":"api-server"},"executable":"/t/debug/api-server"}
{"reason":"build-finished","success":true}"#;
        let binaries = executables(messages);
        assert_eq!(binaries.path("understudy").unwrap(), Path::new("/t/debug/understudy"));
        assert!(binaries.path("rustls").is_err());
        assert_eq!(
            binaries.variables(),
            [
                ("UNDERSTUDY_API_SERVER".to_owned(), PathBuf::from("/t/debug/api-server")),
                ("UNDERSTUDY_BIN".to_owned(), PathBuf::from("/t/debug/understudy")),
            ]
        );
    }
}
