//! Kubernetes objects as plain data, and in what two sets of them differ.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// A set of objects, each once.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Objects(BTreeMap<String, Value>);

impl Objects {
    /// Reads a JSON list of objects.
    ///
    /// # Errors
    /// Where it isn't one, or an object has no name, or two have the same.
    pub(crate) fn parse(list: &str) -> Result<Self> {
        let list: Vec<Value> = serde_json::from_str(list).context("what was rendered isn't a list of objects")?;
        let mut objects = BTreeMap::new();
        for object in list {
            let name = name(&object).with_context(|| format!("an object without a kind or a name: {object}"))?;
            ensure!(objects.insert(name.clone(), object).is_none(), "{name} is there twice");
        }
        Ok(Self(objects))
    }

    /// Forgets those of a kind.
    pub(crate) fn leave_out(&mut self, kind: &str) {
        self.0.retain(|_, object| object["kind"] != kind);
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Each with the name that tells it from all others.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(name, object)| (name.as_str(), object))
    }

    /// The arguments of every container that a workload among them runs.
    pub(crate) fn started(&self) -> impl Iterator<Item = Vec<String>> {
        let pods = self.0.values().map(|object| &object["spec"]["template"]["spec"]);
        pods.flat_map(|pod| [&pod["initContainers"], &pod["containers"]])
            .filter_map(Value::as_array)
            .flatten()
            .filter_map(|container| container["args"].as_array())
            .map(|arguments| {
                let words = arguments.iter().filter_map(Value::as_str);
                words.map(str::to_owned).collect()
            })
    }

    /// A line for each thing in which they differ from others; none where both are the same.
    pub(crate) fn differences(&self, others: &Self) -> Vec<String> {
        let mut differences = Vec::new();
        let names: BTreeSet<&String> = self.0.keys().chain(others.0.keys()).collect();
        for name in names {
            match (self.0.get(name), others.0.get(name)) {
                (Some(this), Some(other)) => differ(name, this, other, &mut differences),
                (Some(_), None) => differences.push(format!("{name} is only in the first")),
                (None, _) => differences.push(format!("{name} is only in the second")),
            }
        }
        differences
    }
}

/// Kind, namespace and name, and the group and version, which a kind may change.
fn name(object: &Value) -> Option<String> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let metadata = object.get("metadata")?;
    let (version, kind) = (text(object.get("apiVersion")?)?, text(object.get("kind")?)?);
    let name = text(metadata.get("name")?)?;
    Some(match metadata.get("namespace") {
        Some(namespace) => format!("{version} {kind} {}/{name}", text(namespace)?),
        None => format!("{version} {kind} {name}"),
    })
}

fn differ(path: &str, this: &Value, other: &Value, differences: &mut Vec<String>) {
    match (this, other) {
        (Value::Object(this), Value::Object(other)) => {
            let keys: BTreeSet<&String> = this.keys().chain(other.keys()).collect();
            for key in keys {
                let of = |object: &serde_json::Map<String, Value>| object.get(key).cloned().unwrap_or_default();
                differ(&format!("{path} .{key}"), &of(this), &of(other), differences);
            }
        }
        (Value::Array(this), Value::Array(other)) if this.len() == other.len() => {
            for (index, (this, other)) in this.iter().zip(other).enumerate() {
                differ(&format!("{path} [{index}]"), this, other, differences);
            }
        }
        _ if this == other => {}
        _ => differences.push(format!("{path}: {this} and {other}")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn objects(list: &Value) -> Objects {
        Objects::parse(&list.to_string()).unwrap()
    }

    fn config(name: &str, data: &Value) -> Value {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "n"}, "data": data})
    }

    #[test]
    fn order_makes_no_difference() {
        let (a, b) = (config("a", &json!({"x": 1})), config("b", &json!({})));
        assert_eq!(
            objects(&json!([a, b])).differences(&objects(&json!([b, a]))),
            Vec::<String>::new()
        );
    }

    #[test]
    fn each_difference_is_named() {
        let first = objects(&json!([
            config("a", &json!({"x": [1, 2], "y": 1})),
            config("b", &json!({}))
        ]));
        let second = objects(&json!([
            config("a", &json!({"x": [1, 3], "z": [1]})),
            config("c", &json!({}))
        ]));
        assert_eq!(
            first.differences(&second),
            [
                "v1 ConfigMap n/a .data .x [1]: 2 and 3",
                "v1 ConfigMap n/a .data .y: 1 and null",
                "v1 ConfigMap n/a .data .z: null and [1]",
                "v1 ConfigMap n/b is only in the first",
                "v1 ConfigMap n/c is only in the second",
            ]
        );
    }

    #[test]
    fn what_workloads_start_is_found() {
        let set = json!({
            "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "d"},
            "spec": {"template": {"spec": {
                "initContainers": [{"args": ["a", "--b=c"]}],
                "containers": [{"args": ["d"]}, {"image": "x"}],
            }}},
        });
        let started: Vec<_> = objects(&json!([set, config("a", &json!({}))])).started().collect();
        assert_eq!(started, [vec!["a", "--b=c"], vec!["d"]]);
    }

    #[test]
    fn an_object_is_there_once_and_has_a_name() {
        let twice = json!([config("a", &json!({})), config("a", &json!({}))]);
        assert!(Objects::parse(&twice.to_string()).is_err());
        assert!(Objects::parse(r#"[{"kind": "List", "apiVersion": "v1"}]"#).is_err());
    }
}
