//! The objects that the tools read of the cluster, leniently: a field that isn't there says nothing.

use jiff::Timestamp;
use serde_json::Value;

use super::{
    AskOptions,
    kubectl::{Kubectl, KubectlError},
    why::facts::{AgentPodFacts, PodFacts, SessionFacts},
};
use crate::cluster::pods::LABEL;

/// On the object that stands for a static pod.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// A pod of the agents', with its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AgentPod {
    pub(super) node: String,
    pub(super) facts: AgentPodFacts,
}

/// The pods of the agents, on one node or on all.
pub(super) async fn agent_pods(
    kubectl: &Kubectl<'_>,
    options: &AskOptions,
    node: Option<&str>,
) -> Result<Vec<AgentPod>, KubectlError> {
    let (namespace, labels) = (&options.agents_namespace, &options.agents_selector);
    let mut words = vec![
        "get",
        "pods",
        "--namespace",
        namespace,
        "--selector",
        labels,
        "-o",
        "json",
    ];
    let field = node.map(|node| format!("--field-selector=spec.nodeName={node}"));
    words.extend(field.as_deref());
    let list = kubectl.object(&words).await?.unwrap_or_default();
    Ok(items(&list).iter().map(agent_pod).collect())
}

/// The objects of a list, or the one object that it is.
pub(super) fn items(list: &Value) -> &[Value] {
    match list["items"].as_array() {
        Some(items) => items,
        None if list.is_object() => std::slice::from_ref(list),
        None => &[],
    }
}

/// Of several agents on a node, the one that is ready.
pub(super) fn of_node<'p>(pods: &'p [AgentPod], node: &str) -> Option<&'p AgentPod> {
    let mut here = pods.iter().filter(|pod| pod.node == node);
    here.clone().find(|pod| pod.facts.is_ready).or_else(|| here.next())
}

fn agent_pod(pod: &Value) -> AgentPod {
    let ready = pod["status"]["conditions"].as_array().into_iter().flatten();
    let waiting = pod["status"]["containerStatuses"].as_array().into_iter().flatten();
    let waiting = waiting
        .map(|container| &container["state"]["waiting"])
        .find(|waiting| waiting.is_object());
    AgentPod {
        node: text(&pod["spec"]["nodeName"]).unwrap_or_default(),
        facts: AgentPodFacts {
            name: text(&pod["metadata"]["name"]).unwrap_or_default(),
            is_ready: ready
                .filter(|condition| condition["type"] == "Ready")
                .any(|condition| condition["status"] == "True"),
            waiting: waiting.map(|waiting| {
                let reason = text(&waiting["reason"]).unwrap_or_else(|| "it waits".to_owned());
                match text(&waiting["message"]) {
                    Some(message) => format!("{reason}: {message}"),
                    None => reason,
                }
            }),
        },
    }
}

pub(super) fn pod(pod: &Value) -> PodFacts {
    PodFacts {
        label: text(&pod["metadata"]["labels"][LABEL]),
        node: text(&pod["spec"]["nodeName"]),
        phase: text(&pod["status"]["phase"]).unwrap_or_default(),
        is_static: pod["metadata"]["annotations"][MIRROR].is_string() && pod["metadata"]["namespace"] != "kube-system",
        is_leaving: pod["metadata"]["deletionTimestamp"].is_string(),
    }
}

pub(super) fn session(session: &Value) -> SessionFacts {
    let status = &session["status"];
    let conditions = status["conditions"].as_array().into_iter().flatten();
    let refusal = conditions
        .filter(|condition| condition["type"] == "Accepted" && condition["status"] == "False")
        .find_map(|condition| text(&condition["message"]));
    // What stands there may speak of another generation of the spec, or of no pod at all.
    let generation = &session["metadata"]["generation"];
    let is_current = status["observedGeneration"].is_null() || &status["observedGeneration"] == generation;
    SessionFacts {
        phase: text(&status["phase"]).filter(|_| is_current),
        refusal,
        expires_at: time(&session["spec"]["expiresAt"]).or_else(|| time(&status["expiresAt"]).filter(|_| is_current)),
        is_leaving: session["metadata"]["deletionTimestamp"].is_string(),
    }
}

pub(super) fn text(value: &Value) -> Option<String> {
    value.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}

pub(super) fn time(value: &Value) -> Option<Timestamp> {
    value.as_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pods_and_sessions_are_read() {
        let read = pod(&json!({
            "metadata": {"namespace": "a", "labels": {LABEL: "alice"}, "annotations": {MIRROR: "x"}},
            "spec": {"nodeName": "box"}, "status": {"phase": "Running"},
        }));
        assert_eq!(
            (read.label.as_deref(), read.node.as_deref()),
            (Some("alice"), Some("box"))
        );
        assert!(read.is_static && !read.is_leaving);
        assert_eq!(pod(&json!({})), PodFacts::default());

        let mut object = json!({
            "metadata": {"generation": 2},
            "spec": {},
            "status": {
                "phase": "Refused", "observedGeneration": 2, "expiresAt": "2026-01-01T00:00:00Z",
                "conditions": [{"type": "Accepted", "status": "False", "message": "spec.ttl is odd"}],
            },
        });
        let read = session(&object);
        assert_eq!(read.phase.as_deref(), Some("Refused"));
        assert_eq!(read.refusal.as_deref(), Some("spec.ttl is odd"));
        assert_eq!(read.expires_at.unwrap().to_string(), "2026-01-01T00:00:00Z");
        object["metadata"]["generation"] = json!(3);
        let read = session(&object);
        assert_eq!(
            (read.phase, read.expires_at),
            (None, None),
            "it speaks of an earlier spec"
        );
    }

    #[test]
    fn the_ready_one_of_a_nodes_agents_is_asked() {
        let object = |name: &str, status: &str| {
            json!({"metadata": {"name": name}, "spec": {"nodeName": "box"}, "status": {
                "conditions": [{"type": "Ready", "status": status}],
                "containerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}],
            }})
        };
        let list = json!({"items": [object("old", "False"), object("new", "True")]});
        let pods: Vec<AgentPod> = items(&list).iter().map(agent_pod).collect();
        assert_eq!(of_node(&pods, "box").unwrap().facts.name, "new");
        assert_eq!(
            of_node(&pods[..1], "box").unwrap().facts.waiting.as_deref(),
            Some("CrashLoopBackOff")
        );
        assert_eq!(of_node(&pods, "other"), None);
    }
}
