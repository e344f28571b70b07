//! What the agent tells of itself as it runs: readiness, and figures that are looked up when they are asked for.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use prometheus_client::registry::Registry;
use tokio::sync::watch;
use understudy_common::Counter;

use crate::{
    admin::Condition,
    clock,
    credentials::TokenFile,
    enrol::{Enrolment, PodState, PodStatus},
    kernel::Kernel,
    metrics::{Limit, Metrics, PREFIX, register_counts, register_gauge, register_gauges},
    sessions::store::SessionLookup,
    trust::serving::ServingCert,
    upstream::pool::DialCounts,
};

/// Ready once every pod has been looked at. One that can't be enrolled doesn't make the agent unready: its tenant may
/// have brought that about, and a DaemonSet's rollout would wait for it.
pub(super) async fn report_pods(mut pods: watch::Receiver<Arc<[PodStatus]>>, condition: Condition) {
    // Before the enroller's first look nothing is known.
    if pods.changed().await.is_ok() {
        condition.ready();
        while pods.changed().await.is_ok() {}
    }
}

/// How many pods are in each state.
fn pods_by_state(pods: &[PodStatus]) -> Vec<(&'static str, i64)> {
    let mut counts = [("absent", 0), ("waiting", 0), ("enrolled", 0), ("failed", 0)];
    for pod in pods {
        let index = match pod.state {
            PodState::Absent => 0,
            PodState::Waiting(_) => 1,
            PodState::Enrolled(_) => 2,
            PodState::Failed(_) => 3,
        };
        counts[index].1 += 1;
    }
    counts.to_vec()
}

/// Ready while the agent has a token of its own.
pub(super) async fn report_token(mut token: TokenFile, condition: Condition) {
    /// A token expires without its file changing.
    const LOOK: Duration = Duration::from_secs(10);
    loop {
        match token.current() {
            Ok(_) => condition.ready(),
            Err(_) => condition.not_ready("the agent has no token of its own; its log says why"),
        }
        let _ = tokio::time::timeout_at(clock::moment_in(LOOK), token.changed()).await;
    }
}

/// Counts among the limits what the kernel programs refuse because a pod has its places in the flow table full. Ends with
/// the kernel side.
pub(super) async fn report_full_pods(kernel: Weak<Kernel>, metrics: Arc<Metrics>) {
    const LOOK: Duration = Duration::from_secs(15);
    // An earlier agent's are in the kernel's count as well.
    let mut before = None;
    while let Some(kernel) = kernel.upgrade() {
        if let Ok(counters) = kernel.counters() {
            let now = counters.of(Counter::PodFull);
            let since = before.replace(now).map_or(0, |before| now.saturating_sub(before));
            metrics.limit_hit_times(Limit::PendingConnections, since);
        }
        drop(kernel);
        tokio::time::sleep_until(clock::moment_in(LOOK)).await;
    }
}

/// Enters what the kernel side counts.
pub(super) fn register_kernel(registry: &mut Registry, kernel: Arc<Kernel>, enrolment: &Enrolment) {
    let records = Arc::clone(&kernel);
    register_counts(
        registry,
        "kernel_connects",
        "Connects that the kernel programs judged, by verdict",
        "verdict",
        move || {
            kernel
                .counters()
                .map(|counters| counters.iter().collect())
                .unwrap_or_default()
        },
    );
    register_gauge(
        registry,
        "flow_records",
        "Connections that the kernel has redirected and no listener has taken yet",
        move || records.flow_count().ok().and_then(|count| i64::try_from(count).ok()),
    );
    let refusals = Arc::clone(&enrolment.refusals);
    register_counts(
        registry,
        "inbound_refusals",
        "Connections to the listeners that were closed because the kernel didn't vouch for them, or for want of descriptors",
        "reason",
        move || refusals.iter().collect(),
    );
    let pods = enrolment.pods.clone();
    register_gauges(
        registry,
        "pods",
        "Pods of this node with a session, by how far their enrolment has come",
        "state",
        move || pods_by_state(&pods.borrow()),
    );
    let attempts = Arc::clone(&enrolment.attempts);
    register_counts(
        registry,
        "enrolments",
        "Enrolments of pods that were tried, by outcome",
        "outcome",
        move || attempts.iter().collect(),
    );
    let severed = Arc::clone(&enrolment.severed);
    register_counts(
        registry,
        "connections_severed",
        "Connections to the API server that were ended because they were older than their pod's tag",
        "reason",
        move || vec![("before_tag", severed.total())],
    );
}

/// Enters what is asked for at each scrape.
pub(super) fn register(
    registry: &mut Registry,
    sessions: &SessionLookup,
    dials: &Arc<DialCounts>,
    token: &TokenFile,
    certificate: &ServingCert,
) {
    let sessions = sessions.clone();
    register_gauges(
        registry,
        "sessions",
        "Sessions declared, by how they stand",
        "state",
        move || {
            let counts = sessions.snapshot().counts();
            counts
                .map(|(state, count)| (state, i64::try_from(count).unwrap_or(i64::MAX)))
                .to_vec()
        },
    );
    register_pool(registry, dials);
    let dials = Arc::clone(dials);
    register_counts(
        registry,
        "upstream_connections",
        "Connections dialled to API servers, by protocol or failure",
        "outcome",
        move || dials.iter().collect(),
    );
    let token = token.clone();
    register_gauge(
        registry,
        "token_expiry_timestamp_seconds",
        "When the agent's own token expires",
        move || token.expiry().map(jiff::Timestamp::as_second),
    );
    let certificate = certificate.clone();
    register_gauge(
        registry,
        "certificate_expiry_timestamp_seconds",
        "When the certificate that workloads see expires",
        move || Some(certificate.expiry().as_second()),
    );
}

/// Enters what the pools of connections upstream count, all sessions' together.
fn register_pool(registry: &mut Registry, dials: &DialCounts) {
    let registry = registry.sub_registry_with_prefix(PREFIX);
    registry.register(
        "upstream_connections_open",
        "Connections to API servers that are open or being opened",
        dials.open.clone(),
    );
    registry.register(
        "upstream_requests_waiting",
        "Requests that wait for a place on a connection to their API server",
        dials.waiting.clone(),
    );
    registry.register(
        "upstream_wait_seconds",
        "How long those requests waited for a place that didn't find one at once",
        dials.waits.clone(),
    );
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;
    use crate::{admin::Readiness, pod::CgroupId};

    fn pod(state: PodState) -> PodStatus {
        PodStatus {
            name: "a/b".into(),
            cgroup: "pod".into(),
            session: "a/s".parse().unwrap(),
            state,
        }
    }

    #[test]
    fn pods_are_counted_by_state() {
        let pods = [
            pod(PodState::Failed("no port".into())),
            pod(PodState::Enrolled(CgroupId(1))),
            pod(PodState::Enrolled(CgroupId(2))),
            pod(PodState::Waiting(CgroupId(3))),
        ];
        let expected = [("absent", 0), ("waiting", 1), ("enrolled", 2), ("failed", 1)];
        assert_eq!(pods_by_state(&pods), expected);
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_look_makes_ready_whatever_it_shows() {
        let readiness = Readiness::default();
        let (look, pods) = watch::channel(Arc::from([]));
        tokio::spawn(report_pods(pods, readiness.condition("pods")));
        assert!(timeout(Duration::from_secs(5), readiness.ready()).await.is_err());
        look.send_replace(Arc::from([pod(PodState::Failed("no port".into()))]));
        timeout(Duration::from_secs(5), readiness.ready()).await.unwrap();
    }
}
