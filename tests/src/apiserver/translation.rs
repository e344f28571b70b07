//! Objects that two groups show, each in a form of its own: events, of the core group and of events.k8s.io. They are
//! kept in the core group's form, as kube-apiserver keeps them.

use std::borrow::Cow;

use serde_json::{Map, Value, json};

use super::resources::Resource;

/// Field names, of events.k8s.io and of the core group.
const EVENT_FIELDS: [(&str, &str); 7] = [
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

/// The object as the resource shows it.
pub(crate) fn shown<'a>(resource: &'static Resource, object: &'a Value) -> Cow<'a, Value> {
    if resource.stored() == resource {
        return Cow::Borrowed(object);
    }
    let mut event = renamed(object, |name| {
        let known = EVENT_FIELDS.iter().find(|(_, core)| *core == name);
        known.map_or(name, |(own, _)| own)
    });
    for (field, nothing) in [
        ("deprecatedSource", json!({})),
        ("deprecatedFirstTimestamp", Value::Null),
        ("deprecatedLastTimestamp", Value::Null),
    ] {
        event.entry(field).or_insert(nothing);
    }
    if !event.contains_key("apiVersion") {
        return Cow::Owned(Value::Object(event));
    }
    event.insert("apiVersion".to_owned(), json!(resource.api_version()));
    Cow::Owned(Value::Object(event))
}

/// The object as it is kept.
pub(crate) fn kept(resource: &'static Resource, object: Value) -> Value {
    let stored = resource.stored();
    if stored == resource {
        return object;
    }
    let mut event = renamed(&object, |name| {
        let known = EVENT_FIELDS.iter().find(|(own, _)| *own == name);
        known.map_or(name, |(_, core)| core)
    });
    for (field, nothing) in [
        ("source", json!({})),
        ("firstTimestamp", Value::Null),
        ("lastTimestamp", Value::Null),
    ] {
        event.entry(field).or_insert(nothing);
    }
    event.insert("apiVersion".to_owned(), json!(stored.api_version()));
    Value::Object(event)
}

fn renamed<'a>(object: &'a Value, name: impl Fn(&'a str) -> &'a str) -> Map<String, Value> {
    object
        .as_object()
        .into_iter()
        .flatten()
        .map(|(field, value)| (name(field).to_owned(), value.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_in_both_groups() {
        let resource = Resource::find("events.k8s.io", "v1", "events").unwrap();
        let sent = json!({
            "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e"},
            "regarding": {"kind": "Pod", "name": "p"}, "note": "hello", "reason": "R", "reportingController": "c",
        });
        let stored = kept(resource, sent.clone());
        assert_eq!(stored["apiVersion"], "v1");
        assert_eq!(stored["involvedObject"]["name"], "p");
        assert_eq!(stored["message"], "hello");
        let again = shown(resource, &stored);
        for (field, value) in sent.as_object().unwrap() {
            assert_eq!(again[field], *value, "{field}");
        }
    }
}
