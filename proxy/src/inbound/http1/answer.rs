//! How an answer is framed, and its head. Plain functions over plain data, no I/O.

use std::{
    cell::Cell,
    io::Write,
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, Version, header, response::Parts};
use http_body::Body;
use jiff::{Timestamp, fmt::rfc2822::DateTimePrinter};

use super::head::{Head, Verdict};

/// Room for a head, in bytes: a usual one fits.
const USUAL_HEAD: usize = 512;
/// A smaller piece of a chunked body is copied, to be one with the lines around it.
const SMALL: usize = 4 * 1024;
/// The longest line before a chunk, and the line's end behind it: 16 digits.
const AROUND: usize = 16 + 2 + 2;
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";
/// `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110, section 5.6.7).
const DATE: usize = 29;

/// What of a request says how its answer is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) is_head: bool,
    pub(super) is_old: bool,
    /// Whether another request may follow.
    pub(super) keeps_alive: bool,
}

/// An answer that says in two ways how long it is, or in none that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("its length can't be understood")]
pub(crate) struct Malformed;

/// How an answer's body ends (RFC 9112, section 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Length {
    /// There is none.
    Nothing,
    /// After so many bytes.
    Sized(u64),
    /// With the last chunk.
    Chunked,
    /// With the connection.
    Close,
}

impl Asked {
    pub(super) fn of(head: &Head) -> Self {
        Self {
            is_head: head.request.method() == Method::HEAD,
            is_old: head.request.version() == Version::HTTP_10,
            keeps_alive: head.keeps_alive,
        }
    }

    pub(super) fn refused(verdict: &Verdict) -> Self {
        Self {
            is_head: verdict.method == Method::HEAD,
            is_old: false,
            keeps_alive: false,
        }
    }
}

/// Puts an answer's head together, and tells how its body is framed and whether another request may follow. The fields that
/// say so are ours: whatever an answer says of its connection or of its encoding for the transfer isn't taken over.
///
/// # Errors
/// If it isn't known where the answer ends.
pub(super) fn begin<B: Body>(answer: &Parts, body: &B, asked: Asked) -> Result<(Vec<u8>, Length, bool), Malformed> {
    let declared = declared(&answer.headers)?;
    let exact = if body.is_end_stream() {
        Some(0)
    } else {
        body.size_hint().exact()
    };
    let (length, said) = if has_none(answer.status) {
        (Length::Nothing, None)
    } else if asked.is_head {
        (Length::Nothing, declared.or(exact.filter(|exact| *exact > 0)))
    } else {
        match declared.or(exact) {
            Some(length) => (Length::Sized(length), Some(length)),
            None if asked.is_old => (Length::Close, None),
            None => (Length::Chunked, None),
        }
    };
    let keeps_alive = asked.keeps_alive && length != Length::Close && !says_close(&answer.headers);
    let mut head = Vec::with_capacity(USUAL_HEAD);
    line(&mut head, answer.status, asked.is_old);
    fields(&mut head, &answer.headers, false);
    match (said, length) {
        (Some(said), _) => write(&mut head, format_args!("content-length: {said}\r\n")),
        (None, Length::Chunked) => head.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        _ => {}
    }
    match (keeps_alive, asked.is_old) {
        (false, false) => head.extend_from_slice(b"connection: close\r\n"),
        (true, true) => head.extend_from_slice(b"connection: keep-alive\r\n"),
        _ => {}
    }
    end(&mut head, &answer.headers);
    Ok((head, length, keeps_alive))
}

/// The head of an answer that switches protocols.
pub(super) fn switch(headers: &HeaderMap) -> Vec<u8> {
    let mut head = Vec::with_capacity(USUAL_HEAD);
    line(&mut head, StatusCode::SWITCHING_PROTOCOLS, false);
    fields(&mut head, headers, true);
    end(&mut head, headers);
    head
}

/// RFC 9110, section 6.4.1.
pub(crate) fn has_none(status: StatusCode) -> bool {
    status.is_informational() || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

pub(crate) fn declared(headers: &HeaderMap) -> Result<Option<u64>, Malformed> {
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(length) = lengths.next() else {
        return Ok(None);
    };
    let digits = length.as_bytes();
    if lengths.next().is_some() || digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(Malformed);
    }
    let text = std::str::from_utf8(digits).map_err(|_| Malformed)?;
    text.parse().map(Some).map_err(|_| Malformed)
}

fn says_close(headers: &HeaderMap) -> bool {
    crate::identity::list_members(headers, &header::CONNECTION).any(|option| option.eq_ignore_ascii_case(b"close"))
}

fn line(head: &mut Vec<u8>, status: StatusCode, is_old: bool) {
    if status == StatusCode::OK && !is_old {
        head.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
        return;
    }
    let minor = u8::from(!is_old);
    let reason = status.canonical_reason().unwrap_or_default();
    write(head, format_args!("HTTP/1.{minor} {} {reason}\r\n", status.as_str()));
}

fn fields(head: &mut Vec<u8>, headers: &HeaderMap, switches: bool) {
    for (name, value) in headers {
        if [header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::TRAILER].contains(name)
            || !switches && *name == header::CONNECTION
        {
            continue;
        }
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            head.extend_from_slice(part);
        }
    }
}

/// A server with a clock says when it answered (RFC 9110, section 6.6.1): the upstream does, and otherwise we do.
fn end(head: &mut Vec<u8>, headers: &HeaderMap) {
    if !headers.contains_key(header::DATE)
        && let Some(date) = date()
    {
        head.extend_from_slice(b"date: ");
        head.extend_from_slice(&date);
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
}

/// The time, which each thread puts into words once a second.
pub(crate) fn date() -> Option<[u8; DATE]> {
    thread_local!(static LAST: Cell<(u64, [u8; DATE])> = const { Cell::new((0, [0; DATE])) });
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs();
    let (second, text) = LAST.get();
    if second == now {
        return Some(text);
    }
    let time = Timestamp::from_second(i64::try_from(now).ok()?).ok()?;
    let text = DateTimePrinter::new().timestamp_to_rfc9110_string(&time).ok()?;
    let text = text.into_bytes().try_into().ok()?;
    LAST.set((now, text));
    Some(text)
}

/// Writing to memory doesn't fail.
fn write(head: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    let _ = head.write_fmt(text);
}

/// Frames a piece of a chunked body, and hands on what is to be written.
pub(super) fn chunk(data: Bytes, mut write: impl FnMut(Bytes)) {
    let room = if data.len() < SMALL {
        data.len() + AROUND
    } else {
        AROUND
    };
    let mut line = Vec::with_capacity(room);
    self::write(&mut line, format_args!("{:x}\r\n", data.len()));
    if data.len() < SMALL {
        line.extend_from_slice(&data);
        line.extend_from_slice(b"\r\n");
        write(line.into());
    } else {
        write(line.into());
        write(data);
        write(Bytes::from_static(b"\r\n"));
    }
}

/// What follows the last chunk.
pub(super) fn last_chunk() -> Bytes {
    Bytes::from_static(LAST_CHUNK)
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, Response};
    use http_body_util::{BodyExt, Empty, Full, StreamBody, combinators::UnsyncBoxBody};
    use rstest::rstest;

    use super::*;

    const NEW: Asked = Asked {
        is_head: false,
        is_old: false,
        keeps_alive: true,
    };
    const OLD: Asked = Asked { is_old: true, ..NEW };
    const HEAD: Asked = Asked { is_head: true, ..NEW };

    type Any = UnsyncBoxBody<Bytes, std::convert::Infallible>;

    fn streamed() -> Any {
        StreamBody::new(futures_util::stream::pending()).boxed_unsync()
    }

    fn whole(text: &'static str) -> Any {
        Full::new(Bytes::from(text)).boxed_unsync()
    }

    fn none() -> Any {
        Empty::new().boxed_unsync()
    }

    /// A body that doesn't say its length, and is at its end: as a stream of HTTP/2 that ended with its head.
    struct Ended;

    impl Body for Ended {
        type Data = Bytes;
        type Error = std::convert::Infallible;

        fn poll_frame(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Self::Error>>> {
            std::task::Poll::Ready(None)
        }

        fn is_end_stream(&self) -> bool {
            true
        }
    }

    fn ended() -> Any {
        Ended.boxed_unsync()
    }

    /// The fields that frame it or say what becomes of the connection, its length, and whether another request may follow.
    fn framed(code: u16, fields: &[(&'static str, &str)], body: &Any, asked: Asked) -> Option<(String, Length, bool)> {
        let mut answer = Response::new(());
        *answer.status_mut() = StatusCode::from_u16(code).unwrap();
        for (name, value) in fields {
            answer
                .headers_mut()
                .append(HeaderName::from_static(name), value.parse().unwrap());
        }
        let (parts, ()) = answer.into_parts();
        let (head, length, keeps_alive) = begin(&parts, body, asked).ok()?;
        let head = String::from_utf8(head).unwrap();
        assert!(head.ends_with("\r\n\r\n") && head.contains("date: "), "{head}");
        let framing: Vec<&str> = head
            .lines()
            .skip(1)
            .filter(|line| !line.starts_with("date: ") && !line.is_empty())
            .collect();
        Some((framing.join("|"), length, keeps_alive))
    }

    #[rstest]
    #[case::whole(200, &[], whole("abc"), NEW, "content-length: 3", Length::Sized(3), true)]
    #[case::declared(200, &[("content-length", "7")], streamed(), NEW, "content-length: 7", Length::Sized(7), true)]
    #[case::unknown(200, &[], streamed(), NEW, "transfer-encoding: chunked", Length::Chunked, true)]
    #[case::encoded(
        200, &[("transfer-encoding", "gzip, chunked"), ("trailer", "x")], streamed(), NEW,
        "transfer-encoding: chunked", Length::Chunked, true
    )]
    #[case::empty(200, &[], none(), NEW, "content-length: 0", Length::Sized(0), true)]
    #[case::ended_of_unknown_length(200, &[], ended(), NEW, "content-length: 0", Length::Sized(0), true)]
    #[case::cut_before_it_began(
        200, &[("content-length", "7")], none(), NEW, "content-length: 7", Length::Sized(7), true
    )]
    #[case::last(
        403, &[("connection", "close")], whole("no"), NEW, "content-length: 2|connection: close", Length::Sized(2), false
    )]
    #[case::asked_to_close(
        200, &[], streamed(), Asked { keeps_alive: false, ..NEW }, "transfer-encoding: chunked|connection: close",
        Length::Chunked, false
    )]
    #[case::head(200, &[("content-length", "7")], none(), HEAD, "content-length: 7", Length::Nothing, true)]
    #[case::head_of_ours(200, &[], whole("abc"), HEAD, "content-length: 3", Length::Nothing, true)]
    #[case::head_of_a_stream(200, &[], streamed(), HEAD, "", Length::Nothing, true)]
    #[case::no_content(204, &[("content-length", "0")], none(), NEW, "", Length::Nothing, true)]
    #[case::unchanged(304, &[("content-length", "7")], none(), NEW, "", Length::Nothing, true)]
    #[case::old(
        200, &[], whole("abc"), OLD, "content-length: 3|connection: keep-alive", Length::Sized(3), true
    )]
    #[case::old_stream(200, &[], streamed(), OLD, "", Length::Close, false)]
    fn an_answer_is_framed(
        #[case] code: u16,
        #[case] fields: &[(&'static str, &str)],
        #[case] body: Any,
        #[case] asked: Asked,
        #[case] framing: &str,
        #[case] length: Length,
        #[case] keeps_alive: bool,
    ) {
        let expected = Some((framing.to_owned(), length, keeps_alive));
        assert_eq!(framed(code, fields, &body, asked), expected);
    }

    #[rstest]
    #[case::two(&[("content-length", "3"), ("content-length", "3")])]
    #[case::list(&[("content-length", "3, 3")])]
    #[case::sign(&[("content-length", "+3")])]
    #[case::empty(&[("content-length", "")])]
    #[case::beyond(&[("content-length", "18446744073709551616")])]
    fn an_answer_of_two_lengths_is_none(#[case] fields: &[(&'static str, &str)]) {
        assert_eq!(framed(200, fields, &streamed(), NEW), None);
    }

    #[test]
    fn the_date_is_the_upstreams_or_ours() {
        let mut headers = HeaderMap::new();
        let ours = String::from_utf8(switch(&headers)).unwrap();
        assert!(ours.starts_with("HTTP/1.1 101 Switching Protocols\r\ndate: ") && ours.ends_with(" GMT\r\n\r\n"));
        headers.insert("date", "Sun, 06 Nov 1994 08:49:37 GMT".parse().unwrap());
        headers.insert("connection", "Upgrade".parse().unwrap());
        let theirs = String::from_utf8(switch(&headers)).unwrap();
        assert_eq!(theirs.matches("date: ").count(), 1, "{theirs}");
        assert!(theirs.contains("connection: Upgrade\r\n"), "{theirs}");
    }

    #[rstest]
    #[case(1)]
    #[case(SMALL - 1)]
    #[case(SMALL)]
    #[case(SMALL * 40)]
    fn a_chunk_says_its_length(#[case] length: usize) {
        let mut written = Vec::new();
        chunk(vec![b'x'; length].into(), |piece| written.extend_from_slice(&piece));
        let expected = [format!("{length:x}\r\n").as_bytes(), &vec![b'x'; length], b"\r\n"].concat();
        assert_eq!(written, expected);
    }
}
