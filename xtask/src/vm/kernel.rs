//! A kernel of Debian's: which there are, and one of them unpacked, never installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::command::{probe, progress, run};
use crate::setup;
use crate::workspace;

/// A kernel that can be booted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// What it calls itself: `6.1.0-56-amd64`.
    pub(crate) release: String,
    /// Its image.
    pub(crate) image: PathBuf,
    /// Its modules, with their index.
    pub(crate) modules: PathBuf,
}

/// Finds the newest of Debian's kernels of that version, and brings it where it isn't here.
///
/// # Errors
/// Where Debian has none of that version (the message lists those that it has), or it can't be brought.
pub(crate) fn find(version: &str) -> Result<Kernel> {
    let kernels = workspace::target().join("kernels");
    if choose(version, &known()?).is_none() {
        // The lists may be older than the kernel, or there may be none yet.
        setup::update_packages()?;
    }
    let known = known()?;
    let release = choose(version, &known).with_context(|| {
        let mut found: Vec<&str> = known.iter().map(String::as_str).collect();
        found.sort_unstable_by_key(|release| numbers(release));
        format!(
            "this machine's package sources have no Linux {version}. They have: {}",
            found.join(", ")
        )
    })?;
    let root = kernels.join(&release);
    if !root.join("complete").is_file() {
        bring(&release, &kernels, &root)?;
    }
    // Releases with a merged /usr have modules there.
    let modules = ["lib/modules", "usr/lib/modules"]
        .iter()
        .map(|modules| root.join(modules).join(&release))
        .find(|modules| modules.is_dir())
        .with_context(|| format!("the package of Linux {release} has no modules"))?;
    Ok(Kernel {
        image: root.join("boot").join(format!("vmlinuz-{release}")),
        modules,
        release,
    })
}

/// The releases of which there is a package.
fn known() -> Result<Vec<String>> {
    let list = probe(Command::new("apt-cache").args(["pkgnames", "linux-image-"]))
        .context("apt-cache can't be run: kernels come from Debian's packages")?;
    Ok(list
        .lines()
        .filter_map(|package| package.strip_prefix("linux-image-"))
        .filter(|release| is_plain(release))
        .map(str::to_owned)
        .collect())
}

/// Whether a release is an ordinary one for this machine: no debug symbols, none unsigned, no other flavour.
fn is_plain(release: &str) -> bool {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "-amd64",
        "aarch64" => "-arm64",
        _ => return false,
    };
    let Some(version) = release.strip_suffix(arch) else {
        return false;
    };
    // A whole version with Debian's own counter; the others are meta-packages, such as linux-image-6.12-amd64.
    version.starts_with(|c: char| c.is_ascii_digit())
        && !["rt", "cloud"].iter().any(|flavour| version.ends_with(flavour))
        && version.split(['.', '-', '+']).count() > 2
}

/// The newest of those that are that version, or begin with it.
fn choose(version: &str, known: &[String]) -> Option<String> {
    known
        .iter()
        .filter(|release| {
            release
                .strip_prefix(version)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '-', '+']))
        })
        .max_by_key(|release| numbers(release))
        .cloned()
}

/// The numbers in a release, in order: later releases compare greater.
fn numbers(release: &str) -> Vec<u64> {
    release
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect()
}

fn bring(release: &str, kernels: &Path, root: &Path) -> Result<()> {
    progress(format!("bringing Linux {release} into {}", kernels.display()));
    if root.exists() {
        fs::remove_dir_all(root).with_context(|| format!("could not remove {}", root.display()))?;
    }
    fs::create_dir_all(root).with_context(|| format!("could not make {}", root.display()))?;
    let package = format!("linux-image-{release}");
    run(Command::new("apt-get")
        .args(["download", "-qq", &package])
        .current_dir(root))?;
    let archive = fs::read_dir(root)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"));
    let Some(archive) = archive else {
        bail!("`apt-get download {package}` left no package in {}", root.display());
    };
    run(Command::new("dpkg-deb").arg("--extract").arg(&archive).arg(root))?;
    fs::remove_file(&archive).with_context(|| format!("could not remove {}", archive.display()))?;
    run(Command::new(setup::depmod()?).arg("--basedir").arg(root).arg(release))?;
    let image = root.join("boot").join(format!("vmlinuz-{release}"));
    ensure!(image.is_file(), "{package} has no {}", image.display());
    fs::write(root.join("complete"), []).context("could not mark the kernel as complete")
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_a_version_is_chosen() {
        let known: Vec<String> = [
            "6.1.0-9-amd64",
            "6.1.0-56-amd64",
            "6.12.117+deb12-amd64",
            "6.12.94+deb12-amd64",
            "6.12.9-amd64",
        ]
        .map(str::to_owned)
        .into();
        let choose = |version| choose(version, &known);
        assert_eq!(choose("6.1").as_deref(), Some("6.1.0-56-amd64"));
        assert_eq!(choose("6.12").as_deref(), Some("6.12.117+deb12-amd64"));
        assert_eq!(choose("6.1.0-9").as_deref(), Some("6.1.0-9-amd64"));
        assert_eq!(choose("6.12.94+deb12-amd64").as_deref(), Some("6.12.94+deb12-amd64"));
        assert_eq!(choose("6"), Some("6.12.117+deb12-amd64".to_owned()));
        assert_eq!(choose("5.15"), None);
        assert_eq!(choose("6.1.0-5"), None);
    }

    #[test]
    fn other_flavours_are_left_out() {
        assert!(is_plain("6.1.0-56-amd64"));
        assert!(is_plain("6.12.117+deb12-amd64"));
        for other in [
            "amd64",
            "6.12-amd64",
            "6.1.0-56-rt-amd64",
            "6.1.0-56-cloud-amd64",
            "6.1.0-56-amd64-dbg",
            "6.1.0-56-amd64-unsigned",
            "6.1.0-56-arm64",
            "rt-amd64",
        ] {
            assert!(!is_plain(other), "{other}");
        }
    }
}
