//! Connections to the API server that a pod opened before it was tagged: they end, and no other does.
#![allow(clippy::unwrap_used, reason = "a test's helpers panic as tests do")]

mod node;

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use nix::libc::ECONNABORTED;
use node::{API_MAPPED, API_V4, API_V6, Agent, Dialler, Node, OTHER_V4, eventually, wanted};
use understudy::{
    enrol::{self, Leftovers},
    kernel::Kernel,
    pod::WantedPod,
};
use understudy_cases::{Area, seen};

/// An address at which connections stay on their way.
const FULL: &str = "10.96.0.2:6443";

fn start(node: &Node, addresses: &[&str], pods: &[&str]) -> Agent {
    let kernel = Arc::new(Kernel::install(&node.root(), &node.options()).unwrap());
    kernel.set_api_servers(&set(addresses)).unwrap();
    let pods: Vec<WantedPod> = pods.iter().map(|pod| wanted(pod, "a/b")).collect();
    Agent::on(node.root(), kernel, &pods, Leftovers::Untag)
}

/// Until so many connections are ended, in all.
fn until_severed(agent: &Agent, number: u64) {
    tokio::task::block_in_place(|| eventually("they are ended", || agent.enrolment.severed.total() == number));
}

fn set(addresses: &[&str]) -> BTreeSet<SocketAddr> {
    addresses.iter().map(|address| address.parse().unwrap()).collect()
}

/// Both of its namespace's: a pod's, and what the test's processes have beside it.
fn dial_all(process: &mut Dialler) {
    for (name, address) in [
        ("v4", API_V4),
        ("v6", API_V6),
        ("mapped", API_MAPPED),
        ("other", OTHER_V4),
    ] {
        process.dial(name, address).unwrap();
    }
}

/// Invariant 1, and 4 for the others.
#[tokio::test(flavor = "multi_thread")]
async fn a_tagged_pods_own_connections_end_and_no_others() {
    let node = Node::new();
    let mut pod = node.pod("pod");
    // In the same namespace, as host-network pods and the kubelet are; deeper in the pod; and in another pod.
    let mut beside = node.neighbour("untagged", &pod);
    let mut inside = node.neighbour("pod/box/deeper", &pod);
    let mut elsewhere = node.pod("untagged/pod");
    for process in [&mut pod, &mut beside, &mut inside, &mut elsewhere] {
        // What a process opens belongs to the cgroup that it is in then.
        dial_all(process);
    }
    beside.listen_full(FULL);
    pod.begin_to_dial("begun", FULL);
    // Chosen and not sent yet, which is TCP Fast Open's way.
    pod.does(&format!("fast-open-connect chosen {API_V4}"));

    let agent = start(&node, &[API_V4, API_V6, FULL], &["pod"]);
    until_severed(&agent, 8);
    for process in [&mut pod, &mut inside] {
        for name in ["v4", "v6", "mapped"] {
            assert_eq!(process.error(name), ECONNABORTED, "{name}");
        }
    }
    assert_eq!(pod.error("begun"), ECONNABORTED);
    assert_eq!(pod.error("chosen"), ECONNABORTED);
    assert_ne!(pod.ask("say chosen hello"), "ok");
    // It is gone through once more; nothing else ends.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(agent.enrolment.severed.total(), 8);
    for name in ["v4", "v6", "mapped", "other"] {
        assert_eq!(beside.error(name), 0, "{name}");
        assert_eq!(elsewhere.error(name), 0, "{name}");
        beside.ends(name).unwrap();
        elsewhere.ends(name).unwrap();
    }
    for process in [&mut pod, &mut inside] {
        assert_eq!(process.error("other"), 0);
        process.ends("other").unwrap();
    }
    seen(
        Area::Redirect,
        "A connection to the API server opened before the pod was tagged",
        "ended (ECONNABORTED); no other's is",
    );
    agent.stop().await;
}

/// An address that comes to the API server's: so do the connections to it.
#[tokio::test(flavor = "multi_thread")]
async fn connections_to_a_new_address_of_the_api_server_end() {
    let node = Node::new();
    let mut pod = node.pod("pod");
    let mut beside = node.neighbour("untagged", &pod);
    let mut agent = start(&node, &[API_V4], &["pod"]);
    agent
        .until("pod", |state| matches!(state, enrol::PodState::Enrolled(_)))
        .await;
    for process in [&mut pod, &mut beside] {
        process.dial("other", OTHER_V4).unwrap();
        process.dial("v6", API_V6).unwrap();
    }
    // Past what is done at enrolment.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(agent.enrolment.severed.total(), 0);
    agent.kernel.set_api_servers(&set(&[API_V4, OTHER_V4])).unwrap();
    until_severed(&agent, 1);
    assert_eq!(pod.error("other"), ECONNABORTED);
    assert_eq!(pod.error("v6"), 0);
    assert_eq!((beside.error("other"), beside.error("v6")), (0, 0));
    agent.stop().await;
}

/// CRI-O puts a container's monitor, which stays in the node's namespace, into the pod's cgroup, before the container.
#[tokio::test(flavor = "multi_thread")]
async fn the_runtimes_monitor_does_not_show_the_pods_namespace() {
    let node = Node::new();
    let _monitor = Monitor::new(&node.path("pod/crio-conmon-5e3a.scope"));
    let mut agent = start(&node, &[API_V4, API_V6], &["pod"]);
    let id = node.cgroup("pod");
    agent.until("pod", |state| *state == enrol::PodState::Waiting(id)).await;
    let appeared = Instant::now();
    let mut process = node.pod("pod/crio-5e3a.scope");
    agent
        .until("pod", |state| *state == enrol::PodState::Enrolled(id))
        .await;
    // The pod's cgroup has had a process all along, so that its own file tells nothing.
    assert!(
        appeared.elapsed() < Duration::from_secs(5),
        "only the rescan noticed it: {:?}",
        appeared.elapsed()
    );
    let cookie = tokio::task::block_in_place(|| process.cookie());
    tokio::task::block_in_place(|| {
        eventually("the container's namespace is the enrolled one", || {
            agent.kernel.pods().unwrap()[0].1.netns_cookie == cookie.0
        });
    });
    process.dial("a", API_V4).unwrap();
    assert_eq!(process.served(), 0, "the API server was reached");
    agent.stop().await;
}

/// A process of the node's in a pod's cgroup.
struct Monitor(Child);

impl Monitor {
    fn new(cgroup: &Path) -> Self {
        std::fs::create_dir_all(cgroup).unwrap();
        let child = Command::new("sleep").arg("600").stdout(Stdio::null()).spawn().unwrap();
        std::fs::write(cgroup.join("cgroup.procs"), child.id().to_string()).unwrap();
        Self(child)
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _status = self.0.wait();
    }
}
