//! What the agent serves at `/metrics` is what `docs/metrics.md` says, both ways.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};

use crate::world::World;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");

/// A metric, as the page or a scrape has it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Metric {
    kind: String,
    /// Of a scrape those that there are samples of.
    labels: BTreeSet<String>,
    /// The page says when it isn't there.
    may_be_absent: bool,
}

/// The table's rows by name.
fn documented(page: &str) -> BTreeMap<String, Metric> {
    page.lines()
        .filter_map(|line| {
            let cells: Vec<&str> = line.strip_prefix("| `")?.split('|').map(str::trim).collect();
            let [name, kind, labels, text] = cells.get(..4)? else {
                return None;
            };
            let metric = Metric {
                kind: (*kind).to_owned(),
                labels: labels.split('`').skip(1).step_by(2).map(str::to_owned).collect(),
                may_be_absent: text.contains("Absent where"),
            };
            Some((name.trim_end_matches('`').to_owned(), metric))
        })
        .collect()
}

/// What there is in a scrape, by the name that queries use.
fn served(text: &str) -> Result<BTreeMap<String, Metric>> {
    let mut metrics = BTreeMap::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some(description) = line.strip_prefix("# TYPE ") {
            let (family, kind) = description.split_once(' ').context("a type without a name")?;
            let suffix = match kind {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            current = format!("{family}{suffix}");
            let metric = Metric {
                kind: kind.to_owned(),
                ..Metric::default()
            };
            metrics.insert(current.clone(), metric);
        } else if !line.starts_with('#')
            && let Some((_, labels)) = line.split_once('{')
        {
            let (labels, _) = labels.split_once('}').context("labels without an end")?;
            let metric = metrics.get_mut(&current).context("a sample before its type")?;
            for label in labels.split("\",") {
                let (name, _) = label.split_once("=\"").context("a label without a value")?;
                if name != "le" {
                    metric.labels.insert(name.to_owned());
                }
            }
        }
    }
    Ok(metrics)
}

#[tokio::test]
async fn every_metric_is_in_the_page_and_every_one_of_the_page_is_served() -> Result<()> {
    let world = World::with_test_server().await?;
    world.pod.kubectl("get pods -n prod").await?.success()?;
    let scrape = world.agent.metrics().await?;
    let (mut documented, served) = (documented(&std::fs::read_to_string(PAGE)?), served(scrape.text())?);
    assert!(documented.len() > 30, "the page has no table any more");
    for (name, metric) in &served {
        let row = documented
            .remove(name)
            .with_context(|| format!("docs/metrics.md lacks {name}, {metric:?}"))?;
        assert_eq!(row.kind, metric.kind, "{name}");
        if metric.labels.is_empty() {
            continue;
        }
        assert_eq!(row.labels, metric.labels, "{name}");
    }
    documented.retain(|_, row| !row.may_be_absent);
    assert!(
        documented.is_empty(),
        "docs/metrics.md has what isn't served: {documented:?}"
    );

    // What one request leaves behind.
    assert!(scrape.sum("understudy_latency_added_seconds_count", &[]) >= 1.0);
    assert!(scrape.sum("understudy_upstream_answer_seconds_count", &[]) >= 1.0);
    assert!(scrape.sum("understudy_tls_handshakes_total", &[("kind", "full")]) >= 1.0);
    assert!(scrape.sum("understudy_upstream_connections_open", &[]) >= 1.0);
    assert!(scrape.sum("understudy_upstream_requests_waiting", &[]).abs() < 1e-9);
    assert!(scrape.sum("understudy_enrolments_total", &[("outcome", "done")]) >= 1.0);
    assert!(scrape.sum("understudy_sessions", &[("state", "in_force")]) >= 1.0);
    Ok(())
}

#[test]
fn a_table_and_a_scrape_are_read() -> Result<()> {
    let rows = documented("| `a_total` | counter | `x`, `y` | Some. |\n| `b` | gauge | | Absent where it isn't. |\n");
    assert_eq!(rows["a_total"].labels.len(), 2);
    assert!(rows["b"].may_be_absent && rows["b"].labels.is_empty());
    let served = served(
        "# HELP a A.\n# TYPE a counter\na_total{x=\"1, 2\",y=\"2\"} 3 # {id=\"z\"} 1\n# TYPE c info\nc_info{v=\"1\"} 1\n",
    )?;
    assert_eq!(served["a_total"].labels, rows["a_total"].labels);
    assert_eq!(served["c_info"].kind, "info");
    Ok(())
}
