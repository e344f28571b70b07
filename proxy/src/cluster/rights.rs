//! Whether a pod's own service account holds rights. Interception grants, it doesn't confine: a connection that isn't
//! intercepted goes out as the pod itself, and should then be powerless. Where it wouldn't be, an Event says so.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::{Api, api::PostParams};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::{
    events::{Events, Notice},
    pods::TaggedPod,
    watch::Seen,
};
use crate::backoff;

/// Answers for one service account are used again for so long.
const REMEMBERED: Duration = Duration::from_mins(10);
/// Between two reviews: nothing waits for them.
const PACE: Duration = Duration::from_millis(200);
/// An agent that starts asks about the pods it finds at some moment of this.
const START: Duration = Duration::from_secs(30);
/// The longest wait before those are asked about again of whom nothing could be told.
const BACKOFF_MOST: Duration = Duration::from_mins(10);
/// How long the API server may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The questions, and what a yes is called: verb, group, resource.
const QUESTIONS: [(&str, &str, &str, &str); 3] = [
    ("*", "*", "*", "do anything"),
    ("list", "", "secrets", "list secrets"),
    ("create", "", "pods", "create pods"),
];

/// A service account's namespace and name.
type Account = (String, String);

/// What pods' own service accounts may do, for an operator who asks.
#[derive(Clone)]
pub struct OwnRights {
    client: kube::Client,
    pods: watch::Receiver<Seen<Arc<TaggedPod>>>,
}

impl OwnRights {
    /// Of the pods of this node, asked by `client`.
    #[must_use]
    pub fn new(client: kube::Client, pods: watch::Receiver<Seen<Arc<TaggedPod>>>) -> Self {
        Self { client, pods }
    }

    /// The account of a pod, `namespace/name`, and what it may do of the telling things. Nothing where the pod isn't known,
    /// or the API server doesn't say.
    pub async fn of(&self, pod: &str) -> Option<(String, Vec<&'static str>)> {
        let objects = self.pods.borrow().objects.clone()?;
        let pod = objects.values().find(|known| known.key.to_string() == pod)?;
        let account = (pod.key.namespace.clone(), pod.service_account.clone());
        let rights = timeout(PATIENCE, review(&self.client, &account)).await.ok()?.ok()?;
        Some((account.1, rights))
    }
}

/// Looks at each pod once, until the pods aren't followed any more.
pub async fn tell_rights(client: kube::Client, mut pods: watch::Receiver<Seen<Arc<TaggedPod>>>, events: Events) {
    let mut looked: BTreeSet<String> = BTreeSet::new();
    let mut known: HashMap<Account, (Instant, Vec<&'static str>)> = HashMap::new();
    let mut failures: u32 = 0;
    sleep(backoff::within(START)).await;
    loop {
        let mut has_failed = false;
        let objects = pods.borrow_and_update().objects.clone().unwrap_or_default();
        looked.retain(|uid| objects.values().any(|pod| pod.uid == *uid));
        known.retain(|_, (at, _)| at.elapsed() < REMEMBERED);
        for pod in objects.values().filter(|pod| !pod.is_over) {
            if looked.contains(&pod.uid) {
                continue;
            }
            let account = (pod.key.namespace.clone(), pod.service_account.clone());
            let rights = if let Some((_, rights)) = known.get(&account) {
                rights.clone()
            } else {
                sleep(PACE).await;
                match timeout(PATIENCE, review(&client, &account)).await {
                    Ok(Ok(rights)) => {
                        known.insert(account, (Instant::now(), rights.clone()));
                        rights
                    }
                    Ok(Err(error)) => {
                        tracing::warn!(%error, pod = %pod.key, "whether the pod's own account holds rights can't be told yet");
                        has_failed = true;
                        continue;
                    }
                    Err(_) => {
                        has_failed = true;
                        break;
                    }
                }
            };
            looked.insert(pod.uid.clone());
            if let Some(notice) = notice(pod, &rights) {
                events.tell(notice);
            }
        }
        failures = if has_failed { failures.saturating_add(1) } else { 0 };
        if has_failed {
            let wait = Duration::from_secs(5 << failures.min(8)).min(BACKOFF_MOST);
            sleep(backoff::up_to(wait)).await;
            if pods.has_changed().is_err() {
                return;
            }
        } else if pods.changed().await.is_err() {
            return;
        }
    }
}

fn notice(pod: &TaggedPod, rights: &[&str]) -> Option<Notice> {
    if rights.is_empty() {
        return None;
    }
    Some(Notice {
        regarding: pod.reference(),
        is_warning: true,
        reason: "OwnRights",
        action: "Review",
        note: format!(
            "Its own service account {} may {}. A Session grants, it doesn't confine: what isn't intercepted acts with these \
             rights. Give the pod an account without any.",
            pod.service_account,
            rights.join(", ")
        ),
    })
}

/// What the account may do of the telling things.
async fn review(client: &kube::Client, (namespace, name): &Account) -> Result<Vec<&'static str>, kube::Error> {
    let reviews: Api<SubjectAccessReview> = Api::all(client.clone());
    let mut rights = Vec::new();
    for (verb, group, resource, called) in QUESTIONS {
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(format!("system:serviceaccount:{namespace}:{name}")),
                groups: Some(vec![
                    "system:serviceaccounts".to_owned(),
                    format!("system:serviceaccounts:{namespace}"),
                    "system:authenticated".to_owned(),
                ]),
                resource_attributes: Some(ResourceAttributes {
                    namespace: Some(namespace.clone()),
                    verb: Some(verb.to_owned()),
                    group: Some(group.to_owned()),
                    resource: Some(resource.to_owned()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let answer = reviews.create(&PostParams::default(), &review).await?;
        if answer.status.is_some_and(|status| status.allowed) {
            rights.push(called);
            // Nothing is left to ask of one who may do anything.
            if verb == "*" {
                break;
            }
        }
    }
    Ok(rights)
}

#[cfg(test)]
mod tests {
    use http::Method;
    use serde_json::json;

    use super::*;
    use crate::cluster::mock::{Answer, Mock};

    #[tokio::test(start_paused = true)]
    async fn an_account_is_asked_about_once_and_its_rights_are_told() {
        let mock = Mock::new(|request| {
            assert_eq!(request.method, Method::POST);
            let mut review = request.body.clone();
            let asked = &review["spec"]["resourceAttributes"]["resource"];
            review["status"] = json!({"allowed": asked == "secrets"});
            Answer::json(201, review)
        });
        let account = ("a".to_owned(), "runner".to_owned());
        assert_eq!(review(&mock.client(), &account).await.unwrap(), ["list secrets"]);
        let asked = mock.seen();
        assert_eq!(asked.len(), 3);
        assert_eq!(asked[0].body["spec"]["user"], "system:serviceaccount:a:runner");

        let object =
            json!({"metadata": {"name": "p", "namespace": "a", "uid": "u"}, "spec": {"serviceAccountName": "runner"}});
        let pod = TaggedPod::read(&serde_json::from_value(object).unwrap());
        let told = notice(&pod, &["list secrets"]).unwrap();
        assert!(told.note.contains("runner may list secrets"), "{}", told.note);
        assert!(notice(&pod, &[]).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_of_which_nothing_could_be_told_is_asked_about_again() {
        let mut failing = 2;
        let mock = Mock::new(move |request| {
            if request.path.contains("/events") {
                return Answer::json(201, request.body.clone());
            }
            if failing > 0 {
                failing -= 1;
                return Answer::status(503, "ServiceUnavailable");
            }
            let mut review = request.body.clone();
            review["status"] = json!({"allowed": true});
            Answer::json(201, review)
        });
        let object =
            json!({"metadata": {"name": "p", "namespace": "a", "uid": "u"}, "spec": {"serviceAccountName": "runner"}});
        let pod = Arc::new(TaggedPod::read(&serde_json::from_value(object).unwrap()));
        let (_keep, pods) = watch::channel(Seen {
            objects: Some(Arc::new([(pod.key.clone(), pod)].into())),
            failing: None,
        });
        let events = Events::start(mock.client(), "one", crate::metrics::Metrics::new());
        tokio::spawn(tell_rights(mock.client(), pods, events));
        sleep(Duration::from_mins(5)).await;
        let asked = mock.seen();
        let reviews = asked.iter().filter(|asked| asked.path.contains("reviews")).count();
        assert_eq!(reviews, 3, "two that failed, one that didn't, and no more");
        assert_eq!(asked.len(), reviews + 1, "it is told once");
    }
}
