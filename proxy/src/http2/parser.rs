//! Frames as they come (RFC 9113, sections 4 and 6), and the rules that hold for a connection.

use bytes::{Buf, Bytes, BytesMut};

use super::{
    ErrorCode, Fault,
    frame::{
        ACK, CONTINUATION, DATA, ENABLE_PUSH, END_HEADERS, END_STREAM, GOAWAY, HEAD, HEADER_TABLE_SIZE, HEADERS,
        INITIAL_WINDOW_SIZE, MAX_CONCURRENT_STREAMS, MAX_FRAME, MAX_FRAME_OF_CLIENT, MAX_FRAME_SIZE, MAX_WINDOW,
        PADDED, PING, PREFACE, PRIORITISED, PRIORITY, PUSH_PROMISE, RST_STREAM, SETTINGS, WINDOW_UPDATE,
    },
};

/// In so many frames a head may come. One that needs more is sent to have us count them (CVE-2024-27316).
const MOST_PARTS: u32 = 128;

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Peer {
    Client,
    Server,
}

/// What the peer says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A part of a body, as much of a frame as has come; the last part of the last frame ends the stream. `held` is what counts
    /// against the windows: padding too.
    Data {
        stream: u32,
        data: Bytes,
        held: u32,
        is_last: bool,
    },
    /// A whole block of fields, still coded.
    Headers {
        stream: u32,
        block: BytesMut,
        is_last: bool,
    },
    Reset {
        stream: u32,
        code: ErrorCode,
    },
    Settings(Settings),
    SettingsAck,
    Ping(u64),
    Pong(u64),
    GoAway {
        last: u32,
        code: ErrorCode,
    },
    WindowUpdate {
        stream: u32,
        more: u32,
    },
}

/// What the peer sets anew.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) table: Option<u32>,
    pub(super) streams: Option<u32>,
    pub(super) window: Option<u32>,
    pub(super) max_frame: Option<u32>,
}

/// Takes what the peer says apart. A body is handed on as it comes; of anything else a frame is waited for, and of a head all its
/// frames.
#[derive(Debug)]
pub(super) struct Parser {
    /// The rest of a DATA frame.
    data: Option<Data>,
    /// A head that goes on in the next frame.
    head: Option<Head>,
    has_begun: bool,
    peer: Peer,
    /// What is to come before any frame.
    preface: &'static [u8],
    /// How large a coded head may be.
    max_head: usize,
}

#[derive(Debug)]
struct Data {
    stream: u32,
    left: usize,
    /// Behind that.
    padding: usize,
    ends: bool,
    /// What counts beside the data, and wasn't counted yet.
    beside: usize,
}

#[derive(Debug)]
struct Head {
    stream: u32,
    block: BytesMut,
    is_last: bool,
    parts: u32,
}

const fn too_short(what: &'static str) -> Fault {
    Fault::new(ErrorCode::FRAME_SIZE_ERROR, what)
}

impl Parser {
    pub(super) const fn new(peer: Peer, max_head: usize) -> Self {
        Self {
            data: None,
            head: None,
            has_begun: false,
            peer,
            preface: match peer {
                Peer::Client => PREFACE,
                Peer::Server => &[],
            },
            max_head,
        }
    }

    /// Whether the peer's SETTINGS have come.
    pub(super) const fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// The next of what has come; none where more is needed.
    ///
    /// # Errors
    /// If a rule is broken that holds for the connection. It can't go on.
    pub(super) fn next(&mut self, read: &mut BytesMut) -> Result<Option<Event>, Fault> {
        self.greeting(read)?;
        loop {
            if let Some(data) = &mut self.data {
                let Some((event, is_whole)) = data.next(read) else {
                    return Ok(None);
                };
                if is_whole {
                    self.data = None;
                }
                return Ok(Some(event));
            }
            let Some(head) = read.first_chunk::<HEAD>() else {
                return Ok(None);
            };
            let (length, kind, flags) = (
                usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]),
                head[3],
                head[4],
            );
            let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
            let most = match self.peer {
                Peer::Client => MAX_FRAME_OF_CLIENT,
                Peer::Server => MAX_FRAME,
            };
            if length > most as usize {
                return Err(too_short("a frame is larger than allowed"));
            }
            if !self.has_begun && (kind != SETTINGS || flags & ACK != 0) {
                return Err(Fault::protocol("it doesn't begin with SETTINGS"));
            }
            if self
                .head
                .as_ref()
                .is_some_and(|head| kind != CONTINUATION || head.stream != stream)
            {
                return Err(Fault::protocol("a head is interrupted"));
            }
            if kind == DATA {
                let beside = usize::from(flags & PADDED != 0);
                if read.len() < HEAD + beside.min(length) {
                    return Ok(None);
                }
                read.advance(HEAD);
                self.data = Some(Data::begin(read, stream, length, flags)?);
                continue;
            }
            if read.len() < HEAD + length {
                // One frame's room, and no more than is asked for.
                read.reserve(HEAD + length - read.len());
                return Ok(None);
            }
            read.advance(HEAD);
            let payload = read.split_to(length);
            self.has_begun = true;
            if let Some(event) = self.frame(kind, flags, stream, payload)? {
                return Ok(Some(event));
            }
        }
    }

    /// Takes off what comes of the preface.
    fn greeting(&mut self, read: &mut BytesMut) -> Result<(), Fault> {
        let here = self.preface.len().min(read.len());
        if read[..here] != self.preface[..here] {
            return Err(Fault::protocol("it doesn't begin with the preface of HTTP/2"));
        }
        read.advance(here);
        self.preface = &self.preface[here..];
        Ok(())
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, mut payload: BytesMut) -> Result<Option<Event>, Fault> {
        let is_connections = stream == 0;
        let length = payload.len();
        Ok(Some(match kind {
            HEADERS => {
                if is_connections {
                    return Err(Fault::protocol("a head is on no stream"));
                }
                unpad(&mut payload, flags)?;
                if flags & PRIORITISED != 0 {
                    if payload.len() < 5 {
                        return Err(too_short("a head is too short for its priority"));
                    }
                    payload.advance(5);
                }
                let is_last = flags & END_STREAM != 0;
                self.head = Some(Head {
                    stream,
                    block: payload,
                    is_last,
                    parts: 1,
                });
                return self.head_goes_on(flags);
            }
            CONTINUATION => {
                let Some(head) = &mut self.head else {
                    return Err(Fault::protocol("a head goes on that wasn't begun"));
                };
                head.block.unsplit(payload);
                head.parts += 1;
                return self.head_goes_on(flags);
            }
            RST_STREAM if length != 4 => return Err(too_short("RST_STREAM isn't four bytes")),
            RST_STREAM if is_connections => return Err(Fault::protocol("RST_STREAM is on no stream")),
            RST_STREAM => Event::Reset {
                stream,
                code: ErrorCode(payload.get_u32()),
            },
            SETTINGS if !is_connections => return Err(Fault::protocol("SETTINGS is on a stream")),
            SETTINGS if flags & ACK != 0 && length == 0 => Event::SettingsAck,
            SETTINGS if flags & ACK != 0 || !length.is_multiple_of(6) => return Err(too_short("SETTINGS isn't whole")),
            SETTINGS => Event::Settings(settings(payload, self.peer)?),
            PUSH_PROMISE => return Err(Fault::protocol("it pushes, which we asked it not to")),
            PING if length != 8 => return Err(too_short("PING isn't eight bytes")),
            PING if !is_connections => return Err(Fault::protocol("PING is on a stream")),
            PING if flags & ACK != 0 => Event::Pong(payload.get_u64()),
            PING => Event::Ping(payload.get_u64()),
            GOAWAY if length < 8 => return Err(too_short("GOAWAY isn't eight bytes")),
            GOAWAY if !is_connections => return Err(Fault::protocol("GOAWAY is on a stream")),
            GOAWAY => Event::GoAway {
                last: payload.get_u32() & MAX_WINDOW,
                code: ErrorCode(payload.get_u32()),
            },
            WINDOW_UPDATE if length != 4 => return Err(too_short("WINDOW_UPDATE isn't four bytes")),
            WINDOW_UPDATE => Event::WindowUpdate {
                stream,
                more: payload.get_u32() & MAX_WINDOW,
            },
            PRIORITY if is_connections => return Err(Fault::protocol("PRIORITY is on no stream")),
            PRIORITY if length != 5 => return Err(too_short("PRIORITY isn't five bytes")),
            // What isn't known is passed over (RFC 9113, section 4.1), and so are priorities (section 5.3).
            _ => return Ok(None),
        }))
    }

    fn head_goes_on(&mut self, flags: u8) -> Result<Option<Event>, Fault> {
        let is_whole = flags & END_HEADERS != 0;
        match self.head.take_if(|head| is_whole && head.block.len() <= self.max_head) {
            Some(Head {
                stream, block, is_last, ..
            }) => Ok(Some(Event::Headers { stream, block, is_last })),
            None if self
                .head
                .as_ref()
                .is_some_and(|head| head.block.len() > self.max_head || head.parts > MOST_PARTS) =>
            {
                Err(Fault::new(
                    ErrorCode::ENHANCE_YOUR_CALM,
                    "a head is larger than allowed",
                ))
            }
            None => Ok(None),
        }
    }
}

/// Takes padding off (RFC 9113, section 6.1).
fn unpad(payload: &mut BytesMut, flags: u8) -> Result<(), Fault> {
    if flags & PADDED == 0 {
        return Ok(());
    }
    let padding = usize::from(*payload.first().ok_or(too_short("a padded frame is empty"))?);
    payload.advance(1);
    let length = payload
        .len()
        .checked_sub(padding)
        .ok_or(Fault::protocol("a frame is all padding, and more"))?;
    payload.truncate(length);
    Ok(())
}

fn settings(mut payload: BytesMut, peer: Peer) -> Result<Settings, Fault> {
    let mut settings = Settings::default();
    while payload.has_remaining() {
        let (name, value) = (payload.get_u16(), payload.get_u32());
        match name {
            HEADER_TABLE_SIZE => settings.table = Some(value),
            ENABLE_PUSH if value > u32::from(peer == Peer::Client) => {
                return Err(Fault::protocol("ENABLE_PUSH is set to what it can't be"));
            }
            MAX_CONCURRENT_STREAMS => settings.streams = Some(value),
            INITIAL_WINDOW_SIZE if value > MAX_WINDOW => {
                return Err(Fault::new(ErrorCode::FLOW_CONTROL_ERROR, "a window is too large"));
            }
            INITIAL_WINDOW_SIZE => settings.window = Some(value),
            MAX_FRAME_SIZE if !(1 << 14..1 << 24).contains(&value) => {
                return Err(Fault::protocol("MAX_FRAME_SIZE is out of range"));
            }
            MAX_FRAME_SIZE => settings.max_frame = Some(value),
            _ => {}
        }
    }
    Ok(settings)
}

impl Data {
    fn begin(read: &mut BytesMut, stream: u32, length: usize, flags: u8) -> Result<Self, Fault> {
        if stream == 0 {
            return Err(Fault::protocol("DATA is on no stream"));
        }
        let mut data = Self {
            stream,
            left: length,
            padding: 0,
            ends: flags & END_STREAM != 0,
            beside: 0,
        };
        if flags & PADDED != 0 {
            if length == 0 {
                return Err(too_short("a padded frame is empty"));
            }
            data.padding = usize::from(read.get_u8());
            data.beside = 1 + data.padding;
            data.left = length
                .checked_sub(data.beside)
                .ok_or(Fault::protocol("a frame is all padding, and more"))?;
        }
        Ok(data)
    }

    /// What has come of it, and whether that was the rest.
    fn next(&mut self, read: &mut BytesMut) -> Option<(Event, bool)> {
        let here = self.left.min(read.len());
        let padding = if here == self.left {
            self.padding.min(read.len() - here)
        } else {
            0
        };
        let is_whole = here == self.left && padding == self.padding;
        if !is_whole && here + padding == 0 {
            return None;
        }
        let data = read.split_to(here).freeze();
        read.advance(padding);
        self.left -= here;
        self.padding -= padding;
        #[expect(clippy::cast_possible_truncation, reason = "a frame's length is below 2^24")]
        let held = (here + std::mem::take(&mut self.beside)) as u32;
        let event = Event::Data {
            stream: self.stream,
            data,
            held,
            is_last: is_whole && self.ends,
        };
        Some((event, is_whole))
    }
}
