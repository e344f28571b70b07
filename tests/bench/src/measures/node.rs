//! The node's own side: what the kernel's programs take of a connect, how long enrolment takes, and the idle agent.
//! `measure-node` measures it on a node of its own; here its figures are read.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{
    clients::{last_line, number},
    stage::{OTHERS, PROXY},
    statistics::Estimate,
};

/// Runs `measure-node` with that agent, or the one beside it, on both processors.
///
/// # Errors
/// It fails; the error says what it printed.
pub fn measure(agent: Option<&Path>, quick: bool) -> Result<Value> {
    let program = std::env::current_exe()
        .context("where this program is")?
        .with_file_name("measure-node");
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", &format!("{OTHERS},{PROXY}")]).arg(program);
    if quick {
        command.args(["--quick", "--only", "connects,idle"]);
    }
    if let Some(agent) = agent {
        command.env("UNDERSTUDY_BIN", agent);
    }
    let output = command.output().context("starting measure-node")?;
    if !output.status.success() {
        bail!(
            "measure-node failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    last_line(&String::from_utf8_lossy(&output.stdout))
}

/// The figure of that name, which a goal asks for; none where it wasn't measured.
#[must_use]
pub fn figure(node: &Value, name: &str) -> Option<Estimate> {
    match name {
        "untagged-ns" => connect(node, "untagged"),
        "tagged-ns" => connect(node, "tagged"),
        "idle-rss-mib-0" => idle(node, 0, "rss_kib").map(|kib| exactly(kib / 1024.0)),
        "idle-rss-mib-250" => idle(node, 250, "rss_kib").map(|kib| exactly(kib / 1024.0)),
        "idle-wakeups-0" => idle(node, 0, "wakeups_per_second").map(exactly),
        _ => None,
    }
}

/// What the connect's own program takes, which is what stands in the way of it: of the dearest kind, with however many pods
/// tagged.
fn connect(node: &Value, who: &str) -> Option<Estimate> {
    let kinds = node.get("connects")?.as_array()?;
    kinds
        .iter()
        .filter(|kind| kind.get("who").and_then(Value::as_str) == Some(who))
        .filter_map(|kind| {
            Some(Estimate {
                median: number(kind, "connect_program_ns").ok()?,
                low: number(kind, "connect_program_least").ok()?,
                high: number(kind, "connect_program_most").ok()?,
                samples: 9,
            })
        })
        .max_by(|one, other| one.median.total_cmp(&other.median))
}

fn idle(node: &Value, pods: u64, field: &str) -> Option<f64> {
    let all = node.get("idle")?.as_array()?;
    let with = all
        .iter()
        .find(|idle| idle.get("pods").and_then(Value::as_u64) == Some(pods))?;
    number(with, field).ok()
}

fn exactly(value: f64) -> Estimate {
    Estimate {
        median: value,
        low: value,
        high: value,
        samples: 1,
    }
}

/// One line for each figure, as the terminal and the docs have it: what, and its value.
#[must_use]
pub fn lines(node: &Value) -> Vec<(String, String)> {
    let rows = |of: &str| node.get(of).and_then(Value::as_array).cloned().unwrap_or_default();
    let text = |row: &Value, field: &str| row.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let count = |row: &Value, field: &str| row.get(field).and_then(Value::as_u64).unwrap_or_default();
    let value = |row: &Value, field: &str| number(row, field).map_or("-".to_owned(), crate::report::figure);
    let mut lines = Vec::new();
    for row in rows("connects") {
        lines.push((
            format!(
                "connect, {} to {}, {} tagged pods",
                text(&row, "who"),
                text(&row, "to"),
                count(&row, "tagged_pods")
            ),
            format!(
                "{} ns of the connect's own program; {} ns of all programs at both ends, from connect to close",
                value(&row, "connect_program_ns"),
                value(&row, "ns_per_connect")
            ),
        ));
    }
    for row in rows("enrolment") {
        lines.push((
            format!("enrolment of {} pods", count(&row, "pods")),
            format!("{} ms", value(&row, "enrolled_ms")),
        ));
    }
    for row in rows("idle") {
        lines.push((
            format!("idle agent, {} tagged pods", count(&row, "pods")),
            format!(
                "{} KiB RSS ({} its own), {} ms CPU a second, {} wake-ups a second",
                value(&row, "rss_kib"),
                value(&row, "rss_anonymous_kib"),
                value(&row, "cpu_ms_per_second"),
                value(&row, "wakeups_per_second")
            ),
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node() -> Value {
        let connect = |who: &str, pods: u32, ns: f64| {
            json!({
                "who": who, "to": "the API server", "tagged_pods": pods, "ns_per_connect": ns * 5.0,
                "connect_program_ns": ns, "connect_program_least": ns - 5.0, "connect_program_most": ns + 5.0,
            })
        };
        json!({
            "connects": [connect("untagged", 1, 120.0), connect("untagged", 1000, 140.0), connect("tagged", 1, 900.0)],
            "idle": [
                {"pods": 0, "rss_kib": 14336, "wakeups_per_second": 6.5},
                {"pods": 250, "rss_kib": 30720, "wakeups_per_second": 8.0},
            ],
        })
    }

    #[test]
    fn goals_are_judged_by_the_dearest_connect() {
        let untagged = figure(&node(), "untagged-ns").unwrap();
        assert!((untagged.median - 140.0).abs() < f64::EPSILON && untagged.high > untagged.low);
        assert!((figure(&node(), "tagged-ns").unwrap().median - 900.0).abs() < f64::EPSILON);
    }

    #[test]
    fn memory_is_in_mib_and_what_is_missing_is_nothing() {
        assert!((figure(&node(), "idle-rss-mib-0").unwrap().median - 14.0).abs() < f64::EPSILON);
        assert!((figure(&node(), "idle-rss-mib-250").unwrap().median - 30.0).abs() < f64::EPSILON);
        assert!((figure(&node(), "idle-wakeups-0").unwrap().median - 6.5).abs() < f64::EPSILON);
        assert_eq!(figure(&json!({}), "idle-rss-mib-0"), None);
        assert_eq!(figure(&node(), "anything"), None);
    }

    #[test]
    fn every_figure_has_a_line() {
        let lines = lines(&node());
        assert_eq!(lines.len(), 5);
        assert_eq!(lines[1].0, "connect, untagged to the API server, 1000 tagged pods");
        let takes = "140 ns of the connect's own program; 700 ns of all programs at both ends, from connect to close";
        assert_eq!(lines[1].1, takes);
    }
}
