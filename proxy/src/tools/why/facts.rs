//! What was found about a pod, as far as it could be asked for. Plain data.

use jiff::Timestamp;

use crate::operator::view::WhyView;

/// Something that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Told<T> {
    /// Nobody was asked: it isn't known here, and nothing follows from that.
    #[default]
    NotAsked,
    /// Who was asked didn't answer, and this is why.
    Unknown(String),
    /// This was said.
    Known(T),
}

impl<T> Told<T> {
    /// What was said.
    pub fn known(&self) -> Option<&T> {
        match self {
            Self::Known(known) => Some(known),
            Self::NotAsked | Self::Unknown(_) => None,
        }
    }
}

/// All that was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// The pod, `namespace/name` in a cluster.
    pub pod: String,
    /// Its object; none where there is no such pod.
    pub object: Told<Option<PodFacts>>,
    /// The Session that it names; none where there is no such Session.
    pub session: Told<Option<SessionFacts>>,
    /// The pods of the agents on its node.
    pub agent_pods: Told<Vec<AgentPodFacts>>,
    /// What the agent of its node says.
    pub agent: Told<WhyView>,
}

/// A pod's object.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodFacts {
    /// What the label understudy.dev/session says.
    pub label: Option<String>,
    /// The node that it is bound to.
    pub node: Option<String>,
    /// Pending, Running, Succeeded, Failed or Unknown.
    pub phase: String,
    /// Whether it stands for a static pod, outside kube-system: its cgroup can't be told.
    pub is_static: bool,
    /// Whether it is being deleted.
    pub is_leaving: bool,
}

/// A Session's object.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SessionFacts {
    /// Active, Expired, Idle or Refused; none where no agent has said so yet.
    pub phase: Option<String>,
    /// Why it is refused, where it is.
    pub refusal: Option<String>,
    /// When it ends.
    pub expires_at: Option<Timestamp>,
    /// Whether it is being deleted.
    pub is_leaving: bool,
}

/// A pod of the agents'.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AgentPodFacts {
    /// Its name.
    pub name: String,
    /// Whether it is ready.
    pub is_ready: bool,
    /// Why its container doesn't run, where it doesn't.
    pub waiting: Option<String>,
}
