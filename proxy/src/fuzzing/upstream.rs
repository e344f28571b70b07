//! An upstream's bytes on an HTTP/1.1 connection, after a request: the first says in pieces of what size they come, the second
//! whether `HEAD` was asked, the rest are the stream.
//!
//! What is taken for an answer is read here once more, by the grammar of RFC 9112 and nothing else.

use bytes::BytesMut;
use http::Method;

use super::stream::{field, number};
use crate::upstream::answer::{self, Chunks, Length, Malformed, Piece};

/// An answer can be read in one way only, and however the stream is cut, it is the same.
pub(super) fn holds(bytes: &[u8]) {
    let [size, method, stream @ ..] = bytes else {
        return;
    };
    let method = if method % 2 == 0 { Method::GET } else { Method::HEAD };
    let whole = Taken::of(stream, &method, stream.len().max(1));
    let cut = Taken::of(stream, &method, usize::from(*size).max(1));
    assert_eq!(whole, cut);
    whole.is_plain(stream, &method);
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Taken {
    /// Its code, and how many fields it has.
    head: Option<(u16, usize)>,
    data: Vec<u8>,
    /// How many fields came behind the body, once its end has come, and how many bytes all of it had. A body that goes on
    /// until the connection is closed never has one.
    ended: Option<(usize, usize)>,
    malformed: Option<Malformed>,
}

impl Taken {
    fn of(stream: &[u8], method: &Method, size: usize) -> Self {
        let mut this = Self::default();
        let (mut left, mut held, mut came) = (None, BytesMut::new(), 0);
        for piece in stream.chunks(size) {
            held.extend_from_slice(piece);
            came += piece.len();
            if let Err(malformed) = this.take(method, &mut left, &mut held) {
                this.malformed = Some(malformed);
            } else if let Some((_, length)) = &mut this.ended {
                *length = came - held.len();
            } else {
                continue;
            }
            break;
        }
        this
    }

    fn take(&mut self, method: &Method, left: &mut Option<Left>, held: &mut BytesMut) -> Result<(), Malformed> {
        if left.is_none()
            && let Some((answer, framing)) = answer::read(held, method)?
        {
            self.head = Some((answer.status().as_u16(), answer.headers().len()));
            assert!(
                !framing.reusable || framing.length != Length::Rest,
                "its end is that of the connection"
            );
            *left = Some(match framing.length {
                Length::Sized(length) => Left::Sized(length),
                Length::Chunked => Left::Chunked(Chunks::default()),
                Length::Rest => Left::Rest,
            });
        }
        match left {
            None => {}
            Some(Left::Rest) => self.data.extend_from_slice(&held.split()),
            Some(Left::Sized(left)) => {
                let here = usize::try_from(*left).unwrap_or(usize::MAX).min(held.len());
                self.data.extend_from_slice(&held.split_to(here));
                *left -= here as u64;
                self.ended = (*left == 0).then_some((0, 0));
            }
            Some(Left::Chunked(chunks)) => loop {
                match chunks.next(held)? {
                    Piece::Data(data) => self.data.extend_from_slice(&data),
                    Piece::More => break,
                    Piece::End(fields) => {
                        self.ended = Some((fields.len(), 0));
                        break;
                    }
                }
            },
        }
        Ok(())
    }

    fn is_plain(&self, stream: &[u8], method: &Method) {
        let Some(head) = self.head else { return };
        let mut reader = Reader(stream);
        let (read, body) = reader.answer(method);
        assert_eq!(read, head, "{self:?}");
        let mut data = Vec::new();
        let ended = reader.body(body, &mut data, self.malformed.is_some());
        assert_eq!(data, self.data, "{self:?}");
        if self.malformed.is_none() {
            assert_eq!(
                ended.map(|fields| (fields, stream.len() - reader.0.len())),
                self.ended,
                "{self:?}"
            );
        }
    }
}

/// What is left of a body.
enum Left {
    Sized(u64),
    Chunked(Chunks),
    Rest,
}

#[derive(Clone, Copy)]
enum Body {
    Sized(u64),
    Chunked,
    Rest,
}

/// Reads an answer whose head is known to be there, and panics at what isn't one. `None` is the end of the bytes in the midst of it.
struct Reader<'b>(&'b [u8]);

impl<'b> Reader<'b> {
    /// The first that is final.
    fn answer(&mut self, method: &Method) -> ((u16, usize), Body) {
        loop {
            let (code, fields, body) = self.head();
            if code == 101 || code >= 200 {
                let has_none = matches!(code, 101 | 204 | 304) || method == Method::HEAD;
                return ((code, fields), if has_none { Body::Sized(0) } else { body });
            }
        }
    }

    fn head(&mut self) -> (u16, usize, Body) {
        let Some(mut line) = self.line() else {
            panic!("an answer without a head");
        };
        while line.is_empty() {
            line = self.line().unwrap_or(b"-");
        }
        assert!(
            line.starts_with(b"HTTP/1.1 ") || line.starts_with(b"HTTP/1.0 "),
            "another version"
        );
        let code = number(&line[9..12], 10);
        assert!(matches!(line.get(12), None | Some(b' ')), "a longer code");
        let (mut fields, mut lengths, mut encodings) = (0, Vec::new(), 0);
        loop {
            let Some(line) = self.line() else {
                panic!("a head was taken in part");
            };
            if line.is_empty() {
                break;
            }
            let (name, value) = field(line);
            fields += 1;
            match name.to_ascii_lowercase().as_slice() {
                b"content-length" => lengths.push(value),
                b"transfer-encoding" => encodings += usize::from(value.eq_ignore_ascii_case(b"chunked")),
                _ => {}
            }
        }
        let body = match (lengths.as_slice(), encodings) {
            ([], 0) => Body::Rest,
            ([], 1) => Body::Chunked,
            ([length], 0) if code >= 200 || code == 101 => Body::Sized(number(length, 10)),
            _ => {
                assert!(code < 200 && code != 101, "two lengths");
                Body::Rest
            }
        };
        (u16::try_from(code).unwrap_or_default(), fields, body)
    }

    /// Its data, as far as they have come, and at its end how many fields follow. Where it `breaks`, what can't be read ends it.
    fn body(&mut self, body: Body, data: &mut Vec<u8>, breaks: bool) -> Option<usize> {
        match body {
            Body::Rest => {
                data.extend_from_slice(self.0);
                None
            }
            Body::Sized(length) => self.take(length, data).map(|()| 0),
            Body::Chunked => {
                loop {
                    let line = self.chunk_line(breaks)?;
                    let size = line.split(|byte| *byte == b';').next().unwrap_or_default();
                    let size = size.trim_ascii_end();
                    let digits = str::from_utf8(size).unwrap_or_default();
                    if breaks && (digits.starts_with('+') || u64::from_str_radix(digits, 16).is_err()) {
                        return None;
                    }
                    let size = number(size, 16);
                    if size == 0 {
                        break;
                    }
                    self.take(size, data)?;
                    let end = self.chunk_line(breaks)?;
                    if breaks && !end.is_empty() {
                        return None;
                    }
                    assert!(end.is_empty(), "a chunk is longer than it says");
                }
                let mut fields = 0;
                while !breaks
                    && let line = self.line()?
                    && !line.is_empty()
                {
                    field(line);
                    fields += 1;
                }
                Some(fields)
            }
        }
    }

    fn take(&mut self, length: u64, data: &mut Vec<u8>) -> Option<()> {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        data.extend_from_slice(&self.0[..length.min(self.0.len())]);
        let rest = self.0.get(length..);
        self.0 = rest.unwrap_or_default();
        rest.map(drop)
    }

    /// A line about a chunk, which has a carriage return before its line feed.
    fn chunk_line(&mut self, breaks: bool) -> Option<&'b [u8]> {
        let came = self.0;
        let line = self.line()?;
        if came.get(line.len()) != Some(&b'\r') {
            assert!(breaks, "a bare line feed");
            return None;
        }
        Some(line)
    }

    /// The next line, without its end, which may be a line feed alone (RFC 9112, section 2.2).
    fn line(&mut self) -> Option<&'b [u8]> {
        let feed = self.0.iter().position(|byte| *byte == b'\n')?;
        let line = &self.0[..feed];
        self.0 = &self.0[feed + 1..];
        Some(line.strip_suffix(b"\r").unwrap_or(line))
    }
}
