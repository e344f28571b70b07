//! Text out of bytes that come in parts.

use std::borrow::Cow;

/// The longest part of a character that isn't whole.
const MOST: usize = 3;

/// UTF-8 that comes in parts: a character may begin in one and end in another. What isn't UTF-8 becomes U+FFFD.
#[derive(Debug, Default)]
pub(super) struct Text {
    /// The beginning of a character.
    begun: [u8; MOST],
    length: usize,
}

impl Text {
    /// What comes next, up to the last whole character. Nearly all is, and is not copied.
    pub(super) fn read<'b>(&mut self, bytes: &'b [u8]) -> Cow<'b, str> {
        if self.length > 0 {
            let joined = [&self.begun[..self.length], bytes].concat();
            self.length = 0;
            return Cow::Owned(self.read(&joined).into_owned());
        }
        let error = match std::str::from_utf8(bytes) {
            Ok(whole) => return Cow::Borrowed(whole),
            Err(error) => error,
        };
        if error.error_len().is_none() {
            let (whole, begun) = bytes.split_at(error.valid_up_to());
            self.begin(begun);
            return String::from_utf8_lossy(whole);
        }
        let mut text = String::with_capacity(bytes.len());
        let mut chunks = bytes.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text.push_str(chunk.valid());
            let invalid = chunk.invalid();
            if invalid.is_empty() {
                continue;
            }
            if chunks.peek().is_none() && may_go_on(invalid) {
                self.begin(invalid);
            } else {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        Cow::Owned(text)
    }

    fn begin(&mut self, bytes: &[u8]) {
        self.begun[..bytes.len()].copy_from_slice(bytes);
        self.length = bytes.len();
    }

    /// Nothing more comes.
    pub(super) fn end(&mut self) -> &'static str {
        if self.length > 0 {
            self.length = 0;
            "\u{fffd}"
        } else {
            ""
        }
    }
}

fn may_go_on(bytes: &[u8]) -> bool {
    bytes.len() <= MOST && std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read<'p>(parts: impl IntoIterator<Item = &'p [u8]>) -> String {
        let (mut reader, mut text) = (Text::default(), String::new());
        for part in parts {
            text.push_str(&reader.read(part));
        }
        text.push_str(reader.end());
        text
    }

    #[test]
    fn a_character_in_two_parts_is_one() {
        let mut reader = Text::default();
        assert_eq!(reader.read(b"caf\xc3"), "caf");
        assert_eq!(reader.read(b"\xa9 \xf0\x9f"), "\u{e9} ");
        assert_eq!(reader.end(), "\u{fffd}");
        assert_eq!(reader.end(), "");
    }

    proptest! {
        #[test]
        fn however_it_is_split_it_is_the_same_text(
            bytes in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..60),
                "\\PC{0,30}".prop_map(String::into_bytes),
            ],
            size in 1..7_usize,
        ) {
            prop_assert_eq!(read(bytes.chunks(size)), String::from_utf8_lossy(&bytes));
        }
    }
}
