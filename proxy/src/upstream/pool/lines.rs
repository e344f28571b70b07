//! Lines: kept-alive HTTP/1.1 connections, which carry one short request at a time for less than a stream of HTTP/2 costs.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::{
    super::{
        UpstreamError,
        dial::{ALPN_HTTP1, dial},
        direct::Line,
        socket::Socket,
    },
    shared::{HTTP1_IDLE, Protocol, Shared},
};

/// As many lines are open at once. Beyond, one HTTP/2 connection for all is the smaller burden for the server.
const MOST: usize = 32;
/// Of the connections that there may be, this part may be lines: the rest is for watches and upgrades.
const PART: usize = 4;
/// So long no line is tried again with a server that took none.
const PAUSE: Duration = Duration::from_secs(30);

/// The lines of one pool.
pub(super) struct Lines {
    /// How many are open, lent or idle.
    open: AtomicUsize,
    most: usize,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    /// The last used last.
    idle: Vec<Line>,
    /// Somebody looks after those that stay idle.
    minded: bool,
    /// The server took none at last.
    none_before: Option<Instant>,
}

impl Lines {
    /// None yet, for a pool of that many connections.
    pub(super) fn among(connections: usize) -> Self {
        Self {
            open: AtomicUsize::new(0),
            most: MOST.min(connections / PART),
            kept: Mutex::default(),
        }
    }

    /// Closes one that is idle; whether there was one.
    pub(super) fn close_one(&self) -> bool {
        self.kept().idle.pop().is_some()
    }

    /// A poisoned lock is taken over: each change under it is whole before anything can panic.
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    /// The line that was used last, so that those that aren't needed grow old.
    pub(super) fn idle_line(&self) -> Option<Line> {
        let now = Instant::now();
        loop {
            let mut line = self.lines.kept().idle.pop()?;
            if line.idle_for(now) < HTTP1_IDLE && self.roots.are(line.vouched()) && line.is_quiet() {
                return Some(line);
            }
        }
    }

    /// Opens a line, where there may be one more.
    pub(super) async fn new_line(self: &Arc<Self>) -> Result<Option<Line>, UpstreamError> {
        if self.lines.kept().none_before.is_some_and(|time| Instant::now() < time) {
            return Ok(None);
        }
        let Some(place) = LinePlace::take(self) else {
            return Ok(None);
        };
        let Some(permit) = self.permit() else {
            return Ok(None);
        };
        let (tls, vouched) = self.roots.client_config(&ALPN_HTTP1).await?;
        let io = match dial(&self.url, tls).await {
            Ok(io) => Socket::new(io, permit),
            // It may speak HTTP/2 alone, and then says so in TLS.
            Err(error @ UpstreamError::Tls { .. }) => {
                tracing::debug!(%error, "no HTTP/1.1 upstream for a while");
                self.lines.kept().none_before = Some(Instant::now() + PAUSE);
                return Ok(None);
            }
            Err(error) => {
                self.counts.dialled(None);
                return Err(error);
            }
        };
        self.counts.dialled(Some(Protocol::Http1));
        Ok(Some(Line::new(io, vouched, place)))
    }

    /// A line is free again. It isn't kept where others wait for a connection.
    pub(in crate::upstream) fn give_back_line(self: &Arc<Self>, line: Line) {
        if self.is_full() {
            return;
        }
        let mut kept = self.lines.kept();
        kept.idle.push(line);
        if !std::mem::replace(&mut kept.minded, true) {
            drop(kept);
            tokio::spawn(Self::mind_lines(Arc::downgrade(self)));
        }
    }

    /// Closes lines that have long been idle, as long as there are any.
    async fn mind_lines(home: Weak<Self>) {
        loop {
            sleep(HTTP1_IDLE).await;
            let Some(this) = home.upgrade() else { return };
            let now = Instant::now();
            let mut kept = this.lines.kept();
            kept.idle.retain(|line| line.idle_for(now) < HTTP1_IDLE);
            if kept.idle.is_empty() {
                kept.minded = false;
                return;
            }
        }
    }
}

/// A place among the lines, given back on drop.
pub(in crate::upstream) struct LinePlace(Weak<Shared>);

impl LinePlace {
    fn take(shared: &Arc<Shared>) -> Option<Self> {
        let Lines { open, most, .. } = &shared.lines;
        let taken = open.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| {
            (open < *most).then_some(open + 1)
        });
        taken.is_ok().then(|| Self(Arc::downgrade(shared)))
    }

    /// The pool that it is in.
    pub(in crate::upstream) fn home(&self) -> Option<Arc<Shared>> {
        self.0.upgrade()
    }
}

impl Drop for LinePlace {
    fn drop(&mut self) {
        if let Some(home) = self.home() {
            home.lines.open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
