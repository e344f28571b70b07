//! The kernel side as the agent sees it: loading and pinning the programs, and reading and writing their maps.
//! What is enrolled, and when, is `enrol`'s business.

pub mod cgroup;
mod counters;
pub(crate) mod diag;
mod flows;
mod handle;
mod install;
mod link;
mod log;
mod memlock;
mod mounts;
mod pins;
pub mod probe;
pub(crate) mod sys;
pub(crate) mod tcp;

use std::time::Duration;

pub use self::{
    counters::Counters,
    flows::Flow,
    handle::{Kernel, ResumeError},
    install::{InstallError, Options},
    pins::{PinError, uninstall},
};

/// The kernel programs, as built by `cargo xtask ebpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/understudy-ebpf.o"));

/// How many addresses the kernel programs can intercept: the size of their map of them.
pub const API_SERVERS_MOST: usize = 1024;

/// A map that couldn't be read or written.
#[derive(Debug, thiserror::Error)]
#[error("the {map} map: {source}")]
pub struct MapError {
    map: &'static str,
    source: aya::maps::MapError,
}

impl MapError {
    fn of(map: &'static str) -> impl FnOnce(aya::maps::MapError) -> Self {
        move |source| Self { map, source }
    }

    /// What the system says of a map.
    fn system(map: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |error| Self {
            map,
            source: aya::maps::MapError::IoError(error),
        }
    }
}

/// Nanoseconds of `CLOCK_BOOTTIME`, the clock that the kernel programs read.
#[must_use]
pub fn boot_ns() -> u64 {
    // It can't fail for a clock that every kernel has had since 2.6.39; 0 would count as stale.
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).map_or(0, |now| {
        u64::try_from(Duration::from(now).as_nanos()).unwrap_or(u64::MAX)
    })
}
