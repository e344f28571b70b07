//! The verbs on stored resources, from HTTP to the store and back.

use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::{
    body::Body,
    gzip, patch,
    request::ResourceTarget,
    resources::Resource,
    selector::Selector,
    serve::{Call, parse_object},
    sized,
    status::{Status, json_response},
    store::now,
    table, watch,
};

/// Carries a verb out.
pub(crate) async fn serve(
    call: Call,
    resource: &'static Resource,
    verb: &str,
    target: ResourceTarget,
) -> Result<Response<Body>, Status> {
    let accept = call.accept();
    if !["json", "*/*", "application/*", "yaml"]
        .iter()
        .any(|form| accept.contains(form))
    {
        return Err(Status::not_acceptable());
    }
    match verb {
        "get" => {
            let object = call.shared.store.get(resource, &target.namespace, &target.name)?;
            Ok(present(&call, resource, StatusCode::OK, &object))
        }
        "list" => list(&call, resource, &target),
        "watch" => watch::serve(&call, resource, &target.namespace),
        "create" => create(call, resource, &target).await,
        "update" => update(call, resource, &target).await,
        "patch" => apply_patch(call, resource, &target).await,
        "delete" => delete(call, resource, &target).await,
        "deletecollection" => delete_all(&call, resource, &target),
        _ => Err(Status::method_not_allowed()),
    }
}

fn present(call: &Call, resource: &Resource, code: StatusCode, object: &Value) -> Response<Body> {
    if table::wanted(call.accept()) {
        let metadata = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
        json_response(code, &table::table(resource, &[object], &metadata))
    } else {
        json_response(code, object)
    }
}

fn list(call: &Call, resource: &'static Resource, target: &ResourceTarget) -> Result<Response<Body>, Status> {
    let size = sized::asked(&call.query)?.or(call.shared.list_size(resource));
    let accepts_gzip = gzip::accepted(&call.parts.headers);
    if let Some(size) = size {
        return sized::list(resource, &target.namespace, size, accepts_gzip);
    }
    let selector = Selector::of(&call.query)?;
    let (objects, version) = call.shared.store.list(resource, &target.namespace);
    let selected: Vec<&Value> = objects
        .iter()
        .map(AsRef::as_ref)
        .filter(|object| selector.matches(object))
        .collect();
    let metadata = json!({"resourceVersion": version.to_string()});
    let value = if table::wanted(call.accept()) {
        table::table(resource, &selected, &metadata)
    } else {
        json!({
            "kind": format!("{}List", resource.kind),
            "apiVersion": resource.api_version(),
            "metadata": metadata,
            "items": selected,
        })
    };
    let text = value.to_string();
    if accepts_gzip && text.len() > gzip::THRESHOLD {
        return Ok(gzip::response(gzip::whole(text.as_bytes())));
    }
    Ok(json_response(StatusCode::OK, &value))
}

async fn create(
    mut call: Call,
    resource: &'static Resource,
    target: &ResourceTarget,
) -> Result<Response<Body>, Status> {
    let object = call.object().await?;
    check_kind(resource, &object)?;
    if let Some(namespace) = object["metadata"]["namespace"].as_str()
        && resource.namespaced
        && namespace != target.namespace
    {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    let object = with_defaults(resource, object);
    if call.query.first("dryRun") == Some("All") {
        return Ok(present(&call, resource, StatusCode::CREATED, &object));
    }
    let created = call.shared.store.create(resource, &target.namespace, object)?;
    Ok(present(&call, resource, StatusCode::CREATED, &created))
}

fn check_kind(resource: &Resource, object: &Value) -> Result<(), Status> {
    let same = |field: &str, expected: &str| object[field].as_str().is_none_or(|own| own == expected);
    if same("kind", resource.kind) && same("apiVersion", &resource.api_version()) {
        Ok(())
    } else {
        Err(Status::bad_request(
            "the API version or kind in the data does not match the one of the request",
        ))
    }
}

/// What the control plane and a kubelet would have filled in by the time that anyone looks.
pub(crate) fn with_defaults(resource: &Resource, mut object: Value) -> Value {
    match resource.plural {
        "namespaces" if object["status"].is_null() => {
            object["status"] = json!({"phase": "Active"});
        }
        "pods" if object["status"].is_null() => {
            let statuses: Vec<Value> = object["spec"]["containers"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|container| {
                    json!({
                        "name": container["name"],
                        "image": container["image"],
                        // Clients with a schema don't read a status without it.
                        "imageID": "",
                        "ready": true,
                        "started": true,
                        "restartCount": 0,
                        "state": {"running": {"startedAt": now()}},
                    })
                })
                .collect();
            object["status"] = json!({
                "phase": "Running",
                "conditions": [{"type": "Ready", "status": "True"}],
                "containerStatuses": statuses,
                "startTime": now(),
            });
        }
        _ => {}
    }
    object
}

async fn update(
    mut call: Call,
    resource: &'static Resource,
    target: &ResourceTarget,
) -> Result<Response<Body>, Status> {
    let object = call.object().await?;
    check_kind(resource, &object)?;
    let updated = call
        .shared
        .store
        .update(resource, &target.namespace, &target.name, |_| Ok(object))?;
    Ok(present(&call, resource, StatusCode::OK, &updated))
}

async fn apply_patch(
    mut call: Call,
    resource: &'static Resource,
    target: &ResourceTarget,
) -> Result<Response<Body>, Status> {
    let media_type = call.content_type();
    let bytes = call.bytes().await?;
    let (namespace, name) = (&target.namespace, &target.name);
    let store = &call.shared.store;
    if !media_type.contains("apply-patch") {
        let patched = store.update(resource, namespace, name, |old| patch::patch(&media_type, &bytes, old))?;
        return Ok(present(&call, resource, StatusCode::OK, &patched));
    }
    let manager = call
        .query
        .first("fieldManager")
        .filter(|manager| !manager.is_empty())
        .ok_or_else(|| {
            Status::invalid(
                "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch",
            )
        })?;
    let applied = parse_object(&media_type, &bytes)?;
    check_kind(resource, &applied)?;
    let updated = store.update(resource, namespace, name, |old| {
        Ok(patch::server_side_apply(old, &applied, manager))
    });
    let (code, object) = match updated {
        Err(status) if status.code() == StatusCode::NOT_FOUND && target.subresource.is_empty() => {
            let mut new = patch::server_side_apply(&json!({}), &applied, manager);
            new["metadata"]["name"] = json!(name);
            let new = with_defaults(resource, new);
            (StatusCode::CREATED, store.create(resource, namespace, new)?)
        }
        updated => (StatusCode::OK, updated?),
    };
    Ok(present(&call, resource, code, &object))
}

async fn delete(
    mut call: Call,
    resource: &'static Resource,
    target: &ResourceTarget,
) -> Result<Response<Body>, Status> {
    // DeleteOptions are read, so that they are on record, and not acted on.
    call.bytes().await?;
    let gone = call.shared.store.delete(resource, &target.namespace, &target.name)?;
    Ok(json_response(
        StatusCode::OK,
        &json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Success",
            "details": {
                "name": target.name,
                "group": resource.group,
                "kind": resource.plural,
                "uid": gone["metadata"]["uid"],
            },
        }),
    ))
}

fn delete_all(call: &Call, resource: &'static Resource, target: &ResourceTarget) -> Result<Response<Body>, Status> {
    let selector = Selector::of(&call.query)?;
    let store = &call.shared.store;
    let (objects, version) = store.list(resource, &target.namespace);
    let mut gone = Vec::new();
    for object in objects {
        if selector.matches(&object) {
            let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
            gone.push(store.delete(resource, text("namespace"), text("name"))?);
        }
    }
    Ok(json_response(
        StatusCode::OK,
        &json!({
            "kind": format!("{}List", resource.kind),
            "apiVersion": resource.api_version(),
            "metadata": {"resourceVersion": version.to_string()},
            "items": gone.iter().map(AsRef::as_ref).collect::<Vec<&Value>>(),
        }),
    ))
}
