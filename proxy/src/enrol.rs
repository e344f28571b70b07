//! Enrolment: from pods that a session source wants tagged to connections whose pod is known.
//!
//! One task owns all of it ([`start`]). For each wanted pod it tags the cgroup, waits for a process in it, enters
//! that process's network namespace once to make listeners there, and tells the kernel programs of them. What the
//! listeners accept is handed on as [`Inbound`], or closed and counted where the kernel doesn't vouch for it.

mod accept;
mod enroller;
mod heartbeat;
mod netns;
mod notifier;
mod observe;
mod place;
mod plan;
mod refusals;
mod watches;

use std::{path::PathBuf, sync::Arc};

use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

pub use self::refusals::{Refusal, Refusals};
use crate::{
    kernel::{Kernel, cgroup::CgroupRoot},
    pod::{CgroupId, Inbound, SessionId, WantedPod},
};

/// Running enrolment, as others see it.
#[derive(Debug)]
pub struct Enrolment {
    /// How each wanted pod fares.
    pub pods: watch::Receiver<Arc<[PodStatus]>>,
    /// What the listeners refused.
    pub refusals: Arc<Refusals>,
    /// Ends once the listeners are closed, after `shutdown`.
    pub task: JoinHandle<()>,
}

/// How a wanted pod fares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodStatus {
    /// What the audit log calls it.
    pub name: Arc<str>,
    /// Its cgroup, relative to the root.
    pub cgroup: PathBuf,
    /// The session it acts in.
    pub session: SessionId,
    /// How far it has come.
    pub state: PodState,
}

/// How far a pod has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodState {
    /// It has no cgroup: it isn't running.
    Absent,
    /// It is tagged, its connects to the API server refused, and no process shows its network namespace yet.
    Waiting(CgroupId),
    /// Its connects to the API server are redirected.
    Enrolled(CgroupId),
    /// It can't be enrolled, for this reason. Tried again from time to time.
    Failed(String),
}

impl PodState {
    /// Whether nothing is left for the agent to do for it: it is enrolled, or has no process yet to be enrolled by.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        !matches!(self, Self::Failed(_))
    }
}

/// What becomes of pods that an earlier agent tagged and that nobody names now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leftovers {
    /// They aren't tagged any more: every source was read, and none names them.
    Untag,
    /// Their connects to the API server are refused: a source couldn't be read, and may have named them.
    Refuse,
}

/// Starts enrolment.
///
/// The value that `wanted` holds now is taken for what the sources say: so make the channel when they have been read,
/// not before; and have the API server's addresses set ([`Kernel::set_api_servers`]).
///
/// On `shutdown` the listeners close and tagged pods' connects are refused from then on; connections that were
/// handed on aren't touched.
#[must_use]
pub fn start(
    kernel: Arc<Kernel>,
    root: CgroupRoot,
    wanted: watch::Receiver<Arc<[WantedPod]>>,
    leftovers: Leftovers,
    inbound: mpsc::Sender<Inbound>,
    shutdown: CancellationToken,
) -> Enrolment {
    let refusals = Arc::<Refusals>::default();
    let (status, pods) = watch::channel(Arc::from([]));
    let acceptor = accept::Acceptor {
        kernel: Arc::clone(&kernel),
        inbound,
        refusals: Arc::clone(&refusals),
        closing: CancellationToken::new(),
    };
    let enroller = enroller::Enroller::new(kernel, Arc::new(root), acceptor, status);
    let task = tokio::spawn(enroller.run(wanted, leftovers, shutdown));
    Enrolment { pods, refusals, task }
}
