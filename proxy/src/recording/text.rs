//! Text out of bytes that come in parts.

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
    /// Appends what comes next to `text`, up to the last whole character.
    pub(super) fn read(&mut self, bytes: &[u8], text: &mut String) {
        let joined: Vec<u8>;
        let bytes = if self.length > 0 {
            joined = [&self.begun[..self.length], bytes].concat();
            self.length = 0;
            &joined[..]
        } else {
            bytes
        };
        // Nearly all is whole, and many times as fast to see at once.
        if let Ok(whole) = std::str::from_utf8(bytes) {
            text.push_str(whole);
            return;
        }
        let mut chunks = bytes.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text.push_str(chunk.valid());
            let invalid = chunk.invalid();
            if invalid.is_empty() {
                continue;
            }
            if chunks.peek().is_none() && may_go_on(invalid) {
                self.begun[..invalid.len()].copy_from_slice(invalid);
                self.length = invalid.len();
            } else {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
    }

    /// Nothing more comes.
    pub(super) fn end(&mut self, text: &mut String) {
        if self.length > 0 {
            self.length = 0;
            text.push(char::REPLACEMENT_CHARACTER);
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
            reader.read(part, &mut text);
        }
        reader.end(&mut text);
        text
    }

    #[test]
    fn a_character_in_two_parts_is_one() {
        let mut reader = Text::default();
        let mut text = String::new();
        reader.read(b"caf\xc3", &mut text);
        assert_eq!(text, "caf");
        reader.read(b"\xa9 \xf0\x9f", &mut text);
        assert_eq!(text, "caf\u{e9} ");
        reader.end(&mut text);
        assert_eq!(text, "caf\u{e9} \u{fffd}");
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
