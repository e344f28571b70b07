//! What was shown, line by line.

use std::io::{self, Write};

use avt::observer::Transcript;

use super::Export;
use crate::tools::{
    recordings::{
        screen::Screen,
        tape::{Event, Head, Summary, What},
    },
    table::shown,
};

/// Text that is made. Lines come when they leave the screen, and what is on it in the end at last.
pub(super) struct Text<W> {
    out: W,
    shown: Option<(Screen, Transcript)>,
    is_forward: bool,
}

impl<W: Write> Text<W> {
    pub(super) fn new(out: W) -> Self {
        Self {
            out,
            shown: None,
            is_forward: false,
        }
    }

    fn lines(&mut self, lines: &[String]) -> io::Result<()> {
        for line in lines {
            let line: String = line.chars().map(shown).collect();
            writeln!(self.out, "{line}")?;
        }
        Ok(())
    }
}

impl<W: Write> Export for Text<W> {
    fn begin(&mut self, head: &Head) -> io::Result<()> {
        self.is_forward = head.is_forward();
        self.shown = Some((Screen::new(head), Transcript::new()));
        Ok(())
    }

    fn event(&mut self, event: &Event) -> io::Result<()> {
        if let (true, What::Port(words)) = (self.is_forward, &event.what) {
            // No terminal showed it: when it was is what there is to say.
            return self.lines(&[format!("{:.3}s {words}", event.at.as_secs_f64())]);
        }
        let Some((screen, transcript)) = &mut self.shown else {
            return Ok(());
        };
        let lines = screen.show(&event.what, transcript);
        self.lines(&lines)
    }

    fn end(mut self, _: &Summary) -> io::Result<()> {
        let Some((screen, transcript)) = self.shown.take() else {
            return Ok(());
        };
        let lines = transcript.finish(screen.terminal());
        self.lines(&lines)
    }
}
