//! Text as what stands between the quotes of a JSON string, a block at a time: a recording is mostly that, and an audit event
//! much of it. A byte at a time it took as long as all else that is done for a recording.

/// As many bytes are looked at together: a bit of a word for each.
const BLOCK: usize = 64;
/// How many bytes an escape takes at most, `\r\n` of one line feed among them; then how many it takes stands in the last.
const ESCAPE: usize = 8;
/// Where that stands.
const LENGTH: usize = ESCAPE - 1;

/// For each byte what stands in its place, with line feeds as they are.
static PLAIN: [[u8; ESCAPE]; 256] = escapes(false);
/// And where the terminal that text was printed on put a carriage return before each.
static RETURNED: [[u8; ESCAPE]; 256] = escapes(true);

/// Appends text. With `returns`, each line feed has a carriage return before it.
pub(crate) fn append(out: &mut Vec<u8>, text: &str, returns: bool) {
    let escapes = if returns { &RETURNED } else { &PLAIN };
    // Lines of some length, that the room rarely has to grow while they are written.
    out.reserve(text.len() + text.len() / 16 + BLOCK);
    let (blocks, rest) = text.as_bytes().as_chunks::<BLOCK>();
    for block in blocks {
        let mut marked = marks(block);
        if marked == 0 {
            out.extend_from_slice(block);
            continue;
        }
        let mut from = 0;
        while marked != 0 {
            let at = marked.trailing_zeros() as usize;
            out.extend_from_slice(&block[from..at]);
            push(out, escapes[usize::from(block[at])]);
            from = at + 1;
            marked &= marked - 1;
        }
        out.extend_from_slice(&block[from..]);
    }
    // Few bytes, of which nearly always none is marked: no loop with a way out, so that it is one over registers.
    if !rest.iter().fold(false, |any, byte| any | is_marked(*byte)) {
        out.extend_from_slice(rest);
        return;
    }
    for byte in rest {
        push(out, escapes[usize::from(*byte)]);
    }
}

/// Puts down all of an entry, which is a single store, and takes back what is none of it.
fn push(out: &mut Vec<u8>, escape: [u8; ESCAPE]) {
    let length = out.len() + usize::from(escape[LENGTH]);
    out.extend_from_slice(&escape);
    out.truncate(length);
}

const fn is_marked(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// A bit for each byte that can't stand as it is. Branches nowhere, so that it is done with the widest registers there are.
fn marks(block: &[u8; BLOCK]) -> u64 {
    /// Each of the eight bytes moves its lowest bit to another of the highest byte's.
    const GATHER: u64 = 0x0102_0408_1020_4080;
    let flags = block.map(|byte| u8::from(is_marked(byte)));
    let (words, _) = flags.as_chunks::<8>();
    let gathered = |word: &[u8; 8]| u64::from_le_bytes(*word).wrapping_mul(GATHER) >> 56;
    words.iter().rev().fold(0, |marks, word| marks << 8 | gathered(word))
}

/// As RFC 8259 has it, the short forms where there are.
const fn escapes(returns: bool) -> [[u8; ESCAPE]; 256] {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut all = [[0; ESCAPE]; 256];
    let mut byte = 0;
    while byte < 256 {
        #[expect(clippy::cast_possible_truncation, reason = "it is less than 256")]
        let (entry, value) = (&mut all[byte], byte as u8);
        let short = match value {
            b'"' | b'\\' => value,
            b'\n' => b'n',
            b'\r' => b'r',
            b'\t' => b't',
            8 => b'b',
            12 => b'f',
            _ => 0,
        };
        if value == b'\n' && returns {
            *entry = *b"\\r\\n\0\0\0\x04";
        } else if short != 0 {
            *entry = [b'\\', short, 0, 0, 0, 0, 0, 2];
        } else if value < 0x20 {
            let (high, low) = (HEX[byte >> 4], HEX[byte & 15]);
            *entry = [b'\\', b'u', b'0', b'0', high, low, 0, 6];
        } else {
            *entry = [value, 0, 0, 0, 0, 0, 0, 1];
        }
        byte += 1;
    }
    all
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn escaped(text: &str, returns: bool) -> String {
        let mut out = b"\"".to_vec();
        append(&mut out, text, returns);
        out.push(b'"');
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_byte_is_escaped_wherever_it_stands_in_a_block() {
        for byte in 0..=127 {
            for before in 0..=BLOCK {
                let text = format!("{}{}{}", "x".repeat(before), char::from(byte), "y".repeat(BLOCK));
                assert_eq!(
                    escaped(&text, false),
                    serde_json::to_string(&text).unwrap(),
                    "{byte} at {before}"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn a_reader_of_json_gets_the_same_text(text in "(\\PC|[\\x00-\\x7f]|[\"\\\\\n]){0,300}") {
            prop_assert_eq!(escaped(&text, false), serde_json::to_string(&text).unwrap());
            let returned: String = serde_json::from_str(&escaped(&text, true)).unwrap();
            prop_assert_eq!(returned, text.replace('\n', "\r\n"));
        }
    }
}
