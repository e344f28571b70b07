//! Whether a recording is what was written.

use std::io::{self, BufRead, Read as _};

use serde::Deserialize;

use super::{
    Code,
    seal::{Opener, Wrapped},
    sum::{Sum, Sums},
};
use crate::recording::age::{AgeError, Identity};

/// A line is shorter: of what is written at once, every byte may take six, and a third more where it is sealed; and a
/// command is as long as the head of a request.
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
    /// It is sealed, and can't be opened.
    #[error("the recording can't be opened: {0}")]
    Sealed(#[from] AgeError),
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
    /// How the sums are made.
    pub sums: Sums,
    /// The sum of the whole, as the agent's log has it for one that came to its end.
    pub sum: String,
    /// Whether the end is there.
    pub ending: Ending,
    /// Whether only some may read it.
    pub sealing: Sealing,
}

/// Who may read a recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sealing {
    /// Everybody.
    None,
    /// Whom it is sealed for; it wasn't opened, and its sums are right all the same.
    Closed,
    /// Whom it is sealed for; it was opened, and what is in it is as it was sealed.
    Opened,
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
    sums: Sums,
    sealed: Option<Wrapped>,
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
        /// The line as it stands.
        line: &'l [u8],
    },
    /// A sum that is right: all before is as it was written. Empty where that was sealed, and the sum isn't of what it
    /// holds.
    Proven(&'l [u8]),
}

impl Line<'_> {
    /// The line as it stands.
    #[must_use]
    pub const fn bytes(&self) -> &[u8] {
        match self {
            Self::Head(line) | Self::Event { line, .. } | Self::Proven(line) => line,
        }
    }
}

/// Reads a recording, and checks each sum.
///
/// # Errors
/// If it can't be read, isn't a recording, or isn't what was written.
pub fn verify(recording: impl BufRead) -> Result<Verified, VerifyError> {
    read(recording, &[], &mut |_| Ok(()))
}

/// Reads a recording, checks each sum, and hands on its lines; of one that is sealed, those that were sealed, where one of
/// the identities opens it. What was handed on counts once a [`Line::Proven`] has followed.
///
/// # Errors
/// As [`verify`], where identities are given and none of them opens it, and where `see` fails. What was proven before
/// stands.
pub fn read(
    mut recording: impl BufRead,
    identities: &[Identity],
    see: &mut dyn FnMut(Line<'_>) -> io::Result<()>,
) -> Result<Verified, VerifyError> {
    let mut reading = Reading::default();
    let mut line = Vec::new();
    loop {
        line.clear();
        recording.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return reading.verified();
        }
        reading.lines += 1;
        if reading.sum.is_none() {
            reading.head(&line, identities)?;
            if reading.opener.is_none() {
                see(Line::Head(&line))?;
            }
        } else if line.last() == Some(&b'\n') {
            reading.event(&line, see)?;
        } else if reading.whole || line.len() as u64 >= LONGEST_LINE {
            return Err(reading.changed());
        }
        // What has no end is of a write that didn't get through.
        reading.pass(&line);
    }
}

/// A recording as far as it is read.
#[derive(Default)]
struct Reading {
    lines: u64,
    proven: u64,
    unproven: u64,
    /// None before the first line, which says how they are made.
    sum: Option<(Sums, Sum)>,
    is_sealed: bool,
    opener: Option<Opener>,
    /// The end, in the clear.
    end: Option<String>,
    /// And what was sealed last, if it is that of the end.
    sealed_end: Option<String>,
    /// The first of the lines that were sealed was seen.
    has_sealed_head: bool,
    whole: bool,
}

impl Reading {
    fn head(&mut self, line: &[u8], identities: &[Identity]) -> Result<(), VerifyError> {
        let head: Head = serde_json::from_slice(line).map_err(|_| VerifyError::Foreign)?;
        if head.version != 2 {
            return Err(VerifyError::Foreign);
        }
        let sums = head.understudy.sums;
        self.sum = Some((sums, Sum::new(sums)));
        if let Some(wrapped) = head.understudy.sealed {
            self.is_sealed = true;
            if !identities.is_empty() {
                self.opener = Some(Opener::new(&wrapped, identities)?);
            }
        }
        Ok(())
    }

    /// Looks at a whole line that isn't the first, and hands on what it says.
    fn event(&mut self, line: &[u8], see: &mut dyn FnMut(Line<'_>) -> io::Result<()>) -> Result<(), VerifyError> {
        if self.whole {
            return Err(self.changed());
        }
        let Ok((at, code, text)) = serde_json::from_slice::<(f64, char, String)>(line) else {
            return Err(self.changed());
        };
        if code == Code::Sum.letter() {
            if text != self.so_far() {
                return Err(self.changed());
            }
            self.proven = self.lines;
            self.whole = self.end.is_some();
            let line = if self.opener.is_none() { line } else { &[] };
            return Ok(see(Line::Proven(line))?);
        }
        if self.end.is_some() || (self.is_sealed && ![Code::Sealed, Code::End].map(Code::letter).contains(&code)) {
            return Err(self.changed());
        }
        let Some(opener) = &self.opener else {
            let text = &text[..];
            see(Line::Event { at, code, text, line })?;
            if code == Code::End.letter() {
                self.end = Some(text.to_owned());
            }
            return Ok(());
        };
        if code == Code::End.letter() {
            // Whoever has no key can put an end there, but not in a frame.
            if self.sealed_end.as_ref() != Some(&text) {
                return Err(self.changed());
            }
            self.end = Some(text);
            return Ok(());
        }
        let Some(lines) = opener.open(&text, &self.so_far()) else {
            return Err(self.changed());
        };
        self.sealed_end = None;
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            if !std::mem::replace(&mut self.has_sealed_head, true) {
                see(Line::Head(line))?;
                continue;
            }
            let Ok((at, code, text)) = serde_json::from_slice::<(f64, char, String)>(line) else {
                return Err(self.changed());
            };
            let text = &text[..];
            see(Line::Event { at, code, text, line })?;
            // It is the end if nothing follows it.
            self.sealed_end = (code == Code::End.letter()).then(|| text.to_owned());
        }
        Ok(())
    }

    fn pass(&mut self, line: &[u8]) {
        if let Some((_, sum)) = &mut self.sum {
            sum.update(line);
        }
        self.unproven = if self.proven == self.lines {
            0
        } else {
            self.unproven + line.len() as u64
        };
    }

    fn so_far(&self) -> String {
        self.sum.as_ref().map(|(_, sum)| sum.hex()).unwrap_or_default()
    }

    fn changed(&self) -> VerifyError {
        VerifyError::Changed {
            line: self.lines,
            proven: self.proven,
        }
    }

    fn verified(self) -> Result<Verified, VerifyError> {
        let sum = self.so_far();
        let (sums, _) = self.sum.ok_or(VerifyError::Foreign)?;
        let unproven = self.unproven;
        Ok(Verified {
            lines: self.lines,
            sums,
            sum,
            ending: match self.end {
                Some(why) if self.whole => Ending::Whole(why),
                _ => Ending::Missing { unproven },
            },
            sealing: match (self.is_sealed, self.opener) {
                (false, _) => Sealing::None,
                (true, None) => Sealing::Closed,
                (true, Some(_)) => Sealing::Opened,
            },
        })
    }
}
