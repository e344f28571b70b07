//! Running other programs: what is run is shown, what fails says so, and cargo inside cargo starts clean.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Tells the person at the terminal what is going on.
pub(crate) fn progress(message: impl AsRef<str>) {
    #[expect(clippy::print_stderr, reason = "progress is for the person at the terminal")]
    {
        eprintln!("xtask: {}", message.as_ref());
    }
}

/// Runs a command to its end, its output going where ours goes.
///
/// # Errors
/// Where the program can't be started or doesn't succeed.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let line = describe(command);
    progress(format!("{line} ..."));
    let status = command.status().with_context(|| format!("could not start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed: {status}");
    }
    Ok(())
}

/// Runs a command silently and returns what it wrote to standard output, or `None` where it can't be started or
/// doesn't succeed: for looking what a machine has.
pub(crate) fn probe(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The first executable of that name on `PATH`.
pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|candidate| is_executable(candidate))
}

/// Whether this is a file that somebody may execute.
pub(crate) fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.mode() & 0o111 != 0)
}

/// Whether this process runs as root.
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

/// The cargo that started us, for builds with the person's own toolchain.
pub(crate) fn cargo() -> Command {
    Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Takes out of a command's environment what the cargo and rustup around us put there, so that a cargo of another
/// toolchain, or for another target, isn't steered by it. The person's registry, network and home settings stay.
pub(crate) fn without_cargo_env(command: &mut Command) -> &mut Command {
    for (name, _) in env::vars_os() {
        if steers_cargo(&name) {
            command.env_remove(name);
        }
    }
    // `cargo run` adds its toolchain's library directories; another toolchain must not load those.
    command.env_remove("LD_LIBRARY_PATH")
}

fn steers_cargo(name: &OsStr) -> bool {
    const KEPT: [&str; 8] = [
        "CARGO_HOME",
        "CARGO_HTTP_",
        "CARGO_NET_",
        "CARGO_REGISTRIES_",
        "CARGO_REGISTRY_",
        "CARGO_SOURCE_",
        "CARGO_TERM_",
        "CARGO_BUILD_JOBS",
    ];
    let name = name.to_string_lossy();
    let steers = name == "CARGO"
        || name.starts_with("CARGO_")
        || name.starts_with("RUSTC")
        || name.starts_with("RUSTDOC")
        || name == "RUSTFLAGS"
        || name == "RUSTUP_TOOLCHAIN";
    steers && !KEPT.iter().any(|kept| name.starts_with(kept))
}

/// A command as a person would type it, near enough.
pub(crate) fn describe(command: &Command) -> String {
    let words: Vec<OsString> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_os_string)
        .collect();
    words.join(OsStr::new(" ")).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_registry_settings_and_drops_what_steers_a_build() {
        for kept in [
            "CARGO_HOME",
            "CARGO_NET_OFFLINE",
            "CARGO_REGISTRIES_MINE_INDEX",
            "RUSTUP_HOME",
            "RUST_LOG",
            "PATH",
        ] {
            assert!(!steers_cargo(OsStr::new(kept)), "{kept}");
        }
        for dropped in [
            "CARGO",
            "CARGO_TARGET_DIR",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_BUILD_TARGET",
            "CARGO_PROFILE_RELEASE_LTO",
            "RUSTC",
            "RUSTC_WRAPPER",
            "RUSTFLAGS",
            "RUSTUP_TOOLCHAIN",
        ] {
            assert!(steers_cargo(OsStr::new(dropped)), "{dropped}");
        }
    }
}
