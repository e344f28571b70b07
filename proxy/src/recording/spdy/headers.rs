//! Header blocks of SPDY/3: names and values with their lengths, compressed by zlib with a dictionary and a state that all
//! blocks of a direction share.

use flate2::{Decompress, FlushDecompress, Status};

use super::dictionary::dictionary;
use crate::recording::stream::Lost;

/// The header that says which channel a stream is.
const STREAM_TYPE: &[u8] = b"streamtype";
/// As much as a block may be when it is no longer compressed.
const LONGEST: usize = 64 * 1024;
/// Where it begins.
const USUAL: usize = 1024;

const COMPRESSION: Lost = Lost::Spdy("a header block that isn't compressed as it should be");

/// Reads the header blocks of one direction, in their order.
#[derive(Debug)]
pub(in crate::recording) struct Inflater(Decompress);

impl Default for Inflater {
    fn default() -> Self {
        Self(Decompress::new(true))
    }
}

impl Inflater {
    /// The next block.
    pub(in crate::recording) fn read(&mut self, mut block: &[u8]) -> Result<Vec<u8>, Lost> {
        let mut plain = Vec::with_capacity(USUAL);
        loop {
            if plain.len() == plain.capacity() {
                if plain.len() >= LONGEST {
                    return Err(Lost::Spdy("a header block that grows beyond any"));
                }
                plain.reserve(plain.len());
            }
            let (taken_before, given_before) = (self.0.total_in(), plain.len());
            let outcome = self.0.decompress_vec(block, &mut plain, FlushDecompress::Sync);
            let taken = usize::try_from(self.0.total_in() - taken_before).unwrap_or(usize::MAX);
            block = block.get(taken..).unwrap_or_default();
            match outcome {
                // The state is for all blocks: it has no end before the connection has.
                Ok(Status::StreamEnd) => return Err(COMPRESSION),
                Ok(_) if block.is_empty() && plain.len() < plain.capacity() => return Ok(plain),
                Ok(_) if taken == 0 && plain.len() == given_before => return Err(COMPRESSION),
                Ok(_) => {}
                // Asked for once, by the first block.
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(&dictionary()).map_err(|_| COMPRESSION)?;
                }
                Err(_) => return Err(COMPRESSION),
            }
        }
    }
}

/// The one type that a block gives a stream; empty where it gives none.
pub(in crate::recording) fn stream_type(block: &[u8]) -> Result<&[u8], Lost> {
    value(block, STREAM_TYPE)
}

/// The one value that a block gives a header; empty where it gives none. Names are compared as the server does, in lower
/// case. Two headers of a name, or two values of one, would be one to it and might be the other to us.
pub(in crate::recording) fn value<'b>(mut block: &'b [u8], wanted: &[u8]) -> Result<&'b [u8], Lost> {
    let mut found: &[u8] = b"";
    for _ in 0..number(&mut block)? {
        let name = text(&mut block)?;
        let value = text(&mut block)?;
        if name.eq_ignore_ascii_case(wanted) {
            if !found.is_empty() || value.is_empty() {
                return Err(Lost::Spdy("a header that is there twice, or empty"));
            }
            found = value;
        }
    }
    Ok(found)
}

fn number(block: &mut &[u8]) -> Result<usize, Lost> {
    let (number, rest) = block
        .split_first_chunk::<4>()
        .ok_or(Lost::Spdy("a header block cut short"))?;
    *block = rest;
    usize::try_from(u32::from_be_bytes(*number)).map_err(|_| Lost::Spdy("a header block that grows beyond any"))
}

fn text<'b>(block: &mut &'b [u8]) -> Result<&'b [u8], Lost> {
    let length = number(block)?;
    let (text, rest) = block
        .split_at_checked(length)
        .ok_or(Lost::Spdy("a header block cut short"))?;
    *block = rest;
    Ok(text)
}
