//! What is being looked at, and what keys make of it. Plain functions over plain data.

use std::collections::VecDeque;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::{
    column::Column,
    model::{Key, Model, PodRow, Row},
};
use crate::tools::tail::Line;

/// As many events are kept of the session that is looked at.
const LINES: usize = 500;
/// A page, where the screen hasn't said how long one is.
const PAGE: usize = 10;

/// What is on the screen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum View {
    /// All sessions.
    Sessions,
    /// The pods of one.
    Pods(Key),
    /// The requests of one, as they come.
    Events(Key),
}

/// What a key asks of those who wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    Nothing,
    /// Look on at a session's events.
    Follow(Key),
    /// No more of that.
    Leave,
    Quit,
}

/// All that is drawn.
#[derive(Debug)]
pub(super) struct State {
    pub(super) model: Model,
    /// Where one is, and how one came there.
    views: Vec<View>,
    pub(super) sort: Column,
    pub(super) is_descending: bool,
    pub(super) filter: String,
    /// Letters go to the filter.
    pub(super) is_typing: bool,
    pub(super) shows_help: bool,
    /// The session under the bar: it stays there, wherever its row goes.
    selected: Option<Key>,
    /// The pod under the bar.
    pod: usize,
    pub(super) lines: VecDeque<Line>,
    /// What isn't as it should be with those.
    pub(super) news: Option<String>,
    /// Rows of a page, as the screen last had it.
    pub(super) page: usize,
}

impl State {
    pub(super) fn new(namespace: Option<String>) -> Self {
        Self {
            model: Model::new(namespace),
            views: vec![View::Sessions],
            sort: Column::Rate,
            is_descending: true,
            filter: String::new(),
            is_typing: false,
            shows_help: false,
            selected: None,
            pod: 0,
            lines: VecDeque::new(),
            news: None,
            page: PAGE,
        }
    }

    pub(super) fn view(&self) -> &View {
        self.views.last().unwrap_or(&View::Sessions)
    }

    /// The sessions that are shown, in their order.
    pub(super) fn rows(&self) -> Vec<Row> {
        let wanted = self.filter.to_lowercase();
        let mut rows = self.model.rows();
        rows.retain(|row| {
            let text = format!("{}/{} {}", row.key.namespace, row.key.name, row.acts_as);
            text.to_lowercase().contains(&wanted)
        });
        // Stable, and by name before: rows that are alike don't change places.
        rows.sort_by(|one, other| {
            let order = self.sort.compare(one, other);
            if self.is_descending { order.reverse() } else { order }
        });
        rows
    }

    /// The pods that are shown, where some are.
    pub(super) fn pods(&self) -> Vec<PodRow> {
        match self.view() {
            View::Pods(key) => self.model.pods(key),
            View::Sessions | View::Events(_) => Vec::new(),
        }
    }

    /// Where the bar is among the rows; the first where what was under it is gone.
    pub(super) fn bar(&self, rows: &[Row]) -> Option<usize> {
        let found = rows.iter().position(|row| Some(&row.key) == self.selected.as_ref());
        found.or((!rows.is_empty()).then_some(0))
    }

    /// Where the bar is among the pods.
    pub(super) fn pod_bar(&self, pods: &[PodRow]) -> Option<usize> {
        (!pods.is_empty()).then(|| self.pod.min(pods.len() - 1))
    }

    /// A request of the session that is looked at.
    pub(super) fn event(&mut self, line: Line) {
        if self.lines.len() == LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    /// How it stands with those.
    pub(super) fn news(&mut self, news: Option<String>) {
        self.news = news;
    }

    /// A key is pressed.
    pub(super) fn key(&mut self, key: KeyEvent) -> Action {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c') => Action::Quit,
                KeyCode::Char('f') => self.go_down(self.page),
                KeyCode::Char('b') => self.go_up(self.page),
                _ => Action::Nothing,
            };
        }
        if self.is_typing {
            self.type_in(key.code);
            return Action::Nothing;
        }
        if self.shows_help {
            self.shows_help = false;
            return Action::Nothing;
        }
        match key.code {
            KeyCode::Char('q') => Action::Quit,
            KeyCode::Char('?') => {
                self.shows_help = true;
                Action::Nothing
            }
            KeyCode::Esc => self.go_back(),
            KeyCode::Down | KeyCode::Char('j') => self.go_down(1),
            KeyCode::Up | KeyCode::Char('k') => self.go_up(1),
            KeyCode::PageDown => self.go_down(self.page),
            KeyCode::PageUp => self.go_up(self.page),
            KeyCode::Home | KeyCode::Char('g') => self.go_up(usize::MAX),
            KeyCode::End | KeyCode::Char('G') => self.go_down(usize::MAX),
            KeyCode::Char('l') => self.follow(),
            KeyCode::Enter => self.enter(),
            KeyCode::Char(letter) => self.other(letter),
            _ => Action::Nothing,
        }
    }

    /// Keys of the sessions' table.
    fn other(&mut self, letter: char) -> Action {
        if *self.view() != View::Sessions {
            return Action::Nothing;
        }
        if letter == '/' {
            self.is_typing = true;
        }
        if let Some(column) = Column::ALL.into_iter().find(|column| column.letter() == letter) {
            // Once more is the other way round.
            self.is_descending = if self.sort == column {
                !self.is_descending
            } else {
                column.is_largest_first()
            };
            self.sort = column;
        }
        Action::Nothing
    }

    fn type_in(&mut self, key: KeyCode) {
        match key {
            KeyCode::Enter => self.is_typing = false,
            KeyCode::Esc => {
                self.is_typing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => drop(self.filter.pop()),
            KeyCode::Char(letter) => self.filter.push(letter),
            _ => {}
        }
    }

    fn enter(&mut self) -> Action {
        match self.view() {
            View::Sessions => {
                if let Some(key) = self.chosen() {
                    self.pod = 0;
                    self.views.push(View::Pods(key));
                }
                Action::Nothing
            }
            View::Pods(_) => self.follow(),
            View::Events(_) => Action::Nothing,
        }
    }

    fn follow(&mut self) -> Action {
        let key = match self.view() {
            View::Sessions => self.chosen(),
            View::Pods(key) => Some(key.clone()),
            View::Events(_) => None,
        };
        let Some(key) = key else { return Action::Nothing };
        self.lines.clear();
        self.news = None;
        self.views.push(View::Events(key.clone()));
        Action::Follow(key)
    }

    /// Out of where one is; at the top, out of the filter.
    fn go_back(&mut self) -> Action {
        if self.views.len() == 1 {
            self.filter.clear();
            return Action::Nothing;
        }
        match self.views.pop() {
            Some(View::Events(_)) => Action::Leave,
            _ => Action::Nothing,
        }
    }

    fn chosen(&mut self) -> Option<Key> {
        let rows = self.rows();
        let key = rows.get(self.bar(&rows)?)?.key.clone();
        self.selected = Some(key.clone());
        Some(key)
    }

    fn go_down(&mut self, by: usize) -> Action {
        self.go(|at| at.saturating_add(by))
    }

    fn go_up(&mut self, by: usize) -> Action {
        self.go(|at| at.saturating_sub(by))
    }

    fn go(&mut self, to: impl Fn(usize) -> usize) -> Action {
        match self.view() {
            View::Sessions => {
                let rows = self.rows();
                if let Some(at) = self.bar(&rows) {
                    let at = to(at).min(rows.len() - 1);
                    self.selected = rows.get(at).map(|row| row.key.clone());
                }
            }
            View::Pods(_) => {
                let pods = self.pods();
                if let Some(at) = self.pod_bar(&pods) {
                    self.pod = to(at).min(pods.len() - 1);
                }
            }
            View::Events(_) => {}
        }
        Action::Nothing
    }
}

#[cfg(test)]
pub(super) mod tests;
