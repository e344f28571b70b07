//! Requests over one HTTP/2 connection.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{HeaderValue, Request, Response};
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
use crate::{
    body::RequestBody,
    gather::Gather,
    http2::{Answer, Asking, Client, Driver, Head, Http2Error, Pinger, Upload},
};

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
    client: Client,
    authority: HeaderValue,
    open: AtomicUsize,
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
    /// Greets the server, and waits until its SETTINGS are known: from then on the number of streams it allows is.
    pub(super) async fn open(
        io: Socket,
        vouched: RootsVersion,
        home: Weak<Shared>,
        url: &Target,
    ) -> Result<Arc<Self>, UpstreamError> {
        let authority = HeaderValue::from_str(url.authority().as_str()).map_err(http::Error::from)?;
        let (client, driver) = timeout(DIAL_TIMEOUT, Client::greet(io))
            .await
            .map_err(|_| UpstreamError::Timeout { url: url.to_string() })?
            .map_err(|source| UpstreamError::Greeting {
                url: url.to_string(),
                source,
            })?;
        let pinger = client.pinger();
        let connection = Arc::new(Self {
            client,
            authority,
            open: AtomicUsize::new(0),
            vouched,
            idle_since: AtomicUsize::new(0),
            started: Instant::now(),
        });
        tokio::spawn(drive(driver, pinger, Arc::downgrade(&connection), home));
        Ok(connection)
    }

    /// Whether it takes new streams at all.
    pub(super) fn usable(&self) -> bool {
        self.client.is_open()
    }

    /// The CA that the server was verified by.
    pub(super) fn vouched(&self) -> &RootsVersion {
        &self.vouched
    }

    /// How many streams the server allows at once; one at least, for it can't mean to be of no use.
    pub(super) fn limit(&self) -> usize {
        self.client.limit().max(1)
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

/// What may be done with a request that wasn't answered.
pub(super) enum Unanswered {
    /// Nothing: it may have taken effect.
    Lost,
    /// It wasn't begun, and its connection takes none any more.
    Unsent(Request<RequestBody>),
    /// The server says that it did nothing with it (RFC 9113, section 8.7), and it changes nothing and has no body.
    Refused(Request<RequestBody>),
}

/// Sends a request on a reserved place. The body is pumped beside the answer, so that an answer that comes
/// before the upload's end isn't kept waiting.
///
/// # Errors
/// If the connection or the stream fails before an answer. The request comes back where it may be sent again.
pub(super) async fn send(
    slot: Slot,
    request: Request<RequestBody>,
) -> Result<Response<UpstreamBody>, (UpstreamError, Unanswered)> {
    let connection = &slot.0.connection;
    let head = Head {
        method: request.method(),
        authority: &connection.authority,
        path: request.uri().path_and_query().map_or("/", |path| path.as_str()),
        fields: request.headers(),
    };
    if request.body().is_end_stream() {
        let answer = match connection.client.send(head) {
            Ok(answer) => answer,
            Err(error) => return Err((error.into(), Unanswered::Unsent(request))),
        };
        let mut waiting = Waiting(Some((answer, slot)));
        let answered = waiting.answer().await;
        let slot = waiting.done();
        return match answered {
            Ok(answer) => Ok(answer.map(|body| UpstreamBody::http2(body, slot, None))),
            Err(error) if error.is_unprocessed() && request.method().is_safe() => {
                Err((error.into(), Unanswered::Refused(request)))
            }
            Err(error) => Err((error.into(), Unanswered::Lost)),
        };
    }
    let (answer, upload) = match connection.client.send_head(head) {
        Ok(begun) => begun,
        Err(error) => return Err((error.into(), Unanswered::Unsent(request))),
    };
    // Cancelled when whoever waits for the answer, or reads it, goes away.
    let given_up = CancellationToken::new();
    tokio::spawn(pump(request.into_body(), upload, slot.clone(), given_up.clone()));
    let guard = given_up.drop_guard();
    match answer.await {
        Ok(answer) => Ok(answer.map(|body| UpstreamBody::http2(body, Some(slot), Some(guard)))),
        Err(error) => Err((error.into(), Unanswered::Lost)),
    }
}

/// A stream that goes on for a moment when whoever waits for its answer goes away, and with it its place.
struct Waiting(Option<(Answer, Slot)>);

impl Waiting {
    async fn answer(&mut self) -> <Answer as Future>::Output {
        match &mut self.0 {
            Some((answer, _)) => answer.await,
            None => Err(Http2Error::Dropped),
        }
    }

    /// The place is the answer's from here on.
    fn done(mut self) -> Option<Slot> {
        self.0.take().map(|(_, slot)| slot)
    }
}

impl Drop for Waiting {
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

/// Uploads a body as fast as the server takes it. A body that breaks off, or that nobody waits for any more, resets the
/// stream, so that the server doesn't take a part for the whole.
async fn pump(mut body: RequestBody, mut upload: Upload, _slot: Slot, given_up: CancellationToken) {
    let ended = body.ended();
    let whole = tokio::select! {
        whole = upload_all(&mut body, &mut upload) => whole,
        () = given_up.cancelled() => false,
        () = ended.cancelled() => false,
    };
    if !whole {
        sleep(LETTING_GO).await;
        upload.give_up();
    }
}

/// Whether all of it went up.
async fn upload_all(body: &mut RequestBody, upload: &mut Upload) -> bool {
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            _ = upload.stopped() => return false,
        };
        match frame {
            Some(Ok(frame)) => {
                let Ok(data) = frame.into_data() else { continue };
                if upload.send(data).await.is_err() {
                    return false;
                }
            }
            Some(Err(_)) => return false,
            None => return upload.finish().is_ok(),
        }
    }
}

/// Drives a connection until it ends, closes it when it has long been idle, and ends it when the server no
/// longer answers a PING while streams are open (a watch would wait for ever).
async fn drive(driver: Driver<Socket, Asking>, pinger: Pinger, connection: Weak<Connection>, home: Weak<Shared>) {
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let watchdog = async {
        let mut was_dropped = false;
        loop {
            tick.tick().await;
            let Some(connection) = connection.upgrade() else {
                // It has the time from one look to the next to take its leave.
                if std::mem::replace(&mut was_dropped, true) {
                    return "the server doesn't let it end";
                }
                continue;
            };
            match connection.idle_for() {
                Some(idle) if idle >= IDLE => {
                    // Closed for good: a place that was taken in between is kept, and the connection with it.
                    connection.client.close();
                    if connection.idle_for().is_some() {
                        return "idle";
                    }
                }
                Some(_) => {}
                None => {
                    drop(connection);
                    if timeout(TICK, pinger.ping()).await.is_err() {
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
        connection.client.close();
    }
    if let Some(home) = home.upgrade() {
        home.connection_ended();
    }
}
