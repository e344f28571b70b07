//! Screens that the pages show, as tests saw them.

use std::{env, fs, path::Path};

/// The environment variable with which a page is written as a test saw it, rather than held to it.
pub const ACCEPT: &str = "UNDERSTUDY_ACCEPT";

/// Holds a page to show this screen, in the block below its line `<!-- screen: NAME -->`; or writes it there.
///
/// # Panics
/// Where the page shows another, or has no place for it.
pub fn keep_screen(page: &Path, name: &str, shown: &str) {
    let kept = match fs::read_to_string(page) {
        Ok(kept) => kept,
        Err(error) => panic!("could not read {}: {error}", page.display()),
    };
    let Some(wanted) = with(&kept, name, shown) else {
        panic!("{} has no block below a line `<!-- screen: {name} -->`", page.display());
    };
    if kept == wanted {
        return;
    }
    assert!(
        env::var_os(ACCEPT).is_some(),
        "{} doesn't show `{name}` as it is: see why, or run `cargo xtask test --accept`\n\n{shown}",
        page.display()
    );
    if let Err(error) = fs::write(page, wanted) {
        panic!("could not write {}: {error}", page.display());
    }
}

/// The page with the screen in its place.
fn with(page: &str, name: &str, shown: &str) -> Option<String> {
    const FENCE: &str = "\n```text\n";
    let mark = format!("<!-- screen: {name} -->\n");
    let block = page.find(&mark)? + mark.len();
    let begin = block + page[block..].strip_prefix(FENCE).map(|_| FENCE.len())?;
    let end = begin + page[begin..].find("```\n")?;
    let lines: Vec<&str> = shown.trim_end().lines().map(str::trim_end).collect();
    Some(format!("{}{}\n{}", &page[..begin], lines.join("\n"), &page[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_screen_takes_the_place_of_the_one_before() {
        let page = "a\n<!-- screen: one -->\n\n```text\nold\n```\nb\n<!-- screen: two -->\n";
        let expected = "a\n<!-- screen: one -->\n\n```text\nnew\n\n  line\n```\nb\n<!-- screen: two -->\n";
        assert_eq!(with(page, "one", "new  \n\n  line\n\n").as_deref(), Some(expected));
        assert_eq!(with(expected, "one", "new\n\n  line").as_deref(), Some(expected));
        for name in ["two", "three"] {
            assert_eq!(with(page, name, "new"), None, "{name}");
        }
    }
}
