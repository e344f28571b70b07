//! The alerts and the dashboard: that both forms of them are one, that they ask for metrics that there are, that each alert
//! has its runbook, and that promtool finds nothing wrong with them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::command::{progress, run};
use crate::{setup, workspace};

const RULES: &str = "deploy/components/alerts/rules.yaml";
const RULES_TESTS: &str = "deploy/components/alerts/rules.test.yaml";
const DASHBOARD: &str = "deploy/components/dashboard/dashboard.json";
const METRICS: &str = "docs/metrics.md";
const RUNBOOKS: &str = "docs/runbooks";

/// What stands above the rules to make a resource of them.
const RESOURCE: &str = "\
# Made from rules.yaml by `cargo xtask manifests`.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: understudy
  namespace: understudy-system
  labels:
    app.kubernetes.io/name: understudy
spec:
";

/// The files that are made of others, and what is in them: a chart can't reach outside of itself.
pub(super) fn made() -> Result<[(&'static str, String); 3]> {
    let rules = read(RULES)?;
    Ok([
        ("deploy/helm/understudy/files/rules.yaml", rules.clone()),
        ("deploy/helm/understudy/files/dashboard.json", read(DASHBOARD)?),
        ("deploy/components/alerts/prometheusrule.yaml", resource(&rules)),
    ])
}

/// Holds alerts, dashboard and pages against each other, and has promtool look at what Prometheus will read.
///
/// # Errors
/// At the first thing that isn't as it should be.
pub(super) fn check() -> Result<()> {
    check_pages()?;
    let promtool = match setup::promtool() {
        Ok(promtool) => promtool,
        Err(error) => {
            progress(format!("promtool can't be had ({error:#}): the alerts are NOT tested"));
            return Ok(());
        }
    };
    run(Command::new(&promtool)
        .args(["check", "rules"])
        .arg(workspace::root().join(RULES)))?;
    run(Command::new(&promtool)
        .args(["test", "rules"])
        .arg(workspace::root().join(RULES_TESTS)))?;
    // A query on the dashboard is PromQL too, but for its variables.
    let queries = as_rules(&expressions(&dashboard()?));
    let path = workspace::target().join("dashboard-queries.yaml");
    fs::write(&path, queries).with_context(|| format!("could not write {}", path.display()))?;
    run(Command::new(&promtool)
        .args(["check", "rules", "--lint=none"])
        .arg(&path))
}

/// What can be held against each other without Prometheus.
fn check_pages() -> Result<()> {
    let page = read(METRICS)?;
    let known = documented(&page);
    ensure!(known.len() > 30, "{METRICS} has no table of metrics any more");
    let rules = read(RULES)?;
    let dashboard = dashboard()?;
    for (file, text) in [(RULES, rules.clone()), (DASHBOARD, expressions(&dashboard).join("\n"))] {
        let unknown: Vec<_> = asked_for(&text)
            .into_iter()
            .filter(|name| !knows(&known, name))
            .collect();
        ensure!(
            unknown.is_empty(),
            "{file} asks for metrics that {METRICS} doesn't have: {unknown:?}"
        );
    }
    let alerts = alerts(&rules);
    ensure!(!alerts.is_empty(), "{RULES} has no alert");
    let tests = read(RULES_TESTS)?;
    let index = read(&format!("{RUNBOOKS}/README.md"))?;
    for alert in &alerts {
        let runbook = format!("{RUNBOOKS}/{alert}.md");
        ensure!(
            rules.contains(&format!("runbook: {runbook}\n")),
            "{RULES}: {alert} doesn't name its runbook, {runbook}"
        );
        let page = read(&runbook)?;
        for heading in ["What it means", "Impact", "Diagnosis", "Remedy"] {
            ensure!(
                page.contains(&format!("\n## {heading}\n")),
                "{runbook} lacks `{heading}`"
            );
        }
        ensure!(
            index.contains(&format!("({alert}.md)")),
            "{RUNBOOKS}/README.md lacks {alert}"
        );
        for test in ["fires", "is silent"] {
            ensure!(
                tests.contains(&format!("- name: {alert} {test}\n")),
                "{RULES_TESTS} doesn't test that {alert} {test}"
            );
        }
    }
    for entry in fs::read_dir(workspace::root().join(RUNBOOKS)).context("docs/runbooks can't be listed")? {
        let path = entry?.path();
        let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
        if name != "README" && !alerts.contains(name) {
            bail!("{} belongs to no alert", path.display());
        }
    }
    Ok(())
}

fn resource(rules: &str) -> String {
    let mut resource = RESOURCE.to_owned();
    for line in rules.lines().skip_while(|line| line.starts_with('#')) {
        resource.push_str("  ");
        resource.push_str(line);
        resource.push('\n');
    }
    resource
}

fn dashboard() -> Result<Value> {
    serde_json::from_str(&read(DASHBOARD)?).with_context(|| format!("{DASHBOARD} isn't JSON"))
}

/// Every query of the dashboard's panels and variables.
fn expressions(dashboard: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = vec![dashboard];
    while let Some(value) = rest.pop() {
        match value {
            Value::Object(fields) => {
                found.extend(fields.get("expr").and_then(Value::as_str).map(str::to_owned));
                rest.extend(fields.values());
            }
            Value::Array(values) => rest.extend(values),
            _ => {}
        }
    }
    found
}

/// Queries as rules that promtool can read, with something in place of Grafana's variables.
fn as_rules(queries: &[String]) -> String {
    let mut rules = "groups:\n  - name: dashboard\n    rules:\n".to_owned();
    for (number, query) in queries.iter().enumerate() {
        let query = query.replace("$__rate_interval", "5m").replace("$node", ".*");
        // JSON's strings are YAML's.
        let expression = Value::from(query).to_string();
        let number = number.to_string();
        rules.extend([
            "      - record: dashboard:query:",
            &number,
            "\n        expr: ",
            &expression,
            "\n",
        ]);
    }
    rules
}

/// The names in the first column of the page's tables.
fn documented(page: &str) -> BTreeSet<&str> {
    page.lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` |"))
        .map(|(name, _)| name)
        .filter(|name| name.starts_with("understudy_") || name.starts_with("process_"))
        .collect()
}

/// Whether it is one of them, or one of the series of a histogram among them.
fn knows(known: &BTreeSet<&str>, name: &str) -> bool {
    known.contains(name)
        || ["_bucket", "_sum", "_count"]
            .iter()
            .any(|series| name.strip_suffix(series).is_some_and(|name| known.contains(name)))
}

/// The agent's metrics that a query or a rule names.
fn asked_for(text: &str) -> BTreeSet<&str> {
    text.split(|character: char| !character.is_ascii_alphanumeric() && character != '_')
        .filter(|word| word.starts_with("understudy_") || word.starts_with("process_"))
        .collect()
}

/// The alerts' names.
fn alerts(rules: &str) -> BTreeSet<&str> {
    rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect()
}

fn read(path: &str) -> Result<String> {
    let path: &Path = &workspace::root().join(path);
    fs::read_to_string(path).with_context(|| format!("could not read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// So that `cargo test` says it as well.
    #[test]
    fn alerts_dashboard_and_pages_agree() {
        check_pages().unwrap();
        for (path, made) in made().unwrap() {
            assert_eq!(read(path).unwrap(), made, "{path}: run `cargo xtask manifests`");
        }
    }

    #[test]
    fn metrics_are_found_in_a_table_and_in_queries() {
        let known =
            documented("| name |\n| --- |\n| `understudy_a_total` | x |\n| `understudy_b` | |\n| `other` | |\n");
        assert_eq!(known, BTreeSet::from(["understudy_a_total", "understudy_b"]));
        let asked = asked_for("rate(understudy_a_total{x=\"y\"}[5m]) / understudy_b_bucket > understudy_c");
        let unknown: Vec<_> = asked.into_iter().filter(|name| !knows(&known, name)).collect();
        assert_eq!(unknown, ["understudy_c"]);
    }

    #[test]
    fn every_query_of_a_dashboard_is_found() {
        let dashboard =
            json!({"panels": [{"targets": [{"expr": "a"}, {"expr": "rate(b[$__rate_interval])"}]}], "expr": "c"});
        let mut found = expressions(&dashboard);
        found.sort();
        assert_eq!(found, ["a", "c", "rate(b[$__rate_interval])"]);
        let rules = as_rules(&found[2..]);
        assert!(
            rules.contains("record: dashboard:query:0\n        expr: \"rate(b[5m])\"\n"),
            "{rules}"
        );
    }

    #[test]
    fn a_resource_is_the_rules_below_their_head() {
        let resource = resource("# Why.\ngroups:\n  - name: a\n");
        assert!(resource.ends_with("spec:\n  groups:\n    - name: a\n"), "{resource}");
    }
}
