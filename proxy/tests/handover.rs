//! One agent takes over from another that runs: pods' connections are served throughout, by one or the other.
#![allow(clippy::unwrap_used, reason = "a test's helpers panic as tests do")]

mod node;

use std::{
    io::Write as _,
    ops::{Deref, DerefMut},
    os::unix::net::UnixStream,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use nix::libc::EPERM;
use node::{API_V4, API_V6, Dialler, Node, patiently};
use tokio::{io::AsyncWriteExt as _, sync::mpsc, task::JoinHandle};
use understudy::{
    enrol::{Leftovers, PodState, StewardError},
    handover::{Incumbent, Predecessor},
    kernel::{InstallError, Kernel, PinError},
    pod::{EnrolledPod, WantedPod},
};
use understudy_common::PodEntry;

fn wanted(pods: &[&str]) -> Arc<[WantedPod]> {
    pods.iter().map(|pod| node::wanted(pod, "a/b")).collect()
}

/// An agent that tells whoever connects its name, and closes.
struct Agent {
    inner: node::Agent,
    /// Pods of the connections that came.
    seen: mpsc::UnboundedReceiver<Arc<EnrolledPod>>,
    serving: Option<JoinHandle<()>>,
}

impl Deref for Agent {
    type Target = node::Agent;

    fn deref(&self) -> &node::Agent {
        &self.inner
    }
}

impl DerefMut for Agent {
    fn deref_mut(&mut self) -> &mut node::Agent {
        &mut self.inner
    }
}

impl Agent {
    fn new(node: &Node, name: &'static str, kernel: Kernel, pods: &[&str]) -> Self {
        kernel.set_api_servers(&node::api_servers()).unwrap();
        let mut inner = node::Agent::on(node.root(), Arc::new(kernel), &wanted(pods), Leftovers::Untag);
        let mut accepted = std::mem::replace(&mut inner.inbound, mpsc::channel(1).1);
        let (see, seen) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(mut inbound) = accepted.recv().await {
                let _told = inbound.stream.write_all(name.as_bytes()).await;
                let _closed = inbound.stream.shutdown().await;
                let _unheard = see.send(inbound.pod);
            }
        });
        Self {
            inner,
            seen,
            serving: None,
        }
    }

    fn first(node: &Node, name: &'static str, pods: &[&str]) -> Self {
        let kernel = Kernel::install(&node.root(), &node.options()).unwrap();
        Self::new(node, name, kernel, pods).answering(node)
    }

    /// In the place of one that has yielded.
    fn next(node: &Node, name: &'static str, pods: &[&str]) -> Self {
        let kernel = Kernel::succeed(&node.root(), &node.options()).unwrap();
        Self::new(node, name, kernel, pods)
    }

    fn answering(mut self, node: &Node) -> Self {
        let incumbent = Incumbent::bind(&node.run_dir(), &node.pin_dir()).unwrap();
        let incumbent = incumbent.publish(&node.pin_dir()).unwrap();
        let serving = incumbent.serve(self.enrolment.steward.clone(), self.shutdown.clone());
        self.serving = Some(tokio::spawn(serving));
        self
    }

    async fn stop(self) {
        self.inner.stop().await;
        if let Some(serving) = self.serving {
            patiently(serving).await.unwrap();
        }
    }
}

async fn ask(node: &Node) -> Predecessor {
    patiently(Predecessor::ask(&node.run_dir(), &node.pin_dir()))
        .await
        .unwrap()
        .unwrap()
}

/// Hands a node over as the agents do.
async fn hand_over(node: &Node, name: &'static str, pods: &[&str]) -> Agent {
    let predecessor = ask(node).await;
    let mut next = Agent::next(node, name, pods);
    patiently(next.enrolment.pods.changed()).await.unwrap();
    predecessor.done().await.unwrap();
    next.answering(node)
}

/// Dials over and over until told to stop; who was heard, and every failure.
struct Load {
    stop: Arc<AtomicBool>,
    dialling: JoinHandle<(Dialler, u32, Vec<String>)>,
}

impl Load {
    fn on(mut process: Dialler, address: &'static str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let dialling = tokio::task::spawn_blocking(move || {
            let mut heard: Vec<String> = Vec::new();
            let mut dials = 0;
            while !stopped.load(Ordering::Relaxed) {
                heard.extend(process.greetings(address, 20));
                heard.dedup();
                dials += 20;
            }
            (process, dials, heard)
        });
        Self { stop, dialling }
    }

    async fn end(mut self) -> (Dialler, u32, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        patiently(&mut self.dialling).await.unwrap()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // A test that fails doesn't wait for what dials on.
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// No new connection fails, and none goes straight through, while the node passes through three agents' hands.
#[tokio::test(flavor = "multi_thread")]
async fn no_connection_fails_while_one_agent_takes_over_from_another() {
    let node = Node::new();
    let (one, two) = (node.pod("one"), node.pod("two"));
    let pods = ["one", "two"];
    let mut first = Agent::first(&node, "first", &pods);
    for pod in pods {
        first.until_enrolled(pod).await;
    }
    let loads = [Load::on(one, API_V4), Load::on(two, API_V6)];
    patiently(first.seen.recv()).await.unwrap();

    let mut second = hand_over(&node, "second", &pods).await;
    patiently(second.seen.recv()).await.unwrap();
    patiently(first.enrolment.steward.retired()).await;
    let mut third = hand_over(&node, "third", &pods).await;
    patiently(third.seen.recv()).await.unwrap();
    patiently(second.enrolment.steward.retired()).await;
    // Those before take nothing away when they are ended.
    first.stop().await;
    second.stop().await;

    let mut all = 0;
    for load in loads {
        let (mut process, dials, heard) = load.end().await;
        // An old one may be heard once more between, for what was turned to it before; nothing else.
        assert!(
            heard
                .iter()
                .all(|one| ["first", "second", "third"].contains(&one.as_str())),
            "{heard:?}"
        );
        assert_eq!(heard.first().unwrap(), "first");
        assert_eq!(heard.last().unwrap(), "third");
        assert_eq!(process.served(), 0, "the API server was reached");
        all += dials;
    }
    println!("{all} connections, none failed");
    third.stop().await;
}

/// The one before goes on with what it has: connections, the ends of pods, and its heart.
#[tokio::test(flavor = "multi_thread")]
async fn the_agent_before_keeps_what_is_open_until_it_ends_by_itself() {
    let node = Node::new();
    let mut one = node.pod("one");
    let mut two = node.pod("two");
    let mut first = Agent::first(&node, "first", &["one", "two"]);
    first.until_enrolled("one").await;
    first.until_enrolled("two").await;
    one.greetings(API_V4, 1);
    let old_one = patiently(first.seen.recv()).await.unwrap();
    two.greetings(API_V4, 1);
    let old_two = patiently(first.seen.recv()).await.unwrap();

    let second = hand_over(&node, "second", &["one", "two"]).await;
    patiently(first.enrolment.steward.retired()).await;
    assert!(!old_one.gone.is_cancelled() && !old_two.gone.is_cancelled());
    // A session's pod that is wanted no longer, and one that ends.
    first.wanted.send_replace(wanted(&["two"]));
    patiently(old_one.gone.cancelled()).await;
    assert!(!old_two.gone.is_cancelled());
    drop(two);
    patiently(old_two.gone.cancelled()).await;
    // Of the second one's it takes nothing away, also when it is ended.
    assert_eq!(one.greetings(API_V4, 1), ["second"]);
    first.stop().await;
    assert_eq!(one.greetings(API_V4, 1), ["second"]);
    second.stop().await;
    assert_eq!(one.dial("a", API_V4), Err(EPERM));
}

/// No entry names a listener that closes: a pod that the next agent doesn't want, can't enrol, or hasn't met.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_to_the_listeners_of_the_agent_before() {
    let node = Node::new();
    let (mut stays, mut goes) = (node.pod("stays"), node.pod("goes"));
    let mut first = Agent::first(&node, "first", &["stays", "goes"]);
    first.until_enrolled("stays").await;
    first.until_enrolled("goes").await;
    let before = first.entries();
    let second = hand_over(&node, "second", &["stays"]).await;
    let after = second.entries();
    assert_eq!((before.len(), after.len()), (2, 1));
    let numbers = |entries: &[PodEntry]| entries.iter().map(|entry| entry.enrolment).collect::<Vec<_>>();
    assert!(numbers(&after).iter().all(|number| !numbers(&before).contains(number)));
    assert_eq!(stays.greetings(API_V4, 1), ["second"]);
    patiently(first.enrolment.steward.retired()).await;
    goes.dial("a", API_V4).unwrap();
    node::eventually("the API server is reached", || goes.served() == 1);
    first.stop().await;
    second.stop().await;
}

/// What was asked to yield goes on as it did, and so does what was done meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn the_next_agent_comes_to_nothing() {
    let node = Node::new();
    let mut process = node.pod("pod");
    let mut first = Agent::first(&node, "first", &["pod"]);
    first.until_enrolled("pod").await;
    let before = first.entries();

    // Gone as soon as it was yielded to.
    let predecessor = ask(&node).await;
    assert_eq!(process.greetings(API_V4, 3), ["first"]);
    drop(predecessor);
    assert_eq!(process.greetings(API_V4, 3), ["first"]);

    // Gone when it had replaced the entries, which name listeners that are gone with it.
    let predecessor = ask(&node).await;
    let mut second = Agent::next(&node, "second", &["pod", "more"]);
    patiently(second.enrolment.pods.changed()).await.unwrap();
    assert_ne!(second.entries(), before);
    assert_eq!(process.greetings(API_V4, 1), ["second"]);
    second.kernel.yield_up();
    drop(predecessor);
    patiently(async {
        while first.entries() != before {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!(process.greetings(API_V4, 3), ["first"]);
    second.stop().await;

    // It is in charge again: it enrols what comes, and another may ask.
    first.wanted.send_replace(wanted(&["pod", "later"]));
    let _later = node.pod("later");
    first.until_enrolled("later").await;
    let third = hand_over(&node, "third", &["pod", "later"]).await;
    assert_eq!(process.greetings(API_V4, 1), ["third"]);
    patiently(first.enrolment.steward.retired()).await;
    first.stop().await;
    third.stop().await;
}

/// What the next agent does before it enrols leaves the one before's heartbeat and entries in force.
#[tokio::test(flavor = "multi_thread")]
async fn a_take_over_withdraws_nothing() {
    let node = Node::new();
    let mut process = node.pod("pod");
    let mut first = Agent::first(&node, "first", &["pod"]);
    first.until_enrolled("pod").await;
    let before = first.entries();
    for _ in 0..3 {
        let predecessor = ask(&node).await;
        let second = Kernel::succeed(&node.root(), &node.options()).unwrap();
        // At once: the next beat would hide it.
        assert_eq!(process.greetings(API_V4, 3), ["first"]);
        assert_eq!(first.entries(), before);
        second.yield_up();
        drop((second, predecessor));
    }
    first.stop().await;
}

/// The next one's may be there already.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_has_handed_over_removes_no_socket() {
    let node = Node::new();
    let mut first = Agent::first(&node, "first", &[]);
    patiently(first.enrolment.pods.changed()).await.unwrap();
    let predecessor = ask(&node).await;
    let mut next = Agent::next(&node, "next", &[]);
    patiently(next.enrolment.pods.changed()).await.unwrap();
    predecessor.done().await.unwrap();
    patiently(first.serving.take().unwrap()).await.unwrap();
    assert!(node.run_dir().join("handover.sock").exists());
    let next = next.answering(&node);
    first.stop().await;
    drop(ask(&node).await);
    next.stop().await;
}

/// Invariant 1: what the next agent knew and this one doesn't is refused, not let go, when the next one comes to nothing;
/// what this one let go itself meanwhile is let go.
#[tokio::test(flavor = "multi_thread")]
async fn what_only_the_next_agent_knew_is_refused_when_it_comes_to_nothing() {
    let node = Node::new();
    let (mut goes, mut newer, mut comes) = (node.pod("goes"), node.pod("newer"), node.pod("comes"));
    let mut first = Agent::first(&node, "first", &["goes"]);
    first.until_enrolled("goes").await;
    let predecessor = ask(&node).await;
    let mut second = Agent::next(&node, "second", &["goes", "newer", "comes"]);
    patiently(second.enrolment.pods.changed()).await.unwrap();
    first.wanted.send_replace(wanted(&["comes"]));
    first
        .until("comes", |state| matches!(state, PodState::Waiting(_)))
        .await;
    second.kernel.yield_up();
    drop(predecessor);
    first.until_enrolled("comes").await;
    assert_eq!(newer.dial("a", API_V4), Err(EPERM));
    assert_eq!(newer.served(), 0, "the API server was reached");
    assert_eq!(comes.greetings(API_V4, 1), ["first"]);
    goes.dial("a", API_V4).unwrap();
    node::eventually("the API server is reached", || goes.served() == 1);
    second.stop().await;
    // Heard of at last.
    first.wanted.send_replace(wanted(&["comes", "newer"]));
    first.until_enrolled("newer").await;
    assert_eq!(newer.greetings(API_V4, 1), ["first"]);
    first.stop().await;
}

/// Invariant 1: a pod that comes when the one has yielded and the other isn't there yet is refused, not let through.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_comes_between_two_agents_is_refused_until_it_is_enrolled() {
    let node = Node::new();
    let mut stays = node.pod("stays");
    let mut first = Agent::first(&node, "first", &["stays", "comes"]);
    first.until_enrolled("stays").await;
    let predecessor = ask(&node).await;
    let mut comes = node.pod("comes");
    first
        .until("comes", |state| matches!(state, PodState::Waiting(_)))
        .await;
    assert_eq!(comes.dial("a", API_V4), Err(EPERM));
    let mut second = Agent::next(&node, "second", &["stays", "comes"]);
    patiently(second.enrolment.pods.changed()).await.unwrap();
    predecessor.done().await.unwrap();
    second.until_enrolled("comes").await;
    for pod in [&mut stays, &mut comes] {
        assert_eq!(pod.greetings(API_V4, 1), ["second"]);
        assert_eq!(pod.served(), 0, "the API server was reached");
    }
    patiently(first.enrolment.steward.retired()).await;
    first.stop().await;
    second.stop().await;
}

/// A pod that comes between the two is the next one's: of what is there already nothing is touched.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_has_yielded_writes_nothing_but_refusals() {
    let node = Node::new();
    let process = node.pod("pod");
    let mut first = Agent::first(&node, "first", &["pod"]);
    first.until_enrolled("pod").await;
    let before = first.entries();
    let predecessor = ask(&node).await;
    let refused = first.enrolment.steward.yield_up().await;
    assert!(matches!(refused, Err(StewardError::NotInCharge)), "{refused:?}");
    let later = node.pod("later");
    first.wanted.send_replace(wanted(&["pod", "later"]));
    first
        .until("later", |state| matches!(state, PodState::Waiting(_)))
        .await;
    first.wanted.send_replace(wanted(&["later"]));
    first
        .until("later", |state| matches!(state, PodState::Waiting(_)))
        .await;
    first.kernel.set_api_servers(&[].into()).unwrap();
    first.kernel.rest().unwrap();
    drop(process);
    let pod = node.cgroup("pod");
    let (kept, added): (Vec<_>, Vec<_>) = first.kernel.pods().unwrap().into_iter().partition(|(id, _)| *id == pod);
    assert_eq!(kept.into_iter().map(|(_, entry)| entry).collect::<Vec<_>>(), before);
    assert_eq!(added.len(), 1);
    assert_eq!(
        (added[0].0, added[0].1.port4, added[0].1.port6),
        (node.cgroup("later"), 0, 0)
    );
    assert_eq!(first.kernel.api_servers().unwrap(), node::api_servers());
    first.kernel.set_api_servers(&node::api_servers()).unwrap();

    drop(predecessor);
    first.until_enrolled("later").await;
    drop(later);
    first.stop().await;
}

/// Somebody else has the pin directory, and answers nothing: the present error, by name.
#[tokio::test(flavor = "multi_thread")]
async fn without_an_answer_the_pin_directory_is_in_use() {
    let node = Node::new();
    let first = node.install();
    let asked = Predecessor::ask(&node.run_dir(), &node.pin_dir()).await.unwrap();
    assert!(asked.is_none());
    for second in [
        Kernel::install(&node.root(), &node.options()),
        Kernel::succeed(&node.root(), &node.options()),
    ] {
        assert!(
            matches!(second, Err(InstallError::Pin(PinError::InUse(_)))),
            "{second:?}"
        );
    }
    drop(first);
}

/// Whoever asks for something else, or for another directory, changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_a_request_is_refused() {
    let node = Node::new();
    let mut process = node.pod("pod");
    let mut first = Agent::first(&node, "first", &["pod"]);
    first.until_enrolled("pod").await;
    let other = tempfile::tempdir().unwrap();
    let refused = patiently(Predecessor::ask(&node.run_dir(), other.path())).await;
    assert!(refused.unwrap_err().to_string().contains("--run-dir"));
    let socket = node.run_dir().join("handover.sock");
    UnixStream::connect(&socket).unwrap().write_all(b"done\n").unwrap();
    UnixStream::connect(&socket).unwrap().write_all(&[b'x'; 4096]).unwrap();
    drop(UnixStream::connect(&socket).unwrap());
    assert_eq!(process.greetings(API_V4, 3), ["first"]);
    // It is still to be asked.
    drop(ask(&node).await);
    first.stop().await;
    assert!(!socket.exists(), "an agent that ends takes its socket along");
}
