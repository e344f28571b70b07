//! What becomes of an object on its way into the store, as each resource's strategy in kube-apiserver has it: what a
//! writer may set through which door, what is counted, what is filled in, and what is refused. Plain functions over
//! objects.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::{
    auth::UserInfo, cause::Cause, certificates, definitions, resources::Resource, schema, status::Status, store::now,
};

/// An object as it is to be created.
pub(crate) fn create(resource: &Resource, mut object: Value, user: &UserInfo) -> Result<Value, Status> {
    if resource.custom.is_some() && resource.has("status") {
        take(&mut object, "status");
    }
    let metadata = &mut object["metadata"];
    if metadata["resourceVersion"]
        .as_str()
        .is_some_and(|version| !version.is_empty())
    {
        return Err(Status::untyped(
            "resourceVersion should not be set on objects to be created",
        ));
    }
    if resource.has_generation() {
        metadata["generation"] = json!(1);
    }
    match resource.plural {
        "certificatesigningrequests" => certificates::prepare(&mut object, user),
        "customresourcedefinitions" => object = definitions::established(object),
        _ => {}
    }
    let object = with_defaults(resource, object);
    admit(resource, &object)?;
    Ok(object)
}

/// An object as it is to be, where `new` was made of `old` through a subresource (empty: the object itself).
pub(crate) fn update(resource: &Resource, subresource: &str, old: &Value, mut new: Value) -> Result<Value, Status> {
    new = if subresource.is_empty() {
        update_itself(resource, old, new)
    } else {
        // Through the others the status is all that changes.
        let mut only = old.clone();
        if subresource == "approval" {
            certificates::approve(old, &mut new)?;
        }
        put(&mut only, "status", new.get("status"));
        for field in ["resourceVersion", "uid", "managedFields"] {
            put(&mut only["metadata"], field, new["metadata"].get(field));
        }
        only
    };
    admit(resource, &new)?;
    Ok(new)
}

fn update_itself(resource: &Resource, old: &Value, mut new: Value) -> Value {
    let is_request = resource.plural == "certificatesigningrequests";
    if resource.has("status") && (resource.custom.is_some() || is_request) {
        put(&mut new, "status", old.get("status"));
    }
    if is_request {
        put(&mut new, "spec", old.get("spec"));
    }
    if resource.has_generation() {
        let counted = old["metadata"]["generation"].as_u64().unwrap_or(1);
        let grown = u64::from(differs_in_substance(old, &new));
        new["metadata"]["generation"] = json!(counted + grown);
    }
    if resource.plural == "customresourcedefinitions" {
        new = definitions::established(new);
    }
    with_defaults(resource, new)
}

/// What an application through this door may say: the rest is left out before it is anybody's.
pub(crate) fn applicable(resource: &Resource, subresource: &str, mut applied: Value) -> Value {
    if subresource.is_empty() {
        if resource.custom.is_some() && resource.has("status") {
            take(&mut applied, "status");
        }
    } else if let Some(map) = applied.as_object_mut() {
        map.retain(|name, _| matches!(name.as_str(), "apiVersion" | "kind" | "metadata" | "status"));
        if let Some(metadata) = map.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.retain(|name, _| matches!(name.as_str(), "name" | "namespace" | "uid" | "resourceVersion"));
        }
    }
    applied
}

/// What the API server, the control plane and, for pods that no kubelet will ever see, a kubelet would have filled in
/// by the time that anyone looks.
pub(crate) fn with_defaults(resource: &Resource, mut object: Value) -> Value {
    if let Some(custom) = resource.custom {
        schema::conform(&custom.schema, &mut object);
    }
    match resource.plural {
        "namespaces" if object["status"].is_null() => {
            object["status"] = json!({"phase": "Active"});
        }
        "pods" => pod(&mut object),
        "secrets" => secret(&mut object),
        "customresourcedefinitions" => object = definitions::established(object),
        _ => {}
    }
    object
}

fn admit(resource: &Resource, object: &Value) -> Result<(), Status> {
    let causes = match (resource.custom, resource.plural) {
        (Some(custom), _) => schema::refusals(&custom.schema, object),
        (None, "customresourcedefinitions") => definitions::refusals(object),
        (None, "certificatesigningrequests") => certificates::refusals(object),
        (None, "secrets") => secret_refusals(object),
        _ => Vec::new(),
    };
    if causes.is_empty() {
        return Ok(());
    }
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    Err(Status::invalid_object(resource.group, resource.kind, name, &causes))
}

/// Whether anything differs beside the metadata and the status.
fn differs_in_substance(old: &Value, new: &Value) -> bool {
    let substance = |object: &Value| {
        let mut object = object.clone();
        for field in ["metadata", "status", "apiVersion", "kind"] {
            take(&mut object, field);
        }
        object
    };
    substance(old) != substance(new)
}

fn take(object: &mut Value, field: &str) {
    if let Some(map) = object.as_object_mut() {
        map.remove(field);
    }
}

fn put(object: &mut Value, field: &str, value: Option<&Value>) {
    match value {
        Some(value) => object[field] = value.clone(),
        None => take(object, field),
    }
}

fn secret(object: &mut Value) {
    if let Some(texts) = object["stringData"].as_object().cloned() {
        for (name, text) in texts {
            object["data"][name] = json!(STANDARD.encode(text.as_str().unwrap_or_default()));
        }
    }
    take(object, "stringData");
    if object["type"].as_str().is_none_or(str::is_empty) {
        object["type"] = json!("Opaque");
    }
}

fn secret_refusals(object: &Value) -> Vec<Cause> {
    let required: &[&str] = match object["type"].as_str() {
        Some("kubernetes.io/tls") => &["tls.crt", "tls.key"],
        _ => &[],
    };
    required
        .iter()
        .filter(|name| object["data"].get(**name).is_none())
        .map(|name| Cause::required(&format!("data[{name}]"), ""))
        .collect()
}

/// A pod for a node waits for its kubelet; one for no node is taken to run at once, so that there is something to
/// look at.
fn pod(object: &mut Value) {
    let containers = || object["spec"]["containers"].as_array().into_iter().flatten();
    if object["status"].is_null() {
        let scheduled = object["spec"]["nodeName"].as_str().is_some_and(|node| !node.is_empty());
        let statuses: Vec<Value> = containers()
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
        object["status"] = if scheduled {
            json!({"phase": "Pending"})
        } else {
            json!({
                "phase": "Running",
                "conditions": [{"type": "Ready", "status": "True"}],
                "containerStatuses": statuses,
                "startTime": now(),
            })
        };
    }
    if object["status"]["qosClass"].is_null() {
        object["status"]["qosClass"] = json!(qos_class(object));
    }
}

/// Kubernetes' quality of service, from the containers' requests and limits.
fn qos_class(pod: &Value) -> &'static str {
    let containers: Vec<&Value> = ["containers", "initContainers"]
        .iter()
        .flat_map(|list| pod["spec"][list].as_array().into_iter().flatten())
        .collect();
    let given = |container: &Value, kind: &str, what: &str| container["resources"][kind][what].clone();
    let compute = ["cpu", "memory"];
    let any = containers.iter().any(|container| {
        ["requests", "limits"]
            .iter()
            .any(|kind| compute.iter().any(|what| !given(container, kind, what).is_null()))
    });
    let all_limited = containers.iter().all(|container| {
        compute.iter().all(|what| {
            let (request, limit) = (given(container, "requests", what), given(container, "limits", what));
            !limit.is_null() && (request.is_null() || request == limit)
        })
    });
    match (any, all_limited && !containers.is_empty()) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(json!([{}]), "BestEffort")]
    #[case(json!([{"resources": {"requests": {"cpu": "1"}}}]), "Burstable")]
    #[case(json!([{"resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}]), "Guaranteed")]
    #[case(json!([{"resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}, {}]), "Burstable")]
    #[case(json!([{"resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "2"}}}]), "Burstable")]
    fn quality(#[case] containers: Value, #[case] expected: &str) {
        assert_eq!(qos_class(&json!({"spec": {"containers": containers}})), expected);
    }

    #[rstest]
    #[case(json!({}), "Running")]
    #[case(json!({"nodeName": "box"}), "Pending")]
    fn a_pod_on_a_node_waits_for_its_kubelet(#[case] spec: Value, #[case] phase: &str) {
        let pods = Resource::find("", "v1", "pods").unwrap();
        let pod = create(
            pods,
            json!({"metadata": {"name": "a"}, "spec": spec}),
            &UserInfo::default(),
        )
        .unwrap();
        assert_eq!(pod["status"]["phase"], phase);
        assert_eq!(pod["metadata"]["generation"], 1);
    }
}
