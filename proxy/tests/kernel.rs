//! The kernel programs, loaded for real: what a process in a tagged pod, and one beside it, gets from `connect()`
//! and `getpeername()` in every state of the agent.
#![allow(clippy::unwrap_used, reason = "a test's helpers panic as tests do")]

mod node;

use std::{collections::BTreeSet, time::Duration};

use nix::libc::EPERM;
use node::{API_MAPPED, API_V4, API_V6, Node, OTHER_V4, TaggedPod, eventually, flow_table};
use rstest::rstest;
use understudy::kernel::{self, InstallError, Kernel, Options, PinError};
use understudy_cases::{Area, seen};
use understudy_common::{Counter, FlowKey, FlowRecord, PodEntry};

#[rstest]
#[case::v4(API_V4, "127.0.0.1", API_V4, false)]
#[case::v6(API_V6, "::1", API_V6, true)]
#[case::mapped(API_MAPPED, "::ffff:127.0.0.1", API_V4, false)]
fn a_tagged_dial_reaches_the_listener_and_sees_the_api_server(
    #[case] dialled: &str,
    #[case] local: &str,
    #[case] original: &str,
    #[case] sixth: bool,
) {
    let node = Node::new();
    let kernel = node.install();
    let mut pod = TaggedPod::new(&node, &kernel, "pod");

    let ends = pod.process.dial("a", dialled).unwrap();
    assert_eq!(ends.peer, dialled.parse().unwrap());
    assert_eq!(ends.local.ip().to_string(), local);
    assert_eq!(pod.process.served(), 0, "the API server was reached");

    let (port, other) = if sixth {
        (pod.entry.port6, pod.entry.port4)
    } else {
        (pod.entry.port4, pod.entry.port6)
    };
    assert_eq!(
        pod.take(&kernel, ends.local, other),
        None,
        "the record names the listener"
    );
    let flow = pod.take(&kernel, ends.local, port).unwrap();
    assert_eq!((flow.cgroup_id, flow.enrolment), (pod.id, pod.entry.enrolment));
    assert_eq!(flow.original_dst.0, original.parse().unwrap());
    assert!(flow.age < Duration::from_secs(10));
    assert_eq!(pod.take(&kernel, ends.local, port), None, "taken twice");
    assert_eq!(kernel.flow_count().unwrap(), 0);

    assert_eq!(pod.process.ends("a").unwrap().peer, dialled.parse().unwrap());
    assert_eq!(kernel.counters().unwrap().of(Counter::Redirected), 1);
}

/// Invariant 4.
#[rstest]
#[case(API_V4)]
#[case(API_V6)]
#[case(API_MAPPED)]
fn an_untagged_dial_is_not_touched(#[case] dialled: &str) {
    let node = Node::new();
    let kernel = node.install();
    let pod = TaggedPod::new(&node, &kernel, "pod");
    let mut beside = node.neighbour("untagged", &pod.process);
    let ends = beside.dial("a", dialled).unwrap();
    assert_eq!(ends.peer, dialled.parse().unwrap());
    assert_ne!(ends.local.ip().to_canonical(), std::net::IpAddr::from([127, 0, 0, 1]));
    let mut process = pod.process;
    eventually("the API server is reached", || process.served() == 1);
    assert_eq!(kernel.flow_count().unwrap(), 0);
    assert_eq!(kernel.counters().unwrap().redirected(), 0);
    assert_eq!(kernel.counters().unwrap().of(Counter::Untouched), 1);
}

#[test]
fn a_tagged_dial_elsewhere_is_not_touched() {
    let node = Node::new();
    let kernel = node.install();
    let mut pod = TaggedPod::new(&node, &kernel, "pod");
    assert_eq!(pod.process.dial("a", OTHER_V4).unwrap().peer, OTHER_V4.parse().unwrap());
    eventually("the other is reached", || pod.process.served() == 1);
    assert_eq!(kernel.counters().unwrap().redirected(), 0);
    // The API server's address, another port.
    assert_eq!(pod.process.dial("b", "10.96.0.1:444"), Err(nix::libc::ECONNREFUSED));
}

#[test]
fn a_pod_is_one_however_deep_its_processes_sit() {
    let node = Node::new();
    let kernel = node.install();
    let deep = format!("pod{}", "/d".repeat(40));
    let mut process = node.pod(&deep);
    process.listen("127.0.0.1:0");
    let pod = TaggedPod::tag(&node, &kernel, "pod", process);
    let mut process = pod.process;
    assert!(process.dial("a", API_V4).unwrap().local.ip().is_loopback());
    assert_eq!(kernel.counters().unwrap().redirected(), 1);
    // The nearest tagged ancestor counts.
    kernel
        .set_pod(node.cgroup("pod/d"), &PodEntry::without_listener(1))
        .unwrap();
    assert_eq!(process.dial("b", API_V4), Err(EPERM));
}

#[derive(Clone, Copy)]
enum Lack {
    Listener,
    Heartbeat,
    AnyHeartbeat,
    Namespace,
    Ports,
}

/// Invariant 1.
#[rstest]
#[case::no_listener(Lack::Listener, Counter::NoListener)]
#[case::no_port(Lack::Ports, Counter::NoListener)]
#[case::stale_heartbeat(Lack::Heartbeat, Counter::StaleHeartbeat)]
#[case::withdrawn_heartbeat(Lack::AnyHeartbeat, Counter::StaleHeartbeat)]
#[case::foreign_namespace(Lack::Namespace, Counter::ForeignNamespace)]
fn a_tagged_dial_is_refused(
    #[case] lack: Lack,
    #[case] reason: Counter,
    #[values(API_V4, API_V6, API_MAPPED)] dialled: &str,
) {
    let node = Node::new();
    let options = match lack {
        Lack::Heartbeat => Options {
            heartbeat_max_age: Duration::ZERO,
            ..node.options()
        },
        _ => node.options(),
    };
    let kernel = node.install_with(&options);
    let mut pod = TaggedPod::new(&node, &kernel, "pod");
    match lack {
        Lack::Heartbeat => {}
        Lack::AnyHeartbeat => kernel.rest().unwrap(),
        Lack::Listener => kernel.set_pod(pod.id, &PodEntry::without_listener(1)).unwrap(),
        Lack::Ports => kernel
            .set_pod(
                pod.id,
                &PodEntry {
                    port4: 0,
                    port6: 0,
                    ..pod.entry
                },
            )
            .unwrap(),
        Lack::Namespace => kernel
            .set_pod(
                pod.id,
                &PodEntry {
                    netns_cookie: 1,
                    ..pod.entry
                },
            )
            .unwrap(),
    }
    assert_eq!(pod.process.dial("a", dialled), Err(EPERM));
    assert_eq!(pod.process.served(), 0, "the API server was reached");
    let counters = kernel.counters().unwrap();
    assert_eq!((counters.of(reason), counters.redirected()), (1, 0));
    assert_eq!(kernel.flow_count().unwrap(), 0);
    // What isn't the API server is still reached.
    pod.process.dial("b", OTHER_V4).unwrap();
}

#[test]
fn a_namespace_that_the_pod_makes_itself_is_foreign() {
    let node = Node::new();
    let kernel = node.install();
    let pod = TaggedPod::new(&node, &kernel, "pod");
    let mut inner = node.pod("pod/inner");
    assert_ne!(inner.cookie(), pod.cookie);
    assert_eq!(inner.dial("a", API_V4), Err(EPERM));
    assert_eq!(kernel.counters().unwrap().of(Counter::ForeignNamespace), 1);
    assert_eq!(inner.served(), 0, "the API server was reached");
    seen(
        Area::Redirect,
        "A network namespace that the pod makes itself",
        "the connect fails with EPERM; nothing reaches the API server",
    );
}

#[test]
fn a_full_table_refuses() {
    let node = Node::new();
    let kernel = node.install_with(&Options {
        flow_capacity: Some(2),
        ..node.options()
    });
    let mut pod = TaggedPod::new(&node, &kernel, "pod");
    let first = pod.process.dial("a", API_V4).unwrap();
    pod.process.dial("b", API_V4).unwrap();
    assert_eq!(pod.process.dial("c", API_V4), Err(EPERM));
    assert_eq!(kernel.counters().unwrap().of(Counter::MapFull), 1);
    assert_eq!(pod.process.served(), 0, "the API server was reached");
    seen(
        Area::Redirect,
        "The flow table is full",
        "the connect fails with EPERM; nothing reaches the API server",
    );
    // A place is free again when a record is taken, and when a socket closes.
    pod.take(&kernel, first.local, pod.entry.port4).unwrap();
    pod.process.dial("d", API_V4).unwrap();
    assert_eq!(pod.process.dial("e", API_V4), Err(EPERM));
    pod.process.close("b");
    pod.process.dial("f", API_V4).unwrap();
}

#[test]
fn what_sockets_leave_goes_with_them() {
    let node = Node::new();
    let kernel = node.install();
    let mut pod = TaggedPod::new(&node, &kernel, "pod");
    pod.process.dial("a", API_V4).unwrap();
    pod.process.dial("b", API_V6).unwrap();
    assert_eq!(kernel.flow_count().unwrap(), 2);
    pod.process.close("a");
    pod.process.close("b");
    assert_eq!(kernel.flow_count().unwrap(), 0);
    // A listener that isn't there: the dial fails after the kernel programs have seen it.
    kernel.set_pod(pod.id, &PodEntry { port4: 1, ..pod.entry }).unwrap();
    assert_eq!(pod.process.dial("c", API_V4), Err(nix::libc::ECONNREFUSED));
    pod.process.close("c");
    assert_eq!(kernel.flow_count().unwrap(), 0);
}

#[test]
fn a_thousand_connections_leave_nothing() {
    let node = Node::new();
    let kernel = node.install_with(&Options {
        flow_capacity: Some(16),
        ..node.options()
    });
    let mut pod = TaggedPod::new(&node, &kernel, "pod");
    for _ in 0..10 {
        let (v4, v6) = (pod.process.listen("127.0.0.1:0"), pod.process.listen("[::1]:0"));
        kernel
            .set_pod(
                pod.id,
                &PodEntry {
                    port4: v4,
                    port6: v6,
                    ..pod.entry
                },
            )
            .unwrap();
        assert_eq!(pod.process.churn(API_V4, 50), 50);
        assert_eq!(pod.process.churn(API_V6, 50), 50);
    }
    assert_eq!(kernel.counters().unwrap().redirected(), 1000);
    assert_eq!(kernel.flow_count().unwrap(), 0);
}

#[test]
fn a_direct_dial_of_the_listener_leaves_no_record() {
    let node = Node::new();
    let kernel = node.install();
    let mut pod = TaggedPod::new(&node, &kernel, "pod");
    let direct = format!("127.0.0.1:{}", pod.entry.port4);
    let ends = pod.process.dial("a", &direct).unwrap();
    assert_eq!(ends.peer, direct.parse().unwrap(), "getpeername tells the truth");
    assert_eq!(pod.take(&kernel, ends.local, pod.entry.port4), None);
}

/// A record may outlive its socket, where the kernel closes it in ways that the programs don't see.
#[test]
fn a_direct_dial_inherits_no_record() {
    let node = Node::new();
    let kernel = node.install();
    let mut pod = TaggedPod::new(&node, &kernel, "pod");
    let from: std::net::SocketAddr = "127.0.0.1:5555".parse().unwrap();
    let mut flows = flow_table(&node);
    let record = FlowRecord {
        cgroup_id: pod.id.0,
        enrolment: pod.entry.enrolment,
        boot_ns: kernel::boot_ns(),
        original: API_V4.parse::<std::net::SocketAddr>().unwrap().into(),
        reserved: 0,
    };
    flows
        .insert(FlowKey::new(pod.cookie.0, from.into(), pod.entry.port4), record, 0)
        .unwrap();
    assert_eq!(kernel.flow_count().unwrap(), 1);
    pod.process
        .dial_from("a", from, &format!("127.0.0.1:{}", pod.entry.port4))
        .unwrap();
    assert_eq!(pod.take(&kernel, from, pod.entry.port4), None);
}

#[test]
fn sweeping_removes_what_is_old_and_nothing_else() {
    let node = Node::new();
    let kernel = node.install();
    let mut pod = TaggedPod::new(&node, &kernel, "pod");
    pod.process.dial("a", API_V4).unwrap();
    let mut flows = flow_table(&node);
    let endpoint: std::net::SocketAddr = API_V4.parse().unwrap();
    let record = FlowRecord {
        cgroup_id: 1,
        enrolment: 1,
        boot_ns: 1,
        original: endpoint.into(),
        reserved: 0,
    };
    flows.insert(FlowKey::new(1, endpoint.into(), 1), record, 0).unwrap();
    assert_eq!(kernel.sweep_flows().unwrap(), 1);
    assert_eq!(kernel.flow_count().unwrap(), 1);
}

/// Sending may dial, without a `connect()`.
#[test]
fn fast_open_is_redirected_too() {
    let node = Node::new();
    let kernel = node.install();
    let mut pod = TaggedPod::new(&node, &kernel, "pod");
    let ends = pod.process.fast_open("a", API_V4).unwrap();
    assert_eq!(ends.peer, API_V4.parse().unwrap());
    assert!(pod.take(&kernel, ends.local, pod.entry.port4).is_some());
    kernel.rest().unwrap();
    assert_eq!(pod.process.fast_open("b", API_V4), Err(EPERM));
    assert_eq!(pod.process.served(), 0, "the API server was reached");
    seen(
        Area::Redirect,
        "TCP Fast Open on send (MSG_FASTOPEN)",
        "turned to the agent, as the pod; nothing reaches the API server",
    );
}

#[test]
fn a_socket_that_dials_again_forgets_the_first_time() {
    let node = Node::new();
    let kernel = node.install();
    let mut pod = TaggedPod::new(&node, &kernel, "pod");
    pod.process.dial("a", API_V4).unwrap();
    let ends = pod.process.redial("a", OTHER_V4).unwrap();
    assert_eq!(ends.peer, OTHER_V4.parse().unwrap(), "getpeername tells the truth");
    assert_eq!(kernel.flow_count().unwrap(), 0);
    let ends = pod.process.redial("a", API_V4).unwrap();
    assert_eq!(ends.peer, API_V4.parse().unwrap());
    assert!(pod.take(&kernel, ends.local, pod.entry.port4).is_some());
    // To the listener itself, as nobody.
    let direct = format!("127.0.0.1:{}", pod.entry.port4);
    let ends = pod.process.redial("a", &direct).unwrap();
    assert_eq!(ends.peer, direct.parse().unwrap());
    assert_eq!(pod.take(&kernel, ends.local, pod.entry.port4), None);
}

#[test]
fn multipath_tcp_is_redirected_too() {
    let node = Node::new();
    let kernel = node.install();
    let mut pod = TaggedPod::new(&node, &kernel, "pod");
    let ends = pod.process.dial_mptcp("a", API_V4).unwrap();
    assert!(ends.local.ip().is_loopback());
    assert_eq!(pod.process.served(), 0, "the API server was reached");
    assert!(pod.take(&kernel, ends.local, pod.entry.port4).is_some());
    kernel.rest().unwrap();
    assert_eq!(pod.process.dial_mptcp("b", API_V4), Err(EPERM));
    seen(
        Area::Redirect,
        "Multipath TCP",
        "turned to the agent, as the pod; nothing reaches the API server",
    );
}

/// Two pods of one namespace, as host-network pods are.
#[test]
fn neighbours_in_one_namespace_are_told_apart() {
    let node = Node::new();
    let kernel = node.install();
    let mut one = TaggedPod::new(&node, &kernel, "one");
    let process = node.neighbour("two", &one.process);
    let mut two = TaggedPod::tag(&node, &kernel, "two", process);
    assert_eq!(one.cookie, two.cookie);
    let from_one = one.process.dial("a", API_V4).unwrap();
    let from_two = two.process.dial("a", API_V4).unwrap();
    assert_eq!(one.take(&kernel, from_one.local, two.entry.port4), None);
    assert_eq!(
        one.take(&kernel, from_one.local, one.entry.port4).unwrap().cgroup_id,
        one.id
    );
    assert_eq!(
        two.take(&kernel, from_two.local, two.entry.port4).unwrap().cgroup_id,
        two.id
    );
    // One dials the other's listener.
    let sneaky = one
        .process
        .dial("b", &format!("127.0.0.1:{}", two.entry.port4))
        .unwrap();
    assert_eq!(two.take(&kernel, sneaky.local, two.entry.port4), None);
}

/// Invariants 1 and 6: an agent that is killed leaves the programs in force.
#[test]
fn without_an_agent_tagged_pods_are_refused() {
    let node = Node::new();
    let kernel = node.install_with(&Options {
        heartbeat_max_age: Duration::from_millis(300),
        ..node.options()
    });
    let mut pod = TaggedPod::new(&node, &kernel, "pod");
    kernel.beat().unwrap();
    pod.process.dial("a", API_V4).unwrap();
    drop(kernel);
    eventually("the heartbeat goes stale", || {
        pod.process.dial("b", API_V4) == Err(EPERM)
    });
    assert_eq!(pod.process.served(), 0, "the API server was reached");
    assert_eq!(pod.process.ends("a").unwrap().peer, API_V4.parse().unwrap());
}

/// Invariant 6: the next agent takes over, and what was tagged is refused until it has a listener again.
#[test]
fn a_second_agent_takes_over() {
    let node = Node::new();
    let first = node.install();
    let mut pod = TaggedPod::new(&node, &first, "pod");
    let before = pod.process.dial("a", API_V4).unwrap();
    assert!(matches!(
        Kernel::install(&node.root(), &node.options()),
        Err(InstallError::Pin(PinError::InUse(_)))
    ));
    drop(first);

    let second = Kernel::install(&node.root(), &node.options()).unwrap();
    assert_eq!(pod.process.dial("b", API_V4), Err(EPERM), "no heartbeat yet");
    second.beat().unwrap();
    assert_eq!(pod.process.dial("c", API_V4), Err(EPERM), "no listener yet");
    let tagged = second.pods().unwrap();
    assert_eq!(tagged, [(pod.id, PodEntry::without_listener(pod.entry.enrolment))]);
    second.set_pod(pod.id, &pod.entry).unwrap();
    assert_eq!(pod.process.dial("d", API_V4).unwrap().peer, API_V4.parse().unwrap());
    assert_eq!(
        pod.process.ends("a").unwrap(),
        before,
        "an older connection keeps its name"
    );
    assert!(second.counters().unwrap().redirected() >= 2, "the counters go on");
    assert_eq!(pod.process.served(), 0, "the API server was reached");

    second.remove_pod(pod.id).unwrap();
    pod.process.dial("e", API_V4).unwrap();
    eventually("the API server is reached", || pod.process.served() == 1);
}

/// A pod whose mark isn't set goes straight through, so that marks are set again whatever has become of their map.
#[test]
fn what_is_tagged_is_marked_whatever_became_of_the_marks() {
    let node = Node::new();
    let first = node.install();
    let mut pod = TaggedPod::new(&node, &first, "pod");
    // To a successor, for one that begins anew writes every entry again, and so marks it.
    first.yield_up();
    std::fs::remove_file(node.options().pin_dir.join("MARKS")).unwrap();
    let second = Kernel::succeed(&node.root(), &node.options()).unwrap();
    second.beat().unwrap();
    assert_eq!(pod.process.dial("a", API_V4).unwrap().peer, API_V4.parse().unwrap());
    assert_eq!(second.counters().unwrap().redirected(), 1);
    assert_eq!(pod.process.served(), 0, "the API server was reached");
}

/// Every connect during a take-over is redirected or refused.
#[test]
fn a_take_over_has_no_gap() {
    let node = Node::new();
    let kernel = node.install();
    let mut pod = TaggedPod::new(&node, &kernel, "pod");
    drop(kernel);
    let options = node.options();
    let root = node.root();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let takeovers = scope.spawn(|| {
            for _ in 0..5 {
                let kernel = Kernel::install(&root, &options).unwrap();
                kernel.beat().unwrap();
            }
            done.store(true, std::sync::atomic::Ordering::SeqCst);
        });
        while !done.load(std::sync::atomic::Ordering::SeqCst) && !takeovers.is_finished() {
            pod.process.churn(API_V4, 20);
        }
        takeovers.join().unwrap();
    });
    assert_eq!(pod.process.served(), 0, "the API server was reached");
}

#[test]
fn a_root_made_anew_is_attached_to_anew() {
    let node = Node::new();
    let kernel = node.install();
    drop(kernel);
    // Another root for the same pins.
    std::fs::create_dir(node.path("sub")).unwrap();
    let sub = kernel::cgroup::CgroupRoot::open(&node.path("sub")).unwrap();
    let kernel = Kernel::install(&sub, &node.options()).unwrap();
    kernel.beat().unwrap();
    let mut inside = TaggedPod::new(&node, &kernel, "sub/pod");
    assert!(inside.process.dial("a", API_V4).unwrap().local.ip().is_loopback());
    let mut outside = TaggedPod::new(&node, &kernel, "pod");
    outside.process.dial("a", API_V4).unwrap();
    eventually("the old root is free", || outside.process.served() == 1);
}

#[test]
fn addresses_come_and_go() {
    let node = Node::new();
    let kernel = node.install();
    let mut pod = TaggedPod::new(&node, &kernel, "pod");
    kernel
        .set_api_servers(&BTreeSet::from([OTHER_V4.parse().unwrap()]))
        .unwrap();
    pod.process.dial("a", API_V4).unwrap();
    eventually("the API server is reached", || pod.process.served() == 1);
    assert!(pod.process.dial("b", OTHER_V4).unwrap().local.ip().is_loopback());
}

/// Invariant 6: nothing is left.
#[test]
fn uninstall_leaves_nothing() {
    let node = Node::new();
    let kernel = node.install();
    let mut pod = TaggedPod::new(&node, &kernel, "pod");
    assert!(matches!(kernel::uninstall(&node.pin_dir()), Err(PinError::InUse(_))));
    drop(kernel);
    kernel::uninstall(&node.pin_dir()).unwrap();
    assert!(!node.pin_dir().exists());
    pod.process.dial("a", API_V4).unwrap();
    eventually("the API server is reached", || pod.process.served() == 1);
    kernel::uninstall(&node.pin_dir()).unwrap();
}

/// A bpffs mounted for Understudy alone: the mount is the operator's, and stays.
#[test]
fn uninstall_from_a_mount_point_leaves_it_empty() {
    let node = Node::new();
    let mount = node.pin_dir().parent().unwrap().to_owned();
    let options = kernel::Options {
        pin_dir: mount.clone(),
        ..node.options()
    };
    drop(Kernel::install(&node.root(), &options).unwrap());
    kernel::uninstall(&mount).unwrap();
    let left = std::fs::read_dir(&mount)
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    // Some kernels put files of their own into every bpffs.
    let ours: Vec<_> = left
        .filter(|name| !name.to_string_lossy().ends_with(".debug"))
        .collect();
    assert!(ours.is_empty(), "{ours:?}");
}

#[test]
fn maps_of_another_layout_are_refused_by_name() {
    let node = Node::new();
    std::fs::create_dir(node.pin_dir()).unwrap();
    let other = aya::maps::HashMap::<_, u64, u64>::create(4, 0).unwrap();
    other.pin(node.pin_dir().join("PODS")).unwrap();
    let error = Kernel::install(&node.root(), &node.options()).unwrap_err().to_string();
    assert!(
        error.contains("PODS") && error.contains("understudy uninstall --pin-dir"),
        "{error}"
    );
}

#[test]
fn everything_that_is_probed_works_here() {
    let node = Node::new();
    let probes = kernel::probe::all(Some(&node.path("untagged")), &node.pin_dir());
    let failed: Vec<_> = probes.iter().filter(|probe| !probe.works()).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(!node.pin_dir().exists(), "a probe left something");
}
