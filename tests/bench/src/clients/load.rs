//! What the project's own programs print: a JSON object a line.

use anyhow::{Context as _, Result};
use serde_json::Value;

/// The objects that are there so far; what isn't one is passed over.
#[must_use]
pub fn lines(printed: &str) -> Vec<Value> {
    printed
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter(Value::is_object)
        .collect()
}

/// The last object.
///
/// # Errors
/// There is none.
pub fn last_line(printed: &str) -> Result<Value> {
    lines(printed).pop().context("it printed no result")
}

/// A number of an object.
///
/// # Errors
/// It isn't there, or no number.
pub fn number(object: &Value, field: &str) -> Result<f64> {
    object
        .get(field)
        .and_then(Value::as_f64)
        .with_context(|| format!("the result has no number `{field}`: {object}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_last_object_is_the_result() {
        let printed = "{\"open\":50}\nwords\n{\"bytes\":12,\"least\":0.5}\n";
        assert_eq!(lines(printed).len(), 2);
        let last = last_line(printed).unwrap();
        assert_eq!(last, json!({"bytes": 12, "least": 0.5}));
        assert!((number(&last, "least").unwrap() - 0.5).abs() < f64::EPSILON);
        assert!(number(&last, "most").is_err());
        assert!(last_line("12\n").is_err(), "a bare number is no result");
    }
}
