//! The verbs on stored resources, from HTTP to the store and back.

use http::{Response, StatusCode, header};
use serde_json::{Value, json};

use super::{
    body::Body,
    cause::Cause,
    certificates,
    deletion::{Deletion, Options},
    list,
    managed::{self, Writer},
    patch,
    request::ResourceTarget,
    resources::Resource,
    selector::Selector,
    serve::{Call, parse_object},
    status::{Status, json_response},
    strategy, table, translation, watch,
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
            let object = call
                .shared
                .store
                .get(resource.stored(), &target.namespace, &target.name)?;
            Ok(present(&call, resource, StatusCode::OK, &object))
        }
        "list" => list::serve(&call, resource, &target),
        "watch" => watch::serve(&call, resource, &target.namespace),
        "create" => create(call, resource, &target).await,
        "update" => update(call, resource, &target).await,
        "patch" => apply_patch(call, resource, &target).await,
        "delete" => delete(call, resource, &target).await,
        "deletecollection" => delete_all(call, resource, &target).await,
        _ => Err(Status::method_not_allowed()),
    }
}

fn present(call: &Call, resource: &'static Resource, code: StatusCode, object: &Value) -> Response<Body> {
    let object = translation::shown(resource, object);
    if table::wanted(call.accept()) {
        let metadata = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
        json_response(code, &table::table(resource, &[&*object], &metadata))
    } else {
        json_response(code, &object)
    }
}

/// Who a write is noted as: the manager that it names, or the program that sends it.
fn manager(call: &Call) -> String {
    let agent = call.parts.headers.get(header::USER_AGENT);
    let program = agent
        .and_then(|agent| agent.to_str().ok())
        .and_then(|agent| agent.split('/').next())
        .unwrap_or("unknown");
    let named = call.query.first("fieldManager").filter(|manager| !manager.is_empty());
    named.unwrap_or(program).to_owned()
}

async fn create(
    mut call: Call,
    resource: &'static Resource,
    target: &ResourceTarget,
) -> Result<Response<Body>, Status> {
    if !target.name.is_empty() {
        return Err(Status::method_not_allowed());
    }
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
    let mut object = strategy::create(resource, object, &call.user)?;
    let manager = manager(&call);
    note(resource, &json!({}), &mut object, &manager, "");
    let object = translation::kept(resource, object);
    if call.query.first("dryRun") == Some("All") {
        return Ok(present(&call, resource, StatusCode::CREATED, &object));
    }
    let created = call.shared.store.create(resource.stored(), &target.namespace, object)?;
    Ok(present(&call, resource, StatusCode::CREATED, &created))
}

fn note(resource: &Resource, old: &Value, new: &mut Value, manager: &str, subresource: &str) {
    // kube-apiserver doesn't keep account of these either.
    if !matches!(resource.plural, "leases" | "certificatesigningrequests") {
        managed::note_update(resource, old, new, Writer { manager, subresource });
    }
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

fn check_name(object: &Value, target: &ResourceTarget) -> Result<(), Status> {
    match object["metadata"]["name"].as_str() {
        Some(name) if !name.is_empty() && name != target.name => Err(Status::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            target.name
        ))),
        _ => Ok(()),
    }
}

async fn update(
    mut call: Call,
    resource: &'static Resource,
    target: &ResourceTarget,
) -> Result<Response<Body>, Status> {
    let object = call.object().await?;
    check_kind(resource, &object)?;
    check_name(&object, target)?;
    let versioned = object["metadata"]["resourceVersion"]
        .as_str()
        .is_some_and(|version| !version.is_empty());
    change(&call, resource, target, |_| {
        if !versioned && !resource.updates_without_version() {
            let cause = Cause::invalid("metadata.resourceVersion", "0", "must be specified for an update");
            let (group, plural) = (resource.group, resource.plural);
            return Err(Status::invalid_object(group, plural, &target.name, &[cause]));
        }
        Ok(object)
    })
    .await
}

/// Changes an object in any way but server-side apply.
async fn change(
    call: &Call,
    resource: &'static Resource,
    target: &ResourceTarget,
    make: impl FnOnce(&Value) -> Result<Value, Status>,
) -> Result<Response<Body>, Status> {
    let rules = call.shared.rules.current().await;
    let manager = manager(call);
    let subresource = target.subresource.as_str();
    let changed = |old: &Value| {
        let old = translation::shown(resource, old);
        let wanted = make(&old)?;
        if let Some(verb) = signer_verb(resource, subresource) {
            certificates::admit(&rules, &call.user, verb, &old)?;
        }
        let mut new = strategy::update(resource, subresource, &old, wanted)?;
        note(resource, &old, &mut new, &manager, subresource);
        Ok(translation::kept(resource, new))
    };
    let store = &call.shared.store;
    if call.query.first("dryRun") == Some("All") {
        let old = store.get(resource.stored(), &target.namespace, &target.name)?;
        let new = changed(&old)?;
        return Ok(present(call, resource, StatusCode::OK, &new));
    }
    let updated = store.update(resource.stored(), &target.namespace, &target.name, changed)?;
    Ok(present(call, resource, StatusCode::OK, &updated))
}

/// A patch can't make an object another. Where a whole object is sent, its UID is a condition, which is the store's.
fn same_uid(resource: &Resource, old: &Value, new: &Value) -> Result<(), Status> {
    let (own, asked) = (&old["metadata"]["uid"], &new["metadata"]["uid"]);
    if own == asked {
        return Ok(());
    }
    let name = old["metadata"]["name"].as_str().unwrap_or_default();
    let cause = Cause::invalid("metadata.uid", &asked.to_string(), "field is immutable");
    Err(Status::invalid_object(resource.group, resource.kind, name, &[cause]))
}

/// The right on a request's signer that a change through this subresource needs.
fn signer_verb(resource: &Resource, subresource: &str) -> Option<&'static str> {
    match (resource.plural, subresource) {
        ("certificatesigningrequests", "approval") => Some("approve"),
        ("certificatesigningrequests", "status") => Some("sign"),
        _ => None,
    }
}

async fn apply_patch(
    mut call: Call,
    resource: &'static Resource,
    target: &ResourceTarget,
) -> Result<Response<Body>, Status> {
    let media_type = call.content_type();
    let bytes = call.bytes().await?;
    if !media_type.contains("apply-patch") {
        return change(&call, resource, target, |old| {
            let new = patch::patch(&media_type, &bytes, old)?;
            same_uid(resource, old, &new)?;
            Ok(new)
        })
        .await;
    }
    let manager = call
        .query
        .first("fieldManager")
        .filter(|manager| !manager.is_empty())
        .ok_or_else(|| {
            let cause = Cause::required("fieldManager", "is required for apply patch");
            Status::invalid_object("meta.k8s.io", "PatchOptions", "", &[cause])
        })?;
    let applied = parse_object(&media_type, &bytes)?;
    check_kind(resource, &applied)?;
    check_name(&applied, target)?;
    if applied["metadata"]["managedFields"]
        .as_array()
        .is_some_and(|managers| !managers.is_empty())
    {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    apply(&call, resource, target, applied, manager)
}

fn apply(
    call: &Call,
    resource: &'static Resource,
    target: &ResourceTarget,
    applied: Value,
    manager: &str,
) -> Result<Response<Body>, Status> {
    let (namespace, name) = (&target.namespace, &target.name);
    let subresource = target.subresource.as_str();
    let store = &call.shared.store;
    let applied = strategy::applicable(resource, subresource, applied);
    let writer = Writer { manager, subresource };
    let force = call.query.flag("force");
    let dry = call.query.first("dryRun") == Some("All");
    let over = |old: &Value| {
        let old = translation::shown(resource, old);
        let new = managed::apply(resource, &old, &applied, writer, force)?;
        let new = strategy::update(resource, subresource, &old, new)?;
        Ok(translation::kept(resource, new))
    };
    let updated = if dry {
        store
            .get(resource.stored(), namespace, name)
            .and_then(|old| over(&old).map(std::sync::Arc::new))
    } else {
        store.update(resource.stored(), namespace, name, over)
    };
    let (code, object) = match updated {
        Err(status) if status.code() == StatusCode::NOT_FOUND && subresource.is_empty() => {
            let mut new = managed::apply(resource, &json!({}), &applied, writer, force)?;
            new["metadata"]["name"] = json!(name);
            if let Some(metadata) = new["metadata"].as_object_mut() {
                metadata.remove("resourceVersion");
            }
            let new = strategy::create(resource, new, &call.user)?;
            let new = translation::kept(resource, new);
            let created = if dry {
                new.into()
            } else {
                store.create(resource.stored(), namespace, new)?
            };
            (StatusCode::CREATED, created)
        }
        updated => (StatusCode::OK, updated?),
    };
    Ok(present(call, resource, code, &object))
}

async fn options(call: &mut Call) -> Result<Options, Status> {
    let content_type = call.content_type();
    let bytes = call.bytes().await?;
    let body = if bytes.is_empty() {
        Value::Null
    } else {
        parse_object(&content_type, &bytes)?
    };
    Ok(Options::of(&call.query, &body))
}

async fn delete(
    mut call: Call,
    resource: &'static Resource,
    target: &ResourceTarget,
) -> Result<Response<Body>, Status> {
    let options = options(&mut call).await?;
    let stored = resource.stored();
    let gone = match call
        .shared
        .store
        .delete(stored, &target.namespace, &target.name, &options)?
    {
        Deletion::Done(gone) if resource.plural != "pods" => gone,
        Deletion::Done(object) | Deletion::Marked(object) => {
            return Ok(present(&call, resource, StatusCode::OK, &object));
        }
    };
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

async fn delete_all(
    mut call: Call,
    resource: &'static Resource,
    target: &ResourceTarget,
) -> Result<Response<Body>, Status> {
    let options = options(&mut call).await?;
    let selector = Selector::of(resource, &call.query)?;
    let store = &call.shared.store;
    let (objects, version) = store.list(resource.stored(), &target.namespace);
    let mut gone = Vec::new();
    for object in objects {
        if selector.matches(&translation::shown(resource, &object)) {
            let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
            let deletion = store.delete(resource.stored(), text("namespace"), text("name"), &options)?;
            gone.push(deletion.object());
        }
    }
    let items: Vec<_> = gone.iter().map(|object| translation::shown(resource, object)).collect();
    Ok(json_response(
        StatusCode::OK,
        &json!({
            "kind": format!("{}List", resource.kind),
            "apiVersion": resource.api_version(),
            "metadata": {"resourceVersion": version.to_string()},
            "items": items.iter().map(AsRef::as_ref).collect::<Vec<&Value>>(),
        }),
    ))
}
