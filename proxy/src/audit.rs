//! The audit log: a line of JSON for each request, to a file or to standard output.
//!
//! No event is dropped in silence. One task owns the sink and repeats what fails; while too many events wait for it,
//! no new request is admitted. An event of a request once admitted never waits, so that its end can't stall.

mod event;
mod sink;

use std::{
    path::PathBuf,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use prometheus_client::metrics::gauge::Gauge;
use tokio::{
    sync::{
        Notify,
        mpsc::{self, UnboundedReceiver, UnboundedSender},
    },
    task,
    time::{self, Instant},
};

pub use self::event::{Event, Ticket};
use self::sink::{File, Pending, Sink};
use crate::metrics::Metrics;

/// As many events may wait before no further request is admitted.
pub const BACKLOG: usize = 4096;

const BATCH: usize = 256;
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(5);
const COMPLAIN_EVERY: Duration = Duration::from_secs(30);

/// Why there is no audit log.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The destination can't be written.
    #[error(
        "the audit log {destination} cannot be opened ({source}): make its directory writable for the agent, or choose another"
    )]
    Open {
        /// Where it should go.
        destination: String,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The runtime is going down.
    #[error("the agent is shutting down")]
    Stopped,
    /// The deadline came first.
    #[error("{0} audit events were not written in time: look in the log for why the audit log's destination fails")]
    Unwritten(usize),
}

/// Where the audit log goes: `-` is standard output, anything else a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// Standard output.
    Stdout,
    /// A file, appended to; made for the agent alone (0600), and made again when it was moved away or removed.
    File(PathBuf),
}

impl FromStr for Destination {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(if text == "-" {
            Self::Stdout
        } else {
            Self::File(text.into())
        })
    }
}

/// The audit log. Cheap to clone; its task ends when every clone and every ticket is gone and all is written.
#[derive(Debug, Clone)]
pub struct Audit {
    // None: nothing is kept.
    events: Option<UnboundedSender<Event>>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Events that were sent and aren't written yet.
    backlog: AtomicUsize,
    /// Tickets whose event is still to come.
    open: AtomicUsize,
    shown: Gauge,
    /// Something was written, or a ticket went.
    moved: Notify,
    reopen: Notify,
}

impl Audit {
    /// Opens the destination and starts its task.
    ///
    /// # Errors
    /// If the destination can't be opened.
    pub async fn start(destination: Destination, metrics: &Metrics) -> Result<Self, AuditError> {
        let opened = task::spawn_blocking(move || match &destination {
            Destination::Stdout => File::stdout().map_err(|error| ("-".to_owned(), error)),
            Destination::File(path) => File::open(path).map_err(|error| (path.display().to_string(), error)),
        });
        let opened = opened.await.map_err(|_| AuditError::Stopped)?;
        let sink = opened.map_err(|(destination, source)| AuditError::Open { destination, source })?;
        Ok(Self::with_sink(Box::new(sink), metrics))
    }

    /// A log that keeps nothing, for tests of what comes before it.
    #[must_use]
    pub fn discarding() -> Self {
        Self {
            events: None,
            shared: Arc::default(),
        }
    }

    fn with_sink(sink: Box<dyn Sink>, metrics: &Metrics) -> Self {
        let (events, receiver) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            shown: metrics.audit_backlog().clone(),
            ..Shared::default()
        });
        let writer = Writer {
            sink: Some(sink),
            shared: Arc::clone(&shared),
            metrics: metrics.clone(),
            complained: None,
        };
        tokio::spawn(writer.run(receiver));
        Self {
            events: Some(events),
            shared,
        }
    }

    /// Waits until the log can take a request's event. Call it before anything is sent upstream: what isn't admitted
    /// must not take effect. Where the log is closed, as the runtime is going down, nothing is admitted any more.
    pub async fn admit(&self) -> Ticket {
        self.shared.wait_until(|shared| shared.backlog() < BACKLOG).await;
        if self.events.as_ref().is_some_and(UnboundedSender::is_closed) {
            std::future::pending::<()>().await;
        }
        Ticket::new(self.clone())
    }

    /// Closes the file and opens it by its name again, as a log rotation asks for by SIGHUP. A file that was moved
    /// away or removed is noticed without it.
    pub fn reopen(&self) {
        self.shared.reopen.notify_one();
    }

    /// Waits until the event of every admitted request is written, for `patience` at most.
    ///
    /// # Errors
    /// Says how many events were not written.
    pub async fn drain(&self, patience: Duration) -> Result<(), AuditError> {
        let shared = &self.shared;
        time::timeout(patience, shared.wait_until(|shared| shared.unwritten() == 0))
            .await
            .map_err(|_| AuditError::Unwritten(shared.unwritten()))
    }

    fn send(&self, event: Event) {
        let Some(events) = &self.events else { return };
        self.shared.backlog.fetch_add(1, Ordering::SeqCst);
        self.shared.shown.inc();
        if let Err(unsent) = events.send(event) {
            // The writer ends before its senders only if the runtime does; the event still goes somewhere.
            let event = serde_json::to_string(&unsent.0).unwrap_or_default();
            tracing::error!(%event, "an audit event came after the audit log was closed");
        }
    }
}

impl Shared {
    fn backlog(&self) -> usize {
        self.backlog.load(Ordering::SeqCst)
    }

    /// The tickets first: an event enters the backlog before its ticket goes.
    fn unwritten(&self) -> usize {
        self.open.load(Ordering::SeqCst) + self.backlog()
    }

    async fn wait_until(&self, holds: impl Fn(&Self) -> bool) {
        loop {
            let moved = self.moved.notified();
            tokio::pin!(moved);
            // Listening before looking: what changes between the two isn't missed.
            moved.as_mut().enable();
            if holds(self) {
                return;
            }
            moved.await;
        }
    }

    fn ticket_gone(&self) {
        self.open.fetch_sub(1, Ordering::SeqCst);
        self.moved.notify_waiters();
    }

    fn wrote(&self, events: usize) {
        self.backlog.fetch_sub(events, Ordering::SeqCst);
        self.shown.dec_by(i64::try_from(events).unwrap_or(0));
        self.moved.notify_waiters();
    }
}

/// The one owner of the sink.
struct Writer {
    // Away while a blocking thread writes.
    sink: Option<Box<dyn Sink>>,
    shared: Arc<Shared>,
    metrics: Metrics,
    complained: Option<Instant>,
}

impl Writer {
    async fn run(mut self, mut events: UnboundedReceiver<Event>) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let count = tokio::select! {
                count = events.recv_many(&mut batch, BATCH) => count,
                () = self.shared.reopen.notified() => {
                    if let Some(sink) = self.sink.as_mut() {
                        sink.close();
                    }
                    continue;
                }
            };
            if count == 0 {
                return;
            }
            let pending = Pending::lines(&batch);
            batch.clear();
            if !self.write(pending).await {
                // The events stay in the backlog, for `drain` to tell of them.
                return;
            }
            self.metrics.audit_events().inc_by(count as u64);
            self.shared.wrote(count);
        }
    }

    /// Until it's done. False: there is no thread to write with any more.
    async fn write(&mut self, mut pending: Pending) -> bool {
        let mut pause = RETRY_FIRST;
        loop {
            let Some(mut sink) = self.sink.take() else { return false };
            let write = move || {
                let outcome = pending.write_to(sink.as_mut());
                (sink, pending, outcome)
            };
            let Ok((sink, rest, outcome)) = task::spawn_blocking(write).await else {
                return false;
            };
            self.sink = Some(sink);
            pending = rest;
            let Err(error) = outcome else {
                if self.complained.take().is_some() {
                    tracing::info!("the audit log is being written again");
                }
                return true;
            };
            self.metrics.audit_write_failures().inc();
            if self.complained.is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY) {
                self.complained = Some(Instant::now());
                let backlog = self.shared.backlog.load(Ordering::Acquire);
                tracing::error!(%error, backlog, limit = BACKLOG, "the audit log cannot be written; requests wait when the backlog reaches its limit");
            }
            time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_LAST);
        }
    }
}

#[cfg(test)]
mod tests;
