//! Where lines go, for a thread that may block.

mod file;

use std::{fmt, io, path::PathBuf};

pub(super) use self::file::File;

/// As many bytes of room are kept for the next lines, and as many as these have, up to the other.
const ROOM: usize = 512 * 1024;
const ROOM_MOST: usize = 4 * 1024 * 1024;

/// Where the audit log goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// Standard output.
    Stdout,
    /// A file, appended to; made for the agent alone (0600), and made again when it was moved away or removed.
    File(PathBuf, Rotation),
}

/// When the agent itself begins a new file, and which old ones it removes; as kube-apiserver's options of these names
/// have it. Nothing of it by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rotation {
    /// A file of so many MiB is renamed, and another begun; zero is never.
    pub max_size: u64,
    /// Renamed files are removed after so many days; zero is never.
    pub max_age: u32,
    /// As many of them are kept; zero is all.
    pub max_backups: usize,
}

impl Destination {
    /// `-` is standard output, anything else a file.
    #[must_use]
    pub fn new(path: PathBuf, rotation: Rotation) -> Self {
        if path.as_os_str() == "-" {
            Self::Stdout
        } else {
            Self::File(path, rotation)
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdout => f.write_str("-"),
            Self::File(path, _) => path.display().fmt(f),
        }
    }
}

/// Something that bytes can be appended to.
pub(super) trait Sink: Send + 'static {
    /// Makes it ready. True: it begins anew, and what came before is elsewhere.
    fn prepare(&mut self) -> io::Result<bool>;
    /// Appends some of the bytes.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;
    /// Lets go of it until it's prepared again.
    fn close(&mut self);
}

/// Lines that are being written, across failures.
#[derive(Debug, Default)]
pub(super) struct Pending {
    bytes: Vec<u8>,
    written: usize,
}

impl Pending {
    /// For lines to be put in, in place of those that are written.
    pub(super) fn begin(&mut self) -> &mut Vec<u8> {
        self.written = 0;
        let room = self.bytes.len().clamp(ROOM, ROOM_MOST);
        self.bytes.clear();
        self.bytes.shrink_to(room);
        &mut self.bytes
    }

    /// All is written, and nothing follows at once: gives its room back.
    pub(super) fn rest(&mut self) {
        self.bytes = Vec::new();
        self.written = 0;
    }

    /// The lines that it began with, for more.
    pub(super) fn lines(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// As many bytes of them are written.
    pub(super) fn written(&self) -> usize {
        self.written
    }

    #[cfg(test)]
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self {
            bytes: bytes.to_vec(),
            written: 0,
        }
    }

    /// Goes on where the last attempt stopped; in a new file, with the line that it stopped in.
    pub(super) fn write_to(&mut self, sink: &mut dyn Sink) -> io::Result<()> {
        if sink.prepare()? {
            let lines = self.bytes.get(..self.written).unwrap_or_default();
            self.written = lines
                .iter()
                .rposition(|byte| *byte == b'\n')
                .map_or(0, |newline| newline + 1);
        }
        while let Some(rest) = self.bytes.get(self.written..).filter(|rest| !rest.is_empty()) {
            match sink.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => self.written += written,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
