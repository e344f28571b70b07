//! The directory of recordings, and a file in it that nobody else writes or brings elsewhere.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use jiff::Timestamp;

use super::super::{about::About, age::Recipient, cast::Cast};

/// Of a session's name, as much is in a file's name, which has its limits.
const NAME_LIMIT: usize = 128;

/// Makes the directory where it isn't there, and tries it.
pub(super) fn try_directory(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let trial = directory.join(format!(".trial-{}", std::process::id()));
    // Of an agent of the same number that was killed here.
    let _ = fs::remove_file(&trial);
    make(&trial)?;
    fs::remove_file(&trial)
}

/// Makes the file and writes its first line.
pub(super) fn begin(path: &Path, about: &About, now: Timestamp, recipients: &[Recipient]) -> io::Result<Cast<File>> {
    let begun = Cast::begin_for(make(path)?, about, now, recipients);
    if begun.is_err() {
        let _ = fs::remove_file(path);
    }
    begun
}

/// Never one that is there already, whatever it is. Locked for as long as it is open: whoever brings recordings elsewhere
/// takes none that is still written, by whatever agent.
fn make(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .append(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.try_lock()?;
    if file.metadata()?.nlink() == 0 {
        return Err(io::Error::other("it was removed as soon as it was made"));
    }
    Ok(file)
}

/// In the order of time where names are sorted. A session's name has no character that a file's can't have.
pub(super) fn file_name(about: &About, now: Timestamp) -> String {
    let mut session = about.session.replace('/', "_");
    session.truncate(session.floor_char_boundary(NAME_LIMIT));
    format!("{}_{session}_{}.cast", now.strftime("%Y%m%dT%H%M%SZ"), about.audit_id)
}

/// A file that is removed with this, unless it comes into use.
#[derive(Debug)]
pub(super) struct Unused {
    path: PathBuf,
    /// The same open file once more: it is locked until it is removed.
    held: Option<File>,
}

impl Unused {
    pub(super) fn new(path: PathBuf, file: &File) -> Self {
        Self {
            path,
            held: file.try_clone().ok(),
        }
    }

    #[cfg(test)]
    pub(super) fn of_nothing() -> Self {
        Self {
            path: PathBuf::new(),
            held: None,
        }
    }

    /// It is in use: where it is.
    pub(super) fn keep(mut self) -> PathBuf {
        std::mem::take(&mut self.path)
    }
}

impl Drop for Unused {
    fn drop(&mut self) {
        let (path, held) = (std::mem::take(&mut self.path), self.held.take());
        if path.as_os_str().is_empty() {
            return;
        }
        // Without a runtime, it stays and says that it has no end.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(move || {
                let _ = fs::remove_file(path);
                drop(held);
            });
        }
    }
}
