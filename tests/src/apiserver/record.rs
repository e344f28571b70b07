//! The memory of every request that arrived, for tests to assert on: what was sent, byte for byte as far as HTTP
//! keeps it, who it was taken for, and how it ended. It decides nothing.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, request::Parts};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{
    auth::UserInfo,
    body::{Body, BoxError},
    sync::lock,
};

/// How much of a request's body is kept.
const BODY_PREFIX: usize = 4096;
/// How many requests are kept; the oldest go first.
const KEPT: usize = 50_000;
/// How long changes are gathered before those who wait are told.
const COALESCE: Duration = Duration::from_millis(5);

/// One request, as it arrived and as it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Recorded {
    /// Counts up from 1, in the order of arrival.
    pub id: u64,
    /// The connection it came on.
    pub connection: u64,
    /// When it arrived.
    pub time: jiff::Timestamp,
    /// The client's address.
    pub peer: SocketAddr,
    /// The address that it was sent to.
    pub local: SocketAddr,
    /// The method.
    pub method: String,
    /// Path and query as sent.
    pub uri: String,
    /// `:authority` of HTTP/2; `None` on HTTP/1.1, where `Host` is among the headers.
    pub authority: Option<String>,
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub version: String,
    /// All headers, names in lower case, in their order, repeated ones repeated.
    pub headers: Vec<(String, String)>,
    /// The body as far as it was read.
    pub body: RecordedBody,
    /// Who it was served as; `None` when authentication failed.
    pub user: Option<UserInfo>,
    /// Who sent it, when that isn't who it was served as.
    pub impersonator: Option<UserInfo>,
    /// Requests open on its connection, this one included, when it arrived.
    pub streams: usize,
    /// The status code that was answered; `None` until then.
    pub code: Option<u16>,
    /// Bytes of body answered so far; for an upgrade, none are counted.
    pub response_bytes: u64,
    /// True once its answer was sent to the end, or abandoned.
    pub ended: bool,
}

/// What is kept of a request's body.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordedBody {
    /// The first bytes, anything that isn't UTF-8 replaced.
    pub prefix: String,
    /// How many bytes there were.
    pub length: u64,
    /// Trailers, when some came.
    pub trailers: Vec<(String, String)>,
    /// True once the end was seen.
    pub complete: bool,
}

impl Recorded {
    /// The first header of that name (in lower case).
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers(name).next()
    }

    /// All headers of that name (in lower case).
    pub fn headers<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> {
        self.headers
            .iter()
            .filter(move |(own, _)| own == name)
            .map(|(_, value)| value.as_str())
    }

    /// The path without the query.
    #[must_use]
    pub fn path(&self) -> &str {
        self.uri.split('?').next().unwrap_or_default()
    }
}

/// The connection as a record needs to know it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Origin {
    pub(crate) connection: u64,
    pub(crate) peer: SocketAddr,
    pub(crate) local: SocketAddr,
}

/// All requests, newest last.
#[derive(Debug)]
pub(crate) struct Recorder {
    state: Mutex<State>,
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    entries: VecDeque<Arc<Mutex<Recorded>>>,
}

impl Recorder {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::default(),
            changes: watch::Sender::new(0),
        }
    }

    /// Notes a request that has just arrived.
    pub(crate) fn begin(self: &Arc<Self>, origin: Origin, streams: usize, parts: &Parts) -> Record {
        let mut state = lock(&self.state);
        state.next += 1;
        let entry = Arc::new(Mutex::new(Recorded {
            id: state.next,
            connection: origin.connection,
            time: jiff::Timestamp::now(),
            peer: origin.peer,
            local: origin.local,
            method: parts.method.to_string(),
            uri: parts
                .uri
                .path_and_query()
                .map_or_else(|| parts.uri.to_string(), ToString::to_string),
            authority: parts.uri.authority().map(ToString::to_string),
            version: format!("{:?}", parts.version),
            headers: raw(&parts.headers),
            body: RecordedBody::default(),
            user: None,
            impersonator: None,
            streams,
            code: None,
            response_bytes: 0,
            ended: false,
        }));
        state.entries.push_back(entry.clone());
        if state.entries.len() > KEPT {
            state.entries.pop_front();
        }
        drop(state);
        self.changed();
        Record {
            entry,
            recorder: self.clone(),
        }
    }

    /// Those that came after the one with that id.
    pub(crate) fn after(&self, id: u64) -> Vec<Recorded> {
        let entries: Vec<_> = lock(&self.state).entries.iter().cloned().collect();
        entries
            .iter()
            .map(|entry| lock(entry).clone())
            .filter(|recorded| recorded.id > id)
            .collect()
    }

    /// Forgets all, but goes on counting.
    pub(crate) fn clear(&self) {
        lock(&self.state).entries.clear();
        self.changed();
    }

    /// A number that grows with every change, and when it does.
    pub(crate) fn revision(&self) -> u64 {
        *self.changes.borrow()
    }

    /// Waits until something has changed since that revision, or the time is over.
    pub(crate) async fn wait(&self, revision: u64, limit: Duration) {
        let mut changes = self.changes.subscribe();
        // Over time or the end of the server: either way the caller gets what there is.
        let _ = tokio::time::timeout(limit, changes.wait_for(|now| *now > revision)).await;
        // Many changes come together; the caller reads all requests for each answer.
        tokio::time::sleep(COALESCE).await;
    }

    fn changed(&self) {
        self.changes.send_modify(|revision| *revision += 1);
    }
}

/// The pen for one request.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    entry: Arc<Mutex<Recorded>>,
    recorder: Arc<Recorder>,
}

impl Record {
    pub(crate) fn identity(&self, user: &UserInfo, impersonator: Option<&UserInfo>) {
        self.update(|entry| {
            entry.user = Some(user.clone());
            entry.impersonator = impersonator.cloned();
        });
    }

    pub(crate) fn code(&self, code: http::StatusCode) {
        self.update(|entry| entry.code = Some(code.as_u16()));
    }

    fn update(&self, change: impl FnOnce(&mut Recorded)) {
        change(&mut lock(&self.entry));
        self.recorder.changed();
    }

    /// A request's body that is noted while it is read.
    pub(crate) fn request_body(&self, body: Incoming) -> RequestBody {
        RequestBody {
            body,
            record: self.clone(),
            kept: Vec::new(),
        }
    }
}

fn raw(headers: &HeaderMap) -> Vec<(String, String)> {
    headers
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect()
}

/// A request's body, noted while it is read.
#[derive(Debug)]
pub(crate) struct RequestBody {
    body: Incoming,
    record: Record,
    kept: Vec<u8>,
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let this = &mut *self;
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    let before = this.kept.len();
                    let room = BODY_PREFIX - before;
                    this.kept.extend_from_slice(&data[..data.len().min(room)]);
                    let length = data.len() as u64;
                    let kept = &this.kept;
                    this.record.update(|entry| {
                        entry.body.length += length;
                        if kept.len() > before {
                            entry.body.prefix = String::from_utf8_lossy(kept).into_owned();
                        }
                    });
                }
                if let Some(trailers) = frame.trailers_ref() {
                    let trailers = raw(trailers);
                    this.record.update(|entry| entry.body.trailers = trailers);
                }
                if this.body.is_end_stream() {
                    this.record.update(|entry| entry.body.complete = true);
                }
            }
            None => this.record.update(|entry| entry.body.complete = true),
            Some(Err(_)) => {}
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer's body that is counted while it is sent; its end, or being dropped, ends the record.
pub(crate) struct ResponseBody {
    body: Body,
    record: Record,
    bytes: u64,
    /// Whatever must live as long as the answer is being sent.
    _hold: Box<dyn Send>,
}

impl ResponseBody {
    pub(crate) fn new(body: Body, record: Record, hold: impl Send + 'static) -> Self {
        Self {
            body,
            record,
            bytes: 0,
            _hold: Box::new(hold),
        }
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            self.bytes += data.len() as u64;
            // Without waking those who wait: a gigabyte goes by here.
            lock(&self.record.entry).response_bytes = self.bytes;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for ResponseBody {
    fn drop(&mut self) {
        self.record.update(|entry| entry.ended = true);
    }
}
