//! A recording in its file: asciicast v2, a line for each event, and after each write a line that sums up all before it.
//!
//! Players show lines of the codes `o` and `r` and pass over those that they don't know, so ours stand among them in one
//! file: whoever copies a recording copies all that proves it, and what a killed agent leaves is whole up to its last
//! write. Each sum is the SHA-256 of every byte before it, earlier sums included: what is changed, taken out or put in
//! shows in all that follow.

mod proof;

use std::{
    fmt::Write as _,
    io::{self, Write},
    time::Duration,
};

use jiff::Timestamp;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

pub use self::proof::{Ending, Line, Verified, VerifyError, read, verify};
use super::{
    about::About,
    transcript::{Piece, Transcript},
};

/// Where nothing is known of the terminal, or not yet: a size follows when the client says one.
const COLUMNS: u16 = 80;
const ROWS: u16 = 24;
/// How sums are made, as the first line says.
const SUMS: &str = "sha256";
/// What of a line's room is kept for the next.
const KEPT_ROOM: usize = 64 * 1024;

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
    sums: &'static str,
}

/// A recording that is being written.
pub struct Cast<W> {
    sink: W,
    transcript: Transcript,
    /// Of all that was written.
    sum: Sha256,
    written: u64,
    /// What is to be written next.
    lines: Vec<u8>,
    /// When the last event was: none is before it.
    last: Duration,
}

impl<W: Write> Cast<W> {
    /// Begins one with its first line.
    ///
    /// # Errors
    /// If the line can't be written.
    pub fn begin(sink: W, about: &About, now: Timestamp) -> io::Result<Self> {
        let header = Header {
            version: 2,
            width: COLUMNS,
            height: ROWS,
            timestamp: now.as_second(),
            title: about.title(),
            command: about.asked.command_line(),
            understudy: Ours { about, sums: SUMS },
        };
        let mut cast = Self {
            sink,
            transcript: Transcript::new(about.asked.tty),
            sum: Sha256::new(),
            written: 0,
            lines: serde_json::to_vec(&header)?,
            last: Duration::ZERO,
        };
        cast.lines.push(b'\n');
        cast.commit()?;
        Ok(cast)
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
                .read(piece, &mut |code, text| event(lines, last, code, text));
        }
        if self.lines.is_empty() {
            return Ok(());
        }
        self.commit()
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
        self.transcript.end(&mut |code, text| event(lines, last, code, text));
        event(&mut self.lines, last, Code::End, why.name());
        self.commit()?;
        self.sink.flush()?;
        Ok((hex(self.sum.clone()), why))
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

    fn commit(&mut self) -> io::Result<()> {
        let mut sum = self.sum.clone();
        sum.update(&self.lines);
        let summed = self.lines.len();
        event(&mut self.lines, self.last, Code::Sum, &hex(sum.clone()));
        sum.update(&self.lines[summed..]);
        let outcome = self.sink.write_all(&self.lines);
        if outcome.is_ok() {
            self.sum = sum;
            self.written += self.lines.len() as u64;
        }
        // What couldn't be written isn't there, nor will it be.
        self.lines.clear();
        self.lines.shrink_to(KEPT_ROOM);
        outcome
    }
}

impl<W> std::fmt::Debug for Cast<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cast")
            .field("written", &self.written)
            .finish_non_exhaustive()
    }
}

/// Milliseconds are what it is told in: players that read times as floating-point numbers and write them as text again
/// don't understand themselves below a tenth of one.
fn event(lines: &mut Vec<u8>, at: Duration, code: Code, text: &str) {
    let mut head = String::with_capacity(24);
    // Neither a string nor a vector ever fails to take more.
    let _ = write!(
        head,
        "[{}.{:03}, \"{}\", ",
        at.as_secs(),
        at.subsec_millis(),
        code.letter()
    );
    lines.extend_from_slice(head.as_bytes());
    let _ = serde_json::to_writer(&mut *lines, text);
    lines.extend_from_slice(b"]\n");
}

fn hex(sum: Sha256) -> String {
    let mut text = String::with_capacity(64);
    for byte in sum.finalize() {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests;
