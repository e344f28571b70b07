//! A page that plays a recording.
//!
//! What was recorded is rows of letters by the time it gets here, and stands in the page as JSON, in an element that browsers
//! don't run, with every `<`, `>` and `&` of it escaped. The player puts letters into text nodes and makes colours of numbers.
//! Should any of that be wrong, the page's own policy lets no other script run than the player, by its hash, and nothing be
//! fetched from anywhere.

use std::{
    io::{self, Write},
    time::Duration,
};

use avt::{Color, Rgb};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::Export;
use crate::tools::{
    recordings::{
        screen::{Screen, Span, Style},
        tape::{Event, Head, State, Summary},
    },
    table::shown,
};

const PLAYER: &str = include_str!("player.js");
const STYLE: &str = include_str!("player.css");

/// What comes within as much time is one frame.
const FRAME: Duration = Duration::from_millis(33);

/// A page that is made.
pub(super) struct Page<W> {
    out: W,
    screen: Option<Screen>,
    /// What the last frame shows.
    size: (usize, usize),
    rows: Vec<Vec<Span>>,
    cursor: Option<(usize, usize)>,
    /// When the frame that isn't written yet began.
    waits: Option<Duration>,
    is_first: bool,
}

impl<W: Write> Page<W> {
    pub(super) fn new(out: W) -> Self {
        Self {
            out,
            screen: None,
            size: (0, 0),
            rows: Vec::new(),
            cursor: None,
            waits: None,
            is_first: true,
        }
    }

    /// Writes what the screen shows now, as far as it isn't what the last frame shows.
    fn frame(&mut self, at: Duration) -> io::Result<()> {
        let Some(screen) = &self.screen else {
            return Ok(());
        };
        let rows: Vec<_> = screen.rows(usize::MAX).collect();
        let (size, cursor) = (screen.size(), screen.cursor());
        let resized = size != self.size;
        let is_new = |(number, row): &(usize, &Vec<Span>)| resized || self.rows.get(*number) != Some(row);
        let changed: Vec<Value> = rows
            .iter()
            .enumerate()
            .filter(is_new)
            .map(|(number, row)| json!([number, row.iter().map(span).collect::<Vec<_>>()]))
            .collect();
        if changed.is_empty() && !resized && cursor == self.cursor {
            return Ok(());
        }
        let mut frame = json!({ "t": u64::try_from(at.as_millis()).unwrap_or(u64::MAX), "r": changed, "c": cursor });
        if resized {
            frame["s"] = json!(size);
        }
        if !self.is_first {
            self.out.write_all(b",\n")?;
        }
        self.is_first = false;
        inert(&mut self.out, &frame)?;
        (self.size, self.rows, self.cursor) = (size, rows, cursor);
        Ok(())
    }
}

impl<W: Write> Export for Page<W> {
    fn begin(&mut self, head: &Head) -> io::Result<()> {
        write!(
            self.out,
            "<!DOCTYPE html>\n\
            <html lang=\"en\">\n\
            <head>\n\
            <meta charset=\"utf-8\">\n\
            <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; script-src '{}'; style-src '{}'; base-uri 'none'; form-action 'none'\">\n\
            <meta name=\"referrer\" content=\"no-referrer\">\n\
            <meta name=\"viewport\" content=\"width=device-width\">\n\
            <title>Recording</title>\n\
            <style>{STYLE}</style>\n\
            </head>\n\
            <body>\n\
            <noscript>This recording is played by a script of the page's own.</noscript>\n\
            <script type=\"application/json\" id=\"recording\">{{\"about\":",
            hash(PLAYER),
            hash(STYLE),
        )?;
        inert(&mut self.out, &about(head))?;
        self.out.write_all(b",\"frames\":[\n")?;
        self.screen = Some(Screen::new(head));
        self.frame(Duration::ZERO)
    }

    fn event(&mut self, event: &Event) -> io::Result<()> {
        if let Some(began) = self.waits
            && event.at >= began + FRAME
        {
            self.frame(began)?;
            self.waits = None;
        }
        self.waits.get_or_insert(event.at);
        if let Some(screen) = &mut self.screen {
            screen.show(&event.what, ());
        }
        Ok(())
    }

    fn end(mut self, summary: &Summary) -> io::Result<()> {
        if self.screen.is_none() {
            // Nothing of it is proven: there is a page that says so, and shows nothing.
            self.begin(&Head::default())?;
        }
        if let Some(began) = self.waits.take() {
            self.frame(began)?;
        }
        let length = u64::try_from(summary.length.as_millis()).unwrap_or(u64::MAX);
        let ending = match &summary.state {
            State::Whole(why) => format!("whole: {}", clean(why)),
            state => state.warning().unwrap_or_default(),
        };
        self.out.write_all(b"\n],\"end\":")?;
        inert(
            &mut self.out,
            &json!({ "length": length, "state": summary.state.name(), "says": ending }),
        )?;
        write!(self.out, "}}</script>\n<script>{PLAYER}</script>\n</body>\n</html>\n")
    }
}

/// What stands above the player.
fn about(head: &Head) -> Value {
    let began = jiff::Timestamp::from_second(head.timestamp).map_or_else(|_| String::new(), |began| began.to_string());
    let facts = [
        ("session", head.understudy.session.clone()),
        ("who", head.who()),
        ("node", head.understudy.node.clone()),
        ("container", head.understudy.asked.container.clone()),
        ("began", began),
        ("Audit-ID", head.understudy.audit_id.clone()),
    ];
    let facts: Vec<_> = facts
        .into_iter()
        .filter(|(_, text)| !text.is_empty())
        .map(|(name, text)| (name, clean(&text)))
        .collect();
    json!({ "title": clean(&head.title), "facts": facts })
}

fn clean(text: &str) -> String {
    text.chars().map(shown).collect()
}

/// Text alone where it looks like any; otherwise with its colours, -1 for none, and its attributes as bits.
fn span(span: &Span) -> Value {
    if span.style == Style::default() && !span.is_wide {
        return json!(span.text);
    }
    let Style {
        foreground,
        background,
        bold,
        faint,
        italic,
        underline,
        strikethrough,
        blink: _,
        inverse,
    } = span.style;
    let set = [bold, faint, italic, underline, strikethrough, inverse, span.is_wide];
    let bits = set
        .iter()
        .rev()
        .fold(0_u8, |bits, is_set| bits << 1 | u8::from(*is_set));
    json!([span.text, number(foreground), number(background), bits])
}

/// Of 256 by its number; any other is beyond those.
fn number(color: Option<Color>) -> i32 {
    match color {
        None => -1,
        Some(Color::Indexed(number)) => number.into(),
        Some(Color::RGB(Rgb { r, g, b })) => 256 + (i32::from(r) << 16 | i32::from(g) << 8 | i32::from(b)),
    }
}

/// As JSON that no browser takes for anything else, wherever in a page it stands.
fn inert(out: &mut impl Write, value: &Value) -> io::Result<()> {
    let text = value.to_string();
    let mut rest = text.as_str();
    while let Some(at) = rest.find(['<', '>', '&', '\u{2028}', '\u{2029}']) {
        let (before, after) = rest.split_at(at);
        let mut letters = after.chars();
        out.write_all(before.as_bytes())?;
        if let Some(letter) = letters.next() {
            write!(out, "\\u{:04x}", u32::from(letter))?;
        }
        rest = letters.as_str();
    }
    out.write_all(rest.as_bytes())
}

/// As a policy names what may run.
fn hash(text: &str) -> String {
    format!("sha256-{}", BASE64_STANDARD.encode(Sha256::digest(text)))
}
