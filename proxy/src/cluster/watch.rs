//! Follows the objects that a list and a watch show: one owner task, which publishes what is there. A list that is made
//! anew takes the old one's place at once when it is complete; until then, and for as long as the API server can't be
//! reached, what was seen last stands.

use std::{collections::BTreeMap, pin::pin, sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use kube::{
    Api,
    api::{ApiResource, DynamicObject},
    runtime::{
        utils::{Backoff, ResetTimerBackoff},
        watcher::{self, Config, Event},
    },
};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep},
};

use super::ObjectKey;
use crate::{
    backoff,
    metrics::{Metrics, Watched},
    told,
};

/// The agents of a cluster that starts as a whole spread their first lists over so long. Short: pods wait. What is
/// followed later is so for a reason of its node's own.
const START: Duration = Duration::from_millis(250);
/// How long the server may leave a watch open. It ends it, and it is resumed where it was.
const WATCH_SECONDS: u32 = 290;

/// How long after a failure it is tried again, doubled with each, and each time with up to as much again of jitter: a
/// server that comes back isn't met by all at once. kube's own goes up to 30 seconds, and a Session that is deleted as
/// the server comes back would grant for up to a minute after.
const SOONEST: Duration = Duration::from_millis(800);
const LATEST: Duration = Duration::from_secs(10);
/// It begins anew only after so long without a failure.
const QUIET: Duration = Duration::from_mins(2);

/// How often a watch that fails on and on is complained of.
const COMPLAIN: Duration = Duration::from_mins(1);

/// The objects followed, by name.
pub type Objects<T> = Arc<BTreeMap<ObjectKey, T>>;

/// What is known of a kind of object.
#[derive(Debug)]
pub struct Seen<T> {
    /// What is there; `None` before the first list is complete.
    pub objects: Option<Objects<T>>,
    /// Why it couldn't be asked for when that was last tried. A watch that is resumed has nothing to say before
    /// something changes, so this may be over already: it tells why `objects` is `None`, and no more.
    pub failing: Option<Arc<str>>,
}

impl<T> Clone for Seen<T> {
    fn clone(&self) -> Self {
        Self {
            objects: self.objects.clone(),
            failing: self.failing.clone(),
        }
    }
}

impl<T> Default for Seen<T> {
    fn default() -> Self {
        Self {
            objects: None,
            failing: None,
        }
    }
}

/// What to follow.
#[derive(Debug, Clone)]
pub struct Query {
    /// What it is called in logs and metrics.
    pub what: Watched,
    /// The kind.
    pub resource: ApiResource,
    /// The namespace; all where there is none.
    pub namespace: Option<String>,
    /// A label selector.
    pub labels: Option<String>,
    /// A field selector.
    pub fields: Option<String>,
}

/// Follows what `query` selects until nobody reads the result any more. `keep` takes of an object what is needed, so
/// that the rest is forgotten; `changed` is notified after each publication.
///
/// Reads are consistent, not from whatever cache the API server has: after a relist an object from the past, a Session
/// that was deleted or a pod without its label, would undo what is in force.
pub fn follow<T: Clone + Send + Sync + 'static>(
    client: kube::Client,
    query: Query,
    metrics: &Metrics,
    changed: Arc<Notify>,
    keep: impl Fn(DynamicObject) -> T + Send + 'static,
) -> watch::Receiver<Seen<T>> {
    let (publish, seen) = watch::channel(Seen::default());
    let health = metrics.watch(query.what);
    tokio::spawn(async move {
        if query.what.is_followed_from_the_start() {
            sleep(backoff::within(START)).await;
        }
        let api: Api<DynamicObject> = match &query.namespace {
            Some(namespace) => Api::namespaced_with(client, namespace, &query.resource),
            None => Api::all_with(client, &query.resource),
        };
        let config = Config {
            label_selector: query.labels.clone(),
            field_selector: query.fields.clone(),
            // A limit would have the list read from etcd; without, a current server has it in its cache, and consistent.
            page_size: None,
            ..Config::default().timeout(WATCH_SECONDS)
        };
        let mut backoff = ResetTimerBackoff::new(Slower(SOONEST), QUIET);
        let mut events = pin!(watcher::watcher(api, config));
        let mut waited = true;
        let mut objects: BTreeMap<ObjectKey, T> = BTreeMap::new();
        let mut listing: BTreeMap<ObjectKey, T> = BTreeMap::new();
        let mut listed = false;
        let mut complained = None;
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = publish.closed() => return,
            };
            match event {
                // It doesn't end by itself.
                None => return,
                Some(Err(error)) => {
                    health.failed();
                    let text: Arc<str> = Arc::from(told::once(&error));
                    if complained.is_none_or(|at: Instant| at.elapsed() >= COMPLAIN) {
                        complained = Some(Instant::now());
                        tracing::warn!(watch = query.what.name(), namespace = query.namespace, error = %text,
                            "cannot be followed at the moment: what was seen last stays in force");
                    }
                    publish.send_modify(|seen| seen.failing = Some(text));
                    changed.notify_one();
                    // A server that is back is there to be asked for all anew. One that goes on so is waited for.
                    waited = !(waited && is_gone(&error));
                    if waited {
                        tokio::select! {
                            () = sleep(backoff.next().unwrap_or(LATEST)) => {}
                            () = publish.closed() => return,
                        }
                    }
                    continue;
                }
                Some(Ok(Event::Init)) => {
                    listing.clear();
                    continue;
                }
                Some(Ok(Event::InitApply(object))) => {
                    listing.insert(key(&object), keep(object));
                    continue;
                }
                Some(Ok(Event::InitDone)) => {
                    objects = std::mem::take(&mut listing);
                    listed = true;
                }
                Some(Ok(Event::Apply(object))) => {
                    objects.insert(key(&object), keep(object));
                }
                Some(Ok(Event::Delete(object))) => {
                    objects.remove(&key(&object));
                }
            }
            if listed {
                health.synced();
                let all = Arc::new(objects.clone());
                publish.send_replace(Seen {
                    objects: Some(all),
                    failing: None,
                });
                changed.notify_one();
            }
        }
    });
    seen
}

/// Whether the watch's place in time is one that the server doesn't remember.
fn is_gone(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchError(status) if status.code == 410)
}

/// How long to wait next, ever longer. It never gives up.
struct Slower(Duration);

impl Iterator for Slower {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let wait = self.0;
        self.0 = LATEST.min(wait * 2);
        Some(wait + backoff::within(wait))
    }
}

impl Backoff for Slower {
    fn reset(&mut self) {
        self.0 = SOONEST;
    }
}

fn key(object: &DynamicObject) -> ObjectKey {
    ObjectKey {
        namespace: object.metadata.namespace.clone().unwrap_or_default(),
        name: object.metadata.name.clone().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests;
