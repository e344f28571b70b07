//! The terminal that a recording is played in: taken, drawn on, and given back as it was.

use std::{
    io::{self, Stdout, Write},
    panic,
};

use crossterm::{
    cursor::{Hide, MoveTo, Show},
    queue,
    style::{Attribute, Color, Print, SetAttribute, SetBackgroundColor, SetForegroundColor},
    terminal::{
        self, BeginSynchronizedUpdate, Clear, ClearType, DisableLineWrap, EnableLineWrap, EndSynchronizedUpdate,
        EnterAlternateScreen, LeaveAlternateScreen,
    },
};

use super::player::Player;
use crate::tools::recordings::screen::{Span, Style};

/// The terminal, given back when this goes.
pub(super) struct Stage {
    out: Stdout,
    columns: u16,
    rows: u16,
    /// What each of its rows shows; none where that isn't known.
    drawn: Vec<Option<Vec<Span>>>,
}

impl Stage {
    /// Takes it: keys come one by one, and what was on it comes back afterwards.
    ///
    /// # Errors
    /// If there is none, or it can't be written to.
    pub(super) fn enter() -> io::Result<Self> {
        let (columns, rows) = terminal::size()?;
        // A panic's message is to be read, and typed after.
        let report = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            give_back();
            report(panic);
        }));
        terminal::enable_raw_mode()?;
        let mut stage = Self {
            out: io::stdout(),
            columns,
            rows,
            drawn: Vec::new(),
        };
        queue!(stage.out, EnterAlternateScreen, DisableLineWrap, Hide)?;
        stage.resized()?;
        Ok(stage)
    }

    /// It has another size, maybe: all is drawn anew.
    pub(super) fn resized(&mut self) -> io::Result<()> {
        (self.columns, self.rows) = terminal::size()?;
        self.drawn = vec![None; self.rows.into()];
        queue!(self.out, SetAttribute(Attribute::Reset), Clear(ClearType::All))
    }

    /// Shows what the player shows. Only rows that changed are written.
    pub(super) fn draw(&mut self, player: &Player) -> io::Result<()> {
        let screen = player.screen();
        let (columns, rows) = screen.size();
        let width = usize::from(self.columns);
        let room = |has_status: bool| usize::from(self.rows) - usize::from(has_status && self.rows > 1);
        let is_cut = |room: usize| columns > width || rows > room;
        let status = player.status(is_cut(room(true))).filter(|_| self.rows > 1);
        let room = room(status.is_some());
        // Where it is higher than there is room for, the part is shown that the cursor is in.
        let first = (screen.cursor_row() + 1).saturating_sub(room);
        let mut wanted: Vec<Vec<Span>> = screen.rows(width).skip(first).take(room).collect();
        wanted.resize(room, Vec::new());
        wanted.extend(status.map(|status| vec![bar(&status, width)]));
        queue!(self.out, BeginSynchronizedUpdate, Hide)?;
        for (row, spans) in (0..).zip(wanted) {
            let drawn = self.drawn.get_mut(usize::from(row));
            if let Some(drawn) = drawn.filter(|drawn| drawn.as_ref() != Some(&spans)) {
                queue!(
                    self.out,
                    MoveTo(0, row),
                    SetAttribute(Attribute::Reset),
                    Clear(ClearType::UntilNewLine)
                )?;
                for span in &spans {
                    write(&mut self.out, span)?;
                }
                queue!(self.out, SetAttribute(Attribute::Reset))?;
                *drawn = Some(spans);
            }
        }
        if let Some((column, row)) = screen.cursor()
            && let (Ok(column), Ok(row)) = (u16::try_from(column), u16::try_from(row.saturating_sub(first)))
            && column < self.columns
            && usize::from(row) < room
        {
            queue!(self.out, MoveTo(column, row), Show)?;
        }
        queue!(self.out, EndSynchronizedUpdate)?;
        self.out.flush()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        give_back();
    }
}

/// As it was. Where it is gone, there is nothing to give back.
fn give_back() {
    let mut out = io::stdout();
    let _gone = queue!(
        out,
        EndSynchronizedUpdate,
        SetAttribute(Attribute::Reset),
        EnableLineWrap,
        Show,
        LeaveAlternateScreen
    );
    let _gone = out.flush();
    let _gone = terminal::disable_raw_mode();
}

/// The status line, as wide as the terminal.
fn bar(status: &str, width: usize) -> Span {
    let mut text: String = status.chars().take(width).collect();
    text.extend(std::iter::repeat_n(' ', width.saturating_sub(text.chars().count())));
    Span {
        text,
        style: Style {
            inverse: true,
            ..Style::default()
        },
        is_wide: false,
    }
}

fn write(out: &mut impl Write, span: &Span) -> io::Result<()> {
    let style = span.style;
    queue!(out, SetAttribute(Attribute::Reset))?;
    for (is_set, attribute) in [
        (style.bold, Attribute::Bold),
        (style.faint, Attribute::Dim),
        (style.italic, Attribute::Italic),
        (style.underline, Attribute::Underlined),
        (style.strikethrough, Attribute::CrossedOut),
        (style.blink, Attribute::SlowBlink),
        (style.inverse, Attribute::Reverse),
    ] {
        if is_set {
            queue!(out, SetAttribute(attribute))?;
        }
    }
    if let Some(color) = style.foreground {
        queue!(out, SetForegroundColor(of(color)))?;
    }
    if let Some(color) = style.background {
        queue!(out, SetBackgroundColor(of(color)))?;
    }
    queue!(out, Print(&span.text))
}

fn of(color: avt::Color) -> Color {
    match color {
        avt::Color::Indexed(number) => Color::AnsiValue(number),
        avt::Color::RGB(avt::Rgb { r, g, b }) => Color::Rgb { r, g, b },
    }
}
