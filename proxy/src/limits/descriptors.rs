//! Keeps some of the process's file descriptors for what isn't a pod's: probes, files, listeners.
//!
//! The kernel gives out the lowest number that is free. A number close to the limit so says that nearly all below it
//! are taken, without anything being counted.

use std::os::fd::{AsFd, AsRawFd};

use nix::sys::resource::{Resource, getrlimit};

/// An eighth of all is kept, this many at least,
const LEAST: u64 = 32;
/// and this many at most.
const MOST: u64 = 1024;

/// Whether a descriptor is one of those that are kept: whoever holds it for a pod has to close it.
#[must_use]
pub fn is_reserved(descriptor: &impl AsFd) -> bool {
    let number = u64::try_from(descriptor.as_fd().as_raw_fd()).unwrap_or(0);
    // It always works for this resource; where it didn't, there would be no limit to keep from.
    getrlimit(Resource::RLIMIT_NOFILE).is_ok_and(|(limit, _)| number >= limit.saturating_sub(reserve(limit)))
}

fn reserve(limit: u64) -> u64 {
    (limit / 8).clamp(LEAST, MOST)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(64, 32)]
    #[case(1024, 128)]
    #[case(1 << 20, 1024)]
    #[case(u64::MAX, 1024)]
    fn an_eighth_is_kept(#[case] limit: u64, #[case] expected: u64) {
        assert_eq!(reserve(limit), expected);
    }

    #[test]
    fn a_low_number_is_for_anybody() {
        assert!(!is_reserved(&std::io::stderr()));
    }
}
