//! Where the programs are: those of this workspace, beside the one that runs, and the clients, on PATH. A variable
//! names another: `UNDERSTUDY_BIN` for the agent, and `UNDERSTUDY_KUBECTL`, `UNDERSTUDY_PYTHON`, `UNDERSTUDY_APISERVER`
//! or `UNDERSTUDY_PROBE`.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

/// The agent.
///
/// # Errors
/// It isn't built.
pub fn understudy() -> Result<PathBuf> {
    named("UNDERSTUDY_BIN")?.map_or_else(|| sibling("understudy"), Ok)
}

/// The test API server.
///
/// # Errors
/// It isn't built.
pub fn apiserver() -> Result<PathBuf> {
    sibling("apiserver")
}

/// The program that asks and listens inside the box for those that can't enter it.
///
/// # Errors
/// It isn't built.
pub fn probe() -> Result<PathBuf> {
    sibling("probe")
}

/// kubectl, as its makers ship it.
///
/// # Errors
/// There is none.
pub fn kubectl() -> Result<PathBuf> {
    match named("UNDERSTUDY_KUBECTL")? {
        Some(path) => Ok(path),
        None => on_path("kubectl").context("kubectl is not on PATH: install it, or name it with UNDERSTUDY_KUBECTL"),
    }
}

/// A python that has the `kubernetes` client and asciinema.
///
/// # Errors
/// The variable is not set.
pub fn python() -> Result<PathBuf> {
    named("UNDERSTUDY_PYTHON")?.context(
        "UNDERSTUDY_PYTHON is not set: name a python3 that has the packages `kubernetes` and `asciinema` (`cargo xtask test` does)",
    )
}

/// The directory of the ecosystem's convention with a real `etcd` and `kube-apiserver`, where one is given.
#[must_use]
pub fn kubebuilder_assets() -> Option<PathBuf> {
    env::var_os("KUBEBUILDER_ASSETS")
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}

/// The first executable file of that name on PATH.
#[must_use]
pub fn on_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|directory| directory.join(program))
        .find(|file| is_executable(file))
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok()
}

fn named(variable: &str) -> Result<Option<PathBuf>> {
    let Some(value) = env::var_os(variable).filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    let path = PathBuf::from(value);
    if !is_executable(&path) {
        bail!("{variable} names {}, which is not an executable file", path.display());
    }
    // The box runs programs with a working directory of their own.
    Ok(Some(std::path::absolute(path)?))
}

fn sibling(program: &str) -> Result<PathBuf> {
    if let Some(path) = named(&format!("UNDERSTUDY_{}", program.to_uppercase()))? {
        return Ok(path);
    }
    let own = env::current_exe().context("where this program is")?;
    // A test's own program lies one directory below the others, in deps/.
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join(program))
        .find(|file| is_executable(file))
        .with_context(|| {
            format!(
                "{program} is not built beside {}: cargo build --workspace",
                own.display()
            )
        })
}
