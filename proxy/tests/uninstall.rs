//! Invariant 6: what an agent makes is gone after `uninstall`, down to the last map of the kernel's.
#![allow(clippy::unwrap_used, reason = "a test's helpers panic as tests do")]

mod node;

use std::{collections::BTreeSet, fs, path::Path};

use aya::{
    maps::{MapInfo, loaded_maps},
    programs::{loaded_links, loaded_programs},
};
use nix::libc::ECONNREFUSED;
use node::{API_V4, API_V6, Agent, Node, eventually, wanted};
use understudy::{
    handover::{self, Incumbent},
    kernel,
};

const MAPS: [&str; 9] = [
    "PODS",
    "API_SERVERS",
    "ORIGINS",
    "FLOWS",
    "HELD",
    "TAKEN",
    "HEARTBEAT",
    "MARKS",
    "COUNTERS",
];

/// Numbers of the kernel's, which it gives once.
#[derive(Debug, Default, PartialEq, Eq)]
struct Objects {
    programs: BTreeSet<u32>,
    maps: BTreeSet<u32>,
    links: BTreeSet<u32>,
}

impl Objects {
    /// What works with the maps that are pinned here. Other tests' objects come and go meanwhile.
    fn of(pin_dir: &Path) -> Self {
        let pinned: BTreeSet<u32> = MAPS
            .iter()
            .map(|name| MapInfo::from_pin(pin_dir.join(name)).unwrap().id())
            .collect();
        let mut ours = Self::default();
        for program in loaded_programs().flatten() {
            let maps: BTreeSet<u32> = program.map_ids().unwrap().into_iter().flatten().collect();
            if !maps.is_disjoint(&pinned) {
                ours.programs.insert(program.id());
                ours.maps.extend(maps);
            }
        }
        ours.maps.extend(pinned);
        let links = loaded_links().flatten();
        ours.links.extend(
            links
                .filter(|link| ours.programs.contains(&link.program_id()))
                .map(|link| link.id()),
        );
        ours
    }

    /// Those that are still there.
    fn left(&self) -> Self {
        let present = |all: BTreeSet<u32>, ours: &BTreeSet<u32>| ours.intersection(&all).copied().collect();
        Self {
            programs: present(
                loaded_programs().flatten().map(|program| program.id()).collect(),
                &self.programs,
            ),
            maps: present(loaded_maps().flatten().map(|map| map.id()).collect(), &self.maps),
            links: present(loaded_links().flatten().map(|link| link.id()).collect(), &self.links),
        }
    }
}

/// Every cgroup at and below a path.
fn cgroups(path: &Path) -> BTreeSet<std::path::PathBuf> {
    let below = fs::read_dir(path).unwrap().flatten().map(|entry| entry.path());
    let mut all: BTreeSet<_> = below
        .filter(|path| path.is_dir())
        .flat_map(|path| cgroups(&path))
        .collect();
    all.insert(path.to_owned());
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn after_uninstall_nothing_of_an_agent_is_left() {
    let node = Node::new();
    let mut process = node.pod("pod");
    let cgroups_before = cgroups(node.root().path());
    let mut agent = Agent::start(&node, &[wanted("pod", "a/b")]);
    let incumbent = Incumbent::bind(&node.run_dir(), &node.pin_dir()).unwrap();
    let incumbent = incumbent.publish(&node.pin_dir()).unwrap();
    agent.until_enrolled("pod").await;
    let entry = agent.entries()[0];
    let ours = Objects::of(&node.pin_dir());
    assert_eq!((ours.programs.len(), ours.links.len()), (6, 6), "{ours:?}");
    assert!(ours.maps.len() >= MAPS.len(), "{ours:?}");
    assert_eq!(
        ours.left(),
        Objects {
            ..Objects::of(&node.pin_dir())
        }
    );

    // As when an agent is killed: what it has on disk stays.
    std::mem::forget(incumbent);
    agent.stop().await;
    assert_eq!(ours.left(), ours, "the kernel side outlives the agent");
    kernel::uninstall(&node.pin_dir()).unwrap();
    handover::remove(&node.run_dir()).unwrap();

    // The kernel frees what nobody holds when it gets round to it.
    eventually("the kernel's objects are gone", || ours.left() == Objects::default());
    assert!(!node.pin_dir().exists() && !node.run_dir().exists());
    assert_eq!(cgroups(node.root().path()), cgroups_before);
    for listener in [format!("127.0.0.1:{}", entry.port4), format!("[::1]:{}", entry.port6)] {
        assert_eq!(process.dial("a", &listener), Err(ECONNREFUSED));
    }
    for address in [API_V4, API_V6] {
        process.dial("a", address).unwrap();
    }
    eventually("the API server is reached", || process.served() == 2);
}
