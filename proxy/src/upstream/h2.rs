//! Requests over one HTTP/2 connection.
//!
//! The `h2` crate is used as it is, below hyper's client, because the pool must know how many streams the server
//! allows: hyper's client doesn't tell, and lets the surplus wait inside one connection.

use std::{
    future::poll_fn,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use h2::{
    Ping, PingPong, Reason,
    client::{Builder, Connection as Driver, SendRequest},
};
use http::{Request, Response, Uri, Version, header, uri::Scheme};
use http_body::Body;
use http_body_util::BodyExt;
use tokio::{
    runtime::Handle,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    UpstreamBody, UpstreamError, dial::DIAL_TIMEOUT, pool::Shared, roots::RootsVersion, socket::Socket, target::Target,
};
use crate::{body::RequestBody, gather::Gather};

/// What one stream may hold that its reader hasn't taken. The bound on memory for each open answer.
const STREAM_WINDOW: u32 = 256 * 1024;
/// The connection's window is left open as far as RFC 9113 allows (section 6.9.1), so that one slow reader holds
/// up its own stream and no other.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;
const MAX_FRAME: u32 = 64 * 1024;
const SEND_BUFFER: usize = 64 * 1024;
/// Streams that we reset and may still hear of. A client that gives up many large answers at once is no fault of the
/// server's.
const RESETS_REMEMBERED: usize = 1_000;
/// How long a stream that nobody waits for any more stays open where its answer hasn't begun. A server counts the
/// streams that are taken back before it has looked at them, and ends the connection of whoever brings many (CVE-2023-44487),
/// with what others of the session have on it. This gives it the time to look.
const LETTING_GO: Duration = Duration::from_millis(250);
/// How often a connection is looked at: is it idle, does the server still answer.
const TICK: Duration = Duration::from_secs(15);
/// A connection with no stream for so long is closed.
const IDLE: Duration = Duration::from_secs(90);

/// One connection, shared by its streams.
pub(super) struct Connection {
    sender: SendRequest<Bytes>,
    open: AtomicUsize,
    /// Set when the server says GOAWAY or the connection ends: no new stream.
    closed: AtomicBool,
    /// The CA that the server was verified by.
    vouched: RootsVersion,
    /// Milliseconds since `started` when the last stream closed.
    idle_since: AtomicUsize,
    started: Instant,
}

/// A place among the streams that the server allows, given back on drop.
#[derive(Clone)]
pub(super) struct Slot(Arc<Place>);

struct Place {
    connection: Arc<Connection>,
    home: Weak<Shared>,
}

impl Connection {
    /// Greets the server, and waits until its SETTINGS are known: from then on the number of streams it allows
    /// is. (It must send SETTINGS before anything else, so an answered PING says that they came.)
    pub(super) async fn open(
        io: Socket,
        vouched: RootsVersion,
        home: Weak<Shared>,
        url: &Target,
    ) -> Result<Arc<Self>, UpstreamError> {
        let handshake = async {
            let (sender, mut driver) = Builder::new()
                .enable_push(false)
                .initial_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_frame_size(MAX_FRAME)
                .max_send_buffer_size(SEND_BUFFER)
                .max_concurrent_reset_streams(RESETS_REMEMBERED)
                .handshake::<_, Bytes>(io)
                .await?;
            let Some(mut ping) = driver.ping_pong() else {
                return Err(Reason::INTERNAL_ERROR.into());
            };
            tokio::select! {
                ended = &mut driver => return Err(ended.err().unwrap_or_else(|| Reason::NO_ERROR.into())),
                answered = ping.ping(Ping::opaque()) => answered?,
            };
            Ok((sender, driver, ping))
        };
        let (sender, driver, ping) = timeout(DIAL_TIMEOUT, handshake)
            .await
            .map_err(|_| UpstreamError::Timeout { url: url.to_string() })?
            .map_err(|source: ::h2::Error| UpstreamError::Greeting {
                url: url.to_string(),
                source,
            })?;
        let connection = Arc::new(Self {
            sender,
            open: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            vouched,
            idle_since: AtomicUsize::new(0),
            started: Instant::now(),
        });
        tokio::spawn(drive(driver, ping, Arc::downgrade(&connection), home));
        Ok(connection)
    }

    /// Whether it takes new streams at all.
    pub(super) fn usable(&self) -> bool {
        !self.closed.load(Ordering::SeqCst)
    }

    /// The CA that the server was verified by.
    pub(super) fn vouched(&self) -> &RootsVersion {
        &self.vouched
    }

    /// How many streams the server allows at once; one at least, for it can't mean to be of no use.
    pub(super) fn limit(&self) -> usize {
        self.sender.current_max_send_streams().max(1)
    }

    /// Takes a place, if there is one.
    pub(super) fn reserve(self: &Arc<Self>, home: &Weak<Shared>) -> Option<Slot> {
        let limit = self.limit();
        let taken = self.open.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |open| {
            (open < limit).then_some(open + 1)
        });
        // Looked at after the place is taken: whoever closes it looks in the other order, so that one sees the other.
        let slot = taken.is_ok().then(|| {
            Slot(Arc::new(Place {
                connection: Arc::clone(self),
                home: home.clone(),
            }))
        });
        slot.filter(|_| self.usable())
    }

    /// How long it has been without a stream, if it is.
    pub(super) fn idle_for(&self) -> Option<Duration> {
        if self.open.load(Ordering::SeqCst) > 0 {
            return None;
        }
        let since = Duration::from_millis(self.idle_since.load(Ordering::Acquire) as u64);
        Some(self.started.elapsed().saturating_sub(since))
    }
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Slot")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let idle_since = usize::try_from(self.connection.started.elapsed().as_millis()).unwrap_or(usize::MAX);
        self.connection.idle_since.store(idle_since, Ordering::Release);
        let open = self.connection.open.fetch_sub(1, Ordering::SeqCst);
        if let Some(home) = self.home.upgrade() {
            home.place_freed(open == 1);
        }
    }
}

/// Sends a request on a reserved place. The body is pumped beside the answer, so that an answer that comes
/// before the upload's end isn't kept waiting.
///
/// # Errors
/// If the connection or the stream fails before an answer. The request comes back where nothing of it was sent: the
/// server had said GOAWAY, or the connection had ended.
pub(super) async fn send(
    slot: Slot,
    url: &Target,
    request: Request<RequestBody>,
) -> Result<Response<UpstreamBody>, (UpstreamError, Option<Request<RequestBody>>)> {
    let connection = &slot.0.connection;
    let mut sender = match connection.sender.clone().ready().await {
        Ok(sender) => sender,
        Err(error) => {
            connection.closed.store(true, Ordering::SeqCst);
            return Err((error.into(), Some(request)));
        }
    };
    let (head, body) = request.into_parts();
    let mut parts = Request::new(()).into_parts().0;
    parts.method = head.method;
    parts.version = Version::HTTP_2;
    parts.uri = absolute(url, &head.uri).map_err(|error| (error.into(), None))?;
    parts.headers = head.headers;
    parts.headers.remove(header::HOST);

    let ends_here = body.is_end_stream();
    let sent = sender.send_request(Request::from_parts(parts, ()), ends_here);
    let (answer, stream) = sent.map_err(|error| (error.into(), None))?;
    drop(sender);
    let mut unanswered = None;
    // Cancelled when whoever waits for the answer, or reads it, goes away.
    let upload = if ends_here {
        unanswered = Some(Unanswered::new(stream, slot.clone()));
        None
    } else {
        let given_up = CancellationToken::new();
        tokio::spawn(pump(body, stream, slot.clone(), given_up.clone()));
        Some(given_up.drop_guard())
    };
    let answer = answer.await;
    if let Some(unanswered) = unanswered {
        unanswered.answered();
    }
    let (head, stream) = answer.map_err(|error| (error.into(), None))?.into_parts();
    Ok(Response::from_parts(head, UpstreamBody::http2(stream, slot, upload)))
}

/// A stream that goes on for a moment when whoever waits for its answer goes away, and with it its place.
struct Unanswered(Option<(::h2::SendStream<Bytes>, Slot)>);

impl Unanswered {
    fn new(stream: ::h2::SendStream<Bytes>, slot: Slot) -> Self {
        Self(Some((stream, slot)))
    }

    /// From here on the reader of the answer holds the stream.
    fn answered(mut self) {
        self.0 = None;
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        // As the runtime ends there is nothing to wait with, and nothing to wait for.
        if let (Some(held), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            runtime.spawn(async move {
                sleep(LETTING_GO).await;
                drop(held);
            });
        }
    }
}

fn absolute(url: &Target, uri: &Uri) -> Result<Uri, http::Error> {
    let mut builder = Uri::builder().scheme(Scheme::HTTPS).authority(url.authority().clone());
    if let Some(path_and_query) = uri.path_and_query() {
        builder = builder.path_and_query(path_and_query.clone());
    }
    builder.build()
}

/// Uploads a body as fast as the server takes it. A body that breaks off, or that nobody waits for any more, resets the
/// stream, so that the server doesn't take a part for the whole.
async fn pump(mut body: RequestBody, mut stream: ::h2::SendStream<Bytes>, _slot: Slot, given_up: CancellationToken) {
    let ended = body.ended();
    let whole = tokio::select! {
        whole = upload_all(&mut body, &mut stream) => whole,
        () = given_up.cancelled() => false,
        () = ended.cancelled() => false,
    };
    if !whole {
        sleep(LETTING_GO).await;
        stream.send_reset(Reason::CANCEL);
    }
}

/// Whether all of it went up.
async fn upload_all(body: &mut RequestBody, stream: &mut ::h2::SendStream<Bytes>) -> bool {
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            _ = poll_fn(|cx| stream.poll_reset(cx)) => return false,
        };
        match frame {
            Some(Ok(frame)) => {
                let Ok(data) = frame.into_data() else { continue };
                if upload(stream, data).await.is_err() {
                    return false;
                }
            }
            Some(Err(_)) => return false,
            None => return stream.send_data(Bytes::new(), true).is_ok(),
        }
    }
}

async fn upload(stream: &mut ::h2::SendStream<Bytes>, mut data: Bytes) -> Result<(), ::h2::Error> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        match poll_fn(|cx| stream.poll_capacity(cx)).await {
            Some(granted) => {
                let granted = granted?.min(data.len());
                stream.send_data(data.split_to(granted), false)?;
            }
            None => return Err(Reason::STREAM_CLOSED.into()),
        }
    }
    Ok(())
}

/// Drives a connection until it ends, closes it when it has long been idle, and ends it when the server no
/// longer answers a PING while streams are open (a watch would wait for ever).
async fn drive(driver: Driver<Socket, Bytes>, mut ping: PingPong, connection: Weak<Connection>, home: Weak<Shared>) {
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let watchdog = async {
        loop {
            tick.tick().await;
            let Some(connection) = connection.upgrade() else {
                continue;
            };
            match connection.idle_for() {
                Some(idle) if idle >= IDLE => {
                    // Closed first, looked at again after: a place taken in between is kept.
                    connection.closed.store(true, Ordering::SeqCst);
                    if connection.idle_for().is_some() {
                        return "idle";
                    }
                    connection.closed.store(false, Ordering::SeqCst);
                }
                Some(_) => {}
                None => {
                    drop(connection);
                    if !matches!(timeout(TICK, ping.ping(Ping::opaque())).await, Ok(Ok(_))) {
                        return "no answer to a PING";
                    }
                }
            }
        }
    };
    tokio::select! {
        ended = Gather::new(driver) => match ended {
            Ok(()) => tracing::debug!("an upstream connection closed"),
            Err(error) => tracing::debug!(%error, "an upstream connection failed"),
        },
        why = watchdog => tracing::debug!(why, "an upstream connection is closed"),
    }
    if let Some(connection) = connection.upgrade() {
        connection.closed.store(true, Ordering::SeqCst);
    }
    if let Some(home) = home.upgrade() {
        home.connection_ended();
    }
}

/// Whether the server says that it did nothing with the request, so that sending it again is safe for it
/// (RFC 9113, section 8.7).
pub(super) fn refused_unprocessed(error: &UpstreamError) -> bool {
    matches!(error, UpstreamError::Http2(error)
        if error.is_remote() && (error.is_go_away() || error.reason() == Some(Reason::REFUSED_STREAM)))
}

/// A copy of a request that may be sent twice: it has no body and changes nothing.
pub(super) fn repeatable(request: &Request<RequestBody>) -> Option<Request<RequestBody>> {
    (request.method().is_safe() && request.body().is_end_stream()).then(|| {
        let mut copy = Request::new(RequestBody::empty());
        copy.method_mut().clone_from(request.method());
        copy.uri_mut().clone_from(request.uri());
        copy.headers_mut().clone_from(request.headers());
        copy
    })
}
