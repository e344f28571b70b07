//! Fields as HTTP/2 codes them (RFC 7541).

pub(crate) mod decoder;
pub(crate) mod encoder;
pub(crate) mod huffman;

/// How large a table either side keeps for the other, in the bytes that RFC 7541, section 4.1, counts. It is what a peer has
/// that says nothing else.
pub(super) const TABLE: usize = 4096;
/// What an entry counts beside its name and value (RFC 7541, section 4.1).
pub(super) const ENTRY: usize = 32;

/// What is wrong with a block of fields: the connection can't go on, for the tables differ from here on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    /// The block ends in the middle of something.
    #[error("a block of fields ends too early")]
    Short,
    /// A number is larger than any that could be meant.
    #[error("a number in a block of fields is too large")]
    Number,
    /// A place in the table that has nothing.
    #[error("a field refers to what isn't in the table")]
    Index,
    /// A string can't be decoded.
    #[error("a string isn't Huffman code")]
    Huffman,
    /// The table is to have a size that it can't have, or not at this place.
    #[error("the table's size is changed where it can't be")]
    Size,
}

/// Fields that every table begins with (RFC 7541, appendix A); the first has index 1.
const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];
/// The first index of what a connection has added.
const DYNAMIC: usize = STATIC.len() + 1;

/// Writes a number behind the bits of `first`, of which it takes the lowest `prefix` (RFC 7541, section 5.1).
#[expect(clippy::cast_possible_truncation, reason = "what is cast is below 2^8")]
fn put_number(out: &mut impl bytes::BufMut, first: u8, prefix: u8, number: usize) {
    let most = (1_usize << prefix) - 1;
    if number < most {
        out.put_u8(first | number as u8);
        return;
    }
    out.put_u8(first | most as u8);
    let mut left = number - most;
    while left >= 0x80 {
        out.put_u8(0x80 | (left & 0x7f) as u8);
        left >>= 7;
    }
    out.put_u8(left as u8);
}

/// Takes a number off, of whose first byte the lowest `prefix` bits are its own.
fn number(block: &mut &[u8], prefix: u8) -> Result<usize, Malformed> {
    /// More than any string or table may have, and no shift goes too far.
    const DIGITS: u32 = 4;
    let most = (1_usize << prefix) - 1;
    let mut number = usize::from(byte(block)?) & most;
    if number < most {
        return Ok(number);
    }
    for digit in 0..DIGITS {
        let byte = byte(block)?;
        number += usize::from(byte & 0x7f) << (7 * digit);
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(Malformed::Number)
}

fn byte(block: &mut &[u8]) -> Result<u8, Malformed> {
    let (first, rest) = block.split_first().ok_or(Malformed::Short)?;
    *block = rest;
    Ok(*first)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    /// RFC 7541, appendix C.1.
    #[rstest]
    #[case::fits(10, 5, &[0b01010])]
    #[case::does_not(1337, 5, &[0b11111, 0b1001_1010, 0b1010])]
    #[case::whole_byte(42, 8, &[42])]
    fn numbers_are_written_as_in_the_rfc(#[case] value: usize, #[case] prefix: u8, #[case] bytes: &[u8]) {
        let mut out = Vec::new();
        put_number(&mut out, 0, prefix, value);
        assert_eq!(out, bytes);
    }

    #[rstest]
    #[case::cut(&[0x1f, 0x9a], Malformed::Short)]
    #[case::nothing(&[], Malformed::Short)]
    #[case::endless(&[0x1f, 0xff, 0xff, 0xff, 0xff, 0xff, 0], Malformed::Number)]
    fn a_number_ends(#[case] mut bytes: &[u8], #[case] expected: Malformed) {
        assert_eq!(number(&mut bytes, 5), Err(expected));
    }

    proptest! {
        #[test]
        fn numbers_come_back(value in 0..1_usize << 28, prefix in 4..8_u8) {
            let mut out = Vec::new();
            put_number(&mut out, 0, prefix, value);
            let mut bytes = &out[..];
            prop_assert_eq!(number(&mut bytes, prefix), Ok(value));
            prop_assert!(bytes.is_empty());
        }
    }
}
