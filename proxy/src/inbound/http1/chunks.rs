//! Where the data of a chunked body are, and where it ends (RFC 9112, section 7.1). Nothing is kept of it but where it stands.

use std::ops::Range;

/// The longest chunk extension. None is in use, and none is handed on.
const LONGEST_EXTENSION: u16 = 256;
/// As many as a 64-bit number has.
const MOST_DIGITS: u8 = 16;

/// A place in a chunked body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Chunks {
    /// In a chunk's size.
    Size { digits: u8, size: u64 },
    /// Behind the size.
    Extension { length: u16, size: u64 },
    /// At the line feed behind the size.
    SizeEnd { size: u64 },
    /// In a chunk, with so many bytes left.
    Data(u64),
    /// At the carriage return behind a chunk.
    DataCr,
    /// At the line feed behind a chunk.
    DataLf,
    /// In the trailers, at the beginning of a line.
    Line { length: u32 },
    /// In a trailer's name.
    Name { length: u32 },
    /// In a trailer, behind its name.
    Trailer { length: u32 },
    /// At the line feed behind a trailer.
    TrailerLf { length: u32 },
    /// At the last line feed.
    EndLf,
    /// Behind it.
    Done,
}

/// What comes next of a body.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The bytes of a chunk, or some of them, from here to there.
    Data(Range<usize>),
    /// Nothing more: all of the bytes belong to it, and it goes on.
    More,
    /// So many bytes belong to it, and it ends.
    End(usize),
    /// After so many bytes it can't be understood.
    Broken(usize),
}

impl Chunks {
    /// Before the first chunk.
    pub(super) const START: Self = Self::Size { digits: 0, size: 0 };

    /// Follows the body over the next bytes, as far as data go together. The trailers may have `max_trailers` bytes.
    pub(super) fn next(&mut self, bytes: &[u8], max_trailers: usize) -> Next {
        let mut at = 0;
        while at < bytes.len() {
            if let Self::Data(left) = self {
                let here = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len() - at);
                *left -= here as u64;
                if *left == 0 {
                    *self = Self::DataCr;
                }
                return Next::Data(at..at + here);
            }
            match self.step(bytes[at], max_trailers) {
                Some(Self::Done) => return Next::End(at + 1),
                Some(next) => *self = next,
                None => return Next::Broken(at),
            }
            at += 1;
        }
        Next::More
    }

    /// Whether the body can be understood as far as it has come.
    pub(super) fn is_good(mut self, mut bytes: &[u8], max_trailers: usize) -> bool {
        loop {
            match self.next(bytes, max_trailers) {
                Next::Data(data) => bytes = &bytes[data.end..],
                Next::More | Next::End(_) => return true,
                Next::Broken(_) => return false,
            }
        }
    }

    /// The place after one byte that isn't a chunk's; none where the byte is wrong.
    fn step(self, byte: u8, max_trailers: usize) -> Option<Self> {
        Some(match (self, byte) {
            (Self::Size { digits: 1.., size } | Self::Extension { size, .. }, b'\r') => Self::SizeEnd { size },
            (Self::Size { digits: 1.., size }, b';') => Self::Extension { length: 0, size },
            (Self::Size { digits, size }, digit) if digits < MOST_DIGITS => Self::Size {
                digits: digits + 1,
                size: size << 4 | u64::from(char::from(digit).to_digit(16)?),
            },
            (Self::Extension { length, size }, byte) if length < LONGEST_EXTENSION && is_text(byte) => {
                Self::Extension {
                    length: length + 1,
                    size,
                }
            }
            (Self::SizeEnd { size: 0 }, b'\n') => Self::Line { length: 0 },
            (Self::SizeEnd { size }, b'\n') => Self::Data(size),
            (Self::DataCr, b'\r') => Self::DataLf,
            (Self::DataLf, b'\n') => Self::START,
            (Self::Line { .. }, b'\r') => Self::EndLf,
            (Self::EndLf, b'\n') => Self::Done,
            (Self::Trailer { length }, b'\r') => Self::TrailerLf { length },
            (Self::Line { length } | Self::Name { length } | Self::Trailer { length }, _)
                if length as usize >= max_trailers =>
            {
                return None;
            }
            // A line that begins with space would go on with the one before.
            (Self::Line { length } | Self::Name { length }, byte) if is_of_name(byte) => {
                Self::Name { length: length + 1 }
            }
            (Self::Name { length }, b':') => Self::Trailer { length: length + 1 },
            (Self::Trailer { length }, byte) if is_text(byte) => Self::Trailer { length: length + 1 },
            (Self::TrailerLf { length }, b'\n') => Self::Line { length },
            _ => return None,
        })
    }
}

/// RFC 9110, section 5.6.2.
fn is_of_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn is_text(byte: u8) -> bool {
    byte == b'\t' || !byte.is_ascii_control()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    /// Follows a body to its end, or to the end of what there is of it.
    fn follow(chunks: &mut Chunks, bytes: &[u8]) -> Next {
        let mut at = 0;
        loop {
            match chunks.next(&bytes[at..], 64) {
                Next::Data(data) => at += data.end,
                Next::End(length) => return Next::End(at + length),
                Next::Broken(length) => return Next::Broken(at + length),
                Next::More => return Next::More,
            }
        }
    }

    fn of(body: &str) -> Next {
        let next = follow(&mut Chunks::START.clone(), body.as_bytes());
        let is_good = Chunks::START.is_good(body.as_bytes(), 64);
        assert_eq!(is_good, !matches!(next, Next::Broken(_)));
        next
    }

    #[rstest]
    #[case::empty("0\r\n\r\n")]
    #[case::chunks("5\r\nhello\r\nA\r\n0123456789\r\n0\r\n\r\n")]
    #[case::leading_zeros("0005\r\nhello\r\n000\r\n\r\n")]
    #[case::extension("5;a=\"b\"\r\nhello\r\n0;c\r\n\r\n")]
    #[case::trailers("0\r\nx-checksum: 1\r\nx-other:\t2\r\n\r\n")]
    fn ends_where_it_ends(#[case] body: &str) {
        assert_eq!(of(body), Next::End(body.len()));
        assert_eq!(of(&format!("{body}GET /")), Next::End(body.len()));
        let mut chunks = Chunks::START;
        for byte in body.as_bytes().split_last().unwrap().1 {
            assert_eq!(follow(&mut chunks, &[*byte]), Next::More);
        }
    }

    #[rstest]
    #[case::hexadecimal("0x5\r\nhello\r\n", 1)]
    #[case::over_64_bits("10000000000000000\r\n", 16)]
    #[case::sign("+5\r\nhello", 0)]
    #[case::minus("-1\r\n", 0)]
    #[case::no_size("\r\nhello", 0)]
    #[case::only_an_extension(";a\r\nhello", 0)]
    #[case::leading_space(" 5\r\nhello", 0)]
    #[case::trailing_space("5 \r\nhello", 1)]
    #[case::underscore("1_0\r\n", 1)]
    #[case::bare_lf("5\nhello\r\n", 1)]
    #[case::bare_lf_in_an_extension("5;a\nhello\r\n", 3)]
    #[case::bare_cr("5\rhello", 2)]
    #[case::longer_than_it_says("5\r\nhello!\r\n", 8)]
    #[case::bare_lf_after_a_chunk("5\r\nhello\n0\r\n", 8)]
    #[case::bare_lf_at_the_end("0\r\n\n", 3)]
    #[case::bare_lf_in_a_trailer("0\r\na: b\n\r\n", 7)]
    #[case::nul_in_a_trailer("0\r\na: \0\r\n\r\n", 6)]
    #[case::folded_trailer("0\r\na: b\r\n c\r\n\r\n", 9)]
    #[case::trailer_without_a_colon("0\r\na\r\n\r\n", 4)]
    #[case::trailer_without_a_name("0\r\n: b\r\n\r\n", 3)]
    #[case::space_in_a_trailers_name("0\r\na : b\r\n\r\n", 4)]
    fn breaks_where_it_breaks(#[case] body: &str, #[case] at: usize) {
        assert_eq!(of(body), Next::Broken(at));
    }

    #[test]
    fn what_is_of_no_use_is_bounded() {
        assert_eq!(of(&format!("5;{}\r\n", "a".repeat(300))), Next::Broken(258));
        assert_eq!(of(&format!("0\r\na: {}\r\n", "b".repeat(100))), Next::Broken(67));
    }
}
