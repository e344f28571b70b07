//! Numbers as people read them.

/// With as many places as say something: `41,230`, `915`, `17.7`, `2.91`.
#[must_use]
pub fn figure(value: f64) -> String {
    let size = value.abs();
    if !size.is_finite() {
        return "-".to_owned();
    }
    if size >= 1000.0 {
        return grouped(value);
    }
    let places = if size >= 99.95 {
        0
    } else if size >= 9.995 {
        1
    } else {
        2
    };
    format!("{value:.places$}")
}

fn grouped(value: f64) -> String {
    let text = format!("{value:.0}");
    let (sign, digits) = text
        .strip_prefix('-')
        .map_or(("", text.as_str()), |digits| ("-", digits));
    let mut grouped = String::from(sign);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(41_229.6, "41,230")]
    #[case(1_234_567.0, "1,234,567")]
    #[case(-1_234.0, "-1,234")]
    #[case(1_000.0, "1,000")]
    #[case(999.4, "999")]
    #[case(99.96, "100")]
    #[case(17.66, "17.7")]
    #[case(9.996, "10.0")]
    #[case(2.914, "2.91")]
    #[case(0.0, "0.00")]
    #[case(f64::NAN, "-")]
    fn a_figure_has_the_places_that_say_something(#[case] value: f64, #[case] expected: &str) {
        assert_eq!(figure(value), expected);
    }
}
