//! The head of an HTTP/1 request, where it can be read in one way only, and how long its body is.
//!
//! Plain functions over bytes. What two readers could take differently (RFC 9112, section 11.2) is refused, also where
//! most would settle for one reading.

use std::mem::MaybeUninit;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Uri, Version, header};
use httparse::{Error, Header, ParserConfig, Request, Status};

use crate::status::Refusal;

/// Fields that fit without an allocation; a head with more is parsed once more.
const USUAL_FIELDS: usize = 64;
/// What the `http` crate takes for a target or a field's name. A head of a size that an operator allowed could have a
/// longer one.
const LONGEST: usize = 65_534;
/// Go's limit for a length as well.
const LONGEST_BODY: u64 = i64::MAX.cast_unsigned();

/// A request's head.
#[derive(Debug)]
pub(crate) struct Head {
    /// Its target and its values are slices of what was read.
    pub(crate) request: http::Request<()>,
    /// What follows.
    pub(crate) framing: Framing,
    /// Whether the client would have another request follow it (RFC 9112, section 9.3).
    pub(crate) keeps_alive: bool,
    /// Whether the client waits to be told before it sends the body (RFC 9110, section 10.1.1).
    pub(crate) expects: bool,
}

/// What follows a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// The next head.
    Nothing,
    /// The next head, or something else, as the answer says.
    Undecided,
    /// So many bytes, one at least.
    Sized(u64),
    /// Chunks.
    Chunked,
}

/// A request that isn't handed on, and what is known of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// What it is answered with.
    pub(crate) refusal: Refusal,
    /// Its method; `-` where it can't be read.
    pub(crate) method: Method,
    /// Its target; `-` where it can't be read.
    pub(crate) target: Uri,
}

impl Verdict {
    /// What is known of the request.
    pub(super) fn request(&self) -> http::Request<()> {
        let mut request = http::Request::new(());
        request.method_mut().clone_from(&self.method);
        request.uri_mut().clone_from(&self.target);
        request
    }

    /// On a head, or the beginning of one.
    pub(super) fn on(head: &[u8], refusal: Refusal) -> Self {
        let mut request = Request::new(&mut []);
        // It has no room for a field, and so always ends with an error; what came before the fields is kept.
        let _ = request.parse(head);
        let unread = || Method::from_bytes(b"-").unwrap_or_default();
        Self {
            refusal,
            method: request
                .method
                .and_then(|method| Method::from_bytes(method.as_bytes()).ok())
                .unwrap_or_else(unread),
            target: request
                .path
                .and_then(|path| Uri::try_from(path).ok())
                .unwrap_or_else(|| Uri::from_static("-")),
        }
    }
}

/// Reads a whole head: up to and with the empty line that ends it.
pub(super) fn read(head: &Bytes, max_fields: usize) -> Result<Head, Refusal> {
    let mut usual = [const { MaybeUninit::uninit() }; USUAL_FIELDS];
    let room = max_fields.min(USUAL_FIELDS);
    match parse(head, &mut usual[..room]) {
        Err(Error::TooManyHeaders) if max_fields > USUAL_FIELDS => {
            let mut many = vec![MaybeUninit::uninit(); max_fields];
            parse(head, &mut many)
        }
        judged => judged,
    }
    .unwrap_or_else(|error| Err(refusal(error)))
}

/// Judges the first line alone, as soon as it is there: who sends nothing more has to be told.
pub(super) fn judge_line(beginning: &[u8]) -> Result<(), Refusal> {
    match Request::new(&mut []).parse(beginning) {
        Ok(_) | Err(Error::TooManyHeaders) => Ok(()),
        Err(error) => Err(refusal(error)),
    }
}

fn refusal(error: Error) -> Refusal {
    match error {
        Error::TooManyHeaders => Refusal::TooManyHeaders,
        _ => Refusal::BadRequest,
    }
}

fn parse<'head>(head: &'head Bytes, fields: &mut [MaybeUninit<Header<'head>>]) -> Result<Result<Head, Refusal>, Error> {
    let mut request = Request::new(&mut []);
    let parsed = ParserConfig::default().parse_request_with_uninit_headers(&mut request, head, fields)?;
    if parsed != Status::Complete(head.len()) {
        return Ok(Err(Refusal::BadRequest));
    }
    let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version) else {
        return Ok(Err(Refusal::BadRequest));
    };
    Ok(judge(head, (method, target, minor), request.headers))
}

fn judge(head: &Bytes, (method, target, minor): (&str, &str, u8), fields: &[Header<'_>]) -> Result<Head, Refusal> {
    if matches!(method, "CONNECT" | "TRACE") {
        return Err(Refusal::MethodNotAllowed);
    }
    if target.len() > LONGEST {
        return Err(Refusal::HeadTooLarge);
    }
    let mut request = http::Request::new(());
    *request.method_mut() = Method::from_bytes(method.as_bytes()).map_err(|_| Refusal::BadRequest)?;
    *request.uri_mut() = Uri::from_maybe_shared(head.slice_ref(target.as_bytes())).map_err(|_| Refusal::BadRequest)?;
    *request.version_mut() = if minor == 0 { Version::HTTP_10 } else { Version::HTTP_11 };
    let headers = request.headers_mut();
    headers.reserve(fields.len());
    let mut named = Named::default();
    for field in fields {
        if field.name.len() > LONGEST {
            return Err(Refusal::HeadTooLarge);
        }
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| Refusal::BadRequest)?;
        named.see(&name, field.value)?;
        let value = HeaderValue::from_maybe_shared(head.slice_ref(field.value)).map_err(|_| Refusal::BadRequest)?;
        headers.append(name, value);
    }
    Ok(Head {
        framing: named.framing(minor)?,
        keeps_alive: if minor == 0 { named.keep_alive } else { true } && !named.close,
        expects: minor == 1 && named.expects,
        request,
    })
}

/// What the fields say of where a request goes, where it ends, and what the connection is to do.
#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a field that was seen")]
struct Named {
    host: bool,
    upgrade: bool,
    chunked: bool,
    length: Option<u64>,
    close: bool,
    keep_alive: bool,
    expects: bool,
}

impl Named {
    /// Those that frame a request may be there once: two, alike or not, can be weighed in more than one way.
    fn see(&mut self, name: &HeaderName, value: &[u8]) -> Result<(), Refusal> {
        let again = match *name {
            header::HOST => std::mem::replace(&mut self.host, true),
            header::CONTENT_LENGTH => self.length.replace(length(value)?).is_some(),
            header::TRANSFER_ENCODING => {
                if !value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                    return Err(Refusal::BadRequest);
                }
                std::mem::replace(&mut self.chunked, true)
            }
            header::UPGRADE => {
                self.upgrade = true;
                false
            }
            header::CONNECTION => {
                for option in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                    self.close |= option.eq_ignore_ascii_case(b"close");
                    self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                }
                false
            }
            header::EXPECT => {
                self.expects |= value.trim_ascii().eq_ignore_ascii_case(b"100-continue");
                false
            }
            _ => false,
        };
        if again { Err(Refusal::BadRequest) } else { Ok(()) }
    }

    fn framing(&self, minor: u8) -> Result<Framing, Refusal> {
        // HTTP/1.0 knows no Host, and no encoding of the transfer (RFC 9112, sections 3.2 and 6.1).
        if minor == 1 && !self.host || minor == 0 && self.chunked {
            return Err(Refusal::BadRequest);
        }
        match (self.chunked, self.length) {
            (true, Some(_)) => Err(Refusal::BadRequest),
            (true, None) => Ok(Framing::Chunked),
            (false, None | Some(0)) if self.upgrade => Ok(Framing::Undecided),
            (false, None | Some(0)) => Ok(Framing::Nothing),
            (false, Some(length)) => Ok(Framing::Sized(length)),
        }
    }
}

/// Digits and nothing else: no sign, no list.
fn length(value: &[u8]) -> Result<u64, Refusal> {
    let digits = std::str::from_utf8(value.trim_ascii()).map_err(|_| Refusal::BadRequest)?;
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Refusal::BadRequest);
    }
    match digits.parse() {
        Ok(length) if length <= LONGEST_BODY => Ok(length),
        _ => Err(Refusal::BadRequest),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn head(lines: &str) -> Result<Head, Refusal> {
        let head = format!("{}\r\n\r\n", lines.trim_end().replace('\n', "\r\n"));
        read(&head.into(), 256)
    }

    fn of(lines: &str) -> Result<Framing, Refusal> {
        head(lines).map(|head| head.framing)
    }

    #[test]
    fn a_head_is_read_whole() {
        let lines = "PATCH /api/v1/x?y=%20z HTTP/1.1\nHost: k\nX-A: \tb c \nx-a: \u{e9}\nempty:\n\
            content-length: 3\nExpect: 100-Continue";
        let head = head(lines).unwrap();
        let request = &head.request;
        assert_eq!(
            (request.method(), request.version()),
            (&Method::PATCH, Version::HTTP_11)
        );
        assert_eq!(request.uri().to_string(), "/api/v1/x?y=%20z");
        let values: Vec<&[u8]> = request
            .headers()
            .get_all("x-a")
            .iter()
            .map(HeaderValue::as_bytes)
            .collect();
        assert_eq!(values, ["b c".as_bytes(), "\u{e9}".as_bytes()]);
        assert_eq!(
            (request.headers()["empty"].as_bytes(), request.headers().len()),
            (b"".as_slice(), 6)
        );
        assert_eq!(
            (head.framing, head.keeps_alive, head.expects),
            (Framing::Sized(3), true, true)
        );
    }

    #[rstest]
    #[case::usual("GET / HTTP/1.1\nhost: k", true)]
    #[case::close("GET / HTTP/1.1\nhost: k\nconnection: x, Close", false)]
    #[case::close_of_both("GET / HTTP/1.1\nhost: k\nconnection: close\nconnection: keep-alive", false)]
    #[case::old("GET / HTTP/1.0", false)]
    #[case::old_and_kept("GET / HTTP/1.0\nconnection: Keep-Alive", true)]
    fn another_may_follow(#[case] lines: &str, #[case] keeps_alive: bool) {
        assert_eq!(head(lines).unwrap().keeps_alive, keeps_alive);
    }

    #[test]
    fn http_1_0_expects_nothing() {
        assert!(
            !head("PUT / HTTP/1.0\ncontent-length: 1\nexpect: 100-continue")
                .unwrap()
                .expects
        );
    }

    #[rstest]
    #[case::plain("GET /api?watch=1 HTTP/1.1\nHost: k", Framing::Nothing)]
    #[case::old("GET /api HTTP/1.0", Framing::Nothing)]
    #[case::absolute("GET https://k/api HTTP/1.1\nHost: k", Framing::Nothing)]
    #[case::no_body("POST / HTTP/1.1\nHost: k\nContent-Length: 0", Framing::Nothing)]
    #[case::sized("POST / HTTP/1.1\nhost: k\ncontent-LENGTH:\t7 ", Framing::Sized(7))]
    #[case::chunked("POST / HTTP/1.1\nhost: k\ntransfer-encoding: Chunked", Framing::Chunked)]
    #[case::upgrade("GET / HTTP/1.1\nhost: k\nupgrade: websocket", Framing::Undecided)]
    #[case::upgrade_with_a_body("GET / HTTP/1.1\nhost: k\nupgrade: websocket\ncontent-length: 1", Framing::Sized(1))]
    #[case::unusual_target("GET /a|b\"{} HTTP/1.1\nhost: k", Framing::Nothing)]
    fn passes(#[case] head: &str, #[case] framing: Framing) {
        assert_eq!(of(head), Ok(framing));
    }

    #[rstest]
    #[case::both("content-length: 5\ntransfer-encoding: chunked")]
    #[case::both_the_other_way("transfer-encoding: chunked\ncontent-length: 5")]
    #[case::two_lengths("content-length: 5\ncontent-length: 6")]
    #[case::one_length_twice("content-length: 5\ncontent-length: 5")]
    #[case::list_of_lengths("content-length: 5, 5")]
    #[case::sign("content-length: +5")]
    #[case::minus("content-length: -5")]
    #[case::hexadecimal("content-length: 0x5")]
    #[case::empty("content-length:")]
    #[case::inner_space("content-length: 1 0")]
    #[case::over_64_bits("content-length: 18446744073709551616")]
    #[case::over_63_bits("content-length: 9223372036854775808")]
    #[case::two_encodings("transfer-encoding: chunked\ntransfer-encoding: chunked")]
    #[case::list_of_encodings("transfer-encoding: gzip, chunked")]
    #[case::chunked_twice("transfer-encoding: chunked, chunked")]
    #[case::unknown_encoding("transfer-encoding: identity")]
    #[case::nearly_chunked("transfer-encoding: xchunked")]
    #[case::quoted("transfer-encoding: \"chunked\"")]
    #[case::vertical_tab("transfer-encoding: \u{b}chunked")]
    #[case::space_before_colon("content-length : 5")]
    #[case::nul("x-a: a\0b")]
    #[case::bare_cr("x-a: a\rb: c")]
    #[case::fold("x-a: a\n b")]
    #[case::second_host("host: k")]
    #[case::second_host_of_another_case("HOST: other")]
    #[case::no_name(": x")]
    #[case::no_colon("nothing")]
    fn refuses(#[case] fields: &str) {
        assert_eq!(
            of(&format!("POST / HTTP/1.1\nhost: k\n{fields}")),
            Err(Refusal::BadRequest)
        );
    }

    #[rstest]
    #[case::no_host("GET / HTTP/1.1", Refusal::BadRequest)]
    #[case::version("GET / HTTP/1.2\nhost: k", Refusal::BadRequest)]
    #[case::http2("PRI * HTTP/2.0", Refusal::BadRequest)]
    #[case::lower_case("GET / http/1.1\nhost: k", Refusal::BadRequest)]
    #[case::two_spaces("GET  / HTTP/1.1\nhost: k", Refusal::BadRequest)]
    #[case::tab("GET\t/ HTTP/1.1\nhost: k", Refusal::BadRequest)]
    #[case::no_target("GET HTTP/1.1\nhost: k", Refusal::BadRequest)]
    #[case::target("GET /a\\b^<> HTTP/1.1\nhost: k", Refusal::BadRequest)]
    #[case::old_and_encoded("POST / HTTP/1.0\nhost: k\ntransfer-encoding: chunked", Refusal::BadRequest)]
    #[case::connect("CONNECT k:443 HTTP/1.1\nhost: k:443", Refusal::MethodNotAllowed)]
    #[case::trace("TRACE / HTTP/1.1\nhost: k", Refusal::MethodNotAllowed)]
    fn refuses_lines(#[case] head: &str, #[case] refusal: Refusal) {
        assert_eq!(of(head), Err(refusal));
    }

    #[test]
    fn as_many_fields_as_are_allowed_and_no_more() {
        let with = |fields: usize| {
            let filler = (1..fields)
                .map(|field| format!("\nx-{field}: y"))
                .collect::<Vec<_>>()
                .concat();
            format!("GET / HTTP/1.1\nhost: k{filler}")
        };
        for fields in [1, USUAL_FIELDS, USUAL_FIELDS + 1, 256] {
            assert_eq!(of(&with(fields)), Ok(Framing::Nothing), "{fields}");
        }
        assert_eq!(of(&with(257)), Err(Refusal::TooManyHeaders));
    }

    #[test]
    fn what_can_be_read_of_a_refused_head_is_kept() {
        let verdict = Verdict::on(b"PUT /api?x HTTP/1.1\r\nhost", Refusal::RequestTimeout);
        assert_eq!(
            (verdict.method, verdict.target.to_string()),
            (Method::PUT, "/api?x".to_owned())
        );
        let verdict = Verdict::on(b"\0\0", Refusal::BadRequest);
        assert_eq!(
            (verdict.method.as_str(), verdict.target.to_string()),
            ("-", "-".to_owned())
        );
    }
}
