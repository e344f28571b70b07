//! The audit log: an event for each request, as Kubernetes writes them (`audit.k8s.io/v1`), one a line, to a file or to
//! standard output, and to a webhook. [`policy`] says how much is written of which request, [`event`] is what is said,
//! [`text`] how it is written, and [`tail`] lets operators look on.
//!
//! No event is dropped in silence. Each sink has a [`lane`] and a task that owns it and repeats what fails. While too
//! many events wait for one, requests wait as well, and are refused in the end; or they go on and their events are lost
//! to it, where the operator would rather have that ([`AuditFailure`]). What was lost is counted, and written when the
//! sink works again. An event of a request once admitted never waits, so that its end can't stall.

pub mod capture;
mod event;
mod gap;
mod lane;
pub mod mask;
pub mod policy;
mod sink;
mod spool;
pub mod tail;
mod text;
mod user;
pub mod webhook;

use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, task, time};

pub use self::{
    capture::{Bodies, BodyTerms, Capture},
    event::{Asked, CallerText, Event, Level, Stage, Ticket},
    policy::{Extent, Policy},
    sink::{Destination, Rotation},
    text::PodText,
    user::User,
};
use self::{
    lane::{Lane, Writer},
    sink::{File, Sink},
    spool::Spool,
    tail::Tail,
    text::Scribe,
    webhook::Webhook,
};
use crate::{
    admin::Condition,
    clock::Clock,
    metrics::{AuditSink, Metrics},
};

/// As many events may wait for a sink before no further request is admitted.
pub const BACKLOG: usize = 4096;

/// What becomes of requests while as many events wait as may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum AuditFailure {
    /// They wait, and are refused after `--queue-timeout`: nothing is done that isn't written down.
    #[default]
    #[value(alias = "refuse")]
    Block,
    /// They go on, and their events are lost, counted, and the gap written down later.
    #[value(alias = "continue")]
    Drop,
}

/// What the log is kept by.
#[derive(Debug)]
pub struct Terms {
    /// What becomes of requests while a sink can't be written.
    pub failure: AuditFailure,
    /// How long a request waits for room.
    pub patience: Duration,
    /// The node's name, for what the log says of itself.
    pub node: Arc<str>,
    /// How much is written of which request.
    pub policy: Policy,
    /// How much of bodies is written, at the levels that ask for them.
    pub bodies: BodyTerms,
    /// Dates what the log says of itself.
    pub clock: Clock,
}

/// Where the events go. Each has a condition that is met while it is written.
#[derive(Debug, Default)]
pub struct Sinks {
    /// A file, or standard output.
    pub log: Option<(Destination, Condition)>,
    /// A webhook.
    pub webhook: Option<(Webhook, Condition)>,
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

/// The audit log. Cheap to clone; its tasks end when every clone and every ticket is gone and all is written.
#[derive(Debug, Clone)]
pub struct Audit {
    /// Beside the tasks' own, so that these learn when nobody else is left.
    shared: Arc<Handle>,
}

/// What clones and tickets share.
#[derive(Debug)]
struct Handle(Arc<Shared>);

impl Deref for Handle {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.lanes.iter().for_each(Lane::close);
    }
}

#[derive(Debug)]
struct Shared {
    terms: Terms,
    lanes: Box<[Lane]>,
    /// Tickets whose event is still to come.
    open: AtomicUsize,
    metrics: Metrics,
    tail: Tail,
    /// Something was written, or a ticket went.
    moved: Notify,
}

impl Audit {
    /// Opens the sinks and starts their tasks.
    ///
    /// # Errors
    /// If one can't be opened.
    pub async fn start(sinks: Sinks, terms: Terms, metrics: &Metrics) -> Result<Self, AuditError> {
        let Sinks { log, webhook } = sinks;
        let mut opened: Vec<(Box<dyn Sink>, Lane)> = Vec::new();
        if let Some((destination, condition)) = log {
            let clock = terms.clock.clone();
            let file = open(destination.to_string(), move || File::open(destination, clock)).await?;
            opened.push((Box::new(file), lane(AuditSink::Log, condition, metrics)));
        }
        if let Some((webhook, condition)) = webhook {
            let (directory, limit) = (webhook.queue.clone(), webhook.queue_size);
            let size = metrics.webhook().queue.clone();
            let name = directory.display().to_string();
            let spool = open(name, move || Spool::begin(&directory, limit, &size)).await?;
            opened.push((Box::new(spool.appender()), lane(AuditSink::Webhook, condition, metrics)));
            webhook.start(spool, metrics.webhook().clone());
        }
        Ok(Self::with_sinks(opened, terms, metrics))
    }

    /// A log that keeps nothing, for tests of what comes before it.
    #[must_use]
    pub fn discarding() -> Self {
        let terms = Terms {
            failure: AuditFailure::Drop,
            patience: Duration::ZERO,
            node: Arc::from(""),
            policy: Policy::default(),
            bodies: BodyTerms::default(),
            clock: Clock::system(),
        };
        Self::with_sinks(Vec::new(), terms, &Metrics::new())
    }

    fn with_sinks(sinks: Vec<(Box<dyn Sink>, Lane)>, terms: Terms, metrics: &Metrics) -> Self {
        let (sinks, lanes): (Vec<_>, Vec<_>) = sinks.into_iter().unzip();
        let tail = Tail::new(
            Arc::clone(&terms.node),
            terms.clock.clone(),
            metrics.audit_events_omitted(),
        );
        let shared = Arc::new(Shared {
            terms,
            lanes: lanes.into(),
            open: AtomicUsize::new(0),
            metrics: metrics.clone(),
            tail,
            moved: Notify::new(),
        });
        for (lane, sink) in sinks.into_iter().enumerate() {
            tokio::spawn(Writer::new(sink, Arc::clone(&shared), lane).run());
        }
        Self {
            shared: Arc::new(Handle(shared)),
        }
    }

    /// Waits until the log can take a request's event. Call it before anything is sent upstream: what isn't admitted
    /// must not take effect. Where the log is closed, as the runtime is going down, nothing is admitted any more.
    ///
    /// # Errors
    /// If it can't within the time that it's given, and requests are to be refused then.
    pub async fn admit(&self) -> Result<Ticket, NoRoom> {
        if self.shared.terms.failure.keeps() && !self.shared.has_room() {
            let room = self.shared.wait_until(Shared::has_room);
            // Boxed: most requests don't wait, and carry it about all the same.
            if Box::pin(time::timeout(self.shared.terms.patience, room)).await.is_err() {
                return Err(self.shared.refuse());
            }
        }
        if self.shared.lanes.iter().any(Lane::is_gone) {
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
        for lane in &self.shared.lanes {
            lane.reopen();
        }
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

    /// Where to listen to events as they come.
    #[must_use]
    pub fn tail(&self) -> Tail {
        self.shared.tail.clone()
    }

    fn send(&self, event: &Event) {
        self.shared.tail.tell(event);
        for lane in &self.shared.lanes {
            if !self.shared.terms.failure.keeps() && !lane.has_room() {
                lane.lose(&self.shared);
                continue;
            }
            lane.take(event);
            if lane.is_gone() {
                // The writer ends before its senders only if the runtime does; the event still goes somewhere.
                let mut text = Vec::new();
                Scribe::default().event(&mut text, event);
                let event = String::from_utf8_lossy(&text);
                tracing::error!(%event, "an audit event came after the audit log was closed");
            }
        }
    }
}

fn lane(sink: AuditSink, condition: Condition, metrics: &Metrics) -> Lane {
    Lane::new(sink.name(), condition, metrics.audit(sink))
}

async fn open<S, F>(destination: String, open: F) -> Result<S, AuditError>
where
    S: Send + 'static,
    F: FnOnce() -> std::io::Result<S> + Send + 'static,
{
    let opened = task::spawn_blocking(open).await.map_err(|_| AuditError::Stopped)?;
    opened.map_err(|source| AuditError::Open { destination, source })
}

impl Shared {
    fn has_room(&self) -> bool {
        self.lanes.iter().all(Lane::has_room)
    }

    /// A request is refused for want of room: its event is missing where there is none.
    fn refuse(&self) -> NoRoom {
        let mut full = self.lanes.iter().filter(|lane| !lane.has_room()).peekable();
        if full.peek().is_none() {
            // Room came the moment after.
            self.lanes.iter().take(1).for_each(|lane| lane.lose(self));
        }
        full.for_each(|lane| lane.lose(self));
        NoRoom
    }

    /// The tickets first: an event enters the backlog before its ticket goes.
    fn unwritten(&self) -> usize {
        self.open.load(Ordering::SeqCst) + self.lanes.iter().map(Lane::unwritten).sum::<usize>()
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
}

#[cfg(test)]
pub(crate) mod tests;
