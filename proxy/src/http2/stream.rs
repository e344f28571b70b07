//! One stream: how far what the peer says on it has come, and whether that is as it must be.

use std::{collections::VecDeque, task::Waker};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Response, StatusCode, Version};

use super::{ErrorCode, Fault, Http2Error, fields::Fields, frame::put_window_update};

/// What a stream may hold that its reader hasn't taken, in bytes: the bound on memory for each open answer.
pub(super) const STREAM_WINDOW: u32 = 256 * 1024;
/// A piece of a body so small is copied: it would keep the buffer that it came in, with what others had in it, for as long as its
/// reader takes, and have the next that comes need a new one.
const SMALL: usize = 2 * 1024;

/// A stream that somebody holds.
#[derive(Debug)]
pub(super) struct Stream {
    /// How many hold it.
    pub(super) holders: u8,
    pub(super) reader: Option<Waker>,
    pub(super) writer: Option<Waker>,
    /// Boxed, as it is here for a moment only.
    pub(super) head: Option<Box<Response<()>>>,
    pub(super) data: VecDeque<Bytes>,
    pub(super) trailers: Option<Box<HeaderMap>>,
    pub(super) came: Came,
    /// All was sent that is ours to say.
    pub(super) is_sent: bool,
    /// How it ended otherwise than it should.
    pub(super) failed: Option<Http2Error>,
    /// What may be sent, and what the server may send, in bytes.
    pub(super) send_window: i64,
    window: i64,
    /// What the reader took, and the server wasn't told of.
    taken: u32,
    /// How much of the body is to come, where that was said.
    expected: Option<u64>,
    /// The request was for a head alone.
    is_head: bool,
}

/// How far what the peer says has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Came {
    Nothing,
    Head,
    All,
}

impl Stream {
    /// Of a request that was begun: held by so many, with so much room to send.
    pub(super) fn new(holders: u8, window: u32, is_head: bool, is_sent: bool) -> Self {
        Self {
            holders,
            reader: None,
            writer: None,
            head: None,
            data: VecDeque::new(),
            trailers: None,
            came: Came::Nothing,
            is_sent,
            failed: None,
            send_window: i64::from(window),
            window: i64::from(STREAM_WINDOW),
            taken: 0,
            expected: None,
            is_head,
        }
    }

    /// Of a request that came: held by so many, with so much room to send, and with a body of so much.
    pub(super) fn asked(holders: u8, window: u32, length: Option<u64>, is_whole: bool) -> Self {
        Self {
            came: if is_whole { Came::All } else { Came::Head },
            expected: length,
            ..Self::new(holders, window, false, false)
        }
    }

    /// What follows its body has come, and is passed over.
    pub(super) fn ends_with_trailers(&mut self) -> Result<(), Fault> {
        if self.came == Came::All {
            return Err(OVER);
        }
        self.ends()
    }

    /// Whether nothing more is to be said on it.
    pub(super) fn is_over(&self) -> bool {
        self.failed.is_some() || self.is_sent && self.came == Came::All
    }

    /// Whether it was still going on.
    pub(super) fn fail(&mut self, error: Http2Error, woken: &mut Vec<Waker>) -> bool {
        if self.is_over() {
            return false;
        }
        self.failed = Some(error);
        woken.extend(self.reader.take());
        woken.extend(self.writer.take());
        true
    }

    pub(super) fn headers(&mut self, fields: Fields, is_last: bool) -> Result<(), Fault> {
        match self.came {
            Came::All => return Err(OVER),
            Came::Nothing => {
                let status = fields.status.ok_or(Fault::protocol("an answer has no status"))?;
                if status.is_informational() {
                    return if is_last || status == StatusCode::SWITCHING_PROTOCOLS {
                        Err(Fault::protocol("an interim answer is the last"))
                    } else {
                        Ok(())
                    };
                }
                let has_no_body =
                    self.is_head || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
                self.expected = if has_no_body { Some(0) } else { fields.length()? };
                let mut head = Response::new(());
                *head.status_mut() = status;
                *head.version_mut() = Version::HTTP_2;
                *head.headers_mut() = fields.map;
                self.came = Came::Head;
                if is_last {
                    self.ends()?;
                }
                self.head = Some(Box::new(head));
                return Ok(());
            }
            Came::Head if fields.status.is_some() || !is_last => {
                return Err(Fault::protocol("an answer has a second head"));
            }
            Came::Head => self.trailers = Some(Box::new(fields.map)),
        }
        if is_last { self.ends() } else { Ok(()) }
    }

    pub(super) fn data(&mut self, data: Bytes, held: u32, is_last: bool) -> Result<(), Fault> {
        match self.came {
            Came::Nothing => return Err(Fault::protocol("a body comes before its head")),
            Came::Head => {}
            Came::All => return Err(OVER),
        }
        self.window -= i64::from(held);
        if self.window < 0 {
            return Err(Fault::new(
                ErrorCode::FLOW_CONTROL_ERROR,
                "more of a body comes than may",
            ));
        }
        if let Some(expected) = &mut self.expected {
            *expected = expected
                .checked_sub(data.len() as u64)
                .ok_or(Fault::protocol("a body is longer than it says"))?;
        }
        if !data.is_empty() {
            let is_small = data.len() < SMALL;
            self.data
                .push_back(if is_small { Bytes::copy_from_slice(&data) } else { data });
        }
        if is_last { self.ends() } else { Ok(()) }
    }

    fn ends(&mut self) -> Result<(), Fault> {
        if self.expected.is_some_and(|left| left > 0) {
            return Err(Fault::protocol("a body is shorter than it says"));
        }
        self.came = Came::All;
        Ok(())
    }

    /// The reader took so many bytes. Half a window of them is worth telling the server.
    pub(super) fn took(&mut self, id: u32, length: u32, out: &mut BytesMut) -> bool {
        self.taken += length;
        if self.taken < STREAM_WINDOW / 2 || self.came == Came::All || self.failed.is_some() {
            return false;
        }
        self.window += i64::from(self.taken);
        put_window_update(out, id, std::mem::take(&mut self.taken));
        true
    }
}

const OVER: Fault = Fault::new(ErrorCode::STREAM_CLOSED, "something comes after an answer's end");

/// Remembers whom to wake.
pub(super) fn keep(place: &mut Option<Waker>, waker: &Waker) {
    match place {
        Some(known) => known.clone_from(waker),
        None => *place = Some(waker.clone()),
    }
}
