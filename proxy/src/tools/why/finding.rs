//! What the steps find, and what it comes to.

use serde::Serialize;

use crate::check::Outcome;

/// What is wrong. The names don't change between releases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// There is no such pod.
    PodNotFound,
    /// It doesn't carry the label.
    NoLabel,
    /// The label can't be a Session's name.
    LabelNotAName,
    /// No node has it.
    NotScheduled,
    /// Its containers have ended.
    PodOver,
    /// A static pod, of which the cgroup can't be told.
    StaticPod,
    /// There is no such Session.
    SessionNotFound,
    /// The Session is being deleted.
    SessionLeaving,
    /// What the Session says can't be granted.
    SessionRefused,
    /// Its time is up.
    SessionExpired,
    /// It went unused for too long.
    SessionIdle,
    /// The node has no agent.
    NoAgent,
    /// The agent's pod doesn't run.
    AgentNotRunning,
    /// The agent's pod runs and isn't ready.
    AgentNotReady,
    /// The agent doesn't answer.
    AgentSilent,
    /// The agent says that it isn't ready.
    AgentUnready,
    /// Nothing that the agent follows names the pod.
    UnknownToAgent,
    /// It has no cgroup where one is looked for.
    NoCgroup,
    /// No process of it shows its network namespace.
    NoProcess,
    /// It can't be enrolled.
    NotEnrolled,
    /// The maps can't be read.
    KernelUnreadable,
    /// Another agent writes them.
    NotInCharge,
    /// The agent's sign of life is too old.
    StaleHeartbeat,
    /// No address is intercepted.
    NoAddresses,
    /// The kernel has no entry for the pod.
    NoEntry,
    /// The entry names no listener.
    NoListener,
    /// The kernel refused connects of some pod of the node.
    RefusedByKernel,
    /// The agent has nothing in force under the pod's session.
    NotInForce,
    /// There is no credential to act with.
    NoCredential,
    /// The agent may not impersonate whom the session acts as.
    MayNotImpersonate,
    /// The certificate that workloads are shown has expired.
    CertificateExpired,
    /// The pod's clients don't trust it.
    Distrusted,
    /// The pod's clients speak HTTP without TLS.
    PlainHttp,
    /// Requests are refused.
    Refused,
    /// The pod's own account holds rights.
    OwnRights,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// How it stands.
    pub outcome: Outcome,
    /// What was looked at, and what was found.
    pub what: String,
    /// What is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// What it comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It is intercepted, and may act.
    Well,
    /// It isn't intercepted.
    NotIntercepted,
    /// It is, and can't act.
    CannotAct,
    /// It can't be told.
    Unknown,
}

impl Verdict {
    /// By the first thing that is wrong.
    #[must_use]
    pub fn of(findings: &[Finding]) -> Self {
        let first = findings.iter().find(|finding| finding.outcome == Outcome::Fail);
        match first.and_then(|finding| finding.cause) {
            None => Self::Well,
            Some(Cause::AgentSilent) => Self::Unknown,
            Some(
                Cause::SessionNotFound
                | Cause::SessionLeaving
                | Cause::SessionRefused
                | Cause::SessionExpired
                | Cause::SessionIdle
                | Cause::LabelNotAName
                | Cause::NotInForce
                | Cause::NoCredential
                | Cause::MayNotImpersonate
                | Cause::CertificateExpired
                | Cause::Distrusted
                | Cause::PlainHttp
                | Cause::Refused,
            ) => Self::CannotAct,
            Some(_) => Self::NotIntercepted,
        }
    }

    /// The exit code that says so.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Well => 0,
            Self::NotIntercepted => 3,
            Self::CannotAct => 4,
            Self::Unknown => 5,
        }
    }

    /// For people.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Well => "intercepted, and it may act in its session",
            Self::NotIntercepted => "not intercepted, or refused by the kernel; mend the first [FAIL]",
            Self::CannotAct => "intercepted, and it can't act; mend the first [FAIL]",
            Self::Unknown => "whether it is intercepted can't be told; mend the first [FAIL]",
        }
    }
}
