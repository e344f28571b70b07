//! The kernel programs' counters, summed over CPUs.

use understudy_common::Counter;

/// A snapshot. Each is a total since the programs were first installed on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters([u64; Counter::ALL.len()]);

impl Counters {
    pub(super) fn from_fn<E>(mut read: impl FnMut(Counter) -> Result<u64, E>) -> Result<Self, E> {
        let mut counters = Self::default();
        for counter in Counter::ALL {
            counters.0[counter as usize] = read(counter)?;
        }
        Ok(counters)
    }

    /// One of them.
    #[must_use]
    pub const fn of(&self, counter: Counter) -> u64 {
        self.0[counter as usize]
    }

    /// Connects turned to a listener.
    #[must_use]
    pub const fn redirected(&self) -> u64 {
        self.of(Counter::Redirected)
    }

    /// All, with the name that metrics give each.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Counter::ALL.iter().map(|counter| (counter.name(), self.of(*counter)))
    }
}
