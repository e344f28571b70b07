//! What is counted, and the registry that `/metrics` is written from. Every label has a bounded set of values: nothing
//! that a client says becomes one. What each pod was refused last is kept beside ([`Lately`]), for those who ask why.

mod audit;
mod collect;
mod labels;
mod lately;
mod recording;
mod timing;

use std::{fmt, sync::Arc, time::Duration};

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge, info::Info},
    registry::Registry,
};

pub(crate) use self::audit::{SinkMetrics, WebhookMetrics};
pub(crate) use self::timing::waits;
use self::{
    audit::AuditMetrics,
    collect::Process,
    labels::{
        CodeClass, HandshakeLabels, LimitLabels, ProofLabels, RefusedLabel, ReloadLabels, RequestLabels, WatchLabels,
        WrittenLabels,
    },
    timing::Timings,
};
pub use self::{
    audit::AuditSink,
    collect::{register_counts, register_gauge, register_gauges},
    labels::{Followed, Limit, ProofOf, ProofOutcome, Watched, Written},
    lately::{Lately, Refused, What},
    recording::{RecordingCounts, RecordingFailure, UploadCounts, UploadOutcome},
    timing::Handshake,
};
use crate::{clock::Clock, status::Refusal};

/// Begins every name of ours.
pub const PREFIX: &str = "understudy";

/// Why a handshake can fail, in labels.
pub const HANDSHAKE_FAILURES: [&str; 7] = ["distrusted", "tls", "plain_http", "timeout", "crowded", "silent", "io"];

/// The handles to count with. Cheap to clone; all clones count the same.
#[derive(Debug, Clone)]
pub struct Metrics {
    requests: Family<RequestLabels, Counter>,
    timings: Timings,
    streams: Gauge,
    connections: Counter,
    connections_open: Gauge,
    handshake_failures: Family<HandshakeLabels, Counter>,
    reload_failures: Family<ReloadLabels, Counter>,
    proofs: Family<ProofLabels, Counter>,
    audit: AuditMetrics,
    watch_errors: Family<WatchLabels, Counter>,
    watch_syncs: Family<WatchLabels, Gauge>,
    status_writes: Family<WrittenLabels, Counter>,
    events: Family<WrittenLabels, Counter>,
    limit_hits: Family<LimitLabels, Counter>,
    recording: RecordingCounts,
    lately: Arc<Lately>,
}

/// How one watch fares.
#[derive(Debug, Clone)]
pub struct WatchHealth {
    errors: Counter,
    sync: Gauge,
}

impl WatchHealth {
    /// Counts an error.
    pub fn failed(&self) {
        self.errors.inc();
    }

    /// Something was heard just now.
    pub fn synced(&self) {
        self.sync.set(Clock::system().now().as_second());
    }
}

/// How a request ended.
#[derive(Clone, Copy)]
pub struct Completion<'a> {
    /// The HTTP method.
    pub method: &'a str,
    /// The code it was answered with; zero if the client went away before.
    pub code: u16,
    /// Why we answered it ourselves, if so.
    pub refused: Option<Refusal>,
    /// From its coming to its end.
    pub duration: Duration,
    /// The id that it is written down under, where it is.
    pub audit_id: Option<&'a dyn fmt::Display>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Handles that have counted nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            requests: Family::default(),
            timings: Timings::new(),
            streams: Gauge::default(),
            connections: Counter::default(),
            connections_open: Gauge::default(),
            handshake_failures: Family::default(),
            reload_failures: Family::default(),
            proofs: Family::default(),
            audit: AuditMetrics::default(),
            watch_errors: Family::default(),
            watch_syncs: Family::default(),
            status_writes: Family::default(),
            events: Family::default(),
            limit_hits: Family::default(),
            recording: RecordingCounts::default(),
            lately: Arc::default(),
        }
    }

    /// A registry in which all these, the build and the process's own figures are entered.
    #[must_use]
    pub fn registry(&self) -> Registry {
        let metrics = self;
        let mut whole = Registry::default();
        // Named by convention, alike in every program.
        whole.register_collector(Box::new(Process::new()));
        let registry = whole.sub_registry_with_prefix(PREFIX);
        let build = Info::new([
            ("version", env!("CARGO_PKG_VERSION")),
            ("revision", option_env!("UNDERSTUDY_REVISION").unwrap_or("unknown")),
            ("rustc", env!("UNDERSTUDY_RUSTC")),
        ]);
        registry.register("build", "The agent's build", build);
        registry.register(
            "requests",
            "Requests answered, by HTTP method, code class and the agent's own refusal",
            metrics.requests.clone(),
        );
        metrics.timings.register(registry);
        registry.register(
            "streams",
            "Requests in flight, watches and upgrades among them",
            metrics.streams.clone(),
        );
        registry.register(
            "inbound_connections",
            "Connections accepted from pods",
            metrics.connections.clone(),
        );
        registry.register(
            "inbound_connections_open",
            "Connections from pods now",
            metrics.connections_open.clone(),
        );
        registry.register(
            "tls_handshake_failures",
            "TLS handshakes with pods that failed, by cause",
            metrics.handshake_failures.clone(),
        );
        registry.register(
            "reload_failures",
            "Re-readings of a followed file that failed, the last good content staying in use",
            metrics.reload_failures.clone(),
        );
        registry.register(
            "caller_proofs",
            "What callers showed to prove who they are, and what came of it",
            metrics.proofs.clone(),
        );
        metrics.audit.register(registry);
        registry.register(
            "watch_errors",
            "Lists and watches of the cluster's objects that failed; what was seen last stays in force",
            metrics.watch_errors.clone(),
        );
        registry.register(
            "watch_heard_timestamp_seconds",
            "When a watch last said something",
            metrics.watch_syncs.clone(),
        );
        registry.register(
            "status_writes",
            "Writes to the status of Sessions",
            metrics.status_writes.clone(),
        );
        registry.register("events", "Events for operators, in the cluster", metrics.events.clone());
        registry.register(
            "limit_hits",
            "Connections and requests that were refused or ended because of a limit",
            metrics.limit_hits.clone(),
        );
        metrics.recording.register(registry);
        metrics.begin_at_zero();
        whole
    }

    /// What exists from the start, so that a rate has something to begin from.
    fn begin_at_zero(&self) {
        for cause in HANDSHAKE_FAILURES {
            drop(self.handshake_failures.get_or_create(&HandshakeLabels { cause }));
        }
        for outcome in [Written::Done, Written::Failed, Written::Dropped] {
            let labels = WrittenLabels { outcome };
            if outcome != Written::Dropped {
                drop(self.status_writes.get_or_create(&labels));
            }
            drop(self.events.get_or_create(&labels));
        }
        for limit in Limit::ALL {
            drop(self.limit_hits.get_or_create(&LimitLabels { limit }));
        }
        for file in [
            Followed::Token,
            Followed::Certificate,
            Followed::UpstreamCa,
            Followed::Sessions,
            Followed::ClientCa,
            Followed::UploadCa,
            Followed::UploadCredentials,
        ] {
            drop(self.reload_failures.get_or_create(&ReloadLabels { file }));
        }
    }

    /// Counts a request that has ended.
    pub fn completed(&self, completion: &Completion<'_>) {
        let labels = RequestLabels {
            method: completion.method.into(),
            code: CodeClass(completion.code / 100),
            refused: RefusedLabel(completion.refused),
        };
        self.requests.get_or_create(&labels).inc();
        self.timings.request(completion.duration, completion.audit_id);
    }

    /// Times a request whose answer has begun: how long it took to be handed on upstream, and its answer from then on.
    pub fn answered(&self, added: Duration, upstream: Duration) {
        self.timings.answered(added, upstream);
    }

    /// Counts a handshake that came to its end, after so long.
    pub fn handshake(&self, handshake: &Handshake, duration: Duration) {
        self.timings.handshake(handshake, duration);
    }

    /// What pods were refused last.
    #[must_use]
    pub fn lately(&self) -> &Lately {
        &self.lately
    }

    /// Counts a stream until the guard is dropped.
    #[must_use]
    pub fn stream(&self) -> OpenStream {
        OpenStream::new(&self.streams)
    }

    /// Counts a connection from a pod, as open until the guard is dropped.
    #[must_use]
    pub fn connection(&self) -> OpenStream {
        self.connections.inc();
        OpenStream::new(&self.connections_open)
    }

    /// Counts a failed handshake.
    pub fn handshake_failed(&self, cause: &'static str) {
        self.handshake_failures.get_or_create(&HandshakeLabels { cause }).inc();
    }

    /// Counts a connection or a request that came up against a limit.
    pub fn limit_hit(&self, limit: Limit) {
        self.limit_hits.get_or_create(&LimitLabels { limit }).inc();
    }

    /// Counts many at once, which another has counted meanwhile.
    pub fn limit_hit_times(&self, limit: Limit, times: u64) {
        self.limit_hits.get_or_create(&LimitLabels { limit }).inc_by(times);
    }

    /// How often a limit was come up against.
    #[must_use]
    pub fn limit_hits(&self, limit: Limit) -> u64 {
        self.limit_hits.get_or_create(&LimitLabels { limit }).get()
    }

    /// What is counted of recordings.
    #[must_use]
    pub fn recording(&self) -> &RecordingCounts {
        &self.recording
    }

    /// The counter that whoever follows such a file counts failures in.
    #[must_use]
    pub fn reload_failures(&self, file: Followed) -> Counter {
        self.reload_failures.get_or_create(&ReloadLabels { file }).clone()
    }

    /// Counts what a caller showed.
    pub fn proof(&self, proof: ProofOf, outcome: ProofOutcome) {
        self.proofs.get_or_create(&ProofLabels { proof, outcome }).inc();
    }

    /// How a watch of such objects fares.
    #[must_use]
    pub fn watch(&self, watch: Watched) -> WatchHealth {
        let labels = WatchLabels { watch };
        WatchHealth {
            errors: self.watch_errors.get_or_create(&labels).clone(),
            sync: self.watch_syncs.get_or_create(&labels).clone(),
        }
    }

    /// Counts a write to a Session's status.
    pub fn status_written(&self, outcome: Written) {
        self.status_writes.get_or_create(&WrittenLabels { outcome }).inc();
    }

    /// Counts an Event.
    pub fn event(&self, outcome: Written) {
        self.events.get_or_create(&WrittenLabels { outcome }).inc();
    }

    /// Those of one sink of the audit log.
    pub(crate) fn audit(&self, sink: AuditSink) -> SinkMetrics {
        self.audit.of(sink)
    }

    /// Counts a request that leaves no event.
    pub(crate) fn audit_omitted(&self) {
        self.audit.omitted.inc();
    }

    /// How many requests left none.
    pub(crate) fn audit_events_omitted(&self) -> Counter {
        self.audit.omitted.clone()
    }

    /// Those of the way to the audit webhook.
    pub(crate) fn webhook(&self) -> &WebhookMetrics {
        &self.audit.webhook
    }
}

/// Something counted as open for as long as it lives.
#[derive(Debug)]
pub struct OpenStream(Gauge);

impl OpenStream {
    /// Counts one, until this is dropped.
    pub(crate) fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The registry as `OpenMetrics` text, for the content type [`OPENMETRICS`].
///
/// # Errors
/// If a collector fails to write itself.
pub fn text(registry: &Registry) -> Result<String, fmt::Error> {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry)?;
    Ok(text)
}

/// The content type of [`text`].
pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[cfg(test)]
mod tests {
    use super::{
        collect::{open_fds, resident_bytes},
        *,
    };

    fn scrape(registry: &Registry) -> String {
        text(registry).unwrap()
    }

    #[test]
    fn what_is_counted_is_shown() {
        let metrics = Metrics::new();
        let mut registry = metrics.registry();
        register_gauge(&mut registry, "sessions", "Sessions known", || Some(3));
        register_gauge(&mut registry, "unknown", "Left out", || None);
        register_counts(&mut registry, "kernel_connects", "Connects", "outcome", || {
            vec![("redirected", 5), ("untouched", 7)]
        });
        let completed = |method, code, refused| {
            metrics.completed(&Completion {
                method,
                code,
                refused,
                duration: Duration::from_millis(20),
                audit_id: None,
            });
        };
        completed("GET", 200, None);
        completed("BREW", 403, Some(Refusal::NoSession));
        completed("GET", 0, None);
        metrics.handshake_failed("distrusted");
        metrics.reload_failures(Followed::Token).inc();
        metrics.limit_hit(Limit::ConnectionsPerPod);
        metrics.proof(ProofOf::Token, ProofOutcome::Invalid);
        let stream = metrics.stream();
        let connection = metrics.connection();
        drop(connection);
        let text = scrape(&registry);
        for line in [
            r#"understudy_requests_total{method="GET",code="2xx",refused=""} 1"#,
            r#"understudy_requests_total{method="other",code="4xx",refused="no-session"} 1"#,
            r#"understudy_tls_handshake_failures_total{cause="distrusted"} 1"#,
            r#"understudy_requests_total{method="GET",code="none",refused=""} 1"#,
            r#"understudy_request_duration_seconds_bucket{le="0.025"} 3"#,
            r#"understudy_reload_failures_total{file="token"} 1"#,
            r#"understudy_caller_proofs_total{proof="token",outcome="invalid"} 1"#,
            r#"understudy_reload_failures_total{file="upstream-ca"} 0"#,
            r#"understudy_limit_hits_total{limit="connections-per-pod"} 1"#,
            r#"understudy_limit_hits_total{limit="memory"} 0"#,
            r#"understudy_recording_failures_total{cause="write"} 0"#,
            "understudy_recordings_open 0",
            "understudy_streams 1",
            "# TYPE process_open_fds gauge",
            "# TYPE process_max_fds gauge",
            "# TYPE process_cpu_seconds counter",
            "# TYPE process_start_time_seconds gauge",
            r#"understudy_tls_handshake_failures_total{cause="io"} 0"#,
            r#"understudy_events_total{outcome="dropped"} 0"#,
            "understudy_inbound_connections_total 1",
            "understudy_inbound_connections_open 0",
            "understudy_sessions 3",
            r#"understudy_kernel_connects_total{outcome="redirected"} 5"#,
            r#"understudy_kernel_connects_total{outcome="untouched"} 7"#,
            "# EOF",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "{line} is missing from\n{text}"
            );
        }
        assert!(!text.contains("understudy_unknown"), "{text}");
        let build = text.lines().find(|line| line.starts_with("understudy_build_info{"));
        for label in [
            concat!(r#"version=""#, env!("CARGO_PKG_VERSION"), '"'),
            r#"revision=""#,
            r#"rustc="1."#,
        ] {
            assert!(
                build.is_some_and(|line| line.contains(label)),
                "{label} is missing from\n{text}"
            );
        }
        drop(stream);
    }

    #[test]
    fn the_process_has_memory_and_files() {
        assert!(resident_bytes().unwrap() > 1 << 20);
        assert!(open_fds().unwrap() >= 3);
    }
}
