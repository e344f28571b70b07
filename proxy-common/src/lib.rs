//! Types that the agent and its kernel programs share, and the decision that both must agree on.
//!
//! Everything that crosses the boundary is `repr(C)`, made of fixed-width integers, free of padding
//! ([`bytemuck::Pod`] refuses it), and pinned down by constant assertions on size and offsets. Nothing here does
//! input or output.
//!
//! Addresses are 16 bytes, IPv4 as IPv4-mapped IPv6; ports are in host byte order; times are nanoseconds of
//! `CLOCK_BOOTTIME`.
#![no_std]
#![deny(unsafe_code)]
#![expect(
    clippy::inline_always,
    reason = "the verifier sees through what is inlined, and calls cost stack"
)]

mod address;
mod counter;
mod layout;
#[cfg(feature = "user")]
mod user;
mod verdict;

pub use self::{
    address::{Address, Endpoint, Family},
    counter::Counter,
    layout::{FlowKey, FlowRecord, Heartbeat, Origin, PodEntry},
    verdict::{Dial, Verdict, decide, has_room},
};

/// Goes up with every change to a type in this crate, or to what one of its fields means. An agent refuses pinned
/// maps of another version.
pub const LAYOUT_VERSION: u32 = 3;

/// How many levels below the root of cgroup v2 a pod's cgroup may lie. The kernel programs look no deeper; a
/// process may sit at any depth below its pod's cgroup.
pub const MAX_CGROUP_LEVELS: u32 = 32;

/// How many marks there are: a power of two, and many times the pods of a node.
pub const MARKS: u32 = 16_384;

/// The mark of a cgroup. It is set before the cgroup is among the tagged pods, and never taken back: one that isn't set says
/// for less than a look-up that a cgroup isn't tagged.
#[must_use]
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "it is less than MARKS, which is a u32")]
pub const fn mark(cgroup_id: u64) -> u32 {
    // Ids are given out one after the other.
    (cgroup_id & (MARKS as u64 - 1)) as u32
}

/// How long a flow record stays good: longer than a connection waits in a listener's queue, shorter than a port
/// number takes to come round.
pub const FLOW_LIFETIME_NS: u64 = 60_000_000_000;

/// The names of the maps, as they are pinned.
pub mod map {
    /// Tagged pods: cgroup id to [`PodEntry`](crate::PodEntry).
    pub const PODS: &str = "PODS";
    /// Which of the lower bits of cgroup ids tagged pods have had, by [`mark`](crate::mark): a `u32` for each, 0 for none.
    pub const MARKS: &str = "MARKS";
    /// The API server's addresses: [`Endpoint`](crate::Endpoint) to nothing of meaning.
    pub const API_SERVERS: &str = "API_SERVERS";
    /// What a redirected socket dialled: socket storage of [`Origin`](crate::Origin).
    pub const ORIGINS: &str = "ORIGINS";
    /// Connections on their way to a listener: [`FlowKey`](crate::FlowKey) to [`FlowRecord`](crate::FlowRecord).
    pub const FLOWS: &str = "FLOWS";
    /// By enrolment, the records that its connects put into the flow table, less those that the programs removed again:
    /// a `u64` that the programs alone write once it is there.
    pub const HELD: &str = "HELD";
    /// By enrolment, the records that agents removed: a `u64` that an agent alone writes. `HELD` less this is what the
    /// enrolment has in the table.
    pub const TAKEN: &str = "TAKEN";
    /// One [`Heartbeat`](crate::Heartbeat).
    pub const HEARTBEAT: &str = "HEARTBEAT";
    /// A per-CPU `u64` for each [`Counter`](crate::Counter).
    pub const COUNTERS: &str = "COUNTERS";
}

/// The kernel programs' names, in the order in which they are put in force: those that complete a redirect stand
/// before those that begin one.
pub const PROGRAMS: [&str; 6] = [
    "flow_record",
    "socket_release",
    "peer_name4",
    "peer_name6",
    "connect4",
    "connect6",
];
