//! Getting around the redirect: what a workload that owns its pod may try with sockets, and what its neighbours may.
//! Whose a connect is, the cgroup of the task says that dials, whosever the socket was.
#![allow(clippy::unwrap_used, reason = "a test's helpers panic as tests do")]

mod node;

use nix::{errno::Errno, libc::EPERM};
use node::{API_V4, API_V6, Dialler, Ends, Node, OTHER_V4, TaggedPod, eventually};
use rstest::rstest;
use understudy::kernel::{Kernel, Options};
use understudy_cases::{Area, seen};
use understudy_common::{Counter, PodEntry};

/// What a dial came to that no pod's listener is to take, by how often the API server was reached before and since.
fn came_to(done: Result<Ends, i32>, witness: &mut Dialler, before: u32) -> String {
    let end = if let Err(errno) = done {
        format!("the connect fails with {:?}", Errno::from_raw(errno))
    } else {
        eventually("the API server is reached", || witness.served() > before);
        "left as it is".to_owned()
    };
    format!("{end}; {}", reached(witness.served() > before))
}

fn reached(api_server: bool) -> &'static str {
    if api_server {
        "the API server is reached, with no session"
    } else {
        "nothing reaches the API server"
    }
}

const TURNED: &str = "turned to the agent, as the pod; nothing reaches the API server";
const REFUSED: &str = "the connect fails with EPERM; nothing reaches the API server";
const UNTOUCHED: &str = "left as it is; the API server is reached, with no session";

/// What a tagged pod's dial came to.
fn own(kernel: &Kernel, pod: &mut TaggedPod, done: Result<Ends, i32>) -> String {
    let end = match done {
        Ok(ends) => {
            let port = if ends.local.is_ipv4() {
                pod.entry.port4
            } else {
                pod.entry.port6
            };
            let taken = pod.take(kernel, ends.local, port);
            assert!(taken.is_none_or(|flow| flow.cgroup_id == pod.id));
            taken
                .map_or("left as it is", |_| "turned to the agent, as the pod")
                .to_owned()
        }
        Err(errno) => format!("the connect fails with {:?}", Errno::from_raw(errno)),
    };
    format!("{end}; {}", reached(pod.process.served() > 0))
}

/// A mailbox that processes of one machine hand sockets to each other by.
fn mailbox(directory: &tempfile::TempDir, name: &str) -> String {
    directory.path().join(name).display().to_string()
}

/// Invariant 1.
#[rstest]
#[case::v4("v4", API_V4)]
#[case::v6("v6", API_V6)]
#[case::mptcp("mptcp", API_V4)]
fn a_socket_made_before_the_tag_is_turned(#[case] kind: &str, #[case] address: &str) {
    let node = Node::new();
    let kernel = node.install();
    let mut process = node.pod("pod");
    process.socket("a", kind);
    let mut pod = TaggedPod::tag(&node, &kernel, "pod", process);
    let done = pod.process.connect("a", address);
    let outcome = own(&kernel, &mut pod, done);
    assert_eq!(outcome, TURNED);
    seen(
        Area::Redirect,
        "A socket made before the pod was tagged, and dialled after",
        outcome,
    );
}

/// Invariant 1: the programs see sockets that were made outside of the pods as well.
#[test]
fn a_socket_from_outside_the_pods_is_turned() {
    let node = Node::new();
    let kernel = node.install_with(&Options {
        whole_hierarchy: true,
        ..node.options()
    });
    let mut pod = TaggedPod::new(&node, &kernel, "pod");
    let directory = tempfile::tempdir().unwrap();
    let path = mailbox(&directory, "pod");
    pod.process.does(&format!("mailbox {path}"));
    // A process beside all pods, in the pod's network namespace: as of the node's own.
    let mut outside = pod.process.neighbour_outside();
    outside.socket("a", "v4");
    outside.does(&format!("give a {path}"));
    pod.process.does("take a");
    let done = pod.process.connect("a", API_V4);
    let outcome = own(&kernel, &mut pod, done);
    assert_eq!(outcome, TURNED);
    seen(
        Area::Redirect,
        "A socket made by a process of the node's, handed to a tagged pod (SCM_RIGHTS), which dials",
        outcome,
    );
    // And the other way about: who dials counts.
    let before = pod.process.served();
    let back = mailbox(&directory, "outside");
    outside.does(&format!("mailbox {back}"));
    pod.process.socket("b", "v4");
    pod.process.does(&format!("give b {back}"));
    outside.does("take b");
    let done = outside.connect("b", API_V4);
    let outcome = came_to(done, &mut pod.process, before);
    assert_eq!(outcome, UNTOUCHED);
    seen(
        Area::Redirect,
        "A socket made in a tagged pod, handed to an untagged process, which dials",
        outcome,
    );
}

/// Two pods of one network namespace, and two of two.
#[test]
fn who_dials_with_a_socket_that_was_handed_on_is_who_counts() {
    let node = Node::new();
    let kernel = node.install();
    let mut one = TaggedPod::new(&node, &kernel, "one");
    let neighbour = node.neighbour("two", &one.process);
    let mut two = TaggedPod::tag(&node, &kernel, "two", neighbour);
    let mut far = TaggedPod::new(&node, &kernel, "far");
    let directory = tempfile::tempdir().unwrap();
    for (name, pod) in [("two", &mut two), ("far", &mut far)] {
        let path = mailbox(&directory, name);
        pod.process.does(&format!("mailbox {path}"));
        one.process.socket(name, "v4");
        one.process.does(&format!("give {name} {path}"));
        pod.process.does("take given");
    }
    let done = two.process.connect("given", API_V4);
    let ends = done.unwrap();
    assert_eq!(one.take(&kernel, ends.local, one.entry.port4), None);
    let flow = two.take(&kernel, ends.local, two.entry.port4).unwrap();
    assert_eq!(flow.cgroup_id, two.id);
    assert_eq!(one.process.served(), 0, "the API server was reached");
    seen(
        Area::Redirect,
        "A socket made in a tagged pod, handed to another tagged pod of the same network namespace, which dials",
        "turned to the agent, as the pod that dials; nothing reaches the API server",
    );
    let done = far.process.connect("given", API_V4);
    assert_eq!(done, Err(EPERM));
    assert_eq!(one.process.served(), 0, "the API server was reached");
    assert_eq!(kernel.counters().unwrap().of(Counter::ForeignNamespace), 1);
    let outcome = came_to(done, &mut far.process, 0);
    assert_eq!(outcome, REFUSED);
    seen(
        Area::Redirect,
        "A socket made in a tagged pod, handed to a tagged pod of another network namespace, which dials",
        outcome,
    );
    // What is connected is the pod's that connected it.
    let ends = one.process.dial("open", API_V4).unwrap();
    let path = mailbox(&directory, "two");
    one.process.does(&format!("give open {path}"));
    two.process.does("take open");
    assert_eq!(two.process.ends("open").unwrap(), ends);
    let flow = one.take(&kernel, ends.local, one.entry.port4).unwrap();
    assert_eq!(flow.cgroup_id, one.id);
    seen(
        Area::Redirect,
        "A connection opened by a tagged pod, handed to another",
        "served as the pod that opened it",
    );
}

/// A pod's process that enters the node's namespace, as a privileged one can.
#[test]
fn a_process_in_the_nodes_namespace_is_refused() {
    let node = Node::new();
    let kernel = node.install();
    let pod = TaggedPod::new(&node, &kernel, "pod");
    let mut of_the_node = node.pod("untagged");
    let mut entered = node.neighbour("pod/entered", &of_the_node);
    assert_ne!(entered.cookie(), pod.cookie);
    let done = entered.dial("a", API_V4);
    let outcome = came_to(done, &mut of_the_node, 0);
    assert_eq!(outcome, REFUSED);
    assert_eq!(kernel.counters().unwrap().of(Counter::ForeignNamespace), 1);
    seen(
        Area::Redirect,
        "A process of the pod's in the node's network namespace",
        outcome,
    );
}

#[test]
fn a_process_that_leaves_the_pods_cgroup_is_the_pods_no_longer() {
    let node = Node::new();
    let kernel = node.install();
    let mut pod = TaggedPod::new(&node, &kernel, "pod");
    let pid = pod.process.pid().to_string();
    for (cgroup, expected) in [("pod/deeper", TURNED), ("untagged", UNTOUCHED)] {
        node.cgroup(cgroup);
        std::fs::write(node.path(cgroup).join("cgroup.procs"), &pid).unwrap();
        let done = pod.process.dial("a", API_V4);
        if expected == UNTOUCHED {
            eventually("the API server is reached", || pod.process.served() == 1);
        }
        let outcome = own(&kernel, &mut pod, done);
        assert_eq!(outcome, expected);
        let case = if cgroup == "untagged" {
            "A process that moves itself out of the pod's cgroup (which takes the node's cgroup file system, writable)"
        } else {
            "A process that moves itself deeper into the pod's cgroup"
        };
        seen(Area::Redirect, case, outcome);
    }
}

#[test]
fn neither_a_cgroup_namespace_nor_a_threaded_cgroup_hides_the_pod() {
    let node = Node::new();
    let kernel = node.install();
    let mut pod = TaggedPod::new(&node, &kernel, "pod");
    let threaded = node.path("pod/threaded");
    std::fs::create_dir(&threaded).unwrap();
    std::fs::write(threaded.join("cgroup.type"), "threaded").unwrap();
    pod.process.socket("a", "v4");
    let done = pod
        .process
        .dials(&format!("in-threaded {} a {API_V4}", threaded.display()));
    let outcome = own(&kernel, &mut pod, done);
    assert_eq!(outcome, TURNED);
    seen(Area::Redirect, "A thread in a threaded cgroup of the pod's", outcome);
    pod.process.does("own-cgroup-namespace");
    let done = pod.process.dial("b", API_V4);
    let outcome = own(&kernel, &mut pod, done);
    assert_eq!(outcome, TURNED);
    seen(Area::Redirect, "A process in a cgroup namespace of its own", outcome);
}

/// The kernel's own threads dial for a ring; they are of its owner's cgroup.
#[rstest]
#[case::inline("plain", "inline", "at once")]
#[case::worker("plain", "worker", "by a worker thread")]
#[case::polled("polled", "inline", "by a polling thread")]
fn io_uring_is_turned(
    #[case] ring: &str,
    #[case] how: &str,
    #[case] words: &str,
    #[values(false, true)] non_blocking: bool,
    #[values(false, true)] made_before: bool,
) {
    let node = Node::new();
    let kernel = node.install();
    // Made before the process comes to the pod: the threads come along.
    let mut process = node.pod(if made_before { "untagged/before" } else { "pod" });
    process.does(&format!("ring r {ring}"));
    process.socket("a", "v4");
    if made_before {
        node.cgroup("pod");
        std::fs::write(node.path("pod/cgroup.procs"), process.pid().to_string()).unwrap();
    }
    if non_blocking {
        process.does("non-blocking a");
    }
    let mut pod = TaggedPod::tag(&node, &kernel, "pod", process);
    let done = pod.process.dials(&format!("ring-connect r a {API_V4} {how}"));
    let outcome = own(&kernel, &mut pod, done);
    assert_eq!(outcome, TURNED);
    kernel.rest().unwrap();
    pod.process.socket("b", "v4");
    let refused = pod.process.dials(&format!("ring-connect r b {API_V4} {how}"));
    assert_eq!(refused, Err(EPERM));
    assert_eq!(pod.process.served(), 0, "the API server was reached");
    seen(Area::Redirect, format!("io_uring connects, {words}"), outcome);
}

/// TCP Fast Open's other way: `connect()` chooses the way, and the first send goes it.
#[test]
fn fast_open_on_connect_is_turned() {
    let node = Node::new();
    let kernel = node.install();
    let mut pod = TaggedPod::new(&node, &kernel, "pod");
    pod.process.does(&format!("fast-open-connect a {API_V4}"));
    assert_eq!(kernel.flow_count().unwrap(), 0, "nothing is on its way yet");
    pod.process.does("say a hello");
    let done = pod.process.ends("a");
    let outcome = own(&kernel, &mut pod, done);
    assert_eq!(outcome, TURNED);
    seen(
        Area::Redirect,
        "TCP Fast Open on connect (TCP_FASTOPEN_CONNECT)",
        outcome,
    );
    kernel.rest().unwrap();
    let refused = format!("err {EPERM}");
    assert_eq!(pod.process.ask(&format!("fast-open-connect b {API_V4}")), refused);
}

/// Many may be chosen before the first is sent: the bound holds all the same.
#[test]
fn fast_open_does_not_get_past_a_pods_bound() {
    let node = Node::new();
    let kernel = node.install_with(&Options {
        flows_per_pod: 2,
        ..node.options()
    });
    let mut pod = TaggedPod::new(&node, &kernel, "pod");
    for name in ["a", "b", "c"] {
        pod.process.does(&format!("fast-open-connect {name} {API_V4}"));
    }
    for name in ["a", "b", "c"] {
        pod.process.does(&format!("say {name} hello"));
    }
    assert_eq!(kernel.flow_count().unwrap(), 2);
    assert_eq!(kernel.counters().unwrap().of(Counter::PodFull), 1);
    assert_eq!(pod.process.served(), 0, "the API server was reached");
}

#[test]
fn a_chosen_source_changes_nothing() {
    let node = Node::new();
    let kernel = node.install();
    let mut pod = TaggedPod::new(&node, &kernel, "pod");
    for (name, from) in [("a", "127.0.0.1:4001"), ("b", "10.96.0.2:4002"), ("c", "10.96.0.2:0")] {
        pod.process.socket(name, "v4");
        pod.process.does(&format!("bind {name} {from}"));
        let done = pod.process.connect(name, API_V4);
        let outcome = own(&kernel, &mut pod, done);
        assert_eq!(outcome, TURNED, "{from}");
        seen(Area::Redirect, "A source address or port chosen with bind()", outcome);
    }
    pod.process.socket("d", "v4");
    pod.process.does("device d lo");
    let done = pod.process.connect("d", API_V4);
    let outcome = own(&kernel, &mut pod, done);
    assert_eq!(outcome, TURNED);
    seen(
        Area::Redirect,
        "A socket bound to the loopback device (SO_BINDTODEVICE)",
        outcome,
    );
}

/// A device that isn't the loopback's never leads to the listener, and leads to nothing else either.
#[test]
fn a_device_is_no_way_past() {
    let node = Node::new();
    let kernel = node.install();
    let mut pod = TaggedPod::new(&node, &kernel, "pod");
    pod.process.within("ip link add d0 type veth peer name d1");
    pod.process.within("ip link set d1 up");
    pod.process.within("ip addr add 10.1.0.1/24 dev d0");
    pod.process.within("ip link set d0 up");
    pod.process.within("ip route add default dev d0");
    pod.process.socket("a", "v4");
    pod.process.does("device a d0");
    pod.process.does("non-blocking a");
    let begun = pod.process.connect("a", API_V4);
    assert!(begun.is_err());
    assert_ne!(begun, Err(EPERM), "it is turned: to where nobody answers");
    assert_eq!(kernel.counters().unwrap().redirected(), 1);
    assert_eq!(pod.process.served(), 0, "the API server was reached");
    // Its place is its own until it ends, and of a pod's places one.
    pod.process.close("a");
    assert_eq!(kernel.flow_count().unwrap(), 0);
    seen(
        Area::Redirect,
        "A socket bound to another device (SO_BINDTODEVICE)",
        "turned, and comes nowhere: the agent isn't behind that device; nothing reaches the API server",
    );
}

#[test]
fn repeated_dials_find_one_record() {
    let node = Node::new();
    let kernel = node.install();
    let mut pod = TaggedPod::new(&node, &kernel, "pod");
    let ends = pod.process.dial("a", API_V4).unwrap();
    for address in [API_V4, OTHER_V4] {
        assert_eq!(pod.process.connect("a", address), Err(Errno::EISCONN as i32));
    }
    assert_eq!(pod.process.ends("a").unwrap(), ends);
    assert_eq!((kernel.flow_count().unwrap(), pod.process.served()), (1, 0));
    let again = pod.process.redial("a", API_V4);
    assert_eq!(kernel.flow_count().unwrap(), 1);
    let outcome = own(&kernel, &mut pod, again);
    assert_eq!(outcome, TURNED);
    seen(
        Area::Redirect,
        "A socket disconnected (AF_UNSPEC) and dialled again",
        outcome,
    );
    // Without waiting, and asking again how it went.
    pod.process.socket("b", "v4");
    pod.process.does("non-blocking b");
    let begun = pod.process.connect("b", API_V4);
    assert!(matches!(begun, Ok(_) | Err(nix::libc::EINPROGRESS)), "{begun:?}");
    eventually("it is connected", || pod.process.ends("b").is_ok());
    let done = pod.process.ends("b");
    let outcome = own(&kernel, &mut pod, done);
    assert_eq!(outcome, TURNED);
    seen(Area::Redirect, "connect() without waiting (O_NONBLOCK)", outcome);
}

/// Not TCP, and so not the Kubernetes API.
#[test]
fn datagrams_and_raw_packets_are_left_alone() {
    let node = Node::new();
    let kernel = node.install();
    let mut pod = TaggedPod::new(&node, &kernel, "pod");
    assert_eq!(pod.process.ask(&format!("datagram {API_V4}")), "ok");
    assert_eq!(kernel.counters().unwrap().redirected(), 0);
    seen(
        Area::Redirect,
        "UDP, and so QUIC, to the API server's address",
        "left as it is: the Kubernetes API isn't served over UDP",
    );
    assert_eq!(pod.process.ask("raw-syn 10.96.0.2:40000 10.96.0.1:443"), "answered");
    assert_eq!(
        (kernel.counters().unwrap().redirected(), kernel.flow_count().unwrap()),
        (0, 0)
    );
    seen(
        Area::Redirect,
        "A TCP of the workload's own on a raw socket (CAP_NET_RAW)",
        "not seen: its packets reach the API server as the pod itself, with no session",
    );
}

/// Invariant 1: one pod's connects never take the others' places.
#[test]
fn a_pod_that_fills_its_places_leaves_the_others_theirs() {
    let node = Node::new();
    let kernel = node.install_with(&Options {
        flow_capacity: Some(64),
        flows_per_pod: 8,
        ..node.options()
    });
    let mut greedy = TaggedPod::new(&node, &kernel, "greedy");
    let mut other = TaggedPod::new(&node, &kernel, "other");
    let mut first = None;
    for number in 0..8 {
        let ends = greedy.process.dial(&format!("open{number}"), API_V4).unwrap();
        first.get_or_insert(ends);
    }
    let held = |kernel: &Kernel, pod: &TaggedPod| kernel.flows_held().unwrap()[&pod.entry.enrolment];
    assert_eq!(held(&kernel, &greedy), 8);
    let done = greedy.process.dial("more", API_V4);
    let outcome = own(&kernel, &mut greedy, done);
    assert_eq!(outcome, REFUSED);
    assert_eq!(kernel.counters().unwrap().of(Counter::PodFull), 1);
    let beside = other.process.dial("a", API_V4);
    let others = own(&kernel, &mut other, beside);
    assert_eq!(others, TURNED);
    seen(
        Area::Redirect,
        "A pod with as many connections on their way to its listener as a pod may have",
        format!("{outcome}; other pods: {others}"),
    );
    // A place is free again when a record is taken, when a socket closes, and when one dials elsewhere.
    greedy.take(&kernel, first.unwrap().local, greedy.entry.port4).unwrap();
    greedy.process.dial("b", API_V4).unwrap();
    assert_eq!(greedy.process.dial("c", API_V4), Err(EPERM));
    greedy.process.close("open1");
    greedy.process.dial("d", API_V4).unwrap();
    assert_eq!(greedy.process.dial("e", API_V4), Err(EPERM));
    greedy.process.redial("open2", OTHER_V4).unwrap();
    greedy.process.dial("f", API_V4).unwrap();
    assert_eq!(held(&kernel, &greedy), 8);
    eventually("what isn't the API server is reached", || greedy.process.served() == 1);
    // However many pass: what goes is given back, to the last.
    for name in ["open3", "open4", "open5", "open6", "open7", "b", "d", "f"] {
        greedy.process.close(name);
    }
    assert_eq!(greedy.process.churn(API_V4, 100), 100);
    assert_eq!((held(&kernel, &greedy), held(&kernel, &other)), (0, 0));
    assert_eq!(kernel.flow_count().unwrap(), 0);
}

/// Enrolments that are over are counted no longer, and those that are in force go on being.
#[test]
fn what_is_over_is_not_counted() {
    let node = Node::new();
    let kernel = node.install();
    let mut pod = TaggedPod::new(&node, &kernel, "pod");
    pod.process.dial("a", API_V4).unwrap();
    let anew = PodEntry {
        enrolment: pod.entry.enrolment + 1,
        ..pod.entry
    };
    kernel.set_pod(pod.id, &anew).unwrap();
    pod.process.dial("b", API_V4).unwrap();
    assert_eq!(kernel.flows_held().unwrap().len(), 2);
    kernel.sweep_flows().unwrap();
    assert_eq!(
        kernel.flows_held().unwrap().into_iter().collect::<Vec<_>>(),
        [(anew.enrolment, 1)]
    );
    // What is left of the one that is over does no harm to the other's count.
    pod.process.close("a");
    pod.process.close("b");
    assert_eq!(kernel.flows_held().unwrap()[&anew.enrolment], 0);
    assert_eq!(kernel.flow_count().unwrap(), 0);
}

#[test]
fn full_maps_change_nothing_in_force() {
    let node = Node::new();
    let kernel = node.install();
    let mut pod = TaggedPod::new(&node, &kernel, "pod");
    let pods = (1..).map(|number| understudy::pod::CgroupId(u64::MAX - number));
    let error = pods
        .take(5000)
        .find_map(|id| kernel.set_pod(id, &PodEntry::without_listener(1)).err())
        .unwrap();
    assert!(error.to_string().contains("PODS"), "{error}");
    let done = pod.process.dial("a", API_V4);
    let outcome = own(&kernel, &mut pod, done);
    assert_eq!(outcome, TURNED);
    seen(
        Area::Redirect,
        "The map of tagged pods is full (4,096)",
        format!("one more can't be tagged, which the agent says by name; those that are: {outcome}"),
    );
    let many = (0..2000_u16).map(|port| ([10, 97, 0, 1], 1000 + port).into()).collect();
    let error = kernel.set_api_servers(&many).unwrap_err();
    assert!(error.to_string().contains("API_SERVERS"), "{error}");
    let done = pod.process.dial("b", API_V4);
    let outcome = own(&kernel, &mut pod, done);
    assert_eq!(outcome, TURNED);
    seen(
        Area::Redirect,
        "The map of the API server's addresses is full (1,024)",
        format!("those that are in it stay, and no more are added, which the agent says; a dial of one: {outcome}"),
    );
}
