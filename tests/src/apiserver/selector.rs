//! Label and field selectors, parsed as Kubernetes writes them and asked of objects.

use serde_json::Value;

use super::{request::Query, resources::Resource, status::Status};

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
    Greater(i64),
    Less(i64),
}

impl Selector {
    pub(crate) fn of(resource: &Resource, query: &Query) -> Result<Self, Status> {
        let parse = |key: &str| parse(query.first(key).unwrap_or_default());
        let fields = parse("fieldSelector")?;
        if fields
            .iter()
            .any(|field| !matches!(field.test, Test::In(_) | Test::NotIn(_)))
        {
            return Err(Status::bad_request("invalid field selector"));
        }
        for field in &fields {
            supported(resource, &field.key)?;
        }
        Ok(Self {
            labels: parse("labelSelector")?,
            fields,
        })
    }

    /// Whether it selects everything.
    pub(crate) fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub(crate) fn matches(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        self.labels
            .iter()
            .all(|requirement| requirement.holds(labels[&requirement.key].as_str()))
            && self.fields.iter().all(|requirement| {
                let field = requirement.key.split('.').fold(object, |value, part| &value[part]);
                let text = match field {
                    Value::String(text) => text.clone(),
                    Value::Bool(flag) => flag.to_string(),
                    _ => String::new(),
                };
                requirement.holds(Some(&text))
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
            Test::Greater(bound) => number(value).is_some_and(|number| number > *bound),
            Test::Less(bound) => number(value).is_some_and(|number| number < *bound),
        }
    }
}

fn number(value: Option<&str>) -> Option<i64> {
    value?.parse().ok()
}

/// Refuses a field that the resource can't be selected by, in kube-apiserver's words.
fn supported(resource: &Resource, field: &str) -> Result<(), Status> {
    let own: &[&str] = match resource.plural {
        "pods" => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ],
        "nodes" => &["spec.unschedulable"],
        "namespaces" => &["status.phase"],
        "secrets" => &["type"],
        "services" => &["spec.clusterIP", "spec.type"],
        "certificatesigningrequests" => &["spec.signerName"],
        "events" if resource.group.is_empty() => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "type",
        ],
        _ => &[],
    };
    let custom = resource
        .custom
        .is_some_and(|custom| custom.selectable.iter().any(|own| own == field));
    if matches!(field, "metadata.name" | "metadata.namespace") || own.contains(&field) || custom {
        return Ok(());
    }
    Err(if own.is_empty() && resource.custom.is_none() {
        Status::bad_request(format!(
            "{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
        ))
    } else {
        Status::bad_request(format!("field label not supported: {field}"))
    })
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
    } else if let Some((key, bound)) = part.split_once('>') {
        (key, Test::Greater(bound.trim().parse().ok()?))
    } else if let Some((key, bound)) = part.split_once('<') {
        (key, Test::Less(bound.trim().parse().ok()?))
    } else if let Some((key, bound)) = part.split_once(" gt ") {
        (key, Test::Greater(bound.trim().parse().ok()?))
    } else if let Some((key, bound)) = part.split_once(" lt ") {
        (key, Test::Less(bound.trim().parse().ok()?))
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
    #[case("rank>2", "", true)]
    #[case("rank > 3", "", false)]
    #[case("rank lt 4", "", true)]
    #[case("app>1", "", false)]
    #[case("", "metadata.name=one", true)]
    #[case("", "metadata.name!=one", false)]
    #[case("", "spec.nodeName=n1,metadata.namespace=a", true)]
    #[case("", "spec.nodeName=n2", false)]
    #[case("", "spec.other=", true)]
    fn selection(#[case] labels: &str, #[case] fields: &str, #[case] selected: bool) {
        let object = json!({
            "metadata": {"name": "one", "namespace": "a", "labels": {"app": "web", "tier": "front", "rank": "3"}},
            "spec": {"nodeName": "n1"},
        });
        let selector = Selector {
            labels: parse(labels).unwrap(),
            fields: parse(fields).unwrap(),
        };
        assert_eq!(selector.matches(&object), selected);
    }

    #[rstest]
    #[case("pods", "spec.nodeName", true)]
    #[case("pods", "spec.other", false)]
    #[case("configmaps", "metadata.namespace", true)]
    #[case("configmaps", "data.x", false)]
    fn fields_that_are_known(#[case] plural: &str, #[case] field: &str, #[case] known: bool) {
        let resource = Resource::find("", "v1", plural).unwrap();
        assert_eq!(supported(resource, field).is_ok(), known);
    }

    #[rstest]
    #[case("a>b")]
    #[case("=a")]
    #[case("a in b")]
    #[case("a b")]
    fn bad_ones_are_refused(#[case] text: &str) {
        assert_eq!(parse(text).unwrap_err().code(), 400);
    }
}
