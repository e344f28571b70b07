//! The code of strings (RFC 7541, section 5.2 and appendix B). Only what comes is decoded; what is sent is sent as it is, which
//! costs bytes on a wire that has them to spare, and none of the processor's time.

use super::Malformed;

/// How many bits each byte's code has, and that of the end of a string. The codes follow from it: shorter before longer, and
/// those of one length in the order of what they stand for.
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];
/// The longest code.
const LONGEST: usize = 30;

/// The codes of one length.
#[derive(Clone, Copy)]
struct Length {
    /// The first of them.
    code: u32,
    how_many: u32,
    /// Where what they stand for begins in `SYMBOLS`.
    from: usize,
}

/// What codes stand for, in the codes' order; and the codes by length.
const CODES: ([u16; 257], [Length; LONGEST + 1]) = {
    let mut symbols = [0; 257];
    let mut lengths = [Length {
        code: 0,
        how_many: 0,
        from: 0,
    }; LONGEST + 1];
    let (mut code, mut filled, mut bits) = (0, 0, 1);
    while bits <= LONGEST {
        code <<= 1;
        lengths[bits] = Length {
            code,
            how_many: 0,
            from: filled,
        };
        let mut symbol = 0;
        while symbol < LENGTHS.len() {
            if LENGTHS[symbol] as usize == bits {
                #[expect(clippy::cast_possible_truncation, reason = "there are 257")]
                let number = symbol as u16;
                symbols[filled] = number;
                filled += 1;
                code += 1;
                lengths[bits].how_many += 1;
            }
            symbol += 1;
        }
        bits += 1;
    }
    (symbols, lengths)
};
static SYMBOLS: [u16; 257] = CODES.0;
static BY_LENGTH: [Length; LONGEST + 1] = CODES.1;

/// What begins with each eight bits: the byte, and how many bits its code has; zero where it has more than eight.
static SHORT: [(u8, u8); 256] = {
    let mut short = [(0, 0); 256];
    let mut bits = 5;
    while bits <= 8 {
        let length = CODES.1[bits];
        let mut nth = 0;
        while nth < length.how_many as usize {
            let first = (length.code as usize + nth) << (8 - bits);
            let mut rest = 0;
            while rest < 1 << (8 - bits) {
                #[expect(clippy::cast_possible_truncation, reason = "no code so short is that of the end")]
                let entry = (CODES.0[length.from + nth] as u8, bits as u8);
                short[first + rest] = entry;
                rest += 1;
            }
            nth += 1;
        }
        bits += 1;
    }
    short
};

/// Decodes a string.
///
/// # Errors
/// Where it isn't code, holds the code of the end, or is filled up with anything but up to seven ones.
pub(crate) fn decode(mut coded: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    out.reserve(coded.len() * 8 / 5);
    // The bits that come next, the first of them at the top.
    let (mut held, mut bits) = (0_u64, 0_u32);
    loop {
        if bits < 32 {
            if let Some((word, rest)) = coded.split_first_chunk::<4>() {
                held |= u64::from(u32::from_be_bytes(*word)) << (32 - bits);
                bits += 32;
                coded = rest;
            }
            while bits < 32
                && let Some((byte, rest)) = coded.split_first()
            {
                held |= u64::from(*byte) << (56 - bits);
                bits += 8;
                coded = rest;
            }
        }
        let (symbol, length) = match SHORT[(held >> 56) as usize] {
            (_, 0) => long(held)?,
            (symbol, length) => (symbol, u32::from(length)),
        };
        if length > bits {
            // The rest of the last byte, and no more than that.
            let is_filled = bits < 8 && held.leading_ones() >= bits;
            return if is_filled { Ok(()) } else { Err(Malformed::Huffman) };
        }
        out.push(symbol);
        held <<= length;
        bits -= length;
    }
}

#[cold]
fn long(held: u64) -> Result<(u8, u32), Malformed> {
    for (bits, length) in (0_u32..).zip(&BY_LENGTH).skip(9) {
        #[expect(clippy::cast_possible_truncation, reason = "30 bits at most are left")]
        let nth = ((held >> (u64::BITS - bits)) as u32).wrapping_sub(length.code);
        if nth < length.how_many {
            let symbol = SYMBOLS[length.from + nth as usize];
            // The end of a string is the one symbol that is no byte.
            return u8::try_from(symbol)
                .map(|byte| (byte, bits))
                .map_err(|_| Malformed::Huffman);
        }
    }
    Err(Malformed::Huffman)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    /// What ends a string, and must not be in one.
    const END: u16 = 256;

    fn code_of(symbol: u16) -> (u32, usize) {
        let bits = usize::from(LENGTHS[usize::from(symbol)]);
        let length = BY_LENGTH[bits];
        let nth = SYMBOLS[length.from..][..length.how_many as usize]
            .iter()
            .position(|of| *of == symbol)
            .unwrap();
        (length.code + u32::try_from(nth).unwrap(), bits)
    }

    fn encode(text: impl IntoIterator<Item = u16>) -> Vec<u8> {
        let bits: Vec<bool> = text
            .into_iter()
            .flat_map(|symbol| {
                let (code, bits) = code_of(symbol);
                (0..bits).rev().map(move |bit| code >> bit & 1 == 1)
            })
            .collect();
        bits.chunks(8)
            .map(|byte| {
                (0..8).fold(0, |sum, bit| {
                    sum << 1 | u8::from(byte.get(bit).copied().unwrap_or(true))
                })
            })
            .collect()
    }

    fn decoded(coded: &[u8]) -> Result<Vec<u8>, Malformed> {
        let mut out = Vec::new();
        decode(coded, &mut out).map(|()| out)
    }

    /// RFC 7541, appendix B, from each end of it.
    #[rstest]
    #[case::zero(b'0', 0x0, 5)]
    #[case::a(b'a', 0x3, 5)]
    #[case::space(b' ', 0x14, 6)]
    #[case::z_capital(b'Z', 0xfd, 8)]
    #[case::bang(b'!', 0x3f8, 10)]
    #[case::backslash(b'\\', 0x7fff0, 19)]
    #[case::line_feed(b'\n', 0x3fff_fffc, 30)]
    #[case::highest(0xff, 0x3ff_ffee, 26)]
    fn codes_are_the_rfcs(#[case] byte: u8, #[case] code: u32, #[case] bits: usize) {
        assert_eq!(code_of(u16::from(byte)), (code, bits));
    }

    /// RFC 7541, appendices C.4.1 and C.6.1.
    #[rstest]
    #[case::host(&[0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff], "www.example.com")]
    #[case::status(&[0x64, 0x02], "302")]
    #[case::cache(&[0xae, 0xc3, 0x77, 0x1a, 0x4b], "private")]
    #[case::empty(&[], "")]
    fn the_rfcs_strings_are_read(#[case] coded: &[u8], #[case] text: &str) {
        assert_eq!(decoded(coded), Ok(text.as_bytes().to_vec()));
    }

    #[rstest]
    #[case::filled_with_zeros(vec![0x18])]
    #[case::filled_with_a_byte(vec![0x64, 0x02, 0xff])]
    #[case::the_end(encode([u16::from(b'a'), END]))]
    #[case::cut(encode([u16::from(b'\n')])[..2].to_vec())]
    fn what_is_no_code_is_refused(#[case] coded: Vec<u8>) {
        assert_eq!(decoded(&coded), Err(Malformed::Huffman));
    }

    proptest! {
        #[test]
        fn every_string_comes_back(text in proptest::collection::vec(any::<u8>(), 0..80)) {
            prop_assert_eq!(decoded(&encode(text.iter().copied().map(u16::from))), Ok(text));
        }
    }
}
