//! What a hostile or broken peer does, and what a test saw come of it.
//!
//! A test calls [`seen`] after its assertions, with an outcome put together from what it observed. A full run of the
//! tests leaves every case in one directory, and `cargo xtask test` holds `docs/refused.md` to be what they say.
//! Nothing here decides what is right: that is for the test's assertions.

mod screens;

use std::{
    env, fs,
    io::{self, Write as _},
    path::Path,
};

use serde::{Deserialize, Serialize};

pub use self::screens::{ACCEPT, keep_screen};

/// The environment variable that names the directory in which cases are kept. Without it they are kept nowhere, as in
/// a run of a few tests.
pub const DIRECTORY: &str = "UNDERSTUDY_CASES";

/// What a case is about; in the order of the document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Area {
    /// Headers that carry an identity, and callers who prove one.
    Identity,
    /// HTTP/1.1 as nobody should write it.
    Http1,
    /// HTTP/2 likewise.
    Http2,
    /// Switching protocols.
    Upgrades,
    /// TLS on both sides.
    Tls,
    /// Getting around the redirect in the kernel.
    Redirect,
    /// What breaks by itself.
    Faults,
    /// More than a pod may have.
    Limits,
}

impl Area {
    /// All, in the order of the document.
    pub const ALL: [Self; 8] = [
        Self::Identity,
        Self::Http1,
        Self::Http2,
        Self::Upgrades,
        Self::Tls,
        Self::Redirect,
        Self::Faults,
        Self::Limits,
    ];

    /// Its heading.
    #[must_use]
    pub fn heading(self) -> &'static str {
        match self {
            Self::Identity => "Identity",
            Self::Http1 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
            Self::Upgrades => "Upgrades",
            Self::Tls => "TLS",
            Self::Redirect => "Redirect",
            Self::Faults => "Faults",
            Self::Limits => "Limits",
        }
    }
}

/// One case, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Case {
    /// What it is about.
    pub area: Area,
    /// What the peer does, or what breaks.
    pub case: String,
    /// What was seen to come of it: the same words in every run.
    pub outcome: String,
}

/// Keeps what a test saw.
///
/// # Panics
/// Where it can't be kept, so that no case is lost in silence.
pub fn seen(area: Area, case: impl Into<String>, outcome: impl Into<String>) {
    let Some(directory) = env::var_os(DIRECTORY) else {
        return;
    };
    let case = Case {
        area,
        case: case.into(),
        outcome: outcome.into(),
    };
    if let Err(error) = keep(Path::new(&directory), &case) {
        panic!("could not keep {case:?} in {}: {error}", directory.display());
    }
}

/// All that was kept in a directory, sorted; a case that several tests saw come to the same is there once.
///
/// # Errors
/// Where the directory can't be read, or holds something else.
pub fn all(directory: &Path) -> io::Result<Vec<Case>> {
    let mut cases = Vec::new();
    for entry in fs::read_dir(directory)? {
        for line in fs::read_to_string(entry?.path())?.lines() {
            cases.push(serde_json::from_str(line)?);
        }
    }
    cases.sort();
    cases.dedup();
    Ok(cases)
}

/// One file for each process, one write for each line: tests of a process share the file.
fn keep(directory: &Path, case: &Case) -> io::Result<()> {
    let mut line = serde_json::to_vec(case)?;
    line.push(b'\n');
    fs::create_dir_all(directory)?;
    fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(directory.join(format!("{}.jsonl", std::process::id())))?
        .write_all(&line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_read_again_in_order_and_once() {
        let directory = env::temp_dir().join(format!("understudy-cases-{}", std::process::id()));
        let case = |area, case: &str| Case {
            area,
            case: case.into(),
            outcome: "400".into(),
        };
        let (first, second) = (case(Area::Http1, "b"), case(Area::Redirect, "a"));
        for case in [&second, &first, &second] {
            keep(&directory, case).unwrap();
        }
        let all = all(&directory);
        fs::remove_dir_all(&directory).unwrap();
        assert_eq!(all.unwrap(), [first, second]);
    }
}
