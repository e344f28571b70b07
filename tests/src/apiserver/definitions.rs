//! Custom resource definitions: what they add to the resources that are served. Each serves one version, the one that
//! it stores; conversion between versions isn't done here, nor are CEL rules evaluated.

use serde_json::{Value, json};

use super::{
    cause::Cause,
    resources::{Custom, Resource, STATUS},
    store::now,
};

/// What a definition of this form is refused for.
pub(crate) fn refusals(definition: &Value) -> Vec<Cause> {
    let spec = &definition["spec"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut causes = Vec::new();
    for (field, value) in [
        ("spec.group", &spec["group"]),
        ("spec.names.plural", &spec["names"]["plural"]),
        ("spec.names.kind", &spec["names"]["kind"]),
        ("spec.scope", &spec["scope"]),
    ] {
        if text(value).is_empty() {
            causes.push(Cause::required(field, ""));
        }
    }
    let expected = format!("{}.{}", text(&spec["names"]["plural"]), text(&spec["group"]));
    let name = text(&definition["metadata"]["name"]);
    if causes.is_empty() && name != expected {
        let why = "must be spec.names.plural+\".\"+spec.group";
        causes.push(Cause::invalid("metadata.name", &format!("{name:?}"), why));
    }
    if stored_version(definition).is_none() {
        let why = "must have exactly one version marked as storage version";
        causes.push(Cause::invalid("spec.versions", &spec["versions"].to_string(), why));
    }
    causes
}

/// What the controllers of the API server fill in by the time that anyone looks.
pub(crate) fn established(mut definition: Value) -> Value {
    let names = &mut definition["spec"]["names"];
    let kind = names["kind"].as_str().unwrap_or_default().to_owned();
    if names["singular"].is_null() {
        names["singular"] = json!(kind.to_ascii_lowercase());
    }
    if names["listKind"].is_null() {
        names["listKind"] = json!(format!("{kind}List"));
    }
    let condition = |kind: &str, reason: &str, message: &str| {
        json!({
            "type": kind, "status": "True", "lastTransitionTime": now(), "reason": reason, "message": message,
        })
    };
    let stored = stored_version(&definition).map(|version| version["name"].clone());
    if definition["status"]["conditions"].is_null() {
        definition["status"] = json!({
            "acceptedNames": definition["spec"]["names"],
            "conditions": [
                condition("NamesAccepted", "NoConflicts", "no conflicts found"),
                condition("Established", "InitialNamesAccepted", "the initial names have been accepted"),
            ],
            "storedVersions": [stored],
        });
    }
    definition
}

/// The resource that a definition adds, which lives as long as the process: definitions are few.
pub(crate) fn resource(definition: &Value) -> Option<&'static Resource> {
    let spec = &definition["spec"];
    let names = &spec["names"];
    let text = |value: &Value| value.as_str().map(leak);
    let version = stored_version(definition).filter(|version| version["served"] == true)?;
    let short_names: Vec<&'static str> = names["shortNames"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(text)
        .collect();
    let selectable = version["selectableFields"].as_array().into_iter().flatten();
    let resource = Resource {
        group: text(&spec["group"])?,
        version: text(&version["name"])?,
        plural: text(&names["plural"])?,
        singular: text(&names["singular"])?,
        kind: text(&names["kind"])?,
        namespaced: spec["scope"] == "Namespaced",
        short_names: Box::leak(short_names.into_boxed_slice()),
        subresources: if version["subresources"]["status"].is_object() {
            &[STATUS]
        } else {
            &[]
        },
        stored: true,
        custom: Some(Box::leak(Box::new(Custom {
            schema: version["schema"]["openAPIV3Schema"].clone(),
            columns: version["additionalPrinterColumns"].clone(),
            selectable: selectable
                .filter_map(|field| field["jsonPath"].as_str())
                .map(|path| path.trim_start_matches('.').to_owned())
                .collect(),
        }))),
    };
    Some(Box::leak(Box::new(resource)))
}

fn stored_version(definition: &Value) -> Option<&Value> {
    let versions = definition["spec"]["versions"].as_array()?;
    let mut stored = versions.iter().filter(|version| version["storage"] == true);
    stored.next().filter(|_| stored.next().is_none())
}

fn leak(text: &str) -> &'static str {
    Box::leak(text.to_owned().into_boxed_str())
}
