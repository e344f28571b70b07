//! Enrolment for real: from pods that are wanted to connections whose pod is known, while processes and cgroups come
//! and go.
#![allow(clippy::unwrap_used, reason = "a test's helpers panic as tests do")]

mod node;

use std::{
    collections::BTreeSet,
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::libc::EPERM;
use node::{
    API_MAPPED, API_V4, API_V6, Agent, Crowd, Node, dial, dial_when_possible, patiently, remove_cgroups, wanted,
};
use rstest::rstest;
use tokio::sync::watch;
use understudy::{
    enrol::{self, Leftovers, PodState, Refusal},
    pod::WantedPod,
};
use understudy_cases::{Area, seen};

/// What a machine that is busy with other tests takes at most for what takes milliseconds. The figures are printed.
const BUSY_MACHINE: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread")]
async fn connections_arrive_with_their_pod() {
    let node = Node::new();
    let mut process = node.pod("pod");
    let mut agent = Agent::start(&node, &[wanted("pod", "prod/viewer")]);
    agent.until_enrolled("pod").await;
    for (address, original) in [(API_V4, API_V4), (API_V6, API_V6), (API_MAPPED, API_V4)] {
        let ends = dial(&mut process, "a", address).unwrap();
        assert_eq!(ends.peer, address.parse().unwrap());
        let inbound = agent.next().await;
        assert_eq!(inbound.original_dst.0, original.parse().unwrap());
        assert_eq!(inbound.client.0.port(), ends.local.port());
        assert_eq!(inbound.client.0.ip(), ends.local.ip().to_canonical());
        assert_eq!(inbound.pod.wanted, wanted("pod", "prod/viewer"));
        assert_eq!(inbound.pod.cgroup_id, node.cgroup("pod"));
        assert!(!inbound.pod.gone.is_cancelled());
        assert!(inbound.stream.nodelay().unwrap());
    }
    assert_eq!(agent.kernel.flow_count().unwrap(), 0);
    assert_eq!(process.served(), 0, "the API server was reached");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_dials_a_listener_directly_is_refused() {
    let node = Node::new();
    let mut process = node.pod("pod");
    let mut beside = node.neighbour("untagged", &process);
    let mut agent = Agent::start(&node, &[wanted("pod", "a/b")]);
    agent.until_enrolled("pod").await;
    let entry = agent.kernel.pods().unwrap()[0].1;
    for dialler in [&mut process, &mut beside] {
        for direct in [format!("127.0.0.1:{}", entry.port4), format!("[::1]:{}", entry.port6)] {
            dial(dialler, "a", &direct).unwrap();
            assert_eq!(
                tokio::task::block_in_place(|| dialler.read("a")),
                "",
                "closed, nothing said"
            );
        }
    }
    assert_eq!(agent.enrolment.refusals.of(Refusal::NoRecord), 4);
    assert!(agent.inbound.is_empty());
    seen(
        Area::Redirect,
        "A process of the pod's, or an untagged one in its network namespace, dials the listener itself",
        "closed, nothing said",
    );
    agent.stop().await;
}

/// Two pods of one namespace, as host-network pods are.
#[tokio::test(flavor = "multi_thread")]
async fn neighbours_in_one_namespace_are_told_apart() {
    let node = Node::new();
    let mut one = node.pod("one");
    let mut two = node.neighbour("two", &one);
    let mut agent = Agent::start(&node, &[wanted("one", "a/one"), wanted("two", "a/two")]);
    agent.until_enrolled("one").await;
    agent.until_enrolled("two").await;
    dial(&mut one, "a", API_V4).unwrap();
    assert_eq!(agent.next().await.pod.wanted.session.name(), "one");
    dial(&mut two, "a", API_V4).unwrap();
    assert_eq!(agent.next().await.pod.wanted.session.name(), "two");
    seen(
        Area::Redirect,
        "Two tagged pods of one network namespace, as host-network pods are",
        "each turned to the agent, and served as itself",
    );
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_refused_until_it_is_enrolled() {
    let node = Node::new();
    let id = node.cgroup("pod");
    let mut agent = Agent::start(&node, &[wanted("pod", "a/b"), wanted("later/pod", "a/b")]);
    agent.until("pod", |state| *state == PodState::Waiting(id)).await;
    agent.until("later/pod", |state| *state == PodState::Absent).await;

    let mut process = node.pod("pod");
    agent.until_enrolled("pod").await;
    // Whatever the settling does: at the end the pod's own namespace is the enrolled one.
    dial_when_possible(&mut process).await;
    assert_eq!(agent.next().await.pod.cgroup_id, id);
    assert_eq!(process.served(), 0, "the API server was reached");

    let mut later = node.pod("later/pod");
    agent.until_enrolled("later/pod").await;
    dial_when_possible(&mut later).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_starts_again_is_enrolled_anew() {
    let node = Node::new();
    let mut process = node.pod("pod");
    let mut agent = Agent::start(&node, &[wanted("pod", "a/b")]);
    agent.until_enrolled("pod").await;
    dial(&mut process, "a", API_V4).unwrap();
    let before = agent.next().await;

    // All processes end: the connections go, the tag stays.
    drop(process);
    agent.until("pod", |state| matches!(state, PodState::Waiting(_))).await;
    patiently(before.pod.gone.cancelled()).await;
    let mut process = node.pod("pod");
    agent.until_enrolled("pod").await;
    dial_when_possible(&mut process).await;
    assert!(!agent.next().await.pod.gone.is_cancelled());

    // The cgroup itself goes: nothing stays.
    drop(process);
    remove_cgroups(&node.path("pod"));
    agent.until("pod", |state| *state == PodState::Absent).await;
    assert_eq!(agent.kernel.pods().unwrap(), []);
    let _process = node.pod("pod");
    agent.until_enrolled("pod").await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_changes_session_and_is_let_go() {
    let node = Node::new();
    let mut process = node.pod("pod");
    let mut agent = Agent::start(&node, &[wanted("pod", "a/first")]);
    agent.until_enrolled("pod").await;
    dial(&mut process, "a", API_V4).unwrap();
    let first = agent.next().await;

    agent.wanted.send_replace(Arc::from([wanted("pod", "a/second")]));
    patiently(first.pod.gone.cancelled()).await;
    let moved = |pods: &Arc<[enrol::PodStatus]>| {
        pods.iter()
            .any(|pod| pod.session.name() == "second" && matches!(pod.state, PodState::Enrolled(_)))
    };
    patiently(agent.enrolment.pods.wait_for(moved)).await.unwrap();
    dial(&mut process, "b", API_V4).unwrap();
    let second = agent.next().await;
    assert_eq!(second.pod.wanted.session.name(), "second");
    assert_eq!(process.served(), 0, "the API server was reached");

    agent.wanted.send_replace(Arc::from([]));
    patiently(second.pod.gone.cancelled()).await;
    dial_when_possible(&mut process).await;
    node::eventually("the API server is reached", || process.served() == 1);
    assert_eq!(agent.kernel.pods().unwrap(), []);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_source_may_end() {
    let node = Node::new();
    let mut process = node.pod("pod");
    let mut agent = Agent::start(&node, &[wanted("pod", "a/b")]);
    agent.until_enrolled("pod").await;
    agent.wanted = watch::channel(Arc::from([])).0;
    dial(&mut process, "a", API_V4).unwrap();
    assert_eq!(agent.next().await.pod.wanted, wanted("pod", "a/b"));
    agent.stop().await;
}

/// Invariants 1 and 6: a drained agent's pods are refused, and the next agent has them at once.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_stops_and_another_starts() {
    let node = Node::new();
    let mut process = node.pod("pod");
    let mut leftover = node.pod("leftover");
    let mut agent = Agent::start(&node, &[wanted("pod", "a/b"), wanted("leftover", "a/b")]);
    agent.until_enrolled("pod").await;
    agent.until_enrolled("leftover").await;
    dial(&mut process, "a", API_V4).unwrap();
    let open = agent.next().await;
    agent.stop().await;
    assert!(!open.pod.gone.is_cancelled(), "open connections are for others to end");
    assert_eq!(dial(&mut process, "b", API_V4), Err(EPERM));

    let mut agent = Agent::start(&node, &[wanted("pod", "a/b")]);
    agent.until_enrolled("pod").await;
    dial(&mut process, "c", API_V4).unwrap();
    assert_eq!(agent.next().await.original_dst.0, API_V4.parse().unwrap());
    assert_eq!(process.served(), 0, "the API server was reached");
    // Nobody wants it any more.
    dial(&mut leftover, "a", API_V4).unwrap();
    node::eventually("the API server is reached", || leftover.served() == 1);
    agent.stop().await;
}

/// Invariant 1: what isn't known for sure to be unwanted stays refused.
#[tokio::test(flavor = "multi_thread")]
async fn leftovers_may_be_refused() {
    let node = Node::new();
    let mut process = node.pod("pod");
    let mut agent = Agent::start(&node, &[wanted("pod", "a/b")]);
    agent.until_enrolled("pod").await;
    agent.stop().await;

    let mut agent = Agent::start_with(&node, &[wanted("other", "a/b")], Leftovers::Refuse);
    agent.until("other", |state| *state == PodState::Absent).await;
    assert_eq!(dial(&mut process, "a", API_V4), Err(EPERM));
    assert_eq!(process.served(), 0, "the API server was reached");
    // Named after all.
    agent.wanted.send_replace(Arc::from([wanted("pod", "a/b")]));
    agent.until_enrolled("pod").await;
    dial(&mut process, "b", API_V4).unwrap();
    agent.next().await;
    agent.stop().await;
}

/// A source is whole again: what nobody names is let go, and what is named by then isn't.
#[tokio::test(flavor = "multi_thread")]
async fn leftovers_are_let_go_once_all_is_known() {
    let node = Node::new();
    let mut process = node.pod("pod");
    let mut named = node.pod("named");
    let mut agent = Agent::start(&node, &[wanted("pod", "a/b"), wanted("named", "a/b")]);
    agent.until_enrolled("pod").await;
    agent.until_enrolled("named").await;
    agent.stop().await;

    let mut agent = Agent::start_with(&node, &[wanted("other", "a/b")], Leftovers::Refuse);
    agent.until("other", |state| *state == PodState::Absent).await;
    assert_eq!(dial(&mut process, "a", API_V4), Err(EPERM));
    agent
        .wanted
        .send_replace(Arc::from([wanted("other", "a/b"), wanted("named", "a/b")]));
    agent.settle.send_replace(Leftovers::Untag);
    dial_when_possible(&mut process).await;
    node::eventually("the API server is reached", || process.served() == 1);
    agent.until_enrolled("named").await;
    dial(&mut named, "a", API_V4).unwrap();
    assert_eq!(agent.next().await.pod.wanted, wanted("named", "a/b"));
    assert_eq!(named.served(), 0, "the API server was reached");
    agent.stop().await;
}

/// Invariant 1: while a wanted pod's cgroup can't be opened, whatever is tagged may be that pod's.
#[tokio::test(flavor = "multi_thread")]
async fn leftovers_are_refused_while_a_pod_cannot_be_looked_for() {
    let node = Node::new();
    let mut process = node.pod("pod");
    let mut agent = Agent::start(&node, &[wanted("pod", "a/b")]);
    agent.until_enrolled("pod").await;
    agent.stop().await;

    // A file is no directory: opening it fails, as it does where descriptors have run out.
    let hidden = "untagged/cgroup.procs";
    let mut agent = Agent::start(&node, &[wanted(hidden, "a/b"), wanted("../none", "a/b")]);
    agent.until(hidden, |state| matches!(state, PodState::Failed(_))).await;
    assert_eq!(dial(&mut process, "a", API_V4), Err(EPERM));
    assert_eq!(process.served(), 0, "the API server was reached");
    // What can be none of a cgroup keeps nobody waiting.
    agent.wanted.send_replace(Arc::from([wanted("../none", "a/b")]));
    dial_when_possible(&mut process).await;
    node::eventually("the API server is reached", || process.served() == 1);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_enrolled_says_so() {
    let node = Node::new();
    fs::create_dir_all(node.path("real")).unwrap();
    let mut agent = Agent::start(&node, &[wanted("../outside", "a/b"), wanted("real", "a/b")]);
    agent
        .until(
            "../outside",
            |state| matches!(state, PodState::Failed(text) if text.contains("relative")),
        )
        .await;
    agent.until("real", |state| matches!(state, PodState::Waiting(_))).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_without_ipv6_has_its_ipv4() {
    let node = Node::new();
    let mut process = node.pod("pod");
    process.ask("no-ipv6");
    let mut agent = Agent::start(&node, &[wanted("pod", "a/b")]);
    agent.until_enrolled("pod").await;
    assert_eq!(agent.kernel.pods().unwrap()[0].1.port6, 0);
    dial(&mut process, "a", API_V4).unwrap();
    agent.next().await;
    assert_eq!(dial(&mut process, "b", API_V6), Err(EPERM));
    agent.stop().await;
}

/// Pods that come one by one, each with its container: how long until their connects are turned.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_enrolled_as_its_cgroup_appears() {
    const PODS: usize = 10;
    let node = Node::new();
    let pods: Vec<WantedPod> = (0..PODS).map(|pod| wanted(&format!("pods/{pod}/box"), "a/b")).collect();
    let crowd: Vec<Crowd> = pods.iter().map(|_| Crowd::gather(&node, 1)).collect();
    let mut agent = Agent::start(&node, &pods);
    agent.until("pods/0/box", |state| *state == PodState::Absent).await;
    let mut times = Vec::new();
    for (process, pod) in crowd.iter().zip(&pods) {
        let appeared = Instant::now();
        process.enter(std::iter::once(node.path(pod.cgroup.to_str().unwrap())));
        agent.until_enrolled(&pod.name).await;
        times.push(appeared.elapsed());
    }
    times.sort();
    println!("enrolled after {times:?}");
    assert!(times[PODS / 2] < BUSY_MACHINE, "{times:?}");
    agent.stop().await;
}

/// Many pods appear at once, and stay through a change of agents.
#[rstest]
#[case::a_node_full(250)]
#[case::far_more(1000)]
#[tokio::test(flavor = "multi_thread")]
async fn many_pods_are_enrolled_quickly(#[case] number: usize) {
    let node = Node::new();
    let crowd = tokio::task::block_in_place(|| Crowd::gather(&node, number));
    let pods: Vec<WantedPod> = (0..number)
        .map(|pod| wanted(&format!("pods/{pod}/box"), "a/b"))
        .collect();
    let mut agent = Agent::start(&node, &pods);
    agent.until("pods/0/box", |state| *state == PodState::Absent).await;

    let started = Instant::now();
    tokio::task::block_in_place(|| crowd.enter(pods.iter().map(|pod| node.path(pod.cgroup.to_str().unwrap()))));
    agent.until_all_enrolled(number).await;
    println!("{number} pods that appear: {:?}", started.elapsed());
    assert!(started.elapsed() < 5 * BUSY_MACHINE);
    assert_all_have_listeners(&agent, number);
    agent.stop().await;

    let started = Instant::now();
    let mut agent = Agent::start(&node, &pods);
    agent.until_all_enrolled(number).await;
    println!("{number} pods at an agent's start: {:?}", started.elapsed());
    assert!(started.elapsed() < 5 * BUSY_MACHINE);
    assert_all_have_listeners(&agent, number);

    // One that comes now isn't kept waiting by the others.
    let more = [&pods[..], &[wanted("pods/one-more", "a/b")]].concat();
    let late = tokio::task::block_in_place(|| Crowd::gather(&node, 1));
    let started = Instant::now();
    late.enter(std::iter::once(node.path("pods/one-more")));
    agent.wanted.send_replace(Arc::from(more));
    agent.until_enrolled("pods/one-more").await;
    println!("one more beside {number}: {:?}", started.elapsed());
    assert_eq!(agent.enrolment.severed.total(), 0);
    agent.stop().await;
}

/// Invariant 1: however long enrolling many takes, what appears meanwhile is tagged at once.
#[tokio::test(flavor = "multi_thread")]
async fn what_appears_while_many_are_enrolled_is_tagged_at_once() {
    const PODS: usize = 500;
    let node = Node::new();
    let crowd = tokio::task::block_in_place(|| Crowd::gather(&node, PODS));
    let mut pods: Vec<WantedPod> = (0..PODS).map(|pod| wanted(&format!("pods/{pod}/box"), "a/b")).collect();
    tokio::task::block_in_place(|| crowd.enter(pods.iter().map(|pod| node.path(pod.cgroup.to_str().unwrap()))));
    pods.push(wanted("appears", "a/b"));
    let (_there, named) = (node.cgroup("named"), wanted("named", "a/b"));
    let mut agent = Agent::start(&node, &pods);
    let enrolled = |agent: &Agent| {
        let entries = agent.kernel.pods().unwrap();
        entries.iter().filter(|(_, entry)| entry.port4 != 0).count()
    };
    patiently(async {
        while enrolled(&agent) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    let started = Instant::now();
    let ids = [node.cgroup("appears"), node.cgroup("named")];
    pods.push(named);
    agent.wanted.send_replace(Arc::from(&pods[..]));
    patiently(async {
        while !ids.iter().all(|id| agent.kernel.is_tagged(*id).unwrap()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    let (took, before) = (started.elapsed(), enrolled(&agent));
    println!("tagged after {took:?}, when {before} of {PODS} were enrolled");
    assert!(before < PODS, "they were tagged after all others were enrolled");
    agent
        .until("appears", |state| matches!(state, PodState::Waiting(_)))
        .await;
    agent
        .until("named", |state| matches!(state, PodState::Waiting(_)))
        .await;
    agent.stop().await;
}

/// Every pod has its own listeners in its own namespace.
fn assert_all_have_listeners(agent: &Agent, number: usize) {
    let entries = agent.kernel.pods().unwrap();
    let listening = entries.iter().filter(|(_, entry)| entry.port4 != 0 && entry.port6 != 0);
    assert_eq!(listening.count(), number);
    let namespaces: BTreeSet<u64> = entries.iter().map(|(_, entry)| entry.netns_cookie).collect();
    assert_eq!(namespaces.len(), number);
}
