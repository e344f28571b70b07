//! The sums that prove a recording.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// How a recording's sums are made, as its first line says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sums {
    /// BLAKE3, as recordings are written.
    Blake3,
    /// SHA-256, as they were before: it takes four times as long.
    Sha256,
}

impl Sums {
    /// In words, and in the first line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Blake3 => "blake3",
            Self::Sha256 => "sha256",
        }
    }
}

/// A sum of what has come so far.
#[derive(Clone)]
pub(super) enum Sum {
    // Boxed for its size, of two kilobytes.
    Blake3(Box<blake3::Hasher>),
    Sha256(Sha256),
}

impl Sum {
    pub(super) fn new(sums: Sums) -> Self {
        match sums {
            Sums::Blake3 => Self::Blake3(Box::default()),
            Sums::Sha256 => Self::Sha256(Sha256::new()),
        }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Blake3(sum) => {
                sum.update(bytes);
            }
            Self::Sha256(sum) => sum.update(bytes),
        }
    }

    /// As it stands, in hexadecimal digits.
    pub(super) fn hex(&self) -> String {
        match self {
            Self::Blake3(sum) => sum.finalize().to_hex().to_string(),
            Self::Sha256(sum) => {
                let mut text = String::with_capacity(64);
                for byte in sum.clone().finalize() {
                    // A string never fails to take more.
                    let _ = write!(text, "{byte:02x}");
                }
                text
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    /// As `b3sum` and `sha256sum` say of `abc`.
    #[rstest]
    #[case(Sums::Blake3, "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85")]
    #[case(Sums::Sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")]
    fn sums_are_those_that_all_make(#[case] sums: Sums, #[case] expected: &str) {
        let mut sum = Sum::new(sums);
        sum.update(b"a");
        let _ = sum.hex();
        sum.update(b"bc");
        assert_eq!(sum.hex(), expected);
    }
}
