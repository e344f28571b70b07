//! Tables: for a terminal, and as Markdown for the docs.

use std::fmt::Write as _;

use super::{Column, Measured, Report, figure};
use crate::{
    goals::{Outcome, Verdict},
    statistics::Estimate,
};

/// The whole run, for a terminal.
#[must_use]
pub fn terminal(report: &Report) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    for measured in &report.measures {
        let _ = writeln!(text, "\n{} ({})", measured.title, measured.id);
        text += &aligned(&rows(measured));
    }
    if let Some(node) = &report.node {
        text += "\nThe node's own side\n";
        text += &aligned(&node_rows(node));
    }
    text.push('\n');
    for line in remarks(report) {
        let _ = writeln!(text, "{line}");
    }
    if !report.goals.is_empty() {
        text += "\nGoals\n";
        text += &aligned(&goal_rows(&report.goals));
        let _ = writeln!(text, "{}", tally(&report.goals));
    }
    text
}

/// The measures as Markdown, for docs/performance.md.
#[must_use]
pub fn markdown(report: &Report) -> String {
    let mut text = String::new();
    for measured in &report.measures {
        let _ = writeln!(text, "### {}\n", measured.title);
        text += &piped(&rows(measured));
        text.push('\n');
    }
    if let Some(node) = &report.node {
        text += "### The node's own side\n\n";
        text += &piped(&node_rows(node));
    }
    text
}

fn node_rows(node: &serde_json::Value) -> Vec<Vec<String>> {
    let lines = crate::measures::node::lines(node).into_iter();
    let head = vec!["what".to_owned(), "takes".to_owned()];
    [head]
        .into_iter()
        .chain(lines.map(|(what, takes)| vec![what, takes]))
        .collect()
}

/// The goals as Markdown.
#[must_use]
pub fn goals(report: &Report) -> String {
    piped(&goal_rows(&report.goals))
}

/// What has to be said beside the figures, a line each.
#[must_use]
pub fn remarks(report: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(noise) = report.noise {
        lines.push(format!(
            "Understudy against itself: {}, where 1 is expected",
            with_interval(Some(noise))
        ));
    }
    if report.is_too_noisy() {
        lines.push(
            "This machine was TOO NOISY for a verdict: the same build differs from itself by more than 5 %".to_owned(),
        );
    }
    if let Some(upstream) = report.upstream_per_cpu_second {
        lines.push(format!(
            "The upstream answers {} requests in a second of its own processor time",
            with_interval(Some(upstream))
        ));
    }
    if let Some(rate) = report.half_load {
        lines.push(format!("Half load was {} requests a second, for all", figure(rate)));
    }
    if !report.machine.instructions {
        lines.push("Instructions: not supported on this machine, whose kernel has no such counter".to_owned());
    }
    for (peer, why) in &report.missing {
        lines.push(format!("MISSING: {peer}: {why}"));
    }
    lines
}

fn rows(measured: &Measured) -> Vec<Vec<String>> {
    // A quantity that nobody gave, as instructions are where the machine counts none, is no column.
    let given: Vec<&Column> = measured
        .quantities
        .iter()
        .filter(|column| column.rows.iter().any(|row| row.value.is_some()))
        .collect();
    let mut head = vec![String::new()];
    for column in &given {
        head.push(column.title.to_owned());
        if column.rows.iter().any(|row| row.added.is_some()) {
            head.push("over direct".to_owned());
        }
        head.push("Understudy, times this".to_owned());
    }
    let void = measured
        .quantities
        .iter()
        .flat_map(|column| &column.rows)
        .any(|row| row.void > 0);
    if void {
        head.push("void slices".to_owned());
    }
    let mut rows = vec![head];
    let peers = measured.quantities.first().map_or(&[][..], |column| &column.rows);
    for (place, peer) in peers.iter().enumerate() {
        let mut cells = vec![peer.peer.clone()];
        for column in &given {
            let row = &column.rows[place];
            cells.push(with_interval(row.value));
            if column.rows.iter().any(|row| row.added.is_some()) {
                cells.push(with_interval(row.added));
            }
            cells.push(with_interval(row.understudy));
        }
        if void {
            let why = peer.why_void.as_deref().map(first_line).unwrap_or_default();
            cells.push(match peer.void {
                0 => String::new(),
                void => format!("{void}: {why}"),
            });
        }
        rows.push(cells);
    }
    rows
}

fn first_line(text: &str) -> String {
    text.lines()
        .next()
        .unwrap_or_default()
        .replace('|', "/")
        .chars()
        .take(100)
        .collect()
}

fn goal_rows(goals: &[Outcome]) -> Vec<Vec<String>> {
    let mut rows = vec![["goal", "wanted", "measured", ""].map(str::to_owned).to_vec()];
    for outcome in goals {
        rows.push(vec![
            outcome.goal.to_owned(),
            figure(outcome.wanted),
            with_interval(outcome.measured),
            outcome.verdict.to_string(),
        ]);
    }
    rows
}

fn with_interval(estimate: Option<Estimate>) -> String {
    let Some(estimate) = estimate else {
        return String::new();
    };
    let middle = figure(estimate.median);
    if estimate.samples < 3 {
        return middle;
    }
    format!("{middle} ({}-{})", figure(estimate.low), figure(estimate.high))
}

fn tally(goals: &[Outcome]) -> String {
    let count = |verdict| goals.iter().filter(|outcome| outcome.verdict == verdict).count();
    format!(
        "{} goals met, {} not met, {} without a verdict, {} not measured",
        count(Verdict::Met),
        count(Verdict::NotMet),
        count(Verdict::TooNoisy),
        count(Verdict::NotMeasured),
    )
}

fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| Some(row.get(column)?.chars().count()))
            .max()
            .unwrap_or_default()
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        format!("  {}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

fn piped(rows: &[Vec<String>]) -> String {
    let line = |row: &Vec<String>| format!("| {} |\n", row.join(" | "));
    let Some((head, rows)) = rows.split_first() else {
        return String::new();
    };
    let rule = vec!["---".to_owned(); head.len()];
    let rows: String = rows.iter().map(line).collect();
    line(head) + &line(&rule) + &rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::report;

    #[test]
    fn a_terminal_sees_figures_ratios_verdicts_and_what_is_missing() {
        let text = terminal(&report());
        for expected in [
            "Small GETs, HTTP/1.1, 128 connections (h1-128)",
            "understudy  40,150 (",
            "1.60 (",
            "1: wrk saw a 502",
            "MISSING: envoy: no wheel of it for this machine",
            "Instructions: not supported",
            "1 goals met, 0 not met, 0 without a verdict, 25 not measured",
        ] {
            assert!(text.contains(expected), "{expected}\n{text}");
        }
        assert!(!text.contains("instructions per request  "), "{text}");
    }

    #[test]
    fn a_noisy_machine_is_called_so() {
        let mut report = report();
        report.noise = Estimate::of(&[0.8, 1.0, 1.2]);
        assert!(terminal(&report).contains("TOO NOISY"));
    }

    #[test]
    fn markdown_has_as_many_cells_in_every_line() {
        let text = markdown(&report());
        let cells: Vec<usize> = text
            .lines()
            .filter(|line| line.starts_with('|'))
            .map(|line| line.matches('|').count())
            .collect();
        assert!(
            cells.len() >= 4 && cells.iter().all(|count| *count == cells[0]),
            "{text}"
        );
    }
}
