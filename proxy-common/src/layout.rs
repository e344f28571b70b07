//! The maps' keys and values.

use bytemuck::{Pod, Zeroable};
use core::mem::{offset_of, size_of};

use crate::{Address, Endpoint, Family};

/// A tagged pod, by the id of its cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct PodEntry {
    /// The network namespace in which its listeners are. 0: none yet.
    pub netns_cookie: u64,
    /// Unlike any other enrolment's, also of the same cgroup and across agents: what is left over from an earlier
    /// one can be told.
    pub enrolment: u64,
    /// The port of its listener on 127.0.0.1; 0 where there is none, and connects are refused.
    pub port4: u16,
    /// The port of its listener on `::1`, likewise.
    pub port6: u16,
    /// Written as 0.
    pub reserved: u32,
}

const _: () = assert!(size_of::<PodEntry>() == 24);
const _: () = assert!(
    offset_of!(PodEntry, netns_cookie) == 0
        && offset_of!(PodEntry, enrolment) == 8
        && offset_of!(PodEntry, port4) == 16
        && offset_of!(PodEntry, port6) == 18
        && offset_of!(PodEntry, reserved) == 20
);

impl PodEntry {
    /// A tagged pod whose connects to the API server are refused.
    #[must_use]
    pub const fn without_listener(enrolment: u64) -> Self {
        Self {
            netns_cookie: 0,
            enrolment,
            port4: 0,
            port6: 0,
            reserved: 0,
        }
    }

    /// The listener's port for a family; 0 where there is none.
    #[must_use]
    #[inline(always)]
    pub const fn port(&self, family: Family) -> u16 {
        match family {
            Family::V4 => self.port4,
            Family::V6 => self.port6,
        }
    }
}

/// The agent's sign of life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Heartbeat {
    /// When it was last written; 0 for never.
    pub boot_ns: u64,
    /// How old it may be.
    pub max_age_ns: u64,
    /// The [`LAYOUT_VERSION`](crate::LAYOUT_VERSION) of the agent that made the maps; 0 where none has run.
    pub layout: u32,
    /// How many places in the flow table an enrolment may hold.
    pub flows_per_pod: u32,
}

const _: () = assert!(size_of::<Heartbeat>() == 24);
const _: () = assert!(
    offset_of!(Heartbeat, boot_ns) == 0
        && offset_of!(Heartbeat, max_age_ns) == 8
        && offset_of!(Heartbeat, layout) == 16
        && offset_of!(Heartbeat, flows_per_pod) == 20
);

impl Heartbeat {
    /// Whether the agent is alive as far as one can tell.
    #[must_use]
    #[inline(always)]
    pub const fn is_fresh(&self, now_ns: u64) -> bool {
        self.boot_ns != 0 && now_ns.saturating_sub(self.boot_ns) <= self.max_age_ns
    }
}

/// A connection on its way to a listener. Both ends are named, so that no two live sockets of a namespace share
/// a key: two host-network pods may well use one source port towards their two listeners.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Pod, Zeroable)]
#[repr(C)]
pub struct FlowKey {
    /// The namespace of both ends.
    pub netns_cookie: u64,
    /// The client's address and port.
    pub client: Endpoint,
    /// The listener's port; its address follows from the client's family.
    pub listener_port: u16,
    /// Written as 0.
    pub reserved: u16,
}

const _: () = assert!(size_of::<FlowKey>() == 32);
const _: () = assert!(
    offset_of!(FlowKey, netns_cookie) == 0
        && offset_of!(FlowKey, client) == 8
        && offset_of!(FlowKey, listener_port) == 28
        && offset_of!(FlowKey, reserved) == 30
);

impl FlowKey {
    /// A connection from `client` to the listener at `listener_port`.
    #[must_use]
    #[inline(always)]
    pub const fn new(netns_cookie: u64, client: Endpoint, listener_port: u16) -> Self {
        Self {
            netns_cookie,
            client,
            listener_port,
            reserved: 0,
        }
    }

    /// What a `connect()` inserts and removes again to see whether the table has room while it can still be refused.
    /// No connection's key looks like this: ports aren't 0.
    #[must_use]
    #[inline(always)]
    pub const fn trial(socket_cookie: u64) -> Self {
        Self::new(socket_cookie, Endpoint::new(Address::from_v6_words([0; 4]), 0), 0)
    }
}

/// Whose connection it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct FlowRecord {
    /// The pod, by its cgroup.
    pub cgroup_id: u64,
    /// The pod's enrolment at the time.
    pub enrolment: u64,
    /// When it was written.
    pub boot_ns: u64,
    /// What was dialled.
    pub original: Endpoint,
    /// Written as 0.
    pub reserved: u32,
}

const _: () = assert!(size_of::<FlowRecord>() == 48);
const _: () = assert!(
    offset_of!(FlowRecord, cgroup_id) == 0
        && offset_of!(FlowRecord, enrolment) == 8
        && offset_of!(FlowRecord, boot_ns) == 16
        && offset_of!(FlowRecord, original) == 24
        && offset_of!(FlowRecord, reserved) == 44
);

/// What a redirected socket dialled. It lives and dies with the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Origin {
    /// The pod that dialled, by its cgroup.
    pub cgroup_id: u64,
    /// The pod's enrolment at the time.
    pub enrolment: u64,
    /// The socket's key in the flow table once its source port is chosen, so that closing it can clear the record.
    pub flow: FlowKey,
    /// What was dialled.
    pub original: Endpoint,
    /// Written as 0.
    pub reserved: u32,
}

const _: () = assert!(size_of::<Origin>() == 72);
const _: () = assert!(
    offset_of!(Origin, cgroup_id) == 0
        && offset_of!(Origin, enrolment) == 8
        && offset_of!(Origin, flow) == 16
        && offset_of!(Origin, original) == 48
        && offset_of!(Origin, reserved) == 68
);

impl Origin {
    /// The record that its connection leaves in the flow table.
    #[must_use]
    #[inline(always)]
    pub const fn record(&self, boot_ns: u64) -> FlowRecord {
        FlowRecord {
            cgroup_id: self.cgroup_id,
            enrolment: self.enrolment,
            boot_ns,
            original: self.original,
            reserved: 0,
        }
    }
}
