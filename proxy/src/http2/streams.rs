//! What both sides know of a connection's streams and windows, under one lock: whoever asks writes frames to be sent, the driver
//! tells what came, and each wakes the other.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    hash::{BuildHasherDefault, Hasher},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    task::Waker,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Response, header};
use tokio::sync::Notify;

use super::{
    ErrorCode, Fault, Http2Error,
    fields::Fields,
    frame::{FIRST_WINDOW, MAX_SENT, MAX_WINDOW, put_headers, put_reset},
    hpack::{Malformed, decoder::Decoder, encoder::Encoder},
    parser::Settings,
    stream::{Came, Stream, keep},
};

/// A table of more streams is let go of when the last of them has ended.
const STREAMS_KEPT: usize = 32;

/// A connection, as its streams and its driver have it.
pub(super) struct Shared {
    state: Mutex<State>,
    /// How many streams the server allows at once.
    pub(super) limit: AtomicU32,
    /// New streams may be begun.
    pub(super) is_open: AtomicBool,
    /// The server's SETTINGS have come.
    pub(super) is_greeted: AtomicBool,
    /// The last PING that the server has answered, and who waits for that.
    pub(super) pongs: AtomicU64,
    pub(super) ponged: Notify,
}

pub(super) struct State {
    /// To be sent.
    pub(super) out: BytesMut,
    pub(super) driver: Option<Waker>,
    /// No new stream will come from us.
    pub(super) is_done: bool,
    pub(super) pings: u64,
    encoder: Encoder,
    pub(super) streams: HashMap<u32, Stream, BuildHasherDefault<IdHasher>>,
    next: u32,
    /// What the server allows: bytes of all streams, of a stream at first, and in a frame.
    pub(super) window: i64,
    first_window: u32,
    pub(super) max_frame: u32,
    /// Streams that have something to send, and wait for the connection's window or for room in `out`, in their turn.
    pub(super) queue: VecDeque<u32>,
    /// How the connection ended.
    ended: Option<Http2Error>,
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

/// A request's head, but for what a connection adds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head<'r> {
    pub(crate) method: &'r Method,
    pub(crate) authority: &'r HeaderValue,
    /// In origin form.
    pub(crate) path: &'r str,
    /// `Host` is passed over.
    pub(crate) fields: &'r HeaderMap,
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
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                out: BytesMut::new(),
                driver: None,
                is_done: false,
                pings: 0,
                encoder: Encoder::new(),
                streams: HashMap::default(),
                next: 1,
                window: i64::from(FIRST_WINDOW),
                first_window: FIRST_WINDOW,
                max_frame: MAX_SENT,
                queue: VecDeque::new(),
                ended: None,
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

    /// Begins a stream.
    ///
    /// # Errors
    /// Where no stream can be begun any more. Nothing was sent.
    pub(super) fn begin(&mut self, head: Head<'_>, is_whole: bool, holders: u8) -> Result<u32, Http2Error> {
        if let Some(error) = &self.ended {
            return Err(error.clone());
        }
        let id = self.next;
        if id > MAX_WINDOW {
            return Err(Http2Error::GoAway(ErrorCode::NO_ERROR));
        }
        self.next += 2;
        let Head {
            method,
            authority,
            path,
            fields,
        } = head;
        let encoder = &mut self.encoder;
        put_headers(&mut self.out, id, is_whole, self.max_frame as usize, |out| {
            let fields = fields.iter().filter(|(name, _)| *name != header::HOST);
            encoder.encode(out, method, authority, path, fields);
        });
        let stream = Stream::new(holders, self.first_window, method == Method::HEAD, is_whole);
        self.streams.insert(id, stream);
        self.wake_driver();
        Ok(id)
    }

    /// One of a stream's holders lets go. With the last of them it ends, and the server is told unless it is over.
    pub(super) fn release(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        stream.holders -= 1;
        if stream.holders > 0 {
            return;
        }
        if !stream.is_over() {
            put_reset(&mut self.out, id, ErrorCode::CANCEL);
            self.wake_driver();
        }
        self.streams.remove(&id);
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

    /// Ends a stream for all who hold it.
    pub(super) fn give_up(&mut self, id: u32) {
        let mut woken = Vec::new();
        if let Some(stream) = self.streams.get_mut(&id)
            && stream.fail(Http2Error::GivenUp, &mut woken)
        {
            put_reset(&mut self.out, id, ErrorCode::CANCEL);
            self.leave_queue(id);
            self.wake_driver();
        }
        woken.into_iter().for_each(Waker::wake);
    }

    /// The head of the answer, once.
    pub(super) fn take_head(&mut self, id: u32, waker: &Waker) -> Option<Result<Response<()>, Http2Error>> {
        let stream = self.streams.get_mut(&id)?;
        if let Some(head) = stream.head.take() {
            return Some(Ok(*head));
        }
        if let Some(error) = &stream.failed {
            return Some(Err(error.clone()));
        }
        keep(&mut stream.reader, waker);
        None
    }

    /// The next piece of the answer. The server may send as much again.
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

    /// Whether the answer was read to its end.
    pub(super) fn is_read(&self, id: u32) -> bool {
        self.streams
            .get(&id)
            .is_none_or(|stream| stream.came == Came::All && stream.data.is_empty() && stream.trailers.is_none())
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

    /// What the server sets.
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

    /// The server takes more bytes, of one stream or of all.
    pub(super) fn widen(&mut self, id: u32, more: u32, woken: &mut Vec<Waker>) -> Result<(), Fault> {
        if id == 0 {
            self.window += i64::from(more);
            if more == 0 || self.window > i64::from(MAX_WINDOW) {
                return Err(TOO_LARGE);
            }
            self.wake_next();
            return Ok(());
        }
        self.known(id)?;
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.send_window += i64::from(more);
            let is_wrong = more == 0 || stream.send_window > i64::from(MAX_WINDOW);
            woken.extend(stream.writer.take());
            if is_wrong {
                self.fail(id, TOO_LARGE, woken);
            }
        }
        Ok(())
    }

    /// The server ends a stream.
    pub(super) fn reset(&mut self, id: u32, code: ErrorCode, woken: &mut Vec<Waker>) -> Result<(), Fault> {
        self.known(id)?;
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.fail(Http2Error::Reset(code), woken);
            self.leave_queue(id);
        }
        Ok(())
    }

    /// The server takes no stream after `last`.
    pub(super) fn go_away(&mut self, last: u32, code: ErrorCode, woken: &mut Vec<Waker>) {
        self.ended.get_or_insert(Http2Error::GoAway(code));
        for (id, stream) in &mut self.streams {
            if *id > last {
                stream.fail(Http2Error::GoAway(code), woken);
            }
        }
        let streams = &self.streams;
        self.queue
            .retain(|id| streams.get(id).is_some_and(|stream| stream.failed.is_none()));
        self.wake_next();
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
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.failed.is_none()) else {
            return Ok(());
        };
        // Nobody reads padding.
        let padding = held.saturating_sub(u32::try_from(data.len()).unwrap_or(u32::MAX));
        if let Err(fault) = stream.data(data, held, is_last) {
            self.fail(id, fault, woken);
            return Ok(());
        }
        woken.extend(stream.reader.take());
        if padding > 0 && stream.took(id, padding, &mut self.out) {
            self.wake_driver();
        }
        Ok(())
    }

    /// The head of an answer, or the fields behind its body.
    pub(super) fn headers(
        &mut self,
        id: u32,
        block: &[u8],
        is_last: bool,
        decoder: &mut Decoder,
        woken: &mut Vec<Waker>,
    ) -> Result<(), Fault> {
        self.known(id)?;
        let fields = Fields::decode(decoder, block)
            .map_err(|_: Malformed| Fault::new(ErrorCode::COMPRESSION_ERROR, "a head can't be decoded"))?;
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.failed.is_none()) else {
            return Ok(());
        };
        match fields.and_then(|fields| stream.headers(fields, is_last)) {
            Ok(()) => woken.extend(stream.reader.take()),
            Err(fault) => self.fail(id, fault, woken),
        }
        Ok(())
    }

    /// Ends a stream on which the server broke a rule.
    fn fail(&mut self, id: u32, fault: Fault, woken: &mut Vec<Waker>) {
        if let Some(stream) = self.streams.get_mut(&id)
            && stream.fail(fault.into(), woken)
        {
            put_reset(&mut self.out, id, fault.code);
            self.leave_queue(id);
            self.wake_driver();
        }
    }

    /// What comes for a stream that was never begun can't be meant. For one that is over it may have been under way.
    fn known(&self, id: u32) -> Result<(), Fault> {
        if id.is_multiple_of(2) || id >= self.next {
            return Err(Fault::protocol("something is on a stream that wasn't begun"));
        }
        Ok(())
    }
}

const TOO_LARGE: Fault = Fault::new(ErrorCode::FLOW_CONTROL_ERROR, "a window is set where it can't be");
