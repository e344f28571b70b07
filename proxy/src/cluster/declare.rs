//! What the pods and the Sessions seen declare to the store: a plain function.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;

use super::{
    ObjectKey,
    layout::Layout,
    pods::TaggedPod,
    sessions::{SessionObject, find},
    watch::Seen,
};
use crate::{
    pod::{SessionId, WantedPod},
    sessions::{Declared, resource::NodeStatus, spec::SpecError},
};

/// The session that a pod names: always one of its own namespace.
#[must_use]
pub fn session_of(pod: &TaggedPod) -> SessionId {
    SessionId::new(&pod.key.namespace, &pod.session)
        .unwrap_or_else(|_| SessionId::of_no_session(&pod.key.namespace, &pod.session))
}

/// The namespaces that have pods to enrol here.
#[must_use]
pub fn namespaces<'a>(pods: impl Iterator<Item = &'a Arc<TaggedPod>>) -> BTreeSet<String> {
    pods.filter(|pod| !pod.is_over)
        .map(|pod| pod.key.namespace.clone())
        .collect()
}

/// A declaration for each session that a pod here names. A pod is declared whatever becomes of its session: it stays
/// intercepted, and is refused. So are those that are `leaving`, whatever session they had.
#[must_use]
pub fn declare<'a>(
    pods: impl Iterator<Item = &'a Arc<TaggedPod>>,
    leaving: impl Iterator<Item = &'a Arc<TaggedPod>>,
    sessions: &BTreeMap<String, Seen<Arc<SessionObject>>>,
    layout: &Layout,
) -> Vec<Declared> {
    let mut carried: BTreeMap<SessionId, Vec<WantedPod>> = BTreeMap::new();
    let running = pods.filter(|pod| !pod.is_over).map(|pod| (pod, session_of(pod)));
    let leaving = leaving.map(|pod| (pod, SessionId::of_no_session(&pod.key.namespace, &pod.session)));
    for (pod, session) in running.chain(leaving) {
        let wanted = pod.cgroup_uid.as_deref().map(|uid| WantedPod {
            cgroup: layout.path(uid, pod.qos),
            name: pod.key.to_string().into(),
            session: session.clone(),
            uid: Some(pod.uid.as_str()).filter(|uid| !uid.is_empty()).map(Arc::from),
            service_account: Some(pod.service_account.as_str().into()),
        });
        carried.entry(session).or_default().extend(wanted);
    }
    carried
        .into_iter()
        .map(|(id, pods)| declared(id, pods, sessions))
        .collect()
}

/// What a session says that no pod here names.
#[must_use]
pub fn without_pods(id: SessionId, sessions: &BTreeMap<String, Seen<Arc<SessionObject>>>) -> Declared {
    declared(id, Vec::new(), sessions)
}

fn declared(id: SessionId, pods: Vec<WantedPod>, sessions: &BTreeMap<String, Seen<Arc<SessionObject>>>) -> Declared {
    let (spec, object) = resolve(&id, sessions);
    Declared {
        id,
        pods,
        spec,
        incarnation: object.map(|object| Arc::clone(&object.uid)),
        last_used: object.and_then(|object| last_used(object)),
    }
}

fn resolve<'a>(
    id: &SessionId,
    sessions: &'a BTreeMap<String, Seen<Arc<SessionObject>>>,
) -> (
    Result<crate::sessions::spec::SessionSpec, SpecError>,
    Option<&'a Arc<SessionObject>>,
) {
    // No Session's name: nothing has to be listed to know that there is none.
    if SessionId::new(id.namespace(), id.name()).is_err() {
        return (Err(SpecError::NotFound), None);
    }
    let listed = sessions.get(id.namespace()).is_some_and(|seen| seen.objects.is_some());
    if !listed {
        return (Err(SpecError::Unknown), None);
    }
    let key = ObjectKey {
        namespace: id.namespace().to_owned(),
        name: id.name().to_owned(),
    };
    match find(sessions, &key).filter(|object| !object.is_deleted) {
        None => (Err(SpecError::NotFound), None),
        Some(object) => (object.spec.clone(), Some(object)),
    }
}

/// The latest that any node reported: neither an agent that starts anew nor a pod made anew renews a session.
fn last_used(object: &SessionObject) -> Option<Timestamp> {
    object.status.nodes.iter().filter_map(NodeStatus::last_used).max()
}

/// What makes one declaration another: parsed specs are told apart by the generation they were parsed from.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Fingerprint(Vec<(SessionId, Vec<WantedPod>, Standing)>);

#[derive(Debug, PartialEq, Eq)]
enum Standing {
    Unknown,
    NotFound,
    Object(Arc<str>, i64),
}

impl Fingerprint {
    pub(super) fn of(declared: &[Declared], sessions: &BTreeMap<String, Seen<Arc<SessionObject>>>) -> Self {
        let standing = |declared: &Declared| match &declared.incarnation {
            Some(uid) => {
                let key = ObjectKey {
                    namespace: declared.id.namespace().to_owned(),
                    name: declared.id.name().to_owned(),
                };
                Standing::Object(
                    Arc::clone(uid),
                    find(sessions, &key).map_or(0, |object| object.generation),
                )
            }
            None if matches!(declared.spec, Err(SpecError::Unknown)) => Standing::Unknown,
            None => Standing::NotFound,
        };
        Self(
            declared
                .iter()
                .map(|one| (one.id.clone(), one.pods.clone(), standing(one)))
                .collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;
    use crate::sessions::spec::Policy;

    fn pod(namespace: &str, name: &str, label: &str) -> Arc<TaggedPod> {
        let object = json!({
            "metadata": {"name": name, "namespace": namespace, "uid": format!("uid-{name}"),
                "labels": {"understudy.dev/session": label}},
            "status": {"qosClass": "Burstable"},
        });
        Arc::new(TaggedPod::read(&serde_json::from_value(object).unwrap()))
    }

    fn session(namespace: &str, name: &str, rest: &Value) -> Arc<SessionObject> {
        let mut object = json!({
            "metadata": {"name": name, "namespace": namespace, "uid": format!("uid-{name}"), "generation": 1},
            "spec": {"authMethod": "gateway-kubernetes-auth",
                "impersonate": {"namespace": "prod", "serviceAccountName": "viewer"}},
        });
        for (field, value) in rest.as_object().unwrap() {
            let target = &mut object[field];
            match (target.as_object_mut(), value.as_object()) {
                (Some(target), Some(value)) => target.extend(value.clone()),
                _ => *target = value.clone(),
            }
        }
        Arc::new(SessionObject::read(
            serde_json::from_value(object).unwrap(),
            Policy::default(),
        ))
    }

    fn listed(namespace: &str, sessions: &[Arc<SessionObject>]) -> BTreeMap<String, Seen<Arc<SessionObject>>> {
        let objects = sessions.iter().map(|one| (one.key.clone(), Arc::clone(one))).collect();
        let seen = Seen {
            objects: Some(Arc::new(objects)),
            failing: None,
        };
        BTreeMap::from([(namespace.to_owned(), seen)])
    }

    fn layout() -> Layout {
        Layout::detect(Path::new("/sys/fs/cgroup/kubepods"), |_| None)
    }

    fn declared(pods: &[Arc<TaggedPod>], sessions: &BTreeMap<String, Seen<Arc<SessionObject>>>) -> Vec<Declared> {
        declare(pods.iter(), [].iter(), sessions, &layout())
    }

    #[test]
    fn pods_carry_the_sessions_of_their_own_namespace() {
        let sessions = listed("a", &[session("a", "alice", &json!({}))]);
        let found = declared(&[pod("a", "one", "alice"), pod("a", "two", "alice")], &sessions);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].id.to_string(), "a/alice");
        assert!(found[0].spec.is_ok());
        assert_eq!(found[0].incarnation.as_deref(), Some("uid-alice"));
        let names: Vec<_> = found[0].pods.iter().map(|pod| &*pod.name).collect();
        assert_eq!(names, ["a/one", "a/two"]);
        assert_eq!(found[0].pods[0].cgroup, Path::new("burstable/poduid-one"));
    }

    /// The second thing that the issue asks to be shown: another namespace's session is none.
    #[test]
    fn a_pod_without_a_session_is_declared_and_refused() {
        let mut sessions = listed("a", &[session("a", "alice", &json!({}))]);
        sessions.extend(listed("b", &[]));
        sessions.insert("c".to_owned(), Seen::default());
        for (pod, expected) in [
            (pod("b", "other-namespace", "alice"), "NotFound"),
            (pod("a", "no-such", "bob"), "NotFound"),
            (pod("a", "no-name", "Not_A.Name-"), "NotFound"),
            (pod("a", "empty", ""), "NotFound"),
            (pod("c", "not-listed", "alice"), "Unknown"),
            (pod("d", "not-watched", "alice"), "Unknown"),
        ] {
            let found = declared(std::slice::from_ref(&pod), &sessions);
            assert_eq!(found.len(), 1, "{pod:?}");
            assert_eq!(found[0].pods.len(), 1, "{pod:?}");
            let error = found[0].spec.as_ref().unwrap_err();
            assert_eq!(format!("{error:?}"), expected, "{pod:?}");
        }
    }

    #[test]
    fn a_session_that_is_refused_or_being_deleted_keeps_its_pods_tagged() {
        let bad = json!({"spec": {"authMethod": "magic"}});
        let deleted = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
        for (rest, expected) in [(bad, "magic"), (deleted, "no Session of that name")] {
            let sessions = listed("a", &[session("a", "alice", &rest)]);
            let found = declared(&[pod("a", "one", "alice")], &sessions);
            assert_eq!(found[0].pods.len(), 1);
            let said = found[0].spec.as_ref().unwrap_err().to_string();
            assert!(said.contains(expected), "{said}");
        }
    }

    #[test]
    fn a_session_of_the_listener_needs_no_pod() {
        let sessions = listed("a", &[session("a", "alice", &json!({}))]);
        let found = without_pods("a/alice".parse().unwrap(), &sessions);
        assert!(found.spec.is_ok() && found.pods.is_empty() && found.incarnation.is_some());
        let none = without_pods("a/bob".parse().unwrap(), &sessions);
        assert!(matches!(none.spec, Err(SpecError::NotFound)));
    }

    #[test]
    fn a_pod_that_is_over_is_not_wanted() {
        let mut over = TaggedPod::clone(&pod("a", "one", "alice"));
        over.is_over = true;
        let sessions = listed("a", &[session("a", "alice", &json!({}))]);
        assert!(declared(&[Arc::new(over.clone())], &sessions).is_empty());
        assert!(namespaces([Arc::new(over)].iter()).is_empty());
    }

    #[test]
    fn a_pod_that_is_leaving_is_wanted_in_no_session_whatever_its_own() {
        let sessions = listed("a", &[session("a", "alice", &json!({}))]);
        let (stays, leaves) = (pod("a", "one", "alice"), pod("a", "two", "alice"));
        let elsewhere = pod("not-watched", "three", "alice");
        let leaving = [leaves, elsewhere];
        let found = declare([stays].iter(), leaving.iter(), &sessions, &layout());
        let text: Vec<_> = found
            .iter()
            .map(|one| {
                let names: Vec<_> = one
                    .pods
                    .iter()
                    .map(|pod| format!("{}={}", pod.name, pod.session))
                    .collect();
                format!("{} {:?}", names.join(" "), one.spec.as_ref().err())
            })
            .collect();
        assert_eq!(
            text,
            [
                "a/two=a/NOT-alice Some(NotFound)",
                "a/one=a/alice None",
                "not-watched/three=not-watched/NOT-alice Some(NotFound)"
            ]
        );
    }

    #[test]
    fn last_use_is_the_latest_that_any_node_wrote() {
        let rest = json!({"status": {"nodes": [
            {"node": "node-2", "pods": 1, "connections": 0, "lastUsed": "2026-01-02T00:00:00Z"},
            {"node": "node-1", "pods": 1, "connections": 0, "lastUsed": "2026-01-01T00:00:00Z"},
        ]}});
        let sessions = listed("a", &[session("a", "alice", &rest)]);
        let found = declared(&[pod("a", "one", "alice")], &sessions);
        assert_eq!(found[0].last_used.unwrap().to_string(), "2026-01-02T00:00:00Z");
    }

    #[test]
    fn a_status_alone_makes_no_other_declaration() {
        let pods = [pod("a", "one", "alice")];
        let of = |rest: &Value| {
            let sessions = listed("a", &[session("a", "alice", rest)]);
            Fingerprint::of(&declared(&pods, &sessions), &sessions)
        };
        let first = of(&json!({}));
        assert_eq!(first, of(&json!({"status": {"phase": "Active", "nodes": []}})));
        assert_ne!(first, of(&json!({"metadata": {"generation": 2}})));
        assert_ne!(first, of(&json!({"metadata": {"uid": "another"}})));
        assert_ne!(
            first,
            of(&json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}))
        );
    }
}
