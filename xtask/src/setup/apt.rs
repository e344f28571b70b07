//! Debian packages: which are installed, which can be had, and installing them, as root or through sudo.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command::{is_root, on_path, probe, progress, run};

/// Whether this machine installs packages with apt.
pub(crate) fn is_here() -> bool {
    on_path("apt-get").is_some() && on_path("dpkg-query").is_some()
}

/// Installs those of the packages that aren't installed yet, and does nothing where all are.
///
/// # Errors
/// Where a package is missing and can't be installed; the message names the packages and the command to type.
pub(crate) fn ensure(packages: &[&str], why: &str) -> Result<()> {
    let missing: Vec<&str> = packages
        .iter()
        .copied()
        .filter(|package| !is_installed(package))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !is_here() {
        bail!(
            "{why} needs what Debian packages as `{list}`, and this machine has no apt: install the like of them by hand"
        );
    }
    progress(format!("{why} needs {list}: installing"));
    install(&missing).with_context(|| {
        format!("{why} needs {list}, which could not be installed. Type:\n\n    sudo apt-get install {list}\n")
    })
}

/// Whether the package is installed.
pub(crate) fn is_installed(package: &str) -> bool {
    probe(Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Status}", package]))
        .is_some_and(|status| status == "installed")
}

/// The version of the package that apt would install, as far as its lists know: [`update`] refreshes them.
pub(crate) fn candidate(package: &str) -> Option<String> {
    let policy = probe(Command::new("apt-cache").env("LC_ALL", "C").args(["policy", package]))?;
    parse_candidate(&policy)
}

fn parse_candidate(policy: &str) -> Option<String> {
    let version = policy
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate:"))?
        .trim();
    (version != "(none)").then(|| version.to_owned())
}

fn install(packages: &[&str]) -> Result<()> {
    // Never take something of the person's away to make room: Debian's rustc-web conflicts with its rustup, say.
    let install = || {
        run(privileged("env")?
            .args([
                "DEBIAN_FRONTEND=noninteractive",
                "apt-get",
                "install",
                "-qq",
                "-o",
                "Dpkg::Use-Pty=0",
            ])
            .args(["--no-install-recommends", "--no-remove"])
            .args(packages))
    };
    if packages.iter().all(|package| candidate(package).is_some()) && install().is_ok() {
        return Ok(());
    }
    // Either the lists don't know a package or they name a version that the mirror has since replaced.
    update()?;
    install()
}

/// Brings the package's files below `directory`, and installs nothing: what it would start as a service stays away.
///
/// # Errors
/// Where it can't be had here.
pub(crate) fn unpack(package: &str, directory: &Path) -> Result<()> {
    if !is_here() {
        bail!("{package} can't be brought: this machine has no apt");
    }
    fs::create_dir_all(directory).with_context(|| format!("could not make {}", directory.display()))?;
    let download = || {
        run(Command::new("apt-get")
            .current_dir(directory)
            .args(["download", "-qq", package]))
    };
    if candidate(package).is_none() || download().is_err() {
        update()?;
        download()?;
    }
    let prefix = format!("{package}_");
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_string_lossy().starts_with(&prefix) {
            run(Command::new("dpkg-deb")
                .arg("--extract")
                .arg(entry.path())
                .arg(directory))?;
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Refreshes apt's lists.
///
/// # Errors
/// Where apt can't.
pub(crate) fn update() -> Result<()> {
    run(privileged("apt-get")?.args(["update", "--quiet"]))
}

/// A command that runs as root: as it is where we are root, else through sudo.
pub(crate) fn privileged(program: &str) -> Result<Command> {
    if is_root() {
        return Ok(Command::new(program));
    }
    let sudo = on_path("sudo").context("this needs root, and sudo isn't here: run it as root")?;
    let mut command = Command::new(sudo);
    command.arg(program);
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_candidate_of_apt_cache_policy() {
        let policy = "rustc-web:\n  Installed: (none)\n  Candidate: 1.96.0+dfsg1-1~deb12u2\n  Version table:\n";
        assert_eq!(parse_candidate(policy).as_deref(), Some("1.96.0+dfsg1-1~deb12u2"));
        assert_eq!(parse_candidate("x:\n  Installed: (none)\n  Candidate: (none)\n"), None);
        assert_eq!(parse_candidate(""), None);
    }
}
