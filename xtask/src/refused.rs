//! `docs/refused.md`: the table of what is refused, as a run of the tests saw it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use understudy_cases::{Area, Case};

use crate::command::progress;
use crate::workspace;

/// What stands above the tables.
const PREAMBLE: &str = "\
# What is refused, and how

Every hostile input, fault and limit that the tests try, with what came of it. A run of all tests makes this page:
`cargo xtask test` fails where it says otherwise, and `cargo xtask test --accept` writes it anew. A case that wasn't run
would be missing here. \"`Status`\" is a Kubernetes `Status` of the agent's own.
";

/// What to do with the page when the tests have run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Page {
    /// Fail where it isn't what they saw.
    #[default]
    Check,
    /// Write what they saw.
    Accept,
}

/// Where a run keeps its cases: empty, and there.
///
/// # Errors
/// Where it can't be made so.
pub(crate) fn directory() -> Result<PathBuf> {
    workspace::emptied("cases")
}

/// Compares the page with what a full run saw, or writes it.
///
/// # Errors
/// Where they differ, or one case was seen to end in two ways.
pub(crate) fn settle(directory: &Path, page: Page) -> Result<()> {
    let cases = understudy_cases::all(directory).with_context(|| format!("could not read {}", directory.display()))?;
    let seen = render(&cases)?;
    let path = workspace::root().join("docs/refused.md");
    if page == Page::Accept {
        fs::write(&path, seen).with_context(|| format!("could not write {}", path.display()))?;
        progress(format!("wrote {}: {} cases", path.display(), cases.len()));
        return Ok(());
    }
    let kept = fs::read_to_string(&path).with_context(|| format!("could not read {}", path.display()))?;
    let differences = differences(&kept, &seen);
    ensure!(
        differences.is_empty(),
        "{} isn't what the tests saw: see why, or run `cargo xtask test --accept`\n\n    {}\n",
        path.display(),
        differences.join("\n    ")
    );
    progress(format!(
        "{}: {} cases, as the tests saw them",
        path.display(),
        cases.len()
    ));
    Ok(())
}

fn render(cases: &[Case]) -> Result<String> {
    let mut outcomes = BTreeMap::new();
    for Case { area, case, outcome } in cases {
        if let Some(other) = outcomes.insert((area, case), outcome) {
            bail!(
                "{}, {case}: {other:?} in one test and {outcome:?} in another",
                area.heading()
            );
        }
    }
    let mut page = PREAMBLE.to_owned();
    for area in Area::ALL {
        page.extend(["\n## ", area.heading(), "\n\n| case | outcome |\n| --- | --- |\n"]);
        for ((_, case), outcome) in outcomes
            .range((&area, &String::new())..)
            .take_while(|((of, _), _)| **of == area)
        {
            page.extend(["| ", &cell(case), " | ", &cell(outcome), " |\n"]);
        }
    }
    Ok(page)
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

/// The lines of one that the other hasn't.
fn differences(kept: &str, seen: &str) -> Vec<String> {
    let missing = |of: &str, from: &str, sign: char| {
        of.lines()
            .filter(|line| !from.lines().any(|other| other == *line))
            .map(|line| format!("{sign} {line}"))
            .collect::<Vec<_>>()
    };
    let mut differences = missing(kept, seen, '-');
    differences.extend(missing(seen, kept, '+'));
    differences
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(area: Area, case: &str, outcome: &str) -> Case {
        Case {
            area,
            case: case.into(),
            outcome: outcome.into(),
        }
    }

    #[test]
    fn a_case_stands_below_its_area() {
        let page = render(&[case(Area::Http1, "a|b", "400"), case(Area::Tls, "c", "closed")]).unwrap();
        assert!(page.contains("## HTTP/1.1\n\n| case | outcome |\n| --- | --- |\n| a\\|b | 400 |\n\n## HTTP/2"));
        assert!(page.ends_with("## Limits\n\n| case | outcome |\n| --- | --- |\n"));
    }

    #[test]
    fn one_case_has_one_outcome() {
        let error = render(&[case(Area::Tls, "c", "closed"), case(Area::Tls, "c", "open")]).unwrap_err();
        assert!(error.to_string().contains("\"closed\" in one test"), "{error}");
    }

    #[test]
    fn what_is_missing_and_what_is_new_differ() {
        assert_eq!(differences("a\nb\n", "b\nc\n"), ["- a", "+ c"]);
        assert!(differences("a\n", "a\n").is_empty());
    }
}
