//! Whether a recording is what was written.

use std::io::{self, BufRead, Read as _};

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::{Code, SUMS, hex};

/// A line is shorter: of what is read from a stream at once, every byte may take six, and a command is as long as the head
/// of a request.
const LONGEST_LINE: u64 = 8 * 1024 * 1024;

/// Why a file isn't a recording as it was written.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// It can't be read.
    #[error("the recording can't be read ({0}): see that it is there, and that you may read it")]
    Read(#[from] io::Error),
    /// It isn't one of ours.
    #[error("this isn't a recording of Understudy's: its first line isn't the head of one")]
    Foreign,
    /// A line isn't what was written, or one before it was taken out or put in.
    #[error("the recording was changed at line {line} or before it, after line {proven}")]
    Changed {
        /// The first line that can't be right, from one.
        line: u64,
        /// The last line up to which all is as it was written.
        proven: u64,
    },
}

/// A recording that is what was written, as far as `ending` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// How many lines there are, the first and the sums included.
    pub lines: u64,
    /// The sum of the whole, as the agent's log has it for one that came to its end.
    pub sum: String,
    /// Whether the end is there.
    pub ending: Ending,
}

/// How a recording ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// With its end, for the reason that it gives: `closed`, `cut-short` or `broken-off`.
    Whole(String),
    /// Without: it is still being written, or its agent was killed, or it was cut.
    Missing {
        /// So many bytes at the end are proven by no sum: of a write that didn't get through, or put there.
        unproven: u64,
    },
}

#[derive(Deserialize)]
struct Head {
    version: u8,
    understudy: Ours,
}

#[derive(Deserialize)]
struct Ours {
    sums: String,
}

/// What is read of a recording, line by line.
#[derive(Debug, Clone, PartialEq)]
pub enum Line<'l> {
    /// The first.
    Head(&'l [u8]),
    /// Something happened.
    Event {
        /// Seconds since the beginning, as the line has it.
        at: f64,
        /// What, by its letter. It may be one of another asciicast's.
        code: char,
        /// What of it.
        text: &'l str,
    },
    /// A sum that is right: all before is as it was written.
    Proven,
}

/// Reads a recording, and checks each sum.
///
/// # Errors
/// If it can't be read, isn't a recording, or isn't what was written.
pub fn verify(recording: impl BufRead) -> Result<Verified, VerifyError> {
    read(recording, &mut |_| {})
}

/// Reads a recording, and checks each sum. What is seen counts once a [`Line::Proven`] has followed.
///
/// # Errors
/// As [`verify`]. What was proven before stands.
pub fn read(mut recording: impl BufRead, see: &mut dyn FnMut(Line<'_>)) -> Result<Verified, VerifyError> {
    let mut sum = Sha256::new();
    let (mut lines, mut proven, mut unproven) = (0, 0, 0);
    let mut end = None;
    let mut whole = false;
    let mut line = Vec::new();
    loop {
        line.clear();
        recording.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            break;
        }
        lines += 1;
        if lines == 1 {
            let head: Head = serde_json::from_slice(&line).map_err(|_| VerifyError::Foreign)?;
            if head.version != 2 || head.understudy.sums != SUMS {
                return Err(VerifyError::Foreign);
            }
            unproven += line.len() as u64;
            see(Line::Head(&line));
        } else if line.last() != Some(&b'\n') {
            // A write that didn't get through.
            if whole || line.len() as u64 >= LONGEST_LINE {
                return Err(VerifyError::Changed { line: lines, proven });
            }
            unproven += line.len() as u64;
        } else {
            let changed = VerifyError::Changed { line: lines, proven };
            if whole {
                return Err(changed);
            }
            let Ok((at, code, text)) = serde_json::from_slice::<(f64, char, String)>(&line) else {
                return Err(changed);
            };
            if code == Code::Sum.letter() {
                if text != hex(sum.clone()) {
                    return Err(changed);
                }
                (proven, unproven) = (lines, 0);
                whole = end.is_some();
                see(Line::Proven);
            } else {
                if end.is_some() {
                    return Err(changed);
                }
                see(Line::Event { at, code, text: &text });
                if code == Code::End.letter() {
                    end = Some(text);
                }
                unproven += line.len() as u64;
            }
        }
        sum.update(&line);
    }
    if lines == 0 {
        return Err(VerifyError::Foreign);
    }
    let ending = match end {
        Some(why) if whole => Ending::Whole(why),
        _ => Ending::Missing { unproven },
    };
    Ok(Verified {
        lines,
        sum: hex(sum),
        ending,
    })
}
