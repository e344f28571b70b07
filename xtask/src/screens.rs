//! `docs/screens`: pictures of what operators see, as a run of the tests saw it on a terminal.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use crate::command::progress;
use crate::refused::Page;
use crate::workspace;

/// Names the directory to tests; `understudy_tests::screens` has it as well.
pub(crate) const DIRECTORY: &str = "UNDERSTUDY_SCREENS";

/// One character's place in a picture, in its units.
const WIDTH: usize = 8;
const HEIGHT: usize = 17;
/// Around the text.
const MARGIN: usize = 12;
const BACKGROUND: &str = "#1d2021";
const FOREGROUND: &str = "#d5c4a1";
/// The sixteen colours of a terminal.
const COLOURS: [&str; 16] = [
    "#1d2021", "#cc241d", "#98971a", "#d79921", "#458588", "#b16286", "#689d6a", "#a89984", "#7c6f64", "#fb4934",
    "#b8bb26", "#fabd2f", "#83a598", "#d3869b", "#8ec07c", "#ebdbb2",
];

/// Where a run keeps its screens: empty, and there.
///
/// # Errors
/// Where it can't be made so.
pub(crate) fn directory() -> Result<PathBuf> {
    workspace::emptied("screens")
}

/// Compares the pictures with what a full run saw, or draws them anew. Numbers are another run's: they may differ.
///
/// # Errors
/// Where a picture shows something else, or is of a screen that wasn't seen.
pub(crate) fn settle(directory: &Path, page: Page) -> Result<()> {
    let kept = workspace::root().join("docs/screens");
    let seen = names(directory, "ansi")?;
    if page == Page::Check {
        let drawn = names(&kept, "svg")?;
        ensure!(
            drawn == seen,
            "docs/screens has {drawn:?}, and the tests saw {seen:?}: run `cargo xtask test --accept`"
        );
    }
    for name in &seen {
        let path = directory.join(format!("{name}.ansi"));
        let screen = fs::read_to_string(&path).with_context(|| format!("could not read {}", path.display()))?;
        let picture = draw(&screen);
        let path = kept.join(format!("{name}.svg"));
        if page == Page::Accept {
            fs::create_dir_all(&kept).with_context(|| format!("could not make {}", kept.display()))?;
            fs::write(&path, picture).with_context(|| format!("could not write {}", path.display()))?;
            continue;
        }
        let before = fs::read_to_string(&path).with_context(|| format!("could not read {}", path.display()))?;
        ensure!(
            shape(&before) == shape(&picture),
            "{} isn't what the tests saw: see why, or run `cargo xtask test --accept`",
            path.display()
        );
    }
    progress(format!("docs/screens: {} pictures, as the tests saw them", seen.len()));
    Ok(())
}

fn names(directory: &Path, extension: &str) -> Result<Vec<String>> {
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(directory).with_context(|| format!("could not read {}", directory.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|found| found == extension) {
            names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
        }
    }
    names.sort();
    Ok(names)
}

/// The different words of a picture's text: neither numbers, nor which row stands where.
fn shape(picture: &str) -> Vec<String> {
    let texts = picture.split("<tspan").skip(1).filter_map(|span| {
        let (_, rest) = span.split_once('>')?;
        rest.split_once("</tspan>").map(|(text, _)| text)
    });
    let mut words: Vec<String> = texts
        .flat_map(str::split_whitespace)
        .filter(|word| *word != "-" && !word.contains(|letter: char| letter.is_ascii_digit()))
        .map(str::to_owned)
        .collect();
    words.sort();
    words.dedup();
    words
}

/// What a run of characters looks like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Look {
    foreground: Option<usize>,
    background: Option<usize>,
    is_bold: bool,
    is_dim: bool,
    is_reversed: bool,
}

impl Look {
    /// As SGR has it (ECMA-48), as far as tmux says it of sixteen colours.
    fn change(&mut self, codes: &str) {
        let mut codes = codes.split(';').map(|code| code.parse().unwrap_or(0));
        while let Some(code) = codes.next() {
            match code {
                0 => *self = Self::default(),
                1 => self.is_bold = true,
                2 => self.is_dim = true,
                7 => self.is_reversed = true,
                22 => (self.is_bold, self.is_dim) = (false, false),
                27 => self.is_reversed = false,
                // One of 256, of which the first sixteen are these.
                38 => self.foreground = codes.nth(1),
                48 => self.background = codes.nth(1),
                30..=37 => self.foreground = Some(code - 30),
                39 => self.foreground = None,
                40..=47 => self.background = Some(code - 40),
                49 => self.background = None,
                90..=97 => self.foreground = Some(code - 82),
                100..=107 => self.background = Some(code - 92),
                _ => {}
            }
        }
    }

    fn colours(self) -> (&'static str, Option<&'static str>) {
        let of = |colour: Option<usize>| colour.and_then(|colour| COLOURS.get(colour).copied());
        let (front, back) = (of(self.foreground), of(self.background));
        if self.is_reversed {
            (back.unwrap_or(BACKGROUND), Some(front.unwrap_or(FOREGROUND)))
        } else {
            (front.unwrap_or(FOREGROUND), back)
        }
    }
}

/// The runs of a line that look alike, with what the next begins with.
fn runs(line: &str, look: &mut Look) -> Vec<(Look, String)> {
    let mut runs: Vec<(Look, String)> = Vec::new();
    for (at, part) in line.split("\u{1b}[").enumerate() {
        let mut text = part;
        if at > 0 {
            let end = part.find(|letter: char| letter.is_ascii_alphabetic()).unwrap_or(0);
            if part.as_bytes().get(end) == Some(&b'm') {
                look.change(&part[..end]);
            }
            text = part.get(end + 1..).unwrap_or_default();
        }
        // Shifts between the letters of lines, which a picture has no use for.
        let text: String = text.chars().filter(|letter| !letter.is_control()).collect();
        if !text.is_empty() {
            runs.push((*look, text));
        }
    }
    runs
}

/// A picture of a screen.
fn draw(screen: &str) -> String {
    let lines: Vec<&str> = screen.trim_end_matches('\n').lines().collect();
    let mut look = Look::default();
    let (mut body, mut columns) = (String::new(), 0);
    for (row, line) in lines.iter().enumerate() {
        let top = MARGIN + row * HEIGHT;
        let (mut column, mut text) = (0, String::new());
        for (look, run) in runs(line, &mut look) {
            let length = run.chars().count();
            let (front, back) = look.colours();
            let left = MARGIN + column * WIDTH;
            // Writing to a String cannot fail.
            if let Some(back) = back {
                let width = length * WIDTH;
                let _ = writeln!(
                    body,
                    "<rect x=\"{left}\" y=\"{top}\" width=\"{width}\" height=\"{HEIGHT}\" fill=\"{back}\"/>"
                );
            }
            let bold = if look.is_bold { " font-weight=\"bold\"" } else { "" };
            let dim = if look.is_dim { " fill-opacity=\"0.6\"" } else { "" };
            let _ = write!(
                text,
                "<tspan x=\"{left}\" fill=\"{front}\"{bold}{dim} textLength=\"{}\">{}</tspan>",
                length * WIDTH,
                escaped(&run)
            );
            column += length;
        }
        columns = columns.max(column);
        if !text.is_empty() {
            let _ = writeln!(
                body,
                "<text y=\"{}\" xml:space=\"preserve\">{text}</text>",
                top + HEIGHT - 4
            );
        }
    }
    let (width, height) = (columns * WIDTH + 2 * MARGIN, lines.len() * HEIGHT + 2 * MARGIN);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         font-family=\"ui-monospace, monospace\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" rx=\"6\" fill=\"{BACKGROUND}\"/>\n{body}</svg>\n"
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_become_spans_and_bars_boxes() {
        let picture = draw("\u{1b}[1m\u{1b}[38;5;6ma<b\u{1b}[0m c\n\u{1b}[7mbar\u{1b}[27m\n");
        assert!(
            picture.contains("<tspan x=\"12\" fill=\"#689d6a\" font-weight=\"bold\" textLength=\"24\">a&lt;b</tspan>"),
            "{picture}"
        );
        assert!(
            picture.contains("<tspan x=\"36\" fill=\"#d5c4a1\" textLength=\"16\"> c</tspan>"),
            "{picture}"
        );
        assert!(
            picture.contains("<rect x=\"12\" y=\"29\" width=\"24\" height=\"17\" fill=\"#d5c4a1\"/>"),
            "{picture}"
        );
        assert!(picture.contains("viewBox=\"0 0 64 58\""), "{picture}");
    }

    #[test]
    fn numbers_may_differ_and_words_may_not() {
        let shape_of = |screen: &str| shape(&draw(screen));
        assert_eq!(
            shape_of("alice 20.0 - 3ms\nbob 1"),
            shape_of("bob 7 9.1\nalice - 400µs")
        );
        assert_ne!(shape_of("alice 20.0"), shape_of("alice FAILED 20.0"));
    }
}
