//! What is known of a connection's streams and windows, under one lock: whoever holds a stream writes frames to be sent, the
//! driver tells what came, and each wakes the other. It is the same whichever side begins streams.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    hash::{BuildHasherDefault, Hasher},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    task::Waker,
};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use tokio::sync::Notify;

use super::{
    ErrorCode, Fault, Http2Error,
    frame::{FIRST_WINDOW, MAX_SENT, MAX_WINDOW, put_reset, put_window_update},
    hpack::encoder::Encoder,
    parser::{Peer, Settings},
    stream::{Came, Stream, keep},
};

/// What a client may send on all its streams that isn't read yet, in bytes: enough for a few uploads at once.
pub(super) const HELD: u32 = 4 * 1024 * 1024;
/// In so many pieces at most: each takes room besides its bytes.
const MOST_WAITING: usize = 16 * 1024;
/// Pieces without a byte that a client may send.
const MOST_EMPTY: u32 = 1024;
/// Streams on which a client may break a rule.
const MOST_FAULTS: u32 = 64;
/// As many streams are remembered that we have reset.
const RESETS_KNOWN: usize = 64;
/// A table of more streams is let go of when the last of them has ended.
const STREAMS_KEPT: usize = 32;

/// A connection, as its streams and its driver have it.
pub(crate) struct Shared {
    state: Mutex<State>,
    /// How many streams the peer allows at once.
    pub(super) limit: AtomicU32,
    /// New streams may be begun.
    pub(super) is_open: AtomicBool,
    /// The peer's SETTINGS have come.
    pub(super) is_greeted: AtomicBool,
    /// The last PING that the peer has answered, and who waits for that.
    pub(super) pongs: AtomicU64,
    pub(super) ponged: Notify,
}

pub(crate) struct State {
    /// To be sent.
    pub(super) out: BytesMut,
    pub(super) driver: Option<Waker>,
    /// No new stream will come from us.
    pub(super) is_done: bool,
    pub(super) pings: u64,
    pub(super) encoder: Encoder,
    pub(super) streams: HashMap<u32, Stream, BuildHasherDefault<IdHasher>>,
    /// The first that the client has not begun.
    pub(super) next: u32,
    peer: Peer,
    /// What the peer allows: bytes of all streams, of a stream at first, and in a frame.
    pub(super) window: i64,
    pub(super) first_window: u32,
    pub(super) max_frame: u32,
    /// Streams that have something to send, and wait for the connection's window or for room in `out`, in their turn.
    pub(super) queue: VecDeque<u32>,
    /// How the connection ended.
    pub(super) ended: Option<Http2Error>,
    /// What the peer may send, in bytes, and what of it was used and isn't any more.
    allowed: i64,
    free: u32,
    /// Pieces of bodies that wait for their readers.
    waiting: usize,
    /// No stream after this one is taken, and the peer was told.
    pub(super) left_at: Option<u32>,
    /// How often the peer broke a stream's rules, and sent what does nothing.
    pub(super) faults: u32,
    empty: u32,
    /// The streams that we have reset of late: what was on its way for them is no fault.
    resets: VecDeque<u32>,
}

/// Ids are the connection's own, one after the other: nobody chooses them to collide.
#[derive(Debug, Default)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, id: u32) {
        // Odd, with its bits well spread: 2^64 divided by the golden ratio.
        self.0 = (self.0 ^ u64::from(id)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// One hold of a stream. When all are dropped before its end, the peer is told that it isn't wanted.
#[derive(Debug)]
pub(super) struct Hold {
    pub(super) shared: Arc<Shared>,
    pub(super) id: u32,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.shared.state().release(self.id);
    }
}

/// What a reader finds.
#[derive(Debug)]
pub(super) enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
}

impl fmt::Debug for Shared {
    /// Credentials are in what is to be sent, and in the table of what was.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("limit", &self.limit)
            .field("is_open", &self.is_open)
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// `window` is how much the peer may send on all streams together.
    pub(super) fn new(peer: Peer, window: u32) -> Self {
        Self {
            state: Mutex::new(State {
                out: BytesMut::new(),
                driver: None,
                is_done: false,
                pings: 0,
                encoder: Encoder::new(),
                streams: HashMap::default(),
                next: 1,
                peer,
                window: i64::from(FIRST_WINDOW),
                first_window: FIRST_WINDOW,
                max_frame: MAX_SENT,
                queue: VecDeque::new(),
                ended: None,
                allowed: i64::from(window),
                free: 0,
                waiting: 0,
                left_at: None,
                faults: 0,
                empty: 0,
                resets: VecDeque::new(),
            }),
            limit: AtomicU32::new(u32::MAX),
            is_open: AtomicBool::new(true),
            is_greeted: AtomicBool::new(false),
            pongs: AtomicU64::new(0),
            ponged: Notify::new(),
        }
    }

    /// A poisoned lock is taken over: it is the connection's own, and ends with it.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// No stream is begun any more.
    pub(super) fn close(&self) {
        self.is_open.store(false, Ordering::SeqCst);
    }
}

impl State {
    /// Has the driver send what is in `out`. It is woken once for all that is written before its turn.
    pub(super) fn wake_driver(&mut self) {
        if let Some(driver) = self.driver.take() {
            driver.wake();
        }
    }

    /// One of a stream's holders lets go. With the last of them it ends, and the peer is told unless it is over.
    pub(super) fn release(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        stream.holders -= 1;
        if stream.holders > 0 {
            return;
        }
        if !stream.is_over() {
            let code = match self.peer {
                Peer::Server => ErrorCode::CANCEL,
                // Answered before it had said all (RFC 9113, section 8.1).
                Peer::Client if stream.is_sent => ErrorCode::NO_ERROR,
                Peer::Client => ErrorCode::INTERNAL_ERROR,
            };
            self.put_reset(id, code);
        }
        if let Some(stream) = self.streams.remove(&id) {
            let unread: usize = stream.data.iter().map(Bytes::len).sum();
            self.waiting -= stream.data.len();
            self.make_free(unread);
        }
        self.leave_queue(id);
        if self.streams.is_empty() {
            if self.streams.capacity() > STREAMS_KEPT {
                self.streams.shrink_to_fit();
            }
            if self.is_over() {
                self.wake_driver();
            }
        }
    }

    /// So many bytes of the connection's window are free again.
    fn make_free(&mut self, bytes: usize) {
        if self.peer == Peer::Server {
            // They were when they came: one slow reader holds up its own stream alone.
            return;
        }
        self.free += u32::try_from(bytes).unwrap_or(u32::MAX);
        if self.free >= HELD / 2 {
            self.tell_free();
            self.wake_driver();
        }
    }

    fn tell_free(&mut self) {
        let free = std::mem::take(&mut self.free);
        self.allowed += i64::from(free);
        put_window_update(&mut self.out, 0, free);
    }

    /// So many bytes came, on whichever stream.
    ///
    /// # Errors
    /// Where they may not.
    fn came(&mut self, bytes: u32) -> Result<(), Fault> {
        self.allowed -= i64::from(bytes);
        if self.allowed < 0 {
            return Err(Fault::new(ErrorCode::FLOW_CONTROL_ERROR, "more comes than may"));
        }
        if self.peer == Peer::Server {
            self.free += bytes;
            if self.free >= MAX_WINDOW / 2 {
                self.tell_free();
            }
        }
        Ok(())
    }

    /// Ends a stream for all who hold it.
    pub(super) fn give_up(&mut self, id: u32) {
        let mut woken = Vec::new();
        if let Some(stream) = self.streams.get_mut(&id)
            && stream.fail(Http2Error::GivenUp, &mut woken)
        {
            self.put_reset(id, ErrorCode::CANCEL);
            self.leave_queue(id);
        }
        woken.into_iter().for_each(Waker::wake);
    }

    /// The next piece of what comes. The peer may send as much again.
    pub(super) fn take_piece(&mut self, id: u32, waker: &Waker) -> Option<Result<Piece, Http2Error>> {
        let stream = self.streams.get_mut(&id)?;
        if let Some(data) = stream.data.pop_front() {
            if stream.data.is_empty() {
                // An idle watch has no room for more than its next event.
                stream.data = VecDeque::new();
            }
            let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
            if stream.took(id, length, &mut self.out) {
                self.wake_driver();
            }
            self.waiting -= 1;
            self.make_free(data.len());
            return Some(Ok(Piece::Data(data)));
        }
        if stream.came == Came::All {
            return Some(Ok(stream
                .trailers
                .take()
                .map_or(Piece::End, |fields| Piece::Trailers(*fields))));
        }
        if let Some(error) = &stream.failed {
            return Some(Err(error.clone()));
        }
        keep(&mut stream.reader, waker);
        None
    }

    /// Whether what comes was read to its end.
    pub(super) fn is_read(&self, id: u32) -> bool {
        self.streams
            .get(&id)
            .is_none_or(|stream| stream.came == Came::All && stream.data.is_empty() && stream.trailers.is_none())
    }

    /// The last stream that the peer has begun, or may have.
    pub(super) fn last_begun(&self) -> u32 {
        match self.peer {
            Peer::Client => self.left_at.unwrap_or_else(|| self.next.saturating_sub(2)),
            Peer::Server => 0,
        }
    }

    /// Whether nothing is left to be done: no stream is open, and none will be.
    pub(super) fn is_over(&self) -> bool {
        (self.is_done || self.ended.is_some()) && self.streams.is_empty()
    }

    /// The connection is over, and with it every stream that has not ended.
    pub(super) fn end(&mut self, error: &Http2Error, woken: &mut Vec<Waker>) {
        self.ended.get_or_insert_with(|| error.clone());
        for stream in self.streams.values_mut() {
            stream.fail(error.clone(), woken);
        }
        self.queue.clear();
    }

    /// What the peer sets.
    pub(super) fn set(&mut self, settings: &Settings, woken: &mut Vec<Waker>) -> Result<(), Fault> {
        if let Some(table) = settings.table {
            self.encoder.resize(table as usize);
        }
        if let Some(max_frame) = settings.max_frame {
            self.max_frame = max_frame.min(MAX_SENT);
        }
        if let Some(window) = settings.window {
            let more = i64::from(window) - i64::from(self.first_window);
            self.first_window = window;
            for stream in self.streams.values_mut() {
                stream.send_window += more;
                if stream.send_window > i64::from(MAX_WINDOW) {
                    return Err(TOO_LARGE);
                }
                woken.extend(stream.writer.take());
            }
        }
        Ok(())
    }

    /// The peer takes more bytes, of one stream or of all.
    pub(super) fn widen(&mut self, id: u32, more: u32, woken: &mut Vec<Waker>) -> Result<(), Fault> {
        if id == 0 {
            self.window += i64::from(more);
            if more == 0 {
                return Err(BY_NOTHING);
            }
            if self.window > i64::from(MAX_WINDOW) {
                return Err(TOO_LARGE);
            }
            self.wake_next();
            return Ok(());
        }
        self.known(id)?;
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.send_window += i64::from(more);
            let is_too_large = stream.send_window > i64::from(MAX_WINDOW);
            woken.extend(stream.writer.take());
            if more == 0 {
                self.fail(id, BY_NOTHING, woken);
            } else if is_too_large {
                self.fail(id, TOO_LARGE, woken);
            }
        }
        Ok(())
    }

    /// The peer ends a stream.
    pub(super) fn reset(&mut self, id: u32, code: ErrorCode, woken: &mut Vec<Waker>) -> Result<(), Fault> {
        self.known(id)?;
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.fail(Http2Error::Reset(code), woken);
            self.leave_queue(id);
        }
        Ok(())
    }

    /// A part of a body.
    pub(super) fn data(
        &mut self,
        id: u32,
        data: Bytes,
        held: u32,
        is_last: bool,
        woken: &mut Vec<Waker>,
    ) -> Result<(), Fault> {
        self.known(id)?;
        self.came(held)?;
        if self.peer == Peer::Client && data.is_empty() && !is_last {
            self.empty += 1;
            if self.empty > MOST_EMPTY {
                return Err(CALM);
            }
        }
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.failed.is_none()) else {
            self.make_free(held as usize);
            return Ok(());
        };
        // Nobody reads padding.
        let padding = held.saturating_sub(u32::try_from(data.len()).unwrap_or(u32::MAX));
        let (pieces, length) = (stream.data.len(), data.len());
        let judged = stream.data(data, held, is_last);
        let kept = stream.data.len() - pieces;
        self.waiting += kept;
        if let Err(fault) = judged {
            self.make_free(held as usize - kept * length);
            self.fail(id, fault, woken);
            return Ok(());
        }
        woken.extend(stream.reader.take());
        if padding > 0 && stream.took(id, padding, &mut self.out) {
            self.wake_driver();
        }
        self.make_free(padding as usize);
        if self.peer == Peer::Client && self.waiting > MOST_WAITING {
            return Err(CALM);
        }
        Ok(())
    }

    /// Ends a stream on which the peer broke a rule.
    pub(super) fn fail(&mut self, id: u32, fault: Fault, woken: &mut Vec<Waker>) {
        if let Some(stream) = self.streams.get_mut(&id)
            && stream.fail(fault.into(), woken)
        {
            self.put_reset(id, fault.code);
            self.faults += 1;
            self.leave_queue(id);
        }
    }

    /// Tells the peer that a stream is over.
    pub(super) fn put_reset(&mut self, id: u32, code: ErrorCode) {
        put_reset(&mut self.out, id, code);
        if self.peer == Peer::Client {
            self.resets.truncate(RESETS_KNOWN - 1);
            self.resets.push_front(id);
        }
        self.wake_driver();
    }

    /// Whether a stream was reset by us of late.
    pub(super) fn was_reset(&self, id: u32) -> bool {
        self.resets.contains(&id)
    }

    /// Whether the peer is more trouble than it may be: made to reset streams all the time (CVE-2025-8671).
    pub(super) fn is_trouble(&self) -> bool {
        self.peer == Peer::Client && self.faults > MOST_FAULTS
    }

    /// What comes for a stream that was never begun can't be meant. For one that is over it may have been under way.
    pub(super) fn known(&self, id: u32) -> Result<(), Fault> {
        if id.is_multiple_of(2) || id >= self.next {
            return Err(Fault::protocol("something is on a stream that wasn't begun"));
        }
        Ok(())
    }
}

pub(super) const CALM: Fault = Fault::new(ErrorCode::ENHANCE_YOUR_CALM, "it is more trouble than it may be");
const BY_NOTHING: Fault = Fault::protocol("a window is widened by nothing");
const TOO_LARGE: Fault = Fault::new(ErrorCode::FLOW_CONTROL_ERROR, "a window is set where it can't be");
