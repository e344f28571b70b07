//! Objects as rows of a `Table`, for clients that print what the server lays out: kubectl's `get`. Columns only
//! for what people look at here.

use serde_json::{Value, json};

use super::resources::Resource;

/// True if the client prefers a table to the objects.
pub(crate) fn wanted(accept: &str) -> bool {
    let first = accept.split(',').next().unwrap_or_default();
    first.contains("as=Table") && first.split(';').any(|part| part.trim() == "v=v1")
}

/// A table of these objects.
pub(crate) fn table(resource: &Resource, objects: &[&Value], metadata: &Value) -> Value {
    let mut columns = vec![json!({
        "name": "Name", "type": "string", "format": "name", "priority": 0,
        "description": "Name must be unique within a namespace.",
    })];
    for column in printer_columns(resource) {
        columns.push(json!({
            "name": column["name"], "type": column["type"], "format": column["format"].as_str().unwrap_or_default(),
            "priority": column["priority"].as_i64().unwrap_or(0),
            "description": column["description"].as_str().unwrap_or_default(),
        }));
    }
    columns.extend(
        own_columns(resource)
            .iter()
            .map(|(name, kind)| json!({"name": name, "type": kind, "format": "", "priority": 0, "description": ""})),
    );
    if has_age(resource) {
        columns.push(json!({
            "name": "Age", "type": "string", "format": "", "priority": 0, "description": "",
        }));
    }
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": columns,
        "rows": objects.iter().map(|object| row(resource, object)).collect::<Vec<_>>(),
    })
}

fn row(resource: &Resource, object: &Value) -> Value {
    let mut cells = vec![object["metadata"]["name"].clone()];
    cells.extend(printer_columns(resource).map(|column| printed(column, object)));
    cells.extend(own_cells(resource, object));
    if has_age(resource) {
        cells.push(json!(age(object)));
    }
    json!({
        "cells": cells,
        "object": {
            "kind": "PartialObjectMetadata",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": object["metadata"],
        },
    })
}

/// Whether a table ends with the age: a definition that names columns of its own names that as well, or has none.
fn has_age(resource: &Resource) -> bool {
    printer_columns(resource).next().is_none()
}

/// The columns of a custom resource's definition.
fn printer_columns(resource: &Resource) -> impl Iterator<Item = &Value> {
    let columns = resource.custom.and_then(|custom| custom.columns.as_array());
    columns.into_iter().flatten()
}

/// What a column shows of an object: a path of fields, with at most one item of a list chosen by a field of it, as in
/// `.status.conditions[?(@.type=="Ready")].status`. Other JSON paths show nothing.
fn printed(column: &Value, object: &Value) -> Value {
    let path = column["jsonPath"].as_str().unwrap_or_default();
    let fields = |value: &Value, path: &str| {
        let parts = path.split('.').filter(|part| !part.is_empty());
        parts.fold(value.clone(), |value, part| value[part].clone())
    };
    let found = match path.split_once("[?(@.") {
        None => fields(object, path),
        Some((list, rest)) => rest
            .split_once(")]")
            .and_then(|(test, after)| {
                let (field, wanted) = test.split_once("==")?;
                let wanted = wanted.trim().trim_matches(|quote| quote == '"' || quote == '\'');
                let items = fields(object, list);
                let item = items.as_array()?.iter().find(|item| item[field.trim()] == wanted)?;
                Some(fields(item, after))
            })
            .unwrap_or_default(),
    };
    match (column["type"].as_str(), &found) {
        (Some("date"), Value::String(time)) => json!(age_of(time)),
        _ => found,
    }
}

fn own_columns(resource: &Resource) -> &'static [(&'static str, &'static str)] {
    match resource.plural {
        "pods" => &[("Ready", "string"), ("Status", "string"), ("Restarts", "integer")],
        "configmaps" => &[("Data", "integer")],
        "secrets" => &[("Type", "string"), ("Data", "integer")],
        "namespaces" => &[("Status", "string")],
        _ => &[],
    }
}

fn own_cells(resource: &Resource, object: &Value) -> Vec<Value> {
    let count = |field: &str| json!(object[field].as_object().map_or(0, serde_json::Map::len));
    match resource.plural {
        "pods" => {
            let containers = object["spec"]["containers"].as_array().map_or(0, Vec::len);
            let ready = object["status"]["containerStatuses"].as_array().map_or(0, |statuses| {
                statuses.iter().filter(|status| status["ready"] == true).count()
            });
            vec![
                json!(format!("{ready}/{containers}")),
                object["status"]["phase"].clone(),
                json!(0),
            ]
        }
        "configmaps" => vec![count("data")],
        "secrets" => vec![object["type"].clone(), count("data")],
        "namespaces" => vec![object["status"]["phase"].clone()],
        _ => Vec::new(),
    }
}

fn age(object: &Value) -> String {
    age_of(object["metadata"]["creationTimestamp"].as_str().unwrap_or_default())
}

fn age_of(time: &str) -> String {
    time.parse::<jiff::Timestamp>().map_or_else(
        |_| "<unknown>".to_owned(),
        |created| {
            let seconds = jiff::Timestamp::now().duration_since(created).as_secs();
            match seconds {
                ..120 => format!("{}s", seconds.max(0)),
                120..7200 => format!("{}m", seconds / 60),
                7200..172_800 => format!("{}h", seconds / 3600),
                _ => format!("{}d", seconds / 86_400),
            }
        },
    )
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(
        "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
        true
    )]
    #[case("application/json", false)]
    #[case("application/json,application/json;as=Table;v=v1;g=meta.k8s.io", false)]
    #[case("*/*", false)]
    fn asked_for(#[case] accept: &str, #[case] table: bool) {
        assert_eq!(wanted(accept), table);
    }
}
