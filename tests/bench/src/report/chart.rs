//! A chart of a run, as SVG that a browser shows on light and dark pages alike.

use std::fmt::Write as _;

use super::{Report, figure};

/// What a chart shows: a quantity of some measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chart {
    /// Over it.
    pub title: &'static str,
    /// Measures and their quantities, with what to call each.
    pub panels: &'static [(&'static str, &'static str, &'static str)],
}

/// The charts of a run, by file name.
pub const CHARTS: [(&str, Chart); 3] = [
    (
        "requests.svg",
        Chart {
            title: "Requests per CPU-second",
            panels: &[
                ("h1-1", "per-cpu-second", "HTTP/1.1, 1 connection"),
                ("h1-128", "per-cpu-second", "HTTP/1.1, 128 connections"),
                ("h2-16x8", "per-cpu-second", "HTTP/2, 16 connections x 8 streams"),
                ("handshakes", "per-cpu-second", "TLS handshake and one request"),
            ],
        },
    ),
    (
        "bodies.svg",
        Chart {
            title: "MB per CPU-second",
            panels: &[
                ("list", "mb-per-cpu-second", "100 MB list"),
                ("bulk-websocket", "mb-per-cpu-second", "exec, WebSocket"),
                ("bulk-spdy", "mb-per-cpu-second", "exec, SPDY"),
            ],
        },
    ),
    (
        "memory.svg",
        Chart {
            title: "Memory held, KiB: less is better",
            panels: &[
                ("watches-h1", "kib-each", "each idle watch, HTTP/1.1 clients"),
                ("watches-h2", "kib-each", "each idle watch, HTTP/2 clients"),
                ("idle", "kib-each", "each idle connection"),
            ],
        },
    ),
];

const WIDTH: u32 = 860;
const LEFT: u32 = 150;
const BAR: u32 = 16;
const GAP: u32 = 4;
const HEAD: u32 = 34;
/// Room at the right for the figure beside the longest bar.
const RIGHT: u32 = 150;

const STYLE: &str = "\
text{font:13px system-ui,sans-serif;fill:#24292f}\
.title{font-size:17px;font-weight:600}.panel{font-weight:600}.figure{fill:#57606a}\
.bar{fill:#9aa4af}.ours{fill:#1a7f5a}.whisker{stroke:#24292f;stroke-width:1}\
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.figure{fill:#9aa4af}.bar{fill:#57606a}.ours{fill:#2ea67a}\
.whisker{stroke:#e6edf3}}";

/// Draws it: one panel for each measure that the run has, one bar for each target, its interval over it.
#[must_use]
pub fn chart(report: &Report, chart: &Chart) -> String {
    let mut body = String::new();
    let mut top = HEAD + 10;
    // Writing to a String cannot fail.
    for (measure, quantity, title) in chart.panels {
        let Some(column) = report
            .measures
            .iter()
            .find(|measured| measured.id == *measure)
            .and_then(|measured| measured.quantities.iter().find(|column| column.id == *quantity))
        else {
            continue;
        };
        let rows: Vec<_> = column
            .rows
            .iter()
            .filter_map(|row| Some((&row.peer, row.value?)))
            .collect();
        let most = rows.iter().map(|(_, value)| value.high).fold(0.0, f64::max);
        if most <= 0.0 {
            continue;
        }
        let _ = writeln!(
            body,
            r#"<text class="panel" x="10" y="{}">{}</text>"#,
            top + 14,
            escaped(title)
        );
        top += 24;
        for (peer, value) in rows {
            let scale = |value: f64| f64::from(LEFT) + value.max(0.0) / most * f64::from(WIDTH - LEFT - RIGHT);
            let class = if peer == "understudy" { "bar ours" } else { "bar" };
            let middle = top + BAR / 2;
            let _ = writeln!(
                body,
                r#"<text x="{}" y="{}" text-anchor="end">{}</text><rect class="{class}" x="{LEFT}" y="{top}" width="{:.1}" height="{BAR}"/>"#,
                LEFT - 8,
                top + 13,
                escaped(peer),
                scale(value.median) - f64::from(LEFT),
            );
            let _ = writeln!(
                body,
                r#"<path class="whisker" d="M{:.1} {middle}H{:.1}"/><text class="figure" x="{:.1}" y="{}">{}</text>"#,
                scale(value.low),
                scale(value.high),
                scale(value.high) + 8.0,
                top + 13,
                figure(value.median),
            );
            top += BAR + GAP;
        }
        top += 14;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {top}\" role=\"img\" aria-label=\"{title}\">\n\
         <style>{STYLE}</style>\n<text class=\"title\" x=\"10\" y=\"24\">{title}</text>\n{body}</svg>\n",
        title = escaped(chart.title),
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::report;

    const CHART: Chart = Chart {
        title: "Requests & more",
        panels: &[
            ("h1-128", "per-cpu-second", "HTTP/1.1, 128 connections"),
            ("h1-1", "per-cpu-second", "not in this run"),
        ],
    };

    #[test]
    fn bars_are_as_long_as_their_figures() {
        let svg = chart(&report(), &CHART);
        let widths: Vec<f64> = svg
            .match_indices("width=\"")
            .filter_map(|(at, key)| svg[at + key.len()..].split('"').next()?.parse().ok())
            .collect();
        assert_eq!(widths.len(), 2, "{svg}");
        assert!((widths[0] / widths[1] - 1.6).abs() < 0.02, "{widths:?}");
        assert!(svg.contains("40,150") && svg.contains("Requests &amp; more"), "{svg}");
        assert!(!svg.contains("not in this run"));
    }

    #[test]
    fn every_element_is_closed() {
        let svg = chart(&report(), &CHART);
        for element in ["svg", "text", "style"] {
            assert_eq!(
                svg.matches(&format!("<{element}")).count(),
                svg.matches(&format!("</{element}>")).count(),
                "{element}"
            );
        }
        assert_eq!(
            svg.matches("<rect").count() + svg.matches("<path").count(),
            svg.matches("/>").count()
        );
    }
}
