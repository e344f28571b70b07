//! What a client asks of us: its heads, and which of them are begun.

use std::{collections::VecDeque, task::Waker};

use bytes::BytesMut;
use http::{
    HeaderMap, HeaderValue, Method, Request, Uri, Version, header,
    uri::{Authority, PathAndQuery, Scheme},
};

use super::{
    ErrorCode, Fault,
    driver::{Block, Role},
    fields::{CONNECTIONS, USUAL, length},
    frame::{
        INITIAL_WINDOW_SIZE, MAX_CONCURRENT_STREAMS, MAX_FRAME_OF_CLIENT, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE,
        put_settings,
    },
    hpack::{
        ENTRY,
        decoder::{Decoder, Name, Pseudo},
    },
    stream::{Came, STREAM_WINDOW, Stream},
    streams::{CALM, HELD, Shared, State},
};

/// Streams that a client may open and reset before they were served (CVE-2023-44487). One that gives up requests does so after
/// they were begun, and isn't counted.
const RESETS_BEFORE_SERVED: u32 = 20;
/// A head that is so many times larger than allowed, when it is decoded, is sent to wear us out.
const BOMB: usize = 16;

/// What a client may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Terms {
    /// How many streams may be open at once.
    pub(crate) streams: u32,
    /// How large a head may be, its fields' names and values and the target, in bytes.
    pub(crate) head: usize,
    /// How many fields it may have.
    pub(crate) fields: usize,
}

impl Terms {
    /// As RFC 9113, section 6.5.2, counts.
    fn header_list(&self) -> usize {
        self.head + self.fields * ENTRY
    }

    /// How large a head's code may be. What is beyond the limit and within this is answered.
    pub(super) fn block(&self) -> usize {
        4 * self.header_list()
    }
}

/// What a client asked.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(super) id: u32,
    /// What can be read of it, where it is wrong.
    pub(crate) request: Request<()>,
    /// Why it isn't to be served.
    pub(crate) wrong: Option<Wrong>,
    /// How much of a body follows, where that was said; none where none does.
    pub(super) length: Option<u64>,
    pub(super) is_whole: bool,
}

#[cfg(any(test, feature = "fuzzing"))]
impl Asked {
    /// The stream's number.
    pub(crate) const fn stream(&self) -> u32 {
        self.id
    }
}

/// What is wrong with a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// It isn't a request (RFC 9113, section 8.1.1).
    Malformed,
    /// It is larger than it may be.
    TooLarge,
    /// It has more fields than it may.
    TooMany,
}

/// Whoever answers.
#[derive(Debug)]
pub(crate) struct Serving {
    terms: Terms,
    /// What was asked, and nobody has begun to answer.
    pub(super) asked: VecDeque<Asked>,
    resets: u32,
    /// Nothing further will come.
    pub(super) is_left: bool,
}

impl Serving {
    pub(super) const fn new(terms: Terms) -> Self {
        Self {
            terms,
            asked: VecDeque::new(),
            resets: 0,
            is_left: false,
        }
    }
}

impl Role for Serving {
    fn greet(&self, out: &mut BytesMut) {
        let settings = [
            (MAX_CONCURRENT_STREAMS, self.terms.streams),
            (INITIAL_WINDOW_SIZE, STREAM_WINDOW),
            (MAX_FRAME_SIZE, MAX_FRAME_OF_CLIENT),
            (
                MAX_HEADER_LIST_SIZE,
                u32::try_from(self.terms.header_list()).unwrap_or(u32::MAX),
            ),
        ];
        put_settings(out, &settings, HELD);
    }

    fn headers(&mut self, state: &mut State, block: Block<'_>, woken: &mut Vec<Waker>) -> Result<(), Fault> {
        let Block {
            stream: id,
            code: block,
            is_last,
            decoder,
        } = block;
        if id.is_multiple_of(2) {
            return Err(Fault::protocol("a client begins a stream that only a server could"));
        }
        let fields = Fields::decode(decoder, block, self.terms)?;
        if id < state.next {
            return state.trailers(id, &fields, is_last, woken);
        }
        state.next = id + 2;
        // Whoever was told so knows that it wasn't taken.
        if state.left_at.is_some() {
            return Ok(());
        }
        if !state.has_room(self.terms.streams as usize) {
            state.put_reset(id, ErrorCode::REFUSED_STREAM);
            return Ok(());
        }
        let (request, wrong, length) = fields.into_request(is_last);
        if wrong == Some(Wrong::Malformed) {
            state.faults += 1;
        }
        state.ask(id, length, is_last);
        self.asked.push_back(Asked {
            id,
            request,
            wrong,
            length,
            is_whole: is_last,
        });
        Ok(())
    }

    fn go_away(&mut self, _: &Shared, _: &mut State, _: u32, code: ErrorCode, _: &mut Vec<Waker>) {
        tracing::debug!(%code, "a client takes its leave");
        self.is_left = true;
    }

    fn reset(&mut self, stream: u32) -> Result<(), Fault> {
        if self.asked.iter().any(|asked| asked.id == stream) {
            self.resets += 1;
            if self.resets > RESETS_BEFORE_SERVED {
                return Err(CALM);
            }
        }
        Ok(())
    }
}

impl State {
    /// A client begins a stream. Its answer holds it, and its body where there is one.
    fn ask(&mut self, id: u32, length: Option<u64>, is_whole: bool) {
        let holders = if is_whole { 1 } else { 2 };
        self.streams
            .insert(id, Stream::asked(holders, self.first_window, length, is_whole));
    }

    /// Whether a client has fewer streams open than these. One that is over is let go of in a moment.
    fn has_room(&self, streams: usize) -> bool {
        self.streams.len() < streams || self.streams.values().filter(|stream| !stream.is_over()).count() < streams
    }

    /// What a client says behind a body.
    fn trailers(&mut self, id: u32, fields: &Fields, is_last: bool, woken: &mut Vec<Waker>) -> Result<(), Fault> {
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.failed.is_none()) else {
            return if self.was_reset(id) {
                self.faults += 1;
                Ok(())
            } else {
                Err(Fault::protocol("a stream is begun that was, or could have been before"))
            };
        };
        let is_proper = fields.wrong.is_none() && !fields.has_pseudo && is_last;
        let judged = if stream.came != Came::All && !is_proper {
            Err(Fault::protocol("what follows a body isn't as it must be"))
        } else {
            stream.ends_with_trailers()
        };
        match judged {
            Ok(()) => woken.extend(stream.reader.take()),
            Err(fault) => self.fail(id, fault, woken),
        }
        Ok(())
    }
}

/// The head of a request, as far as it can be read.
#[derive(Debug)]
struct Fields {
    method: Option<Method>,
    scheme: Option<Scheme>,
    authority: Option<Authority>,
    path: Option<PathAndQuery>,
    map: HeaderMap,
    has_pseudo: bool,
    /// Of names and values.
    size: usize,
    /// As RFC 9113, section 6.5.2, counts.
    listed: usize,
    wrong: Option<Wrong>,
}

impl Fields {
    fn decode(decoder: &mut Decoder, block: &[u8], terms: Terms) -> Result<Self, Fault> {
        let mut fields = Self {
            method: None,
            scheme: None,
            authority: None,
            path: None,
            map: HeaderMap::with_capacity(USUAL),
            has_pseudo: false,
            size: 0,
            listed: 0,
            wrong: None,
        };
        decoder.decode(block, |field| {
            fields.listed += field.size;
            if fields.wrong.is_none()
                && let Err(wrong) = fields.add(&field.name, field.value.as_ref(), terms)
            {
                fields.wrong = Some(wrong);
            }
        })?;
        if fields.listed > BOMB * terms.header_list() {
            return Err(CALM);
        }
        Ok(fields)
    }

    fn add(&mut self, name: &Name, value: Option<&HeaderValue>, terms: Terms) -> Result<(), Wrong> {
        let value = value.ok_or(Wrong::Malformed)?;
        match name {
            Name::Pseudo(pseudo) => {
                if !self.map.is_empty() {
                    return Err(Wrong::Malformed);
                }
                self.has_pseudo = true;
                if *pseudo == Pseudo::Path {
                    self.size += value.len();
                }
                self.pseudo(*pseudo, value.as_bytes())?;
            }
            Name::Field(name) => {
                self.size += name.as_str().len() + value.len();
                let is_connections = CONNECTIONS.contains(name) || *name == header::TE && value != "trailers";
                if is_connections {
                    return Err(Wrong::Malformed);
                }
                if self.map.len() >= terms.fields {
                    return Err(Wrong::TooMany);
                }
                if self.map.try_append(name.clone(), value.clone()).is_err() {
                    return Err(Wrong::TooMany);
                }
            }
            Name::Wrong => return Err(Wrong::Malformed),
        }
        if self.size > terms.head {
            return Err(Wrong::TooLarge);
        }
        Ok(())
    }

    fn pseudo(&mut self, pseudo: Pseudo, value: &[u8]) -> Result<(), Wrong> {
        fn once<T, E>(place: &mut Option<T>, parsed: Result<T, E>) -> Result<(), Wrong> {
            let parsed = parsed.map_err(|_| Wrong::Malformed)?;
            if place.replace(parsed).is_some() {
                return Err(Wrong::Malformed);
            }
            Ok(())
        }
        match pseudo {
            Pseudo::Method => once(&mut self.method, Method::from_bytes(value)),
            Pseudo::Scheme => once(&mut self.scheme, Scheme::try_from(value)),
            Pseudo::Authority => once(&mut self.authority, Authority::try_from(value)),
            // A path is in origin form, or `*` (RFC 9113, section 8.3.1).
            Pseudo::Path if value.first() != Some(&b'/') && value != b"*" => Err(Wrong::Malformed),
            Pseudo::Path => once(&mut self.path, PathAndQuery::try_from(value)),
            Pseudo::Status => Err(Wrong::Malformed),
        }
    }

    /// The request, or what can be read of it; what is wrong with it; and how long its body is.
    fn into_request(mut self, is_whole: bool) -> (Request<()>, Option<Wrong>, Option<u64>) {
        let (length, uri) = match (length(&self.map), self.uri()) {
            (Ok(length), Some(uri)) => (length, uri),
            (length, uri) => {
                self.wrong.get_or_insert(Wrong::Malformed);
                (length.ok().flatten(), uri.unwrap_or_else(|| Uri::from_static("-")))
            }
        };
        if is_whole && length.is_some_and(|length| length > 0) {
            self.wrong.get_or_insert(Wrong::Malformed);
        }
        let mut request = Request::new(());
        *request.method_mut() = self.method.unwrap_or_else(unread);
        *request.uri_mut() = uri;
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = self.map;
        (request, self.wrong, length)
    }

    /// From the pseudo-header fields that there have to be (RFC 9113, sections 8.3.1 and 8.5).
    fn uri(&mut self) -> Option<Uri> {
        let method = self.method.as_ref()?;
        if *method == Method::CONNECT {
            let is_proper = self.scheme.is_none() && self.path.is_none();
            return self.authority.take().filter(|_| is_proper).map(Uri::from);
        }
        if self.path.as_ref()?.as_str() == "*" && *method != Method::OPTIONS {
            return None;
        }
        let mut parts = http::uri::Parts::default();
        parts.path_and_query = self.path.take();
        let scheme = self.scheme.take()?;
        if let Some(authority) = self.authority.take() {
            parts.scheme = Some(scheme);
            parts.authority = Some(authority);
        }
        Uri::from_parts(parts).ok()
    }
}

/// Stands for a method that can't be read.
fn unread() -> Method {
    Method::from_bytes(b"-").unwrap_or_default()
}
