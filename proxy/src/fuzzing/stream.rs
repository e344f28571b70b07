//! A client's bytes on an HTTP/1 connection: the first says in pieces of what size they come, the rest are the stream.
//!
//! What the screen hands on is read here once more, by the grammar of RFC 9112 and nothing else.

use crate::{
    inbound::screen::framer::{Framer, Then},
    limits::Limits,
};

/// What is handed on can be read in one way, whole heads first, and however the stream is cut, the same of it is.
pub(super) fn holds(bytes: &[u8]) {
    let Some((size, stream)) = bytes.split_first() else {
        return;
    };
    let whole = Handed::on(stream, stream.len().max(1));
    let cut = Handed::on(stream, usize::from(*size).max(1));
    whole.is_plain(stream);
    cut.is_plain(stream);
    if matches!(whole.then, Then::Refuse(_)) {
        // A body that breaks in sight of its head refuses all of the request; otherwise its beginning has passed.
        assert!(cut.good >= whole.good, "{whole:?} {cut:?}");
        assert!(matches!(cut.then, Then::Refuse(_) | Then::Break), "{whole:?} {cut:?}");
    } else {
        assert_eq!(whole, cut);
    }
}

/// What became of a stream.
#[derive(Debug, PartialEq, Eq)]
struct Handed {
    good: usize,
    heads: u64,
    then: Then,
}

impl Handed {
    /// As the screen does it: what isn't good yet comes again, with the next piece.
    fn on(stream: &[u8], size: usize) -> Self {
        let mut framer = Framer::new(&Limits {
            max_header_bytes: 2048,
            max_headers: 96,
            ..Limits::default()
        });
        let mut this = Self {
            good: 0,
            heads: 0,
            then: Then::More,
        };
        let mut end = 0;
        while end < stream.len() && this.then == Then::More {
            end = (end + size).min(stream.len());
            let shown = framer.show(&stream[this.good..end]);
            this.good += shown.good;
            this.heads += shown.heads;
            this.then = shown.then;
        }
        this
    }

    fn is_plain(&self, stream: &[u8]) {
        let mut reader = Reader(&stream[..self.good]);
        let mut heads = 0;
        while !reader.0.is_empty() {
            heads += 1;
            // A body may go on beyond what has come; a head may not.
            let Some(body) = reader.head() else {
                panic!("a head was handed on in part: {}", self.good);
            };
            if reader.body(body).is_none() {
                break;
            }
        }
        assert_eq!(heads, self.heads, "{self:?}");
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
    fn head(&mut self) -> Option<Body> {
        let mut line = self.line()?;
        if line.is_empty() {
            line = self.line()?;
        }
        let minor = request_line(line);
        let (mut hosts, mut lengths, mut encodings) = (0, Vec::new(), 0);
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            let (name, value) = field(line);
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
        Some(if encodings == 1 {
            Body::Chunked
        } else {
            Body::Sized(lengths.first().copied().unwrap_or(0))
        })
    }

    fn body(&mut self, body: Body) -> Option<()> {
        match body {
            Body::Sized(length) => self.skip(length),
            Body::Chunked => {
                while let size @ 1.. = self.size()? {
                    self.skip(size)?;
                    self.end()?;
                }
                while let line = self.line()?
                    && !line.is_empty()
                {
                    assert!(!line.starts_with(b" ") && !line.starts_with(b"\t"), "a folded trailer");
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

    fn skip(&mut self, length: u64) -> Option<()> {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
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

fn field(line: &[u8]) -> (&[u8], &[u8]) {
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
fn number(digits: &[u8], radix: u32) -> u64 {
    let is_digit = |byte: &u8| char::from(*byte).is_digit(radix);
    assert!(!digits.is_empty() && digits.iter().all(is_digit), "no number");
    let text = str::from_utf8(digits).unwrap_or_default();
    let Ok(number) = u64::from_str_radix(text, radix) else {
        panic!("more than 64 bits");
    };
    number
}
