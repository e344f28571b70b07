//! The head of an HTTP/1.1 answer, and where its body ends. Plain functions over bytes, no I/O.

use std::mem::MaybeUninit;

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Version, header};
use httparse::{Header, ParserConfig, Status};

/// As many fields may an answer have.
const FIELDS: usize = 128;
/// A longer line that says the size of a chunk, or a longer trailer, isn't read.
const LONGEST_LINE: usize = 16 * 1024;

/// Why an answer can't be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// It isn't HTTP/1.
    #[error("its head is not HTTP/1: {0}")]
    Head(httparse::Error),
    /// Its head is too long.
    #[error("its head is too long")]
    Long,
    /// It says in two ways where its body ends.
    #[error("it says in more than one way how long it is")]
    Length,
    /// A chunk's size can't be read, or is missing.
    #[error("a chunk is malformed")]
    Chunk,
}

/// How an answer's body is framed, and whether another answer may follow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Framing {
    pub(crate) length: Length,
    pub(crate) reusable: bool,
}

/// Where a body ends (RFC 9112, section 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Length {
    Sized(u64),
    Chunked,
    Rest,
}

/// Takes the head of the final answer off `read`, once it is there. Interim answers before it are dropped; 101 is final.
pub(crate) fn read(read: &mut BytesMut, method: &Method) -> Result<Option<(Response<()>, Framing)>, Malformed> {
    loop {
        let mut fields = [const { MaybeUninit::uninit() }; FIELDS];
        let mut parsed = httparse::Response::new(&mut []);
        let length = match ParserConfig::default().parse_response_with_uninit_headers(&mut parsed, read, &mut fields) {
            Ok(Status::Complete(length)) => length,
            Ok(Status::Partial) => return Ok(None),
            Err(error) => return Err(Malformed::Head(error)),
        };
        let (Some(code), Some(minor)) = (parsed.code, parsed.version) else {
            return Ok(None);
        };
        let status = StatusCode::from_u16(code).map_err(|_| Malformed::Head(httparse::Error::Status))?;
        if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS {
            read.advance(length);
            continue;
        }
        let headers = fields_of(parsed.headers)?;
        let framing = framing(&headers, status, minor, method)?;
        read.advance(length);
        let mut answer = Response::new(());
        *answer.status_mut() = status;
        *answer.version_mut() = if minor == 0 { Version::HTTP_10 } else { Version::HTTP_11 };
        *answer.headers_mut() = headers;
        return Ok(Some((answer, framing)));
    }
}

fn framing(headers: &HeaderMap, status: StatusCode, minor: u8, method: &Method) -> Result<Framing, Malformed> {
    let closes = headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .any(|option| option.trim_ascii().eq_ignore_ascii_case(b"close"));
    let reusable = minor == 1 && !closes && status != StatusCode::SWITCHING_PROTOCOLS;
    let length = length(headers)?;
    if status == StatusCode::SWITCHING_PROTOCOLS
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED
        || method == Method::HEAD
    {
        return Ok(Framing {
            length: Length::Sized(0),
            reusable,
        });
    }
    Ok(Framing {
        length,
        reusable: reusable && length != Length::Rest,
    })
}

/// As the fields say. Two lengths, or a length and chunks, could be taken for either.
fn length(headers: &HeaderMap) -> Result<Length, Malformed> {
    let mut encodings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let (encoding, length) = (encodings.next(), lengths.next());
    if encodings.next().is_some() || lengths.next().is_some() || encoding.is_some() && length.is_some() {
        return Err(Malformed::Length);
    }
    match (encoding, length) {
        (Some(encoding), _) if encoding.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(Length::Chunked),
        (Some(_), _) => Err(Malformed::Length),
        (None, Some(length)) => {
            let digits = length.as_bytes();
            if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
                return Err(Malformed::Length);
            }
            let text = std::str::from_utf8(digits).map_err(|_| Malformed::Length)?;
            text.parse().map(Length::Sized).map_err(|_| Malformed::Length)
        }
        (None, None) => Ok(Length::Rest),
    }
}

fn fields_of(fields: &[Header<'_>]) -> Result<HeaderMap, Malformed> {
    let mut headers = HeaderMap::with_capacity(fields.len());
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes());
        let name = name.map_err(|_| Malformed::Head(httparse::Error::HeaderName))?;
        let value = HeaderValue::from_bytes(field.value);
        headers.append(name, value.map_err(|_| Malformed::Head(httparse::Error::HeaderValue))?);
    }
    Ok(headers)
}

/// How far a body of chunks has been read (RFC 9112, section 7.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Chunks {
    /// Before a line that says a size.
    #[default]
    Size,
    /// In a chunk, with so many bytes left.
    Data(u64),
    /// Before the line's end that follows a chunk.
    DataEnd,
    /// In the trailer section.
    Trailers,
}

/// What comes next of a body.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    Data(Bytes),
    /// Nothing before more is read.
    More,
    /// Its end, and the fields that came with it.
    End(HeaderMap),
}

impl Chunks {
    /// Takes the next piece off what was read.
    pub(crate) fn next(&mut self, read: &mut BytesMut) -> Result<Piece, Malformed> {
        loop {
            match self {
                Self::Size => {
                    let Some(line) = line(read)? else {
                        return Ok(Piece::More);
                    };
                    *self = match size(&line)? {
                        0 => Self::Trailers,
                        size => Self::Data(size),
                    };
                }
                Self::Data(0) => *self = Self::DataEnd,
                Self::Data(_) if read.is_empty() => return Ok(Piece::More),
                Self::Data(left) => {
                    let here = usize::try_from(*left).unwrap_or(usize::MAX).min(read.len());
                    *left -= here as u64;
                    return Ok(Piece::Data(read.split_to(here).freeze()));
                }
                Self::DataEnd => {
                    let Some(line) = line(read)? else {
                        return Ok(Piece::More);
                    };
                    if !line.is_empty() {
                        return Err(Malformed::Chunk);
                    }
                    *self = Self::Size;
                }
                Self::Trailers => return trailers(read),
            }
        }
    }
}

/// Takes a line off, without its end.
fn line(read: &mut BytesMut) -> Result<Option<BytesMut>, Malformed> {
    let Some(feed) = memchr::memchr(b'\n', read) else {
        return if read.len() > LONGEST_LINE {
            Err(Malformed::Long)
        } else {
            Ok(None)
        };
    };
    let mut line = read.split_to(feed + 1);
    if feed == 0 || line[feed - 1] != b'\r' {
        return Err(Malformed::Chunk);
    }
    line.truncate(feed - 1);
    Ok(Some(line))
}

/// The size that a chunk's first line says; its extensions mean nothing to us.
fn size(line: &[u8]) -> Result<u64, Malformed> {
    let digits = line
        .split(|byte| *byte == b';')
        .next()
        .unwrap_or_default()
        .trim_ascii_end();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err(Malformed::Chunk);
    }
    let text = std::str::from_utf8(digits).map_err(|_| Malformed::Chunk)?;
    u64::from_str_radix(text, 16).map_err(|_| Malformed::Chunk)
}

fn trailers(read: &mut BytesMut) -> Result<Piece, Malformed> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS];
    let (length, trailers) = match httparse::parse_headers(read, &mut fields) {
        Ok(Status::Complete((length, fields))) => (length, fields_of(fields)?),
        Ok(Status::Partial) if read.len() > LONGEST_LINE => return Err(Malformed::Long),
        Ok(Status::Partial) => return Ok(Piece::More),
        Err(error) => return Err(Malformed::Head(error)),
    };
    read.advance(length);
    Ok(Piece::End(trailers))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    const HEAD: &str = "HTTP/1.1 200 OK\r\n";

    fn sized(length: u64) -> Framing {
        Framing {
            length: Length::Sized(length),
            reusable: true,
        }
    }

    fn framing_of(fields: &str, method: &Method) -> Result<Framing, Malformed> {
        let mut bytes = BytesMut::from(format!("{HEAD}{fields}\r\nrest").as_bytes());
        let (_, framing) = read(&mut bytes, method)?.expect("the head is whole");
        assert_eq!(bytes, "rest");
        Ok(framing)
    }

    #[rstest]
    #[case::length("content-length: 5\r\n", Ok(sized(5)))]
    #[case::nothing("content-length: 0\r\n", Ok(sized(0)))]
    #[case::chunks("transfer-encoding: Chunked\r\n", Ok(Framing { length: Length::Chunked, reusable: true }))]
    #[case::rest("", Ok(Framing { length: Length::Rest, reusable: false }))]
    #[case::closes("content-length: 5\r\nconnection: x, Close\r\n", Ok(Framing { reusable: false, ..sized(5) }))]
    #[case::two_lengths("content-length: 5\r\ncontent-length: 5\r\n", Err(Malformed::Length))]
    #[case::a_list("content-length: 5, 5\r\n", Err(Malformed::Length))]
    #[case::signed("content-length: +5\r\n", Err(Malformed::Length))]
    #[case::empty("content-length: \r\n", Err(Malformed::Length))]
    #[case::beyond("content-length: 99999999999999999999\r\n", Err(Malformed::Length))]
    #[case::both("content-length: 5\r\ntransfer-encoding: chunked\r\n", Err(Malformed::Length))]
    #[case::two_encodings(
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
        Err(Malformed::Length)
    )]
    #[case::another("transfer-encoding: gzip, chunked\r\n", Err(Malformed::Length))]
    fn an_answer_ends_where_it_says(#[case] fields: &str, #[case] expected: Result<Framing, Malformed>) {
        assert_eq!(framing_of(fields, &Method::GET), expected);
    }

    #[rstest]
    #[case::head("HTTP/1.1 200 OK", Method::HEAD, true)]
    #[case::unchanged("HTTP/1.1 304 Not Modified", Method::GET, true)]
    #[case::no_content("HTTP/1.1 204 No Content", Method::GET, true)]
    #[case::switched("HTTP/1.1 101 Switching Protocols", Method::GET, false)]
    fn some_answers_have_no_body(#[case] line: &str, #[case] method: Method, #[case] reusable: bool) {
        let mut bytes = BytesMut::from(format!("{line}\r\ncontent-length: 5\r\n\r\n").as_bytes());
        let (_, framing) = read(&mut bytes, &method).unwrap().unwrap();
        assert_eq!(framing, Framing { reusable, ..sized(0) });
    }

    #[test]
    fn an_old_server_closes() {
        let mut bytes = BytesMut::from("HTTP/1.0 200 OK\r\ncontent-length: 5\r\nconnection: keep-alive\r\n\r\n");
        let (_, framing) = read(&mut bytes, &Method::GET).unwrap().unwrap();
        assert!(!framing.reusable);
    }

    #[test]
    fn interim_answers_are_dropped() {
        let text =
            format!("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n{HEAD}a: b\r\n\r\n");
        for cut in 0..text.len() {
            let mut bytes = BytesMut::from(&text[..cut]);
            assert!(read(&mut bytes, &Method::GET).unwrap().is_none(), "{cut}");
            bytes.extend_from_slice(&text.as_bytes()[cut..]);
            let (answer, _) = read(&mut bytes, &Method::GET).unwrap().unwrap();
            assert_eq!(
                (answer.status(), answer.headers()["a"].as_bytes()),
                (StatusCode::OK, &b"b"[..])
            );
        }
    }

    /// A body's bytes, how many trailers it has, and what follows it.
    type Read = (Vec<u8>, usize, Vec<u8>);

    /// What comes of a body of chunks that arrives in pieces.
    fn chunks(body: &[u8], cuts: &[usize]) -> Result<Option<Read>, Malformed> {
        let (mut chunks, mut held, mut data, mut from) = (Chunks::default(), BytesMut::new(), Vec::new(), 0);
        for to in cuts.iter().copied().chain([body.len()]) {
            held.extend_from_slice(&body[from..to]);
            from = to;
            loop {
                match chunks.next(&mut held)? {
                    Piece::Data(piece) => data.extend_from_slice(&piece),
                    Piece::More => break,
                    Piece::End(trailers) => {
                        held.extend_from_slice(&body[from..]);
                        return Ok(Some((data, trailers.len(), held.to_vec())));
                    }
                }
            }
        }
        Ok(None)
    }

    #[rstest]
    #[case::size("x\r\n")]
    #[case::no_size("\r\n")]
    #[case::signed("+5\r\nhello\r\n")]
    #[case::beyond("10000000000000000\r\n")]
    #[case::bare_feed("5\nhello\r\n")]
    #[case::longer("5\r\nhello!\r\n0\r\n\r\n")]
    #[case::shorter("5\r\nhell\r\n0\r\n\r\n")]
    #[case::trailer("0\r\n: x\r\n\r\n")]
    fn malformed_chunks_are_refused(#[case] body: &str) {
        assert!(chunks(body.as_bytes(), &[]).is_err());
    }

    #[test]
    fn an_endless_line_is_refused() {
        let body = format!("5;{}", "x".repeat(LONGEST_LINE));
        assert_eq!(chunks(body.as_bytes(), &[]), Err(Malformed::Long));
    }

    proptest! {
        #[test]
        fn chunks_arrive_whole_however_they_are_cut(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..6),
            trailers in 0..3_usize,
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let mut body = Vec::new();
            for piece in &pieces {
                body.extend_from_slice(format!("{:X};x=y\r\n", piece.len()).as_bytes());
                body.extend_from_slice(piece);
                body.extend_from_slice(b"\r\n");
            }
            body.extend_from_slice(b"0\r\n");
            for trailer in 0..trailers {
                body.extend_from_slice(format!("t{trailer}: v\r\n").as_bytes());
            }
            body.extend_from_slice(b"\r\nnext");
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(body.len())).collect();
            cuts.sort_unstable();
            let read = chunks(&body, &cuts).unwrap();
            prop_assert_eq!(read, Some((pieces.concat(), trailers, b"next".to_vec())));
        }
    }
}
