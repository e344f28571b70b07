//! Counting what the listeners refuse.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why an accepted connection was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The kernel recorded no such connection: somebody dialled the listener's port, or has gone already.
    NoRecord,
    /// The record names another pod, or this one before it was enrolled anew.
    OtherPod,
    /// The record is older than a connection can be.
    Stale,
    /// The flow table can't be read.
    Unreadable,
    /// Its client has reset it, and whoever has its address by now is another.
    Reset,
    /// The descriptors that are left are kept for what isn't a pod's.
    OpenFiles,
}

impl Refusal {
    /// Every reason.
    pub const ALL: [Self; 6] = [
        Self::NoRecord,
        Self::OtherPod,
        Self::Stale,
        Self::Unreadable,
        Self::Reset,
        Self::OpenFiles,
    ];

    /// Its name as metrics have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoRecord => "no_record",
            Self::OtherPod => "other_pod",
            Self::Stale => "stale",
            Self::Unreadable => "unreadable",
            Self::Reset => "reset",
            Self::OpenFiles => "open_files",
        }
    }
}

/// How many connections were refused, by reason.
#[derive(Debug, Default)]
pub struct Refusals([AtomicU64; Refusal::ALL.len()]);

impl Refusals {
    pub(super) fn count(&self, reason: Refusal) {
        self.0[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How many for one reason.
    #[must_use]
    pub fn of(&self, reason: Refusal) -> u64 {
        self.0[reason as usize].load(Ordering::Relaxed)
    }

    /// All, with the name that metrics give each.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Refusal::ALL.iter().map(|reason| (reason.name(), self.of(*reason)))
    }
}
