//! What the agent tells of itself as it runs: readiness, and figures that are looked up when they are asked for.

use std::{sync::Arc, time::Duration};

use prometheus_client::registry::Registry;
use tokio::sync::watch;

use crate::{
    admin::Condition,
    credentials::TokenFile,
    enrol::{Enrolment, PodStatus},
    kernel::Kernel,
    metrics::{register_counts, register_gauge},
    sessions::store::SessionLookup,
    trust::serving::ServingCert,
    upstream::pool::DialCounts,
};

/// Ready when every pod that has a process is enrolled.
pub(super) async fn report_pods(mut pods: watch::Receiver<Arc<[PodStatus]>>, condition: Condition) {
    // Before the enroller's first look nothing is known.
    while pods.changed().await.is_ok() {
        let unsettled = pods
            .borrow_and_update()
            .iter()
            .filter(|pod| !pod.state.is_settled())
            .count();
        if unsettled == 0 {
            condition.ready();
        } else {
            condition.not_ready(format!("{unsettled} pods can't be enrolled; the agent's log says why"));
        }
    }
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
        let _ = tokio::time::timeout(LOOK, token.changed()).await;
    }
}

/// Enters what the kernel side counts.
pub(super) fn register_kernel(registry: &mut Registry, kernel: Arc<Kernel>, enrolment: &Enrolment) {
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
    let refusals = Arc::clone(&enrolment.refusals);
    register_counts(
        registry,
        "inbound_refusals",
        "Connections to the listeners that were closed because the kernel didn't vouch for them, by reason",
        "reason",
        move || refusals.iter().collect(),
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
    for (index, (name, help)) in [
        ("sessions_in_force", "Sessions in force"),
        ("sessions_expired", "Sessions declared whose time is up"),
        ("sessions_refused", "Sessions declared that can't be used as they are"),
        ("sessions_idle", "Sessions declared that went unused for too long"),
    ]
    .into_iter()
    .enumerate()
    {
        let sessions = sessions.clone();
        register_gauge(registry, name, help, move || {
            i64::try_from(sessions.snapshot().counts()[index].1).ok()
        });
    }
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
