//! What is counted of the audit log, for each sink by itself.

use std::fmt;

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// Where audit events go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AuditSink {
    /// A file, or standard output.
    Log,
    /// The webhook's queue on disk.
    Webhook,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SinkLabels {
    sink: AuditSink,
}

impl AuditSink {
    /// In labels and the agent's log.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Webhook => "webhook",
        }
    }
}

impl EncodeLabelValue for AuditSink {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        fmt::Write::write_str(encoder, self.name())
    }
}

/// The handles to count with.
#[derive(Debug, Clone, Default)]
pub(super) struct AuditMetrics {
    events: Family<SinkLabels, Counter>,
    write_failures: Family<SinkLabels, Counter>,
    dropped: Family<SinkLabels, Counter>,
    backlog: Family<SinkLabels, Gauge>,
    pub(super) omitted: Counter,
    pub(super) webhook: WebhookMetrics,
}

/// Those of one sink.
#[derive(Debug, Clone)]
pub(crate) struct SinkMetrics {
    /// Events written.
    pub(crate) events: Counter,
    /// Attempts that failed.
    pub(crate) write_failures: Counter,
    /// Events lost.
    pub(crate) dropped: Counter,
    /// Events not yet written.
    pub(crate) backlog: Gauge,
}

/// Those of the way from the queue to the webhook.
#[derive(Debug, Clone, Default)]
pub(crate) struct WebhookMetrics {
    /// Events that the webhook took.
    pub(crate) sent: Counter,
    /// Attempts that failed.
    pub(crate) failures: Counter,
    /// How much waits in the queue, in bytes.
    pub(crate) queue: Gauge,
}

impl AuditMetrics {
    pub(super) fn of(&self, sink: AuditSink) -> SinkMetrics {
        let labels = SinkLabels { sink };
        SinkMetrics {
            events: self.events.get_or_create_owned(&labels),
            write_failures: self.write_failures.get_or_create_owned(&labels),
            dropped: self.dropped.get_or_create_owned(&labels),
            backlog: self.backlog.get_or_create_owned(&labels),
        }
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("audit_events", "Audit events written, by sink", self.events.clone());
        registry.register(
            "audit_write_failures",
            "Attempts to write audit events that failed; they are repeated",
            self.write_failures.clone(),
        );
        registry.register(
            "audit_events_dropped",
            "Audit events that were lost while a sink couldn't be written",
            self.dropped.clone(),
        );
        registry.register(
            "audit_backlog",
            "Audit events not yet written; new requests wait while there are too many",
            self.backlog.clone(),
        );
        registry.register(
            "audit_events_omitted",
            "Requests that the audit policy has leave no event",
            self.omitted.clone(),
        );
        registry.register(
            "audit_webhook_events",
            "Audit events that the webhook took",
            self.webhook.sent.clone(),
        );
        registry.register(
            "audit_webhook_failures",
            "Attempts to send audit events to the webhook that failed; they are repeated",
            self.webhook.failures.clone(),
        );
        registry.register(
            "audit_webhook_queue_bytes",
            "What waits in the webhook's queue",
            self.webhook.queue.clone(),
        );
    }
}
