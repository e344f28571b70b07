//! What a deletion asks for and does: preconditions, finalizers, and the grace of a pod that a kubelet has to end.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{request::Query, resources::Resource, status::Status};

/// What became of a deletion.
#[derive(Debug, Clone)]
pub(crate) enum Deletion {
    /// The object is gone.
    Done(Arc<Value>),
    /// It goes when its finalizers are gone, or its kubelet has ended it.
    Marked(Arc<Value>),
}

impl Deletion {
    /// The object as it was left.
    pub(crate) fn object(self) -> Arc<Value> {
        match self {
            Self::Done(object) | Self::Marked(object) => object,
        }
    }
}

/// The `DeleteOptions` that are acted on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Options {
    grace_seconds: Option<i64>,
    uid: Option<String>,
    version: Option<String>,
    regardless: bool,
}

impl Options {
    /// Whatever anyone else wants: for those who stand beside the API.
    pub(crate) fn at_once() -> Self {
        Self {
            regardless: true,
            ..Self::default()
        }
    }

    /// Those of a request.
    pub(crate) fn of(query: &Query, body: &Value) -> Self {
        let text = |value: &Value| value.as_str().map(ToOwned::to_owned);
        let asked = query.first("gracePeriodSeconds").and_then(|text| text.parse().ok());
        Self {
            grace_seconds: body["gracePeriodSeconds"].as_i64().or(asked),
            uid: text(&body["preconditions"]["uid"]),
            version: text(&body["preconditions"]["resourceVersion"]),
            regardless: false,
        }
    }

    /// Whether the object is the one that is meant.
    pub(crate) fn meets(&self, resource: &Resource, name: &str, object: &Value) -> Result<(), Status> {
        let own = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
        let (uid, version) = (own("uid"), own("resourceVersion"));
        let why = if let Some(asked) = self.uid.as_deref().filter(|asked| *asked != uid) {
            format!(
                "the UID in the precondition ({asked}) does not match the UID in record ({uid}). The object might have been deleted and then recreated"
            )
        } else if let Some(asked) = self.version.as_deref().filter(|asked| *asked != version) {
            format!(
                "the ResourceVersion in the precondition ({asked}) does not match the ResourceVersion in record ({version}). The object might have been modified"
            )
        } else {
            return Ok(());
        };
        Err(Status::precondition(resource.group, resource.kind, name, &why))
    }

    /// The object with the mark of its deletion, where it can't go yet.
    pub(crate) fn mark(&self, resource: &Resource, object: &Value) -> Option<Value> {
        let grace = self.grace(resource, object);
        let held = object["metadata"]["finalizers"]
            .as_array()
            .is_some_and(|finalizers| !finalizers.is_empty());
        if self.regardless || (grace == 0 && !held) {
            return None;
        }
        let mut marked = object.clone();
        let metadata = &mut marked["metadata"];
        if metadata["deletionTimestamp"].is_null() || metadata["deletionGracePeriodSeconds"].as_i64() > Some(grace) {
            let end = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(grace);
            metadata["deletionTimestamp"] = json!(end.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
            metadata["deletionGracePeriodSeconds"] = json!(grace);
            if let Some(generation) = metadata["generation"].as_u64() {
                metadata["generation"] = json!(generation + 1);
            }
        }
        Some(marked)
    }

    /// How many seconds a kubelet has: none where no kubelet runs the pod, or it has ended by itself.
    fn grace(&self, resource: &Resource, object: &Value) -> i64 {
        let scheduled = object["spec"]["nodeName"].as_str().is_some_and(|node| !node.is_empty());
        let ended = matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        if resource.plural != "pods" || !scheduled || ended {
            return 0;
        }
        self.grace_seconds
            .or_else(|| object["spec"]["terminationGracePeriodSeconds"].as_i64())
            .unwrap_or(30)
    }
}

/// Whether an object that was marked has nobody left to wait for.
pub(crate) fn is_due(object: &Value) -> bool {
    let metadata = &object["metadata"];
    metadata["deletionTimestamp"].is_string()
        && metadata["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
        && metadata["finalizers"].as_array().is_none_or(Vec::is_empty)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn pods() -> &'static Resource {
        Resource::find("", "v1", "pods").unwrap()
    }

    #[rstest]
    #[case::unscheduled(json!({}), None, None)]
    #[case::scheduled(json!({"spec": {"nodeName": "n"}}), None, Some(30))]
    #[case::own_grace(json!({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": 5}}), None, Some(5))]
    #[case::at_once(json!({"spec": {"nodeName": "n"}}), Some(0), None)]
    #[case::ended(json!({"spec": {"nodeName": "n"}, "status": {"phase": "Failed"}}), None, None)]
    #[case::held(json!({"metadata": {"finalizers": ["x"]}}), None, Some(0))]
    fn marks(#[case] object: Value, #[case] grace_seconds: Option<i64>, #[case] expected: Option<i64>) {
        let options = Options {
            grace_seconds,
            ..Options::default()
        };
        let marked = options.mark(pods(), &object);
        let grace = marked.map(|object| object["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap());
        assert_eq!(grace, expected);
    }

    #[test]
    fn a_marked_object_goes_with_its_last_finalizer() {
        let mut object = json!({"metadata": {"finalizers": ["x"]}});
        assert!(!is_due(&object));
        object = Options::default().mark(pods(), &object).unwrap();
        assert!(!is_due(&object));
        object["metadata"]["finalizers"] = json!([]);
        assert!(is_due(&object));
    }
}
