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
    columns.extend(
        own_columns(resource)
            .iter()
            .map(|(name, kind)| json!({"name": name, "type": kind, "format": "", "priority": 0, "description": ""})),
    );
    columns.push(json!({
        "name": "Age", "type": "string", "format": "", "priority": 0, "description": "",
    }));
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
    cells.extend(own_cells(resource, object));
    cells.push(json!(age(object)));
    json!({
        "cells": cells,
        "object": {
            "kind": "PartialObjectMetadata",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": object["metadata"],
        },
    })
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
    object["metadata"]["creationTimestamp"]
        .as_str()
        .and_then(|text| text.parse::<jiff::Timestamp>().ok())
        .map_or_else(
            || "<unknown>".to_owned(),
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
