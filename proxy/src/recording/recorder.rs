//! Recordings from before their stream is there until it ends.
//!
//! A file is made before its request is sent on, so that what must be recorded isn't begun where it can't be. From then on
//! one task owns it (`writer`): what passes comes to it through a short queue, and is written on a thread that may block. A
//! recording that fails is cut back to what is whole and proven.

mod place;
mod writer;

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    sync::{Notify, mpsc},
    task,
    time::timeout,
};
use tokio_util::task::TaskTracker;

use self::{
    place::{Unused, begin, file_name, try_directory},
    writer::Writer,
};
use super::{
    about::About,
    age::Recipient,
    cast::{Cast, End},
    policy::Terms,
    ports::{Carrier, Ports},
    stream::{Decoder, Framing, Lost, Side},
    tap::Tapped,
};
use crate::{
    clock::Clock,
    metrics::{Metrics, RecordingCounts, RecordingFailure},
};

pub(super) use writer::{Passed, Shared};

/// What may wait to be written: as many readings of a stream, each of what its pipe holds at most.
const QUEUE: usize = 32;
/// As long may it take to begin one: a request waits for it.
const PATIENCE: Duration = Duration::from_secs(5);
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
        let shared = Shared::new(self.unused.keep(), self.session, self.terms, self.counts);
        let (sender, passed) = mpsc::channel(QUEUE);
        let writer = Writer::new(self.cast, &shared, passed, self.ended);
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
            None if shared.terms().required => Err(Failure::Protocol),
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
        self.shared.name()
    }

    /// Resolves when the stream has to end because it isn't recorded any further.
    pub async fn forbids(&self) {
        if self.shared.terms().required {
            self.shared.failed().await;
        } else {
            std::future::pending::<()>().await;
        }
    }

    /// Nothing more passes, and why.
    pub fn end(self, why: End) {
        self.shared.end(why);
    }
}

#[cfg(test)]
mod tests;
