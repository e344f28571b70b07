//! This node's pods that carry a session's label: what the agent needs of each, read leniently: one odd object keeps
//! no other from being read.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    api::{ApiResource, DynamicObject},
    core::gvk::GroupVersionKind,
};
use serde_json::Value;

use super::{ObjectKey, layout::Qos, watch::Query};
use crate::metrics::Watched;

/// The label by which a pod names its session.
pub const LABEL: &str = "understudy.dev/session";
/// On the object that stands for a static pod: the UID that the kubelet knows the pod by.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// Whoever may make pods there rules the cluster.
const SYSTEM: &str = "kube-system";

/// A pod that carries the label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaggedPod {
    /// Its name.
    pub key: ObjectKey,
    /// Its object's UID.
    pub uid: String,
    /// The UID that its cgroup is named by; `None` where that can't be known, and it can't be enrolled.
    pub cgroup_uid: Option<String>,
    /// Its class of service.
    pub qos: Qos,
    /// What the label says: a Session's name, if it is one.
    pub session: String,
    /// Its own service account.
    pub service_account: String,
    /// No container of it runs, and none will any more.
    pub is_over: bool,
}

/// The pods of a node that carry the label, in all namespaces.
#[must_use]
pub fn query(node: &str) -> Query {
    Query {
        what: Watched::Pods,
        resource: ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("", "v1", "Pod"), "pods"),
        namespace: None,
        labels: Some(LABEL.to_owned()),
        fields: Some(format!("spec.nodeName={node}")),
    }
}

impl TaggedPod {
    /// Takes from the object what is needed.
    #[must_use]
    pub fn read(object: &DynamicObject) -> Self {
        let metadata = &object.metadata;
        let spec = &object.data["spec"];
        let status = &object.data["status"];
        let label = metadata.labels.as_ref().and_then(|labels| labels.get(LABEL));
        let uid = metadata.uid.clone().unwrap_or_default();
        let namespace = metadata.namespace.clone().unwrap_or_default();
        let mirror = metadata.annotations.as_ref().and_then(|all| all.get(MIRROR));
        Self {
            cgroup_uid: cgroup_uid(&namespace, &uid, mirror.map(String::as_str)),
            key: ObjectKey {
                name: metadata.name.clone().unwrap_or_default(),
                namespace,
            },
            uid,
            qos: qos(spec, status),
            session: label.cloned().unwrap_or_default(),
            service_account: spec["serviceAccountName"].as_str().unwrap_or("default").to_owned(),
            is_over: is_over(status, metadata.deletion_timestamp.is_some()),
        }
    }

    /// For Events about it.
    #[must_use]
    pub fn reference(&self) -> ObjectReference {
        ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(self.key.namespace.clone()),
            name: Some(self.key.name.clone()),
            uid: Some(self.uid.clone()),
            ..ObjectReference::default()
        }
    }
}

/// The UID that the kubelet names the cgroup by. A static pod's is a hash, in an annotation that whoever makes pods can
/// write as well: were it believed everywhere, a pod's author could have another static pod's connections refused, the
/// control plane's among them. So it is believed in kube-system alone, and never where it could be a pod's own UID.
fn cgroup_uid(namespace: &str, uid: &str, mirror: Option<&str>) -> Option<String> {
    let plain = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    match mirror {
        None => Some(uid).filter(|uid| plain(uid)),
        Some(hash) => Some(hash).filter(|hash| {
            namespace == SYSTEM && hash.len() == 32 && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
        }),
    }
    .map(str::to_owned)
}

/// As the status says it or, before it does, as `k8s.io/component-helpers/resource` and the kubelet compute it.
fn qos(spec: &Value, status: &Value) -> Qos {
    match status["qosClass"].as_str() {
        Some("Guaranteed") => return Qos::Guaranteed,
        Some("Burstable") => return Qos::Burstable,
        Some("BestEffort") => return Qos::BestEffort,
        _ => {}
    }
    // Resources of the pod as a whole, where there are any, are all that counts.
    let resources: Vec<&Value> = match &spec["resources"] {
        Value::Object(whole) if !whole.is_empty() => vec![&spec["resources"]],
        _ => ["containers", "initContainers"]
            .iter()
            .filter_map(|kind| spec[kind].as_array())
            .flatten()
            .map(|container| &container["resources"])
            .collect(),
    };
    let set =
        |value: &Value| matches!(value, Value::String(text) if !text.trim_matches('0').is_empty()) || value.is_number();
    let kinds = ["cpu", "memory"];
    let any = resources
        .iter()
        .flat_map(|one| [&one["requests"], &one["limits"]])
        .any(|amounts| kinds.iter().any(|kind| set(&amounts[kind])));
    let all = !resources.is_empty()
        && resources.iter().all(|one| {
            kinds.iter().all(|kind| {
                let (request, limit) = (&one["requests"][kind], &one["limits"][kind]);
                set(limit) && (request.is_null() || request == limit)
            })
        });
    match (any, all) {
        (false, _) => Qos::BestEffort,
        (true, false) => Qos::Burstable,
        (true, true) => Qos::Guaranteed,
    }
}

/// When in doubt it isn't: untagged, a container that still runs would have its own way.
fn is_over(status: &Value, being_deleted: bool) -> bool {
    let mut containers = [
        "initContainerStatuses",
        "containerStatuses",
        "ephemeralContainerStatuses",
    ]
    .iter()
    .filter_map(|kind| status[kind].as_array())
    .flatten()
    .peekable();
    let known = containers.peek().is_some();
    let running = containers.any(|container| !container["state"]["running"].is_null());
    let ended = matches!(status["phase"].as_str(), Some("Succeeded" | "Failed"));
    !running && (ended || (being_deleted && known && all_terminated(status)))
}

fn all_terminated(status: &Value) -> bool {
    status["containerStatuses"]
        .as_array()
        .is_some_and(|all| all.iter().all(|container| !container["state"]["terminated"].is_null()))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    fn pod(rest: &Value) -> TaggedPod {
        let mut object = json!({
            "metadata": {"name": "shell", "namespace": "a", "uid": "0b-1", "labels": {LABEL: "alice"}},
        });
        for (name, value) in rest.as_object().unwrap() {
            match value.as_object() {
                Some(inner) => inner.iter().for_each(|(key, value)| object[name][key] = value.clone()),
                None => object[name] = value.clone(),
            }
        }
        TaggedPod::read(&serde_json::from_value(object).unwrap())
    }

    #[test]
    fn takes_what_is_needed() {
        let read = pod(&json!({"spec": {"serviceAccountName": "runner"}, "status": {"qosClass": "Burstable"}}));
        assert_eq!(read.key.to_string(), "a/shell");
        assert_eq!(read.cgroup_uid.as_deref(), Some("0b-1"));
        assert_eq!(
            (read.session.as_str(), read.service_account.as_str()),
            ("alice", "runner")
        );
        assert_eq!((read.qos, read.is_over), (Qos::Burstable, false));
    }

    #[rstest]
    #[case::nothing(json!({}), Qos::BestEffort)]
    #[case::empty(json!({"containers": [{"name": "a", "resources": {}}]}), Qos::BestEffort)]
    #[case::zero(json!({"containers": [{"resources": {"requests": {"cpu": "0"}}}]}), Qos::BestEffort)]
    #[case::other_resources(json!({"containers": [{"resources": {"limits": {"nvidia.com/gpu": "1"}}}]}), Qos::BestEffort)]
    #[case::request(json!({"containers": [{"resources": {"requests": {"cpu": "1"}}}]}), Qos::Burstable)]
    #[case::one_limit(json!({"containers": [{"resources": {"limits": {"cpu": "1"}}}]}), Qos::Burstable)]
    #[case::limits(json!({"containers": [{"resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}]}), Qos::Guaranteed)]
    #[case::less(json!({"containers": [{"resources": {"limits": {"cpu": "2", "memory": "1Gi"},
        "requests": {"cpu": "1", "memory": "1Gi"}}}]}), Qos::Burstable)]
    #[case::one_of_two(json!({"containers": [{"resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}, {}]}), Qos::Burstable)]
    #[case::an_init_container_without(json!({"containers": [{"resources": {"limits": {"cpu": "1", "memory": "1Gi"}}}],
        "initContainers": [{}]}), Qos::Burstable)]
    #[case::of_the_pod(json!({"resources": {"limits": {"cpu": "1", "memory": "1Gi"}}, "containers": [{}]}), Qos::Guaranteed)]
    fn classes(#[case] spec: Value, #[case] expected: Qos) {
        assert_eq!(qos(&spec, &Value::Null), expected);
        assert_eq!(qos(&spec, &json!({"qosClass": "BestEffort"})), Qos::BestEffort);
    }

    #[rstest]
    #[case::running(json!({"phase": "Running", "containerStatuses": [{"state": {"running": {}}}]}), false, false)]
    #[case::unknown(json!({}), false, false)]
    #[case::deleted_before_it_began(json!({"phase": "Pending"}), true, false)]
    #[case::succeeded(json!({"phase": "Succeeded", "containerStatuses": [{"state": {"terminated": {}}}]}), false, true)]
    #[case::evicted(json!({"phase": "Failed"}), false, true)]
    #[case::failed_and_running(json!({"phase": "Failed", "containerStatuses": [{"state": {"running": {}}}]}), false, false)]
    #[case::terminating(json!({"phase": "Running", "containerStatuses": [{"state": {"running": {}}}]}), true, false)]
    #[case::one_still_runs(json!({"phase": "Running", "containerStatuses": [{"state": {"terminated": {}}},
        {"state": {"running": {}}}]}), true, false)]
    #[case::ephemeral_still_runs(json!({"phase": "Running", "containerStatuses": [{"state": {"terminated": {}}}],
        "ephemeralContainerStatuses": [{"state": {"running": {}}}]}), true, false)]
    #[case::terminated(json!({"phase": "Running", "containerStatuses": [{"state": {"terminated": {}}}]}), true, true)]
    #[case::restarting(json!({"phase": "Running", "containerStatuses": [{"state": {"terminated": {}}}]}), false, false)]
    #[case::waiting(json!({"phase": "Pending", "containerStatuses": [{"state": {"waiting": {}}}]}), true, false)]
    fn over(#[case] status: Value, #[case] being_deleted: bool, #[case] expected: bool) {
        assert_eq!(is_over(&status, being_deleted), expected);
    }

    #[rstest]
    #[case::a_pods_own("a", "0b7c-11", None, Some("0b7c-11"))]
    #[case::none("a", "", None, None)]
    #[case::no_name_of_a_directory("a", "../x", None, None)]
    #[case::a_static_pod(
        "kube-system",
        "0b7c-11",
        Some("0123456789abcdef0123456789abcdef"),
        Some("0123456789abcdef0123456789abcdef")
    )]
    #[case::anyone_can_say_so("a", "0b7c-11", Some("0123456789abcdef0123456789abcdef"), None)]
    #[case::anothers_uid("kube-system", "0b7c-11", Some("4c5bd1f0-0000-0000-0000-000000000000"), None)]
    fn cgroups(
        #[case] namespace: &str,
        #[case] uid: &str,
        #[case] mirror: Option<&str>,
        #[case] expected: Option<&str>,
    ) {
        assert_eq!(cgroup_uid(namespace, uid, mirror).as_deref(), expected);
    }
}
