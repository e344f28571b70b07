//! The maps. Sizes are what a node gets by default; the agent may ask for others when it loads the programs.

use aya_ebpf::{
    btf_maps::SkStorage,
    macros::{btf_map, map},
    maps::{Array, HashMap, PerCpuArray},
};
use understudy_common::{self as common, Counter, Endpoint, FlowKey, FlowRecord, Heartbeat, Origin, PodEntry};

#[map]
pub(crate) static PODS: HashMap<u64, PodEntry> = HashMap::with_max_entries(4096, 0);

#[map]
pub(crate) static MARKS: Array<u32> = Array::with_max_entries(common::MARKS, 0);

#[map]
pub(crate) static API_SERVERS: HashMap<Endpoint, u32> = HashMap::with_max_entries(1024, 0);

/// Storage of the sockets themselves: it can't be filled by one pod against another, and no close is missed,
/// whether by a process, the kernel, or Multipath TCP letting a subflow go.
#[btf_map]
pub(crate) static ORIGINS: SkStorage<Origin> = SkStorage::new();

#[map]
pub(crate) static FLOWS: HashMap<FlowKey, FlowRecord> = HashMap::with_max_entries(65_536, 0);

/// Four times the pods there may be: an enrolment is counted until the agent that is in charge next looks.
#[map]
pub(crate) static HELD: HashMap<u64, u64> = HashMap::with_max_entries(16_384, 0);

#[map]
pub(crate) static TAKEN: HashMap<u64, u64> = HashMap::with_max_entries(16_384, 0);

#[map]
pub(crate) static HEARTBEAT: Array<Heartbeat> = Array::with_max_entries(1, 0);

#[map]
pub(crate) static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Counter::COUNT, 0);
