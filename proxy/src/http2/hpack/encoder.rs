//! Fields as they are sent: no code for strings, and a place in the table for all that comes again.

use std::{borrow::Borrow, collections::VecDeque};

use bytes::{BufMut, BytesMut};
use http::{HeaderName, HeaderValue, Method, StatusCode, header};

use super::{DYNAMIC, ENTRY, STATIC, TABLE, put_number};

const GET: usize = 2;
const POST: usize = 3;
const PATH: usize = 4;
const SCHEME_HTTPS: usize = 7;
const STATUS: usize = 8;
/// Those that have a place from the start.
const STATUSES: [StatusCode; 7] = [
    StatusCode::OK,
    StatusCode::NO_CONTENT,
    StatusCode::PARTIAL_CONTENT,
    StatusCode::NOT_MODIFIED,
    StatusCode::BAD_REQUEST,
    StatusCode::NOT_FOUND,
    StatusCode::INTERNAL_SERVER_ERROR,
];

/// Fields that differ from request to request: in the table they would take the place of those that don't.
const DIFFER: [HeaderName; 14] = [
    HeaderName::from_static("audit-id"),
    header::CONTENT_LENGTH,
    header::COOKIE,
    header::DATE,
    header::IF_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_NONE_MATCH,
    header::IF_RANGE,
    header::IF_UNMODIFIED_SINCE,
    header::RANGE,
    header::REFERER,
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
    HeaderName::from_static("x-request-id"),
];

/// Codes the requests of one connection, one after the other.
///
/// Credentials have their place in the table like everything else. RFC 7541, section 7.1, warns of one who can put guesses into the
/// same table and see how long what is sent becomes. A connection carries one session's requests, its credentials are put on by
/// the agent, and the fields that they are in are taken off every request before: no guess gets there.
pub(crate) struct Encoder {
    /// The newest first.
    table: VecDeque<Entry>,
    /// [`Entry::mark`] of each, to look through.
    marks: VecDeque<u32>,
    size: usize,
    limit: usize,
    /// Sizes that are still to be told to the peer: the least since the last block.
    told: Option<usize>,
}

struct Entry {
    name: Name<HeaderName>,
    value: HeaderValue,
    size: usize,
}

enum Name<F> {
    /// Of a pseudo-header field.
    Pseudo(&'static str),
    Field(F),
}

impl<F: Borrow<HeaderName>> Name<F> {
    fn text(&self) -> &str {
        match self {
            Self::Pseudo(name) => name,
            Self::Field(name) => name.borrow().as_str(),
        }
    }

    fn owned(&self) -> Name<HeaderName> {
        match self {
            Self::Pseudo(name) => Name::Pseudo(name),
            Self::Field(name) => Name::Field(name.borrow().clone()),
        }
    }
}

impl Encoder {
    pub(crate) const fn new() -> Self {
        Self {
            table: VecDeque::new(),
            marks: VecDeque::new(),
            size: 0,
            limit: TABLE,
            told: None,
        }
    }

    /// The peer keeps a table of so many bytes. More than [`TABLE`] isn't made use of.
    pub(crate) fn resize(&mut self, limit: usize) {
        let limit = limit.min(TABLE);
        if limit != self.limit {
            self.told = Some(self.told.map_or(limit, |least| least.min(limit)));
            self.limit = limit;
            self.make_room(0);
        }
    }

    /// Writes the head of a request. It has to have no `Host`, and nothing that is a connection's.
    pub(crate) fn encode<'h>(
        &mut self,
        out: &mut BytesMut,
        method: &Method,
        authority: &HeaderValue,
        path: &str,
        fields: impl Iterator<Item = (&'h HeaderName, &'h HeaderValue)>,
    ) {
        self.tell_size(out);
        match *method {
            Method::GET => put_number(out, 0x80, 7, GET),
            Method::POST => put_number(out, 0x80, 7, POST),
            _ => {
                // A method is a token, which a value may be.
                if let Ok(value) = HeaderValue::from_str(method.as_str()) {
                    self.put(out, &Name::Pseudo(":method"), &value);
                }
            }
        }
        put_number(out, 0x80, 7, SCHEME_HTTPS);
        self.put(out, &Name::Pseudo(":authority"), authority);
        if path == "/" {
            put_number(out, 0x80, 7, PATH);
        } else {
            put_number(out, 0, 4, PATH);
            put_string(out, path.as_bytes());
        }
        self.put_fields(out, fields);
    }

    /// Writes the head of an answer, or, without a status, what follows its body. Fields that are a connection's are passed over.
    pub(crate) fn encode_answer<'h>(
        &mut self,
        out: &mut BytesMut,
        status: Option<StatusCode>,
        fields: impl Iterator<Item = (&'h HeaderName, &'h HeaderValue)>,
    ) {
        self.tell_size(out);
        if let Some(status) = status {
            if let Some(place) = STATUSES.iter().position(|known| *known == status) {
                put_number(out, 0x80, 7, STATUS + place);
            } else {
                put_number(out, 0, 4, STATUS);
                put_string(out, status.as_str().as_bytes());
            }
        }
        self.put_fields(out, fields);
    }

    fn tell_size(&mut self, out: &mut BytesMut) {
        if let Some(least) = self.told.take() {
            if least < self.limit {
                put_number(out, 0x20, 5, least);
            }
            put_number(out, 0x20, 5, self.limit);
        }
    }

    fn put_fields<'h>(&mut self, out: &mut BytesMut, fields: impl Iterator<Item = (&'h HeaderName, &'h HeaderValue)>) {
        for (name, value) in fields {
            if DIFFER.contains(name) {
                put_literal(out, 0, 4, name.as_str(), value);
            } else {
                self.put(out, &Name::Field(name), value);
            }
        }
    }

    fn put(&mut self, out: &mut BytesMut, name: &Name<&HeaderName>, value: &HeaderValue) {
        let text = name.text();
        let mark = mark(text.as_bytes(), value.as_bytes());
        let known = self.marks.iter().enumerate().find(|(place, known)| {
            let entry = &self.table[*place];
            **known == mark && entry.name.text() == text && entry.value == value
        });
        if let Some((place, _)) = known {
            put_number(out, 0x80, 7, DYNAMIC + place);
            return;
        }
        // What fills most of the table pushes everything else out.
        if ENTRY + text.len() + value.len() > self.limit * 3 / 4 {
            put_literal(out, 0, 4, text, value);
            return;
        }
        put_literal(out, 0x40, 6, text, value);
        self.add(name.owned(), value.clone(), mark);
    }

    fn add(&mut self, name: Name<HeaderName>, value: HeaderValue, mark: u32) {
        let size = ENTRY + name.text().len() + value.len();
        self.make_room(size);
        if size <= self.limit {
            self.size += size;
            self.table.push_front(Entry { name, value, size });
            self.marks.push_front(mark);
        }
    }

    fn make_room(&mut self, size: usize) {
        while self.size + size > self.limit
            && let Some(oldest) = self.table.pop_back()
        {
            self.marks.pop_back();
            self.size -= oldest.size;
        }
    }
}

/// A field that isn't in the table, though its name may be.
fn put_literal(out: &mut BytesMut, first: u8, prefix: u8, name: &str, value: &HeaderValue) {
    if let Some(place) = STATIC.iter().position(|(known, _)| *known == name) {
        put_number(out, first, prefix, place + 1);
    } else {
        put_number(out, first, prefix, 0);
        put_string(out, name.as_bytes());
    }
    put_string(out, value.as_bytes());
}

fn put_string(out: &mut BytesMut, text: &[u8]) {
    put_number(out, 0, 7, text.len());
    out.put_slice(text);
}

/// Tells most fields apart by their lengths and last bytes, so that few are compared.
fn mark(name: &[u8], value: &[u8]) -> u32 {
    fn tail(text: &[u8]) -> u64 {
        match text.last_chunk::<8>() {
            Some(last) => u64::from_le_bytes(*last),
            None => text.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
        }
    }
    /// Odd, with its bits well spread: 2^64 divided by the golden ratio.
    const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
    let lengths = (name.len() as u64) << 32 | value.len() as u64;
    let sum = (tail(name).rotate_left(21) ^ tail(value) ^ lengths).wrapping_mul(SPREAD);
    (sum >> 32) as u32
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;
    use proptest::prelude::*;

    use super::{
        super::decoder::{self, Decoder},
        *,
    };

    fn encode(encoder: &mut Encoder, method: &Method, path: &str, fields: &HeaderMap) -> BytesMut {
        let mut out = BytesMut::new();
        let authority = HeaderValue::from_static("10.96.0.1");
        encoder.encode(&mut out, method, &authority, path, fields.iter());
        out
    }

    fn token() -> HeaderMap {
        let token = HeaderValue::from_str(&format!("Bearer {}", "x".repeat(1200))).unwrap();
        HeaderMap::from_iter([(header::AUTHORIZATION, token)])
    }

    /// What the whole of this is for.
    #[test]
    fn a_token_is_sent_once() {
        let mut encoder = Encoder::new();
        let mut lengths = (0..3).map(|_| encode(&mut encoder, &Method::GET, "/api", &token()).len());
        assert!(lengths.next().unwrap() > 1200);
        assert_eq!((lengths.next(), lengths.next()), (Some(10), Some(10)));
    }

    #[test]
    fn a_peer_without_a_table_gets_it_each_time() {
        let mut encoder = Encoder::new();
        encode(&mut encoder, &Method::GET, "/api", &token());
        encoder.resize(0);
        let block = encode(&mut encoder, &Method::GET, "/api", &token());
        assert_eq!((block[0], encoder.table.len()), (0x20, 0));
        assert!(encode(&mut encoder, &Method::GET, "/api", &token()).len() > 1200);
    }

    /// RFC 7541, section 4.2: the smallest size in between, then the last.
    #[test]
    fn a_table_that_shrinks_and_grows_is_told_both() {
        let mut encoder = Encoder::new();
        encoder.resize(10);
        encoder.resize(20);
        let block = encode(&mut encoder, &Method::GET, "/", &HeaderMap::new());
        assert_eq!(block[..3], [0x2a, 0x34, 0x82]);
    }

    fn method() -> impl Strategy<Value = Method> {
        prop::sample::select(vec![Method::GET, Method::POST, Method::PATCH, Method::DELETE])
    }

    /// Few names and values, so that they come again; some fill the table.
    fn fields() -> impl Strategy<Value = HeaderMap> {
        let name = prop::sample::select(vec![
            "authorization",
            "accept",
            "audit-id",
            "impersonate-user",
            "x",
            "y",
        ]);
        let value = (0..3_usize, prop::sample::select(vec![0, 1, 7, 8, 200, 1500, 4000]));
        let field = (name, value).prop_map(|(name, (kind, length))| {
            let value = ["a", "b", "c"][kind].repeat(length);
            (HeaderName::from_static(name), HeaderValue::from_str(&value).unwrap())
        });
        proptest::collection::vec(field, 0..8).prop_map(|fields| {
            let mut map = HeaderMap::new();
            for (name, value) in fields {
                map.append(name, value);
            }
            map
        })
    }

    proptest! {
        #[test]
        fn requests_come_back_field_by_field(
            requests in proptest::collection::vec((method(), fields(), prop::option::of(0..5000_usize)), 1..20),
        ) {
            let (mut encoder, mut decoder) = (Encoder::new(), Decoder::new());
            for (method, fields, size) in requests {
                if let Some(size) = size {
                    encoder.resize(size);
                }
                let block = encode(&mut encoder, &method, "/api", &fields);
                let (mut others, mut read) = (Vec::new(), Vec::new());
                decoder.decode(&block, |field| {
                    let value = field.value.clone().unwrap();
                    match &field.name {
                        decoder::Name::Field(name) => read.push((name.clone(), value)),
                        _ => others.push(value),
                    }
                }).unwrap();
                let sent: Vec<_> = fields.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
                prop_assert_eq!(read, sent);
                let expected = [method.as_str(), "https", "10.96.0.1", "/api"];
                prop_assert_eq!(others, expected.map(|value| HeaderValue::from_str(value).unwrap()));
            }
        }
    }
}
