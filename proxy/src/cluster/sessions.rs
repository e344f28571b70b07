//! The Sessions of the namespaces that have pods with a session on this node, and of no other.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Resource as _,
    api::{ApiResource, DynamicObject},
};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until},
};

use super::{
    ObjectKey,
    watch::{Objects, Query, Seen, follow},
};
use crate::{
    metrics::{Metrics, Watched},
    sessions::{
        resource::{Session, SessionStatus},
        spec::{Policy, SessionSpec, SpecError},
    },
};

/// A namespace is watched for so long after its last pod has gone: pods are often made anew.
pub const LINGER: Duration = Duration::from_secs(30);

/// A Session, as far as the agent needs it.
#[derive(Debug, Clone)]
pub struct SessionObject {
    /// Its name.
    pub key: ObjectKey,
    /// What tells it from another of the same name.
    pub uid: Arc<str>,
    /// Goes up with each change of its spec.
    pub generation: i64,
    /// Being deleted, it isn't one any more, whatever keeps its object.
    pub is_deleted: bool,
    /// What it says, or why that is refused.
    pub spec: Result<SessionSpec, SpecError>,
    /// How long it may go unused, where it says so.
    pub idle_timeout: Option<SignedDuration>,
    /// What agents have reported.
    pub status: SessionStatus,
}

impl SessionObject {
    /// Takes from the object what is needed. One that doesn't fit is refused by itself.
    #[must_use]
    pub fn read(mut object: DynamicObject, policy: Policy) -> Self {
        let metadata = object.metadata;
        let created: Option<Timestamp> = metadata.creation_timestamp.map(|time| time.0);
        let spec = object.data["spec"].take();
        let spec = SessionSpec::of_resource(spec, created, policy);
        let idle_timeout = spec.as_ref().ok().and_then(|spec| spec.idle_timeout);
        Self {
            key: ObjectKey {
                namespace: metadata.namespace.unwrap_or_default(),
                name: metadata.name.unwrap_or_default(),
            },
            uid: metadata.uid.unwrap_or_default().into(),
            generation: metadata.generation.unwrap_or_default(),
            is_deleted: metadata.deletion_timestamp.is_some(),
            spec,
            idle_timeout: idle_timeout.and_then(|time| time.try_into().ok()),
            // Written by agents alone, and by none in another form than this, until there is another version.
            status: serde_json::from_value(object.data["status"].take()).unwrap_or_default(),
        }
    }

    /// For Events about it.
    #[must_use]
    pub fn reference(&self) -> ObjectReference {
        ObjectReference {
            api_version: Some(Session::api_version(&()).into_owned()),
            kind: Some(Session::kind(&()).into_owned()),
            namespace: Some(self.key.namespace.clone()),
            name: Some(self.key.name.clone()),
            uid: Some(self.uid.to_string()),
            ..ObjectReference::default()
        }
    }
}

/// The Sessions of each namespace that is watched; `objects` is `None` where they haven't been listed yet.
pub type ByNamespace = Arc<BTreeMap<String, Seen<Arc<SessionObject>>>>;

/// One session, where its namespace has been listed.
#[must_use]
pub fn find<'a>(
    sessions: &'a BTreeMap<String, Seen<Arc<SessionObject>>>,
    key: &ObjectKey,
) -> Option<&'a Arc<SessionObject>> {
    sessions.get(&key.namespace)?.objects.as_ref()?.get(key)
}

/// Watches the Sessions of `namespaces`, for as long as that has a sender.
#[must_use]
pub fn watch_namespaces(
    client: kube::Client,
    mut namespaces: watch::Receiver<BTreeSet<String>>,
    policy: Policy,
    metrics: Metrics,
) -> watch::Receiver<ByNamespace> {
    let (publish, sessions) = watch::channel(ByNamespace::default());
    tokio::spawn(async move {
        let changed = Arc::new(Notify::new());
        let mut watched: BTreeMap<String, Namespace> = BTreeMap::new();
        loop {
            let wanted = namespaces.borrow_and_update().clone();
            let now = Instant::now();
            for namespace in &wanted {
                let watch = watched.entry(namespace.clone()).or_insert_with(|| Namespace {
                    seen: follow(
                        client.clone(),
                        query(namespace),
                        &metrics,
                        Arc::clone(&changed),
                        move |object| Arc::new(SessionObject::read(object, policy)),
                    ),
                    leaves: None,
                });
                watch.leaves = None;
            }
            for (namespace, watch) in &mut watched {
                if !wanted.contains(namespace) && watch.leaves.is_none() {
                    watch.leaves = Some(now + LINGER);
                }
            }
            // What isn't read any more isn't watched any more.
            watched.retain(|_, watch| watch.leaves.is_none_or(|at| at > now));
            let all = watched
                .iter()
                .map(|(name, watch)| (name.clone(), watch.seen.borrow().clone()));
            publish.send_replace(Arc::new(all.collect()));

            let next_to_leave = watched.values().filter_map(|watch| watch.leaves).min();
            tokio::select! {
                () = publish.closed() => return,
                changed = namespaces.changed() => if changed.is_err() { return },
                () = changed.notified() => {}
                () = sleep_until(next_to_leave.unwrap_or(now)), if next_to_leave.is_some() => {}
            }
        }
    });
    sessions
}

struct Namespace {
    seen: watch::Receiver<Seen<Arc<SessionObject>>>,
    leaves: Option<Instant>,
}

/// The Sessions of a namespace.
#[must_use]
pub fn query(namespace: &str) -> Query {
    Query {
        what: Watched::Sessions,
        resource: ApiResource::erase::<Session>(&()),
        namespace: Some(namespace.to_owned()),
        labels: None,
        fields: None,
    }
}

/// The Sessions listed in all the namespaces.
pub fn all(sessions: &BTreeMap<String, Seen<Arc<SessionObject>>>) -> impl Iterator<Item = &Arc<SessionObject>> {
    sessions
        .values()
        .filter_map(|seen| seen.objects.as_ref())
        .flat_map(|objects: &Objects<_>| objects.values())
}
