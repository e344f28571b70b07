//! The kernel programs' counters, summed over CPUs.

use std::{
    array,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

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

/// When each counter was last seen to go up: no finer than it is looked at.
#[derive(Debug, Default)]
pub(super) struct Rises(Mutex<Option<Seen>>);

#[derive(Debug)]
struct Seen {
    counters: Counters,
    at: [Option<Instant>; Counter::ALL.len()],
}

impl Rises {
    /// The first look tells of nothing: what is counted then may be from long ago.
    pub(super) fn note(&self, counters: &Counters, now: Instant) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(seen) = seen.as_mut() else {
            *seen = Some(Seen {
                counters: *counters,
                at: array::from_fn(|_| None),
            });
            return;
        };
        for counter in Counter::ALL {
            if counters.of(counter) > seen.counters.of(counter) {
                seen.at[counter as usize] = Some(now);
                seen.counters.0[counter as usize] = counters.of(counter);
            }
        }
    }

    /// How long ago that was, where it was.
    pub(super) fn since(&self, counter: Counter, now: Instant) -> Option<Duration> {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = seen.as_ref()?.at[counter as usize]?;
        Some(now.saturating_duration_since(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(pod_full: u64) -> Counters {
        let count = |counter| Ok::<_, ()>(if counter == Counter::PodFull { pod_full } else { 7 });
        Counters::from_fn(count).unwrap()
    }

    #[test]
    fn a_rise_is_remembered_by_when_it_was_seen() {
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        let rises = Rises::default();
        assert_eq!(rises.since(Counter::PodFull, at(0)), None);
        rises.note(&counted(3), at(0));
        assert_eq!(rises.since(Counter::PodFull, at(0)), None, "of an earlier agent");
        rises.note(&counted(4), at(10));
        rises.note(&counted(4), at(20));
        assert_eq!(rises.since(Counter::PodFull, at(25)), Some(Duration::from_secs(15)));
        assert_eq!(rises.since(Counter::MapFull, at(25)), None);
        rises.note(&counted(5), at(30));
        assert_eq!(rises.since(Counter::PodFull, at(30)), Some(Duration::ZERO));
    }
}
