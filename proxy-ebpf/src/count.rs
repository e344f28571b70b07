//! Counting.

use understudy_common::Counter;

use crate::maps::COUNTERS;

/// Adds one on this CPU.
#[inline(always)]
pub(crate) fn count(counter: Counter) {
    if let Some(slot) = COUNTERS.get_ptr_mut(counter.index()) {
        // SAFETY: the slot belongs to this CPU, and socket programs aren't preempted by one another on it for
        // longer than this takes; a lost increment would be all that could happen.
        unsafe { *slot = (*slot).wrapping_add(1) }
    }
}
