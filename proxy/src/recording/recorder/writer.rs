//! The task that owns a recording's file, and what it and the stream's taps know of each other.

use std::{
    fs::File,
    io,
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, mpsc},
    task,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    super::{
        cast::{Cast, End},
        policy::Terms,
        transcript::Piece,
    },
    Failure,
};
use crate::metrics::{OpenStream, RecordingCounts, RecordingFailure};

/// As many are written at once,
const BATCH: usize = 16;
/// and what comes within as long. Until then, what an agent that is killed took down isn't in the file.
const GATHERING: Duration = Duration::from_millis(5);
/// What passed at a time.
#[derive(Debug)]
pub(in crate::recording) struct Passed {
    pub(in crate::recording) at: Duration,
    pub(in crate::recording) pieces: Vec<Piece>,
}

/// What the stream's taps and its recording's task know of each other.
#[derive(Debug)]
pub(in crate::recording) struct Shared {
    file: PathBuf,
    session: String,
    terms: Terms,
    started: Instant,
    counts: RecordingCounts,
    has_failed: AtomicBool,
    failed: CancellationToken,
    end: OnceLock<End>,
}

impl Shared {
    /// Of a stream that begins now.
    pub(super) fn new(file: PathBuf, session: String, terms: Terms, counts: RecordingCounts) -> Arc<Self> {
        Arc::new(Self {
            file,
            session,
            terms,
            started: Instant::now(),
            counts,
            has_failed: AtomicBool::new(false),
            failed: CancellationToken::new(),
            end: OnceLock::new(),
        })
    }

    /// The file's name.
    pub(super) fn name(&self) -> Arc<str> {
        let name = self.file.file_name().unwrap_or_default();
        name.to_string_lossy().into()
    }

    /// Resolves when it has broken off.
    pub(super) async fn failed(&self) {
        self.failed.cancelled().await;
    }

    /// Nothing more passes, and why.
    pub(super) fn end(&self, why: End) {
        let _ = self.end.set(why);
    }

    pub(in crate::recording) fn terms(&self) -> Terms {
        self.terms
    }

    /// Since the stream is there.
    pub(in crate::recording) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    pub(in crate::recording) fn has_failed(&self) -> bool {
        self.failed.is_cancelled()
    }

    /// It breaks off. Only the first reason counts.
    pub(in crate::recording) fn fail(&self, failure: &Failure) {
        if self.has_failed.swap(true, Ordering::SeqCst) {
            return;
        }
        self.counts.failed(failure.cause());
        let becomes = if self.terms.required {
            "ends"
        } else {
            "goes on unrecorded"
        };
        tracing::error!(
            session = %self.session, recording = %self.file.display(), %failure,
            "a recording breaks off; its stream {becomes}"
        );
        self.failed.cancel();
    }
}

/// The one owner of a recording's file.
pub(super) struct Writer {
    // Away while a blocking thread writes.
    cast: Option<Cast<File>>,
    shared: Arc<Shared>,
    passed: mpsc::Receiver<Passed>,
    /// As far as it is counted.
    written: u64,
    ended: Arc<Notify>,
    _open: OpenStream,
}

impl Writer {
    /// Of a recording that is begun.
    pub(super) fn new(
        cast: Cast<File>,
        shared: &Arc<Shared>,
        passed: mpsc::Receiver<Passed>,
        ended: Arc<Notify>,
    ) -> Self {
        Self {
            written: 0,
            cast: Some(cast),
            _open: shared.counts.begun(),
            shared: Arc::clone(shared),
            passed,
            ended,
        }
    }

    /// Writes what passes, until nothing more comes or it breaks off.
    pub(super) async fn run(mut self) {
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                biased;
                () = gather(&mut self.passed, &mut batch) => {}
                // What passed before is written; its stream may go on for long.
                () = self.shared.failed.cancelled() => {}
            }
            if batch.is_empty() {
                break;
            }
            let batch = std::mem::take(&mut batch);
            let work = move |cast: &mut Cast<File>| {
                let pieces = batch
                    .iter()
                    .flat_map(|passed: &Passed| passed.pieces.iter().map(move |piece| (passed.at, piece)));
                cast.write(pieces)
            };
            if let Err(failure) = self.write(work).await {
                self.shared.fail(&failure);
                break;
            }
        }
        // Whoever waits for room in the queue needn't any longer.
        self.passed.close();
        let why = if self.shared.has_failed() {
            End::BrokenOff
        } else {
            self.shared.end.get().copied().unwrap_or(End::CutShort)
        };
        let at = self.shared.elapsed();
        match self.write(move |cast| cast.end(at, why)).await {
            Ok((sum, why)) => tracing::info!(
                session = %self.shared.session, recording = %self.shared.file.display(), %sum, end = why.name(),
                "a recording is at its end"
            ),
            Err(failure) => self.shared.fail(&failure),
        }
        // Closed, and so unlocked, before it is told.
        drop(self.cast.take());
        self.ended.notify_one();
    }

    async fn write<T, F>(&mut self, work: F) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: FnOnce(&mut Cast<File>) -> io::Result<T> + Send + 'static,
    {
        let mut cast = self.cast.take().ok_or(Failure::Stopped)?;
        let worked = task::spawn_blocking(move || {
            let outcome = work(&mut cast);
            if outcome.is_err() {
                // A line that isn't whole would keep players from all of it.
                let _ = cast.sink().set_len(cast.written());
            }
            (cast, outcome)
        });
        let (cast, outcome) = worked.await.map_err(|_| Failure::Stopped)?;
        self.shared.counts.wrote(cast.written() - self.written);
        self.written = cast.written();
        self.cast = Some(cast);
        outcome.map_err(Failure::Write)
    }
}

/// Waits for something, and then for what else comes soon: a write, its sum and the thread that does it cost as much for a
/// few bytes as for many. Nothing at all: nothing more comes. Dropped early, what came is in the batch.
async fn gather(passed: &mut mpsc::Receiver<Passed>, batch: &mut Vec<Passed>) {
    if passed.recv_many(batch, BATCH).await == 0 {
        return;
    }
    let more = async { while batch.len() < BATCH && passed.recv_many(batch, BATCH - batch.len()).await > 0 {} };
    // Whichever comes first.
    let _ = timeout(GATHERING, more).await;
}

impl Failure {
    fn cause(&self) -> RecordingFailure {
        match self {
            Self::Write(_) => RecordingFailure::Write,
            Self::Slow => RecordingFailure::Slow,
            Self::Protocol => RecordingFailure::Protocol,
            Self::Stream(_) => RecordingFailure::Stream,
            Self::Stopped => RecordingFailure::Stopping,
        }
    }
}
