//! How an error is told where nobody asks it further: in one line, with its causes, each thing once.
//!
//! Our own errors hold their causes' texts already, with what to do about them behind, for most are shown by themselves: in the
//! log, or in a status. Others', such as kube's, leave theirs out.

use std::{error::Error, fmt};

/// The error's text, and behind it those of its causes that it doesn't hold.
///
/// ```
/// use understudy::told;
///
/// let error = std::io::Error::other("the disk is gone");
/// assert_eq!(told::once(&error), "the disk is gone");
/// ```
#[must_use]
pub fn once(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let said = next.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = next.source();
    }
    text
}

/// What ends the program, as its last line on standard error has it.
pub struct Last(anyhow::Error);

impl From<anyhow::Error> for Last {
    fn from(error: anyhow::Error) -> Self {
        Self(error)
    }
}

impl fmt::Debug for Last {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&once(self.0.as_ref()))
    }
}
