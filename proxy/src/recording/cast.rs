//! A recording in its file: asciicast v2, a line for each event, and after each write a line that sums up all before it.
//!
//! Players show lines of the codes `o` and `r` and pass over those that they don't know, so ours stand among them in one
//! file: whoever copies a recording copies all that proves it, and what a killed agent leaves is whole up to its last
//! write. Each sum is the BLAKE3 hash of every byte before it, earlier sums included: what is changed, taken out or put in
//! shows in all that follow.

mod lines;
mod proof;
mod seal;
mod sum;

use std::{
    io::{self, Write},
    time::Duration,
};

use jiff::Timestamp;
use serde::Serialize;

use self::{
    lines::Lines,
    seal::{Seal, Wrapped},
    sum::Sum,
};
pub use self::{
    proof::{Ending, Line, Sealing, Verified, VerifyError, read, verify},
    sum::Sums,
};
use super::{
    about::About,
    age::{AgeError, Recipient},
    transcript::{Piece, Transcript},
};

/// Where nothing is known of the terminal, or not yet: a size follows when the client says one.
const COLUMNS: u16 = 80;
const ROWS: u16 = 24;
/// How sums are made.
const SUMS: Sums = Sums::Blake3;

/// What a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// Something was shown.
    Output,
    /// Something was typed.
    Input,
    /// The terminal's size changed: columns, `x`, rows.
    Resize,
    /// Ours: which of the two outputs what follows is of, from `stdout`, as it begins, to `stderr` or back.
    Stream,
    /// Ours: nothing more is typed.
    Closed,
    /// Ours, as asciicast v3 has it: the exit code, or what the server said in its place.
    Exit,
    /// Ours: something happened in a port-forward.
    Port,
    /// Ours: lines that only some may read.
    Sealed,
    /// Ours: it is at its end, and why. But for the sum, nothing follows.
    End,
    /// Ours: the sum of all before.
    Sum,
}

impl Code {
    /// In the recording.
    #[must_use]
    pub const fn letter(self) -> char {
        match self {
            Self::Output => 'o',
            Self::Input => 'i',
            Self::Resize => 'r',
            Self::Stream => 's',
            Self::Closed => 'c',
            Self::Exit => 'x',
            Self::Port => 'p',
            Self::Sealed => 'e',
            Self::End => 'z',
            Self::Sum => 'h',
        }
    }
}

/// Why a recording ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Both ends closed the stream.
    Closed,
    /// It was cut short: the session ended, or a peer broke off.
    CutShort,
    /// The recording broke off; the stream went on without it, or was ended for it.
    BrokenOff,
}

impl End {
    /// In the recording.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::CutShort => "cut-short",
            Self::BrokenOff => "broken-off",
        }
    }
}

/// The first line.
#[derive(Serialize)]
struct Header<'a> {
    version: u8,
    width: u16,
    height: u16,
    timestamp: i64,
    title: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    command: String,
    understudy: Ours<'a>,
}

#[derive(Serialize)]
struct Ours<'a> {
    #[serde(flatten)]
    about: &'a About,
    sums: Sums,
}

/// The first line of one that only some may read: enough to find it, and to prove it, by. The other stands in its first
/// frame.
#[derive(Serialize)]
struct SealedHeader<'a> {
    version: u8,
    width: u16,
    height: u16,
    timestamp: i64,
    understudy: SealedOurs<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SealedOurs<'a> {
    #[serde(rename = "auditID")]
    audit_id: &'a str,
    session: &'a str,
    node: &'a str,
    sums: Sums,
    sealed: Wrapped,
}

/// A recording that is being written.
pub struct Cast<W> {
    sink: W,
    transcript: Transcript,
    /// Of all that was written.
    sum: Sum,
    written: u64,
    /// What is to be written next.
    lines: Lines,
    /// When the last event was: none is before it.
    last: Duration,
    /// Where only some may read it.
    sealing: Option<Sealed>,
}

struct Sealed {
    seal: Seal,
    /// What is to be written next, in a frame.
    frames: Lines,
}

impl<W: Write> Cast<W> {
    /// Begins one with its first line.
    ///
    /// # Errors
    /// If the line can't be written.
    pub fn begin(sink: W, about: &About, now: Timestamp) -> io::Result<Self> {
        Self::begin_for(sink, about, now, &[])
    }

    /// Begins one that only these may read; everybody, where there are none.
    ///
    /// # Errors
    /// If it can't be written, or sealed.
    pub fn begin_for(sink: W, about: &About, now: Timestamp, recipients: &[Recipient]) -> io::Result<Self> {
        let header = Header {
            version: 2,
            width: COLUMNS,
            height: ROWS,
            timestamp: now.as_second(),
            title: about.title(),
            command: about.asked.command_line(),
            understudy: Ours { about, sums: SUMS },
        };
        let first = serde_json::to_vec(&header)?;
        let mut cast = Self {
            sink,
            transcript: Transcript::default(),
            sum: Sum::new(SUMS),
            written: 0,
            lines: Lines::new(first, !about.asked.tty),
            last: Duration::ZERO,
            sealing: None,
        };
        if !recipients.is_empty() {
            cast.begin_sealed(about, now, recipients).map_err(io::Error::other)?;
        }
        cast.commit(None)?;
        Ok(cast)
    }

    fn begin_sealed(&mut self, about: &About, now: Timestamp, recipients: &[Recipient]) -> Result<(), BeginError> {
        let (seal, wrapped) = Seal::new(recipients)?;
        let header = SealedHeader {
            version: 2,
            width: COLUMNS,
            height: ROWS,
            timestamp: now.as_second(),
            understudy: SealedOurs {
                audit_id: &about.audit_id,
                session: &about.session,
                node: &about.node,
                sums: SUMS,
                sealed: wrapped,
            },
        };
        let mut first = Lines::new(serde_json::to_vec(&header)?, false);
        self.put(&mut first)?;
        let frames = first;
        self.sealing = Some(Sealed { seal, frames });
        Ok(())
    }

    /// Writes down what passed, each piece with the time since the beginning. All of it in one write, with its sum.
    ///
    /// # Errors
    /// If it can't be written. A part of it may have been: what is beyond [`written`](Self::written) bytes is to be cut off.
    pub fn write<'p>(&mut self, passed: impl IntoIterator<Item = (Duration, &'p Piece)>) -> io::Result<()> {
        for (at, piece) in passed {
            self.last = self.last.max(at);
            let (lines, last) = (&mut self.lines, self.last);
            self.transcript
                .read(piece, &mut |code, text| lines.add(last, code, text));
        }
        if self.lines.as_bytes().is_empty() {
            return Ok(());
        }
        self.commit(None)
    }

    /// Writes the end, and gives the last sum, which stands for the whole, and why it ended. Nothing was cut short where
    /// the server had said how the command ended: kubectl's SPDY breaks the connection off then.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn end(&mut self, at: Duration, why: End) -> io::Result<(String, End)> {
        let why = if why == End::CutShort && self.transcript.has_outcome() {
            End::Closed
        } else {
            why
        };
        self.last = self.last.max(at);
        let (lines, last) = (&mut self.lines, self.last);
        self.transcript.end(&mut |code, text| lines.add(last, code, text));
        lines.add(last, Code::End, why.name());
        self.commit(Some(why))?;
        self.sink.flush()?;
        Ok((self.sum.hex(), why))
    }

    /// How many bytes are written, and summed up.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Where it is written to.
    #[must_use]
    pub fn sink(&self) -> &W {
        &self.sink
    }

    /// Writes what there is to be written; the end stands in the clear as well, that all can tell whether it is there.
    fn commit(&mut self, end: Option<End>) -> io::Result<()> {
        let mut lines = std::mem::take(&mut self.lines);
        let outcome = match self.sealing.take() {
            None => self.put(&mut lines),
            Some(mut sealing) => {
                let outcome = self.put_sealed(&mut sealing, &lines, end);
                self.sealing = Some(sealing);
                outcome
            }
        };
        // What couldn't be written isn't there, nor will it be.
        lines.clear();
        self.lines = lines;
        outcome
    }

    fn put_sealed(&mut self, sealing: &mut Sealed, lines: &Lines, end: Option<End>) -> io::Result<()> {
        let frame = sealing.seal.close(lines.as_bytes(), &self.sum.hex());
        let frame = frame.map_err(io::Error::other)?;
        sealing.frames.add(self.last, Code::Sealed, frame);
        if let Some(why) = end {
            sealing.frames.add(self.last, Code::End, why.name());
        }
        self.put(&mut sealing.frames)
    }

    /// Writes lines and their sum, and takes them away.
    fn put(&mut self, lines: &mut Lines) -> io::Result<()> {
        let mut sum = self.sum.clone();
        sum.update(lines.as_bytes());
        let summed = lines.as_bytes().len();
        lines.add(self.last, Code::Sum, &sum.hex());
        sum.update(&lines.as_bytes()[summed..]);
        let outcome = self.sink.write_all(lines.as_bytes());
        if outcome.is_ok() {
            self.sum = sum;
            self.written += lines.as_bytes().len() as u64;
        }
        lines.clear();
        outcome
    }
}

/// Why a sealed recording can't be begun.
#[derive(Debug, thiserror::Error)]
enum BeginError {
    #[error("it can't be sealed: {0}")]
    Seal(#[from] AgeError),
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    #[error(transparent)]
    Write(#[from] io::Error),
}

impl<W> std::fmt::Debug for Cast<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cast")
            .field("written", &self.written)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
