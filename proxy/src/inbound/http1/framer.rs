//! Where one request ends and the next begins, in a stream of bytes that comes in pieces. Plain data, no I/O.
//!
//! hyper, and most others, are lenient here and there, and settle for one reading of a request that can be read in two.
//! Here such a request is refused, and nothing that follows it is taken for another.

use bytes::{Buf, Bytes, BytesMut};

use super::{
    chunks::{Chunks, Next},
    head::{self, Framing, Head, Verdict},
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

/// What comes next of a request's body.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Some of it, and whether that was the last.
    Data(Bytes, bool),
    /// Its end.
    End,
    /// Nothing before more is read.
    More,
    /// It can't be understood any further.
    Broken,
}

impl Framer {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            place: Place::default(),
            max_head: limits.max_header_bytes as usize,
            max_fields: limits.max_headers as usize,
        }
    }

    /// Takes the next head off what was read, once it is there. What isn't taken is to be shown again, with what
    /// follows it.
    ///
    /// # Errors
    /// If the request isn't to be served, and nothing after it. So it is where its body breaks in sight of its head.
    pub(crate) fn head(&mut self, read: &mut BytesMut) -> Result<Option<Head>, Verdict> {
        let Place::Head(scan) = &mut self.place else {
            return Ok(None);
        };
        let end = match scan.end(read, self.max_head) {
            Ok(Some(end)) => end,
            Ok(None) => {
                return scan
                    .first_line(read)
                    .map_err(|refusal| Verdict::on(read, refusal))
                    .map(|()| None);
            }
            Err(refusal) => return Err(Verdict::on(read, refusal)),
        };
        // Whole, it takes the buffer along, which is as long as what was read.
        let bytes = read.split_to(end).freeze();
        let head = head::read(&bytes, self.max_fields).map_err(|refusal| Verdict::on(&bytes, refusal))?;
        if head.framing == Framing::Chunked && !Chunks::START.is_good(read, self.max_head) {
            return Err(Verdict::on(&bytes, Refusal::BadRequest));
        }
        self.place = head.framing.into();
        Ok(Some(head))
    }

    /// Takes the next piece of the body off what was read.
    pub(crate) fn body(&mut self, read: &mut BytesMut) -> Piece {
        loop {
            match &mut self.place {
                Place::Head(_) => return Piece::End,
                Place::Sized(_) | Place::Chunked(_) if read.is_empty() => return Piece::More,
                Place::Sized(left) => {
                    let here = usize::try_from(*left).unwrap_or(usize::MAX).min(read.len());
                    *left -= here as u64;
                    if *left == 0 {
                        self.place = Place::default();
                    }
                    return Piece::Data(read.split_to(here).freeze(), self.is_between_requests());
                }
                Place::Chunked(chunks) => match chunks.next(read, self.max_head) {
                    Next::Data(data) => {
                        read.advance(data.start);
                        return Piece::Data(read.split_to(data.len()).freeze(), false);
                    }
                    Next::More => read.clear(),
                    Next::End(length) => {
                        read.advance(length);
                        self.place = Place::default();
                    }
                    Next::Broken(length) => {
                        read.advance(length);
                        return Piece::Broken;
                    }
                },
            }
        }
    }

    /// Whether the next byte begins a request.
    pub(crate) fn is_between_requests(&self) -> bool {
        self.place == Place::default()
    }
}

impl From<Framing> for Place {
    fn from(framing: Framing) -> Self {
        match framing {
            Framing::Nothing | Framing::Undecided => Self::default(),
            Framing::Sized(length) => Self::Sized(length),
            Framing::Chunked => Self::Chunked(Chunks::START),
        }
    }
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

    /// What comes after what was taken.
    #[derive(Debug, PartialEq, Eq)]
    enum Then {
        More,
        Refuse(Verdict),
        Break,
    }

    /// Shows a stream in pieces. Tells what was taken of it, how many heads that were, and the bodies' data.
    fn show(stream: &[u8], cuts: &[usize]) -> (Vec<u8>, Vec<Vec<u8>>, Then) {
        let (mut framer, mut bodies, mut held) = (framer(), Vec::<Vec<u8>>::new(), BytesMut::new());
        let mut from = 0;
        let taken = |to: usize, held: &BytesMut| stream[..to - held.len()].to_vec();
        for to in cuts.iter().copied().chain([stream.len()]) {
            held.extend_from_slice(&stream[from..to]);
            from = to;
            loop {
                if matches!(framer.place, Place::Head(_)) {
                    let before = held.clone();
                    match framer.head(&mut held) {
                        Ok(Some(_)) => bodies.push(Vec::new()),
                        Ok(None) => break,
                        Err(verdict) => return (taken(to, &before), bodies, Then::Refuse(verdict)),
                    }
                }
                match framer.body(&mut held) {
                    Piece::Data(data, _) => bodies.last_mut().unwrap().extend_from_slice(&data),
                    Piece::End => {}
                    Piece::More => break,
                    Piece::Broken => return (taken(to, &held), bodies, Then::Break),
                }
            }
        }
        (taken(stream.len(), &held), bodies, Then::More)
    }

    #[test]
    fn good_requests_pass_as_they_are() {
        let stream = [GET, PUT, POST, OLD, GET].concat();
        let bodies = ["", "abc", "hi", "", ""].map(|body| body.as_bytes().to_vec());
        assert_eq!(
            show(stream.as_bytes(), &[]),
            (stream.into_bytes(), bodies.to_vec(), Then::More)
        );
    }

    #[test]
    fn nothing_of_a_refused_request_passes_and_nothing_behind_it() {
        let stream = [GET, REFUSED, GET].concat();
        let (good, heads, then) = show(stream.as_bytes(), &[]);
        assert_eq!((good, heads.len()), (GET.into(), 1));
        let Then::Refuse(verdict) = then else {
            panic!("{then:?}")
        };
        assert_eq!((verdict.refusal, verdict.target.path()), (Refusal::BadRequest, "/e"));
    }

    #[test]
    fn a_body_that_breaks_in_sight_of_its_head_refuses_that() {
        let (good, heads, then) = show([GET, BROKEN].concat().as_bytes(), &[]);
        assert_eq!((good, heads.len()), (GET.into(), 1));
        assert!(
            matches!(&then, Then::Refuse(verdict) if verdict.target.path() == "/f"),
            "{then:?}"
        );
    }

    #[test]
    fn a_body_that_breaks_later_ends_without_its_end() {
        let cut = BROKEN.len() - 8;
        let (good, heads, then) = show(BROKEN.as_bytes(), &[cut]);
        assert_eq!(
            (good, heads, then),
            (BROKEN[..BROKEN.len() - 1].into(), vec![b"hi".to_vec()], Then::Break)
        );
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
        assert_eq!(show(head(8192).as_bytes(), &[100]).1.len(), 1);
        let (_, heads, then) = show(head(8193).as_bytes(), &[]);
        assert!(heads.is_empty() && matches!(&then, Then::Refuse(verdict) if verdict.refusal == Refusal::HeadTooLarge));
        let (_, heads, then) = show(&head(9000).as_bytes()[..8192], &[100]);
        assert!(heads.is_empty() && matches!(&then, Then::Refuse(verdict) if verdict.refusal == Refusal::HeadTooLarge));
    }

    proptest! {
        /// However a stream is cut, the same of it passes.
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
                let (good, _, _) = show(&stream, &[stream.len() / 2]);
                prop_assert!(good.len() <= stream.len());
            }
        }
    }
}
