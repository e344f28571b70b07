//! What isn't written of bodies: the values of Secrets, tokens, and fields that the operator names.

use std::str::FromStr;

use serde_json::Value;

use crate::request_info::ResourceRequest;

/// In place of what is masked.
const MASKED: &str = "***";
/// What kubectl says that it applied, which holds the whole object.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// What is masked in objects, besides what always is: the values of Secrets, tokens that are asked for and judged.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Masks(Vec<Mask>);

/// A field of a resource's objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    group: String,
    resource: String,
    path: Vec<String>,
}

/// Not such a field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not RESOURCE[.GROUP]:PATH: write it as configmaps:data.password or widgets.example.org:spec.*.token")]
pub struct MaskError(String);

impl FromStr for Mask {
    type Err = MaskError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || MaskError(text.to_owned());
        let (of, path) = text.split_once(':').ok_or_else(wrong)?;
        let (resource, group) = of.split_once('.').unwrap_or((of, ""));
        let path: Vec<String> = path.split('.').map(str::to_owned).collect();
        if resource.is_empty() || of.ends_with('.') || path.iter().any(String::is_empty) {
            return Err(wrong());
        }
        Ok(Self {
            group: group.to_owned(),
            resource: resource.to_owned(),
            path,
        })
    }
}

impl Masks {
    /// These, besides those that always hold.
    #[must_use]
    pub fn new(masks: Vec<Mask>) -> Self {
        Self(masks)
    }

    pub(super) fn mask(&self, object: &mut Value, of: Option<&ResourceRequest>) {
        let resource = of.map_or("", |of| of.resource.as_str());
        let group = of.map_or("", |of| of.api_group.as_str());
        if resource == "secrets" && group.is_empty() {
            mask_values(object);
        } else {
            mask_secrets(object);
        }
        let is_of_tokens = resource == "tokenreviews" || of.is_some_and(|of| of.subresource == "token");
        if is_of_tokens || matches!(object["kind"].as_str(), Some("TokenReview" | "TokenRequest")) {
            for part in ["spec", "status"] {
                mask_at(object, &[part, "token"]);
            }
        }
        for mask in self
            .0
            .iter()
            .filter(|mask| mask.resource == resource && mask.group == group)
        {
            let path: Vec<&str> = mask.path.iter().map(String::as_str).collect();
            mask_patch(object, &path);
            mask_cells(object);
            for_each_object(object, &|object| mask_at(object, &path));
        }
    }
}

/// Secrets wherever they stand, in lists of many kinds say.
fn mask_secrets(value: &mut Value) {
    match value {
        Value::Object(members) if members.get("kind").is_some_and(|kind| kind == "Secret") => mask_values(value),
        Value::Object(members) => members.values_mut().for_each(mask_secrets),
        Value::Array(elements) => elements.iter_mut().for_each(mask_secrets),
        _ => {}
    }
}

/// All that may be a Secret's value, whatever the form: an object, a list, a table, or a patch of one.
fn mask_values(value: &mut Value) {
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                match name.as_str() {
                    "data" | "stringData" | "value" => hide(value),
                    LAST_APPLIED => *value = MASKED.into(),
                    _ => mask_values(value),
                }
            }
        }
        Value::Array(elements) => elements.iter_mut().for_each(mask_values),
        _ => {}
    }
}

/// Names stay, for they say what was changed.
fn hide(value: &mut Value) {
    match value {
        Value::Object(members) => members.values_mut().for_each(hide),
        Value::Array(elements) => elements.iter_mut().for_each(hide),
        Value::Null => {}
        other => *other = MASKED.into(),
    }
}

/// An object's field; elements of an array are each looked at, and `*` is any name.
fn mask_at(value: &mut Value, path: &[&str]) {
    let Some((name, rest)) = path.split_first() else {
        return hide(value);
    };
    match value {
        Value::Array(elements) => elements.iter_mut().for_each(|element| mask_at(element, path)),
        Value::Object(members) if *name == "*" => members.values_mut().for_each(|member| mask_at(member, rest)),
        Value::Object(members) => {
            if let Some(member) = members.get_mut(*name) {
                mask_at(member, rest);
            }
        }
        _ => {}
    }
}

/// A JSON patch's operations at, above or below the path; and what kubectl says that it applied.
fn mask_patch(value: &mut Value, path: &[&str]) {
    let Value::Array(operations) = value else { return };
    for operation in operations {
        let Some(at) = operation["path"].as_str() else { continue };
        let at: Vec<String> = at
            .split('/')
            .skip(1)
            .map(|part| part.replace("~1", "/").replace("~0", "~"))
            .collect();
        let touches = at.iter().zip(path).all(|(part, name)| *name == "*" || part == name);
        if touches && let Some(value) = operation.get_mut("value") {
            hide(value);
        }
    }
}

/// A table's cells but the names: a column may show any field of a custom resource (`additionalPrinterColumns`), and doesn't
/// say which.
fn mask_cells(table: &mut Value) {
    let columns = table["columnDefinitions"].as_array().cloned().unwrap_or_default();
    let is_name = |at: usize| columns.get(at).is_some_and(|column| column["format"] == "name");
    let rows = table.get_mut("rows").and_then(Value::as_array_mut);
    for row in rows.into_iter().flatten() {
        let cells = row.get_mut("cells").and_then(Value::as_array_mut);
        for (at, cell) in cells.into_iter().flatten().enumerate() {
            if !is_name(at) {
                hide(cell);
            }
        }
    }
}

/// The object itself, those in a list, and those in a table.
fn for_each_object(value: &mut Value, act: &dyn Fn(&mut Value)) {
    act(value);
    if let Some(annotations) = value.pointer_mut("/metadata/annotations") {
        mask_at(annotations, &[LAST_APPLIED]);
    }
    for item in value
        .get_mut("items")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        for_each_object(item, act);
    }
    for row in value
        .get_mut("rows")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        if let Some(object) = row.get_mut("object") {
            for_each_object(object, act);
        }
    }
}

#[cfg(test)]
mod tests;
