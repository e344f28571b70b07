//! Counting enrolments.

use std::sync::atomic::{AtomicU64, Ordering};

/// How often a pod was enrolled since the agent started, and how often that failed.
#[derive(Debug, Default)]
pub struct Attempts {
    done: AtomicU64,
    failed: AtomicU64,
}

impl Attempts {
    pub(super) fn count(&self, done: bool) {
        let counted = if done { &self.done } else { &self.failed };
        counted.fetch_add(1, Ordering::Relaxed);
    }

    /// Each count by name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        [("done", &self.done), ("failed", &self.failed)]
            .map(|(name, count)| (name, count.load(Ordering::Relaxed)))
            .into_iter()
    }
}
