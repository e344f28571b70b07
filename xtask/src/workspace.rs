//! Where things lie in the workspace. Nothing here touches the disk.

use std::env;
use std::path::{Path, PathBuf};

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
