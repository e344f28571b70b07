//! Whether the head of an HTTP/1 request can be read in one way only, and how long its body is.
//!
//! Plain functions over bytes. What passes here hyper reads in the same way; what two readers could take differently
//! (RFC 9112, section 11.2) is refused, also where hyper would settle for one reading.

use std::mem::MaybeUninit;

use http::{Method, Uri};
use httparse::{Error, Header, ParserConfig, Request, Status};

use crate::status::Refusal;

/// Fields that fit without an allocation; a head with more is parsed once more.
const USUAL_FIELDS: usize = 64;
/// What the `http` crate takes for a target or a field's name. A head of a size that an operator allowed could have a
/// longer one.
const LONGEST: usize = 65_534;
/// Go's limit for a length as well, and less than what hyper keeps for itself.
const LONGEST_BODY: u64 = i64::MAX.cast_unsigned();

/// What follows a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
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

/// Judges a whole head: up to and with the empty line that ends it.
pub(super) fn judge(head: &[u8], max_fields: usize) -> Result<Framing, Refusal> {
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

fn parse<'head>(
    head: &'head [u8],
    fields: &mut [MaybeUninit<Header<'head>>],
) -> Result<Result<Framing, Refusal>, Error> {
    let mut request = Request::new(&mut []);
    let parsed = ParserConfig::default().parse_request_with_uninit_headers(&mut request, head, fields)?;
    if parsed != Status::Complete(head.len()) {
        return Ok(Err(Refusal::BadRequest));
    }
    let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version) else {
        return Ok(Err(Refusal::BadRequest));
    };
    Ok(judge_parsed(method, target, minor, request.headers))
}

fn judge_parsed(method: &str, target: &str, minor: u8, fields: &[Header<'_>]) -> Result<Framing, Refusal> {
    if matches!(method, "CONNECT" | "TRACE") {
        return Err(Refusal::MethodNotAllowed);
    }
    if target.len() > LONGEST {
        return Err(Refusal::HeadTooLarge);
    }
    if !is_plain(target) && Uri::try_from(target).is_err() {
        return Err(Refusal::BadRequest);
    }
    let mut named = Named::default();
    for field in fields {
        named.see(field)?;
    }
    // HTTP/1.0 knows no Host, and no encoding of the transfer (RFC 9112, sections 3.2 and 6.1).
    if minor == 1 && !named.host || minor == 0 && named.chunked {
        return Err(Refusal::BadRequest);
    }
    match (named.chunked, named.length) {
        (true, Some(_)) => Err(Refusal::BadRequest),
        (true, None) => Ok(Framing::Chunked),
        (false, None | Some(0)) if named.upgrade => Ok(Framing::Undecided),
        (false, None | Some(0)) => Ok(Framing::Nothing),
        (false, Some(length)) => Ok(Framing::Sized(length)),
    }
}

/// The fields that say where a request goes and where it ends. Each may be there once: two, alike or not, can be
/// weighed in more than one way.
#[derive(Default)]
struct Named {
    host: bool,
    upgrade: bool,
    chunked: bool,
    length: Option<u64>,
}

impl Named {
    fn see(&mut self, field: &Header<'_>) -> Result<(), Refusal> {
        let is = |name: &str| field.name.eq_ignore_ascii_case(name);
        let again = match field.name.len() {
            4 if is("host") => std::mem::replace(&mut self.host, true),
            7 if is("upgrade") => {
                self.upgrade = true;
                false
            }
            14 if is("content-length") => self.length.replace(length(field.value)?).is_some(),
            17 if is("transfer-encoding") => {
                if !field.value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                    return Err(Refusal::BadRequest);
                }
                std::mem::replace(&mut self.chunked, true)
            }
            too_long if too_long > LONGEST => return Err(Refusal::HeadTooLarge),
            _ => false,
        };
        if again { Err(Refusal::BadRequest) } else { Ok(()) }
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

/// Whether a target is surely a path and a query as any parser takes them, which nearly all are.
fn is_plain(target: &str) -> bool {
    target.starts_with('/')
        && target
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/?%".contains(&byte))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn of(lines: &str) -> Result<Framing, Refusal> {
        judge(
            format!("{}\r\n\r\n", lines.trim_end().replace('\n', "\r\n")).as_bytes(),
            256,
        )
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
        let head = |fields: usize| {
            let filler = (1..fields)
                .map(|field| format!("\nx-{field}: y"))
                .collect::<Vec<_>>()
                .concat();
            format!("GET / HTTP/1.1\nhost: k{filler}")
        };
        for fields in [1, USUAL_FIELDS, USUAL_FIELDS + 1, 256] {
            assert_eq!(of(&head(fields)), Ok(Framing::Nothing), "{fields}");
        }
        assert_eq!(of(&head(257)), Err(Refusal::TooManyHeaders));
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
