//! Tables as kubectl prints them, and lengths of time as it shortens them.

use std::{
    io::{self, Write},
    time::Duration,
};

use jiff::Timestamp;
use tabwriter::TabWriter;

/// What stands where there is nothing.
pub(super) const NONE: &str = "<none>";

/// Writes rows under their headers, where there are headers, in columns.
pub(super) fn write(out: &mut impl Write, headers: Option<&[&str]>, rows: &[Vec<String>]) -> io::Result<()> {
    let mut table = TabWriter::new(Vec::new()).padding(3).minwidth(4);
    if let Some(headers) = headers {
        writeln!(table, "{}", headers.join("\t"))?;
    }
    for row in rows {
        let cells: Vec<String> = row.iter().map(|cell| printable(cell)).collect();
        writeln!(table, "{}", cells.join("\t"))?;
    }
    let text = table
        .into_inner()
        .map_err(|error| io::Error::other(error.to_string()))?;
    for line in String::from_utf8_lossy(&text).lines() {
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// Without what would move the cursor or part the columns: the text is an object's, and so may be a stranger's.
pub(super) fn printable(text: &str) -> String {
    if text.is_empty() {
        return NONE.to_owned();
    }
    text.chars().map(shown).collect()
}

/// A letter, or U+FFFD in place of one that would move the cursor, speak to the terminal, or turn what stands around it:
/// the marks of direction make a line read otherwise than it is (CVE-2021-42574).
pub(super) fn shown(letter: char) -> char {
    let turns =
        matches!(letter, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let parts = matches!(letter, '\u{2028}' | '\u{2029}');
    if letter.is_control() || turns || parts {
        '\u{fffd}'
    } else {
        letter
    }
}

/// How long ago something was.
pub(super) fn ago(then: Option<Timestamp>, now: Timestamp) -> String {
    then.map_or_else(String::new, |then| short(between(then, now)))
}

/// In how long something will be, or that it has been.
pub(super) fn until(then: Option<Timestamp>, now: Timestamp) -> String {
    match then {
        None => "never".to_owned(),
        Some(then) if then <= now => format!("{} ago", short(between(then, now))),
        Some(then) => short(between(now, then)),
    }
}

fn between(earlier: Timestamp, later: Timestamp) -> Duration {
    Duration::try_from(later.duration_since(earlier)).unwrap_or_default()
}

/// As `k8s.io/apimachinery/pkg/util/duration` has it, of whose steps the two coarsest units are kept.
pub(super) fn short(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let pair = |large: u64, unit: char, small: u64, small_unit: char| {
        if small == 0 {
            format!("{large}{unit}")
        } else {
            format!("{large}{unit}{small}{small_unit}")
        }
    };
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=599 => pair(minutes, 'm', seconds % 60, 's'),
        600..=10_799 => format!("{minutes}m"),
        10_800..=28_799 => pair(hours, 'h', minutes % 60, 'm'),
        28_800..=172_799 => format!("{hours}h"),
        172_800..=691_199 => pair(days, 'd', hours % 24, 'h'),
        _ => format!("{days}d"),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(0, "0s")]
    #[case(119, "119s")]
    #[case(120, "2m")]
    #[case(125, "2m5s")]
    #[case(3600, "60m")]
    #[case(10_800, "3h")]
    #[case(11_000, "3h3m")]
    #[case(90_000, "25h")]
    #[case(180_000, "2d2h")]
    #[case(864_000, "10d")]
    fn lengths(#[case] seconds: u64, #[case] expected: &str) {
        assert_eq!(short(Duration::from_secs(seconds)), expected);
    }

    #[test]
    fn moments() {
        let at = |second| Timestamp::from_second(second).unwrap();
        assert_eq!(ago(None, at(9)), "");
        assert_eq!(ago(Some(at(4)), at(9)), "5s");
        assert_eq!(ago(Some(at(9)), at(4)), "0s", "clocks differ");
        assert_eq!(until(None, at(9)), "never");
        assert_eq!(until(Some(at(9)), at(4)), "5s");
        assert_eq!(until(Some(at(4)), at(9)), "5s ago");
    }

    #[test]
    fn columns_stand_below_each_other_and_nothing_moves_the_cursor() {
        let mut out = Vec::new();
        let rows = [
            vec!["support".to_owned(), "a\u{1b}[2J\tb".to_owned()],
            vec![String::new(), "c\u{202e}\u{9b}".to_owned()],
        ];
        write(&mut out, Some(&["NAMESPACE", "NAME"]), &rows).unwrap();
        let expected = "NAMESPACE   NAME\nsupport     a\u{fffd}[2J\u{fffd}b\n<none>      c\u{fffd}\u{fffd}\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
