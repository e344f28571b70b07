//! Ending the connections to the API server that a pod opened before it was tagged: the kernel programs see a
//! connection when it is dialled, and never again. Blocks.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::{sync::Semaphore, task::spawn_blocking};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, error, info, warn};

use super::{
    netns::NetnsError,
    observe::{Observation, observe},
};
use crate::{
    kernel::{
        Kernel, MapError,
        cgroup::{CgroupError, CgroupRoot},
        tcp::{self, TcpError},
    },
    pod::WantedPod,
};

/// How many pods are gone through at a time: it is work that may wait, and others may not.
const AT_A_TIME: usize = 2;

/// Why connections of a pod may be left.
#[derive(Debug, thiserror::Error)]
pub(super) enum SeverError {
    #[error(transparent)]
    Tcp(#[from] TcpError),
    #[error(transparent)]
    Netns(#[from] NetnsError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Map(#[from] MapError),
}

/// Connections that were ended because they were older than their pod's tag.
#[derive(Debug, Default)]
pub struct Severed(AtomicU64);

impl Severed {
    /// How many since the agent started.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Goes through pods, a few at a time, beside all else.
#[derive(Debug, Clone)]
pub(super) struct Severer {
    pub(super) kernel: Arc<Kernel>,
    pub(super) root: Arc<CgroupRoot>,
    pub(super) severed: Arc<Severed>,
    permits: Arc<Semaphore>,
    tasks: TaskTracker,
    stopping: CancellationToken,
}

impl Severer {
    pub(super) fn new(kernel: Arc<Kernel>, root: Arc<CgroupRoot>) -> Self {
        Self {
            kernel,
            root,
            severed: Arc::default(),
            permits: Arc::new(Semaphore::new(AT_A_TIME)),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
        }
    }

    /// Goes through a pod when its turn comes, and says in the log what became of it.
    pub(super) fn queue(&self, pod: WantedPod) {
        let severer = self.clone();
        self.tasks.spawn(async move {
            let turn = Arc::clone(&severer.permits).acquire_owned();
            let Some(Ok(_permit)) = severer.stopping.run_until_cancelled(turn).await else {
                return;
            };
            let name = Arc::clone(&pod.name);
            match spawn_blocking(move || severer.sever(&pod)).await {
                Ok(Ok(0)) => debug!(pod = %name, "no connection from before the tag"),
                Ok(Ok(connections)) => info!(
                    pod = %name,
                    connections,
                    "connections to the API server from before the pod was tagged are ended"
                ),
                Ok(Err(error)) => warn!(
                    pod = %name,
                    %error,
                    "connections to the API server from before the pod was tagged may go on, as the pod itself"
                ),
                Err(error) => error!(pod = %name, %error, "going through a pod's connections"),
            }
        });
    }

    /// Drops what waits, and waits for what is under way.
    pub(super) async fn stop(&self) {
        self.stopping.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// How many connections were ended.
    fn sever(&self, pod: &WantedPod) -> Result<usize, SeverError> {
        let Observation::Inhabited { directory, namespaces } = observe(&self.root, &pod.cgroup) else {
            // Without a process it has no connection either.
            return Ok(0);
        };
        // Only what is tagged: the next connection is turned, and so there is an end to this.
        if !self.kernel.is_tagged(directory.id())? {
            return Ok(0);
        }
        let cgroups = directory.subtree()?;
        let api_servers = self.kernel.api_servers()?;
        let mut ended = 0;
        for netns in &namespaces {
            // By cgroup always: a host-network pod shares its namespace with the kubelet, and any pod's may hold a
            // visitor.
            let here = netns.within(|| tcp::end_connections(&cgroups, &api_servers))?;
            ended += here?;
        }
        self.severed
            .0
            .fetch_add(u64::try_from(ended).unwrap_or(u64::MAX), Ordering::Relaxed);
        Ok(ended)
    }
}
