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
use node::{API_MAPPED, API_V4, API_V6, Dialler, Node, OTHER_V4, eventually};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use understudy::{
    enrol::{self, Enrolment, Leftovers},
    kernel::Kernel,
    pod::{Inbound, WantedPod},
};

/// An address at which connections stay on their way.
const FULL: &str = "10.96.0.2:6443";

struct Agent {
    kernel: Arc<Kernel>,
    enrolment: Enrolment,
    shutdown: CancellationToken,
    _sources: (
        watch::Sender<Arc<[WantedPod]>>,
        watch::Sender<Leftovers>,
        mpsc::Receiver<Inbound>,
    ),
}

impl Agent {
    fn start(node: &Node, addresses: &[&str], pods: &[&str]) -> Self {
        let kernel = Arc::new(Kernel::install(&node.root(), &node.options()).unwrap());
        kernel.set_api_servers(&set(addresses)).unwrap();
        let pods: Vec<WantedPod> = pods
            .iter()
            .map(|pod| WantedPod {
                cgroup: pod.into(),
                name: (*pod).into(),
                session: "a/b".parse().unwrap(),
                uid: None,
            })
            .collect();
        let (wanted, wanted_here) = watch::channel(Arc::from(pods));
        let (leftovers, leftovers_here) = watch::channel(Leftovers::Untag);
        let (inbound, accepted) = mpsc::channel(4);
        let shutdown = CancellationToken::new();
        let enrolment = enrol::start(
            Arc::clone(&kernel),
            node.root(),
            wanted_here,
            leftovers_here,
            inbound,
            shutdown.clone(),
        );
        Self {
            kernel,
            enrolment,
            shutdown,
            _sources: (wanted, leftovers, accepted),
        }
    }

    async fn until(&self, holds: impl Fn(&enrol::PodState) -> bool) {
        let mut pods = self.enrolment.pods.clone();
        let reached = pods.wait_for(|pods| pods.iter().any(|pod| holds(&pod.state)));
        tokio::time::timeout(Duration::from_secs(20), reached)
            .await
            .unwrap()
            .unwrap();
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.enrolment.task.await.unwrap();
    }

    /// Until so many connections are ended, in all.
    fn until_severed(&self, number: u64) {
        tokio::task::block_in_place(|| eventually("they are ended", || self.enrolment.severed.total() == number));
    }
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

    let agent = Agent::start(&node, &[API_V4, API_V6, FULL], &["pod"]);
    agent.until_severed(7);
    for process in [&mut pod, &mut inside] {
        for name in ["v4", "v6", "mapped"] {
            assert_eq!(process.error(name), ECONNABORTED, "{name}");
        }
    }
    assert_eq!(pod.error("begun"), ECONNABORTED);
    // It is gone through once more; nothing else ends.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(agent.enrolment.severed.total(), 7);
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
    agent.stop().await;
}

/// An address that comes to the API server's: so do the connections to it.
#[tokio::test(flavor = "multi_thread")]
async fn connections_to_a_new_address_of_the_api_server_end() {
    let node = Node::new();
    let mut pod = node.pod("pod");
    let mut beside = node.neighbour("untagged", &pod);
    let agent = Agent::start(&node, &[API_V4], &["pod"]);
    agent.until(|state| matches!(state, enrol::PodState::Enrolled(_))).await;
    for process in [&mut pod, &mut beside] {
        process.dial("other", OTHER_V4).unwrap();
        process.dial("v6", API_V6).unwrap();
    }
    // Past what is done at enrolment.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(agent.enrolment.severed.total(), 0);
    agent.kernel.set_api_servers(&set(&[API_V4, OTHER_V4])).unwrap();
    agent.until_severed(1);
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
    let agent = Agent::start(&node, &[API_V4, API_V6], &["pod"]);
    let id = node.cgroup("pod");
    agent.until(|state| *state == enrol::PodState::Waiting(id)).await;
    let appeared = Instant::now();
    let mut process = node.pod("pod/crio-5e3a.scope");
    agent.until(|state| *state == enrol::PodState::Enrolled(id)).await;
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
