//! What the audit log lacks, in its own words.

use jiff::Timestamp;
use serde::Serialize;

/// Events that were lost in a row: a line of the log as it is written in their place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Gap {
    /// When it was closed, or last grew.
    time: Timestamp,
    node: String,
    #[serde(rename = "gap")]
    extent: Extent,
    /// Whether the agent's own log tells of it: of one in a while it does.
    #[serde(skip)]
    pub(super) is_told: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Extent {
    /// How many events were lost.
    lost: u64,
    /// When the first was.
    since: Timestamp,
    /// And the last.
    until: Timestamp,
}

impl Gap {
    /// One of a single event.
    pub(super) fn new(node: &str, now: Timestamp, is_told: bool) -> Self {
        Self {
            time: now,
            node: node.to_owned(),
            is_told,
            extent: Extent {
                lost: 1,
                since: now,
                until: now,
            },
        }
    }

    /// One event more.
    pub(super) fn grow(&mut self, now: Timestamp) {
        self.time = now;
        self.extent.lost += 1;
        self.extent.until = now;
    }

    pub(super) fn lost(&self) -> u64 {
        self.extent.lost
    }

    pub(super) fn since(&self) -> Timestamp {
        self.extent.since
    }

    pub(super) fn until(&self) -> Timestamp {
        self.extent.until
    }

    /// What came to it after `written` was taken of it.
    pub(super) fn without(mut self, written: &Self) -> Option<Self> {
        self.extent.lost -= written.extent.lost;
        self.extent.since = written.extent.until;
        (self.extent.lost > 0).then_some(self)
    }
}
