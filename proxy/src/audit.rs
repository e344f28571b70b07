//! The audit log: an event for each request, as Kubernetes writes them (`audit.k8s.io/v1`), one a line, to a file or to
//! standard output. [`policy`] says how much is written of which request, [`event`] is what is said, [`text`] how it is
//! written.
//!
//! No event is dropped in silence. One task owns the sink and repeats what fails. While too many events wait for it,
//! requests wait as well, and are refused in the end; or they go on and their events are lost, where the operator would
//! rather have that ([`AuditFailure`]). What was lost is counted, and written into the log when it works again. An event
//! of a request once admitted never waits, so that its end can't stall.

mod event;
mod gap;
pub mod policy;
mod sink;
mod text;
mod user;

use std::{
    path::PathBuf,
    str::FromStr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use tokio::{
    sync::{
        Notify,
        mpsc::{self, UnboundedReceiver, UnboundedSender},
    },
    task,
    time::{self, Instant},
};

pub use self::{
    event::{Asked, CallerText, Event, Level, Stage, Ticket},
    policy::{Extent, Policy},
    text::PodText,
    user::User,
};
use self::{
    gap::Gap,
    sink::{File, Pending, Sink},
    text::Scribe,
};
use crate::{
    admin::{Condition, Readiness},
    clock::Clock,
    metrics::Metrics,
};

/// As many events may wait before no further request is admitted.
pub const BACKLOG: usize = 4096;

const BATCH: usize = 256;
/// After a write, what comes is gathered for so long: at thousands of requests a second, a write for each would cost as
/// much as the requests.
const GATHER: Duration = Duration::from_millis(10);
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(5);
const COMPLAIN_EVERY: Duration = Duration::from_secs(30);
/// A sink that is merely too slow loses events all the time.
const GAP_EVERY: Duration = Duration::from_secs(1);

/// What becomes of requests while as many events wait as may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum AuditFailure {
    /// They wait, and are refused after `--queue-timeout`: nothing is done that isn't written down.
    #[default]
    Refuse,
    /// They go on, and their events are lost, counted, and the gap written down later.
    Continue,
}

/// What the log is kept by.
#[derive(Debug)]
pub struct Terms {
    /// What becomes of requests while it can't be written.
    pub failure: AuditFailure,
    /// How long a request waits for room in it.
    pub patience: Duration,
    /// The node's name, for what the log says of itself.
    pub node: Arc<str>,
    /// How much is written of which request.
    pub policy: Policy,
    /// Met while it is written.
    pub condition: Condition,
    /// Dates what the log says of itself.
    pub clock: Clock,
}

/// The audit log has no room for a request's event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no room in the audit log: look in the agent's log for why its destination fails")]
pub struct NoRoom;

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

#[derive(Debug)]
struct Shared {
    terms: Terms,
    /// Events that were sent and aren't written yet.
    backlog: AtomicUsize,
    /// Tickets whose event is still to come.
    open: AtomicUsize,
    losses: Mutex<Losses>,
    shown: Gauge,
    dropped: Counter,
    omitted: Counter,
    /// There is a gap to be written down.
    gapped: Notify,
    /// Something was written, or a ticket went.
    moved: Notify,
    reopen: Notify,
}

impl Audit {
    /// Opens the destination and starts its task.
    ///
    /// # Errors
    /// If the destination can't be opened.
    pub async fn start(destination: Destination, terms: Terms, metrics: &Metrics) -> Result<Self, AuditError> {
        let opened = task::spawn_blocking(move || match &destination {
            Destination::Stdout => File::stdout().map_err(|error| ("-".to_owned(), error)),
            Destination::File(path) => File::open(path).map_err(|error| (path.display().to_string(), error)),
        });
        let opened = opened.await.map_err(|_| AuditError::Stopped)?;
        let sink = opened.map_err(|(destination, source)| AuditError::Open { destination, source })?;
        Ok(Self::with_sink(Box::new(sink), terms, metrics))
    }

    /// A log that keeps nothing, for tests of what comes before it.
    #[must_use]
    pub fn discarding() -> Self {
        let terms = Terms {
            failure: AuditFailure::Continue,
            patience: Duration::ZERO,
            node: Arc::from(""),
            policy: Policy::default(),
            condition: Readiness::default().condition("audit"),
            clock: Clock::system(),
        };
        Self {
            events: None,
            shared: Arc::new(Shared::new(terms, &Metrics::new())),
        }
    }

    fn with_sink(sink: Box<dyn Sink>, terms: Terms, metrics: &Metrics) -> Self {
        let (events, receiver) = mpsc::unbounded_channel();
        terms.condition.ready();
        let shared = Arc::new(Shared::new(terms, metrics));
        let writer = Writer {
            sink: Some(sink),
            shared: Arc::clone(&shared),
            metrics: metrics.clone(),
            complained: None,
            scribe: Scribe::default(),
            pending: Pending::default(),
            next_gap: Instant::now(),
        };
        tokio::spawn(writer.run(receiver));
        Self {
            events: Some(events),
            shared,
        }
    }

    /// Waits until the log can take a request's event. Call it before anything is sent upstream: what isn't admitted
    /// must not take effect. Where the log is closed, as the runtime is going down, nothing is admitted any more.
    ///
    /// # Errors
    /// If it can't within the time that it's given, and requests are to be refused then.
    pub async fn admit(&self) -> Result<Ticket, NoRoom> {
        if self.shared.terms.failure == AuditFailure::Refuse && !self.shared.has_room() {
            let room = self.shared.wait_until(Shared::has_room);
            // Boxed: most requests don't wait, and carry it about all the same.
            if Box::pin(time::timeout(self.shared.terms.patience, room)).await.is_err() {
                return Err(self.shared.refuse());
            }
        }
        if self.events.as_ref().is_some_and(UnboundedSender::is_closed) {
            std::future::pending::<()>().await;
        }
        Ok(Ticket::new(self.clone()))
    }

    /// As [`Audit::admit`], for a request that won't be sent on: it doesn't wait.
    ///
    /// # Errors
    /// If the log can't take its event now.
    pub fn admit_at_once(&self) -> Result<Ticket, NoRoom> {
        if self.shared.has_room() {
            Ok(Ticket::new(self.clone()))
        } else {
            Err(self.shared.refuse())
        }
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
        if self.shared.terms.failure == AuditFailure::Continue && !self.shared.has_room() {
            self.shared.lose();
            return;
        }
        self.shared.backlog.fetch_add(1, Ordering::SeqCst);
        self.shared.shown.inc();
        if let Err(unsent) = events.send(event) {
            // The writer ends before its senders only if the runtime does; the event still goes somewhere.
            let mut event = Vec::new();
            Scribe::default().event(&mut event, &unsent.0);
            let event = String::from_utf8_lossy(&event);
            tracing::error!(%event, "an audit event came after the audit log was closed");
        }
    }
}

impl Shared {
    fn new(terms: Terms, metrics: &Metrics) -> Self {
        Self {
            terms,
            backlog: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            losses: Mutex::default(),
            shown: metrics.audit_backlog().clone(),
            dropped: metrics.audit_events_dropped().clone(),
            omitted: metrics.audit_events_omitted().clone(),
            gapped: Notify::new(),
            moved: Notify::new(),
            reopen: Notify::new(),
        }
    }

    fn has_room(&self) -> bool {
        self.backlog() < BACKLOG
    }

    fn refuse(&self) -> NoRoom {
        self.lose();
        NoRoom
    }

    /// An event isn't written, and that is.
    fn lose(&self) {
        self.dropped.inc();
        self.terms
            .condition
            .not_ready("the audit log can't be written; the agent's log says why");
        let now = self.terms.clock.now();
        let mut losses = self.losses();
        let Losses { gap, told } = &mut *losses;
        if let Some(gap) = gap {
            gap.grow(now);
            return;
        }
        let is_told = told.is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY);
        *gap = Some(Gap::new(&self.terms.node, now, is_told));
        if is_told {
            *told = Some(Instant::now());
            let policy = self.terms.failure;
            tracing::error!(?policy, "audit events are lost: the audit log can't be written");
        }
        drop(losses);
        self.gapped.notify_one();
    }

    /// A poisoned lock is taken over: what it guards is whole after each change.
    fn losses(&self) -> MutexGuard<'_, Losses> {
        self.losses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lost(&self) -> u64 {
        self.losses().gap.as_ref().map_or(0, Gap::lost)
    }

    fn backlog(&self) -> usize {
        self.backlog.load(Ordering::SeqCst)
    }

    /// The tickets first: an event enters the backlog before its ticket goes.
    fn unwritten(&self) -> usize {
        self.open.load(Ordering::SeqCst) + self.backlog() + usize::from(self.losses().gap.is_some())
    }

    /// Waits until there is a gap to be written down, and it is time to.
    async fn gap_since(&self, time: Instant) {
        while self.losses().gap.is_none() {
            self.gapped.notified().await;
        }
        time::sleep_until(time).await;
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

/// What was lost and isn't written down yet.
#[derive(Debug, Default)]
struct Losses {
    gap: Option<Gap>,
    /// When the agent's own log last told of a gap.
    told: Option<Instant>,
}

/// The one owner of the sink.
struct Writer {
    // Away while a blocking thread writes.
    sink: Option<Box<dyn Sink>>,
    shared: Arc<Shared>,
    metrics: Metrics,
    complained: Option<Instant>,
    scribe: Scribe,
    /// What is being written; kept between writes for its room.
    pending: Pending,
    /// Not before this.
    next_gap: Instant,
}

impl Writer {
    async fn run(mut self, mut events: UnboundedReceiver<Event>) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let count = tokio::select! {
                count = events.recv_many(&mut batch, BATCH) => count,
                () = self.shared.gap_since(self.next_gap) => {
                    if !self.write_gap().await {
                        return;
                    }
                    continue;
                }
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
            let lines = self.pending.begin();
            for event in batch.drain(..) {
                self.scribe.event(lines, &event);
            }
            if !self.write().await {
                // The events stay in the backlog, for `drain` to tell of them.
                return;
            }
            self.metrics.audit_events().inc_by(count as u64);
            self.shared.wrote(count);
            if count < BATCH {
                time::sleep(GATHER).await;
            }
        }
    }

    /// Writes down what was lost, when what came before is written.
    async fn write_gap(&mut self) -> bool {
        // What is lost while it is being written is in the next.
        let Some(gap) = self.shared.losses().gap.clone() else {
            return true;
        };
        self.scribe.gap(self.pending.begin(), &gap);
        if !self.write().await {
            return false;
        }
        if gap.is_told {
            tracing::warn!(lost = gap.lost(), since = %gap.since(), until = %gap.until(), "audit events were lost; the audit log says so");
        }
        let mut losses = self.shared.losses();
        losses.gap = losses.gap.take().and_then(|now| now.without(&gap));
        drop(losses);
        self.next_gap = Instant::now() + GAP_EVERY;
        self.shared.moved.notify_waiters();
        true
    }

    /// Until it's done. False: there is no thread to write with any more.
    async fn write(&mut self) -> bool {
        let mut pause = RETRY_FIRST;
        loop {
            let Some(mut sink) = self.sink.take() else { return false };
            let mut pending = std::mem::take(&mut self.pending);
            let write = move || {
                let outcome = pending.write_to(sink.as_mut());
                (sink, pending, outcome)
            };
            let Ok((sink, rest, outcome)) = task::spawn_blocking(write).await else {
                return false;
            };
            self.sink = Some(sink);
            self.pending = rest;
            let Err(error) = outcome else {
                self.shared.terms.condition.ready();
                if self.complained.take().is_some() {
                    tracing::info!("the audit log is being written again");
                }
                return true;
            };
            self.metrics.audit_write_failures().inc();
            self.shared
                .terms
                .condition
                .not_ready("the audit log can't be written; the agent's log says why");
            if self.complained.is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY) {
                self.complained = Some(Instant::now());
                let backlog = self.shared.backlog.load(Ordering::Acquire);
                let lost = self.shared.lost();
                let policy = self.shared.terms.failure;
                tracing::error!(%error, backlog, limit = BACKLOG, lost, ?policy, "the audit log cannot be written; requests wait, or their events are lost, when the backlog reaches its limit");
            }
            time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_LAST);
        }
    }
}

#[cfg(test)]
mod tests;
