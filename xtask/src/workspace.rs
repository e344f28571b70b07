//! Where things lie in the workspace.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// The workspace's root directory.
///
/// `cargo run` names the package's directory in the environment; a bare run of the binary falls back to where it
/// was compiled.
pub(crate) fn root() -> PathBuf {
    let package = env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    package.parent().map_or_else(|| package.clone(), Path::to_path_buf)
}

/// The directory for what set-up brings and the eBPF build leaves. It is the same whatever `CARGO_TARGET_DIR` says,
/// so that the agent's build script can find the eBPF object.
pub(crate) fn target() -> PathBuf {
    root().join("target")
}

/// A directory in there of this name: empty, and there.
///
/// # Errors
/// Where it can't be made so.
pub(crate) fn emptied(name: &str) -> Result<PathBuf> {
    let directory = target().join(name);
    if directory.exists() {
        fs::remove_dir_all(&directory).with_context(|| format!("could not empty {}", directory.display()))?;
    }
    fs::create_dir_all(&directory).with_context(|| format!("could not make {}", directory.display()))?;
    Ok(directory)
}

/// The eBPF object that the agent embeds.
pub(crate) fn ebpf_object() -> PathBuf {
    target().join("ebpf/understudy-ebpf.o")
}

/// The object of an experiment that one test loads (`proxy/tests/shortcut.rs`).
pub(crate) fn shortcut_object() -> PathBuf {
    target().join("ebpf/understudy-shortcut.o")
}

/// The root of `cargo install` for tools that are built from source.
pub(crate) fn tools() -> PathBuf {
    target().join("tools")
}
