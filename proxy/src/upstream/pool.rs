//! The connections of one session to its server: as many as its concurrent streams need.
//!
//! Every session has a pool of its own, so that one session's stalls, resets and refusals touch no other.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{Request, Response};
use hyper::body::Incoming;
use prometheus_client::metrics::{gauge::Gauge, histogram::Histogram};
use tokio::{
    runtime::Handle,
    sync::{Notify, Semaphore},
    time::{Instant, sleep, timeout_at},
};

use super::{
    UpstreamBody, UpstreamError,
    dial::{ALPN_ANY, ALPN_HTTP1, dial},
    direct::{self, Line},
    h1::{Idle, Lease},
    h2::{self, Connection, Slot, Unanswered},
    roots::Roots,
    socket::{Permit, Socket},
    target::Target,
};
use crate::{
    body::RequestBody,
    limits::Limits,
    metrics::{OpenStream, waits},
};

/// An idle HTTP/1.1 connection is not used again after so long: servers close theirs at about twice that.
const HTTP1_IDLE: Duration = Duration::from_secs(45);
/// How many idle HTTP/1.1 connections are kept.
const HTTP1_IDLE_MOST: usize = 32;
/// As many lines are open at once. Beyond, one HTTP/2 connection for all is the smaller burden for the server.
const LINES_MOST: usize = 32;
/// Of the connections that there may be, this part may be lines: the rest is for watches and upgrades.
const LINES_PART: usize = 4;
/// So long no line is tried again with a server that took none.
const LINES_PAUSE: Duration = Duration::from_secs(30);
/// HTTP/2 connections without a stream for so long are closed, but for one: they hold the room that their streams had, here
/// and with the server, and the next crowd has them dialled in milliseconds.
const SURPLUS_IDLE: Duration = Duration::from_secs(1);
/// What a server is expected to allow before the first connection has said: the smaller of the limits that
/// kube-apiserver has had (250, then 100).
const STREAMS_EXPECTED: usize = 100;

/// How far a pool goes.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Connections at once, those for upgrades among them.
    pub connections: usize,
    /// How long a request waits for a stream. It should be longer than a dial and its greeting may take.
    pub patience: Duration,
}

impl From<&Limits> for Bounds {
    fn from(limits: &Limits) -> Self {
        Self {
            connections: limits.max_upstream_connections as usize,
            patience: limits.queue_timeout,
        }
    }
}

/// A session's way upstream. Cheap to clone.
#[derive(Clone)]
pub struct Upstream(Arc<Shared>);

/// What the pool's connections know of it.
pub(super) struct Shared {
    url: Target,
    roots: Roots,
    state: Mutex<State>,
    /// A stream or a connection may be had.
    changed: Notify,
    /// A connection was closed.
    closed: Notify,
    /// Places for connections.
    places: Arc<Semaphore>,
    patience: Duration,
    counts: Arc<DialCounts>,
    /// Lines that are open, lent or idle.
    lines: AtomicUsize,
    lines_most: usize,
}

#[derive(Default)]
struct State {
    protocol: Option<Protocol>,
    http2: Vec<Arc<Connection>>,
    /// Somebody looks after those of them that are left over.
    surplus_minded: bool,
    http1: Vec<Idle>,
    /// Idle ones, the last used last.
    lines: Vec<Line>,
    /// Somebody looks after those that stay idle.
    lines_minded: bool,
    /// The server took no line at last.
    no_line_before: Option<Instant>,
    dialing: usize,
    waiting: usize,
    /// Streams that the newest connection allowed.
    allowed: Option<usize>,
    /// Dials that failed so far, and how the last did.
    failures: u64,
    failed: Option<Arc<UpstreamError>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Http1,
    Http2,
}

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

enum Found {
    Slot(Slot),
    Lease(Lease),
    Dial(Permit),
    Failed(Arc<UpstreamError>),
}

/// What came of a dial.
enum Dialled {
    Http2(Arc<Connection>),
    Http1(Lease),
}

impl Upstream {
    /// An empty pool; the first request dials.
    #[must_use]
    pub fn new(url: Target, roots: Roots, counts: Arc<DialCounts>, bounds: Bounds) -> Self {
        Self(Arc::new(Shared {
            url,
            roots,
            state: Mutex::default(),
            changed: Notify::new(),
            closed: Notify::new(),
            places: Arc::new(Semaphore::new(bounds.connections)),
            patience: bounds.patience,
            counts,
            lines: AtomicUsize::new(0),
            lines_most: LINES_MOST.min(bounds.connections / LINES_PART),
        }))
    }

    /// Where it goes.
    #[must_use]
    pub fn url(&self) -> &Target {
        &self.0.url
    }

    /// Sends a request and waits for the head of the answer. Redirects are not followed.
    ///
    /// A request is sent a second time only where it is certain that it wasn't begun, or where the server says
    /// that it wasn't and the request is safe and without a body.
    ///
    /// # Errors
    /// If no connection comes about, or the one that carries the request fails before an answer.
    pub async fn send(&self, mut request: Request<RequestBody>) -> Result<Response<UpstreamBody>, UpstreamError> {
        let mut was_refused = false;
        loop {
            let (error, unsent) = match self.connection().await? {
                Found::Slot(slot) => match h2::send(slot, request).await {
                    Ok(answer) => return Ok(answer),
                    Err((error, Unanswered::Unsent(request))) => (error, Some(request)),
                    Err((error, Unanswered::Refused(request))) if !was_refused => {
                        was_refused = true;
                        (error, Some(request))
                    }
                    Err((error, _)) => (error, None),
                },
                Found::Lease(lease) => match Box::pin(lease.send(&self.0.url, request)).await {
                    Ok(answer) => return Ok(answer),
                    Err(failed) => failed,
                },
                Found::Dial(permit) => match Box::pin(self.0.dial(permit)).await? {
                    Dialled::Http2(connection) => {
                        self.0.add(connection);
                        continue;
                    }
                    Dialled::Http1(lease) => {
                        let answer = Box::pin(lease.send(&self.0.url, request)).await;
                        return answer.map_err(|(error, _)| error);
                    }
                },
                Found::Failed(error) => return Err(UpstreamError::Shared(error)),
            };
            // A connection that takes none is not offered again, so that this comes to an end.
            let Some(unsent) = unsent else { return Err(error) };
            request = unsent;
            tracing::debug!(%error, "an upstream connection took no request; on another");
        }
    }

    /// Sends a request that will be answered soon, and waits for the head of the answer: over a kept-alive HTTP/1.1
    /// connection where that can be, which costs less than a stream of HTTP/2; otherwise as [`Self::send`] does.
    ///
    /// It is sent a second time, on a new connection, only where it changes nothing, has no body, and the server closed
    /// the connection, which had been idle, without a word.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn send_short(&self, mut request: Request<RequestBody>) -> Result<Response<UpstreamBody>, UpstreamError> {
        let mut line = if direct::carries(&request) {
            match Shared::idle_line(&self.0) {
                Some(line) => Some(line),
                None => Box::pin(self.new_line()).await?,
            }
        } else {
            None
        };
        while let Some(found) = line {
            request = match found.send(&self.0.url, request).await {
                Ok(answer) => return Ok(answer.map(UpstreamBody::direct)),
                Err((error, None)) => return Err(error.into()),
                Err((error, Some(unsent))) => {
                    tracing::debug!(%error, "an idle upstream connection was closed; on another");
                    unsent
                }
            };
            line = Box::pin(self.new_line()).await?;
        }
        Box::pin(self.send(request)).await
    }

    /// Opens a line, where there may be one more.
    async fn new_line(&self) -> Result<Option<Line>, UpstreamError> {
        let shared = &self.0;
        if shared.state().no_line_before.is_some_and(|time| Instant::now() < time) {
            return Ok(None);
        }
        let Some(place) = LinePlace::take(shared) else {
            return Ok(None);
        };
        let Some(permit) = Shared::permit(shared) else {
            return Ok(None);
        };
        let (tls, vouched) = shared.roots.client_config(&ALPN_HTTP1).await?;
        let io = match dial(&shared.url, tls).await {
            Ok(io) => Socket::new(io, permit),
            // It may speak HTTP/2 alone, and then says so in TLS.
            Err(error @ UpstreamError::Tls { .. }) => {
                tracing::debug!(%error, "no HTTP/1.1 upstream for a while");
                shared.state().no_line_before = Some(Instant::now() + LINES_PAUSE);
                return Ok(None);
            }
            Err(error) => {
                shared.counts.of(None).fetch_add(1, Ordering::Relaxed);
                return Err(error);
            }
        };
        shared.counts.of(Some(Protocol::Http1)).fetch_add(1, Ordering::Relaxed);
        Ok(Some(Line::new(io, vouched, place)))
    }

    /// Sends a request that asks for an upgrade, on an HTTP/1.1 connection of its own.
    ///
    /// # Errors
    /// If the connection doesn't come about or fails before an answer.
    pub async fn send_upgrade(&self, request: Request<RequestBody>) -> Result<Response<Incoming>, UpstreamError> {
        let permit = self.place().await?;
        let dialled = async {
            let (tls, vouched) = self.0.roots.client_config(&ALPN_HTTP1).await?;
            let socket = Socket::new(dial(&self.0.url, tls).await?, permit);
            Lease::open(socket, vouched, Weak::new()).await
        };
        let lease = dialled.await;
        let spoken = lease.as_ref().ok().map(|_| Protocol::Http1);
        self.0.counts.of(spoken).fetch_add(1, Ordering::Relaxed);
        lease?.send_upgrade(&self.0.url, request).await
    }

    /// Waits for a place for one more connection. One that nobody uses makes way.
    async fn place(&self) -> Result<Permit, UpstreamError> {
        let patience = Instant::now() + self.0.patience;
        loop {
            let closed = self.0.closed.notified();
            tokio::pin!(closed);
            closed.as_mut().enable();
            if let Some(permit) = Shared::permit(&self.0) {
                return Ok(permit);
            }
            self.0.make_way();
            if timeout_at(patience, closed).await.is_err() {
                return Err(UpstreamError::Exhausted);
            }
        }
    }

    /// Finds a place as a request does, and gives it back: what that alone takes is measured by it.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub async fn check_out(&self) -> Result<(), UpstreamError> {
        self.connection().await.map(drop)
    }

    /// Finds a place on a connection, or waits for one to come about.
    async fn connection(&self) -> Result<Found, UpstreamError> {
        let mut failures_before = None;
        match Shared::look(&self.0, &mut failures_before) {
            Some(found) => Ok(found),
            // Boxed, as all is here that few requests need: each carries its future about.
            None => Box::pin(self.wait(failures_before)).await,
        }
    }

    async fn wait(&self, mut failures_before: Option<u64>) -> Result<Found, UpstreamError> {
        let patience = Instant::now() + self.0.patience;
        let _waiting = Waiting::begin(&self.0);
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(found) = Shared::look(&self.0, &mut failures_before) {
                return Ok(found);
            }
            if timeout_at(patience, changed).await.is_err() {
                return Err(UpstreamError::Exhausted);
            }
        }
    }
}

impl Shared {
    /// Looks for a place; where there is none yet, starts as many dials as those who wait will need.
    ///
    /// `failures_before` is the count of failed dials when the request began to wait. Once a dial has failed since, it
    /// starts no more, but makes do with what others get.
    fn look(this: &Arc<Self>, failures_before: &mut Option<u64>) -> Option<Found> {
        let home = Arc::downgrade(this);
        let mut state = this.state();
        if state.protocol == Some(Protocol::Http1) {
            let now = Instant::now();
            state
                .http1
                .retain(|idle| idle.usable(now, HTTP1_IDLE) && this.roots.are(idle.vouched()));
            return match state.http1.pop() {
                Some(idle) => Some(Found::Lease(idle.lend(home))),
                None => Self::permit(this).map(Found::Dial),
            };
        }
        state
            .http2
            .retain(|connection| connection.usable() && this.roots.are(connection.vouched()));
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
            let Some(permit) = Self::permit(this) else {
                if state.lines.pop().is_none() {
                    break;
                }
                continue;
            };
            state.dialing += 1;
            // In a task of its own, so that a client that goes away doesn't undo the dial for the others.
            tokio::spawn(Self::add_connection(home.clone(), permit));
        }
        None
    }

    /// The line that was used last, so that those that aren't needed grow old.
    fn idle_line(this: &Arc<Self>) -> Option<Line> {
        let now = Instant::now();
        loop {
            let mut line = this.state().lines.pop()?;
            if line.idle_for(now) < HTTP1_IDLE && this.roots.are(line.vouched()) && line.is_quiet() {
                return Some(line);
            }
        }
    }

    /// A line is free again. It isn't kept where others wait for a connection.
    pub(super) fn give_back_line(self: &Arc<Self>, line: Line) {
        if self.places.available_permits() == 0 {
            return;
        }
        let mut state = self.state();
        state.lines.push(line);
        if !std::mem::replace(&mut state.lines_minded, true) {
            drop(state);
            tokio::spawn(Self::mind_lines(Arc::downgrade(self)));
        }
    }

    /// Closes lines that have long been idle, as long as there are any.
    async fn mind_lines(home: Weak<Self>) {
        loop {
            sleep(HTTP1_IDLE).await;
            let Some(this) = home.upgrade() else { return };
            let now = Instant::now();
            let mut state = this.state();
            state.lines.retain(|line| line.idle_for(now) < HTTP1_IDLE);
            if state.lines.is_empty() {
                state.lines_minded = false;
                return;
            }
        }
    }

    /// Closes a connection that nobody uses, if there is one.
    fn make_way(&self) {
        let mut state = self.state();
        if state.http1.pop().is_none() {
            state.lines.pop();
        }
    }

    fn permit(this: &Arc<Self>) -> Option<Permit> {
        let permit = Arc::clone(&this.places).try_acquire_owned().ok()?;
        Some(Permit::new(
            permit,
            Arc::downgrade(this),
            OpenStream::new(&this.counts.open),
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
    async fn dial(self: &Arc<Self>, permit: Permit) -> Result<Dialled, UpstreamError> {
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
        self.counts.of(spoken).fetch_add(1, Ordering::Relaxed);
        dialled
    }

    fn add(&self, connection: Arc<Connection>) {
        let mut state = self.state();
        state.allowed = Some(connection.limit());
        state.protocol = Some(Protocol::Http2);
        state.http2.push(connection);
        drop(state);
        self.changed.notify_waiters();
    }

    /// A stream has closed; `was_last` if it was the last of its connection.
    pub(super) fn place_freed(self: &Arc<Self>, was_last: bool) {
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
    pub(super) fn connection_ended(&self) {
        self.state().http2.retain(|connection| connection.usable());
        self.changed.notify_waiters();
    }

    /// A connection's place is free.
    pub(super) fn connection_closed(&self) {
        self.closed.notify_waiters();
        self.changed.notify_waiters();
    }

    /// An HTTP/1.1 connection is free again.
    pub(super) fn give_back(&self, idle: Idle) {
        let mut state = self.state();
        if state.http1.len() < HTTP1_IDLE_MOST {
            state.http1.push(idle);
        }
        drop(state);
        self.changed.notify_one();
    }

    /// A poisoned lock is taken over: each change under it is whole before anything can panic.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DialCounts {
    /// Each count by name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        [("http2", &self.http2), ("http1", &self.http1), ("failed", &self.failed)]
            .map(|(name, count)| (name, count.load(Ordering::Relaxed)))
            .into_iter()
    }

    fn of(&self, spoken: Option<Protocol>) -> &AtomicU64 {
        match spoken {
            Some(Protocol::Http2) => &self.http2,
            Some(Protocol::Http1) => &self.http1,
            None => &self.failed,
        }
    }
}

/// A place among the lines, given back on drop.
pub(super) struct LinePlace(Weak<Shared>);

impl LinePlace {
    fn take(shared: &Arc<Shared>) -> Option<Self> {
        let most = shared.lines_most;
        let taken = shared.lines.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| {
            (open < most).then_some(open + 1)
        });
        taken.is_ok().then(|| Self(Arc::downgrade(shared)))
    }

    /// The pool that it is in.
    pub(super) fn home(&self) -> Option<Arc<Shared>> {
        self.0.upgrade()
    }
}

impl Drop for LinePlace {
    fn drop(&mut self) {
        if let Some(home) = self.home() {
            home.lines.fetch_sub(1, Ordering::Relaxed);
        }
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
