//! The toolchain for the kernel programs: a rustc that may use unstable features, the source of `core`, and a
//! bpf-linker whose LLVM is that rustc's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::apt;
use crate::command::{cargo, is_executable, on_path, probe, progress, run, without_cargo_env};
use crate::workspace;

const BPF_LINKER_VERSION: &str = "0.13.0";
/// The LLVM majors that this bpf-linker can be built with.
const BPF_LINKER_LLVM: [u32; 3] = [21, 22, 23];
/// The oldest rustc that compiles the workspace, as `rust-version` in Cargo.toml has it.
const OLDEST_RUSTC: (u32, u32) = (1, 95);

/// A toolchain that can build for `bpfel-unknown-none`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Toolchain {
    /// The compiler itself, never a rustup proxy.
    pub(crate) rustc: PathBuf,
    /// The cargo beside it.
    pub(crate) cargo: PathBuf,
    /// The linker, built with the compiler's own LLVM.
    pub(crate) linker: PathBuf,
}

/// A compiler that was found, before it is known whether a linker can be had for it.
#[derive(Debug, Clone)]
struct Compiler {
    rustc: PathBuf,
    cargo: PathBuf,
    llvm: u32,
}

/// Finds the toolchain, or brings it: a nightly of rustup's that has rust-src, else the distribution's packages.
///
/// # Errors
/// Where neither can be had; the message says what to type.
pub(crate) fn ebpf() -> Result<Toolchain> {
    let compilers = compilers_here();
    // One that is ready beats one that would have to be made ready.
    if let Some(compiler) = compilers.iter().find(|compiler| linker_llvm() == Some(compiler.llvm)) {
        return Ok(toolchain(compiler));
    }
    for compiler in &compilers {
        match bring_linker(compiler.llvm) {
            Ok(()) => return Ok(toolchain(compiler)),
            Err(error) => progress(format!("{} can't be used: {error:#}", compiler.rustc.display())),
        }
    }
    let compiler = bring_distribution_compiler()?;
    bring_linker(compiler.llvm)?;
    Ok(toolchain(&compiler))
}

fn toolchain(compiler: &Compiler) -> Toolchain {
    Toolchain {
        rustc: compiler.rustc.clone(),
        cargo: compiler.cargo.clone(),
        linker: linker(),
    }
}

/// The compilers on this machine that could do it, the preferred one first.
fn compilers_here() -> Vec<Compiler> {
    rustup_nightly_sysroot()
        .into_iter()
        .chain([PathBuf::from("/usr")])
        .filter_map(|sysroot| compiler_in(&sysroot))
        .collect()
}

fn rustup_nightly_sysroot() -> Option<PathBuf> {
    // Without this, rustup may start to download a nightly that isn't there.
    let sysroot = probe(
        without_cargo_env(&mut Command::new(on_path("rustup")?))
            .env("RUSTUP_AUTO_INSTALL", "0")
            .args(["run", "nightly", "rustc", "--print", "sysroot"]),
    )?;
    Some(sysroot.trim().into())
}

fn compiler_in(sysroot: &Path) -> Option<Compiler> {
    let (rustc, cargo) = (sysroot.join("bin/rustc"), sysroot.join("bin/cargo"));
    let has_source = sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file();
    if !has_source || !is_executable(&rustc) || !is_executable(&cargo) {
        return None;
    }
    let version = probe(without_cargo_env(&mut Command::new(&rustc)).arg("-vV"))?;
    let (release, llvm) = parse_rustc_version(&version)?;
    (release >= OLDEST_RUSTC).then_some(Compiler { rustc, cargo, llvm })
}

/// The release and the LLVM major of a `rustc -vV`.
fn parse_rustc_version(text: &str) -> Option<((u32, u32), u32)> {
    let field = |name| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let release = parse_release(field("release:")?)?;
    let llvm = field("LLVM version:")?.split('.').next()?.parse().ok()?;
    Some((release, llvm))
}

/// The first two numbers of a version such as `1.97.0-nightly` or `1.96.0+dfsg1-1`.
fn parse_release(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The packages of a rustc that is recent enough, its cargo, and its source of `core`. `rustc-web` is the one that
/// Debian's stable releases carry beside their own.
fn recent_packages() -> Option<[&'static str; 3]> {
    [
        ["rustc-web", "cargo-web", "rust-web-src"],
        ["rustc", "cargo", "rust-src"],
    ]
    .into_iter()
    .find(|family| {
        let release = apt::candidate(family[0]).and_then(|version| parse_release(&version));
        release.is_some_and(|release| release >= OLDEST_RUSTC)
    })
}

/// Installs the distribution's rustc, cargo and source of `core`.
fn bring_distribution_compiler() -> Result<Compiler> {
    const BY_HAND: &str = "The kernel programs need a nightly rustc with its source. Type:\n\n    \
        rustup toolchain install nightly --component rust-src\n\nand install the development files of the LLVM that \
        `rustc +nightly -vV` names.";
    if !apt::is_here() {
        bail!(BY_HAND);
    }
    if recent_packages().is_none() {
        // The lists may be older than the package, or there may be none yet.
        apt::update().context(BY_HAND)?;
    }
    let family = recent_packages().with_context(|| {
        format!(
            "this release's packages have no rustc of at least 1.{}. {BY_HAND}",
            OLDEST_RUSTC.1
        )
    })?;
    apt::ensure(&family, "the eBPF build").context(BY_HAND)?;
    compiler_in(Path::new("/usr"))
        .with_context(|| format!("{family:?} are installed, but /usr/bin/rustc is of no use. {BY_HAND}"))
}

fn linker() -> PathBuf {
    workspace::tools().join("bin/bpf-linker")
}

/// The LLVM major of the bpf-linker that we installed, if it is the version we want and starts.
fn linker_llvm() -> Option<u32> {
    probe(Command::new(linker()).arg("--version"))?;
    let records = fs::read_to_string(workspace::tools().join(".crates2.json")).ok()?;
    installed_llvm(&records)
}

/// Reads the LLVM feature of bpf-linker out of what `cargo install` keeps about its root.
fn installed_llvm(records: &str) -> Option<u32> {
    let records: serde_json::Value = serde_json::from_str(records).ok()?;
    let wanted = format!("bpf-linker {BPF_LINKER_VERSION} ");
    let (_, install) = records
        .get("installs")?
        .as_object()?
        .iter()
        .find(|(id, _)| id.starts_with(&wanted))?;
    let features = install.get("features")?.as_array()?;
    features
        .iter()
        .find_map(|feature| feature.as_str()?.strip_prefix("llvm-")?.parse().ok())
}

/// Builds bpf-linker with that LLVM, whose development files are brought where apt has them.
fn bring_linker(llvm: u32) -> Result<()> {
    if linker_llvm() == Some(llvm) {
        return Ok(());
    }
    if !BPF_LINKER_LLVM.contains(&llvm) {
        bail!("bpf-linker {BPF_LINKER_VERSION} can't be built with LLVM {llvm}, only with {BPF_LINKER_LLVM:?}");
    }
    let prefix = bring_llvm(llvm)?;
    progress(format!(
        "building bpf-linker {BPF_LINKER_VERSION} with LLVM {llvm}: once, some minutes"
    ));
    run(without_cargo_env(&mut cargo())
        .args(["install", "--locked", "--force", "--no-default-features"])
        .args(["--features", &format!("llvm-{llvm}")])
        .arg("--root")
        .arg(workspace::tools())
        .arg("--target-dir")
        .arg(workspace::tools().join("build"))
        .args(["bpf-linker", "--version", BPF_LINKER_VERSION])
        .env("LLVM_PREFIX", &prefix))?;
    if linker_llvm() != Some(llvm) {
        bail!("bpf-linker was installed, but `{} --version` fails", linker().display());
    }
    Ok(())
}

/// The prefix of that LLVM's development files.
fn bring_llvm(llvm: u32) -> Result<PathBuf> {
    let debian = PathBuf::from(format!("/usr/lib/llvm-{llvm}"));
    if apt::is_here() {
        let (dev, polly) = (format!("llvm-{llvm}-dev"), format!("libpolly-{llvm}-dev"));
        apt::ensure(&[&dev, &polly, "zlib1g-dev", "libzstd-dev", "g++"], "bpf-linker")?;
        return Ok(debian);
    }
    let config = [
        format!("llvm-config-{llvm}"),
        format!("llvm-config{llvm}"),
        "llvm-config".to_owned(),
    ];
    let prefix = config.iter().find_map(|name| {
        let version = probe(Command::new(name).arg("--version"))?;
        (version.trim().split('.').next()?.parse() == Ok(llvm)).then_some(())?;
        Some(probe(Command::new(name).arg("--prefix"))?.trim().into())
    });
    prefix.with_context(|| format!("install LLVM {llvm}'s development files so that llvm-config is on PATH"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_release_and_llvm_of_rustc() {
        let text = "rustc 1.97.0-nightly (e50aa6fba 2026-05-19)\nrelease: 1.97.0-nightly\nLLVM version: 22.1.4\n";
        assert_eq!(parse_rustc_version(text), Some(((1, 97), 22)));
        assert_eq!(parse_rustc_version("release: 1.97.0\n"), None);
        assert_eq!(parse_release("1.96.0+dfsg1-1~deb12u2"), Some((1, 96)));
        assert_eq!(parse_release("nightly"), None);
    }

    #[test]
    fn reads_the_llvm_of_an_installed_linker() {
        let records = |version: &str| {
            format!(r#"{{"installs":{{"bpf-linker {version} (registry+x)":{{"features":["other","llvm-22"]}}}}}}"#)
        };
        assert_eq!(installed_llvm(&records(BPF_LINKER_VERSION)), Some(22));
        assert_eq!(installed_llvm(&records("0.12.0")), None);
        assert_eq!(installed_llvm("not JSON"), None);
    }
}
