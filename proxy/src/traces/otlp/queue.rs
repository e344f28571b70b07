//! What waits for the collector: as much as has room, the rest is lost and counted. No request waits for it.

use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder},
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{self, Instant},
};
use tokio_util::sync::CancellationToken;

use super::spans::Spans;
use crate::metrics::PREFIX;

/// As many requests may wait: a quarter of what OpenTelemetry has for spans (`OTEL_BSP_MAX_QUEUE_SIZE`), some two each.
pub(super) const ROOM: usize = 1024;
/// As many go together.
const BATCH: usize = 256;
/// How long to gather before a batch is sent.
const GATHER: Duration = Duration::from_secs(1);
/// How long the collector may take for a batch.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
const COMPLAIN_EVERY: Duration = Duration::from_secs(30);

/// Why a span was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Loss {
    /// No room.
    Queue,
    /// The collector didn't take it.
    Collector,
}

impl EncodeLabelValue for Loss {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        fmt::Write::write_str(
            encoder,
            match self {
                Self::Queue => "queue-full",
                Self::Collector => "collector",
            },
        )
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LossLabels {
    cause: Loss,
}

#[derive(Debug, Clone, Default)]
struct Counts {
    sent: Counter,
    lost: Family<LossLabels, Counter>,
}

impl Counts {
    fn lost(&self, cause: Loss, spans: usize) {
        self.lost.get_or_create(&LossLabels { cause }).inc_by(spans as u64);
    }
}

/// The way to the collector.
#[derive(Debug)]
pub(super) struct Queue {
    sender: mpsc::Sender<Spans>,
    counts: Counts,
    stop: CancellationToken,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Queue {
    /// Begins to send what comes into it.
    pub(super) fn start(exporter: impl SpanExporter + 'static) -> Self {
        let (sender, waiting) = mpsc::channel(ROOM);
        let counts = Counts::default();
        let stop = CancellationToken::new();
        let sending = Sending {
            waiting,
            exporter,
            counts: counts.clone(),
            stop: stop.clone(),
            complained: None,
        };
        for cause in [Loss::Queue, Loss::Collector] {
            counts.lost(cause, 0);
        }
        Self {
            sender,
            counts,
            stop,
            task: Mutex::new(Some(tokio::spawn(sending.run()))),
        }
    }

    /// Puts the spans of a request in, if there is room. Never waits.
    pub(super) fn push(&self, spans: Spans) {
        if let Err(full) = self.sender.try_send(spans) {
            self.counts.lost(Loss::Queue, full.into_inner().count());
        }
    }

    /// Sends what waits, for as long as that.
    pub(super) async fn drain(&self, patience: Duration) {
        self.stop.cancel();
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut task) = task else { return };
        if time::timeout(patience, &mut task).await.is_err() {
            task.abort();
            tracing::warn!("the collector takes no traces: the last ones are lost");
        }
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix(PREFIX);
        let Counts { sent, lost } = self.counts.clone();
        registry.register("trace_spans", "Spans that the collector took", sent);
        registry.register("trace_spans_dropped", "Spans that were lost, by cause", lost);
    }
}

/// The one reader of the queue.
struct Sending<E> {
    waiting: mpsc::Receiver<Spans>,
    exporter: E,
    counts: Counts,
    stop: CancellationToken,
    complained: Option<Instant>,
}

impl<E: SpanExporter> Sending<E> {
    async fn run(mut self) {
        loop {
            let mut batch = Vec::new();
            tokio::select! {
                biased;
                () = self.stop.cancelled(), if !self.waiting.is_closed() => {
                    self.waiting.close();
                    continue;
                }
                received = self.waiting.recv_many(&mut batch, BATCH) => if received == 0 {
                    return;
                },
            }
            if batch.len() < BATCH {
                tokio::select! {
                    () = self.stop.cancelled() => {}
                    () = time::sleep(GATHER) => {}
                }
                while let (true, Ok(spans)) = (batch.len() < BATCH, self.waiting.try_recv()) {
                    batch.push(spans);
                }
            }
            self.send(batch.into_iter().flatten().collect()).await;
        }
    }

    async fn send(&mut self, spans: Vec<SpanData>) {
        let count = spans.len();
        let why = match time::timeout(PATIENCE, self.exporter.export(spans)).await {
            Ok(Ok(())) => {
                self.counts.sent.inc_by(count as u64);
                if self.complained.take().is_some() {
                    tracing::info!("the collector takes traces again");
                }
                return;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer in {}s", PATIENCE.as_secs()),
        };
        self.counts.lost(Loss::Collector, count);
        if self.complained.is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY) {
            self.complained = Some(Instant::now());
            tracing::error!(error = %why, "the collector takes no traces, and they are lost: check how it fares");
        }
    }
}
