//! `understudy gate` in real pods: it goes as soon as the pod is enrolled, and not before.
#![allow(clippy::unwrap_used, reason = "a test's helpers panic as tests do")]

mod node;

use std::{
    process::{Child, Command, Stdio},
    sync::Arc,
};

use node::{Agent, Dialler, Node, eventually, wanted};
use rstest::rstest;
use understudy::{
    enrol::{Leftovers, PodState},
    kernel::Kernel,
};

/// The gate, in a pod's cgroup and namespace, with no capability.
struct Gate(Child);

impl Gate {
    fn start(node: &Node, cgroup: &str, beside: &Dialler, host: &str, seconds: u32) -> Self {
        // The shell waits to be in its cgroup before it becomes the gate.
        let script = format!(
            "read go; exec setpriv --no-new-privs --inh-caps=-all --bounding-set=-all {} gate --timeout {seconds}",
            env!("CARGO_BIN_EXE_understudy")
        );
        let mut child = Command::new("nsenter")
            .args([&format!("--net=/proc/{}/ns/net", beside.pid()), "sh", "-c", &script])
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("KUBERNETES_SERVICE_HOST", host)
            .env("KUBERNETES_SERVICE_PORT", "443")
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        std::fs::write(node.path(cgroup).join("cgroup.procs"), child.id().to_string()).unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"go\n").unwrap();
        Self(child)
    }

    fn is_waiting(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    fn end(mut self) -> (bool, String) {
        let status = self.0.wait().unwrap();
        let said = std::io::read_to_string(self.0.stderr.take().unwrap()).unwrap();
        (status.success(), said)
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _status = self.0.wait();
    }
}

#[rstest]
#[case("10.96.0.1")]
#[case("fd00:96::1")]
#[tokio::test(flavor = "multi_thread")]
async fn it_opens_when_the_pod_is_enrolled(#[case] host: &str) {
    let node = Node::new();
    let mut process = node.pod("pod");
    let kernel = Arc::new(Kernel::install(&node.root(), &node.options()).unwrap());
    kernel.set_api_servers(&node::api_servers()).unwrap();

    // The pod isn't known yet: the gate gets through to the API server, and says nothing there.
    let mut gate = Gate::start(&node, "pod", &process, host, 60);
    eventually("it dials", || process.served() >= 2);
    assert!(gate.is_waiting());
    // It is tagged, and not enrolled.
    let id = node.cgroup("pod");
    kernel
        .set_pod(id, &understudy_common::PodEntry::without_listener(1))
        .unwrap();
    let refused = |kernel: &Kernel| {
        kernel
            .counters()
            .unwrap()
            .of(understudy_common::Counter::StaleHeartbeat)
    };
    eventually("it is refused", || refused(&kernel) >= 2);
    assert!(gate.is_waiting());

    let agent = Agent::on(node.root(), kernel, &[wanted("pod", "a/b")], Leftovers::Untag);
    // The agent may miss its connection, which is closed at once. What it saw counts.
    let (opened, said) = tokio::task::block_in_place(|| gate.end());
    assert!(opened, "{said}");
    assert!(
        agent
            .enrolment
            .pods
            .borrow()
            .iter()
            .any(|pod| pod.state == PodState::Enrolled(id))
    );
    agent.stop().await;
}

#[test]
fn it_says_what_to_do_when_the_pod_is_not_enrolled() {
    let node = Node::new();
    let kernel = node.install();
    let process = node.pod("pod");
    let (opened, said) = Gate::start(&node, "pod", &process, "10.96.0.1", 1).end();
    assert!(!opened);
    assert!(
        said.contains("understudy.dev/session") && said.contains("understudy check"),
        "{said}"
    );

    kernel
        .set_pod(node.cgroup("pod"), &understudy_common::PodEntry::without_listener(1))
        .unwrap();
    let (opened, said) = Gate::start(&node, "pod", &process, "10.96.0.1", 1).end();
    assert!(!opened);
    assert!(said.contains("its connections are refused"), "{said}");
}
