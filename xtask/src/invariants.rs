//! That every test which ARCHITECTURE.md names for an invariant is in the tree.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::command::progress;
use crate::workspace;

/// Where tests are looked for.
const SOURCES: [&str; 4] = ["proxy", "proxy-common", "tests", "xtask"];

/// Compares the list of ARCHITECTURE.md with the tree.
///
/// # Errors
/// Where an invariant has no test there, or one that it names isn't in the tree.
pub(crate) fn check() -> Result<()> {
    let page = workspace::root().join("ARCHITECTURE.md");
    let page = fs::read_to_string(&page).with_context(|| format!("could not read {}", page.display()))?;
    let mut sources = String::new();
    for directory in SOURCES {
        read_below(&workspace::root().join(directory), &mut sources)?;
    }
    let there: BTreeSet<&str> = names_after("fn ", &sources)
        .chain(names_after("case::", &sources))
        .collect();
    let mut named = 0;
    for (invariant, tests) in (1..).zip(tests_named(&page)?) {
        let missing: Vec<_> = tests.iter().filter(|test| !there.contains(**test)).collect();
        ensure!(
            missing.is_empty(),
            "ARCHITECTURE.md names tests for invariant {invariant} that aren't in the tree: {missing:?}"
        );
        named += tests.len();
    }
    progress(format!(
        "invariants: {named} tests named in ARCHITECTURE.md, all in the tree"
    ));
    Ok(())
}

/// The tests of each of the eight invariants: what stands in backticks in the list below it, and is a function's name
/// of several words.
fn tests_named(page: &str) -> Result<Vec<BTreeSet<&str>>> {
    let (_, section) = page
        .split_once("\n## Invariants\n")
        .context("ARCHITECTURE.md has no section `Invariants`")?;
    let section = section.split_once("\n## ").map_or(section, |(section, _)| section);
    let mut rest = section;
    let mut invariants = Vec::new();
    for number in 1..=8 {
        (_, rest) = rest
            .split_once(&format!("\n{number}. "))
            .with_context(|| format!("ARCHITECTURE.md has no invariant {number}"))?;
        let own = rest
            .split_once(&format!("\n{}. ", number + 1))
            .map_or(rest, |(own, _)| own);
        let is_function = |name: &&str| {
            name.contains('_')
                && name
                    .chars()
                    .all(|character| character.is_ascii_lowercase() || "_0123456789".contains(character))
        };
        let tests: BTreeSet<_> = own.split('`').skip(1).step_by(2).filter(is_function).collect();
        ensure!(
            !tests.is_empty(),
            "ARCHITECTURE.md names no test for invariant {number}"
        );
        invariants.push(tests);
    }
    Ok(invariants)
}

fn names_after<'s>(word: &'s str, sources: &'s str) -> impl Iterator<Item = &'s str> {
    sources.split(word).skip(1).map(|rest| {
        let end = rest
            .find(|character: char| !character.is_ascii_alphanumeric() && character != '_')
            .unwrap_or(rest.len());
        &rest[..end]
    })
}

fn read_below(directory: &Path, sources: &mut String) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| format!("could not read {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            read_below(&path, sources)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push_str(&fs::read_to_string(&path).with_context(|| format!("could not read {}", path.display()))?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(eighth: &str) -> String {
        let one = |number: u8| format!("\n{number}. It holds.\n   - `a.rs`: `holds_{number}`\n");
        let others = (1..=7).map(one).collect::<Vec<_>>().concat();
        format!("# A\n\n## Invariants\n{others}\n8. {eighth}\n\n## Limits\n`not_this`")
    }

    #[test]
    fn finds_the_tests_of_each() {
        let page = page("So does this: `clippy.toml`, `nix::sched::setns`, `no_more` and\n   `at_all`.");
        let named = tests_named(&page).unwrap();
        assert_eq!(named[0], BTreeSet::from(["holds_1"]));
        assert_eq!(named[7], BTreeSet::from(["at_all", "no_more"]));
    }

    #[test]
    fn one_without_a_test_is_an_error() {
        let error = tests_named(&page("Nobody tries it.")).unwrap_err().to_string();
        assert!(error.contains("no test for invariant 8"), "{error}");
    }

    #[test]
    fn functions_and_cases_are_names() {
        let names: Vec<_> = names_after("fn ", "async fn a_b() {}\nfn c<T>()").collect();
        assert_eq!(names, ["a_b", "c"]);
    }
}
