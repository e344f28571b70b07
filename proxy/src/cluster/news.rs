//! What is news of the pods here, compared with what has been told: a plain function with a memory.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use k8s_openapi::api::core::v1::ObjectReference;
use tokio::sync::watch;

use super::{
    ObjectKey,
    declare::session_of,
    events::{Events, Notice},
    pods::{LABEL, TaggedPod},
    sessions::{ByNamespace, find},
    watch::{Objects, Seen},
};
use crate::{
    enrol::{PodState, PodStatus},
    pod::SessionId,
};

/// How a pod's session stands, as far as a pod's author can do something about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It can't be known yet.
    Unknown,
    /// There is one that is accepted.
    Accepted,
    /// There is none.
    NotFound,
    /// What it says is refused.
    Refused(String),
}

/// What was told of each pod, by UID.
#[derive(Debug, Default)]
pub struct News {
    told: BTreeMap<String, Told>,
    had_first_look: bool,
}

#[derive(Debug)]
struct Told {
    enrolled: bool,
    failed: bool,
    standing: Standing,
}

impl News {
    /// What is to be told now. `pods` are the pods with a session, how each fares, and how its session stands.
    ///
    /// That a pod is enrolled isn't told of those that were there at the first look, or each restart of an agent would
    /// tell it again.
    pub fn look<'a>(
        &mut self,
        pods: impl Iterator<Item = (&'a TaggedPod, Option<&'a PodState>, Standing)>,
    ) -> Vec<Notice> {
        let mut notices = Vec::new();
        let mut present = BTreeSet::new();
        for (pod, state, standing) in pods {
            present.insert(pod.uid.clone());
            let enrolled = self.had_first_look;
            let told = self.told.entry(pod.uid.clone()).or_insert(Told {
                enrolled: !enrolled,
                failed: false,
                standing: Standing::Unknown,
            });
            let failure = match (state, &pod.cgroup_uid) {
                (_, None) => Some(
                    "its cgroup can't be known: the agent reads a static pod's annotation in kube-system alone"
                        .to_owned(),
                ),
                (Some(PodState::Failed(why)), _) => Some(why.clone()),
                _ => None,
            };
            match failure {
                Some(why) if !told.failed => {
                    told.failed = true;
                    told.enrolled = false;
                    let note = format!("Its connections to the API server can't be taken over: {why}");
                    notices.push(notice(pod.reference(), true, "EnrolmentFailed", "Enrol", note));
                }
                None if !told.enrolled && matches!(state, Some(PodState::Enrolled(_))) => {
                    told.enrolled = true;
                    told.failed = false;
                    let note = format!("It acts in the Session {}.", session_of(pod));
                    notices.push(notice(pod.reference(), false, "Enrolled", "Enrol", note));
                }
                _ => {}
            }
            if standing != Standing::Unknown && standing != told.standing {
                match &standing {
                    Standing::NotFound => {
                        let note = format!(
                            "Its requests to the API server are refused: the label {LABEL} says {:?}, and its namespace has no \
                             Session of that name. Make one, or mend the label.",
                            pod.session
                        );
                        notices.push(notice(pod.reference(), true, "SessionNotFound", "Resolve", note));
                    }
                    Standing::Refused(why) => {
                        let note =
                            format!("Its requests to the API server are refused: its Session can't be granted: {why}");
                        notices.push(notice(pod.reference(), true, "SessionRefused", "Resolve", note));
                    }
                    Standing::Accepted | Standing::Unknown => {}
                }
                told.standing = standing;
            }
        }
        self.told.retain(|uid, _| present.contains(uid));
        self.had_first_look = true;
        notices
    }
}

fn notice(
    regarding: ObjectReference,
    is_warning: bool,
    reason: &'static str,
    action: &'static str,
    note: String,
) -> Notice {
    Notice {
        regarding,
        is_warning,
        reason,
        action,
        note,
    }
}

/// Tells the news of the pods, until enrolment ends.
pub async fn tell_pods(
    mut pods: watch::Receiver<Seen<Arc<TaggedPod>>>,
    mut sessions: watch::Receiver<ByNamespace>,
    mut statuses: watch::Receiver<Arc<[PodStatus]>>,
    events: Events,
) {
    let mut news = News::default();
    loop {
        let notices = {
            let objects: Objects<Arc<TaggedPod>> = pods.borrow_and_update().objects.clone().unwrap_or_default();
            let sessions = Arc::clone(&sessions.borrow_and_update());
            let statuses = Arc::clone(&statuses.borrow_and_update());
            // With the session: one that is leaving may have the name of another that has come.
            let states: BTreeMap<(&str, &SessionId), &PodState> = statuses
                .iter()
                .map(|status| ((&*status.name, &status.session), &status.state))
                .collect();
            let views: Vec<_> = objects
                .values()
                .filter(|pod| !pod.is_over)
                .map(|pod| (pod, pod.key.to_string(), session_of(pod)))
                .collect();
            news.look(views.iter().map(|(pod, name, session)| {
                let state = states.get(&(name.as_str(), session)).copied();
                (&***pod, state, standing(pod, &sessions))
            }))
        };
        for notice in notices {
            events.tell(notice);
        }
        tokio::select! {
            changed = pods.changed() => if changed.is_err() { return },
            changed = sessions.changed() => if changed.is_err() { return },
            changed = statuses.changed() => if changed.is_err() { return },
        }
    }
}

fn standing(pod: &TaggedPod, sessions: &ByNamespace) -> Standing {
    let listed = sessions
        .get(&pod.key.namespace)
        .is_some_and(|seen| seen.objects.is_some());
    if !listed {
        return Standing::Unknown;
    }
    let key = ObjectKey {
        namespace: pod.key.namespace.clone(),
        name: pod.session.clone(),
    };
    match find(sessions, &key).filter(|object| !object.is_deleted) {
        None => Standing::NotFound,
        Some(object) => match &object.spec {
            Ok(_) => Standing::Accepted,
            Err(error) => Standing::Refused(error.to_string()),
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::pod::CgroupId;

    fn pod(name: &str) -> TaggedPod {
        let object = json!({"metadata": {"name": name, "namespace": "a", "uid": name, "labels": {LABEL: "alice"}}});
        TaggedPod::read(&serde_json::from_value(object).unwrap())
    }

    fn reasons(notices: &[Notice]) -> Vec<&'static str> {
        notices.iter().map(|notice| notice.reason).collect()
    }

    #[test]
    fn a_change_is_told_once() {
        let (old, new) = (pod("old"), pod("new"));
        let mut news = News::default();
        let enrolled = PodState::Enrolled(CgroupId(1));
        let failed = PodState::Failed("no namespace".into());
        let mut look = |state: &PodState, standing: Standing, all: &[&TaggedPod]| {
            let views = all.iter().map(|pod| (*pod, Some(state), standing.clone()));
            reasons(&news.look(views))
        };
        assert!(
            look(&enrolled, Standing::Accepted, &[&old]).is_empty(),
            "it was there before"
        );
        assert_eq!(look(&enrolled, Standing::Accepted, &[&old, &new]), ["Enrolled"]);
        assert!(look(&enrolled, Standing::Accepted, &[&old, &new]).is_empty());
        assert_eq!(look(&failed, Standing::Accepted, &[&new]), ["EnrolmentFailed"]);
        let failed_otherwise = PodState::Failed("no room".into());
        assert!(
            look(&failed_otherwise, Standing::Accepted, &[&new]).is_empty(),
            "it failed already"
        );
        assert_eq!(look(&enrolled, Standing::Accepted, &[&new]), ["Enrolled"]);
        assert_eq!(look(&enrolled, Standing::NotFound, &[&new]), ["SessionNotFound"]);
        assert!(look(&enrolled, Standing::Unknown, &[&new]).is_empty());
        assert!(look(&enrolled, Standing::NotFound, &[&new]).is_empty());
        assert_eq!(
            look(&enrolled, Standing::Refused("x".into()), &[&new]),
            ["SessionRefused"]
        );
        assert_eq!(
            look(&enrolled, Standing::Refused("y".into()), &[&new]),
            ["SessionRefused"]
        );
    }

    #[test]
    fn what_is_wrong_is_told_also_of_pods_that_were_there() {
        let mut news = News::default();
        let old = pod("old");
        let notices = news.look([(&old, None, Standing::NotFound)].into_iter());
        assert_eq!(reasons(&notices), ["SessionNotFound"]);
        assert!(notices[0].note.contains("\"alice\""), "{}", notices[0].note);
        assert_eq!(notices[0].regarding.uid.as_deref(), Some("old"));
    }
}
