//! Finding what the build and the tests need on this machine, and bringing what is missing.
//!
//! Everything here is quick where nothing is missing, so the other commands simply call it first. What can't be
//! brought is named, with the command to type.

mod apt;
mod clients;
mod ebpf;
mod fuzzer;
mod linters;
mod machine;
mod peers;
mod promtool;

use anyhow::Result;

pub(crate) use apt::update as update_packages;
pub(crate) use clients::{Clients, clients, helm};
pub(crate) use ebpf::{Toolchain, ebpf};
pub(crate) use fuzzer::{Fuzzer, fuzzer};
pub(crate) use linters::{cargo_deny, ebpf_clippy, linters};
pub(crate) use machine::{depmod, virtual_machine};
pub(crate) use peers::peers;
pub(crate) use promtool::promtool;

/// Brings what counts instructions.
///
/// # Errors
/// Where it can't be brought.
pub(crate) fn valgrind() -> Result<()> {
    apt::ensure(&["valgrind"], "`cargo xtask instructions`")
}

/// Finds or brings everything that the demo and the tests need.
///
/// # Errors
/// At the first thing that can't be brought.
pub(crate) fn all() -> Result<()> {
    ebpf()?;
    clients().map(drop)
}
