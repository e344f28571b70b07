//! Enrolment: from pods that a session source wants tagged to connections whose pod is known.
//!
//! One task owns all of it ([`start`]). For each wanted pod it tags the cgroup, waits for a process in it, enters
//! that process's network namespace once to make listeners there, tells the kernel programs of them, and ends what
//! connections to the API server the pod had before. What the listeners accept is handed on as [`Inbound`], or closed and counted where the kernel doesn't vouch for it.

mod accept;
mod attempts;
mod chores;
mod enroller;
mod entries;
mod heartbeat;
mod netns;
mod notifier;
mod observe;
mod place;
mod plan;
mod refusals;
mod sever;
mod sources;
mod steward;
mod succession;
mod watches;
mod work;

use std::{path::PathBuf, sync::Arc};

use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

pub use self::{
    attempts::Attempts,
    refusals::{Refusal, Refusals},
    sever::Severed,
    steward::{Steward, StewardError},
};
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
    /// Connections that were older than their pod's tag.
    pub severed: Arc<Severed>,
    /// How often pods were enrolled, or weren't.
    pub attempts: Arc<Attempts>,
    /// Hands all of it over to another agent.
    pub steward: Steward,
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
/// `leftovers` may change to [`Leftovers::Untag`] at any time, when the last source has been read; `wanted` has to say
/// what it says before.
///
/// A kernel side that was [taken over](Kernel::succeed) is replaced pod by pod, and all of it is when `pods` first
/// changes.
///
/// On `shutdown` the listeners close and tagged pods' connects are refused from then on, unless another agent has taken
/// over; connections that were handed on aren't touched.
#[must_use]
pub fn start(
    kernel: Arc<Kernel>,
    root: CgroupRoot,
    wanted: watch::Receiver<Arc<[WantedPod]>>,
    leftovers: watch::Receiver<Leftovers>,
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
    let root = Arc::new(root);
    let connections = sever::Severer::new(kernel, Arc::clone(&root));
    let severed = Arc::clone(&connections.severed);
    let (orders, received) = mpsc::channel(1);
    let steward = Steward {
        orders,
        retired: CancellationToken::new(),
    };
    let sources = sources::Sources::new(wanted, leftovers);
    let enroller = enroller::Enroller::new(root, acceptor, status, connections, sources, steward.retired.clone());
    let attempts = Arc::clone(&enroller.attempts);
    let task = tokio::spawn(enroller.run(received, shutdown));
    Enrolment {
        pods,
        refusals,
        severed,
        attempts,
        steward,
        task,
    }
}
