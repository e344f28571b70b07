//! Whether what a command printed is what its page says. In a page, `…` stands for whatever isn't the same every time, within a
//! line; a line that is nothing else for any number of lines. How many spaces stand between columns isn't looked at, for
//! that goes by what stands in them.

/// Whether `printed` is what `said` says.
pub(super) fn is_said(said: &str, printed: &str) -> bool {
    let said: Vec<String> = said.lines().map(narrowed).collect();
    let printed: Vec<String> = printed.lines().map(narrowed).collect();
    lines(&said, &printed)
}

/// Whether what `said` says is among what was `printed`, from the beginning of a line on.
pub(super) fn begins_with(said: &str, printed: &str) -> bool {
    let wanted: Vec<String> = said.lines().map(narrowed).collect();
    let printed: Vec<String> = printed.lines().map(narrowed).collect();
    printed.windows(wanted.len()).any(|some| lines(&wanted, some))
}

fn narrowed(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn lines(said: &[String], printed: &[String]) -> bool {
    match said.split_first() {
        None => printed.is_empty(),
        Some((first, rest)) if first == "…" => (0..=printed.len()).any(|passed| lines(rest, &printed[passed..])),
        Some((first, rest)) => match printed.split_first() {
            Some((line, others)) => is_line(first, line) && lines(rest, others),
            None => false,
        },
    }
}

fn is_line(said: &str, printed: &str) -> bool {
    let mut parts = said.split('…');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = printed.strip_prefix(first) else {
        return false;
    };
    let mut last = None;
    for part in parts {
        if let Some(part) = last.replace(part) {
            let Some((_, after)) = rest.split_once(part) else {
                return false;
            };
            rest = after;
        }
    }
    last.map_or(rest.is_empty(), |part| rest.ends_with(part))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::same("a\nb\n", "a\nb\n", true)]
    #[case::another_word("a\n", "b\n", false)]
    #[case::more("a\n", "a\nb\n", false)]
    #[case::less("a\nb\n", "a\n", false)]
    #[case::columns("NAME   AGE\nx      …\n", "NAME  AGE\nx  3s\n", true)]
    #[case::masked("at … o'clock\n", "at 12 o'clock\n", true)]
    #[case::masked_twice("a … b … c\n", "a 1 b 2 c\n", true)]
    #[case::masked_and_wrong("a … b … c\n", "a 1 c\n", false)]
    #[case::masked_end("a …\n", "a 1 2\n", true)]
    #[case::masked_lines("a\n…\nz\n", "a\nb\nc\nz\n", true)]
    #[case::masked_lines_none("a\n…\nz\n", "a\nz\n", true)]
    #[case::masked_lines_and_wrong("a\n…\nz\n", "a\nb\n", false)]
    fn what_is_said_is_printed_or_not(#[case] said: &str, #[case] printed: &str, #[case] is: bool) {
        assert_eq!(is_said(said, printed), is);
    }

    #[test]
    fn lines_are_found_among_others() {
        assert!(begins_with("b …\n", "a\nb 1\nc\n"));
        assert!(!begins_with("b …\nd\n", "a\nb 1\nc\n"));
    }
}
