//! The shapes of objects: which lists are merged by a key, and for custom resources what their definition's structural
//! schema says: what is pruned, what is filled in, what is refused. Types, required fields, enums, bounds of length are
//! checked; CEL rules (`x-kubernetes-validations`), formats and patterns are not evaluated here.

use serde_json::{Map, Value};

use super::{cause::Cause, resources::Resource};

/// The shape of a value somewhere in an object.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Shape<'a> {
    /// Below a resource of Kubernetes' own, in the field of that name.
    Known(&'a Resource, &'a str),
    /// As a structural schema says.
    Custom(&'a Value),
    /// Nothing is known.
    Free,
}

/// How the items of a list are told apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ListKind {
    /// Not at all: the list is one value.
    Atomic,
    /// By themselves.
    Set,
    /// By these of their fields.
    Map(Vec<String>),
}

impl<'a> Shape<'a> {
    /// The shape of a whole object.
    pub(crate) fn of(resource: &'a Resource) -> Self {
        match resource.custom {
            Some(custom) => Self::Custom(&custom.schema),
            None => Self::Known(resource, ""),
        }
    }

    /// The shape of an object's field.
    pub(crate) fn field(self, name: &'a str) -> Self {
        match self {
            Self::Known(resource, _) => Self::Known(resource, name),
            Self::Custom(schema) => match schema["properties"].get(name) {
                Some(field) => Self::Custom(field),
                None if schema["additionalProperties"].is_object() => Self::Custom(&schema["additionalProperties"]),
                None => Self::Free,
            },
            Self::Free => Self::Free,
        }
    }

    /// The shape of a list's items.
    pub(crate) fn items(self) -> Self {
        match self {
            Self::Custom(schema) => Self::Custom(&schema["items"]),
            Self::Known(resource, _) => Self::Known(resource, ""),
            Self::Free => Self::Free,
        }
    }

    /// How a list's items are told apart.
    pub(crate) fn list_kind(self) -> ListKind {
        match self {
            Self::Known(resource, field) => known_list(resource, field),
            Self::Custom(schema) => match schema["x-kubernetes-list-type"].as_str() {
                Some("set") => ListKind::Set,
                Some("map") => ListKind::Map(
                    schema["x-kubernetes-list-map-keys"]
                        .as_array()
                        .into_iter()
                        .flatten()
                        .filter_map(|key| key.as_str().map(ToOwned::to_owned))
                        .collect(),
                ),
                _ => ListKind::Atomic,
            },
            Self::Free => ListKind::Atomic,
        }
    }

    /// Whether an object counts as one value.
    pub(crate) fn is_atomic_object(self) -> bool {
        match self {
            Self::Known(_, field) => matches!(
                field,
                "selector" | "labelSelector" | "matchLabels" | "nodeSelector" | "objectReference" | "involvedObject"
            ),
            Self::Custom(schema) => schema["x-kubernetes-map-type"] == "atomic",
            Self::Free => false,
        }
    }
}

fn known_list(resource: &Resource, field: &str) -> ListKind {
    let map = |keys: &[&str]| ListKind::Map(keys.iter().map(|&key| key.to_owned()).collect());
    match (resource.plural, field) {
        ("endpointslices", _) => ListKind::Atomic,
        (_, "finalizers") => ListKind::Set,
        (_, "ownerReferences") => map(&["uid"]),
        (_, "conditions") | ("nodes", "addresses") => map(&["type"]),
        ("services", "ports") => map(&["port", "protocol"]),
        ("pods" | "deployments", "ports") => map(&["containerPort", "protocol"]),
        ("pods" | "deployments", "volumeMounts") => map(&["mountPath"]),
        (
            "pods" | "deployments",
            "containers" | "initContainers" | "ephemeralContainers" | "volumes" | "env" | "imagePullSecrets",
        )
        | ("serviceaccounts", "imagePullSecrets" | "secrets") => map(&["name"]),
        ("pods", "podIPs" | "hostIPs") => map(&["ip"]),
        _ => ListKind::Atomic,
    }
}

/// Takes away what the schema doesn't know, and fills in its defaults.
pub(crate) fn conform(schema: &Value, object: &mut Value) {
    match object {
        Value::Object(map) => {
            let root = map.contains_key("apiVersion") && map.contains_key("kind") && map.contains_key("metadata");
            let keeps = schema["x-kubernetes-preserve-unknown-fields"] == true || !schema["properties"].is_object();
            if !keeps {
                let is_own = |name: &str| root && matches!(name, "apiVersion" | "kind" | "metadata");
                map.retain(|name, _| is_own(name) || schema["properties"].get(name).is_some());
            }
            fill(schema, map);
            for (name, value) in map.iter_mut() {
                if root && name == "metadata" {
                    continue;
                }
                if let Some(field) = schema["properties"].get(name) {
                    conform(field, value);
                } else if schema["additionalProperties"].is_object() {
                    conform(&schema["additionalProperties"], value);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| conform(&schema["items"], item)),
        _ => {}
    }
}

fn fill(schema: &Value, map: &mut Map<String, Value>) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        if let Some(default) = field.get("default")
            && !map.contains_key(name)
        {
            map.insert(name.clone(), default.clone());
        }
    }
}

/// What the schema refuses about an object, in kube-apiserver's words.
pub(crate) fn refusals(schema: &Value, object: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    check(schema, object, "", &mut causes);
    causes
}

fn check(schema: &Value, value: &Value, path: &str, causes: &mut Vec<Cause>) {
    let at = |name: &str| {
        if path.is_empty() {
            name.to_owned()
        } else {
            format!("{path}.{name}")
        }
    };
    if value.is_null() && schema["nullable"] == true {
        return;
    }
    if let Some(expected) = schema["type"].as_str()
        && !is_of(expected, value)
        && schema["x-kubernetes-int-or-string"] != true
    {
        let found = type_of(value);
        causes.push(Cause::type_invalid(path, &shown(value), expected, found));
        return;
    }
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        causes.push(Cause::not_supported(path, value, allowed));
    }
    if let (Some(least), Some(text)) = (schema["minLength"].as_u64(), value.as_str())
        && (text.chars().count() as u64) < least
    {
        causes.push(Cause::invalid(
            path,
            &shown(value),
            &format!("{path} in body should be at least {least} chars long"),
        ));
    }
    match value {
        Value::Object(map) => {
            for name in schema["required"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
            {
                if !map.contains_key(name) {
                    causes.push(Cause::required(&at(name), ""));
                }
            }
            for (name, value) in map {
                let field = schema["properties"].get(name);
                if let Some(field) = field.or_else(|| schema.get("additionalProperties")) {
                    check(field, value, &at(name), causes);
                }
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                check(&schema["items"], item, &format!("{path}[{index}]"), causes);
            }
        }
        _ => {}
    }
}

fn is_of(expected: &str, value: &Value) -> bool {
    match expected {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        _ => true,
    }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn shown(value: &Value) -> String {
    value.to_string()
}

/// The first field, in a path's form, that the schema doesn't declare: server-side apply refuses it.
pub(crate) fn undeclared(shape: Shape<'_>, value: &Value, path: &str) -> Option<String> {
    let Shape::Custom(schema) = shape else { return None };
    match value {
        Value::Object(map) if schema["properties"].is_object() => map.iter().find_map(|(name, value)| {
            let root = path.is_empty() && matches!(name.as_str(), "apiVersion" | "kind" | "metadata");
            let here = format!("{path}.{name}");
            match schema["properties"].get(name) {
                _ if root => None,
                Some(field) => undeclared(Shape::Custom(field), value, &here),
                None if schema["x-kubernetes-preserve-unknown-fields"] == true => None,
                None => Some(here),
            }
        }),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .find_map(|(index, item)| undeclared(shape.items(), item, &format!("{path}[{index}]"))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn schema() -> Value {
        json!({"type": "object", "required": ["spec"], "properties": {
            "spec": {"type": "object", "required": ["method"], "properties": {
                "method": {"type": "string", "enum": ["a", "b"]},
                "size": {"type": "integer", "default": 3},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                "list": {"type": "array", "items": {"type": "object", "properties": {"name": {"type": "string", "minLength": 1}}}},
            }},
        }})
    }

    #[test]
    fn what_is_unknown_goes_and_what_has_a_default_comes() {
        let mut object = json!({
            "apiVersion": "x/v1", "kind": "X", "metadata": {"name": "n", "labels": {"a": "b"}},
            "spec": {"method": "a", "junk": 1, "labels": {"free": "yes"}, "list": [{"name": "x", "junk": 1}]},
            "junk": {},
        });
        conform(&schema(), &mut object);
        assert_eq!(
            object,
            json!({
                "apiVersion": "x/v1", "kind": "X", "metadata": {"name": "n", "labels": {"a": "b"}},
                "spec": {"method": "a", "size": 3, "labels": {"free": "yes"}, "list": [{"name": "x"}]},
            })
        );
    }

    #[rstest]
    #[case(json!({"spec": {"method": "a"}}), &[])]
    #[case(json!({}), &["spec: Required value"])]
    #[case(json!({"spec": {}}), &["spec.method: Required value"])]
    #[case(json!({"spec": {"method": "z"}}), &[r#"spec.method: Unsupported value: "z": supported values: "a", "b""#])]
    #[case(json!({"spec": {"method": "a", "size": "3"}}), &[r#"spec.size: Invalid value: "3": spec.size in body must be of type integer: "string""#])]
    #[case(json!({"spec": {"method": "a", "list": [{"name": ""}]}}), &[r#"spec.list[0].name: Invalid value: "": spec.list[0].name in body should be at least 1 chars long"#])]
    #[case(json!({"spec": {"method": "a", "labels": {"x": 1}}}), &[r#"spec.labels.x: Invalid value: 1: spec.labels.x in body must be of type string: "integer""#])]
    fn what_is_refused(#[case] object: Value, #[case] expected: &[&str]) {
        let found: Vec<String> = refusals(&schema(), &object).iter().map(ToString::to_string).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_field_without_a_declaration_is_named() {
        let schema = schema();
        let path = |object: Value| undeclared(Shape::Custom(&schema), &object, "");
        assert_eq!(
            path(json!({"kind": "X", "spec": {"junk": 1}})).as_deref(),
            Some(".spec.junk")
        );
        assert_eq!(
            path(json!({"metadata": {"any": 1}, "spec": {"labels": {"any": "x"}}})),
            None
        );
    }
}
