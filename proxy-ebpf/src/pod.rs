//! Which tagged pod the current task belongs to.

use aya_ebpf::helpers::generated::bpf_get_current_ancestor_cgroup_id;
use understudy_common::{MAX_CGROUP_LEVELS, PodEntry, mark};

use crate::maps::{MARKS, PODS};

/// A tagged pod as it was at this moment.
pub(crate) struct Tagged {
    pub(crate) cgroup_id: u64,
    pub(crate) entry: PodEntry,
}

/// Walks down from the root of the hierarchy to the task's own cgroup. The walk passes the pod however deep below
/// it the task sits, so a pod can't nest itself out of reach. Of several tagged ancestors the nearest counts.
#[inline(always)]
pub(crate) fn current() -> Option<Tagged> {
    let mut found = 0;
    for level in 0..MAX_CGROUP_LEVELS {
        // SAFETY: a helper without preconditions. It returns 0 below the task's own level.
        let id = unsafe { bpf_get_current_ancestor_cgroup_id(level.cast_signed()) };
        if id == 0 {
            break;
        }
        // Hardly any cgroup of a node is a tagged pod's, and this says so in a tenth of the time.
        if is_marked(id) && PODS.get_ptr(id).is_some() {
            found = id;
        }
    }
    if found == 0 {
        return None;
    }
    // SAFETY: entries are replaced as a whole, and the pointer is read at once. A reader may see a half-replaced
    // entry; its parts are then from two enrolments of one pod, and the agent refuses what comes of that.
    let entry = unsafe { *PODS.get_ptr(found)? };
    Some(Tagged {
        cgroup_id: found,
        entry,
    })
}

#[inline(always)]
fn is_marked(id: u64) -> bool {
    // A mark that can't be read is as good as set.
    // SAFETY: a value of the map's.
    MARKS
        .get_ptr(mark(id))
        .is_none_or(|mark| unsafe { mark.read_volatile() } != 0)
}
