//! What an agent answers to operators, as both sides read it: JSON with Kubernetes' spelling of fields. What is new comes
//! as a field that may be missing, so that a plugin and an agent of different releases understand each other. No secret
//! has a place here.

use std::net::SocketAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use crate::{
    metrics::{Refused, What},
    sessions::spread::Bucket,
};

/// `GET /v1/sessions`: who is on, on this node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionsView {
    /// The agent's node.
    pub node: String,
    /// The agent's release.
    pub version: String,
    /// The sessions that pods here carry, by name.
    pub sessions: Vec<SessionView>,
}

/// A session, as it stands on one node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SessionView {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Active, Expired, Idle or Refused.
    pub phase: String,
    /// Why it is refused, where it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why there is no credential to act with, where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_credential: Option<String>,
    /// How it authenticates upstream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Whom it impersonates, where that is the same for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acts_as: Option<String>,
    /// Since when the agent has known of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// When it ends or ended by the clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// When something last came or ended under it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_used: Option<Timestamp>,
    /// Requests that have come under it since then.
    pub requests: u64,
    /// Those of them that were answered with 400 or above, by the API server or the agent.
    #[serde(skip_serializing_if = "is_zero")]
    pub failures: u64,
    /// How long the agent took before the API server had them, of those that it handed on: how many, by length.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub added: Vec<Bucket>,
    /// Requests and streams that are open under it.
    pub streams: usize,
    /// Its pods here.
    pub pods: Vec<PodView>,
}

/// A pod of this node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodView {
    /// What the audit log calls it: `namespace/name` in a cluster.
    pub name: String,
    /// The session that it carries, `namespace/name`.
    pub session: String,
    /// Its cgroup, relative to the root.
    pub cgroup: String,
    /// How far it has come.
    pub state: PodStateView,
    /// Why it can't be enrolled, where it can't.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// How far a pod has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PodStateView {
    /// It has no cgroup.
    #[default]
    Absent,
    /// It is tagged, and shows no network namespace yet.
    Waiting,
    /// Its connects to the API server are redirected.
    Enrolled,
    /// It can't be enrolled.
    Failed,
}

/// `GET /v1/pods/<name>`: what the agent knows of one pod, and of all that carries its requests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WhyView {
    /// The agent itself.
    pub agent: AgentView,
    /// The pod; none where nothing that the agent follows names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodView>,
    /// Its session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionView>,
    /// The rights that the agent lacks to impersonate whom the session acts as. Nothing where that isn't known, or the session
    /// impersonates nobody or whoever calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lacks: Option<Vec<String>>,
    /// The kernel side.
    pub kernel: KernelView,
    /// What the pod was refused, the latest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<Refused>,
    /// What the pod's own service account may do. Nothing where that isn't known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own_rights: Option<OwnRightsView>,
}

/// The agent itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentView {
    /// Its node.
    pub node: String,
    /// Its release.
    pub version: String,
    /// What it isn't ready for: each condition's name and the reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_ready: Vec<ConditionView>,
    /// When the certificate that workloads are shown ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_expires: Option<Timestamp>,
    /// Its time of day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub now: Option<Timestamp>,
}

/// A condition that isn't met.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConditionView {
    /// As `/readyz` has it.
    pub name: String,
    /// Why it isn't.
    pub reason: String,
}

/// The kernel side, as the agent reads it from the maps.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KernelView {
    /// Why it can't be read, where it can't.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Whether this agent is the one that writes it.
    pub in_charge: bool,
    /// How old the last sign of life is, in milliseconds; nothing where it was withdrawn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat_ms: Option<u64>,
    /// How old it may be, in milliseconds.
    pub heartbeat_most_ms: u64,
    /// The addresses that are intercepted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub api_servers: Vec<SocketAddr>,
    /// The pod's entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry: Option<EntryView>,
    /// What it refused lately to tagged pods, of which it isn't known to whom.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<KernelRefusalView>,
}

/// Connects that the kernel programs refused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KernelRefusalView {
    /// Why, as `understudy_kernel_connects_total` has it.
    pub verdict: String,
    /// How long ago that was seen last, in milliseconds.
    pub ago_ms: u64,
}

/// A pod's entry in the kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EntryView {
    /// The listener's port for IPv4; 0 refuses.
    pub port4: u16,
    /// The listener's port for IPv6; 0 refuses.
    pub port6: u16,
}

/// What a pod's own service account may do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OwnRightsView {
    /// The account.
    pub account: String,
    /// Of the telling things, what it may do.
    pub may: Vec<String>,
}

/// An error, as the Kubernetes API has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorView {
    /// What is wrong, and what to do.
    pub message: String,
}

/// What an answer that goes on says of itself, in a line of its own among the others: when it begins, every few seconds, and
/// why it ends.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NoticeView {
    /// `Notice`, by which such a line is told.
    pub kind: String,
    /// The agent's node.
    pub node: String,
    /// Requests that the audit policy has left out since the answer began.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub omitted: u64,
    /// Why it ends here, where it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
}

impl NoticeView {
    /// What tells such a line.
    pub const KIND: &str = "Notice";

    /// One of a node's.
    #[must_use]
    pub fn new(node: &str, omitted: u64, ended: Option<String>) -> Self {
        Self {
            kind: Self::KIND.to_owned(),
            node: node.to_owned(),
            omitted,
            ended,
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}
