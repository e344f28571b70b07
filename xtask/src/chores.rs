//! Running what was built: the demo and the tests, as root, with the paths they need in their environment.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::build::{self, Binaries};
use crate::command::{cargo, is_root, on_path, progress, run};
use crate::refused::{self, Page};
use crate::screens;
use crate::setup::{self, Clients};

/// Builds everything and becomes the demo.
///
/// # Errors
/// Where set-up or a build fails, or the demo can't be started. Otherwise this doesn't return.
pub(crate) fn demo(shell: bool) -> Result<()> {
    build::ebpf(&setup::ebpf()?, false)?;
    let clients = setup::clients()?;
    let binaries = build::binaries()?;
    let mut command = Command::new(binaries.path("demo")?);
    command.envs(environment(&binaries, &clients));
    if shell {
        command.arg("--shell");
    }
    become_root(&command)
}

/// Which tests to run, and how. The default is all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Selection {
    /// A part of their names.
    pub(crate) filter: Option<String>,
    /// The package they are in.
    pub(crate) package: Option<String>,
    /// Arguments for the test programs themselves.
    pub(crate) harness: Vec<OsString>,
}

/// Builds everything and runs the selected tests.
///
/// # Errors
/// Where set-up or a build fails, or a test does; and after a full run where `docs/refused.md` or `docs/screens` isn't what it saw.
pub(crate) fn test(selection: &Selection, page: Page) -> Result<()> {
    build::ebpf(&setup::ebpf()?, false)?;
    let clients = setup::clients()?;
    let binaries = build::binaries()?;
    let mut command = cargo();
    command.arg("test");
    match &selection.package {
        Some(package) => command.args(["--package", package]),
        None => command.args(["--workspace", "--exclude", "understudy-ebpf"]),
    };
    // As the agent itself was just built, so that there is one build.
    if selection
        .package
        .as_deref()
        .is_none_or(|package| package == "understudy")
    {
        command.args(["--features", build::TRACES]);
    }
    if !is_root() {
        // Compiled as the person, run as root: cargo hands each test binary to this very program.
        let this = env::current_exe().context("could not find out where this program is")?;
        progress("the tests make network namespaces and load kernel programs: they run through sudo");
        command.arg("--config").arg(format!(
            "target.'cfg(all())'.runner=[{:?}, \"as-root\"]",
            this.display().to_string()
        ));
    }
    command.args(&selection.filter).arg("--").args(&selection.harness);
    let (cases, screens) = (refused::directory()?, screens::directory()?);
    run(command
        .envs(environment(&binaries, &clients))
        .env(understudy_cases::DIRECTORY, &cases)
        .env(screens::DIRECTORY, &screens))?;
    if *selection == Selection::default() {
        refused::settle(&cases, page)?;
        screens::settle(&screens, page)?;
    }
    Ok(())
}

/// Becomes `program` as root, with our environment.
///
/// # Errors
/// Where it can't be started. Otherwise this doesn't return.
pub(crate) fn as_root(program: &OsStr, arguments: &[OsString]) -> Result<()> {
    become_root(Command::new(program).args(arguments))
}

fn environment(binaries: &Binaries, clients: &Clients) -> Vec<(String, PathBuf)> {
    let mut variables = binaries.variables();
    variables.push(("UNDERSTUDY_KUBECTL".to_owned(), clients.kubectl.clone()));
    variables.push(("UNDERSTUDY_PYTHON".to_owned(), clients.python.clone()));
    variables
}

/// Becomes what the command says, as root, with our environment.
///
/// # Errors
/// Where it can't be started. Otherwise this doesn't return.
pub(crate) fn become_root(command: &Command) -> Result<()> {
    let mut root = if is_root() {
        let mut same = Command::new(command.get_program());
        same.args(command.get_args());
        same
    } else {
        let sudo = on_path("sudo").context("this needs root, and sudo isn't here: run it as root")?;
        let mut through_sudo = Command::new(sudo);
        // sudo empties the environment and may not be told otherwise, so the variables go as arguments of env(1).
        through_sudo
            .arg("env")
            .args(handed_on(command))
            .arg(command.get_program())
            .args(command.get_args());
        through_sudo
    };
    root.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let error = root.exec();
    Err(error).with_context(|| format!("could not start {}", command.get_program().display()))
}

/// `NAME=value` of each variable that the program needs to see: those set for it and, of ours, those that cargo, the
/// tests and Rust's own tooling read.
fn handed_on(command: &Command) -> Vec<OsString> {
    const PREFIXES: [&str; 6] = [
        "UNDERSTUDY_",
        "CARGO",
        "RUST",
        "KUBEBUILDER_",
        "PROPTEST_",
        "LD_LIBRARY_PATH",
    ];
    const NAMES: [&str; 3] = ["TERM", "NO_COLOR", "CI"];
    let ours = env::vars_os().filter(|(name, _)| {
        let name = name.to_string_lossy();
        PREFIXES.iter().any(|prefix| name.starts_with(prefix)) || NAMES.contains(&&*name)
    });
    let set = command
        .get_envs()
        .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())));
    // A person's own path has no directory of root's programs on Debian.
    let mut path = env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    ours.chain(set)
        .chain([("PATH".into(), path)])
        .map(|(mut assignment, value)| {
            assignment.push("=");
            assignment.push(value);
            assignment
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hands_on_what_was_set_for_the_program() {
        let mut command = Command::new("demo");
        command
            .env("UNDERSTUDY_BIN", "/a b/understudy")
            .env_remove("UNDERSTUDY_GONE");
        let handed_on = handed_on(&command);
        assert!(handed_on.contains(&"UNDERSTUDY_BIN=/a b/understudy".into()));
        assert!(
            handed_on
                .iter()
                .any(|assignment| assignment.to_string_lossy().starts_with("PATH="))
        );
        assert!(
            !handed_on
                .iter()
                .any(|assignment| assignment.to_string_lossy().starts_with("UNDERSTUDY_GONE"))
        );
    }
}
