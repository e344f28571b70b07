//! How it is drawn.

use jiff::Timestamp;
use ratatui::{
    Frame,
    layout::{Alignment, Constraint, Layout, Rect},
    style::{Color, Modifier, Style, Stylize as _},
    text::{Line as Text, Span},
    widgets::{Block, Cell, Clear, Paragraph, Row as TableRow, Table, TableState, Wrap},
};

use super::{
    column::Column,
    model::{Key, Row},
    state::{State, View},
};
use crate::{
    operator::view::PodStateView,
    tools::{
        table::printable,
        tail::{Line, Told},
    },
};

/// As many lines of what is wrong stand above the table.
const TROUBLES: usize = 3;

/// Draws all of it.
pub(super) fn draw(frame: &mut Frame<'_>, state: &mut State, now: Timestamp) {
    let troubles = troubles(state);
    let width = usize::from(frame.area().width).max(1);
    // Wrapped at words, a line may take one more than its letters do.
    let lines = troubles.iter().map(|line| match line.width() {
        length if length <= width => 1,
        length => length.div_ceil(width) + 1,
    });
    let height = u16::try_from(lines.sum::<usize>()).unwrap_or_default();
    let [head, trouble, body, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(height),
        Constraint::Min(1),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    // The table's headers take one.
    state.page = usize::from(body.height.saturating_sub(1)).max(1);
    frame.render_widget(heading(state), head);
    frame.render_widget(Paragraph::new(troubles).wrap(Wrap::default()), trouble);
    match state.view().clone() {
        View::Sessions => sessions(frame, body, state, now),
        View::Pods(_) => pods(frame, body, state),
        View::Events(_) => events(frame, body, state),
    }
    frame.render_widget(keys(state), foot);
    if state.shows_help {
        help(frame);
    }
}

fn troubles(state: &State) -> Vec<Text<'static>> {
    let mut said = state.model.troubles();
    if matches!(state.view(), View::Events(_)) {
        said.splice(0..0, state.news.clone());
    }
    let more = said.len().saturating_sub(TROUBLES);
    said.truncate(TROUBLES);
    if more > 0
        && let Some(last) = said.last_mut()
    {
        *last = format!("{last} (and {more} more)");
    }
    let line = |said: String| Text::from(printable(&said)).red();
    said.into_iter().map(line).collect()
}

fn heading(state: &State) -> Paragraph<'static> {
    let (answering, agents) = state.model.agents();
    let rows = state.model.rows();
    let sum = |of: fn(&Row) -> Option<f64>| rows.iter().filter_map(of).fold(0.0, |sum, rate| sum + rate);
    let place = match state.view() {
        View::Sessions => format!("{} sessions", rows.len()),
        View::Pods(key) => format!("pods of {}", name(key)),
        View::Events(key) => format!("requests of {}", name(key)),
    };
    let figures = format!(
        "  {answering}/{agents} agents  {:.1} req/s  {:.1} err/s",
        sum(|row| row.rate),
        sum(|row| row.failures)
    );
    Paragraph::new(Text::from(vec![
        Span::from("understudy ").bold().cyan(),
        Span::from(place).bold(),
        Span::from(figures),
    ]))
}

fn name(key: &Key) -> String {
    printable(&format!("{}/{}", key.namespace, key.name))
}

fn keys(state: &State) -> Paragraph<'static> {
    if state.is_typing {
        return Paragraph::new(Text::from(vec![
            Span::from("/").bold(),
            Span::from(printable_or_nothing(&state.filter)),
            Span::from("▏"),
        ]));
    }
    let hints = match state.view() {
        View::Sessions => "enter pods  l requests  / filter  R E L N X … sort  ? help  q quit",
        View::Pods(_) => "enter requests  esc back  ? help  q quit",
        View::Events(_) => "esc back  ? help  q quit",
    };
    let mut spans = vec![Span::from(hints).dim()];
    if !state.filter.is_empty() && *state.view() == View::Sessions {
        spans.insert(0, Span::from(format!("/{}  ", printable(&state.filter))).yellow());
    }
    Paragraph::new(Text::from(spans))
}

fn printable_or_nothing(text: &str) -> String {
    if text.is_empty() {
        String::new()
    } else {
        printable(text)
    }
}

fn sessions(frame: &mut Frame<'_>, area: Rect, state: &State, now: Timestamp) {
    let rows = state.rows();
    if rows.is_empty() {
        let why = if !state.filter.is_empty() {
            "No session is called so. esc shows all."
        } else if state.model.is_silent() {
            "Waiting for agents."
        } else {
            "No sessions: no pod carries one."
        };
        frame.render_widget(Paragraph::new(why).wrap(Wrap::default()), area);
        return;
    }
    let columns: Vec<Column> = Column::ALL
        .into_iter()
        .filter(|column| column.fits(area.width))
        .collect();
    let headers = columns.iter().map(|column| {
        let mark = match (*column == state.sort, state.is_descending) {
            (false, _) => "",
            (true, true) => "↓",
            (true, false) => "↑",
        };
        let style = if mark.is_empty() {
            Style::new()
        } else {
            Style::new().yellow()
        };
        cell(*column, format!("{}{mark}", column.header())).style(style)
    });
    let body = rows.iter().map(|row| {
        let cells = columns.iter().map(|column| cell(*column, column.cell(row, now)));
        TableRow::new(cells.collect::<Vec<_>>()).style(health(row))
    });
    let widths = columns.iter().map(|column| match column.width() {
        Some(width) => Constraint::Length(width),
        None => Constraint::Fill(1),
    });
    let table = table(body.collect(), widths.collect(), headers.collect());
    let mut at = TableState::new().with_selected(state.bar(&rows));
    frame.render_stateful_widget(table, area, &mut at);
}

fn cell(column: Column, text: String) -> Cell<'static> {
    let alignment = if column.is_number() {
        Alignment::Right
    } else {
        Alignment::Left
    };
    Cell::from(Text::from(text).alignment(alignment))
}

/// How a session fares, at a glance.
fn health(row: &Row) -> Style {
    if row.phase != "Active" {
        return Style::new().fg(Color::DarkGray);
    }
    if row.enrolled < row.pods {
        return Style::new().yellow();
    }
    if row.failures.is_some_and(|failures| failures > 0.0) {
        return Style::new().light_red();
    }
    Style::new()
}

fn table(rows: Vec<TableRow<'static>>, widths: Vec<Constraint>, headers: Vec<Cell<'static>>) -> Table<'static> {
    Table::new(rows, widths)
        .header(TableRow::new(headers).style(Style::new().bold()))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED))
}

fn pods(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let pods = state.pods();
    if pods.is_empty() {
        frame.render_widget(Paragraph::new("No pod carries it any more."), area);
        return;
    }
    let rows = pods.iter().map(|row| {
        let (text, style) = match row.pod.state {
            PodStateView::Enrolled => ("intercepted", Style::new()),
            PodStateView::Waiting => ("waiting", Style::new().yellow()),
            PodStateView::Absent => ("no cgroup", Style::new().fg(Color::DarkGray)),
            PodStateView::Failed => ("FAILED", Style::new().red()),
        };
        let reason = row.pod.reason.as_deref().map(printable).unwrap_or_default();
        let cells = [printable(&row.pod.name), printable(&row.node), text.to_owned(), reason];
        TableRow::new(cells).style(style)
    });
    let widths = [
        Constraint::Fill(2),
        Constraint::Fill(1),
        Constraint::Length(12),
        Constraint::Fill(2),
    ];
    let headers = ["POD", "NODE", "STATE", "WHY"].map(Cell::from);
    let table = table(rows.collect(), widths.into(), headers.into());
    let mut at = TableState::new().with_selected(state.pod_bar(&pods));
    frame.render_stateful_widget(table, area, &mut at);
}

/// The latest at the bottom.
fn events(frame: &mut Frame<'_>, area: Rect, state: &State) {
    if state.lines.is_empty() {
        frame.render_widget(Paragraph::new("Nothing has come since you look on.").dim(), area);
        return;
    }
    let room = usize::from(area.height);
    let first = state.lines.len().saturating_sub(room);
    let lines: Vec<Text<'_>> = state.lines.iter().skip(first).map(event).collect();
    frame.render_widget(Paragraph::new(lines), area);
}

fn event(line: &Line) -> Text<'_> {
    let style = match line.told {
        Told::Good => Style::new().green(),
        Told::Open => Style::new().cyan(),
        Told::Poor => Style::new().yellow(),
        Told::Bad => Style::new().red(),
    };
    Text::from(vec![
        Span::from(line.time.as_str()).dim(),
        Span::from("  "),
        Span::styled(line.outcome.as_str(), style),
        Span::from("  "),
        Span::from(line.what.as_str()),
        Span::from("  "),
        Span::from(line.whose.as_str()).dim(),
    ])
}

fn help(frame: &mut Frame<'_>) {
    let mut lines = vec![
        Text::from("enter      into a session: its pods, then its requests"),
        Text::from("l          its requests, as they come"),
        Text::from("esc        back; at the top, out of the filter"),
        Text::from("/          filter by name or by whom it acts as"),
        Text::from("j k ↓ ↑    down and up; ^F ^B pages, g G ends"),
        Text::from("q  ^C      quit"),
        Text::default(),
        Text::from("sort by, and once more the other way round:").bold(),
    ];
    for pair in Column::ALL.chunks(2) {
        let entries = pair
            .iter()
            .map(|column| format!("{}  {:<34}", column.letter(), column.meaning()));
        lines.push(Text::from(entries.collect::<String>().trim_end().to_owned()));
    }
    let area = frame.area();
    let (width, height) = (76, u16::try_from(lines.len() + 2).unwrap_or(u16::MAX));
    let [middle] = Layout::vertical([Constraint::Length(height)])
        .flex(ratatui::layout::Flex::Center)
        .areas(area);
    let [middle] = Layout::horizontal([Constraint::Length(width)])
        .flex(ratatui::layout::Flex::Center)
        .areas(middle);
    frame.render_widget(Clear, middle);
    let block = Block::bordered().title(" keys ");
    frame.render_widget(Paragraph::new(lines).block(block), middle);
}

#[cfg(test)]
mod tests;
