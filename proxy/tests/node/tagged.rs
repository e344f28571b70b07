//! Pods tagged by hand, without an agent.

use aya::maps::{Map, MapData};
use understudy::{
    kernel::{self, Kernel},
    pod::{CgroupId, ClientAddr, NetnsCookie},
};
use understudy_common::{FlowKey, FlowRecord, PodEntry};

use super::{Dialler, Node};

/// A pod whose own process plays the listener.
pub(crate) struct TaggedPod {
    pub(crate) id: CgroupId,
    pub(crate) cookie: NetnsCookie,
    pub(crate) entry: PodEntry,
    pub(crate) process: Dialler,
}

impl TaggedPod {
    pub(crate) fn new(node: &Node, kernel: &Kernel, name: &str) -> Self {
        let process = node.pod(name);
        Self::tag(node, kernel, name, process)
    }

    pub(crate) fn tag(node: &Node, kernel: &Kernel, name: &str, mut process: Dialler) -> Self {
        let id = node.cgroup(name);
        let cookie = process.cookie();
        let entry = PodEntry {
            netns_cookie: cookie.0,
            enrolment: 42 + id.0,
            port4: process.listen("127.0.0.1:0"),
            port6: process.listen("[::1]:0"),
            reserved: 0,
        };
        kernel.set_pod(id, &entry).unwrap();
        Self {
            id,
            cookie,
            entry,
            process,
        }
    }

    pub(crate) fn take(&self, kernel: &Kernel, client: std::net::SocketAddr, port: u16) -> Option<kernel::Flow> {
        kernel.take_flow(self.cookie, ClientAddr(client), port).unwrap()
    }
}

/// The flow table, to put records in that no socket made.
pub(crate) fn flow_table(node: &Node) -> aya::maps::HashMap<MapData, FlowKey, FlowRecord> {
    let pinned = MapData::from_pin(node.pin_dir().join("FLOWS")).unwrap();
    Map::from_map_data(pinned).unwrap().try_into().unwrap()
}
