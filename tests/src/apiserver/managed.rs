//! Who manages which field: server-side apply with its conflicts, and what every other write does to ownership. As
//! kube-apiserver does it, on the shapes known here; plain functions over objects.

use serde_json::{Value, json};

use super::{
    cause::Cause,
    field_set::{FieldSet, item_key, step, step_shape},
    resources::Resource,
    schema::{ListKind, Shape, undeclared},
    status::Status,
    store::now,
};

/// Who writes, and through which subresource (empty: the object itself).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Writer<'a> {
    pub(crate) manager: &'a str,
    pub(crate) subresource: &'a str,
}

/// One entry of `metadata.managedFields`.
#[derive(Debug, Clone)]
struct Entry {
    manager: String,
    operation: &'static str,
    subresource: String,
    api_version: Value,
    time: Value,
    fields: FieldSet,
}

impl Entry {
    fn is_of(&self, writer: Writer<'_>, operation: &str) -> bool {
        self.manager == writer.manager && self.subresource == writer.subresource && self.operation == operation
    }
}

/// Lays an applied configuration over an object: its fields are taken over, those that the same manager applied
/// before and applies no longer go away, unless somebody else owns them too.
///
/// # Errors
/// 409 for a field that another manager owns with another value, unless `force`d; 500 for a field that the schema
/// doesn't declare, as kube-apiserver has it.
pub(crate) fn apply(
    resource: &Resource,
    old: &Value,
    applied: &Value,
    writer: Writer<'_>,
    force: bool,
) -> Result<Value, Status> {
    let shape = Shape::of(resource);
    let untyped = |problem: String| {
        let name = applied["metadata"]["name"].as_str().unwrap_or_default();
        Status::untyped(format!(
            "failed to create typed patch object ({}/{name}; {}, Kind={}): {problem}",
            applied["metadata"]["namespace"].as_str().unwrap_or_default(),
            resource.api_version(),
            resource.kind
        ))
    };
    if let Some(path) = undeclared(shape, applied, "") {
        return Err(untyped(format!("{path}: field not declared in schema")));
    }
    let fields = FieldSet::of_applied(shape, applied).map_err(untyped)?;
    let mut entries = entries(old);
    let mut new = old.clone();
    merge(shape, &mut new, &without_unmanaged(applied));

    let mut causes = Vec::new();
    for entry in entries.iter_mut().filter(|entry| !entry.is_of(writer, "Apply")) {
        let lost = contested(shape, &entry.fields, &fields, old, &new);
        if lost.is_empty() {
            continue;
        }
        if force {
            entry.fields = entry.fields.without(&lost);
        } else {
            conflicts(entry, &lost, &mut String::new(), &mut causes);
        }
    }
    if !causes.is_empty() {
        return Err(Status::apply_conflict(&causes));
    }
    let mine = entries.iter().position(|entry| entry.is_of(writer, "Apply"));
    let before = mine.map(|index| entries.remove(index));
    let kept = entries
        .iter()
        .fold(fields.clone(), |all, entry| all.with(&entry.fields));
    if let Some(before) = &before {
        prune(shape, &mut new, &before.fields, &kept);
    }
    if !fields.is_empty() {
        let time = match &before {
            Some(before) if before.fields == fields && same_but_for_managers(old, &new) => before.time.clone(),
            _ => json!(now()),
        };
        entries.push(Entry {
            manager: writer.manager.to_owned(),
            operation: "Apply",
            subresource: writer.subresource.to_owned(),
            api_version: json!(resource.api_version()),
            time,
            fields,
        });
    }
    write(&mut new, entries);
    Ok(new)
}

/// Notes who made `new` of `old` by any other write. What was changed is the writer's from then on.
pub(crate) fn note_update(resource: &Resource, old: &Value, new: &mut Value, writer: Writer<'_>) {
    let shape = Shape::of(resource);
    let changed = FieldSet::changed(shape, old, new);
    // kubectl rewrites the list itself where it goes over to server-side apply.
    let rewritten = new["metadata"]["managedFields"].is_array()
        && new["metadata"]["managedFields"] != old["metadata"]["managedFields"];
    let mut entries = entries(if rewritten { new } else { old });
    let mut own = false;
    for entry in &mut entries {
        if entry.is_of(writer, "Update") {
            own = true;
            if !changed.is_empty() {
                entry.fields = entry.fields.with(&changed);
                entry.time = json!(now());
                entry.api_version = json!(resource.api_version());
            }
        } else {
            entry.fields = entry.fields.without(&changed);
        }
        entry.fields = entry.fields.present_in(shape, new);
    }
    if !own && !changed.is_empty() {
        entries.push(Entry {
            manager: writer.manager.to_owned(),
            operation: "Update",
            subresource: writer.subresource.to_owned(),
            api_version: json!(resource.api_version()),
            time: json!(now()),
            fields: changed,
        });
    }
    write(new, entries);
}

fn entries(object: &Value) -> Vec<Entry> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    object["metadata"]["managedFields"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|entry| Entry {
            manager: text(&entry["manager"]),
            operation: if entry["operation"] == "Apply" {
                "Apply"
            } else {
                "Update"
            },
            subresource: text(&entry["subresource"]),
            api_version: entry["apiVersion"].clone(),
            time: entry["time"].clone(),
            fields: FieldSet::parse(&entry["fieldsV1"]),
        })
        .collect()
}

fn write(object: &mut Value, mut entries: Vec<Entry>) {
    entries.retain(|entry| !entry.fields.is_empty());
    entries.sort_by_key(|entry| entry.operation);
    let list: Vec<Value> = entries
        .iter()
        .map(|entry| {
            let mut value = json!({
                "manager": entry.manager,
                "operation": entry.operation,
                "apiVersion": entry.api_version,
                "time": entry.time,
                "fieldsType": "FieldsV1",
                "fieldsV1": entry.fields.to_value(),
            });
            if !entry.subresource.is_empty() {
                value["subresource"] = json!(entry.subresource);
            }
            value
        })
        .collect();
    let Some(metadata) = object["metadata"].as_object_mut() else {
        return;
    };
    if list.is_empty() {
        metadata.remove("managedFields");
    } else {
        metadata.insert("managedFields".to_owned(), Value::Array(list));
    }
}

fn same_but_for_managers(old: &Value, new: &Value) -> bool {
    let bare = |object: &Value| {
        let mut object = object.clone();
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.remove("managedFields");
        }
        object
    };
    bare(old) == bare(new)
}

fn without_unmanaged(applied: &Value) -> Value {
    let mut applied = applied.clone();
    if let Some(metadata) = applied["metadata"].as_object_mut() {
        metadata.remove("managedFields");
    }
    applied
}

fn merge(shape: Shape<'_>, target: &mut Value, applied: &Value) {
    match (target, applied) {
        (Value::Object(target), Value::Object(applied)) if !shape.is_atomic_object() => {
            for (name, value) in applied {
                match target.get_mut(name) {
                    Some(own) => merge(shape.field(name), own, value),
                    None => {
                        target.insert(name.clone(), value.clone());
                    }
                }
            }
        }
        (Value::Array(target), Value::Array(items)) if shape.list_kind() != ListKind::Atomic => {
            let kind = shape.list_kind();
            for item in items {
                let key = item_key(&kind, item);
                match target.iter_mut().find(|own| item_key(&kind, own) == key) {
                    Some(own) => merge(shape.items(), own, item),
                    None => target.push(item.clone()),
                }
            }
        }
        (target, applied) => applied.clone_into(target),
    }
}

/// What `owned` and `applied` both hold and the application changes.
fn contested(shape: Shape<'_>, owned: &FieldSet, applied: &FieldSet, old: &Value, new: &Value) -> FieldSet {
    let mut lost = FieldSet {
        // A container, or an item that is there for both, is shared; a leaf with another value isn't.
        itself: owned.itself && applied.itself && applied.children.is_empty() && old != new,
        ..FieldSet::default()
    };
    for (key, child) in &owned.children {
        let (Some(theirs), Some(before), Some(after)) =
            (applied.children.get(key), step(shape, old, key), step(shape, new, key))
        else {
            continue;
        };
        let below = contested(step_shape(shape, key), child, theirs, before, after);
        if !below.is_empty() {
            lost.children.insert(key.clone(), below);
        }
    }
    lost
}

fn conflicts(entry: &Entry, lost: &FieldSet, path: &mut String, causes: &mut Vec<Cause>) {
    if lost.itself {
        let through = if entry.subresource.is_empty() {
            String::new()
        } else {
            format!(" with subresource {:?}", entry.subresource)
        };
        let using = if entry.operation == "Update" {
            format!(" using {}", entry.api_version.as_str().unwrap_or_default())
        } else {
            String::new()
        };
        causes.push(Cause::manager_conflict(
            path,
            &format!("conflict with {:?}{through}{using}", entry.manager),
        ));
    }
    for (key, child) in &lost.children {
        let length = path.len();
        path.push_str(&shown(key));
        conflicts(entry, child, path, causes);
        path.truncate(length);
    }
}

/// A step as kube-apiserver prints it: `.name`, `[key="value"]`.
fn shown(key: &str) -> String {
    if let Some(name) = key.strip_prefix("f:") {
        return format!(".{name}");
    }
    if let Some(value) = key.strip_prefix("v:") {
        return format!("[={value}]");
    }
    let fields: Value = serde_json::from_str(key.trim_start_matches("k:")).unwrap_or_default();
    let parts: Vec<String> = fields
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    format!("[{}]", parts.join(","))
}

/// Takes away what was applied before and nobody holds any more.
fn prune(shape: Shape<'_>, value: &mut Value, before: &FieldSet, kept: &FieldSet) {
    for (key, child) in &before.children {
        match kept.children.get(key) {
            None => remove(shape, value, key),
            Some(kept) => {
                let below = step_shape(shape, key);
                let place = if let Some(name) = key.strip_prefix("f:") {
                    value.get_mut(name)
                } else {
                    let kind = shape.list_kind();
                    value.as_array_mut().and_then(|items| {
                        items
                            .iter_mut()
                            .find(|item| item_key(&kind, item).as_deref() == Ok(key))
                    })
                };
                if let Some(place) = place {
                    prune(below, place, child, kept);
                }
            }
        }
    }
}

fn remove(shape: Shape<'_>, value: &mut Value, key: &str) {
    match value {
        Value::Object(map) => {
            map.remove(key.trim_start_matches("f:"));
        }
        Value::Array(items) => {
            let kind = shape.list_kind();
            items.retain(|item| item_key(&kind, item).as_deref() != Ok(key));
        }
        _ => {}
    }
}
