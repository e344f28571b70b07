//! Recordings as files: the one place where a file is opened to be read.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
};

/// How a recording's name ends.
const EXTENSION: &str = "cast";

/// Opens a recording to be read from its beginning.
///
/// # Errors
/// If it isn't there, isn't to be read, or is a directory.
pub fn open(path: &Path) -> io::Result<Box<dyn BufRead>> {
    let file = File::open(path)?;
    if file.metadata()?.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    Ok(Box::new(BufReader::with_capacity(256 * 1024, file)))
}

/// The recordings that paths name: a file is one, and of a directory all are that end as recordings do, by name.
///
/// # Errors
/// The path that can't be looked into, and why.
pub fn find(paths: &[PathBuf]) -> Result<Vec<PathBuf>, (PathBuf, io::Error)> {
    let mut found = Vec::new();
    for path in paths {
        let wrong = |error| (path.clone(), error);
        if fs::metadata(path).map_err(wrong)?.is_dir() {
            let mut inside = Vec::new();
            for entry in fs::read_dir(path).map_err(wrong)? {
                let inner = entry.map_err(wrong)?.path();
                if inner.extension().is_some_and(|ends| ends == EXTENSION) {
                    inside.push(inner);
                }
            }
            inside.sort();
            found.append(&mut inside);
        } else {
            found.push(path.clone());
        }
    }
    Ok(found)
}
