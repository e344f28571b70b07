//! The one writer of Sessions' status: what [`status`](super::status) says should stand there, when it doesn't, and not
//! faster than an API server with 5,000 such agents bears.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use kube::{
    Api, Resource as _,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    time::{Instant, Interval, MissedTickBehavior, interval, timeout},
};

use super::{
    ObjectKey,
    events::{Events, Notice},
    sessions::{ByNamespace, SessionObject, all, find},
    status::{Local, SHARED, entry, entry_differs, left, manager, top, top_differs},
};
use crate::{
    backoff,
    clock::Clock,
    enrol::{PodState, PodStatus},
    metrics::{Metrics, Written},
    sessions::{
        resource::{NodeStatus, Session, SessionStatus},
        store::{Phase, Report, SessionLookup},
    },
};

/// How often it is looked whether something is to be written.
const LOOK: Duration = Duration::from_millis(500);
/// Between two writes of the same kind to one Session.
const GAP: Duration = Duration::from_secs(2);
/// What all agents may write is written after up to so long: one of them will be the first, and the others see it.
const COURTESY: Duration = Duration::from_secs(2);
/// What was written is taken for what stands there for so long, whatever the watch still shows.
const ECHO: Duration = Duration::from_secs(5);
/// Between any two writes of this agent's.
const PACE: Duration = Duration::from_millis(100);
/// How long the API server may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest wait after failures.
const BACKOFF_MOST: Duration = Duration::from_mins(1);

/// Writes status.
pub struct StatusWriter {
    api: Writes,
    node: String,
    clock: Clock,
    events: Events,
    progress: BTreeMap<ObjectKey, Progress>,
}

/// What was done of one Session's status.
#[derive(Debug)]
struct Progress {
    uid: Arc<str>,
    not_before: Instant,
    failures: u32,
    entry: Option<(Option<NodeStatus>, Instant)>,
    top: Option<(SessionStatus, Instant)>,
    top_due: Option<Instant>,
    /// When it was last used here, while there are pods.
    used: Option<jiff::Timestamp>,
}

/// What is to be done next.
#[derive(Debug, PartialEq)]
enum Step {
    Nothing,
    Entry(Option<NodeStatus>),
    Top(Box<SessionStatus>),
}

impl StatusWriter {
    /// A writer for `node`'s agent.
    #[must_use]
    pub fn new(client: kube::Client, node: &str, clock: Clock, metrics: Metrics, events: Events) -> Self {
        let mut pace = interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            api: Writes { client, metrics, pace },
            node: node.to_owned(),
            clock,
            events,
            progress: BTreeMap::new(),
        }
    }

    /// Keeps status as it should be until the Sessions aren't followed any more.
    pub async fn run(
        mut self,
        mut sessions: watch::Receiver<ByNamespace>,
        mut pods: watch::Receiver<Arc<[PodStatus]>>,
        lookup: SessionLookup,
    ) {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            if sessions.has_changed().is_err() || pods.has_changed().is_err() {
                return;
            }
            let seen = Arc::clone(&sessions.borrow_and_update());
            let here = {
                let pods = pods.borrow_and_update();
                locals(lookup.snapshot().reports(), &pods, &seen)
            };
            self.pass(&seen, &here).await;
        }
    }

    async fn pass(&mut self, sessions: &ByNamespace, here: &BTreeMap<ObjectKey, Local>) {
        self.progress.retain(|key, _| find(sessions, key).is_some());
        for object in all(sessions) {
            let progress = match self.progress.get_mut(&object.key) {
                Some(progress) if progress.uid == object.uid => progress,
                _ => {
                    self.progress.insert(object.key.clone(), Progress::new(&object.uid));
                    let Some(progress) = self.progress.get_mut(&object.key) else {
                        continue;
                    };
                    progress
                }
            };
            let local = here.get(&object.key);
            let now = self.clock.now();
            let step = progress.step(object, &self.node, local, now, Instant::now());
            let (body, field_manager) = match &step {
                Step::Nothing => continue,
                Step::Entry(None) => (json!({}), manager(&self.node)),
                Step::Entry(Some(entry)) => (json!({"nodes": [entry]}), manager(&self.node)),
                Step::Top(top) => (json!(top), SHARED.to_owned()),
            };
            let written = self.api.apply(object, &body, &field_manager).await;
            let news = match (&step, written) {
                (Step::Top(top), true) => news(object, top),
                _ => None,
            };
            progress.done(step, written, Instant::now());
            if let Some(notice) = news {
                self.events.tell(notice);
            }
        }
    }
}

impl Progress {
    fn new(uid: &Arc<str>) -> Self {
        Self {
            uid: Arc::clone(uid),
            not_before: Instant::now(),
            failures: 0,
            entry: None,
            top: None,
            top_due: None,
            used: None,
        }
    }

    /// What to do for a Session as it is seen, corrected by what was written just now.
    fn step(
        &mut self,
        seen: &SessionObject,
        node: &str,
        local: Option<&Local>,
        now: jiff::Timestamp,
        instant: Instant,
    ) -> Step {
        let recent = |at: Instant| instant.saturating_duration_since(at) < ECHO;
        let mut object = seen.clone();
        if let Some((entry, at)) = &self.entry
            && recent(*at)
        {
            object.status.nodes.retain(|other| other.node != node);
            object.status.nodes.extend(entry.clone());
        }
        if let Some((top, at)) = &self.top
            && recent(*at)
        {
            let nodes = std::mem::take(&mut object.status.nodes);
            object.status = SessionStatus { nodes, ..top.clone() };
        }
        let standing = object.status.nodes.iter().find(|entry| entry.node == node);
        let want = if let Some(local) = local {
            self.used = local.last_used;
            Some(entry(node, local))
        } else {
            let may_go_idle = seen.idle_timeout.is_some();
            left(node, standing, self.used).filter(|_| may_go_idle)
        };
        let gap_over = |last: Option<Instant>| last.is_none_or(|at| instant >= at + GAP);
        if instant < self.not_before {
            return Step::Nothing;
        }
        if entry_differs(standing, want.as_ref(), seen.idle_timeout, object.status.nodes.len()) {
            return if gap_over(self.entry.as_ref().map(|(_, at)| *at)) {
                Step::Entry(want)
            } else {
                Step::Nothing
            };
        }
        let was_here = want.is_some() || self.entry.is_some();
        let want = top(&object, node, standing, local, now);
        if !was_here || !top_differs(&object.status, &want) {
            self.top_due = None;
            return Step::Nothing;
        }
        let due = *self.top_due.get_or_insert_with(|| instant + backoff::within(COURTESY));
        if instant < due || !gap_over(self.top.as_ref().map(|(_, at)| *at)) {
            return Step::Nothing;
        }
        Step::Top(Box::new(want))
    }

    fn done(&mut self, step: Step, written: bool, now: Instant) {
        if !written {
            self.failures += 1;
            let wait = Duration::from_secs(1 << self.failures.min(6)).min(BACKOFF_MOST);
            self.not_before = now + backoff::up_to(wait);
            return;
        }
        self.failures = 0;
        match step {
            Step::Nothing => {}
            Step::Entry(entry) => self.entry = Some((entry, now)),
            Step::Top(top) => {
                self.top = Some((*top, now));
                self.top_due = None;
            }
        }
    }
}

/// Server-side apply, at a pace.
struct Writes {
    client: kube::Client,
    metrics: Metrics,
    pace: Interval,
}

impl Writes {
    /// Whether the API server took it.
    async fn apply(&mut self, object: &SessionObject, status: &Value, field_manager: &str) -> bool {
        self.pace.tick().await;
        let resource = ApiResource::erase::<Session>(&());
        let sessions: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &object.key.namespace, &resource);
        let body = json!({
            "apiVersion": Session::api_version(&()),
            "kind": Session::kind(&()),
            // With the UID, a Session made anew under the name isn't told what was true of the old one.
            "metadata": {"name": object.key.name, "namespace": object.key.namespace, "uid": &*object.uid},
            "status": status,
        });
        let params = PatchParams::apply(field_manager).force();
        let (name, patch) = (&object.key.name, Patch::Apply(&body));
        let answer = timeout(PATIENCE, sessions.patch_status(name, &params, &patch)).await;
        let outcome = match answer {
            Ok(Ok(_)) => Written::Done,
            Ok(Err(error)) => {
                tracing::warn!(%error, session = %object.key, "a Session's status can't be written yet");
                Written::Failed
            }
            Err(_) => {
                tracing::warn!(session = %object.key, "a Session's status can't be written yet: the API server doesn't answer");
                Written::Failed
            }
        };
        self.metrics.status_written(outcome);
        outcome == Written::Done
    }
}

/// What this node knows of each Session that pods here carry.
fn locals(
    reports: impl Iterator<Item = Report>,
    pods: &[PodStatus],
    sessions: &ByNamespace,
) -> BTreeMap<ObjectKey, Local> {
    let mut here = BTreeMap::new();
    for report in reports {
        let key = ObjectKey {
            namespace: report.id.namespace().to_owned(),
            name: report.id.name().to_owned(),
        };
        let Some(object) = find(sessions, &key) else { continue };
        // Else the store hasn't taken up yet what was seen.
        if object.spec.is_err() != (report.phase == Phase::Refused) {
            continue;
        }
        let spec = object.spec.as_ref().ok();
        let named = || Some(spec?.method.acts_as()?.name().to_owned());
        let count = |counts: fn(&PodState) -> bool| {
            let count = pods
                .iter()
                .filter(|pod| pod.session == report.id && counts(&pod.state))
                .count();
            i64::try_from(count).unwrap_or(i64::MAX)
        };
        let local = Local {
            refused: object.spec.as_ref().err().map(ToString::to_string),
            acts_as: report.acts_as.or_else(named),
            expires_at: report.expires_at.or_else(|| spec?.expires_at),
            pods: count(|state| matches!(state, PodState::Enrolled(_))),
            waiting: count(|state| matches!(state, PodState::Waiting(_) | PodState::Failed(_))),
            connections: i64::try_from(report.connections).unwrap_or(i64::MAX),
            last_used: report.last_used,
            phase: report.phase,
        };
        here.insert(key, local);
    }
    here
}

/// An Event on the Session, from whichever agent wrote that it is so.
fn news(before: &SessionObject, after: &SessionStatus) -> Option<Notice> {
    if before.status.phase == after.phase {
        return None;
    }
    let why = |type_: &str| {
        let condition = after.conditions.iter().find(|condition| condition.type_ == type_);
        condition.map(|condition| condition.message.clone()).unwrap_or_default()
    };
    let (reason, is_warning, note) = match after.phase.as_deref() {
        Some("Expired") => ("Expired", false, why("Expired")),
        Some("Idle") => ("Idle", false, why("Expired")),
        Some("Refused") => ("Refused", true, why("Accepted")),
        _ => return None,
    };
    Some(Notice {
        regarding: before.reference(),
        is_warning,
        reason,
        action: "Judge",
        note,
    })
}

#[cfg(test)]
mod tests;
