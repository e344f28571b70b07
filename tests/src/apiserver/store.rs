//! The objects and their history: one resource version for all, as etcd has it, and a feed of events for each
//! resource. What the history tells is in `timeline`; HTTP and watches' wire form are elsewhere.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};
use tokio::sync::{Notify, broadcast, watch};

use super::{
    definitions,
    deletion::{self, Deletion},
    event::{Event, EventType},
    resources::{Catalogue, Resource},
    status::Status,
    sync::lock,
};

/// How many events are kept to resume watches from.
const HISTORY: usize = 10_000;
/// How many events a watch may be behind before it is ended.
const FEED: usize = 4096;

/// Where an object is kept.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) group: &'static str,
    pub(super) plural: &'static str,
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Key {
    pub(super) fn new(resource: &Resource, namespace: &str, name: &str) -> Self {
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

    /// Where this object of the resource is kept.
    pub(super) fn of(resource: &Resource, object: &Value) -> Self {
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
        Self::new(resource, text("namespace"), text("name"))
    }
}

/// All objects.
#[derive(Debug, Default)]
pub(crate) struct Store {
    pub(super) state: Mutex<State>,
    /// Counts the orders to tell every watch that it is too old.
    pub(super) expiries: watch::Sender<u64>,
    /// Told of every change.
    pub(super) changed: Notify,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) version: u64,
    pub(super) objects: BTreeMap<Key, Arc<Value>>,
    pub(super) history: VecDeque<Arc<Event>>,
    /// The newest event that is no longer in the history.
    pub(super) forgotten: u64,
    pub(super) catalogue: Catalogue,
    feeds: HashMap<(&'static str, &'static str), broadcast::Sender<Arc<Event>>>,
}

impl Store {
    /// The resources that there are now.
    pub(crate) fn catalogue(&self) -> Catalogue {
        lock(&self.state).catalogue.clone()
    }

    pub(crate) fn get(&self, resource: &Resource, namespace: &str, name: &str) -> Result<Arc<Value>, Status> {
        lock(&self.state).found(resource, &Key::new(resource, namespace, name))
    }

    /// The objects of a resource, in one namespace or (empty) in all, and the version of the list.
    pub(crate) fn list(&self, resource: &Resource, namespace: &str) -> (Vec<Arc<Value>>, u64) {
        let state = lock(&self.state);
        (state.list(resource, namespace), state.version)
    }

    pub(crate) fn create(
        &self,
        resource: &'static Resource,
        namespace: &str,
        mut object: Value,
    ) -> Result<Arc<Value>, Status> {
        let mut state = lock(&self.state);
        let home = Key {
            group: "",
            plural: "namespaces",
            namespace: String::new(),
            name: namespace.to_owned(),
        };
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
        let created = state.put(EventType::Added, resource, key, object);
        self.changed.notify_one();
        Ok(created)
    }

    /// Replaces an object by what `change` makes of it.
    pub(crate) fn update(
        &self,
        resource: &'static Resource,
        namespace: &str,
        name: &str,
        change: impl FnOnce(&Value) -> Result<Value, Status>,
    ) -> Result<Arc<Value>, Status> {
        let mut state = lock(&self.state);
        let key = Key::new(resource, namespace, name);
        let old = state.found(resource, &key)?;
        let mut new = change(&old)?;
        same_object(resource, name, &old, &new)?;
        let metadata = &mut new["metadata"];
        for field in ["name", "namespace", "uid", "creationTimestamp", "resourceVersion"] {
            if !old["metadata"][field].is_null() {
                metadata[field] = old["metadata"][field].clone();
            }
        }
        for field in ["deletionTimestamp", "deletionGracePeriodSeconds"] {
            match old["metadata"].get(field) {
                Some(value) => metadata[field] = value.clone(),
                None => {
                    if let Some(metadata) = metadata.as_object_mut() {
                        metadata.remove(field);
                    }
                }
            }
        }
        if new == *old {
            return Ok(old);
        }
        self.changed.notify_one();
        if deletion::is_due(&new) {
            return Ok(state.remove(resource, &key, new));
        }
        Ok(state.put(EventType::Modified, resource, key, new))
    }

    /// Deletes an object, or marks it where somebody has still to let go of it.
    pub(crate) fn delete(
        &self,
        resource: &'static Resource,
        namespace: &str,
        name: &str,
        options: &deletion::Options,
    ) -> Result<Deletion, Status> {
        let mut state = lock(&self.state);
        let key = Key::new(resource, namespace, name);
        let old = state.found(resource, &key)?;
        options.meets(resource, name, &old)?;
        let Some(marked) = options.mark(resource, &old) else {
            self.changed.notify_one();
            let object = Value::clone(&old);
            return Ok(Deletion::Done(state.remove(resource, &key, object)));
        };
        if marked == *old {
            return Ok(Deletion::Marked(old));
        }
        self.changed.notify_one();
        Ok(Deletion::Marked(state.put(EventType::Modified, resource, key, marked)))
    }

    /// Makes an object be as given, whatever was there: how fixtures and tests speak to the store.
    pub(crate) fn apply(&self, kind: EventType, object: Value) -> Result<Arc<Value>, Status> {
        let resource = self
            .catalogue()
            .of_object(&object)
            .filter(|resource| resource.stored && resource.stored() == *resource)
            .ok_or_else(|| Status::bad_request("no resource is of this apiVersion and kind"))?;
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        let (mut namespace, name) = (text("namespace"), text("name"));
        if resource.namespaced && namespace.is_empty() {
            "default".clone_into(&mut namespace);
        }
        if kind == EventType::Deleted {
            let gone = self.delete(resource, &namespace, &name, &deletion::Options::at_once())?;
            return Ok(gone.object());
        }
        let object = super::strategy::with_defaults(resource, object);
        if self.get(resource, &namespace, &name).is_ok() {
            self.update(resource, &namespace, &name, |_| Ok(object))
        } else {
            self.create(resource, &namespace, object)
        }
    }

    /// The newest version of all.
    pub(crate) fn version(&self) -> u64 {
        lock(&self.state).version
    }

    /// How many watches are open.
    pub(crate) fn watches(&self) -> usize {
        lock(&self.state)
            .feeds
            .values()
            .map(broadcast::Sender::receiver_count)
            .sum()
    }
}

/// Whether the object that somebody made `new` of is the one that is there.
fn same_object(resource: &Resource, name: &str, old: &Value, new: &Value) -> Result<(), Status> {
    let given = |field: &str| new["metadata"][field].as_str().filter(|value| !value.is_empty());
    let own = |field: &str| old["metadata"][field].as_str().unwrap_or_default();
    if let Some(uid) = given("uid").filter(|uid| *uid != own("uid")) {
        let why = format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            own("uid")
        );
        return Err(Status::precondition(resource.group, resource.plural, name, &why));
    }
    if given("resourceVersion").is_some_and(|version| version != own("resourceVersion")) {
        return Err(Status::conflict(resource.group, resource.plural, name));
    }
    Ok(())
}

impl State {
    /// The object that is kept there.
    fn found(&self, resource: &Resource, key: &Key) -> Result<Arc<Value>, Status> {
        let found = self.objects.get(key).cloned();
        found.ok_or_else(|| Status::not_found(resource.group, resource.plural, &key.name))
    }

    pub(super) fn list(&self, resource: &Resource, namespace: &str) -> Vec<Arc<Value>> {
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
        self.define(resource, &object, true);
        object
    }

    /// Takes an object away; `object` is what its last event shows.
    fn remove(&mut self, resource: &'static Resource, key: &Key, mut object: Value) -> Arc<Value> {
        let previous = self.objects.remove(key);
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let object = Arc::new(object);
        self.publish(Event::new(EventType::Deleted, resource, object.clone()).after(previous));
        self.define(resource, &object, false);
        object
    }

    /// Keeps the catalogue as the definitions have it. With a definition go the objects.
    pub(super) fn define(&mut self, resource: &Resource, object: &Value, there: bool) {
        if resource.plural != "customresourcedefinitions" {
            return;
        }
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let known = |own: &&'static Resource| format!("{}.{}", own.plural, own.group) == name;
        let before = self.catalogue.0.iter().copied().find(known);
        self.catalogue.0.retain(|own| !known(own));
        if there {
            self.catalogue.0.extend(definitions::resource(object));
            // Discovery wants each group together.
            self.catalogue.0.sort_by_key(|resource| resource.group);
        } else if let Some(gone) = before {
            for object in self.list(gone, "") {
                self.remove(gone, &Key::of(gone, &object), Value::clone(&object));
            }
        }
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

    pub(super) fn feed(&mut self, resource: &'static Resource) -> &broadcast::Sender<Arc<Event>> {
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

    fn store() -> (Store, &'static Resource) {
        let store = Store::default();
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
        store.delete(maps, "a", "one", &deletion::Options::default()).unwrap();
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
