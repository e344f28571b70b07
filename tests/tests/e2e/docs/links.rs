//! The links of the pages: what they lead to within the repository is there, headings included.

use std::{collections::BTreeSet, path::Path};

use anyhow::{Result, bail};

use super::page::{pages, root};

/// The targets of a page's links, code left out.
fn targets(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in prose(text) {
        let mut rest = &*line;
        while let Some((_, after)) = rest.split_once("](") {
            let Some((target, after)) = after.split_once(')') else {
                break;
            };
            found.push(target.to_owned());
            rest = after;
        }
    }
    found
}

/// The footnotes that a page refers to, and those that it has.
fn footnotes(text: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut asked, mut there) = (BTreeSet::new(), BTreeSet::new());
    for line in prose(text) {
        let mut rest = &*line;
        if let Some((name, after)) = line.strip_prefix("[^").and_then(|line| line.split_once("]:")) {
            there.insert(name.to_owned());
            rest = after;
        }
        while let Some((_, after)) = rest.split_once("[^") {
            let Some((name, after)) = after.split_once(']') else {
                break;
            };
            asked.insert(name.to_owned());
            rest = after;
        }
    }
    (asked, there)
}

/// Its lines without blocks of code and code in a line. A link may stand on two lines: paragraphs are one.
fn prose(text: &str) -> Vec<String> {
    let mut paragraphs = vec![String::new()];
    let mut is_code = false;
    for line in text.lines() {
        if line.starts_with("```") {
            is_code = !is_code;
        } else if !is_code {
            let parts = line.split('`').step_by(2);
            let line = parts.collect::<Vec<_>>().join("");
            if line.is_empty() || line.starts_with("[^") {
                paragraphs.push(line);
            } else if let Some(last) = paragraphs.last_mut() {
                last.push_str(&line);
            }
        }
    }
    paragraphs
}

/// What a page can be entered by: its headings, as they are made into anchors.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut anchors = BTreeSet::new();
    let mut is_code = false;
    for line in text.lines() {
        if line.starts_with("```") {
            is_code = !is_code;
        } else if !is_code && line.starts_with('#') {
            let heading = line.trim_start_matches('#').trim().to_lowercase();
            let kept = heading
                .chars()
                .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            let anchor: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
            let again = (1..).map(|number| format!("{anchor}-{number}"));
            let mut names = std::iter::once(anchor.clone()).chain(again);
            anchors.extend(names.find(|name| !anchors.contains(name)));
        }
    }
    anchors
}

fn check(page: &str, target: &str, pages: &[(String, String)]) -> Result<()> {
    if target.starts_with("https://") {
        return Ok(());
    }
    if target.contains("://") {
        bail!("{page}: {target} is no way that a reader should go: https");
    }
    let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
    let directory = Path::new(page).parent().unwrap_or(Path::new(""));
    let file = if path.is_empty() {
        Path::new(page).to_owned()
    } else {
        directory.join(path)
    };
    let Ok(full) = root().join(&file).canonicalize() else {
        bail!("{page}: there is no {target}");
    };
    if anchor.is_empty() {
        return Ok(());
    }
    let of_page = pages
        .iter()
        .find(|(name, _)| root().join(name).canonicalize().is_ok_and(|page| page == full));
    match of_page {
        Some((_, text)) if anchors(text).contains(anchor) => Ok(()),
        _ => bail!("{page}: {target}: no heading there is {anchor}"),
    }
}

#[test]
fn every_link_of_the_pages_leads_somewhere() -> Result<()> {
    let pages = pages()?;
    let mut count = 0;
    let mut wrong = Vec::new();
    for (name, text) in &pages {
        for target in targets(text) {
            count += 1;
            wrong.extend(check(name, &target, &pages).err().map(|error| error.to_string()));
        }
        let (asked, there) = footnotes(text);
        wrong.extend(
            asked
                .symmetric_difference(&there)
                .map(|note| format!("{name}: the footnote {note} or what refers to it is missing")),
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 200, "the pages have lost their links: {count}");
    Ok(())
}

#[test]
fn what_leads_nowhere_is_found() {
    let text = "# A heading, with `code`\n\n# Twice\n\n# Twice\n\n[a\nb](c.md#d) `[no](link)` [e](#f)\n\nx[^1]\n\n[^1]: note\n[^2]: lost\n";
    assert_eq!(targets(text), ["c.md#d", "#f"]);
    let expected = ["a-heading-with-code", "twice", "twice-1"].map(str::to_owned);
    assert_eq!(anchors(text), BTreeSet::from(expected));
    let (asked, there) = footnotes(text);
    assert_eq!(asked, BTreeSet::from(["1".to_owned()]));
    assert_eq!(there, BTreeSet::from(["1".to_owned(), "2".to_owned()]));
    let pages = pages().unwrap();
    for (target, is) in [
        ("sessions.md", true),
        ("sessions.md#fields", true),
        ("#sessions", true),
        ("https://example.org", true),
        ("no-such-page.md", false),
        ("sessions.md#no-such-heading", false),
        ("http://example.org", false),
    ] {
        assert_eq!(check("docs/tools.md", target, &pages).is_ok(), is, "{target}");
    }
}
