//! The files of recordings, and the task that writes each.
//!
//! A file is made before its request is sent on, so that what must be recorded isn't begun where it can't be. From then on
//! one task owns it: what passes comes to it through a short queue, and is written on a thread that may block. A recording
//! that fails is cut back to what is whole and proven.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use tokio::{
    sync::{Notify, mpsc},
    task,
    time::{Instant, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    about::About,
    age::Recipient,
    cast::{Cast, End},
    policy::Terms,
    ports::{Carrier, Ports},
    stream::{Decoder, Framing, Lost, Side},
    tap::Tapped,
    transcript::Piece,
};
use crate::{
    clock::Clock,
    metrics::{Metrics, OpenStream, RecordingCounts, RecordingFailure},
};

/// What may wait to be written: as many readings of a stream, each of what its pipe holds at most.
const QUEUE: usize = 32;
/// As many are written at once,
const BATCH: usize = 16;
/// and what comes within as long. Until then, what an agent that is killed took down isn't in the file.
const GATHERING: Duration = Duration::from_millis(5);
/// As long may it take to begin one: a request waits for it.
const PATIENCE: Duration = Duration::from_secs(5);
/// Of a session's name, as much is in a file's name, which has its limits.
const NAME_LIMIT: usize = 128;

/// Why a stream isn't recorded.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// There is nowhere to record to.
    #[error("the agent was given no directory for recordings: start it with --recordings DIR")]
    NoDirectory,
    /// The directory can't be used.
    #[error(
        "recordings can't be kept in {directory} ({source}): make it writable for the agent, or name another with --recordings"
    )]
    Directory {
        /// The directory.
        directory: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A recording can't be begun.
    #[error("the recording {file} can't be begun ({source}): see that the disk has room and is writable for the agent")]
    Begin {
        /// The file.
        file: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// It takes too long to begin it.
    #[error("the recording {0} can't be begun within 5 seconds: see what holds up the disk")]
    Slow(PathBuf),
    /// The runtime is going down.
    #[error("the agent is shutting down")]
    Stopped,
}

/// Why a recording breaks off.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// It can't be written.
    #[error("it can't be written any further ({0}): see that the disk has room and is writable for the agent")]
    Write(#[source] io::Error),
    /// It can't be written as fast as the stream would go.
    #[error("its file takes too long to write: see what holds up the disk")]
    Slow,
    /// The server chose a protocol that can't be read.
    #[error("the server chose a sub-protocol that can't be recorded")]
    Protocol,
    /// The stream can't be followed.
    #[error(transparent)]
    Stream(#[from] Lost),
    /// The runtime is going down.
    #[error("the agent is shutting down")]
    Stopped,
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

/// Where recordings are kept. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Recordings {
    directory: Option<Arc<Path>>,
    /// Who alone may read them; everybody, where there are none.
    recipients: Arc<[Recipient]>,
    /// Told of each that has come to its end.
    ended: Arc<Notify>,
    clock: Clock,
    counts: RecordingCounts,
}

impl Recordings {
    /// Nowhere: nothing is recorded, and nothing carried that must be.
    #[must_use]
    pub fn nowhere(metrics: &Metrics) -> Self {
        Self {
            directory: None,
            recipients: Arc::default(),
            ended: Arc::default(),
            clock: Clock::system(),
            counts: metrics.recording().clone(),
        }
    }

    /// In a directory, which is made for the agent alone where it isn't there, and tried.
    ///
    /// # Errors
    /// If no file can be made there.
    pub async fn open(directory: PathBuf, clock: Clock, metrics: &Metrics) -> Result<Self, RecordingError> {
        let tried = directory.clone();
        let outcome = task::spawn_blocking(move || try_directory(&tried)).await;
        outcome
            .map_err(|_| RecordingError::Stopped)?
            .map_err(|source| RecordingError::Directory {
                directory: directory.clone(),
                source,
            })?;
        Ok(Self {
            directory: Some(directory.into()),
            recipients: Arc::default(),
            ended: Arc::default(),
            clock,
            counts: metrics.recording().clone(),
        })
    }

    /// From now on only these may read what is recorded; everybody, where there are none.
    #[must_use]
    pub fn sealed_for(mut self, recipients: Vec<Recipient>) -> Self {
        self.recipients = recipients.into();
        self
    }

    /// Wakes whoever waits for a recording to come to its end.
    #[must_use]
    pub fn ended(&self) -> Arc<Notify> {
        Arc::clone(&self.ended)
    }

    /// Begins a recording. Unless it is [started](Recording::start), its file goes with it.
    ///
    /// # Errors
    /// If it can't be begun. That is counted.
    pub async fn begin(&self, about: About, terms: Terms) -> Result<Recording, RecordingError> {
        let outcome = self.try_to_begin(about, terms).await;
        match &outcome {
            Ok(_) => {}
            Err(RecordingError::NoDirectory) => self.counts.failed(RecordingFailure::NoDirectory),
            Err(RecordingError::Stopped) => self.counts.failed(RecordingFailure::Stopping),
            Err(RecordingError::Slow(_)) => self.counts.failed(RecordingFailure::Slow),
            Err(_) => self.counts.failed(RecordingFailure::Begin),
        }
        outcome
    }

    async fn try_to_begin(&self, about: About, terms: Terms) -> Result<Recording, RecordingError> {
        let directory = self.directory.as_ref().ok_or(RecordingError::NoDirectory)?;
        let now = self.clock.now();
        let file = directory.join(file_name(&about, now));
        let session = about.session.clone();
        let is_forward = about.target.is_forward();
        let (path, recipients) = (file.clone(), Arc::clone(&self.recipients));
        let work = task::spawn_blocking(move || begin(&path, &about, now, &recipients));
        let begun = timeout(PATIENCE, work).await;
        let cast = begun
            .map_err(|_| RecordingError::Slow(file.clone()))?
            .map_err(|_| RecordingError::Stopped)?
            .map_err(|source| RecordingError::Begin {
                file: file.clone(),
                source,
            })?;
        Ok(Recording {
            unused: Unused::new(file, cast.sink()),
            cast,
            is_forward,
            session,
            terms,
            ended: Arc::clone(&self.ended),
            counts: self.counts.clone(),
        })
    }
}

fn try_directory(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let trial = directory.join(format!(".trial-{}", std::process::id()));
    // Of an agent of the same number that was killed here.
    let _ = fs::remove_file(&trial);
    make(&trial)?;
    fs::remove_file(&trial)
}

fn begin(path: &Path, about: &About, now: Timestamp, recipients: &[Recipient]) -> io::Result<Cast<File>> {
    let begun = Cast::begin_for(make(path)?, about, now, recipients);
    if begun.is_err() {
        let _ = fs::remove_file(path);
    }
    begun
}

/// Never one that is there already, whatever it is. Locked for as long as it is open: whoever brings recordings elsewhere
/// takes none that is still written, by whatever agent.
fn make(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .append(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.try_lock()?;
    if file.metadata()?.nlink() == 0 {
        return Err(io::Error::other("it was removed as soon as it was made"));
    }
    Ok(file)
}

/// In the order of time where names are sorted. A session's name has no character that a file's can't have.
fn file_name(about: &About, now: Timestamp) -> String {
    let mut session = about.session.replace('/', "_");
    session.truncate(session.floor_char_boundary(NAME_LIMIT));
    format!("{}_{session}_{}.cast", now.strftime("%Y%m%dT%H%M%SZ"), about.audit_id)
}

/// A file that is removed with this, unless it comes into use.
#[derive(Debug)]
struct Unused {
    path: PathBuf,
    /// The same open file once more: it is locked until it is removed.
    held: Option<File>,
}

impl Unused {
    fn new(path: PathBuf, file: &File) -> Self {
        Self {
            path,
            held: file.try_clone().ok(),
        }
    }

    fn keep(mut self) -> PathBuf {
        std::mem::take(&mut self.path)
    }
}

impl Drop for Unused {
    fn drop(&mut self) {
        let (path, held) = (std::mem::take(&mut self.path), self.held.take());
        if path.as_os_str().is_empty() {
            return;
        }
        // Without a runtime, it stays and says that it has no end.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(move || {
                let _ = fs::remove_file(path);
                drop(held);
            });
        }
    }
}

/// A recording that is begun, of a stream that isn't there yet.
#[derive(Debug)]
#[must_use = "a recording that isn't started is removed"]
pub struct Recording {
    cast: Cast<File>,
    unused: Unused,
    is_forward: bool,
    session: String,
    terms: Terms,
    ended: Arc<Notify>,
    counts: RecordingCounts,
}

/// How a stream that is recorded is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// An exec or attach.
    Channels(Framing),
    /// A port-forward.
    Ports(Carrier),
}

/// What reads it.
#[derive(Debug)]
pub(super) enum Reader {
    Channels(Decoder),
    // Boxed for its size.
    Ports(Box<Ports>),
}

impl Reader {
    fn new(form: Form) -> Self {
        match form {
            Form::Channels(framing) => Self::Channels(Decoder::new(framing)),
            Form::Ports(carrier) => Self::Ports(Box::new(Ports::new(carrier))),
        }
    }
}

impl Recording {
    /// Whether it is of a port-forward.
    #[must_use]
    pub fn is_forward(&self) -> bool {
        self.is_forward
    }

    /// The stream is there, in this form; where that is `None`, in a way that can't be read. Its task is among
    /// `streams` until all is written. `None`: the stream goes on without being recorded.
    ///
    /// # Errors
    /// If it can't be read, and must be.
    pub fn start(self, form: Option<Form>, streams: &TaskTracker) -> Result<Option<Running>, Failure> {
        let shared = Arc::new(Shared {
            file: self.unused.keep(),
            session: self.session,
            terms: self.terms,
            started: Instant::now(),
            counts: self.counts,
            has_failed: AtomicBool::new(false),
            failed: CancellationToken::new(),
            end: OnceLock::new(),
        });
        let (sender, passed) = mpsc::channel(QUEUE);
        let writer = Writer {
            written: 0,
            cast: Some(self.cast),
            _open: shared.counts.begun(),
            shared: Arc::clone(&shared),
            passed,
            ended: self.ended,
        };
        if form.is_none() {
            shared.fail(&Failure::Protocol);
        }
        streams.spawn(writer.run());
        match form {
            Some(form) => Ok(Some(Running {
                reader: Arc::new(Mutex::new(Reader::new(form))),
                passed: sender,
                shared,
            })),
            None if shared.terms.required => Err(Failure::Protocol),
            None => Ok(None),
        }
    }
}

/// A recording of a stream that is there. Dropped without [`end`](Self::end), it says that it was cut short.
#[derive(Debug)]
pub struct Running {
    reader: Arc<Mutex<Reader>>,
    passed: mpsc::Sender<Passed>,
    shared: Arc<Shared>,
}

impl Running {
    /// One end of the stream, with what is read from it recorded.
    #[must_use]
    pub fn tap<I>(&self, side: Side, io: I) -> Tapped<I> {
        Tapped::new(
            io,
            side,
            Arc::clone(&self.reader),
            self.passed.clone(),
            Arc::clone(&self.shared),
        )
    }

    /// The file's name, by which the audit log names the recording.
    #[must_use]
    pub fn name(&self) -> Arc<str> {
        let name = self.shared.file.file_name().unwrap_or_default();
        name.to_string_lossy().into()
    }

    /// Resolves when the stream has to end because it isn't recorded any further.
    pub async fn forbids(&self) {
        if self.shared.terms.required {
            self.shared.failed.cancelled().await;
        } else {
            std::future::pending::<()>().await;
        }
    }

    /// Nothing more passes, and why.
    pub fn end(self, why: End) {
        let _ = self.shared.end.set(why);
    }
}

/// What passed at a time.
#[derive(Debug)]
pub(super) struct Passed {
    pub(super) at: Duration,
    pub(super) pieces: Vec<Piece>,
}

/// What the stream's taps and its recording's task know of each other.
#[derive(Debug)]
pub(super) struct Shared {
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
    pub(super) fn terms(&self) -> Terms {
        self.terms
    }

    /// Since the stream is there.
    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed.is_cancelled()
    }

    /// It breaks off. Only the first reason counts.
    pub(super) fn fail(&self, failure: &Failure) {
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
struct Writer {
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
    async fn run(mut self) {
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

#[cfg(test)]
mod tests;
