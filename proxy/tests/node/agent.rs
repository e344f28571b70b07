//! The half of an agent that works with the kernel, running in the test: enrolment, and whom its listeners let in.

use std::{future::Future, sync::Arc, time::Duration};

use nix::libc::EPERM;
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use understudy::{
    enrol::{self, Enrolment, Leftovers, PodState, PodStatus},
    kernel::{Kernel, cgroup::CgroupRoot},
    pod::{Inbound, WantedPod},
};
use understudy_common::PodEntry;

use super::{API_V4, Dialler, Ends, Node, api_servers};

/// What a test waits for at most.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) async fn patiently<F: Future>(future: F) -> F::Output {
    timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("in vain waited"))
}

pub(crate) fn wanted(cgroup: &str, session: &str) -> WantedPod {
    WantedPod {
        cgroup: cgroup.into(),
        name: cgroup.into(),
        session: session.parse().unwrap(),
        uid: None,
        service_account: None,
    }
}

/// Running enrolment, and what it is told.
pub(crate) struct Agent {
    pub(crate) kernel: Arc<Kernel>,
    pub(crate) wanted: watch::Sender<Arc<[WantedPod]>>,
    pub(crate) settle: watch::Sender<Leftovers>,
    pub(crate) inbound: mpsc::Receiver<Inbound>,
    pub(crate) enrolment: Enrolment,
    pub(crate) shutdown: CancellationToken,
}

impl Agent {
    pub(crate) fn start(node: &Node, pods: &[WantedPod]) -> Self {
        Self::start_with(node, pods, Leftovers::Untag)
    }

    pub(crate) fn start_with(node: &Node, pods: &[WantedPod], leftovers: Leftovers) -> Self {
        let kernel = Kernel::install(&node.root(), &node.options()).unwrap();
        kernel.set_api_servers(&api_servers()).unwrap();
        Self::on(node.root(), Arc::new(kernel), pods, leftovers)
    }

    /// On a kernel side that is in force, with the API server's addresses set.
    pub(crate) fn on(root: CgroupRoot, kernel: Arc<Kernel>, pods: &[WantedPod], leftovers: Leftovers) -> Self {
        let (wanted, wanted_there) = watch::channel(Arc::from(pods));
        let (settle, leftovers_there) = watch::channel(leftovers);
        let (accepted, inbound) = mpsc::channel(4);
        let shutdown = CancellationToken::new();
        let enrolment = enrol::start(
            Arc::clone(&kernel),
            root,
            wanted_there,
            leftovers_there,
            accepted,
            shutdown.clone(),
        );
        Self {
            kernel,
            wanted,
            settle,
            inbound,
            enrolment,
            shutdown,
        }
    }

    /// Waits until a pod is in a state.
    pub(crate) async fn until(&mut self, pod: &str, holds: impl Fn(&PodState) -> bool) {
        let reached = self
            .enrolment
            .pods
            .wait_for(|pods| pods.iter().any(|status| &*status.name == pod && holds(&status.state)));
        patiently(reached).await.unwrap();
    }

    pub(crate) async fn until_enrolled(&mut self, pod: &str) {
        self.until(pod, |state| matches!(state, PodState::Enrolled(_))).await;
    }

    pub(crate) async fn until_all_enrolled(&mut self, number: usize) {
        let all = |pods: &Arc<[PodStatus]>| {
            pods.len() == number && pods.iter().all(|pod| matches!(pod.state, PodState::Enrolled(_)))
        };
        patiently(self.enrolment.pods.wait_for(all)).await.unwrap();
    }

    /// The next connection that is let in.
    pub(crate) async fn next(&mut self) -> Inbound {
        patiently(self.inbound.recv()).await.unwrap()
    }

    /// The pods' entries in the kernel, by cgroup.
    pub(crate) fn entries(&self) -> Vec<PodEntry> {
        let mut entries = self.kernel.pods().unwrap();
        entries.sort_by_key(|(id, _)| id.0);
        entries.into_iter().map(|(_, entry)| entry).collect()
    }

    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        patiently(self.enrolment.task).await.unwrap();
    }
}

/// Dials from an async test: the process answers when the kernel does.
pub(crate) fn dial(process: &mut Dialler, name: &str, address: &str) -> Result<Ends, i32> {
    tokio::task::block_in_place(|| process.dial(name, address))
}

/// Dials until it isn't refused: what was asked for takes a moment.
pub(crate) async fn dial_when_possible(process: &mut Dialler) {
    patiently(async {
        while dial(process, "a", API_V4) == Err(EPERM) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}
