//! The objects and their history: one resource version for all, as etcd has it, and a feed of events for each
//! resource. HTTP and watches' wire form are elsewhere.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};
use tokio::sync::broadcast;

use super::{
    event::{Event, EventType},
    resources::Resource,
    status::Status,
    sync::lock,
};

/// How many events are kept to resume watches from.
const HISTORY: usize = 10_000;
/// How many events a watch may be behind before it is ended.
const FEED: usize = 4096;

/// Where an object is kept.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    group: &'static str,
    plural: &'static str,
    namespace: String,
    name: String,
}

impl Key {
    fn new(resource: &Resource, namespace: &str, name: &str) -> Self {
        Self {
            group: resource.group,
            plural: resource.plural,
            namespace: if resource.namespaced {
                namespace.to_owned()
            } else {
                String::new()
            },
            name: name.to_owned(),
        }
    }
}

/// What a watch begins with.
pub(crate) struct Subscription {
    /// Events since the version that was asked for.
    pub(crate) backlog: Vec<Arc<Event>>,
    /// The version as of which the backlog ends.
    pub(crate) version: u64,
    pub(crate) feed: broadcast::Receiver<Arc<Event>>,
}

/// All objects.
#[derive(Debug, Default)]
pub(crate) struct Store(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    version: u64,
    objects: BTreeMap<Key, Arc<Value>>,
    history: VecDeque<Arc<Event>>,
    /// The newest event that is no longer in the history.
    forgotten: u64,
    feeds: HashMap<(&'static str, &'static str), broadcast::Sender<Arc<Event>>>,
}

impl Store {
    pub(crate) fn get(&self, resource: &Resource, namespace: &str, name: &str) -> Result<Arc<Value>, Status> {
        lock(&self.0)
            .objects
            .get(&Key::new(resource, namespace, name))
            .cloned()
            .ok_or_else(|| Status::not_found(resource.group, resource.plural, name))
    }

    /// The objects of a resource, in one namespace or (empty) in all, and the version of the list.
    pub(crate) fn list(&self, resource: &Resource, namespace: &str) -> (Vec<Arc<Value>>, u64) {
        let state = lock(&self.0);
        (state.list(resource, namespace), state.version)
    }

    pub(crate) fn create(
        &self,
        resource: &'static Resource,
        namespace: &str,
        mut object: Value,
    ) -> Result<Arc<Value>, Status> {
        let mut state = lock(&self.0);
        let home = Key::new(&super::resources::RESOURCES[NAMESPACES], "", namespace);
        if resource.namespaced && !state.objects.contains_key(&home) {
            return Err(Status::not_found("", "namespaces", namespace));
        }
        let metadata = &mut object["metadata"];
        if metadata["name"].as_str().is_none_or(str::is_empty)
            && let Some(prefix) = metadata["generateName"].as_str()
        {
            let suffix = uuid::Uuid::new_v4().simple().to_string();
            metadata["name"] = json!(format!("{prefix}{}", &suffix[..5]));
        }
        let Some(name) = metadata["name"].as_str().filter(|name| !name.is_empty()) else {
            return Err(Status::invalid(
                "metadata.name: Required value: name or generateName is required",
            ));
        };
        let key = Key::new(resource, namespace, name);
        if state.objects.contains_key(&key) {
            return Err(Status::already_exists(resource.group, resource.plural, name));
        }
        if resource.namespaced {
            metadata["namespace"] = json!(namespace);
        }
        metadata["uid"] = json!(uuid::Uuid::new_v4().to_string());
        metadata["creationTimestamp"] = json!(now());
        Ok(state.put(EventType::Added, resource, key, object))
    }

    /// Replaces an object by what `change` makes of it.
    pub(crate) fn update(
        &self,
        resource: &'static Resource,
        namespace: &str,
        name: &str,
        change: impl FnOnce(&Value) -> Result<Value, Status>,
    ) -> Result<Arc<Value>, Status> {
        let mut state = lock(&self.0);
        let key = Key::new(resource, namespace, name);
        let old = state
            .objects
            .get(&key)
            .cloned()
            .ok_or_else(|| Status::not_found(resource.group, resource.plural, name))?;
        let mut new = change(&old)?;
        let metadata = &mut new["metadata"];
        let asked = &metadata["resourceVersion"];
        if asked.as_str().is_some_and(|version| !version.is_empty()) && *asked != old["metadata"]["resourceVersion"] {
            return Err(Status::conflict(resource.group, resource.plural, name));
        }
        for field in ["name", "namespace", "uid", "creationTimestamp", "resourceVersion"] {
            if !old["metadata"][field].is_null() {
                metadata[field] = old["metadata"][field].clone();
            }
        }
        if new == *old {
            return Ok(old);
        }
        Ok(state.put(EventType::Modified, resource, key, new))
    }

    pub(crate) fn delete(
        &self,
        resource: &'static Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Arc<Value>, Status> {
        let mut state = lock(&self.0);
        let key = Key::new(resource, namespace, name);
        let Some(old) = state.objects.remove(&key) else {
            return Err(Status::not_found(resource.group, resource.plural, name));
        };
        let mut object = Value::clone(&old);
        state.version += 1;
        object["metadata"]["resourceVersion"] = json!(state.version.to_string());
        let object = Arc::new(object);
        state.publish(Event::new(EventType::Deleted, resource, object.clone()));
        Ok(object)
    }

    /// Makes an object be as given, whatever was there: how fixtures and tests speak to the store.
    pub(crate) fn apply(&self, kind: EventType, object: Value) -> Result<Arc<Value>, Status> {
        let resource = Resource::of_object(&object)
            .filter(|resource| resource.stored)
            .ok_or_else(|| Status::bad_request("no resource is of this apiVersion and kind"))?;
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        let (mut namespace, name) = (text("namespace"), text("name"));
        if resource.namespaced && namespace.is_empty() {
            "default".clone_into(&mut namespace);
        }
        if kind == EventType::Deleted {
            return self.delete(resource, &namespace, &name);
        }
        let object = super::rest::with_defaults(resource, object);
        if self.get(resource, &namespace, &name).is_ok() {
            self.update(resource, &namespace, &name, |_| Ok(object))
        } else {
            self.create(resource, &namespace, object)
        }
    }

    /// Begins a watch: after that version, or (`None`) with all that is there now.
    pub(crate) fn subscribe(
        &self,
        resource: &'static Resource,
        namespace: &str,
        since: Option<u64>,
    ) -> Result<Subscription, Status> {
        let mut state = lock(&self.0);
        let backlog = match since {
            Some(since) if since < state.forgotten => {
                return Err(Status::expired(since, state.forgotten));
            }
            Some(since) => state
                .history
                .iter()
                .filter(|event| event.resource == resource && event.version > since)
                .cloned()
                .collect(),
            None => state
                .list(resource, namespace)
                .into_iter()
                .map(|object| Arc::new(Event::new(EventType::Added, resource, object)))
                .collect(),
        };
        let version = state.version;
        Ok(Subscription {
            backlog,
            version,
            feed: state.feed(resource).subscribe(),
        })
    }

    /// The newest version of all.
    pub(crate) fn version(&self) -> u64 {
        lock(&self.0).version
    }

    /// Forgets the history, so that watches from older versions get 410.
    pub(crate) fn compact(&self) {
        let mut state = lock(&self.0);
        state.history.clear();
        state.forgotten = state.version;
    }

    /// How many watches are open.
    pub(crate) fn watches(&self) -> usize {
        lock(&self.0)
            .feeds
            .values()
            .map(broadcast::Sender::receiver_count)
            .sum()
    }
}

/// Where namespaces stand in the table of resources.
const NAMESPACES: usize = 3;

impl State {
    fn list(&self, resource: &Resource, namespace: &str) -> Vec<Arc<Value>> {
        let first = Key::new(resource, namespace, "");
        self.objects
            .range(first..)
            .take_while(|(key, _)| key.group == resource.group && key.plural == resource.plural)
            .take_while(|(key, _)| namespace.is_empty() || !resource.namespaced || key.namespace == namespace)
            .map(|(_, object)| object.clone())
            .collect()
    }

    fn put(&mut self, kind: EventType, resource: &'static Resource, key: Key, mut object: Value) -> Arc<Value> {
        self.version += 1;
        object["apiVersion"] = json!(resource.api_version());
        object["kind"] = json!(resource.kind);
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let object = Arc::new(object);
        let previous = self.objects.insert(key, object.clone());
        self.publish(Event::new(kind, resource, object.clone()).after(previous));
        object
    }

    fn publish(&mut self, event: Event) {
        let event = Arc::new(event);
        self.history.push_back(event.clone());
        if self.history.len() > HISTORY
            && let Some(oldest) = self.history.pop_front()
        {
            self.forgotten = oldest.version;
        }
        // An error says that nobody watches.
        let _ = self.feed(event.resource).send(event);
    }

    fn feed(&mut self, resource: &'static Resource) -> &broadcast::Sender<Arc<Event>> {
        self.feeds
            .entry((resource.group, resource.plural))
            .or_insert_with(|| broadcast::Sender::new(FEED))
    }
}

/// The time as Kubernetes writes it: UTC, whole seconds.
pub(crate) fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::resources::RESOURCES;

    fn store() -> (Store, &'static Resource) {
        let store = Store::default();
        assert_eq!(RESOURCES[NAMESPACES].plural, "namespaces");
        for name in ["a", "b"] {
            let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
            store.apply(EventType::Added, namespace).unwrap();
        }
        (store, Resource::find("", "v1", "configmaps").unwrap())
    }

    fn named(name: &str) -> Value {
        json!({"metadata": {"name": name}})
    }

    #[test]
    fn lists_keep_to_their_namespace() {
        let (store, maps) = store();
        store.create(maps, "a", named("one")).unwrap();
        store.create(maps, "b", named("two")).unwrap();
        assert_eq!(store.list(maps, "a").0.len(), 1);
        assert_eq!(store.list(maps, "").0.len(), 2);
        assert_eq!(store.create(maps, "a", named("one")).unwrap_err().code(), 409);
        assert_eq!(store.create(maps, "none", named("one")).unwrap_err().code(), 404);
    }

    #[test]
    fn an_update_of_an_old_version_conflicts_and_one_without_change_is_no_event() {
        let (store, maps) = store();
        let old = store.create(maps, "a", named("one")).unwrap();
        let change = |value: &Value| {
            let mut new = value.clone();
            new["data"]["k"] = json!("v");
            Ok(new)
        };
        store.update(maps, "a", "one", change).unwrap();
        let before = store.version();
        store.update(maps, "a", "one", change).unwrap();
        assert_eq!(store.version(), before);
        let stale = store.update(maps, "a", "one", |_| change(&old));
        assert_eq!(stale.unwrap_err().code(), 409);
    }

    #[test]
    fn a_watch_resumes_where_it_was_or_is_told_that_it_cannot() {
        let (store, maps) = store();
        let start = store.version();
        store.create(maps, "a", named("one")).unwrap();
        store.delete(maps, "a", "one").unwrap();
        let kinds = |since| {
            let subscription = store.subscribe(maps, "a", since).unwrap();
            subscription.backlog.iter().map(|event| event.kind).collect::<Vec<_>>()
        };
        assert_eq!(kinds(Some(start)), [EventType::Added, EventType::Deleted]);
        assert_eq!(kinds(Some(start + 1)), [EventType::Deleted]);
        assert_eq!(kinds(None), []);
        store.compact();
        assert_eq!(store.subscribe(maps, "a", Some(start)).err().unwrap().code(), 410);
        assert_eq!(kinds(Some(start + 2)), []);
    }
}
