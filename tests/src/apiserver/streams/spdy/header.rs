//! Header blocks of SPDY/3: names and values with their lengths, compressed by zlib with a dictionary and a state
//! that all blocks of one direction share.

use bytes::{Buf, BufMut, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::dictionary::dictionary;

/// A block that grows beyond this is an attack or a mistake.
const LONGEST: usize = 64 * 1024;

/// Why a header block can't be read or written.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum HeaderError {
    /// zlib refused.
    #[error("SPDY header compression: {0}")]
    Zlib(String),
    /// The block ends before its headers do.
    #[error("SPDY header block is cut short")]
    Short,
    /// It's too long.
    #[error("SPDY header block of more than {LONGEST} bytes")]
    Long,
}

/// The headers of a stream, names in lower case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Headers(Vec<(String, String)>);

impl Headers {
    /// The value of that name.
    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(own, _)| own == name)
            .map(|(_, value)| value.as_str())
    }

    fn parse(mut block: &[u8]) -> Result<Self, HeaderError> {
        let count = block.try_get_u32().map_err(|_| HeaderError::Short)?;
        let mut headers = Vec::new();
        for _ in 0..count {
            let name = text(&mut block)?.to_ascii_lowercase();
            headers.push((name, text(&mut block)?));
        }
        Ok(Self(headers))
    }

    fn encode(&self) -> Vec<u8> {
        let mut block = BytesMut::new();
        let put = |block: &mut BytesMut, length: usize| {
            // A header of ours is never as long as four gigabytes.
            block.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
        };
        put(&mut block, self.0.len());
        for (name, value) in &self.0 {
            for part in [name, value] {
                put(&mut block, part.len());
                block.put_slice(part.as_bytes());
            }
        }
        block.into()
    }
}

impl<'a> FromIterator<(&'a str, &'a str)> for Headers {
    fn from_iter<I: IntoIterator<Item = (&'a str, &'a str)>>(headers: I) -> Self {
        Self(
            headers
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
        )
    }
}

fn text(block: &mut &[u8]) -> Result<String, HeaderError> {
    let length = block.try_get_u32().map_err(|_| HeaderError::Short)? as usize;
    let (text, rest) = block.split_at_checked(length).ok_or(HeaderError::Short)?;
    *block = rest;
    Ok(String::from_utf8_lossy(text).into_owned())
}

/// Reads header blocks, in their order.
#[derive(Debug)]
pub(crate) struct Inflater(Decompress);

impl Inflater {
    pub(crate) fn new() -> Self {
        Self(Decompress::new(true))
    }

    pub(crate) fn headers(&mut self, block: &[u8]) -> Result<Headers, HeaderError> {
        let mut input = block;
        let mut output = Vec::with_capacity(4096);
        loop {
            if output.len() == output.capacity() {
                if output.len() >= LONGEST {
                    return Err(HeaderError::Long);
                }
                output.reserve(output.len());
            }
            let (before_in, before_out) = (self.0.total_in(), output.len());
            let result = self.0.decompress_vec(input, &mut output, FlushDecompress::Sync);
            let consumed = usize::try_from(self.0.total_in() - before_in).unwrap_or(input.len());
            input = &input[consumed..];
            match result {
                Ok(Status::StreamEnd) => break,
                Ok(_) => {
                    let stuck = consumed == 0 && output.len() == before_out;
                    if stuck || (input.is_empty() && output.len() < output.capacity()) {
                        break;
                    }
                }
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0
                        .set_dictionary(&dictionary())
                        .map_err(|error| HeaderError::Zlib(error.to_string()))?;
                }
                Err(error) => return Err(HeaderError::Zlib(error.to_string())),
            }
        }
        Headers::parse(&output)
    }
}

/// Writes header blocks, in their order.
#[derive(Debug)]
pub(crate) struct Deflater {
    compress: Compress,
    primed: bool,
}

impl Deflater {
    pub(crate) fn new() -> Self {
        Self {
            compress: Compress::new(Compression::default(), true),
            primed: false,
        }
    }

    pub(crate) fn headers(&mut self, headers: &Headers) -> Result<Vec<u8>, HeaderError> {
        let zlib = |error: flate2::CompressError| HeaderError::Zlib(error.to_string());
        if !self.primed {
            self.compress.set_dictionary(&dictionary()).map_err(zlib)?;
            self.primed = true;
        }
        let block = headers.encode();
        let mut input = &block[..];
        let mut output = Vec::with_capacity(block.len() + 64);
        loop {
            let before = self.compress.total_in();
            self.compress
                .compress_vec(input, &mut output, FlushCompress::Sync)
                .map_err(zlib)?;
            let consumed = usize::try_from(self.compress.total_in() - before).unwrap_or(input.len());
            input = &input[consumed..];
            if input.is_empty() && output.len() < output.capacity() {
                return Ok(output);
            }
            output.reserve(64);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::no_count(&[], HeaderError::Short)]
    #[case::no_name(&[0, 0, 0, 1], HeaderError::Short)]
    #[case::name_cut(&[0, 0, 0, 1, 0, 0, 0, 2, b'a'], HeaderError::Short)]
    #[case::huge_count(&[0xff, 0xff, 0xff, 0xff], HeaderError::Short)]
    fn bad_blocks(#[case] block: &[u8], #[case] error: HeaderError) {
        assert_eq!(Headers::parse(block), Err(error));
    }

    #[test]
    fn a_block_that_never_ends_is_refused() {
        let long = "x".repeat(LONGEST * 2);
        let block = Deflater::new()
            .headers(&Headers::from_iter([("a", long.as_str())]))
            .unwrap();
        assert_eq!(Inflater::new().headers(&block), Err(HeaderError::Long));
    }

    proptest! {
        #[test]
        fn blocks_are_read_as_written(
            blocks in prop::collection::vec(prop::collection::vec(("[a-z:-]{1,20}", ".{0,200}"), 0..10), 1..5),
        ) {
            let (mut deflater, mut inflater) = (Deflater::new(), Inflater::new());
            for headers in blocks {
                let headers = Headers(headers);
                let block = deflater.headers(&headers).unwrap();
                prop_assert_eq!(inflater.headers(&block).unwrap(), headers);
            }
        }
    }
}
