//! Where one request ends and the next begins, in a stream of bytes that comes in pieces. Plain data, no I/O.

use super::{
    chunks::{Chunks, Followed},
    head::{self, Framing, Verdict},
};
use crate::{limits::Limits, status::Refusal};

/// Follows a client's requests.
#[derive(Debug)]
pub(crate) struct Framer {
    place: Place,
    max_head: usize,
    max_fields: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In a head, of which so much has been seen.
    Head(Scan),
    /// In a body, with so many bytes left.
    Sized(u64),
    /// In a body of chunks.
    Chunked(Chunks),
    /// Behind a head that asks for an upgrade.
    Undecided,
}

/// How far the end of a head has been looked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Scan {
    /// Bytes looked at.
    seen: usize,
    /// Where the line at hand begins.
    line: usize,
    /// Where the request line begins: an empty line may stand before it (RFC 9112, section 2.2).
    begin: usize,
    /// The request line has been judged by itself.
    judged: bool,
}

impl Default for Place {
    fn default() -> Self {
        Self::Head(Scan::default())
    }
}

/// What becomes of the bytes that the framer was shown.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    /// So many of them may be handed on. The rest is to be shown again, with what follows it.
    pub(crate) good: usize,
    /// Heads that end among those.
    pub(crate) heads: u64,
    /// What comes then.
    pub(crate) then: Then,
}

/// What comes after the good bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// More of the same.
    More,
    /// What the answer to the last head says: the next head, or bytes of another protocol.
    Decide,
    /// A request that isn't handed on, and nothing after it.
    Refuse(Verdict),
    /// Nothing: the body that was begun can't be followed to its end.
    Break,
}

impl Framer {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            place: Place::default(),
            max_head: limits.max_header_bytes as usize,
            max_fields: limits.max_headers as usize,
        }
    }

    /// Follows the stream over the next bytes.
    pub(crate) fn show(&mut self, bytes: &[u8]) -> Shown {
        let mut at = 0;
        let mut heads = 0;
        // Where the request that is followed begins, if that is among these bytes: then none of it is handed on yet.
        let mut begun = None;
        while at < bytes.len() {
            let rest = &bytes[at..];
            match &mut self.place {
                Place::Head(scan) => {
                    let judged = scan.end(rest, self.max_head).and_then(|end| match end {
                        Some(end) => head::judge(&rest[..end], self.max_fields).map(|framing| Some((end, framing))),
                        None => scan.first_line(rest).map(|()| None),
                    });
                    match judged {
                        Ok(Some((end, framing))) => {
                            begun = Some((at, at + end));
                            at += end;
                            heads += 1;
                            self.place = framing.into();
                        }
                        Ok(None) => break,
                        Err(refusal) => return refused(bytes, at, heads, at..bytes.len(), refusal),
                    }
                }
                Place::Sized(left) => {
                    let here = usize::try_from(*left).unwrap_or(usize::MAX).min(rest.len());
                    *left -= here as u64;
                    at += here;
                    if *left == 0 {
                        self.place = Place::default();
                    }
                }
                Place::Chunked(chunks) => match chunks.follow(rest, self.max_head) {
                    Followed::On => at = bytes.len(),
                    Followed::End(length) => {
                        at += length;
                        self.place = Place::default();
                    }
                    Followed::Broken(length) => {
                        if let Some((begin, end)) = begun {
                            return refused(bytes, begin, heads - 1, begin..end, Refusal::BadRequest);
                        }
                        let good = at + length;
                        let then = Then::Break;
                        return Shown { good, heads, then };
                    }
                },
                Place::Undecided => break,
            }
        }
        let then = match self.place {
            Place::Undecided => Then::Decide,
            _ => Then::More,
        };
        Shown { good: at, heads, then }
    }

    /// The answer that was waited for switched to no other protocol.
    pub(super) fn stay(&mut self) {
        self.place = Place::default();
    }

    /// Whether the next byte begins a request.
    pub(super) fn is_between_requests(&self) -> bool {
        self.place == Place::default()
    }
}

impl From<Framing> for Place {
    fn from(framing: Framing) -> Self {
        match framing {
            Framing::Nothing => Self::default(),
            Framing::Undecided => Self::Undecided,
            Framing::Sized(length) => Self::Sized(length),
            Framing::Chunked => Self::Chunked(Chunks::START),
        }
    }
}

fn refused(bytes: &[u8], good: usize, heads: u64, head: std::ops::Range<usize>, refusal: Refusal) -> Shown {
    let then = Then::Refuse(Verdict::on(&bytes[head], refusal));
    Shown { good, heads, then }
}

impl Scan {
    /// Looks for the end of the head that `bytes` begin with, from where it was left. Each line must end as it should:
    /// a bare line feed ends one for some readers and not for others.
    fn end(&mut self, bytes: &[u8], max: usize) -> Result<Option<usize>, Refusal> {
        let room = bytes.len().min(max);
        while let Some(found) = memchr::memchr(b'\n', &bytes[self.seen..room]) {
            let feed = self.seen + found;
            if feed == self.line || bytes[feed - 1] != b'\r' {
                return Err(Refusal::BadRequest);
            }
            let empty = feed == self.line + 1;
            self.seen = feed + 1;
            if empty && self.line > self.begin {
                return Ok(Some(self.seen));
            }
            if empty {
                if self.begin > 0 {
                    return Err(Refusal::BadRequest);
                }
                self.begin = self.seen;
            }
            self.line = self.seen;
        }
        self.seen = room;
        if bytes.len() > max || room == max {
            return Err(Refusal::HeadTooLarge);
        }
        Ok(None)
    }

    /// Judges the request line, once, when it is there.
    fn first_line(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        if self.judged || self.line <= self.begin {
            return Ok(());
        }
        self.judged = true;
        // However much has come behind it: what is refused must not hang on how the stream was cut.
        let feed = memchr::memchr(b'\n', &bytes[self.begin..self.line]);
        let end = feed.map_or(self.line, |feed| self.begin + feed + 1);
        head::judge_line(&bytes[..end])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    const GET: &str = "GET /a HTTP/1.1\r\nhost: k\r\n\r\n";
    const PUT: &str = "PUT /b HTTP/1.1\r\nhost: k\r\ncontent-length: 3\r\n\r\nabc";
    const POST: &str =
        "POST /c HTTP/1.1\r\nhost: k\r\ntransfer-encoding: chunked\r\n\r\n2;x\r\nhi\r\n0\r\nt: v\r\n\r\n";
    const OLD: &str = "\r\nGET /d HTTP/1.0\r\n\r\n";
    const REFUSED: &str = "GET /e HTTP/1.1\r\nhost: k\r\nhost: k\r\n\r\n";
    const BROKEN: &str = "POST /f HTTP/1.1\r\nhost: k\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0x";

    fn framer() -> Framer {
        Framer::new(&Limits {
            max_header_bytes: 8192,
            ..Limits::default()
        })
    }

    /// Shows a stream in pieces, as the screen does: what isn't good yet comes again with the next.
    fn show(stream: &[u8], cuts: &[usize]) -> (Vec<u8>, u64, Then) {
        let (mut framer, mut good, mut heads, mut held) = (framer(), Vec::new(), 0, Vec::new());
        let mut from = 0;
        for to in cuts.iter().copied().chain([stream.len()]) {
            held.extend_from_slice(&stream[from..to]);
            from = to;
            let shown = framer.show(&held);
            good.extend(held.drain(..shown.good));
            heads += shown.heads;
            if shown.then != Then::More {
                return (good, heads, shown.then);
            }
        }
        (good, heads, Then::More)
    }

    #[test]
    fn good_requests_pass_as_they_are() {
        let stream = [GET, PUT, POST, OLD, GET].concat();
        assert_eq!(show(stream.as_bytes(), &[]), (stream.into_bytes(), 5, Then::More));
    }

    #[test]
    fn nothing_of_a_refused_request_passes_and_nothing_behind_it() {
        let stream = [GET, REFUSED, GET].concat();
        let (good, heads, then) = show(stream.as_bytes(), &[]);
        assert_eq!((good, heads), (GET.into(), 1));
        let Then::Refuse(verdict) = then else {
            panic!("{then:?}")
        };
        assert_eq!((verdict.refusal, verdict.target.path()), (Refusal::BadRequest, "/e"));
    }

    #[test]
    fn a_body_that_breaks_in_sight_of_its_head_refuses_that() {
        let (good, heads, then) = show([GET, BROKEN].concat().as_bytes(), &[]);
        assert_eq!((good, heads), (GET.into(), 1));
        assert!(
            matches!(&then, Then::Refuse(verdict) if verdict.target.path() == "/f"),
            "{then:?}"
        );
    }

    #[test]
    fn a_body_that_breaks_later_ends_without_its_end() {
        let cut = BROKEN.len() - 8;
        let (good, heads, then) = show(BROKEN.as_bytes(), &[cut]);
        assert_eq!((good, heads, then), (BROKEN[..BROKEN.len() - 1].into(), 1, Then::Break));
    }

    #[test]
    fn nothing_behind_an_upgrade_passes_until_it_is_decided() {
        let ask = "GET / HTTP/1.1\r\nhost: k\r\nupgrade: websocket\r\n\r\n";
        let mut framer = framer();
        let stream = [ask, GET].concat();
        let shown = framer.show(stream.as_bytes());
        assert_eq!((shown.good, shown.heads, shown.then), (ask.len(), 1, Then::Decide));
        assert_eq!(framer.show(GET.as_bytes()).good, 0);
        framer.stay();
        assert_eq!(framer.show(GET.as_bytes()).good, GET.len());
    }

    #[rstest]
    #[case::http09("GET /\r\n", Refusal::BadRequest)]
    #[case::not_http("HELO k\r\n", Refusal::BadRequest)]
    #[case::bare_lf("GET / HTTP/1.1\n", Refusal::BadRequest)]
    #[case::bare_lf_later("GET / HTTP/1.1\r\nhost: k\n", Refusal::BadRequest)]
    #[case::bare_lf_first("\n", Refusal::BadRequest)]
    #[case::empty_lines("\r\n\r\n", Refusal::BadRequest)]
    fn is_refused_before_its_end(#[case] beginning: &str, #[case] refusal: Refusal) {
        let (_, _, then) = show(beginning.as_bytes(), &[]);
        assert!(
            matches!(&then, Then::Refuse(verdict) if verdict.refusal == refusal),
            "{then:?}"
        );
    }

    #[test]
    fn a_head_is_as_long_as_it_may_be_and_no_longer() {
        let head = |length: usize| {
            let frame = "GET / HTTP/1.1\r\nhost: k\r\nx: \r\n\r\n".len();
            format!("GET / HTTP/1.1\r\nhost: k\r\nx: {}\r\n\r\n", "y".repeat(length - frame))
        };
        assert_eq!(show(head(8192).as_bytes(), &[100]).1, 1);
        let (_, heads, then) = show(head(8193).as_bytes(), &[]);
        assert!(heads == 0 && matches!(&then, Then::Refuse(verdict) if verdict.refusal == Refusal::HeadTooLarge));
        let (_, heads, then) = show(&head(9000).as_bytes()[..8192], &[100]);
        assert!(heads == 0 && matches!(&then, Then::Refuse(verdict) if verdict.refusal == Refusal::HeadTooLarge));
    }

    proptest! {
        /// However a stream is cut, the same of it passes. A break in sight of its head refuses the whole request, so
        /// such a stream may pass less.
        #[test]
        fn any_cut_is_the_same(
            parts in proptest::collection::vec(prop::sample::select(vec![GET, PUT, POST, OLD, REFUSED]), 1..8),
            mut cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let stream = parts.concat();
            cuts.sort_by_key(|cut| cut.index(stream.len()));
            let cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len())).collect();
            let (good, heads, then) = show(stream.as_bytes(), &[]);
            let (cut_good, cut_heads, cut_then) = show(stream.as_bytes(), &cuts);
            prop_assert_eq!((good, heads), (cut_good, cut_heads));
            prop_assert_eq!(
                matches!(then, Then::Refuse(_)),
                matches!(cut_then, Then::Refuse(_))
            );
        }

        /// Whatever comes, no byte counts as good before it is there, and refusing is final.
        #[test]
        fn never_panics(stream in proptest::collection::vec(
            prop_oneof![any::<u8>(), Just(b'\r'), Just(b'\n'), Just(b'0'), Just(b':')], 0..200,
        )) {
            for prefix in ["", GET, "POST / HTTP/1.1\r\nhost: k\r\ntransfer-encoding: chunked\r\n\r\n"] {
                let stream = [prefix.as_bytes(), &stream].concat();
                let shown = framer().show(&stream);
                prop_assert!(shown.good <= stream.len());
            }
        }
    }
}
