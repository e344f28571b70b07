//! Patches as plain functions over objects: merge patches (RFC 7386), strategic ones as far as clients send them to
//! the kinds served here, and JSON patches (RFC 6902). Server-side apply is `managed`'s.

use serde_json::{Map, Value, json};

use super::status::Status;

/// Patches one object.
///
/// # Errors
/// 400 or 422 for a patch that can't be read or applied, 415 for a form that isn't known.
pub(crate) fn patch(media_type: &str, bytes: &[u8], old: &Value) -> Result<Value, Status> {
    let mut new = old.clone();
    match media_type {
        "application/merge-patch+json" => merge(&mut new, &parse(bytes)?),
        "application/strategic-merge-patch+json" => strategic(&mut new, &parse(bytes)?, ""),
        "application/json-patch+json" => json_patch(&mut new, &parse(bytes)?)?,
        other => return Err(Status::unsupported_media_type(other)),
    }
    Ok(new)
}

fn parse(bytes: &[u8]) -> Result<Value, Status> {
    serde_json::from_slice(bytes).map_err(|error| Status::bad_request(format!("couldn't parse the patch: {error}")))
}

/// RFC 7386.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        patch.clone_into(target);
        return;
    };
    let target = object(target);
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

fn object(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = json!({});
    }
    match value {
        Value::Object(map) => map,
        // Made an object two lines up.
        _ => unreachable!(),
    }
}

/// Kubernetes' strategic merge: as a merge, but lists whose items have a key are merged by it.
fn strategic(target: &mut Value, patch: &Value, field: &str) {
    match patch {
        Value::Object(patch) => {
            if patch.get("$patch").is_some_and(|directive| directive == "replace") {
                *target = json!({});
            }
            let target = object(target);
            for (key, value) in patch {
                if let Some(list) = key.strip_prefix("$deleteFromPrimitiveList/") {
                    if let (Some(own), Some(gone)) =
                        (target.get_mut(list).and_then(Value::as_array_mut), value.as_array())
                    {
                        own.retain(|item| !gone.contains(item));
                    }
                } else if key.starts_with('$') {
                    // Orders and retained keys change nothing that is asked about here.
                } else if value.is_null() {
                    target.remove(key);
                } else {
                    strategic(target.entry(key.clone()).or_insert(Value::Null), value, key);
                }
            }
        }
        Value::Array(items) => strategic_list(target, items, field),
        other => other.clone_into(target),
    }
}

fn strategic_list(target: &mut Value, items: &[Value], field: &str) {
    let merge_key = merge_key(field);
    let (Some(list), Some(merge_key)) = (target.as_array_mut(), merge_key) else {
        *target = items.to_vec().into();
        return;
    };
    for item in items {
        if merge_key.is_empty() {
            if !list.contains(item) {
                list.push(item.clone());
            }
            continue;
        }
        let position = list.iter().position(|own| own[merge_key] == item[merge_key]);
        match (position, item["$patch"] == "delete") {
            (Some(index), true) => {
                list.remove(index);
            }
            (None, true) => {}
            (Some(index), false) => strategic(&mut list[index], item, ""),
            (None, false) => list.push(item.clone()),
        }
    }
}

/// The key that a list's items are merged by; empty for a set of plain values, `None` for a list that is replaced.
fn merge_key(field: &str) -> Option<&'static str> {
    match field {
        "containers"
        | "initContainers"
        | "ephemeralContainers"
        | "volumes"
        | "env"
        | "imagePullSecrets"
        | "secrets"
        | "nodes" => Some("name"),
        "ports" => Some("containerPort"),
        "volumeMounts" => Some("mountPath"),
        "conditions" => Some("type"),
        "ownerReferences" => Some("uid"),
        "finalizers" => Some(""),
        _ => None,
    }
}

/// RFC 6902.
fn json_patch(target: &mut Value, patch: &Value) -> Result<(), Status> {
    let operations = patch
        .as_array()
        .ok_or_else(|| Status::bad_request("a JSON patch is an array"))?;
    for operation in operations {
        let text = |field: &str| operation[field].as_str().unwrap_or_default();
        let place = text("path");
        let failed = || {
            Status::invalid(format!(
                "the server rejected our request due to an error in our request: {place}"
            ))
        };
        let done = match text("op") {
            "add" => add(target, place, operation["value"].clone()),
            "replace" => target
                .pointer_mut(place)
                .map(|value| *value = operation["value"].clone()),
            "remove" => remove(target, place).map(drop),
            "test" => (target.pointer(place) == operation.get("value")).then_some(()),
            "move" => remove(target, text("from")).and_then(|value| add(target, place, value)),
            "copy" => target
                .pointer(text("from"))
                .cloned()
                .and_then(|value| add(target, place, value)),
            _ => None,
        };
        done.ok_or_else(failed)?;
    }
    Ok(())
}

fn parent<'a>(target: &'a mut Value, path: &str) -> Option<(&'a mut Value, String)> {
    let (parent, last) = path.rsplit_once('/')?;
    let last = last.replace("~1", "/").replace("~0", "~");
    Some((target.pointer_mut(parent)?, last))
}

fn add(target: &mut Value, path: &str, value: Value) -> Option<()> {
    let (parent, last) = parent(target, path)?;
    match parent {
        Value::Object(map) => {
            map.insert(last, value);
        }
        Value::Array(items) if last == "-" => items.push(value),
        Value::Array(items) => {
            let index: usize = last.parse().ok().filter(|index| *index <= items.len())?;
            items.insert(index, value);
        }
        _ => return None,
    }
    Some(())
}

fn remove(target: &mut Value, path: &str) -> Option<Value> {
    let (parent, last) = parent(target, path)?;
    match parent {
        Value::Object(map) => map.remove(&last),
        Value::Array(items) => {
            let index: usize = last.parse().ok().filter(|index| *index < items.len())?;
            Some(items.remove(index))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::merge("merge", json!({"a": 1, "b": {"c": 2}}), json!({"a": null, "b": {"d": 3}}), json!({"b": {"c": 2, "d": 3}}))]
    #[case::merge_replaces_lists("merge", json!({"a": [1, 2]}), json!({"a": [3]}), json!({"a": [3]}))]
    #[case::by_name("strategic-merge",
        json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}]}),
        json!({"$setElementOrder/containers": [], "containers": [{"name": "b", "image": "2"}, {"name": "a", "$patch": "delete"}]}),
        json!({"containers": [{"name": "b", "image": "2"}]}))]
    #[case::sets("strategic-merge", json!({"finalizers": ["a"]}), json!({"finalizers": ["a", "b"]}), json!({"finalizers": ["a", "b"]}))]
    #[case::delete_from_set("strategic-merge", json!({"finalizers": ["a", "b"]}), json!({"$deleteFromPrimitiveList/finalizers": ["a"]}), json!({"finalizers": ["b"]}))]
    #[case::atomic_lists("strategic-merge", json!({"args": ["a"]}), json!({"args": ["b"]}), json!({"args": ["b"]}))]
    #[case::json("json", json!({"a": {"b/c": 1}, "l": [1, 3]}),
        json!([{"op": "test", "path": "/a/b~1c", "value": 1}, {"op": "add", "path": "/l/1", "value": 2}, {"op": "add", "path": "/l/-", "value": 4},
            {"op": "remove", "path": "/a/b~1c"}, {"op": "replace", "path": "/l/0", "value": 0}]),
        json!({"a": {}, "l": [0, 2, 3, 4]}))]
    fn patches(#[case] form: &str, #[case] old: Value, #[case] change: Value, #[case] expected: Value) {
        let media_type = format!("application/{form}-patch+json");
        let new = patch(&media_type, change.to_string().as_bytes(), &old).unwrap();
        assert_eq!(new, expected);
    }

    #[rstest]
    #[case("application/merge-patch+json", "{", 400)]
    #[case("application/json-patch+json", r#"[{"op": "remove", "path": "/none"}]"#, 422)]
    #[case("application/json-patch+json", r#"[{"op": "test", "path": "/a", "value": 2}]"#, 422)]
    #[case("text/plain", "", 415)]
    fn refusals(#[case] media_type: &str, #[case] text: &str, #[case] code: u16) {
        let refused = patch(media_type, text.as_bytes(), &json!({"a": 1})).unwrap_err();
        assert_eq!(refused.code(), code);
    }
}
