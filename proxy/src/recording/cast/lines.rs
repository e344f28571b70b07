//! The lines of a recording that are to be written next.

use std::{io::Write as _, time::Duration};

use super::Code;
use crate::escape;

/// What is shown or typed within as long is one line: a viewer sees no difference, and of a program that prints a few bytes
/// at a time more would be said than it prints.
const GRAIN: Duration = Duration::from_millis(10);
/// What of the room is kept for the next: that of a write as long as there is, sealed or not, of
/// plain text.
const KEPT_ROOM: usize = 512 * 1024;
/// What ends an event.
const END: &[u8] = b"\"]\n";

/// Lines, one after another.
#[derive(Debug, Default)]
pub(super) struct Lines {
    bytes: Vec<u8>,
    /// Whether each line feed that is shown has a carriage return before it: there is no terminal that put it there.
    returns: bool,
    /// What the last line is, and since when, where more can be added to it.
    open: Option<(Code, Duration)>,
}

impl Lines {
    /// Beginning with one that is JSON already.
    pub(super) fn new(mut first: Vec<u8>, returns: bool) -> Self {
        first.push(b'\n');
        Self {
            bytes: first,
            returns,
            open: None,
        }
    }

    /// Adds an event, or adds to the last. Milliseconds are what it is told in: players that read times as floating-point
    /// numbers and write them as text again don't understand themselves below a tenth of one.
    pub(super) fn add(&mut self, at: Duration, code: Code, text: &str) {
        let joins = matches!(self.open, Some((open, since)) if open == code && at.saturating_sub(since) < GRAIN);
        if joins {
            self.bytes.truncate(self.bytes.len() - END.len());
        } else {
            let (seconds, millis, letter) = (at.as_secs(), at.subsec_millis(), code.letter());
            // A vector never fails to take more.
            let _ = write!(self.bytes, "[{seconds}.{millis:03}, \"{letter}\", \"");
            self.open = matches!(code, Code::Output | Code::Input).then_some((code, at));
        }
        escape::append(&mut self.bytes, text, self.returns && code == Code::Output);
        self.bytes.extend_from_slice(END);
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// They were written, or can't be.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_ROOM);
        self.open = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(returns: bool, events: &[(u64, Code, &str)]) -> String {
        let mut lines = Lines::new(b"{}".to_vec(), returns);
        lines.clear();
        for (at, code, text) in events {
            lines.add(Duration::from_millis(*at), *code, text);
        }
        String::from_utf8(lines.as_bytes().to_vec()).unwrap()
    }

    #[test]
    fn what_is_shown_at_once_is_one_line() {
        let events = [
            (1000, Code::Output, "a"),
            (1009, Code::Output, "\"b\""),
            (1010, Code::Output, "c"),
            (1010, Code::Input, "d"),
            (1011, Code::Output, "e"),
            (1011, Code::Resize, "1x1"),
            (1011, Code::Resize, "1x2"),
        ];
        let expected = concat!(
            "[1.000, \"o\", \"a\\\"b\\\"\"]\n",
            "[1.010, \"o\", \"c\"]\n",
            "[1.010, \"i\", \"d\"]\n",
            "[1.011, \"o\", \"e\"]\n",
            "[1.011, \"r\", \"1x1\"]\n",
            "[1.011, \"r\", \"1x2\"]\n",
        );
        assert_eq!(lines(false, &events), expected);
    }

    #[test]
    fn what_a_terminal_would_add_is_added_to_what_is_shown() {
        let events = [(0, Code::Output, "a\nb"), (0, Code::Input, "a\nb")];
        let (shown, typed) = ("[0.000, \"o\", \"a\\r\\nb\"]\n", "[0.000, \"i\", \"a\\nb\"]\n");
        assert_eq!(lines(true, &events), [shown, typed].concat());
        assert_eq!(
            lines(false, &events),
            [shown.replace("\\r", ""), typed.to_owned()].concat()
        );
    }
}
