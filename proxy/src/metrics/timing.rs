//! How long things take, and which request to look at where one took long.

use std::{fmt, time::Duration};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, exemplar::HistogramWithExemplars, family::Family, histogram::Histogram},
    registry::Registry,
};

/// From here on a request is slow enough that somebody may want to know which it was. Below it none costs more than the
/// count, for an exemplar has an id of its own to keep.
const EXEMPLARY: Duration = Duration::from_millis(100);

/// A watch is in the last, without an end.
const REQUEST_SECONDS: [f64; 8] = [0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 30.0, 60.0];
/// What the agent itself adds is some hundred microseconds where nothing is waited for.
const ADDED_SECONDS: [f64; 9] = [0.0001, 0.000_25, 0.0005, 0.001, 0.005, 0.025, 0.1, 1.0, 10.0];
const HANDSHAKE_SECONDS: [f64; 7] = [0.001, 0.0025, 0.005, 0.025, 0.1, 1.0, 10.0];
const WAIT_SECONDS: [f64; 7] = [0.001, 0.005, 0.025, 0.1, 1.0, 5.0, 30.0];

/// A histogram of how long requests waited for a connection upstream.
pub(crate) fn waits() -> Histogram {
    Histogram::new(WAIT_SECONDS)
}

/// A TLS handshake that came to its end.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Handshake {
    /// `1.2` or `1.3`.
    pub version: &'static str,
    /// `resumed`, or `full`.
    pub kind: &'static str,
}

impl Handshake {
    /// All, as the metric shows them from the start.
    const ALL: [Self; 4] = [
        Self::new("1.2", "full"),
        Self::new("1.2", "resumed"),
        Self::new("1.3", "full"),
        Self::new("1.3", "resumed"),
    ];

    const fn new(version: &'static str, kind: &'static str) -> Self {
        Self { version, kind }
    }

    /// What was agreed on; none before the end.
    #[must_use]
    pub fn of(terms: &rustls::CommonState) -> Option<Self> {
        let version = match terms.protocol_version()? {
            rustls::ProtocolVersion::TLSv1_2 => "1.2",
            rustls::ProtocolVersion::TLSv1_3 => "1.3",
            _ => return None,
        };
        Some(match terms.handshake_kind()? {
            rustls::HandshakeKind::Resumed => Self::new(version, "resumed"),
            _ => Self::new(version, "full"),
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestId {
    audit_id: String,
}

/// The handles to time with.
#[derive(Debug, Clone)]
pub(super) struct Timings {
    requests: HistogramWithExemplars<RequestId>,
    added: Histogram,
    answers: Histogram,
    handshakes: Family<Handshake, Counter>,
    handshake_durations: Histogram,
}

impl Timings {
    pub(super) fn new() -> Self {
        Self {
            requests: HistogramWithExemplars::new(REQUEST_SECONDS.into_iter()),
            added: Histogram::new(ADDED_SECONDS),
            answers: Histogram::new(REQUEST_SECONDS),
            handshakes: Family::default(),
            handshake_durations: Histogram::new(HANDSHAKE_SECONDS),
        }
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "request_duration_seconds",
            "From a request's coming to the end of its answer, watches and upgrades included",
            self.requests.clone(),
        );
        registry.register(
            "latency_added_seconds",
            "From a request's coming to its being handed on upstream: what the agent adds before the API server has it",
            self.added.clone(),
        );
        registry.register(
            "upstream_answer_seconds",
            "From a request's being handed on upstream to the head of its answer, the wait for a connection included",
            self.answers.clone(),
        );
        registry.register(
            "tls_handshakes",
            "TLS handshakes with pods that came to their end, by version and kind",
            self.handshakes.clone(),
        );
        registry.register(
            "tls_handshake_duration_seconds",
            "From a connection's coming to the end of its handshake, the wait for the pod's other handshakes included",
            self.handshake_durations.clone(),
        );
        for handshake in Handshake::ALL {
            drop(self.handshakes.get_or_create(&handshake));
        }
    }

    /// A request has ended. Its id stands beside the count where it was slow.
    pub(super) fn request(&self, duration: Duration, audit_id: Option<&dyn fmt::Display>) {
        let exemplar = audit_id.filter(|_| duration >= EXEMPLARY).map(|audit_id| RequestId {
            audit_id: audit_id.to_string(),
        });
        self.requests.observe(duration.as_secs_f64(), exemplar, None);
    }

    pub(super) fn answered(&self, added: Duration, upstream: Duration) {
        self.added.observe(added.as_secs_f64());
        self.answers.observe(upstream.as_secs_f64());
    }

    pub(super) fn handshake(&self, handshake: &Handshake, duration: Duration) {
        self.handshakes.get_or_create(handshake).inc();
        self.handshake_durations.observe(duration.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scrape(timings: &Timings) -> String {
        let mut registry = Registry::default();
        timings.register(&mut registry);
        super::super::text(&registry).unwrap()
    }

    #[test]
    fn a_slow_request_is_named_and_a_quick_one_is_not() {
        let timings = Timings::new();
        timings.request(Duration::from_millis(20), Some(&"quick"));
        timings.request(Duration::from_millis(300), Some(&"slow"));
        timings.request(Duration::from_secs(2), None);
        let text = scrape(&timings);
        let slow = r#"request_duration_seconds_bucket{le="0.5"} 2 # {audit_id="slow"} 0.3"#;
        assert!(text.lines().any(|line| line == slow), "{text}");
        assert_eq!(text.matches("audit_id").count(), 1, "{text}");
    }

    #[test]
    fn what_is_added_and_what_the_server_takes_are_apart() {
        let timings = Timings::new();
        timings.answered(Duration::from_micros(200), Duration::from_millis(50));
        let text = scrape(&timings);
        for line in [
            r#"latency_added_seconds_bucket{le="0.0001"} 0"#,
            r#"latency_added_seconds_bucket{le="0.00025"} 1"#,
            r#"upstream_answer_seconds_bucket{le="0.025"} 0"#,
            r#"upstream_answer_seconds_bucket{le="0.1"} 1"#,
            r#"tls_handshakes_total{version="1.3",kind="resumed"} 0"#,
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "{line} is missing from\n{text}"
            );
        }
    }
}
