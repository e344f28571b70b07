//! Where lines go, for a thread that may block.

use std::{
    fs,
    io::{self, Write},
    os::{
        fd::AsFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

/// As much is kept for the next lines.
const ROOM: usize = 512 * 1024;

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
        self.bytes.clear();
        self.bytes.shrink_to(ROOM);
        &mut self.bytes
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

/// A file that is appended to, or standard output.
#[derive(Debug)]
pub(super) struct File {
    // None: standard output, which has no name to open it by again.
    path: Option<PathBuf>,
    file: Option<fs::File>,
}

impl File {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: Some(path.to_owned()),
            file: Some(open(path)?),
        })
    }

    /// Not through `io::stdout`, whose buffer would hide how much was written when a write fails.
    pub(super) fn stdout() -> io::Result<Self> {
        Ok(Self {
            path: None,
            file: Some(io::stdout().as_fd().try_clone_to_owned()?.into()),
        })
    }
}

impl Sink for File {
    fn prepare(&mut self) -> io::Result<bool> {
        let Some(path) = &self.path else { return Ok(false) };
        let named = fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino())).ok();
        let held = match &self.file {
            Some(file) => file.metadata().map(|metadata| (metadata.dev(), metadata.ino())).ok(),
            None => None,
        };
        if held.is_some() && held == named {
            return Ok(false);
        }
        let file = open(path)?;
        let same = held.is_some() && held == file.metadata().map(|metadata| (metadata.dev(), metadata.ino())).ok();
        self.file = Some(file);
        Ok(!same)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.as_mut().ok_or(io::ErrorKind::NotConnected)?.write(bytes)
    }

    fn close(&mut self) {
        if self.path.is_some() {
            self.file = None;
        }
    }
}

fn open(path: &Path) -> io::Result<fs::File> {
    fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}
