//! Places in the flow table, counted by enrolment, so that no pod can take them all.

use core::arch::asm;

use understudy_common::{Counter, FlowKey, FlowRecord, has_room};

use crate::maps::{FLOWS, HEARTBEAT, HELD, TAKEN};

/// How many records an enrolment has in the table; none where it isn't counted.
#[inline(always)]
pub(crate) fn held(enrolment: u64) -> Option<u64> {
    let held = HELD.get_ptr(enrolment)?;
    // SAFETY: a value of the map's, as is the next.
    let held = unsafe { held.read_volatile() };
    // SAFETY: as above.
    let taken = TAKEN
        .get_ptr(enrolment)
        .map_or(0, |taken| unsafe { taken.read_volatile() });
    Some(held.saturating_sub(taken))
}

/// Whether the table as a whole has room: a record is put in, and removed again.
#[inline(always)]
pub(crate) fn are_left(trial: FlowKey, record: &FlowRecord) -> bool {
    let room = FLOWS.insert(trial, record, 0).is_ok();
    let _absent = FLOWS.remove(trial);
    room
}

/// Puts a record in, in place of what an earlier socket may have left under its key; or says what is full.
#[inline(always)]
pub(crate) fn fill(key: FlowKey, record: &FlowRecord) -> Result<(), Counter> {
    clear(key);
    // Also here: the connect() may have been long ago, as with TCP Fast Open.
    let most = HEARTBEAT.get(0).map_or(0, |heartbeat| heartbeat.flows_per_pod);
    if !has_room(held(record.enrolment), most) {
        return Err(Counter::PodFull);
    }
    // First, for once the record is there the agent may take it.
    add(record.enrolment, 1);
    if FLOWS.insert(key, record, 0).is_err() {
        add(record.enrolment, -1);
        return Err(Counter::MapFull);
    }
    Ok(())
}

/// Removes a record, if there is one.
#[inline(always)]
pub(crate) fn clear(key: FlowKey) {
    let Some(record) = FLOWS.get_ptr(key) else { return };
    // SAFETY: a value of the map's.
    let enrolment = unsafe { (&raw const (*record).enrolment).read_volatile() };
    if FLOWS.remove(key).is_ok() {
        add(enrolment, -1);
    }
}

#[inline(always)]
fn add(enrolment: u64, number: i64) {
    if let Some(held) = HELD.get_ptr_mut(enrolment) {
        // SAFETY: a value of the map's, aligned as the map aligns values. In one step, for other CPUs count as well; the
        // target's atomics in `core` can't, for they would return what was there, which Linux 5.15 may not know.
        unsafe { asm!("lock *(u64 *)({held} + 0) += {number}", held = in(reg) held, number = in(reg) number) }
    }
}
