//! The connections that there are, and those that are being opened: who asks is given a place on one, or has more opened.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::{Notify, Semaphore},
    time::{Instant, sleep, timeout_at},
};

use super::{
    super::{
        UpstreamError,
        dial::{ALPN_ANY, dial},
        h1::{Idle, Lease},
        h2::{Connection, Slot},
        roots::Roots,
        socket::{Permit, Socket},
        target::Target,
    },
    Bounds,
    counts::DialCounts,
    lines::Lines,
};
use crate::metrics::OpenStream;

/// An idle HTTP/1.1 connection is not used again after so long: servers close theirs at about twice that.
pub(super) const HTTP1_IDLE: Duration = Duration::from_secs(45);
/// How many idle HTTP/1.1 connections are kept.
const HTTP1_IDLE_MOST: usize = 32;
/// HTTP/2 connections without a stream for so long are closed, but for one: they hold the room that their streams had, here
/// and with the server, and the next crowd has them dialled in milliseconds.
const SURPLUS_IDLE: Duration = Duration::from_secs(1);
/// What a server is expected to allow before the first connection has said: the smaller of the limits that
/// kube-apiserver has had (250, then 100).
const STREAMS_EXPECTED: usize = 100;

/// What the pool's connections know of it.
pub(in crate::upstream) struct Shared {
    pub(super) url: Target,
    pub(super) roots: Roots,
    state: Mutex<State>,
    /// A stream or a connection may be had.
    changed: Notify,
    /// A connection was closed.
    closed: Notify,
    /// Places for connections.
    places: Arc<Semaphore>,
    patience: Duration,
    pub(super) counts: Arc<DialCounts>,
    pub(super) lines: Lines,
}

#[derive(Default)]
struct State {
    protocol: Option<Protocol>,
    http2: Vec<Arc<Connection>>,
    /// Somebody looks after those of them that are left over.
    surplus_minded: bool,
    http1: Vec<Idle>,
    dialing: usize,
    waiting: usize,
    /// Streams that the newest connection allowed.
    allowed: Option<usize>,
    /// Dials that failed so far, and how the last did.
    failures: u64,
    failed: Option<Arc<UpstreamError>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    Http2,
}

/// A place on a connection, or what leads to one.
pub(super) enum Found {
    Slot(Slot),
    Lease(Lease),
    Dial(Permit),
    Failed(Arc<UpstreamError>),
}

/// What came of a dial.
pub(super) enum Dialled {
    Http2(Arc<Connection>),
    Http1(Lease),
}

impl Shared {
    /// Without a connection yet.
    pub(super) fn new(url: Target, roots: Roots, counts: Arc<DialCounts>, bounds: Bounds) -> Arc<Self> {
        Arc::new(Self {
            url,
            roots,
            state: Mutex::default(),
            changed: Notify::new(),
            closed: Notify::new(),
            places: Arc::new(Semaphore::new(bounds.connections)),
            patience: bounds.patience,
            counts,
            lines: Lines::among(bounds.connections),
        })
    }

    /// Finds a place on a connection, or waits for one to come about.
    pub(super) async fn connection(self: &Arc<Self>) -> Result<Found, UpstreamError> {
        let mut failures_before = None;
        match self.look(&mut failures_before) {
            Some(found) => Ok(found),
            // Boxed, as all is here that few requests need: each carries its future about.
            None => Box::pin(self.wait(failures_before)).await,
        }
    }

    async fn wait(self: &Arc<Self>, mut failures_before: Option<u64>) -> Result<Found, UpstreamError> {
        let patience = Instant::now() + self.patience;
        let _waiting = Waiting::begin(self);
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(found) = self.look(&mut failures_before) {
                return Ok(found);
            }
            if timeout_at(patience, changed).await.is_err() {
                return Err(UpstreamError::Exhausted);
            }
        }
    }

    /// Looks for a place; where there is none yet, starts as many dials as those who wait will need.
    ///
    /// `failures_before` is the count of failed dials when the request began to wait. Once a dial has failed since, it
    /// starts no more, but makes do with what others get.
    fn look(self: &Arc<Self>, failures_before: &mut Option<u64>) -> Option<Found> {
        let home = Arc::downgrade(self);
        let mut state = self.state();
        if state.protocol == Some(Protocol::Http1) {
            let now = Instant::now();
            state
                .http1
                .retain(|idle| idle.usable(now, HTTP1_IDLE) && self.roots.are(idle.vouched()));
            return match state.http1.pop() {
                Some(idle) => Some(Found::Lease(idle.lend(home))),
                None => self.permit().map(Found::Dial),
            };
        }
        state
            .http2
            .retain(|connection| connection.usable() && self.roots.are(connection.vouched()));
        if let Some(slot) = state.http2.iter().find_map(|connection| connection.reserve(&home)) {
            return Some(Found::Slot(slot));
        }
        if state.failures > *failures_before.get_or_insert(state.failures) {
            return match &state.failed {
                Some(error) if state.dialing == 0 && state.http2.is_empty() => Some(Found::Failed(Arc::clone(error))),
                _ => None,
            };
        }
        let needed = state.waiting.div_ceil(state.allowed.unwrap_or(STREAMS_EXPECTED));
        while state.dialing < needed {
            let Some(permit) = self.permit() else {
                if self.lines.close_one() {
                    continue;
                }
                break;
            };
            state.dialing += 1;
            // In a task of its own, so that a client that goes away doesn't undo the dial for the others.
            tokio::spawn(Self::add_connection(home.clone(), permit));
        }
        None
    }

    /// Waits for a place for one more connection. One that nobody uses makes way.
    pub(super) async fn place(self: &Arc<Self>) -> Result<Permit, UpstreamError> {
        let patience = Instant::now() + self.patience;
        loop {
            let closed = self.closed.notified();
            tokio::pin!(closed);
            closed.as_mut().enable();
            if let Some(permit) = self.permit() {
                return Ok(permit);
            }
            self.make_way();
            if timeout_at(patience, closed).await.is_err() {
                return Err(UpstreamError::Exhausted);
            }
        }
    }

    /// Closes a connection that nobody uses, if there is one.
    fn make_way(&self) {
        let idle = self.state().http1.pop();
        if idle.is_none() {
            self.lines.close_one();
        }
    }

    /// A place for a connection, if one is left.
    pub(super) fn permit(self: &Arc<Self>) -> Option<Permit> {
        let permit = Arc::clone(&self.places).try_acquire_owned().ok()?;
        Some(Permit::new(
            permit,
            Arc::downgrade(self),
            OpenStream::new(&self.counts.open),
        ))
    }

    async fn add_connection(home: Weak<Self>, permit: Permit) {
        let Some(this) = home.upgrade() else { return };
        let dialled = this.dial(permit).await;
        match dialled {
            Ok(Dialled::Http2(connection)) => this.add(connection),
            Ok(Dialled::Http1(lease)) => {
                this.state().protocol = Some(Protocol::Http1);
                lease.give_back();
            }
            Err(error) => {
                tracing::warn!(%error, server = %this.url, "the upstream can't be reached");
                let mut state = this.state();
                state.failures += 1;
                state.failed = Some(Arc::new(error));
            }
        }
        this.state().dialing -= 1;
        this.changed.notify_waiters();
    }

    /// Opens a connection, and speaks on it what the server prefers.
    pub(super) async fn dial(self: &Arc<Self>, permit: Permit) -> Result<Dialled, UpstreamError> {
        let home = Arc::downgrade(self);
        let dialled = async {
            let (tls, vouched) = self.roots.client_config(&ALPN_ANY).await?;
            let io = Socket::new(dial(&self.url, tls).await?, permit);
            if io.is_http2() {
                Connection::open(io, vouched, home, &self.url).await.map(Dialled::Http2)
            } else {
                Lease::open(io, vouched, home).await.map(Dialled::Http1)
            }
        };
        let dialled = dialled.await;
        let spoken = match &dialled {
            Ok(Dialled::Http2(_)) => Some(Protocol::Http2),
            Ok(Dialled::Http1(_)) => Some(Protocol::Http1),
            Err(_) => None,
        };
        self.counts.dialled(spoken);
        dialled
    }

    pub(super) fn add(&self, connection: Arc<Connection>) {
        let mut state = self.state();
        state.allowed = Some(connection.limit());
        state.protocol = Some(Protocol::Http2);
        state.http2.push(connection);
        drop(state);
        self.changed.notify_waiters();
    }

    /// A stream has closed; `was_last` if it was the last of its connection.
    pub(in crate::upstream) fn place_freed(self: &Arc<Self>, was_last: bool) {
        self.changed.notify_one();
        if was_last {
            let mut state = self.state();
            // As the runtime ends there is nothing to wait with, and nothing to wait for.
            if state.http2.len() > 1
                && let Ok(runtime) = Handle::try_current()
                && !std::mem::replace(&mut state.surplus_minded, true)
            {
                runtime.spawn(Self::mind_surplus(Arc::downgrade(self)));
            }
        }
    }

    /// Closes HTTP/2 connections that a crowd has left over, as long as there are any.
    async fn mind_surplus(home: Weak<Self>) {
        loop {
            sleep(SURPLUS_IDLE).await;
            let Some(this) = home.upgrade() else { return };
            let mut state = this.state();
            let (mut one_is_kept, mut more_to_come) = (false, false);
            // Places are taken under this lock: who finds one here keeps its connection.
            state.http2.retain(|connection| match connection.idle_for() {
                None => true,
                Some(_) if !std::mem::replace(&mut one_is_kept, true) => true,
                Some(idle) if idle >= SURPLUS_IDLE => false,
                Some(_) => {
                    more_to_come = true;
                    true
                }
            });
            if !more_to_come {
                state.surplus_minded = false;
                return;
            }
        }
    }

    /// An HTTP/2 connection has ended: those who wait look again, and dial.
    pub(in crate::upstream) fn connection_ended(&self) {
        self.state().http2.retain(|connection| connection.usable());
        self.changed.notify_waiters();
    }

    /// A connection's place is free.
    pub(in crate::upstream) fn connection_closed(&self) {
        self.closed.notify_waiters();
        self.changed.notify_waiters();
    }

    /// An HTTP/1.1 connection is free again.
    pub(in crate::upstream) fn give_back(&self, idle: Idle) {
        let mut state = self.state();
        if state.http1.len() < HTTP1_IDLE_MOST {
            state.http1.push(idle);
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Whether there is no place for another connection.
    pub(super) fn is_full(&self) -> bool {
        self.places.available_permits() == 0
    }

    /// A poisoned lock is taken over: each change under it is whole before anything can panic.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts a request among those who wait for a place.
struct Waiting<'s> {
    shared: &'s Shared,
    since: Instant,
    _counted: OpenStream,
}

impl<'s> Waiting<'s> {
    fn begin(shared: &'s Shared) -> Self {
        shared.state().waiting += 1;
        Self {
            shared,
            since: Instant::now(),
            _counted: OpenStream::new(&shared.counts.waiting),
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.shared.state().waiting -= 1;
        self.shared.counts.waits.observe(self.since.elapsed().as_secs_f64());
    }
}
