//! A client's bytes on an HTTP/1 connection: the first says in pieces of what size they come, the rest are the stream.
//!
//! What is taken for requests is read here once more, by the grammar of RFC 9112 and nothing else.

use bytes::BytesMut;
use http::Version;

use crate::{
    inbound::http1::{
        framer::{Framer, Piece},
        head::{Framing, Verdict},
    },
    limits::Limits,
};

/// What is served can be read in one way, whole heads first, and however the stream is cut, the same of it is.
pub(super) fn holds(bytes: &[u8]) {
    let Some((size, stream)) = bytes.split_first() else {
        return;
    };
    let whole = Taken::of(stream, stream.len().max(1));
    let cut = Taken::of(stream, usize::from(*size).max(1));
    whole.is_plain(stream);
    cut.is_plain(stream);
    if matches!(whole.then, Then::Refuse(_)) {
        // A body that breaks in sight of its head refuses all of the request; otherwise its beginning was taken.
        assert!(cut.good >= whole.good, "{whole:?} {cut:?}");
        assert!(matches!(cut.then, Then::Refuse(_) | Then::Break), "{whole:?} {cut:?}");
        assert_eq!(whole.requests, cut.requests[..whole.requests.len()]);
    } else {
        assert_eq!(whole, cut);
    }
}

/// What comes after what was taken.
#[derive(Debug, PartialEq, Eq)]
enum Then {
    More,
    /// What the answer to the last head says: another head, or bytes of another protocol.
    Decide,
    Refuse(Verdict),
    Break,
}

/// A request: its line, how many fields it has, and as much of its body as there is.
type Seen = (String, usize, Vec<u8>);

/// What became of a stream.
#[derive(Debug, PartialEq, Eq)]
struct Taken {
    good: usize,
    requests: Vec<Seen>,
    then: Then,
}

impl Taken {
    /// As a connection does it: what isn't taken comes again, with the next piece.
    fn of(stream: &[u8], size: usize) -> Self {
        let mut framer = Framer::new(&Limits {
            max_header_bytes: 2048,
            max_headers: 96,
            ..Limits::default()
        });
        let mut this = Self {
            good: 0,
            requests: Vec::new(),
            then: Then::More,
        };
        let mut held = BytesMut::new();
        for piece in stream.chunks(size) {
            held.extend_from_slice(piece);
            this.take(&mut framer, &mut held);
            if this.then != Then::More {
                break;
            }
        }
        this
    }

    fn take(&mut self, framer: &mut Framer, read: &mut BytesMut) {
        loop {
            let before = read.len();
            match framer.body(read) {
                Piece::Data(data, is_last) => {
                    assert_eq!(is_last, framer.is_between_requests());
                    self.requests
                        .last_mut()
                        .into_iter()
                        .for_each(|request| request.2.extend(&data));
                }
                Piece::More => {
                    self.good += before - read.len();
                    return;
                }
                Piece::Broken => self.then = Then::Break,
                Piece::End => {
                    // The end of the last body is taken with it.
                    self.good += before - read.len();
                    let before = read.len();
                    match framer.head(read) {
                        Ok(Some(head)) => {
                            let request = &head.request;
                            let line = format!("{} {} {:?}", request.method(), request.uri(), request.version());
                            self.requests.push((line, request.headers().len(), Vec::new()));
                            if head.framing == Framing::Undecided {
                                self.then = Then::Decide;
                            }
                            assert!(!head.expects || request.version() == Version::HTTP_11);
                        }
                        Ok(None) => return,
                        Err(verdict) => {
                            self.then = Then::Refuse(verdict);
                            return;
                        }
                    }
                    self.good += before - read.len();
                    if self.then != Then::More {
                        return;
                    }
                    continue;
                }
            }
            self.good += before - read.len();
            if self.then != Then::More {
                return;
            }
        }
    }

    fn is_plain(&self, stream: &[u8]) {
        let mut reader = Reader(&stream[..self.good]);
        let mut requests = Vec::new();
        while !reader.0.is_empty() {
            // A body may go on beyond what has come; a head may not.
            let Some((fields, body)) = reader.head() else {
                panic!("a head was taken in part: {}", self.good);
            };
            let mut data = Vec::new();
            let ended = reader.body(body, &mut data);
            requests.push((fields, data));
            if ended.is_none() {
                break;
            }
        }
        let taken: Vec<_> = self
            .requests
            .iter()
            .map(|(_, fields, data)| (*fields, data.clone()))
            .collect();
        assert_eq!(requests, taken, "{self:?}");
    }
}

#[derive(Clone, Copy)]
enum Body {
    Sized(u64),
    Chunked,
}

/// Reads requests, and panics at what isn't one. `None` is the end of the bytes in the midst of it.
struct Reader<'b>(&'b [u8]);

impl<'b> Reader<'b> {
    /// How many fields it has, and what follows.
    fn head(&mut self) -> Option<(usize, Body)> {
        let mut line = self.line()?;
        if line.is_empty() {
            line = self.line()?;
        }
        let minor = request_line(line);
        let (mut fields, mut hosts, mut lengths, mut encodings) = (0, 0, Vec::new(), 0);
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            let (name, value) = field(line);
            fields += 1;
            match name.to_ascii_lowercase().as_slice() {
                b"host" => hosts += 1,
                b"content-length" => lengths.push(number(value, 10)),
                b"transfer-encoding" => {
                    assert!(value.eq_ignore_ascii_case(b"chunked"), "another encoding");
                    encodings += 1;
                }
                _ => {}
            }
        }
        assert!(hosts == 1 || minor == b'0' && hosts == 0, "{hosts} hosts");
        assert!(lengths.len() + encodings <= 1, "two lengths");
        assert!(minor == b'1' || encodings == 0, "chunks in HTTP/1.0");
        let body = if encodings == 1 {
            Body::Chunked
        } else {
            Body::Sized(lengths.first().copied().unwrap_or(0))
        };
        Some((fields, body))
    }

    /// Its data, as far as they have come.
    fn body(&mut self, body: Body, data: &mut Vec<u8>) -> Option<()> {
        match body {
            Body::Sized(length) => self.take(length, data),
            Body::Chunked => {
                while let size @ 1.. = self.size()? {
                    self.take(size, data)?;
                    self.end()?;
                }
                while let line = self.line()?
                    && !line.is_empty()
                {
                    field(line);
                }
                Some(())
            }
        }
    }

    fn size(&mut self) -> Option<u64> {
        let line = self.line()?;
        let size = line.split(|byte| *byte == b';').next().unwrap_or_default();
        Some(number(size, 16))
    }

    fn end(&mut self) -> Option<()> {
        let line = self.line()?;
        assert!(line.is_empty(), "a chunk is longer than it says");
        Some(())
    }

    fn take(&mut self, length: u64, data: &mut Vec<u8>) -> Option<()> {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        data.extend_from_slice(&self.0[..length.min(self.0.len())]);
        let rest = self.0.get(length..);
        self.0 = rest.unwrap_or_default();
        rest.map(drop)
    }

    /// The next line, without its end.
    fn line(&mut self) -> Option<&'b [u8]> {
        let bytes = self.0;
        let feed = bytes.iter().position(|byte| *byte == b'\n');
        let text = &bytes[..feed.unwrap_or(bytes.len())];
        let line = text.strip_suffix(b"\r").unwrap_or(text);
        let is_text = |byte: &u8| *byte == b'\t' || !byte.is_ascii_control();
        assert!(line.iter().all(is_text), "control characters");
        assert!(feed.is_none() || text.len() > line.len(), "a bare line feed");
        self.0 = feed.map_or(&[], |feed| &bytes[feed + 1..]);
        feed.map(|_| line)
    }
}

/// Its minor version.
fn request_line(line: &[u8]) -> u8 {
    let parts: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let [method, target, version] = parts.as_slice() else {
        panic!("a request line of {} parts", parts.len());
    };
    assert!(is_token(method) && !target.is_empty(), "no request line");
    assert!(!matches!(*method, b"CONNECT" | b"TRACE"), "a method that isn't served");
    match *version {
        b"HTTP/1.0" => b'0',
        b"HTTP/1.1" => b'1',
        _ => panic!("another version"),
    }
}

/// Its name and its value.
pub(super) fn field(line: &[u8]) -> (&[u8], &[u8]) {
    let Some(colon) = line.iter().position(|byte| *byte == b':') else {
        panic!("a field without a colon");
    };
    assert!(is_token(&line[..colon]), "no field's name");
    (&line[..colon], line[colon + 1..].trim_ascii())
}

/// RFC 9110, section 5.6.2.
fn is_token(name: &[u8]) -> bool {
    let is_of_one = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !name.is_empty() && name.iter().all(is_of_one)
}

/// Digits alone.
pub(super) fn number(digits: &[u8], radix: u32) -> u64 {
    let is_digit = |byte: &u8| char::from(*byte).is_digit(radix);
    assert!(!digits.is_empty() && digits.iter().all(is_digit), "no number");
    let text = str::from_utf8(digits).unwrap_or_default();
    let Ok(number) = u64::from_str_radix(text, radix) else {
        panic!("more than 64 bits");
    };
    number
}
