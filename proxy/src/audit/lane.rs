//! One sink's events on their way: how many wait, what was lost, and the task that writes them.
//!
//! Sinks fail apart: each has its own lane, and what one can't take is no matter of another's.
//!
//! An event is put into its line by whoever hands it over: its parts are at hand then, and freed where they were made. Only
//! bodies wait for a thread that may take its time.

mod gathered;

use std::{
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    task,
    time::{self, Instant},
};

use self::gathered::Gathered;
use super::{
    AuditFailure, BACKLOG, Shared,
    event::Event,
    gap::Gap,
    sink::{Pending, Sink},
    text::Scribe,
};
use crate::{admin::Condition, metrics::SinkMetrics};

/// The events of one write at most: each is counted as written when all of them are, and their bodies are read together.
/// Where as many waited, the next write follows at once.
const MANY: usize = 512;
/// After a write, what comes is gathered for so long: at thousands of requests a second, a write for each would cost as
/// much as the requests.
const GATHER: Duration = Duration::from_millis(10);
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(5);
/// As many bytes of bodies may wait. Beyond, events go without theirs, and say so.
const BODIES: usize = 64 * 1024 * 1024;
const COMPLAIN_EVERY: Duration = Duration::from_secs(30);
/// A sink that is merely too slow loses events all the time.
const GAP_EVERY: Duration = Duration::from_secs(1);

/// How one sink stands.
#[derive(Debug)]
pub(super) struct Lane {
    /// For people.
    name: &'static str,
    gathered: Mutex<Gathered>,
    /// There is something to be written, or nothing will come any more.
    more: Notify,
    /// Nobody writes any more: the runtime goes down.
    is_gone: AtomicBool,
    /// The bytes of the bodies that wait.
    bodies: AtomicUsize,
    losses: Mutex<Losses>,
    /// Its backlog is the count of events that were handed over and aren't written yet: there is no other.
    metrics: SinkMetrics,
    /// Met while it is written.
    condition: Condition,
    /// There is a gap to be written down.
    gapped: Notify,
    reopen: Notify,
}

impl Lane {
    pub(super) fn new(name: &'static str, condition: Condition, metrics: SinkMetrics) -> Self {
        condition.ready();
        Self {
            name,
            gathered: Mutex::default(),
            more: Notify::new(),
            is_gone: AtomicBool::new(false),
            bodies: AtomicUsize::new(0),
            losses: Mutex::default(),
            metrics,
            condition,
            gapped: Notify::new(),
            reopen: Notify::new(),
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.backlog() < BACKLOG
    }

    /// Whether nobody writes any more.
    pub(super) fn is_gone(&self) -> bool {
        self.is_gone.load(Ordering::Acquire)
    }

    /// An event is to be written, without its bodies where too much of such waits.
    pub(super) fn take(&self, event: &Event) {
        let bodies = event.bodies_size();
        let mut without = None;
        if bodies > 0 && self.bodies.fetch_add(bodies, Ordering::SeqCst) + bodies > BODIES {
            self.bodies.fetch_sub(bodies, Ordering::SeqCst);
            without.insert(event.clone()).leave_bodies_out();
        }
        // Before whoever hands it over is done with it: nobody who waits for all to be written overlooks it.
        self.metrics.backlog.inc();
        if self.gathered().put(without.as_ref().unwrap_or(event), MANY) {
            self.more.notify_one();
        }
    }

    /// Nothing will come any more.
    pub(super) fn close(&self) {
        self.gathered().close();
        self.more.notify_one();
    }

    pub(super) fn reopen(&self) {
        self.reopen.notify_one();
    }

    /// An event isn't written, and that is.
    pub(super) fn lose(&self, shared: &Shared) {
        self.metrics.dropped.inc();
        self.not_ready();
        let now = shared.terms.clock.now();
        let mut losses = self.losses();
        let Losses { gap, told } = &mut *losses;
        if let Some(gap) = gap {
            gap.grow(now);
            return;
        }
        let is_told = told.is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY);
        *gap = Some(Gap::new(&shared.terms.node, now, is_told));
        if is_told {
            *told = Some(Instant::now());
            let policy = shared.terms.failure;
            let sink = self.name;
            tracing::error!(sink, ?policy, "audit events are lost: the audit log can't be written");
        }
        drop(losses);
        self.gapped.notify_one();
    }

    /// What isn't written yet.
    pub(super) fn unwritten(&self) -> usize {
        self.backlog() + usize::from(self.losses().gap.is_some())
    }

    fn not_ready(&self) {
        self.condition
            .not_ready("the audit log can't be written; the agent's log says why");
    }

    /// A poisoned lock is taken over: what it guards is whole after each change.
    fn losses(&self) -> MutexGuard<'_, Losses> {
        self.losses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lost(&self) -> u64 {
        self.losses().gap.as_ref().map_or(0, Gap::lost)
    }

    fn backlog(&self) -> usize {
        usize::try_from(self.metrics.backlog.get()).unwrap_or(0)
    }

    fn gathered(&self) -> MutexGuard<'_, Gathered> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is something to be written. False: nothing will come any more.
    async fn has_more(&self) -> bool {
        loop {
            // A notification that comes from here on is kept.
            {
                let gathered = self.gathered();
                if !gathered.is_empty() {
                    return true;
                }
                if gathered.is_closed() {
                    return false;
                }
            }
            self.more.notified().await;
        }
    }

    /// Waits until there is a gap to be written down, and it is time to.
    async fn gap_since(&self, time: Instant) {
        while self.losses().gap.is_none() {
            self.gapped.notified().await;
        }
        time::sleep_until(time).await;
    }
}

/// What was lost and isn't written down yet.
#[derive(Debug, Default)]
struct Losses {
    gap: Option<Gap>,
    /// When the agent's own log last told of a gap.
    told: Option<Instant>,
}

/// The one owner of a sink.
pub(super) struct Writer {
    // Away while a blocking thread writes.
    sink: Option<Box<dyn Sink>>,
    shared: Arc<Shared>,
    /// Which lane is its own.
    lane: usize,
    complained: Option<Instant>,
    scribe: Scribe,
    /// What is being written; kept between writes for its room.
    pending: Pending,
    /// Not before this.
    next_gap: Instant,
}

impl Writer {
    pub(super) fn new(sink: Box<dyn Sink>, shared: Arc<Shared>, lane: usize) -> Self {
        Self {
            sink: Some(sink),
            shared,
            lane,
            complained: None,
            scribe: Scribe::default(),
            pending: Pending::default(),
            next_gap: Instant::now(),
        }
    }

    fn lane(&self) -> &Lane {
        &self.shared.lanes[self.lane]
    }

    pub(super) async fn run(mut self) {
        loop {
            if self.lane().gathered().rest() {
                self.pending.rest();
            }
            tokio::select! {
                has_more = self.lane().has_more() => if !has_more {
                    return;
                },
                () = self.lane().gap_since(self.next_gap) => {
                    if !self.write_gap().await {
                        return;
                    }
                    continue;
                }
                () = self.lane().reopen.notified() => {
                    if let Some(sink) = self.sink.as_mut() {
                        sink.close();
                    }
                    continue;
                }
            }
            // Before the lock is taken, for which requests wait: room may be given back here.
            let lines = self.pending.begin();
            let (behind, events) = self.shared.lanes[self.lane].gathered().take(lines);
            if !behind.is_empty() && !self.scribe(behind).await {
                return;
            }
            if !self.write().await {
                // The events stay in the backlog, for `drain` to tell of them.
                return;
            }
            self.wrote(events);
            if events < MANY {
                time::sleep(GATHER).await;
            }
        }
    }

    /// Puts events with bodies into lines, on a thread that may take its time. False: there is none any more.
    async fn scribe(&mut self, events: Vec<Event>) -> bool {
        let bodies: usize = events.iter().map(Event::bodies_size).sum();
        let mut scribe = mem::take(&mut self.scribe);
        let mut pending = mem::take(&mut self.pending);
        let put = move || {
            for event in events {
                scribe.event(pending.lines(), &event);
            }
            (scribe, pending)
        };
        let Ok(done) = task::spawn_blocking(put).await else {
            return false;
        };
        (self.scribe, self.pending) = done;
        // From here on they are in the lines.
        self.lane().bodies.fetch_sub(bodies, Ordering::SeqCst);
        true
    }

    fn wrote(&self, events: usize) {
        let lane = self.lane();
        lane.metrics.events.inc_by(events as u64);
        lane.metrics.backlog.dec_by(i64::try_from(events).unwrap_or(0));
        self.shared.moved.notify_waiters();
    }

    /// Writes down what was lost, when what came before is written.
    async fn write_gap(&mut self) -> bool {
        // What is lost while it is being written is in the next.
        let Some(gap) = self.lane().losses().gap.clone() else {
            return true;
        };
        self.scribe.gap(self.pending.begin(), &gap);
        if !self.write().await {
            return false;
        }
        if gap.is_told {
            tracing::warn!(sink = self.lane().name, lost = gap.lost(), since = %gap.since(), until = %gap.until(), "audit events were lost; the audit log says so");
        }
        let mut losses = self.lane().losses();
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
            let mut pending = mem::take(&mut self.pending);
            let before = pending.written();
            let write = move || {
                let outcome = pending.write_to(sink.as_mut());
                (sink, pending, outcome)
            };
            let Ok((sink, rest, outcome)) = task::spawn_blocking(write).await else {
                return false;
            };
            self.sink = Some(sink);
            self.pending = rest;
            // A sink that takes some of it is asked for the rest as soon as at first: much may wait behind little room.
            if self.pending.written() > before {
                pause = RETRY_FIRST;
            }
            let Err(error) = outcome else {
                self.lane().condition.ready();
                if self.complained.take().is_some() {
                    tracing::info!(sink = self.lane().name, "the audit log is being written again");
                }
                return true;
            };
            self.lane().metrics.write_failures.inc();
            self.lane().not_ready();
            if self.complained.is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY) {
                self.complained = Some(Instant::now());
                let (sink, backlog, lost) = (self.lane().name, self.lane().backlog(), self.lane().lost());
                let policy = self.shared.terms.failure;
                tracing::error!(sink, %error, backlog, limit = BACKLOG, lost, ?policy, "the audit log cannot be written; requests wait, or their events are lost, when the backlog reaches its limit");
            }
            time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_LAST);
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.lane().is_gone.store(true, Ordering::Release);
    }
}

impl AuditFailure {
    /// Whether events go on their way though there is no room.
    pub(super) fn keeps(self) -> bool {
        self == Self::Block
    }
}
