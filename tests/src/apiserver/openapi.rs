//! As much `OpenAPI` as kubectl needs: it looks whether a kind's PATCH takes `fieldValidation` before it lets the
//! server validate, and reads the schemas' names. Made from the table of resources; no field is described.

use http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Map, Value, json};

use super::{
    body::Body,
    resources::{Catalogue, Resource},
    status::{Status, json_response},
};

/// Answers below `/openapi`.
pub(crate) fn serve(path: &str, accept: &str, catalogue: &Catalogue) -> Result<Response<Body>, Status> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let value = match parts[..] {
        ["openapi", "v2"] => {
            // kubectl asks for protobuf alone, and goes on without when there is none.
            if !accept.contains("json") && !accept.contains("*/*") {
                return Err(Status::not_acceptable());
            }
            json!({
                "swagger": "2.0",
                "info": {"title": "Kubernetes", "version": "v1.32.4"},
                "paths": {},
                "definitions": {},
            })
        }
        ["openapi", "v3"] => {
            let paths: Map<String, Value> = catalogue
                .groups()
                .into_iter()
                .map(|(group, version)| {
                    let name = if group.is_empty() {
                        format!("api/{version}")
                    } else {
                        format!("apis/{group}/{version}")
                    };
                    let url = json!({"serverRelativeURL": format!("/openapi/v3/{name}?hash=0")});
                    (name, url)
                })
                .collect();
            json!({"paths": paths})
        }
        ["openapi", "v3", "api", version] => document("", version, catalogue)?,
        ["openapi", "v3", "apis", group, version] => document(group, version, catalogue)?,
        _ => return Err(Status::no_such_path()),
    };
    let mut response = json_response(StatusCode::OK, &value);
    response
        .headers_mut()
        .insert(header::VARY, HeaderValue::from_static("Accept"));
    Ok(response)
}

fn document(group: &str, version: &str, catalogue: &Catalogue) -> Result<Value, Status> {
    let mut paths = Map::new();
    let mut schemas = Map::new();
    for resource in catalogue.of_group(group, version) {
        let base = match (group.is_empty(), resource.namespaced) {
            (true, false) => format!("/api/{version}"),
            (true, true) => format!("/api/{version}/namespaces/{{namespace}}"),
            (false, false) => format!("/apis/{group}/{version}"),
            (false, true) => format!("/apis/{group}/{version}/namespaces/{{namespace}}"),
        };
        let collection = format!("{base}/{}", resource.plural);
        if resource.stored {
            paths.insert(
                format!("{collection}/{{name}}"),
                json!({
                    "get": operation(resource, "get", &[]),
                    "put": operation(resource, "put", &["application/json"]),
                    // The strategic form is left out, so that kubectl computes such patches from its own types.
                    "patch": operation(resource, "patch", &["application/merge-patch+json", "application/apply-patch+yaml"]),
                    "delete": operation(resource, "delete", &[]),
                }),
            );
        }
        paths.insert(
            collection,
            json!({"post": operation(resource, "post", &["application/json"])}),
        );
        schemas.insert(schema_name(resource), schema(resource));
    }
    if paths.is_empty() {
        return Err(Status::no_such_path());
    }
    Ok(json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "v1.32.4"},
        "paths": paths,
        "components": {"schemas": schemas},
    }))
}

fn operation(resource: &Resource, action: &str, consumes: &[&str]) -> Value {
    let parameter =
        |name: &str| json!({"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": true}});
    let reference = json!({"schema": {"$ref": format!("#/components/schemas/{}", schema_name(resource))}});
    let mut value = json!({
        "operationId": format!("{action}{}", resource.kind),
        "parameters": [parameter("dryRun"), parameter("fieldManager"), parameter("fieldValidation")],
        "responses": {"200": {"description": "OK", "content": {"application/json": reference}}},
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": resource.group_version_kind(),
    });
    if !consumes.is_empty() {
        let content: Map<String, Value> = consumes
            .iter()
            .map(|&kind| (kind.to_owned(), reference.clone()))
            .collect();
        value["requestBody"] = json!({"required": true, "content": content});
    }
    value
}

fn schema_name(resource: &Resource) -> String {
    let group = if resource.group.is_empty() {
        "core"
    } else {
        resource.group
    };
    format!("io.k8s.api.{group}.{}.{}", resource.version, resource.kind)
}

fn schema(resource: &Resource) -> Value {
    json!({
        "type": "object",
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        },
        "x-kubernetes-preserve-unknown-fields": true,
        "x-kubernetes-group-version-kind": [resource.group_version_kind()],
    })
}
