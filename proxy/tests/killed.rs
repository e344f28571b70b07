//! Invariants 1 and 6: an agent that dies at any place of its work lets nothing through, and the next one comes up whole.
#![allow(clippy::unwrap_used, reason = "a test's helpers panic as tests do")]

mod node;

use aya::maps::{HashMap, Map, MapData};
use nix::libc::{self, ECONNREFUSED, EPERM};
use node::{API_V4, API_V6, Death, Dialler, Mortal, Node, eventually};
use rstest::rstest;
use understudy_cases::{Area, seen};
use understudy_common::PodEntry;

/// `linux/bpf.h`.
const BPF_MAP_UPDATE_ELEM: u32 = 2;
const BPF_PROG_LOAD: u32 = 5;
const BPF_LINK_CREATE: u32 = 28;
const BPF_LINK_UPDATE: u32 = 29;
const SO_NETNS_COOKIE: u32 = 71;

fn bpf(command: u32) -> Death {
    Death::at(libc::SYS_bpf).with(0, command)
}

/// Whether a dead agent has tagged a pod, and named a listener.
fn entry(node: &Node, pod: &str) -> Option<PodEntry> {
    let pinned = MapData::from_pin(node.pin_dir().join("PODS")).ok()?;
    let pods: HashMap<_, u64, PodEntry> = Map::from_map_data(pinned).unwrap().try_into().unwrap();
    pods.get(&node.cgroup(pod).0, 0).ok()
}

/// What comes of a dead agent's tagged pod: never a connection, and soon no attempt at one.
fn is_refused(process: &mut Dialler) {
    for address in [API_V4, API_V6] {
        eventually("the heartbeat is stale", || match process.dial("a", address) {
            Err(EPERM) => true,
            Err(ECONNREFUSED) => false,
            other => panic!("{other:?}"),
        });
    }
    assert_eq!(process.served(), 0, "the API server was reached");
}

/// The next agent serves the pod.
fn is_served_by_the_next(node: &Node, process: &mut Dialler) {
    let mut next = Mortal::start(node, "next", &["pod"], None);
    next.until_ready();
    eventually("the next agent serves", || process.greetings(API_V4, 1) == ["next"]);
    assert_eq!(process.greetings(API_V6, 3), ["next"]);
    next.stop();
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tag {
    No,
    WithoutListener,
    WithListener,
}

/// On a node without an agent so far, and on one whose agent was killed: the pod that was tagged stays refused throughout.
#[rstest]
#[case::loading(bpf(BPF_PROG_LOAD), "while it loads its programs", Tag::No)]
#[case::writing(bpf(BPF_MAP_UPDATE_ELEM), "before it writes to a map", Tag::No)]
#[case::attaching(bpf(BPF_LINK_CREATE), "while it puts its programs in force", Tag::No)]
#[case::tagged(
    Death::at(libc::SYS_setns),
    "when the pod is tagged, before it enters the pod's namespace",
    Tag::WithoutListener
)]
#[case::inside(
    Death::at(libc::SYS_listen),
    "in the pod's namespace, before it listens",
    Tag::WithoutListener
)]
#[case::listening(
    Death::at(libc::SYS_getsockopt).with(2, SO_NETNS_COOKIE),
    "when it listens, before the pod's entry says so",
    Tag::WithoutListener
)]
#[case::severing(
    Death::at(libc::SYS_socket).with(0, 16),
    "when the pod is enrolled, before its older connections are ended",
    Tag::WithListener
)]
fn an_agent_dies(
    #[case] death: Death,
    #[case] words: &str,
    #[case] tag: Tag,
    #[values(false, true)] had_an_agent: bool,
) {
    let node = Node::new();
    let mut process = node.pod("pod");
    if had_an_agent {
        let mut first = Mortal::start(&node, "first", &["pod"], None);
        first.until_ready();
        assert_eq!(process.greetings(API_V4, 1), ["first"]);
        first.kill();
        // Its links are there: they are updated, and none is made.
        if death == bpf(BPF_LINK_CREATE) {
            return died_before(&node, process, bpf(BPF_LINK_UPDATE), words);
        }
        return died_before(&node, process, death, words);
    }
    Mortal::start(&node, "dies", &["pod"], Some(death)).until_dead();
    let found = match entry(&node, "pod") {
        None => Tag::No,
        Some(entry) if entry.port4 == 0 => Tag::WithoutListener,
        Some(_) => Tag::WithListener,
    };
    assert_eq!(found, tag, "it died elsewhere");
    let outcome = if tag == Tag::No {
        process.dial("a", API_V4).unwrap();
        eventually("the API server is reached", || process.served() == 1);
        "the pod isn't tagged yet, and goes on as itself; the next agent serves it"
    } else {
        is_refused(&mut process);
        "the pod's connects fail with EPERM; nothing reaches the API server; the next agent serves it"
    };
    let before = process.served();
    is_served_by_the_next(&node, &mut process);
    assert_eq!(process.served(), before, "the API server was reached");
    seen(Area::Faults, format!("The agent dies {words}"), outcome);
}

/// Of a pod that was tagged by the agent before.
fn died_before(node: &Node, mut process: Dialler, death: Death, words: &str) {
    Mortal::start(node, "dies", &["pod"], Some(death)).until_dead();
    is_refused(&mut process);
    is_served_by_the_next(node, &mut process);
    assert_eq!(process.served(), 0, "the API server was reached");
    seen(
        Area::Faults,
        format!("The agent is killed, and the next one dies {words}"),
        "the pod's connects fail with EPERM; nothing reaches the API server; the next agent serves it",
    );
}

#[test]
fn an_agent_is_killed_when_a_connection_has_come() {
    let node = Node::new();
    let mut process = node.pod("pod");
    let mut agent = Mortal::start(&node, "dies", &["pod"], Some(Death::at(libc::SYS_accept4)));
    agent.until_ready();
    let heard = process.greetings(API_V4, 1);
    assert!(
        heard == ["nothing"] || heard[0].starts_with("failed"),
        "somebody answered: {heard:?}"
    );
    agent.until_dead();
    is_refused(&mut process);
    is_served_by_the_next(&node, &mut process);
    assert_eq!(process.served(), 0, "the API server was reached");
    seen(
        Area::Faults,
        "The agent dies as it accepts a connection",
        "that connection ends, nothing said; then EPERM; nothing reaches the API server; the next agent serves it",
    );
}

/// The one that takes over dies on its way: the one before goes on, and a third takes over.
#[rstest]
#[case::loading(bpf(BPF_PROG_LOAD), "while it loads its programs")]
#[case::in_force(bpf(BPF_LINK_UPDATE), "while it puts its programs in force")]
#[case::entering(Death::at(libc::SYS_setns), "before it enters the pod's namespace")]
#[case::listening(
    Death::at(libc::SYS_getsockopt).with(2, SO_NETNS_COOKIE),
    "when it listens, before the pod's entry says so"
)]
fn the_next_agent_dies_as_it_takes_over(#[case] death: Death, #[case] words: &str) {
    let node = Node::new();
    let mut process = node.pod("pod");
    let mut first = Mortal::start(&node, "first", &["pod"], None);
    first.until_ready();
    assert_eq!(process.greetings(API_V4, 1), ["first"]);
    Mortal::start(&node, "dies", &["pod"], Some(death)).until_dead();
    // It takes the one before a moment to hear of it.
    eventually("the first agent goes on", || process.greetings(API_V4, 1) == ["first"]);
    assert_eq!(process.greetings(API_V6, 3), ["first"]);
    is_served_by_the_next(&node, &mut process);
    drop(first);
    assert_eq!(process.served(), 0, "the API server was reached");
    seen(
        Area::Faults,
        format!("An agent that takes over from one that runs dies {words}"),
        "the one before serves on; nothing reaches the API server; the next agent takes over",
    );
}

/// The one that has been taken over from dies: the one that took over serves.
#[test]
fn the_agent_before_is_killed_as_it_hands_over() {
    let node = Node::new();
    let mut process = node.pod("pod");
    let mut first = Mortal::start(&node, "first", &["pod"], None);
    first.until_ready();
    assert_eq!(process.greetings(API_V4, 1), ["first"]);
    let mut second = Mortal::start(&node, "second", &["pod"], None);
    second.until_ready();
    // It still has its listeners, for what is on its way to them.
    first.kill();
    assert_eq!(process.greetings(API_V4, 5), ["second"]);
    assert_eq!(process.served(), 0, "the API server was reached");
    seen(
        Area::Faults,
        "The agent that was taken over from is killed before its listeners close",
        "the one that took over serves; nothing reaches the API server",
    );
    second.stop();
}
