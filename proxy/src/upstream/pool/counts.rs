//! What is counted of pools: dials, and requests that wait for a place.

use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::metrics::{gauge::Gauge, histogram::Histogram};

use super::shared::Protocol;
use crate::metrics::waits;

/// Connections opened, by protocol, and how long requests waited for one, over all pools that share it.
#[derive(Debug)]
pub struct DialCounts {
    /// HTTP/2.
    pub http2: AtomicU64,
    /// HTTP/1.1, upgrades included.
    pub http1: AtomicU64,
    /// Dials that failed.
    pub failed: AtomicU64,
    /// Connections that are open, or being opened.
    pub open: Gauge,
    /// Requests that wait for a place on one.
    pub waiting: Gauge,
    /// How long those waited that had to.
    pub waits: Histogram,
}

impl Default for DialCounts {
    fn default() -> Self {
        Self {
            http2: AtomicU64::default(),
            http1: AtomicU64::default(),
            failed: AtomicU64::default(),
            open: Gauge::default(),
            waiting: Gauge::default(),
            waits: waits(),
        }
    }
}

impl DialCounts {
    /// Each count by name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        [("http2", &self.http2), ("http1", &self.http1), ("failed", &self.failed)]
            .map(|(name, count)| (name, count.load(Ordering::Relaxed)))
            .into_iter()
    }

    /// Counts a dial, and what is spoken on the connection if one came of it.
    pub(super) fn dialled(&self, spoken: Option<Protocol>) {
        let count = match spoken {
            Some(Protocol::Http2) => &self.http2,
            Some(Protocol::Http1) => &self.http1,
            None => &self.failed,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }
}
