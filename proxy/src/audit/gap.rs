//! What the audit log lacks, in its own words.

use std::sync::Arc;

use jiff::Timestamp;
use uuid::Uuid;

/// Events that were lost in a row: an event of the log's own is written in their place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Gap {
    /// Of the event that tells of it.
    pub(super) id: Uuid,
    node: Arc<str>,
    /// How many events were lost.
    lost: u64,
    /// When the first was.
    since: Timestamp,
    /// And the last.
    until: Timestamp,
    /// Whether the agent's own log tells of it: of one in a while it does.
    pub(super) is_told: bool,
}

impl Gap {
    /// One of a single event.
    pub(super) fn new(node: &Arc<str>, now: Timestamp, is_told: bool) -> Self {
        Self {
            id: Uuid::new_v4(),
            node: Arc::clone(node),
            is_told,
            lost: 1,
            since: now,
            until: now,
        }
    }

    /// One event more.
    pub(super) fn grow(&mut self, now: Timestamp) {
        self.lost += 1;
        self.until = now;
    }

    pub(super) fn node(&self) -> &str {
        &self.node
    }

    pub(super) fn lost(&self) -> u64 {
        self.lost
    }

    pub(super) fn since(&self) -> Timestamp {
        self.since
    }

    pub(super) fn until(&self) -> Timestamp {
        self.until
    }

    /// What came to it after `written` was taken of it.
    pub(super) fn without(mut self, written: &Self) -> Option<Self> {
        self.id = Uuid::new_v4();
        self.lost -= written.lost;
        self.since = written.until;
        (self.lost > 0).then_some(self)
    }
}
