//! Lengths of time as Kubernetes writes them, such as `1h30m`.

use std::time::Duration;

use jiff::{SignedDuration, fmt::friendly::SpanParser};

use super::spec::SpecError;

/// The form, as the resource's schema has it: hours, minutes, seconds and milliseconds in this order, at most five
/// digits each. Within it, Go's `time.ParseDuration` and jiff agree.
const UNITS: [&str; 4] = ["h", "m", "s", "ms"];
const DIGITS: usize = 5;

/// Parses a length of time that isn't zero.
///
/// # Errors
/// Names the field, and the form.
pub(crate) fn parse(field: &'static str, text: &str) -> Result<Duration, SpecError> {
    is_of_the_form(text)
        .then(|| SpanParser::new().parse_duration(text).ok())
        .flatten()
        .filter(SignedDuration::is_positive)
        .and_then(|length| Duration::try_from(length).ok())
        .ok_or_else(|| SpecError::Duration {
            field,
            value: text.chars().take(32).collect(),
        })
}

fn is_of_the_form(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_digit())
        && text
            .split(|letter: char| !letter.is_ascii_digit())
            .all(|digits| digits.len() <= DIGITS)
        && text
            .split(|letter: char| letter.is_ascii_digit())
            .filter(|unit| !unit.is_empty())
            .all(|unit| UNITS.contains(&unit))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("90s", 90_000)]
    #[case("15m", 900_000)]
    #[case("1h30m", 5_400_000)]
    #[case("1h90m5s", 9_005_000)]
    #[case("250ms", 250)]
    #[case("99999h", 359_996_400_000)]
    fn reads(#[case] text: &str, #[case] millis: u64) {
        assert_eq!(parse("spec.ttl", text).unwrap(), Duration::from_millis(millis));
    }

    #[rstest]
    #[case("")]
    #[case("0s")]
    #[case("0h0m")]
    #[case("-5m")]
    #[case("5")]
    #[case("1.5h")]
    #[case("1d")]
    #[case("1 h")]
    #[case("1h 30m")]
    #[case("30m1h")]
    #[case("1h1h")]
    #[case("1hour")]
    #[case("PT1H")]
    #[case("100000s")]
    #[case("5m ago")]
    #[case("00:05:00")]
    fn refuses_by_name(#[case] text: &str) {
        let error = parse("spec.ttl", text).unwrap_err().to_string();
        assert!(error.starts_with("spec.ttl"), "{error}");
    }
}
