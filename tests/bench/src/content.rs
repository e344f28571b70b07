//! The bytes of a large answer, which say by themselves where in it they belong: what was lost, doubled or changed on
//! the way shows. Both the upstream and the readers have them by heart.

use std::sync::LazyLock;

use bytes::Bytes;

/// How long it is before it begins again: a prime, so that no buffer's size hides a shift.
const PERIOD: usize = 1_048_573;

/// Printable text without a pattern, from a fixed seed.
static BLOCK: LazyLock<Bytes> = LazyLock::new(|| {
    // An xorshift generator: any would do, as long as it is the same everywhere.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..PERIOD)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            b' ' + u8::try_from(state % 94).unwrap_or_default()
        })
        .collect()
});

/// At most `most` bytes of what stands at `offset`; not a byte is copied.
#[must_use]
pub fn at(offset: u64, most: usize) -> Bytes {
    let start = usize::try_from(offset % PERIOD as u64).unwrap_or_default();
    BLOCK.slice(start..BLOCK.len().min(start.saturating_add(most)))
}

/// Whether these bytes are what stands at `offset`.
#[must_use]
pub fn is_at(offset: u64, mut bytes: &[u8]) -> bool {
    let mut offset = offset;
    while !bytes.is_empty() {
        let expected = at(offset, bytes.len());
        let (these, rest) = bytes.split_at(expected.len());
        if these != expected {
            return false;
        }
        offset += expected.len() as u64;
        bytes = rest;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a sender would send of it from `offset`.
    fn sent(offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < length {
            bytes.extend_from_slice(&at(offset + bytes.len() as u64, length - bytes.len()));
        }
        bytes
    }

    #[test]
    fn what_is_sent_is_recognised_wherever_it_begins() {
        for offset in [0, 1, PERIOD as u64 - 1, PERIOD as u64, 3 * PERIOD as u64 + 7] {
            assert!(is_at(offset, &sent(offset, 100_000)), "{offset}");
        }
    }

    #[test]
    fn what_was_lost_doubled_or_changed_shows() {
        let right = sent(5, 100_000);
        let mut changed = right.clone();
        changed[99_999] ^= 1;
        assert!(!is_at(5, &changed));
        let mut lost = right.clone();
        lost.drain(40_000..40_000 + 16_384);
        assert!(!is_at(5, &lost));
        let mut doubled = right.clone();
        doubled.splice(16_384..16_384, right[..16_384].to_vec());
        assert!(!is_at(5, &doubled));
        assert!(!is_at(6, &right));
    }
}
