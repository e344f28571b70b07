//! What is shown at which time. It has no clock of its own, and no terminal.

use std::{
    ops::ControlFlow,
    str::FromStr,
    time::{Duration, Instant},
};

use super::keys::{HELP, Key};
use crate::tools::{
    recordings::{
        screen::{Kept, Screen},
        tape::{Event, State, Summary, What},
    },
    table::shown,
};

/// So much is told between two screens that are kept: to go back is to go on from the one before.
const KEEP_EVERY: usize = 256 * 1024;

/// How many times as fast as it was.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Speed(f64);

impl Speed {
    const SLOWEST: f64 = 0.1;
    const FASTEST: f64 = 64.0;
    const AS_IT_WAS: Self = Self(1.0);

    fn times(self, factor: f64) -> Self {
        Self((self.0 * factor).clamp(Self::SLOWEST, Self::FASTEST))
    }
}

impl FromStr for Speed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let speed = text.parse().ok();
        speed
            .filter(|speed| (Self::SLOWEST..=Self::FASTEST).contains(speed))
            .map(Self)
            .ok_or_else(|| format!("not a number from {} to {}", Self::SLOWEST, Self::FASTEST))
    }
}

/// A recording that is played.
pub(super) struct Player {
    summary: Summary,
    /// With their times as they are played.
    events: Vec<Event>,
    length: Duration,
    screen: Screen,
    /// The event that comes next.
    next: usize,
    kept: Vec<(usize, Kept)>,
    /// What was told since the last screen that was kept.
    told: usize,
    at: Duration,
    /// Since when it plays, and from where; none while it is stopped.
    playing: Option<(Instant, Duration)>,
    speed: Speed,
    shows_status: bool,
    shows_help: bool,
}

impl Player {
    pub(super) fn new(summary: Summary, mut events: Vec<Event>, idle_limit: Option<Duration>, speed: Speed) -> Self {
        // The time between the last event and the end is a pause as well.
        let length = shorten(&mut events, summary.length, idle_limit);
        let screen = Screen::new(&summary.head);
        let first = (0, screen.kept());
        Self {
            screen,
            summary,
            events,
            length,
            next: 0,
            kept: vec![first],
            told: 0,
            at: Duration::ZERO,
            playing: None,
            speed,
            shows_status: true,
            shows_help: false,
        }
    }

    /// Plays from where it is.
    pub(super) fn go_on(&mut self, now: Instant) {
        self.playing = Some((now, self.at));
    }

    /// Shows what is to be shown by now.
    pub(super) fn tick(&mut self, now: Instant) {
        let Some((since, from)) = self.playing else {
            return;
        };
        let passed = now.saturating_duration_since(since).as_secs_f64() * self.speed.0;
        let passed = Duration::try_from_secs_f64(passed).unwrap_or(self.length);
        self.go_to(from.saturating_add(passed));
        if self.at == self.length {
            self.playing = None;
        }
    }

    /// In how long something changes that is shown. None: nothing does.
    pub(super) fn next_in(&self, now: Instant) -> Option<Duration> {
        let (since, from) = self.playing?;
        let at = self.events.get(self.next)?.at.saturating_sub(from);
        let due = Duration::try_from_secs_f64(at.as_secs_f64() / self.speed.0).ok()?;
        Some(due.saturating_sub(now.saturating_duration_since(since)))
    }

    /// Does what a key asks for.
    pub(super) fn heed(&mut self, key: Key, now: Instant) -> ControlFlow<()> {
        self.tick(now);
        match key {
            Key::Quit => return ControlFlow::Break(()),
            Key::Pause if self.playing.is_some() => self.playing = None,
            Key::Pause => {
                if self.at == self.length {
                    self.go_to(Duration::ZERO);
                }
                self.go_on(now);
            }
            Key::Back(by) => self.seek(self.at.saturating_sub(by), now),
            Key::On(by) => self.seek(self.at.saturating_add(by), now),
            Key::Tenth(tenth) => self.seek(self.length * tenth.into() / 10, now),
            Key::End => self.seek(self.length, now),
            Key::StepOn => self.step(self.next + 1),
            Key::StepBack => self.step(self.next.saturating_sub(1)),
            Key::Faster => self.set_speed(self.speed.times(2.0), now),
            Key::Slower => self.set_speed(self.speed.times(0.5), now),
            Key::AsItWas => self.set_speed(Speed::AS_IT_WAS, now),
            Key::Status => self.shows_status = !self.shows_status,
            Key::Help => self.shows_help = !self.shows_help,
        }
        ControlFlow::Continue(())
    }

    /// What it shows.
    pub(super) fn screen(&self) -> &Screen {
        &self.screen
    }

    /// The line below it, where there is to be one. `cut`: not all of the screen finds room.
    pub(super) fn status(&self, cut: bool) -> Option<String> {
        if !self.shows_status {
            return None;
        }
        if self.shows_help {
            return Some(format!(" {HELP}"));
        }
        let sign = match self.playing {
            Some(_) => "▶",
            None if self.at == self.length => "■",
            None => "‖",
        };
        let (at, length) = (clock(self.at), clock(self.length));
        let warning = match self.summary.state {
            State::Whole(_) => String::new(),
            State::Cut(_) => "  WITHOUT ITS END".to_owned(),
            State::Changed { proven, .. } => format!("  CHANGED AFTER LINE {proven}"),
        };
        let room = if cut {
            let (columns, rows) = self.screen.size();
            format!("  {columns}x{rows}, cut")
        } else {
            String::new()
        };
        let title: String = self.summary.head.title.chars().map(shown).collect();
        Some(format!(
            " {sign} {at} / {length}  {}x{warning}{room}  ? keys  {title}",
            self.speed.0
        ))
    }

    fn seek(&mut self, to: Duration, now: Instant) {
        self.go_to(to);
        if self.playing.is_some() {
            self.go_on(now);
        }
    }

    fn set_speed(&mut self, speed: Speed, now: Instant) {
        self.speed = speed;
        if self.playing.is_some() {
            self.go_on(now);
        }
    }

    /// To where so many events have been, and stops there.
    fn step(&mut self, next: usize) {
        self.playing = None;
        self.show_up_to(next.min(self.events.len()));
        self.at = match self.next.checked_sub(1) {
            Some(last) => self.events[last].at,
            None => Duration::ZERO,
        };
    }

    fn go_to(&mut self, to: Duration) {
        self.at = to.min(self.length);
        let next = self.events.partition_point(|event| event.at <= self.at);
        self.show_up_to(next);
    }

    fn show_up_to(&mut self, next: usize) {
        if next < self.next {
            let before = self.kept.partition_point(|(at, _)| *at <= next);
            self.kept.truncate(before.max(1));
            if let Some((at, kept)) = self.kept.last() {
                (self.next, self.screen, self.told) = (*at, kept.screen(), 0);
            }
        }
        for event in &self.events[self.next..next] {
            self.screen.show(&event.what, ());
            self.next += 1;
            if let What::Output(text) = &event.what {
                self.told += text.len();
            }
            if self.told >= KEEP_EVERY {
                self.kept.push((self.next, self.screen.kept()));
                self.told = 0;
            }
        }
    }
}

/// Has no pause be longer than the limit. Gives the length of the whole, which was `length`.
fn shorten(events: &mut [Event], length: Duration, limit: Option<Duration>) -> Duration {
    let Some(limit) = limit else {
        return length;
    };
    let (mut before, mut taken) = (Duration::ZERO, Duration::ZERO);
    let mut shorter = |at: Duration| {
        taken += at.saturating_sub(before).saturating_sub(limit);
        before = at;
        at.saturating_sub(taken)
    };
    for event in events {
        event.at = shorter(event.at);
    }
    shorter(length)
}

/// Minutes, seconds and tenths; hours, where there are any.
fn clock(at: Duration) -> String {
    let (seconds, tenths) = (at.as_secs(), at.subsec_millis() / 100);
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours == 0 {
        format!("{minutes}:{seconds:02}.{tenths}")
    } else {
        format!("{hours}:{minutes:02}:{seconds:02}.{tenths}")
    }
}

#[cfg(test)]
mod tests;
