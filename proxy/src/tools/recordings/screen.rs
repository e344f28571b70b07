//! The terminal that a recording was shown on, emulated: nothing that it was told goes anywhere but into its cells.
//!
//! A recording holds whatever a workload printed, and a workload may be hostile to whoever looks at it later. Terminals have
//! been made to type commands by what they were sent: by being asked for their title (CVE-2003-0063), for a setting by
//! DECRQSS (CVE-2008-2383, CVE-2022-45872), for what they are; OSC 52 writes the clipboard, and reads it. So what is
//! recorded is read by an emulator that answers nothing and has neither title nor clipboard, and what is shown is made
//! anew of its cells: a letter, two colours and seven attributes each.

use avt::{Cell, Color, Line, Observer, Terminal};

use super::tape::{Head, What};
use crate::tools::table::shown;

/// A recording can't ask for a larger screen: each cell takes memory.
const MOST_COLUMNS: u16 = 1000;
const MOST_ROWS: u16 = 500;

/// How letters look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "attributes of a terminal, each by itself")]
pub(super) struct Style {
    pub(super) foreground: Option<Color>,
    pub(super) background: Option<Color>,
    pub(super) bold: bool,
    pub(super) faint: bool,
    pub(super) italic: bool,
    pub(super) underline: bool,
    pub(super) strikethrough: bool,
    pub(super) blink: bool,
    pub(super) inverse: bool,
}

impl Style {
    fn of(cell: &Cell) -> Self {
        let pen = cell.pen();
        Self {
            foreground: pen.foreground(),
            background: pen.background(),
            bold: pen.is_bold(),
            faint: pen.is_faint(),
            italic: pen.is_italic(),
            underline: pen.is_underline(),
            strikethrough: pen.is_strikethrough(),
            blink: pen.is_blink(),
            inverse: pen.is_inverse(),
        }
    }
}

/// Letters that look alike, in one row. A letter that is two columns wide stands alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) text: String,
    pub(super) style: Style,
    pub(super) is_wide: bool,
}

/// The screen.
pub(super) struct Screen {
    terminal: Terminal,
}

impl Screen {
    /// As it was when the recording began.
    pub(super) fn new(head: &Head) -> Self {
        Self::sized(head.width, head.height)
    }

    fn sized(columns: u16, rows: u16) -> Self {
        let (columns, rows) = bounded(columns, rows);
        let terminal = Terminal::new(columns, rows);
        // No size that is bounded is refused.
        let terminal = terminal.unwrap_or_else(|_| unreachable!("a screen of {columns} columns and {rows} rows"));
        Self { terminal }
    }

    /// Has it happen, and observed.
    pub(super) fn show<O: Observer>(&mut self, what: &What, observer: O) -> O::Output {
        match what {
            What::Output(text) => self.terminal.feed_with(text.as_str(), observer),
            What::Size(columns, rows) => {
                let (columns, rows) = bounded(*columns, *rows);
                self.terminal.resize_with(columns, rows, observer)
            }
            What::Port(words) => {
                let line: String = words.chars().map(shown).chain("\r\n".chars()).collect();
                self.terminal.feed_with(line.as_str(), observer)
            }
        }
    }

    /// The emulator itself, for what observes it.
    pub(super) fn terminal(&self) -> &Terminal {
        &self.terminal
    }

    /// Columns and rows.
    pub(super) fn size(&self) -> (usize, usize) {
        self.terminal.size()
    }

    /// The column and the row of the cursor, where it is shown.
    pub(super) fn cursor(&self) -> Option<(usize, usize)> {
        self.terminal.cursor().position()
    }

    /// The row that the cursor is in, shown or not.
    pub(super) fn cursor_row(&self) -> usize {
        self.terminal.cursor().row
    }

    /// Its rows, from the top, cut to a width.
    pub(super) fn rows(&self, width: usize) -> impl Iterator<Item = Vec<Span>> {
        self.terminal
            .screen()
            .visible_lines()
            .map(move |line| spans(line, width))
    }

    /// What makes another one like it.
    pub(super) fn kept(&self) -> Kept {
        let (columns, rows) = self.size();
        Kept {
            columns,
            rows,
            dump: self.terminal.dump(),
        }
    }
}

/// A screen as it was at one moment.
#[derive(Debug)]
pub(super) struct Kept {
    columns: usize,
    rows: usize,
    dump: String,
}

impl Kept {
    pub(super) fn screen(&self) -> Screen {
        let side = |length: usize| u16::try_from(length).unwrap_or(u16::MAX);
        let mut screen = Screen::sized(side(self.columns), side(self.rows));
        screen.terminal.feed(self.dump.as_str());
        screen
    }
}

fn bounded(columns: u16, rows: u16) -> (usize, usize) {
    (columns.clamp(1, MOST_COLUMNS).into(), rows.clamp(1, MOST_ROWS).into())
}

/// A row, without the blanks at its end that look like nothing.
fn spans(line: &Line, width: usize) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    let mut column = 0;
    for cell in line.cells() {
        let takes = usize::from(cell.width());
        if column + takes > width {
            break;
        }
        column += takes;
        // The second half of a wide letter.
        if takes == 0 {
            continue;
        }
        let (letter, style, is_wide) = (shown(cell.char()), Style::of(cell), takes > 1);
        match spans.last_mut() {
            Some(last) if last.style == style && !last.is_wide && !is_wide => last.text.push(letter),
            _ => spans.push(Span {
                text: letter.into(),
                style,
                is_wide,
            }),
        }
    }
    if let Some(last) = spans.last_mut().filter(|last| last.style == Style::default()) {
        last.text.truncate(last.text.trim_end_matches(' ').len());
        if last.text.is_empty() {
            spans.pop();
        }
    }
    spans
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn screen(text: &str) -> Screen {
        let mut screen = Screen::sized(20, 3);
        screen.show(&What::Output(text.to_owned()), ());
        screen
    }

    fn text(screen: &Screen) -> Vec<String> {
        let rows = screen.rows(usize::MAX);
        rows.map(|row| row.into_iter().map(|span| span.text).collect())
            .collect()
    }

    /// What has been used to make terminals type, tell or keep what they shouldn't: none of it reaches a cell.
    #[rstest]
    #[case::clipboard_written("\u{1b}]52;c;cm0gLXJmIC8K\u{7}")]
    #[case::clipboard_read("\u{1b}]52;c;?\u{1b}\\")]
    #[case::title("\u{1b}]0;owned\u{7}")]
    #[case::title_reported("\u{1b}[21t")]
    #[case::title_by_c1("\u{9d}2;owned\u{9c}")]
    #[case::setting_asked("\u{1b}P$q\"p\u{1b}\\")]
    #[case::capability_asked("\u{1b}P+q544e\u{1b}\\")]
    #[case::attributes_asked("\u{1b}[c\u{1b}[>c\u{1b}[=c\u{1b}Z\u{9b}c")]
    #[case::status_asked("\u{1b}[5n\u{1b}[6n")]
    #[case::answerback_asked("\u{5}")]
    #[case::colour_asked("\u{1b}]4;1;?\u{7}\u{1b}]10;?\u{7}")]
    #[case::hyperlink("\u{1b}]8;;file:///etc/passwd\u{7}\u{1b}]8;;\u{7}")]
    #[case::notification("\u{1b}]9;owned\u{7}\u{1b}]777;notify;a;b\u{7}")]
    #[case::file_transferred("\u{1b}]1337;File=inline=1:QQ==\u{7}")]
    #[case::printer("\u{1b}[5i\u{1b}[4i")]
    #[case::keys_defined("\u{1b}P0;1|17/726d\u{1b}\\")]
    #[case::private("\u{1b}_owned\u{1b}\\\u{1b}^owned\u{1b}\\")]
    #[case::window_moved("\u{1b}[3;0;0t\u{1b}[8;1;1t\u{1b}[2t")]
    fn nothing_but_letters_comes_through(#[case] hostile: &str) {
        let screen = screen(&format!("a{hostile}b"));
        assert_eq!(text(&screen), ["ab", "", ""], "{hostile:?}");
    }

    #[test]
    fn no_letter_moves_the_cursor_or_turns_the_line() {
        let screen = screen("a\u{202e}b\u{2066}c\u{200f}d");
        let row: String = text(&screen).swap_remove(0);
        assert!(row.chars().all(|letter| shown(letter) == letter), "{row:?}");
        assert!(row.starts_with('a') && row.ends_with('d'), "{row:?}");
    }

    #[test]
    fn no_recording_makes_a_screen_larger_than_there_is_room_for() {
        let mut screen = Screen::sized(0, 0);
        assert_eq!(screen.size(), (1, 1));
        screen.show(&What::Size(u16::MAX, u16::MAX), ());
        assert_eq!(screen.size(), (1000, 500));
        screen.show(
            &What::Output("\u{1b}[99999999999999999999bx\u{1b}[9999999999L".to_owned()),
            (),
        );
    }

    #[test]
    fn rows_are_spans_of_one_look_cut_to_a_width() {
        let screen = screen("plain \u{1b}[1;31mred\u{1b}[0m \u{4e16}x\r\n\u{1b}[44m  \u{1b}[0m");
        let rows: Vec<_> = screen.rows(12).collect();
        let texts: Vec<_> = rows[0].iter().map(|span| (&*span.text, span.is_wide)).collect();
        assert_eq!(
            texts,
            [("plain ", false), ("red", false), (" ", false), ("\u{4e16}", true)]
        );
        assert!(rows[0][1].style.bold && rows[0][1].style.foreground == Some(Color::Indexed(1)));
        assert_eq!(rows[1].len(), 1, "blanks of a colour are seen");
        assert_eq!(screen.rows(11).next().unwrap().len(), 2, "half a letter isn't shown");
    }

    #[test]
    fn a_screen_is_kept_and_made_again() {
        for told in [
            "one\r\n\u{1b}[32mtwo\u{1b}[1;5H\u{1b}[?25l",
            "a\u{1b}[?1049hb\u{1b}]0;unfin",
            "\u{1b}[3",
        ] {
            let (mut screen, mut again) = (screen(told), screen(told).kept().screen());
            for screen in [&mut screen, &mut again] {
                screen.show(&What::Output("1mc\u{7}d\u{1b}[?1049le".to_owned()), ());
            }
            assert_eq!(text(&again), text(&screen), "{told:?}");
            assert_eq!(again.cursor(), screen.cursor(), "{told:?}");
        }
    }
}
