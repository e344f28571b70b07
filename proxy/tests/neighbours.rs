//! Whoever else is on the node: other cgroup programs, processes that want a listener's port, clients that dial it.
#![allow(clippy::unwrap_used, reason = "a test's helpers panic as tests do")]

mod node;

use std::{net::SocketAddr, time::Duration};

use nix::libc::{EADDRINUSE, EPERM};
use node::{
    API_V4, Agent, Foreign, Node, OTHER_V4, TaggedPod, dial, eventually, flow_table, foreign, patiently, wanted,
};
use rstest::rstest;
use tokio::io::AsyncReadExt as _;
use understudy::{
    enrol::{Leftovers, Refusal},
    kernel::{InstallError, Kernel, Options},
};
use understudy_cases::{Area, seen};
use understudy_common::FlowKey;

fn address(text: &str) -> std::net::Ipv4Addr {
    let address: SocketAddr = text.parse().unwrap();
    match address.ip() {
        std::net::IpAddr::V4(address) => address,
        std::net::IpAddr::V6(_) => panic!("{text}"),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Where {
    /// At the cgroup that Understudy attaches to, before it does.
    Before,
    /// There, after it did.
    After,
    /// At the pod's own cgroup, in a way that would take an ancestor's place that let it.
    Pod,
}

/// Another program that turns a service's address to the API server's, as a service load balancer does: what comes of
/// it is judged.
#[rstest]
#[case::before(Where::Before, foreign::ALLOW_MULTI, "attached before Understudy's")]
#[case::pod(
    Where::Pod,
    foreign::ALLOW_OVERRIDE,
    "at the pod's own cgroup, with BPF_F_ALLOW_OVERRIDE"
)]
#[case::pod_multi(Where::Pod, foreign::ALLOW_MULTI, "at the pod's own cgroup, with BPF_F_ALLOW_MULTI")]
#[case::pod_alone(Where::Pod, foreign::ALONE, "at the pod's own cgroup, alone")]
fn what_another_program_turns_to_the_api_server_is_turned_on(
    #[case] place: Where,
    #[case] flags: u32,
    #[case] words: &str,
) {
    let node = Node::new();
    node.cgroup("pod");
    let at = match place {
        Where::Pod => node.path("pod"),
        _ => node.root().path().to_owned(),
    };
    let attach = || Foreign::turning(&at, flags, address(OTHER_V4), address(API_V4)).unwrap();
    let before = (place == Where::Before).then(attach);
    let kernel = node.install();
    let after = (place != Where::Before).then(attach);
    let mut pod = TaggedPod::new(&node, &kernel, "pod");
    for (name, dialled) in [("a", OTHER_V4), ("b", API_V4)] {
        let ends = pod.process.dial(name, dialled).unwrap();
        let flow = pod.take(&kernel, ends.local, pod.entry.port4).unwrap();
        assert_eq!(flow.original_dst.0, API_V4.parse().unwrap());
        assert_eq!(pod.process.served(), 0, "the API server was reached");
    }
    drop((before, after));
    seen(
        Area::Redirect,
        format!("Another program on connect() turns a dial to the API server: {words}"),
        "turned to the agent, as the pod; nothing reaches the API server",
    );
}

#[rstest]
#[case::before(Where::Before)]
#[case::after(Where::After)]
fn a_program_beside_changes_nothing(#[case] place: Where) {
    let node = Node::new();
    let attach = |allow| Foreign::saying(node.root().path(), foreign::ALLOW_MULTI, allow).unwrap();
    let before = (place == Where::Before).then(|| attach(true));
    let kernel = node.install();
    let after = (place == Where::After).then(|| attach(true));
    let mut pod = TaggedPod::new(&node, &kernel, "pod");
    let ends = pod.process.dial("a", API_V4).unwrap();
    assert!(pod.take(&kernel, ends.local, pod.entry.port4).is_some());
    // One that refuses, refuses.
    let refusing = attach(false);
    assert_eq!(pod.process.dial("b", API_V4), Err(EPERM));
    drop((before, after, refusing));
    pod.process.close("b");
    assert_eq!(kernel.flow_count().unwrap(), 0);
    assert_eq!(pod.process.served(), 0, "the API server was reached");
    let place = if place == Where::Before { "before" } else { "after" };
    seen(
        Area::Redirect,
        format!("Another program on connect(), attached {place} Understudy's"),
        "turned to the agent, as the pod; where the other refuses: EPERM; nothing reaches the API server",
    );
}

/// One that shares its cgroup with nobody leaves no place: the agent says so, and has tagged nothing.
#[test]
fn a_program_that_shares_its_cgroup_with_nobody_is_named() {
    let node = Node::new();
    let alone = Foreign::saying(node.root().path(), foreign::ALONE, true).unwrap();
    let error = Kernel::install(&node.root(), &node.options()).unwrap_err();
    assert!(
        matches!(error, InstallError::Attach { name: "connect4", .. }),
        "{error}"
    );
    drop(alone);
    Kernel::install(&node.root(), &node.options()).unwrap();
    seen(
        Area::Redirect,
        "Another program on connect() that shares its cgroup with nobody, attached before Understudy's",
        "the agent doesn't start, and names the program that can't be attached; it does once the other is gone",
    );
}

/// A listener of a pod's is where the agent was until it died: nothing comes to it.
#[test]
fn a_squatter_hears_nothing_while_the_agent_is_down() {
    let node = Node::new();
    let kernel = node.install_with(&Options {
        heartbeat_max_age: Duration::from_millis(300),
        ..node.options()
    });
    let mut pod = TaggedPod::new(&node, &kernel, "pod");
    // The port of a listener that is gone: as of a dead agent's.
    let port = node::free_port(&mut pod.process);
    let entry = understudy_common::PodEntry {
        port4: port,
        ..pod.entry
    };
    kernel.set_pod(pod.id, &entry).unwrap();
    kernel.beat().unwrap();
    drop(kernel);
    let mut squatter = node.neighbour("untagged", &pod.process);
    squatter.does(&format!("squat s 127.0.0.1:{port}"));
    eventually("the heartbeat is stale", || {
        squatter.ask("accepted s");
        pod.process.dial("a", API_V4) == Err(EPERM)
    });
    while squatter.ask("accepted s") != "none" {}
    for name in ["b", "c"] {
        assert_eq!(pod.process.dial(name, API_V4), Err(EPERM));
    }
    assert_eq!(squatter.ask("accepted s"), "none");
    assert_eq!(pod.process.served(), 0, "the API server was reached");
    seen(
        Area::Redirect,
        "A squatter on the listener's port while the agent is down",
        "the connect fails with EPERM; the squatter hears nothing; nothing reaches the API server",
    );
}

/// While the agent lives nobody shares its port; and when it comes back its listener is another.
#[tokio::test(flavor = "multi_thread")]
async fn a_squatter_takes_no_port_of_a_live_agent_and_keeps_none_from_the_next() {
    let node = Node::new();
    let mut process = node.pod("pod");
    let mut squatter = node.neighbour("untagged", &process);
    let mut agent = Agent::start(&node, &[wanted("pod", "a/b")]);
    agent.until_enrolled("pod").await;
    let entry = agent.entries()[0];
    for at in ["127.0.0.1", "0.0.0.0"] {
        let done = squatter.ask(&format!("squat s {at}:{}", entry.port4));
        assert_eq!(done, format!("err {EADDRINUSE}"), "{at}");
    }
    seen(
        Area::Redirect,
        "A squatter on the port of a live listener, with SO_REUSEPORT",
        "its bind() fails with EADDRINUSE",
    );
    agent.stop().await;
    squatter.does(&format!("squat s 127.0.0.1:{}", entry.port4));
    assert_eq!(dial(&mut process, "a", API_V4), Err(EPERM));
    let mut agent = Agent::start(&node, &[wanted("pod", "a/b")]);
    agent.until_enrolled("pod").await;
    assert_ne!(agent.entries()[0].port4, entry.port4);
    dial(&mut process, "b", API_V4).unwrap();
    assert_eq!(agent.next().await.pod.cgroup_id, node.cgroup("pod"));
    assert_eq!(squatter.ask("accepted s"), "none");
    assert_eq!(process.served(), 0, "the API server was reached");
    seen(
        Area::Redirect,
        "A squatter on the former listener's port when the agent comes back",
        "the agent's listener has another port; turned to the agent, as the pod; the squatter hears nothing",
    );
    agent.stop().await;
}

/// What a neighbour has sent and reset before it was accepted isn't taken for what another one sends from its address.
/// On one thread, so that nothing is accepted while the test doesn't wait.
#[tokio::test]
async fn a_connection_that_was_reset_lends_its_words_to_nobody() {
    const FROM: &str = "127.0.0.1:5555";
    let node = Node::new();
    let mut process = node.pod("pod");
    let mut neighbour = node.neighbour("untagged", &process);
    let mut agent = Agent::start(&node, &[wanted("pod", "a/b")]);
    agent.until_enrolled("pod").await;
    let listener = format!("127.0.0.1:{}", agent.entries()[0].port4);

    neighbour.dial_from("a", FROM.parse().unwrap(), &listener).unwrap();
    neighbour.does("say a the-neighbours");
    neighbour.does("reset a");
    process.dial_from("a", FROM.parse().unwrap(), API_V4).unwrap();
    process.does("say a the-pods");
    let mut inbound = agent.next().await;
    let mut heard = [0; 8];
    patiently(inbound.stream.read_exact(&mut heard)).await.unwrap();
    assert_eq!(&heard, b"the-pods");
    assert_eq!(agent.enrolment.refusals.of(Refusal::Reset), 1);
    assert!(agent.inbound.is_empty());
    seen(
        Area::Redirect,
        "A neighbour in the pod's network namespace dials the listener, sends, resets, and leaves its source port to the pod",
        "its connection is closed unread; the pod's is served",
    );
    agent.stop().await;
}

/// A cgroup's number that comes again, or a pod that is enrolled anew: what an earlier enrolment left isn't taken for it.
#[tokio::test]
async fn a_record_of_another_life_is_refused() {
    let node = Node::new();
    let mut process = node.pod("pod");
    let mut agent = Agent::start(&node, &[wanted("pod", "a/b")]);
    agent.until_enrolled("pod").await;
    let entry = agent.entries()[0];
    let ends = process.dial("a", API_V4).unwrap();
    let mut flows = flow_table(&node);
    let key = FlowKey::new(entry.netns_cookie, ends.local.into(), entry.port4);
    let mut record = flows.get(&key, 0).unwrap();
    record.enrolment -= 1;
    flows.insert(key, record, 0).unwrap();
    patiently(async {
        while agent.enrolment.refusals.of(Refusal::OtherPod) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert!(agent.inbound.is_empty());
    assert_eq!(process.read("a"), "");
    seen(
        Area::Redirect,
        "A cgroup's id that comes again: a connection recorded for the pod that had it before",
        "closed, nothing said",
    );
    agent.stop().await;
}

/// A pod's cgroup that is made anew under the same name has another id.
#[tokio::test(flavor = "multi_thread")]
async fn a_cgroup_made_anew_is_tagged_anew() {
    let node = Node::new();
    let first = node.cgroup("pod");
    let mut agent = Agent::start_with(&node, &[wanted("pod", "a/b")], Leftovers::Untag);
    agent
        .until("pod", |state| *state == understudy::enrol::PodState::Waiting(first))
        .await;
    for _ in 0..20 {
        node::remove_cgroups(&node.path("pod"));
        let next = node.cgroup("pod");
        assert_ne!(next, first);
        patiently(async {
            while agent.kernel.pods().unwrap().iter().map(|(id, _)| *id).ne([next]) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
    agent.stop().await;
}
