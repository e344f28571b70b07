//! What is answered, gathered from those who own it.

use std::{fmt, sync::Arc};

use tokio::sync::watch;
use understudy_common::Counter;

use super::view::{
    AgentView, ConditionView, EntryView, KernelRefusalView, KernelView, OwnRightsView, PodStateView, PodView,
    SessionView, SessionsView, WhyView,
};
use crate::{
    admin::Readiness,
    audit::tail::Tail,
    caller::granted,
    clock::Clock,
    cluster::{rights::OwnRights, status::phase_name},
    enrol::{PodState, PodStatus},
    kernel::{Kernel, MapError},
    metrics::Metrics,
    pod::CgroupId,
    sessions::store::{Report, SessionLookup, Snapshot},
    trust::serving::ServingCert,
};

/// Looks at the kernel side, and at the entry of a pod.
pub trait KernelLook: Send + Sync {
    /// What is there now.
    fn look(&self, pod: Option<CgroupId>) -> KernelView;
}

/// Those who own what is answered.
pub struct Answers {
    /// This node's name.
    pub node: Arc<str>,
    /// What the agent is ready for.
    pub readiness: Readiness,
    /// The sessions.
    pub sessions: SessionLookup,
    /// How each pod fares.
    pub pods: watch::Receiver<Arc<[PodStatus]>>,
    /// The kernel side.
    pub kernel: Arc<dyn KernelLook>,
    /// What workloads are shown.
    pub certificate: ServingCert,
    /// What was refused.
    pub metrics: Metrics,
    /// What pods' own accounts may do, where the cluster can be asked.
    pub own_rights: Option<OwnRights>,
    /// Asks the cluster what the agent itself may do, where it can be asked.
    pub client: Option<kube::Client>,
    /// Audit events as they come.
    pub tail: Tail,
    /// The hour.
    pub clock: Clock,
}

impl fmt::Debug for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answers")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

impl Answers {
    /// Who is on.
    pub(super) fn sessions(&self) -> SessionsView {
        let snapshot = self.sessions.snapshot();
        let pods = self.pods.borrow().clone();
        let mut sessions: Vec<SessionView> = snapshot
            .reports()
            .map(|report| self.session(&snapshot, report, &pods))
            .collect();
        sessions.sort_by(|one, other| (&one.namespace, &one.name).cmp(&(&other.namespace, &other.name)));
        SessionsView {
            node: self.node.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            sessions,
        }
    }

    /// What is known of a pod.
    pub(super) async fn why(&self, name: &str) -> WhyView {
        let snapshot = self.sessions.snapshot();
        let pods = self.pods.borrow().clone();
        let status = pods.iter().find(|pod| &*pod.name == name);
        let cgroup = status.and_then(|pod| match pod.state {
            PodState::Waiting(id) | PodState::Enrolled(id) => Some(id),
            PodState::Absent | PodState::Failed(_) => None,
        });
        let session = status.and_then(|pod| snapshot.reports().find(|report| report.id == pod.session));
        let not_ready = self.readiness.conditions().into_iter();
        let own_rights = async { self.own_rights.as_ref()?.of(name).await };
        let live = session.as_ref().and_then(|report| snapshot.in_force(&report.id));
        let lacks = async { granted::lacking_for(self.client.as_ref()?, live?).await };
        let (own_rights, lacks) = tokio::join!(own_rights, lacks);
        WhyView {
            agent: AgentView {
                node: self.node.to_string(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                not_ready: not_ready
                    .filter_map(|(name, reason)| {
                        Some(ConditionView {
                            name: name.to_owned(),
                            reason: reason?,
                        })
                    })
                    .collect(),
                certificate_expires: Some(self.certificate.expiry()),
                now: Some(self.clock.now()),
            },
            pod: status.map(pod_view),
            session: session.map(|report| self.session(&snapshot, report, &pods)),
            lacks,
            kernel: self.kernel.look(cgroup),
            refused: self.metrics.lately().of(name),
            own_rights: own_rights.map(|(account, may)| OwnRightsView {
                account,
                may: may.into_iter().map(str::to_owned).collect(),
            }),
        }
    }

    fn session(&self, snapshot: &Snapshot, report: Report, pods: &[PodStatus]) -> SessionView {
        let live = snapshot.in_force(&report.id);
        // A caller's own proof is asked for before any token of ours.
        let no_credential = live.and_then(|live| live.token(self.clock.now()).err());
        SessionView {
            namespace: report.id.namespace().to_owned(),
            name: report.id.name().to_owned(),
            phase: phase_name(&report.phase).to_owned(),
            reason: report.refused.map(|reason| reason.to_string()),
            no_credential: no_credential.map(|error| error.to_string()),
            method: report.method.map(str::to_owned),
            acts_as: report.acts_as,
            since: report.since,
            expires_at: report.expires_at,
            last_used: report.last_used,
            requests: report.requests,
            failures: report.failures,
            added: report.added,
            streams: report.connections,
            pods: pods
                .iter()
                .filter(|pod| pod.session == report.id)
                .map(pod_view)
                .collect(),
        }
    }
}

fn pod_view(pod: &PodStatus) -> PodView {
    let (state, reason) = match &pod.state {
        PodState::Absent => (PodStateView::Absent, None),
        PodState::Waiting(_) => (PodStateView::Waiting, None),
        PodState::Enrolled(_) => (PodStateView::Enrolled, None),
        PodState::Failed(reason) => (PodStateView::Failed, Some(reason.clone())),
    };
    PodView {
        name: pod.name.to_string(),
        session: pod.session.to_string(),
        cgroup: pod.cgroup.display().to_string(),
        state,
        reason,
    }
}

/// What the kernel programs refuse of a pod that is well enrolled. The rest is seen by its entry and by the heartbeat.
const REFUSED_TO_SOME: [Counter; 3] = [Counter::ForeignNamespace, Counter::PodFull, Counter::MapFull];

impl KernelLook for Kernel {
    fn look(&self, pod: Option<CgroupId>) -> KernelView {
        let read = || -> Result<KernelView, MapError> {
            let (age, most) = self.heartbeat()?;
            let milliseconds = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
            let entry = pod.map(|pod| self.pod(pod)).transpose()?.flatten();
            let mut refused = Vec::new();
            for counter in REFUSED_TO_SOME {
                refused.extend(self.since_rise(counter)?.map(|ago| KernelRefusalView {
                    verdict: counter.name().to_owned(),
                    ago_ms: milliseconds(ago),
                }));
            }
            Ok(KernelView {
                error: None,
                in_charge: self.is_in_charge(),
                heartbeat_ms: age.map(milliseconds),
                heartbeat_most_ms: milliseconds(most),
                api_servers: self.api_servers()?.into_iter().collect(),
                entry: entry.map(|entry| EntryView {
                    port4: entry.port4,
                    port6: entry.port6,
                }),
                refused,
            })
        };
        read().unwrap_or_else(|error| KernelView {
            error: Some(error.to_string()),
            ..KernelView::default()
        })
    }
}
