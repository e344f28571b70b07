//! What is counted of recordings.

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::OpenStream;

/// Why a stream isn't recorded, or not to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RecordingFailure {
    /// The agent was given no directory for recordings.
    NoDirectory,
    /// Its file can't be made.
    Begin,
    /// Its file can't be written any further.
    Write,
    /// Its file takes so long to write that the stream would have to wait.
    Slow,
    /// The stream's protocol isn't one that can be read.
    Protocol,
    /// What passes isn't what the protocol allows.
    Stream,
    /// The agent is going down.
    Stopping,
}

impl RecordingFailure {
    const ALL: [Self; 7] = [
        Self::NoDirectory,
        Self::Begin,
        Self::Write,
        Self::Slow,
        Self::Protocol,
        Self::Stream,
        Self::Stopping,
    ];

    /// In labels.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NoDirectory => "no-directory",
            Self::Begin => "begin",
            Self::Write => "write",
            Self::Slow => "slow",
            Self::Protocol => "protocol",
            Self::Stream => "stream",
            Self::Stopping => "stopping",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailureLabels {
    cause: RecordingFailure,
}

impl EncodeLabelValue for RecordingFailure {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        use std::fmt::Write as _;
        encoder.write_str(self.name())
    }
}

/// What came of an attempt to bring a recording to its store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UploadOutcome {
    /// The store has it.
    Stored,
    /// It will be tried again.
    Failed,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UploadLabels {
    outcome: UploadOutcome,
}

impl EncodeLabelValue for UploadOutcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        use std::fmt::Write as _;
        encoder.write_str(match self {
            Self::Stored => "stored",
            Self::Failed => "failed",
        })
    }
}

/// What is counted of the way to a store. Cheap to clone; all clones count the same.
#[derive(Debug, Clone, Default)]
pub struct UploadCounts {
    uploads: Family<UploadLabels, Counter>,
    bytes: Counter,
    waiting: Gauge,
    oldest: Gauge,
}

impl UploadCounts {
    fn register(&self, registry: &mut Registry) {
        registry.register(
            "recording_uploads",
            "Attempts to bring a recording to its store; those that fail are repeated",
            self.uploads.clone(),
        );
        registry.register(
            "recording_upload_bytes",
            "Bytes of recordings that the store has taken",
            self.bytes.clone(),
        );
        registry.register(
            "recordings_waiting",
            "Recordings at their end that the store hasn't got yet",
            self.waiting.clone(),
        );
        registry.register(
            "recordings_waiting_since_timestamp_seconds",
            "When the one that waits longest was last written to; 0 where none waits",
            self.oldest.clone(),
        );
        for outcome in [UploadOutcome::Stored, UploadOutcome::Failed] {
            drop(self.uploads.get_or_create(&UploadLabels { outcome }));
        }
    }

    /// Counts one that the store has, with its bytes.
    pub fn stored(&self, bytes: u64) {
        let outcome = UploadOutcome::Stored;
        self.uploads.get_or_create(&UploadLabels { outcome }).inc();
        self.bytes.inc_by(bytes);
    }

    /// Counts an attempt that failed.
    pub fn failed(&self) {
        let outcome = UploadOutcome::Failed;
        self.uploads.get_or_create(&UploadLabels { outcome }).inc();
    }

    /// How many attempts ended so.
    #[must_use]
    pub fn attempts(&self, outcome: UploadOutcome) -> u64 {
        self.uploads.get_or_create(&UploadLabels { outcome }).get()
    }

    /// How many wait now, and since when the first of them does, in seconds since 1970.
    pub fn waiting(&self, count: usize, oldest: Option<i64>) {
        self.waiting.set(i64::try_from(count).unwrap_or(i64::MAX));
        self.oldest.set(oldest.unwrap_or(0));
    }

    /// How many waited when they were last looked for.
    #[must_use]
    pub fn backlog(&self) -> i64 {
        self.waiting.get()
    }
}

/// The counts of recordings. Cheap to clone; all clones count the same.
#[derive(Debug, Clone, Default)]
pub struct RecordingCounts {
    begun: Counter,
    open: Gauge,
    bytes: Counter,
    failures: Family<FailureLabels, Counter>,
    upload: UploadCounts,
}

impl RecordingCounts {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("recordings", "Recordings begun", self.begun.clone());
        registry.register("recordings_open", "Recordings being written now", self.open.clone());
        registry.register("recording_bytes", "Bytes written to recordings", self.bytes.clone());
        registry.register(
            "recording_failures",
            "Streams that should be recorded and weren't, or not to their end",
            self.failures.clone(),
        );
        for cause in RecordingFailure::ALL {
            drop(self.failures.get_or_create(&FailureLabels { cause }));
        }
        self.upload.register(registry);
    }

    /// What is counted of the way to a store.
    #[must_use]
    pub fn upload(&self) -> &UploadCounts {
        &self.upload
    }

    /// Counts one that is begun, as open until the guard is dropped.
    #[must_use]
    pub fn begun(&self) -> OpenStream {
        self.begun.inc();
        OpenStream::new(&self.open)
    }

    /// Counts what was written.
    pub fn wrote(&self, bytes: u64) {
        self.bytes.inc_by(bytes);
    }

    /// Counts one that failed.
    pub fn failed(&self, cause: RecordingFailure) {
        self.failures.get_or_create(&FailureLabels { cause }).inc();
    }

    /// How many failed for that cause.
    #[must_use]
    pub fn failures(&self, cause: RecordingFailure) -> u64 {
        self.failures.get_or_create(&FailureLabels { cause }).get()
    }
}
