//! Pods that leave while their processes may live on. A pod's object can go before its containers do (a deletion with
//! `--force`), and a pod can be said to have failed whose containers nobody speaks of. Untagged at that moment, what
//! still runs would reach the API server with its own token (invariant 1). So such a pod stays tagged, in no session,
//! until its cgroup is gone, or until the API server shows it without the label.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use kube::{Api, api::DynamicObject};
use tokio::{
    sync::watch,
    task::{JoinSet, spawn_blocking},
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use super::{
    ObjectKey,
    layout::Layout,
    pods::{self, LABEL, TaggedPod},
    watch::{Objects, Seen},
};
use crate::backoff;

/// How often it is looked whether the cgroups are gone.
const LOOK: Duration = Duration::from_secs(1);
/// A cgroup has to be missing for so long: a kubelet that hears of a deletion late may only be making it.
const SETTLE: Duration = Duration::from_secs(10);
/// Pods asked about at a time.
const ASKS: usize = 4;
/// How long the API server may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest wait between two questions about a pod.
const BACKOFF_MOST: Duration = Duration::from_secs(30);

/// The pods to be enrolled: those that carry a session, and those that are leaving. Published together, so that no pod
/// is in neither between two looks.
#[derive(Debug, Clone, Default)]
pub struct Carried {
    /// As they are followed.
    pub seen: Seen<Arc<TaggedPod>>,
    /// To be tagged and refused.
    pub leaving: Vec<Arc<TaggedPod>>,
}

/// Follows `pods`, and keeps those that leave for as long as their cgroups below `root` are there.
#[must_use]
pub fn follow_leaving(
    client: kube::Client,
    mut pods: watch::Receiver<Seen<Arc<TaggedPod>>>,
    root: PathBuf,
) -> watch::Receiver<Carried> {
    let (publish, carried) = watch::channel(Carried::default());
    tokio::spawn(async move {
        let mut departures = Departures::default();
        let mut asks = JoinSet::new();
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut changed = true;
        loop {
            let seen = pods.borrow_and_update().clone();
            if let Some(objects) = &seen.objects {
                departures.observe(objects, Instant::now());
            }
            let there = look(departures.pods(), root.clone()).await;
            departures.looked(&there, Instant::now());
            publish.send_if_modified(|last| {
                let leaving = departures.pods();
                let modified = changed || last.leaving != leaving;
                *last = Carried { seen, leaving };
                modified
            });
            for question in departures.due(Instant::now(), ASKS.saturating_sub(asks.len())) {
                let client = client.clone();
                asks.spawn(async move {
                    let answer = ask(client, &question).await;
                    (question, answer)
                });
            }
            changed = false;
            tokio::select! {
                () = publish.closed() => return,
                heard = pods.changed() => match heard {
                    Ok(()) => changed = true,
                    Err(_) => return,
                },
                Some(answered) = asks.join_next() => if let Ok((question, answer)) = answered {
                    departures.answered(&question, answer, Instant::now());
                },
                _ = looks.tick(), if !departures.leaving.is_empty() => {}
            }
        }
    });
    carried
}

/// Those whose cgroups are there, by UID. What can't be looked at counts as there.
async fn look(pods: Vec<Arc<TaggedPod>>, root: PathBuf) -> BTreeSet<String> {
    if pods.is_empty() {
        return BTreeSet::new();
    }
    let all: BTreeSet<String> = pods.iter().map(|pod| pod.uid.clone()).collect();
    let looked = spawn_blocking(move || {
        let layout = Layout::below(&root);
        let there = pods.into_iter().filter(|pod| has_cgroup(pod, &layout, &root));
        there.map(|pod| pod.uid.clone()).collect()
    });
    looked.await.unwrap_or(all)
}

fn has_cgroup(pod: &TaggedPod, layout: &Layout, root: &Path) -> bool {
    let Some(uid) = &pod.cgroup_uid else { return false };
    match root.join(layout.path(uid, pod.qos)).symlink_metadata() {
        Ok(_) => true,
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

async fn ask(client: kube::Client, question: &Question) -> Answer {
    let resource = pods::query("").resource;
    let api: Api<DynamicObject> = Api::namespaced_with(client, &question.key.namespace, &resource);
    match timeout(PATIENCE, api.get_opt(&question.key.name)).await {
        Ok(Ok(object)) => read(object.as_ref(), &question.uid),
        Ok(Err(error)) => {
            tracing::warn!(%error, pod = %question.key, "whether the pod is deleted can't be told yet: it stays refused");
            Answer::Unclear
        }
        Err(_) => {
            tracing::warn!(pod = %question.key, "whether the pod is deleted can't be told yet: the API server doesn't answer, and it stays refused");
            Answer::Unclear
        }
    }
}

fn read(object: Option<&DynamicObject>, uid: &str) -> Answer {
    match object.map(|object| &object.metadata) {
        Some(metadata) if metadata.uid.as_deref() == Some(uid) => {
            let labels = metadata.labels.as_ref();
            if labels.is_some_and(|labels| labels.contains_key(LABEL)) {
                // The watch will show it again, or that it has gone again.
                Answer::Unclear
            } else {
                Answer::Untagged
            }
        }
        _ => Answer::Deleted,
    }
}

/// What to ask the API server.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Question {
    key: ObjectKey,
    uid: String,
    /// The departure that it is about: a pod may have come back and left again meanwhile.
    departure: u64,
}

/// What it says of a pod that has left the watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// It is there, without the label.
    Untagged,
    /// It isn't there, or another is.
    Deleted,
    /// Nothing that can be relied upon.
    Unclear,
}

/// Which pods are leaving: decided from what was seen, found and answered.
#[derive(Debug, Default)]
struct Departures {
    /// The pods of the watch, by UID.
    present: BTreeMap<String, Arc<TaggedPod>>,
    leaving: BTreeMap<String, Leaving>,
    /// Of those present: over, and without a cgroup.
    done: BTreeSet<String>,
    count: u64,
}

#[derive(Debug)]
struct Leaving {
    pod: Arc<TaggedPod>,
    /// Since when its cgroup is missing.
    missing: Option<Instant>,
    departure: u64,
    /// When to ask next; `None` where there is nothing to ask, or an answer is awaited.
    ask_at: Option<Instant>,
    asked: u32,
}

impl Departures {
    /// To be kept tagged, in no session.
    fn pods(&self) -> Vec<Arc<TaggedPod>> {
        let leaving = self.leaving.values();
        leaving.map(|leaving| Arc::clone(&leaving.pod)).collect()
    }

    fn observe(&mut self, objects: &Objects<Arc<TaggedPod>>, now: Instant) {
        let present: BTreeMap<String, Arc<TaggedPod>> = objects
            .values()
            .filter(|pod| pod.cgroup_uid.is_some())
            .map(|pod| (pod.uid.clone(), Arc::clone(pod)))
            .collect();
        for (uid, pod) in &present {
            if !pod.is_over {
                self.leaving.remove(uid);
                self.done.remove(uid);
            } else if !self.done.contains(uid) {
                self.enlist(pod, None);
            }
        }
        for (uid, pod) in std::mem::take(&mut self.present) {
            if !present.contains_key(&uid) && !self.done.contains(&uid) {
                self.enlist(&pod, Some(now));
            }
        }
        self.done.retain(|uid| present.contains_key(uid));
        self.present = present;
    }

    fn enlist(&mut self, pod: &Arc<TaggedPod>, ask_at: Option<Instant>) {
        let leaving = self.leaving.entry(pod.uid.clone()).or_insert_with(|| {
            self.count += 1;
            Leaving {
                pod: Arc::clone(pod),
                missing: None,
                departure: self.count,
                ask_at: None,
                asked: 0,
            }
        });
        leaving.ask_at = leaving.ask_at.or(ask_at);
    }

    /// `there` are those whose cgroups were found.
    fn looked(&mut self, there: &BTreeSet<String>, now: Instant) {
        let Self {
            present, leaving, done, ..
        } = self;
        leaving.retain(|uid, leaving| {
            if there.contains(uid) {
                leaving.missing = None;
                return true;
            }
            let stays = now.saturating_duration_since(*leaving.missing.get_or_insert(now)) < SETTLE;
            if !stays && present.contains_key(uid) {
                done.insert(uid.clone());
            }
            stays
        });
    }

    /// What to ask now, `most` at the most. Where the cgroup is missing the answer would change nothing.
    fn due(&mut self, now: Instant, most: usize) -> Vec<Question> {
        let due = self.leaving.values_mut();
        due.filter(|leaving| leaving.missing.is_none() && leaving.ask_at.is_some_and(|at| at <= now))
            .take(most)
            .map(|leaving| {
                leaving.ask_at = None;
                leaving.asked += 1;
                Question {
                    key: leaving.pod.key.clone(),
                    uid: leaving.pod.uid.clone(),
                    departure: leaving.departure,
                }
            })
            .collect()
    }

    fn answered(&mut self, question: &Question, answer: Answer, now: Instant) {
        let leaving = &mut self.leaving;
        let Some(asked) = leaving.get_mut(&question.uid) else {
            return;
        };
        if asked.departure != question.departure {
            return;
        }
        match answer {
            Answer::Untagged => drop(leaving.remove(&question.uid)),
            // A UID doesn't come back.
            Answer::Deleted => {}
            Answer::Unclear => {
                let wait = Duration::from_secs(1 << asked.asked.min(5)).min(BACKOFF_MOST);
                asked.ask_at = Some(now + backoff::up_to(wait));
            }
        }
    }
}

#[cfg(test)]
mod tests;
