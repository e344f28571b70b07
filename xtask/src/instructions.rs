//! Instructions that the agent takes for a request, held to the number that is kept.
//!
//! valgrind counts them (`tests/instructions`), so that a busy machine changes nothing. The build is that of daily work: the number
//! tells of a change, and isn't what a release takes: `cargo run --release --package understudy-instructions` says that.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::command::{on_path, progress};
use crate::{build, setup, workspace};

/// More than this, in percent, is too much.
const MARGIN: u64 = 10;

/// What to do with what was counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    /// Hold it to what is kept.
    Check,
    /// Keep it.
    Accept,
}

/// Counts, and holds or keeps what was counted.
///
/// # Errors
/// Where more is taken than the margin allows, naming what and how to accept it.
pub(crate) fn instructions(kept: Kept) -> Result<()> {
    if on_path("valgrind").is_none() {
        setup::valgrind()?;
    }
    let counted = count()?;
    for (name, each) in &counted {
        progress(format!("{name}: {each} instructions for each request"));
    }
    let path = file();
    match kept {
        Kept::Accept => {
            let lines = counted.iter().fold(String::new(), |mut lines, (name, each)| {
                let _ = writeln!(lines, "{name} {each}");
                lines
            });
            fs::write(&path, lines).with_context(|| path.display().to_string())
        }
        Kept::Check => {
            let before = parse(&fs::read_to_string(&path).with_context(|| path.display().to_string())?)?;
            hold(&before, &counted)
        }
    }
}

fn file() -> PathBuf {
    workspace::root().join("tests/instructions/kept.txt")
}

type Counts = Vec<(String, u64)>;

fn count() -> Result<Counts> {
    let binaries = build::binaries()?;
    let mut command = Command::new(binaries.path("understudy-instructions")?);
    progress("counting instructions ...");
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .context("counting instructions")?;
    if !output.status.success() {
        bail!("instructions couldn't be counted: {}", output.status);
    }
    parse(&String::from_utf8_lossy(&output.stdout))
}

fn parse(text: &str) -> Result<Counts> {
    text.lines()
        .map(|line| {
            let (name, count) = line.split_once(' ').with_context(|| format!("{line:?} is no count"))?;
            Ok((name.to_owned(), count.parse().with_context(|| format!("{line:?}"))?))
        })
        .collect()
}

fn hold(before: &Counts, now: &Counts) -> Result<()> {
    for (name, kept) in before {
        let Some((_, counted)) = now.iter().find(|(other, _)| other == name) else {
            bail!("{name} wasn't counted");
        };
        if *counted > kept + kept * MARGIN / 100 {
            bail!(
                "{name}: a request takes {counted} instructions, {MARGIN} % more than the {kept} that are kept: find out why \
                 (UNDERSTUDY_PROFILE=DIR leaves callgrind's profiles there), or accept it with `cargo xtask instructions --accept`"
            );
        }
        if *counted < kept - kept * MARGIN / 100 {
            progress(format!(
                "{name}: {counted} instructions, and {kept} are kept: hold it to this with `cargo xtask instructions --accept`"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(http1: u64) -> Counts {
        vec![("http1".to_owned(), http1), ("http2".to_owned(), 1000)]
    }

    #[test]
    fn what_is_kept_can_be_read() {
        assert_eq!(parse("http1 50\nhttp2 1000\n").unwrap(), counts(50));
        assert!(parse("http1\n").is_err());
    }

    #[test]
    fn more_than_the_margin_is_refused() {
        assert!(hold(&counts(1000), &counts(1100)).is_ok());
        assert!(hold(&counts(1000), &counts(100)).is_ok());
        let error = hold(&counts(1000), &counts(1101)).unwrap_err().to_string();
        assert!(error.contains("--accept"), "{error}");
        assert!(hold(&counts(1000), &Vec::new()).is_err());
    }
}
