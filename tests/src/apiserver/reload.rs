//! A file that is read again once it has changed, so that a test can rotate tokens and rules under a running
//! server. A file that went bad leaves its last good content in force.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
    sync::{Arc, Mutex},
    time::SystemTime,
};

use super::sync::lock;

/// Why a file can't be used at start.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// It can't be read.
    #[error("cannot read {0}: {1}")]
    Read(PathBuf, std::io::Error),
    /// It can't be parsed.
    #[error("{0}: {1}")]
    Parse(PathBuf, String),
}

/// What tells one content of the file from the next without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    length: u64,
    inode: u64,
}

/// A parsed file, or a value that never changes.
#[derive(Debug)]
pub(crate) struct Reloaded<T> {
    path: Option<PathBuf>,
    current: Mutex<(Option<Stamp>, Arc<T>)>,
}

impl<T> Reloaded<T>
where
    T: FromStr<Err: std::fmt::Display>,
{
    /// A value without a file.
    pub(crate) fn fixed(value: T) -> Self {
        Self {
            path: None,
            current: Mutex::new((None, Arc::new(value))),
        }
    }

    /// Reads the file for the first time.
    pub(crate) async fn open(path: &Path) -> Result<Self, ReloadError> {
        let stamp = stamp(path).await;
        let value = read(path).await?;
        Ok(Self {
            path: Some(path.to_owned()),
            current: Mutex::new((stamp, Arc::new(value))),
        })
    }

    /// The content as of now.
    pub(crate) async fn current(&self) -> Arc<T> {
        let Some(path) = &self.path else {
            return lock(&self.current).1.clone();
        };
        let found = stamp(path).await;
        {
            let current = lock(&self.current);
            if found.is_none() || current.0 == found {
                return current.1.clone();
            }
        }
        match read(path).await {
            Ok(value) => {
                let mut current = lock(&self.current);
                *current = (found, Arc::new(value));
                current.1.clone()
            }
            Err(error) => {
                tracing::warn!(%error, "keeping the last good content");
                lock(&self.current).1.clone()
            }
        }
    }
}

async fn stamp(path: &Path) -> Option<Stamp> {
    use std::os::unix::fs::MetadataExt;

    let metadata = tokio::fs::metadata(path).await.ok()?;
    Some(Stamp {
        modified: metadata.modified().ok(),
        length: metadata.len(),
        inode: metadata.ino(),
    })
}

async fn read<T>(path: &Path) -> Result<T, ReloadError>
where
    T: FromStr<Err: std::fmt::Display>,
{
    let text = tokio::fs::read_to_string(path)
        .await
        .map_err(|error| ReloadError::Read(path.to_owned(), error))?;
    text.parse()
        .map_err(|error: T::Err| ReloadError::Parse(path.to_owned(), error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::auth::TokenTable;

    #[tokio::test]
    async fn a_changed_file_is_read_and_a_bad_one_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens.csv");
        std::fs::write(&path, "a,alice,1").unwrap();
        let file = Reloaded::<TokenTable>::open(&path).await.unwrap();
        assert!(file.current().await.user("a").is_some());

        std::fs::write(&path, "bb,alice,1").unwrap();
        assert!(file.current().await.user("a").is_none());
        assert!(file.current().await.user("bb").is_some());

        std::fs::write(&path, "bad").unwrap();
        assert!(file.current().await.user("bb").is_some());
        std::fs::remove_file(&path).unwrap();
        assert!(file.current().await.user("bb").is_some());
    }
}
