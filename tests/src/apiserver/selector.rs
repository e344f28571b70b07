//! Label and field selectors, parsed as Kubernetes writes them and asked of objects.

use serde_json::Value;

use super::{request::Query, status::Status};

/// Both selectors of a list or watch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<Requirement>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Absent,
}

impl Selector {
    pub(crate) fn of(query: &Query) -> Result<Self, Status> {
        let parse = |key: &str| parse(query.first(key).unwrap_or_default());
        let fields = parse("fieldSelector")?;
        if fields
            .iter()
            .any(|field| matches!(field.test, Test::Exists | Test::Absent))
        {
            return Err(Status::bad_request("invalid field selector"));
        }
        Ok(Self {
            labels: parse("labelSelector")?,
            fields,
        })
    }

    pub(crate) fn matches(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        self.labels
            .iter()
            .all(|requirement| requirement.holds(labels[&requirement.key].as_str()))
            && self.fields.iter().all(|requirement| {
                let field = requirement.key.split('.').fold(object, |value, part| &value[part]);
                requirement.holds(Some(field.as_str().unwrap_or_default()))
            })
    }
}

impl Requirement {
    fn holds(&self, value: Option<&str>) -> bool {
        let among = |list: &[String]| value.is_some_and(|value| list.iter().any(|item| item == value));
        match &self.test {
            Test::In(list) => among(list),
            Test::NotIn(list) => !among(list),
            Test::Exists => value.is_some(),
            Test::Absent => value.is_none(),
        }
    }
}

fn parse(text: &str) -> Result<Vec<Requirement>, Status> {
    split(text)
        .map(|part| {
            requirement(part).ok_or_else(|| Status::bad_request(format!("unable to parse requirement: {part:?}")))
        })
        .collect()
}

/// The parts between commas that aren't in parentheses.
fn split(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_usize;
    text.split(move |char| {
        match char {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        char == ',' && depth == 0
    })
    .map(str::trim)
    .filter(|part| !part.is_empty())
}

fn requirement(part: &str) -> Option<Requirement> {
    let (key, test) = if let Some((key, value)) = part.split_once("!=") {
        (key, Test::NotIn(vec![value.trim().to_owned()]))
    } else if let Some((key, value)) = part.split_once('=') {
        let value = value.strip_prefix('=').unwrap_or(value);
        (key, Test::In(vec![value.trim().to_owned()]))
    } else if let Some((key, list)) = part.split_once(" notin ") {
        (key, Test::NotIn(values(list)?))
    } else if let Some((key, list)) = part.split_once(" in ") {
        (key, Test::In(values(list)?))
    } else if let Some(key) = part.strip_prefix('!') {
        (key, Test::Absent)
    } else {
        (part, Test::Exists)
    };
    let key = key.trim();
    (!key.is_empty() && !key.contains(' ')).then(|| Requirement {
        key: key.to_owned(),
        test,
    })
}

fn values(list: &str) -> Option<Vec<String>> {
    let inner = list.trim().strip_prefix('(')?.strip_suffix(')')?;
    Some(inner.split(',').map(|value| value.trim().to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    #[rstest]
    #[case("", "", true)]
    #[case("app=web", "", true)]
    #[case("app==web,tier", "", true)]
    #[case("app!=web", "", false)]
    #[case("other!=web", "", true)]
    #[case("app in (web, db)", "", true)]
    #[case("app notin (web,db),tier", "", false)]
    #[case("!app", "", false)]
    #[case("!other", "", true)]
    #[case("", "metadata.name=one", true)]
    #[case("", "metadata.name!=one", false)]
    #[case("", "spec.nodeName=n1,metadata.namespace=a", true)]
    #[case("", "spec.nodeName=n2", false)]
    #[case("", "spec.other=", true)]
    fn selection(#[case] labels: &str, #[case] fields: &str, #[case] selected: bool) {
        let object = json!({
            "metadata": {"name": "one", "namespace": "a", "labels": {"app": "web", "tier": "front"}},
            "spec": {"nodeName": "n1"},
        });
        let selector = Selector {
            labels: parse(labels).unwrap(),
            fields: parse(fields).unwrap(),
        };
        assert_eq!(selector.matches(&object), selected);
    }

    #[rstest]
    #[case("=a")]
    #[case("a in b")]
    #[case("a b")]
    fn bad_ones_are_refused(#[case] text: &str) {
        assert_eq!(parse(text).unwrap_err().code(), 400);
    }
}
