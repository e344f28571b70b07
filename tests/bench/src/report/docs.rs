//! The part of docs/performance.md that a run writes: between two marks, so that what people wrote around it stays.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};

use super::{CHARTS, Report, goals, markdown, remarks};

/// Where a run's part begins.
pub const BEGIN: &str = "<!-- What follows is written by `cargo xtask bench --docs docs`. -->";
/// And where it ends.
pub const END: &str = "<!-- So far. -->";

/// `page` with that run's results in place of whatever run's it had.
///
/// # Errors
/// The marks aren't in it.
pub fn page(page: &str, report: &Report) -> Result<String> {
    let missing = || format!("docs/performance.md has lost its marks: `{BEGIN}` and `{END}`");
    let (before, rest) = page.split_once(BEGIN).with_context(missing)?;
    let (_, after) = rest.split_once(END).with_context(missing)?;
    Ok(format!("{before}{BEGIN}\n\n{}\n{END}{after}", results(report)))
}

fn results(report: &Report) -> String {
    let machine = &report.machine;
    let mut text = format!(
        "Run of {}, on {} processors of {}, Linux {}; {}slices of {} s.\n\n",
        report.date.split('T').next().unwrap_or_default(),
        machine.processors,
        machine.processor,
        machine.kernel,
        if report.quick { "a short run, " } else { "" },
        report.slice_seconds,
    );
    // Writing to a String cannot fail.
    for (peer, version) in &report.versions {
        let _ = writeln!(text, "- {peer}: {version}");
    }
    for remark in remarks(report) {
        let _ = writeln!(text, "- {remark}");
    }
    text += "\n### Goals\n\n";
    text += &goals(report);
    text.push('\n');
    for (file, chart) in CHARTS {
        if chart
            .panels
            .iter()
            .any(|(measure, _, _)| report.measures.iter().any(|measured| measured.id == *measure))
        {
            let _ = writeln!(text, "![{}](performance/{file})\n", chart.title);
        }
    }
    text += &markdown(report);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::report;

    #[test]
    fn a_run_takes_the_place_of_the_last_and_of_nothing_else() {
        let before = format!("# Performance\n\nwords\n\n{BEGIN}\nan old run\n{END}\n\nmore words\n");
        let once = page(&before, &report()).unwrap();
        assert!(
            once.starts_with("# Performance\n\nwords\n") && once.ends_with("\n\nmore words\n"),
            "{once}"
        );
        assert!(!once.contains("an old run"));
        for expected in [
            "Run of 2026-11-22, on 2 processors",
            "- nginx: nginx/1.22.1",
            "- MISSING: envoy",
            "![Requests per CPU-second](performance/requests.svg)",
            "| understudy | 40,150",
        ] {
            assert!(once.contains(expected), "{expected}\n{once}");
        }
        assert!(!once.contains("memory.svg"), "a chart without bars isn't shown");
        assert_eq!(page(&once, &report()).unwrap(), once);
    }

    #[test]
    fn a_page_without_marks_is_left_alone() {
        assert!(page("# Performance\n", &report()).is_err());
    }
}
