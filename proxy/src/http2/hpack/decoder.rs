//! Fields as they come (RFC 7541, section 3).

use std::{collections::VecDeque, sync::LazyLock};

use bytes::Bytes;
use http::{HeaderName, HeaderValue};

use super::{DYNAMIC, ENTRY, Malformed, STATIC, TABLE, huffman, number};

/// A value is remembered whose code has so many bytes.
const LONG: usize = 128;
/// Room for undoing code is let go of beyond this.
const ROOM: usize = 8 * 1024;

/// A field's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Name {
    /// That of a pseudo-header field.
    Pseudo(Pseudo),
    /// That of a field.
    Field(HeaderName),
    /// One that no message may have: an unknown pseudo-header field, capitals, or what isn't a name.
    Wrong,
}

/// The pseudo-header fields (RFC 9113, section 8.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pseudo {
    Status,
    Method,
    Scheme,
    Authority,
    Path,
}

impl Pseudo {
    fn parse(name: &[u8]) -> Option<Self> {
        Some(match name {
            b":status" => Self::Status,
            b":method" => Self::Method,
            b":scheme" => Self::Scheme,
            b":authority" => Self::Authority,
            b":path" => Self::Path,
            _ => return None,
        })
    }
}

/// A field. What is wrong with it is known, and still it has its place in the table.
#[derive(Debug, Clone)]
pub(crate) struct Field {
    pub(crate) name: Name,
    /// None where it is no value (RFC 9110, section 5.5).
    pub(crate) value: Option<HeaderValue>,
    /// As RFC 7541, section 4.1, counts.
    pub(crate) size: usize,
    name_length: usize,
}

impl Field {
    fn new(name: Name, name_length: usize, value: Text) -> Self {
        Self {
            name,
            value: value.value,
            size: name_length + value.length + ENTRY,
            name_length,
        }
    }
}

/// A value, as far as it is one, and how long it is.
#[derive(Debug, Clone)]
struct Text {
    value: Option<HeaderValue>,
    length: usize,
}

impl Text {
    fn new(text: &[u8]) -> Self {
        Self {
            value: HeaderValue::from_maybe_shared(Bytes::copy_from_slice(text)).ok(),
            length: text.len(),
        }
    }
}

/// A value that came in code.
#[derive(Debug)]
struct Known {
    code: Box<[u8]>,
    value: Text,
}

static STATIC_FIELDS: LazyLock<[Field; 61]> = LazyLock::new(|| {
    STATIC.map(|(name, value)| Field::new(parse(name.as_bytes()), name.len(), Text::new(value.as_bytes())))
});

fn parse(name: &[u8]) -> Name {
    if let Some(pseudo) = Pseudo::parse(name) {
        return Name::Pseudo(pseudo);
    }
    HeaderName::from_lowercase(name).map_or(Name::Wrong, Name::Field)
}

/// Decodes the blocks of one connection, one after the other.
#[derive(Debug)]
pub(crate) struct Decoder {
    /// The newest first.
    table: VecDeque<Field>,
    size: usize,
    /// As the peer has set it; at most [`TABLE`].
    limit: usize,
    /// The last long value that came in code: a bearer token that its sender keeps in no table comes with every request, and to
    /// undo its code takes longer than all else that is done with it.
    known: Option<Known>,
    /// Room to undo a code in.
    room: Vec<u8>,
}

impl Decoder {
    pub(crate) const fn new() -> Self {
        Self {
            table: VecDeque::new(),
            size: 0,
            limit: TABLE,
            known: None,
            room: Vec::new(),
        }
    }

    /// Hands on the fields of a block in their order. All of it is decoded, whatever `each` thinks of it: the next block builds
    /// on it.
    ///
    /// # Errors
    /// If it can't be decoded; then no further block can.
    pub(crate) fn decode(&mut self, mut block: &[u8], mut each: impl FnMut(&Field)) -> Result<(), Malformed> {
        let mut sizes_may_come = true;
        while let Some(first) = block.first() {
            match first {
                0x80.. => each(self.field(number(&mut block, 7)?)?),
                0x40..0x80 => {
                    let field = self.literal(&mut block, 6)?;
                    each(&field);
                    self.add(field);
                }
                0x20..0x40 => {
                    let limit = number(&mut block, 5)?;
                    if limit > TABLE || !sizes_may_come {
                        return Err(Malformed::Size);
                    }
                    self.limit = limit;
                    self.make_room(0);
                    continue;
                }
                0..0x20 => each(&self.literal(&mut block, 4)?),
            }
            sizes_may_come = false;
        }
        if self.room.capacity() > ROOM {
            self.room = Vec::new();
        }
        Ok(())
    }

    fn field(&self, index: usize) -> Result<&Field, Malformed> {
        if index >= DYNAMIC {
            return self.table.get(index - DYNAMIC).ok_or(Malformed::Index);
        }
        let place = index.checked_sub(1).ok_or(Malformed::Index)?;
        Ok(&STATIC_FIELDS[place])
    }

    fn literal(&mut self, block: &mut &[u8], prefix: u8) -> Result<Field, Malformed> {
        let (name, name_length) = match number(block, prefix)? {
            0 => {
                let (text, is_coded) = raw(block)?;
                let name = if is_coded { self.undo(text)? } else { text };
                (parse(name), name.len())
            }
            index => {
                let field = self.field(index)?;
                (field.name.clone(), field.name_length)
            }
        };
        Ok(Field::new(name, name_length, self.value(block)?))
    }

    fn value(&mut self, block: &mut &[u8]) -> Result<Text, Malformed> {
        let (code, is_coded) = raw(block)?;
        if !is_coded {
            return Ok(Text::new(code));
        }
        if let Some(known) = &self.known
            && *known.code == *code
        {
            return Ok(known.value.clone());
        }
        let value = Text::new(self.undo(code)?);
        if code.len() >= LONG {
            self.known = Some(Known {
                code: code.into(),
                value: value.clone(),
            });
        }
        Ok(value)
    }

    fn undo(&mut self, code: &[u8]) -> Result<&[u8], Malformed> {
        self.room.clear();
        huffman::decode(code, &mut self.room)?;
        Ok(&self.room)
    }

    fn add(&mut self, field: Field) {
        self.make_room(field.size);
        // What is larger than the table empties it, and isn't in it (RFC 7541, section 4.4).
        if field.size <= self.limit {
            self.size += field.size;
            self.table.push_front(field);
        }
    }

    fn make_room(&mut self, size: usize) {
        while self.size + size > self.limit
            && let Some(oldest) = self.table.pop_back()
        {
            self.size -= oldest.size;
        }
    }
}

/// Takes a string off as it is, and says whether that is in code.
fn raw<'b>(block: &mut &'b [u8]) -> Result<(&'b [u8], bool), Malformed> {
    let is_coded = block.first().is_some_and(|byte| byte & 0x80 != 0);
    let length = number(block, 7)?;
    let (text, rest) = block.split_at_checked(length).ok_or(Malformed::Short)?;
    *block = rest;
    Ok((text, is_coded))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    type Fields = Vec<(String, String)>;

    fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Fields, Malformed> {
        let mut fields = Vec::new();
        decoder.decode(block, |field| {
            let name = match &field.name {
                Name::Pseudo(pseudo) => format!("{pseudo:?}"),
                Name::Field(name) => name.to_string(),
                Name::Wrong => "wrong".to_owned(),
            };
            let value = field.value.as_ref().map_or("wrong", |value| value.to_str().unwrap());
            fields.push((name, value.to_owned()));
        })?;
        Ok(fields)
    }

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u32> = text.chars().filter_map(|digit| digit.to_digit(16)).collect();
        digits
            .chunks(2)
            .map(|pair| u8::try_from(pair[0] * 16 + pair[1]).unwrap())
            .collect()
    }

    #[test]
    fn a_requests_fields_are_known_by_their_names() {
        // RFC 7541, appendix C.3.1.
        let block = hex("8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d");
        let expected = [
            ("Method", "GET"),
            ("Scheme", "http"),
            ("Path", "/"),
            ("Authority", "www.example.com"),
        ];
        assert_eq!(decode(&mut Decoder::new(), &block), Ok(pairs(&expected)));
    }

    fn pairs(fields: &[(&str, &str)]) -> Fields {
        fields
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    const DATE: (&str, &str) = ("date", "Mon, 21 Oct 2013 20:13:21 GMT");
    const PRIVATE: (&str, &str) = ("cache-control", "private");
    const LOCATION: (&str, &str) = ("location", "https://www.example.com");

    /// RFC 7541, appendices C.5 and C.6: answers with a table of 256 bytes, so that entries are evicted.
    #[rstest]
    #[case::plain(&[
        "4803 3330 3258 0770 7269 7661 7465 611d 4d6f 6e2c 2032 3120 4f63 7420 3230 3133 2032 303a 3133 3a32 3120 474d 546e 1768
         7474 7073 3a2f 2f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
        "4803 3330 37c1 c0bf",
    ])]
    #[case::huffman(&[
        "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e 919d 29ad 1718 63c7 8f0b 97c8
         e9ae 82ae 43d3",
        "4883 640e ffc1 c0bf",
    ])]
    fn the_rfcs_answers_are_read(#[case] blocks: &[&str]) {
        let mut decoder = Decoder::new();
        decoder.limit = 256;
        let first = decode(&mut decoder, &hex(blocks[0])).unwrap();
        assert_eq!(first, pairs(&[("Status", "302"), PRIVATE, DATE, LOCATION]));
        assert_eq!(decoder.size, 222);
        let second = decode(&mut decoder, &hex(blocks[1])).unwrap();
        assert_eq!(second, pairs(&[("Status", "307"), PRIVATE, DATE, LOCATION]));
        assert_eq!(decoder.size, 222);
    }

    #[rstest]
    #[case::nothing_there(&[0xbe], Malformed::Index)]
    #[case::no_index(&[0x80], Malformed::Index)]
    #[case::cut_string(&[0x00, 0x03, b'a'], Malformed::Short)]
    #[case::larger_than_allowed(&[0x3f, 0xe2, 0x1f], Malformed::Size)]
    #[case::size_behind_a_field(&[0x88, 0x20], Malformed::Size)]
    fn a_block_that_cannot_be_read_is_refused(#[case] block: &[u8], #[case] expected: Malformed) {
        assert_eq!(decode(&mut Decoder::new(), block), Err(expected));
    }

    #[rstest]
    #[case::unknown_pseudo(b"\x00\x02:a\x01b", &[("wrong", "b")])]
    #[case::capitals(b"\x00\x01A\x01b", &[("wrong", "b")])]
    #[case::value(b"\x00\x01a\x01\n", &[("a", "wrong")])]
    #[case::never_kept(b"\x10\x01a\x01b", &[("a", "b")])]
    fn what_no_message_may_have_is_known(#[case] block: &[u8], #[case] expected: &[(&str, &str)]) {
        assert_eq!(decode(&mut Decoder::new(), block), Ok(pairs(expected)));
    }

    #[test]
    fn what_is_larger_than_the_table_empties_it() {
        let mut decoder = Decoder::new();
        decode(&mut decoder, b"\x40\x01a\x01b").unwrap();
        assert_eq!(decode(&mut decoder, &[0xbe]), Ok(pairs(&[("a", "b")])));
        let mut large = b"\x40\x01a".to_vec();
        super::super::put_number(&mut large, 0, 7, TABLE);
        large.resize(large.len() + TABLE, b'x');
        decode(&mut decoder, &large).unwrap();
        assert_eq!((decoder.size, decoder.table.len()), (0, 0));
    }

    /// RFC 7541, section 7.1.3: what is never kept isn't, and its code is undone once.
    #[test]
    fn a_token_in_code_is_read_each_time_and_kept_in_no_table() {
        let mut decoder = Decoder::new();
        // `a` has five bits, all of them set but two.
        let block = |code: &[u8]| {
            let mut block = vec![0x1f, 0x08];
            super::super::put_number(&mut block, 0x80, 7, code.len());
            block.extend(code);
            block
        };
        // Eight times `a` are forty bits.
        let code: Vec<u8> = [0x18, 0xc6, 0x31, 0x8c, 0x63].repeat(40);
        let token = "a".repeat(8 * 40);
        for _ in 0..2 {
            let fields = decode(&mut decoder, &block(&code));
            assert_eq!(fields, Ok(pairs(&[("authorization", &token)])));
            assert_eq!((decoder.table.len(), decoder.size), (0, 0));
        }
        let shorter = decode(&mut decoder, &block(&code[..code.len() - 5]));
        assert_eq!(shorter, Ok(pairs(&[("authorization", &token[8..])])));
        // A code that begins like a known one and goes wrong is wrong.
        let mut wrong = code.clone();
        wrong[199] = 0xff;
        wrong.extend([0xff; 4]);
        assert_eq!(decode(&mut decoder, &block(&wrong)), Err(Malformed::Huffman));
    }

    #[test]
    fn a_name_that_is_wrong_keeps_its_length_in_the_table() {
        let mut decoder = Decoder::new();
        decode(&mut decoder, b"\x40\x02AB\x01\n").unwrap();
        assert_eq!(decoder.size, 2 + 1 + ENTRY);
        decode(&mut decoder, b"\x7e\x03abc").unwrap();
        assert_eq!(decoder.size, 2 + 1 + ENTRY + 2 + 3 + ENTRY);
    }
}
