//! What `cargo xtask test --kernel` boots a kernel with.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::apt;
use crate::command::{is_executable, on_path};

/// Makes sure that QEMU is here, and what makes a ramdisk for it.
///
/// # Errors
/// Where one is missing and can't be installed.
pub(crate) fn virtual_machine() -> Result<()> {
    let qemu = match env::consts::ARCH {
        "aarch64" => ("qemu-system-aarch64", "qemu-system-arm"),
        _ => ("qemu-system-x86_64", "qemu-system-x86"),
    };
    let programs = [qemu, ("busybox", "busybox-static"), ("xz", "xz-utils")];
    let mut missing: Vec<&str> = programs
        .iter()
        .filter(|(program, _)| on_path(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    if depmod().is_err() {
        missing.push("kmod");
    }
    apt::ensure(&missing, "booting another kernel")
}

/// The program that indexes a kernel's modules; Debian leaves its directory off a person's own `PATH`.
///
/// # Errors
/// Where it isn't here.
pub(crate) fn depmod() -> Result<PathBuf> {
    on_path("depmod")
        .or_else(|| {
            ["/usr/sbin/depmod", "/sbin/depmod"]
                .map(Path::new)
                .into_iter()
                .find(|path| is_executable(path))
                .map(Path::to_path_buf)
        })
        .context("there is no depmod: install kmod")
}
