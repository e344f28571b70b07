//! The agent's metrics, read back from the text format.

/// One scrape.
#[derive(Debug, Clone)]
pub struct Metrics {
    text: String,
}

impl Metrics {
    pub(crate) fn new(text: String) -> Self {
        Self { text }
    }

    /// The sum of the samples of `name` that have all of `labels`.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.text.lines().filter_map(|line| sample(line, name, labels)).sum()
    }

    /// As scraped.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }
}

fn sample(line: &str, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let rest = line.strip_prefix(name)?;
    let (own, value) = match rest.strip_prefix('{') {
        Some(rest) => rest.split_once('}')?,
        None if rest.starts_with(' ') => ("", rest),
        None => return None,
    };
    let has = |(key, value): &(&str, &str)| own.split(',').any(|label| label == format!("{key}=\"{value}\""));
    labels
        .iter()
        .all(has)
        .then(|| value.split_whitespace().next()?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::Metrics;

    #[test]
    fn samples_are_summed_by_name_and_label() {
        let text =
            "# TYPE a counter\na_total{r=\"x\",c=\"0\"} 2\na_total{r=\"x\",c=\"1\"} 3\na_total{r=\"y\"} 7\nb 1.5\n";
        let metrics = Metrics::new(text.to_owned());
        assert!((metrics.sum("a_total", &[("r", "x")]) - 5.0).abs() < 1e-9);
        assert!((metrics.sum("a_total", &[]) - 12.0).abs() < 1e-9);
        assert!((metrics.sum("b", &[]) - 1.5).abs() < 1e-9);
        assert!(metrics.sum("a", &[]).abs() < 1e-9);
    }
}
