//! The audit log as it comes, for operators who look on: what is written down, as it is written, without bodies. Each
//! listener has a bounded queue of what its own [`Filter`] lets through. One that doesn't keep up loses events, and is told
//! how many by an event of the log's own for a gap; the log itself waits for nobody. While nobody listens an event costs one
//! look at a number.

mod filter;

use std::{
    mem,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use prometheus_client::metrics::counter::Counter;
use tokio::sync::mpsc::{self, error::TrySendError};

pub use self::filter::{Codes, Filter, FilterError};
use super::{event::Event, gap::Gap, text::Scribe};
use crate::clock::Clock;

/// As many events wait for a listener before it loses some.
const QUEUE: usize = 1024;
/// As many are written at a time.
const BATCH: usize = 64;

/// Where listeners come. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Tail(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// How many readers there are, so that nobody has to look.
    listening: AtomicUsize,
    readers: RwLock<Vec<Arc<Reader>>>,
    node: Arc<str>,
    clock: Clock,
    /// Requests that the policy has leave no event.
    omitted: Counter,
}

#[derive(Debug)]
struct Reader {
    filter: Filter,
    events: mpsc::Sender<Arc<Event>>,
    gap: Mutex<Option<Gap>>,
}

/// Hears of events until it is dropped.
#[derive(Debug)]
pub struct Listener {
    tail: Tail,
    reader: Arc<Reader>,
    events: mpsc::Receiver<Arc<Event>>,
    batch: Vec<Arc<Event>>,
    scribe: Scribe,
    /// How many requests had been left out when it began.
    omitted: u64,
}

impl Tail {
    pub(super) fn new(node: Arc<str>, clock: Clock, omitted: Counter) -> Self {
        Self(Arc::new(Shared {
            listening: AtomicUsize::new(0),
            readers: RwLock::default(),
            node,
            clock,
            omitted,
        }))
    }

    /// Listens from now on to what the filter lets through.
    #[must_use]
    pub fn listen(&self, filter: Filter) -> Listener {
        let (events, receiver) = mpsc::channel(QUEUE);
        let reader = Arc::new(Reader {
            filter,
            events,
            gap: Mutex::default(),
        });
        self.change(|readers| readers.push(Arc::clone(&reader)));
        Listener {
            tail: self.clone(),
            reader,
            events: receiver,
            batch: Vec::with_capacity(BATCH),
            scribe: Scribe::default(),
            omitted: self.0.omitted.get(),
        }
    }

    /// An event goes to whom it may concern. It never waits.
    pub(super) fn tell(&self, event: &Event) {
        // Relaxed: who has just come may miss what came at the same moment.
        if !self.is_heard() {
            return;
        }
        // A poisoned lock is taken over: the list is whole after each change.
        let readers = self.0.readers.read().unwrap_or_else(PoisonError::into_inner);
        let mut shared = None;
        for reader in readers.iter().filter(|reader| reader.filter.matches(event)) {
            let event = shared.get_or_insert_with(|| Arc::new(without_bodies(event)));
            if let Err(TrySendError::Full(_)) = reader.events.try_send(Arc::clone(event)) {
                reader.lose(&self.0);
            }
        }
    }

    /// Whether anybody listens.
    #[must_use]
    pub fn is_heard(&self) -> bool {
        self.0.listening.load(Ordering::Relaxed) > 0
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Arc<Reader>>)) {
        let mut readers = self.0.readers.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut readers);
        self.0.listening.store(readers.len(), Ordering::Relaxed);
    }
}

impl Reader {
    fn lose(&self, shared: &Shared) {
        let now = shared.clock.now();
        let mut gap = self.gap.lock().unwrap_or_else(PoisonError::into_inner);
        match gap.as_mut() {
            Some(gap) => gap.grow(now),
            None => *gap = Some(Gap::new(&shared.node, now, false)),
        }
    }

    fn take_gap(&self) -> Option<Gap> {
        mem::take(&mut *self.gap.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Listener {
    /// Waits for events, and returns the next as lines; behind them, what was lost since. Nothing is lost where this is
    /// dropped before its end.
    pub async fn next(&mut self) -> Vec<u8> {
        if self.events.recv_many(&mut self.batch, BATCH).await == 0 {
            // The reader holds a sender, so that the queue has no end.
            std::future::pending::<()>().await;
        }
        let mut lines = Vec::new();
        for event in self.batch.drain(..) {
            self.scribe.event(&mut lines, &event);
        }
        if let Some(gap) = self.reader.take_gap() {
            self.scribe.gap(&mut lines, &gap);
        }
        lines
    }

    /// How many requests the policy has left out since it listens: whatever the filter, for nothing is kept of them.
    #[must_use]
    pub fn omitted(&self) -> u64 {
        self.tail.0.omitted.get().saturating_sub(self.omitted)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.tail
            .change(|readers| readers.retain(|reader| !Arc::ptr_eq(reader, &self.reader)));
    }
}

/// Bodies are for the log alone: who may look on needn't be who may read it.
fn without_bodies(event: &Event) -> Event {
    Event {
        bodies: None,
        bodies_left_out: false,
        ..event.clone()
    }
}

#[cfg(test)]
mod tests;
