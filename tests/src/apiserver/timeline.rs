//! What the store's history tells: watches from a version on, and lists as they were at one.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::Value;
use tokio::sync::{broadcast, watch};

use super::{
    event::{Event, EventType},
    resources::Resource,
    status::Status,
    store::{Key, State, Store},
    sync::lock,
};

/// What a watch begins with.
pub(crate) struct Subscription {
    /// Events since the version that was asked for.
    pub(crate) backlog: Vec<Arc<Event>>,
    /// The version as of which the backlog ends.
    pub(crate) version: u64,
    pub(crate) feed: broadcast::Receiver<Arc<Event>>,
    /// Changes when every watch is to be told that it is too old.
    pub(crate) expiry: watch::Receiver<u64>,
}

impl Store {
    /// Begins a watch: after that version, or (`None`) with all that is there now.
    pub(crate) fn subscribe(
        &self,
        resource: &'static Resource,
        namespace: &str,
        since: Option<u64>,
    ) -> Result<Subscription, Status> {
        let mut state = lock(&self.state);
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
            expiry: self.expiries.subscribe(),
        })
    }

    /// The objects of a resource as they were at that version; `None` where that is forgotten.
    pub(crate) fn list_at(&self, resource: &Resource, namespace: &str, version: u64) -> Option<Vec<Arc<Value>>> {
        lock(&self.state).list_at(resource, namespace, version)
    }

    /// Forgets the history, so that watches from older versions get 410.
    pub(crate) fn compact(&self) {
        let mut state = lock(&self.state);
        state.history.clear();
        state.forgotten = state.version;
    }

    /// Forgets the history, and tells every open watch that its version is too old, which ends it.
    pub(crate) fn expire_watches(&self) {
        self.compact();
        self.expiries.send_modify(|count| *count += 1);
    }
}

impl State {
    fn list_at(&self, resource: &Resource, namespace: &str, version: u64) -> Option<Vec<Arc<Value>>> {
        if version < self.forgotten {
            return None;
        }
        let mut objects: BTreeMap<Key, Arc<Value>> = self
            .list(resource, namespace)
            .into_iter()
            .map(|object| (Key::of(resource, &object), object))
            .collect();
        let later = self.history.iter().rev().take_while(|event| event.version > version);
        for event in later.filter(|event| event.resource == resource) {
            let key = Key::of(resource, &event.object);
            if !namespace.is_empty() && resource.namespaced && key.namespace != namespace {
                continue;
            }
            match &event.previous {
                Some(previous) => objects.insert(key, previous.clone()),
                None => objects.remove(&key),
            };
        }
        Some(objects.into_values().collect())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::apiserver::{deletion::Options, resources::Resource};

    #[test]
    fn a_list_is_as_it_was() {
        let store = Store::default();
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}});
        store.apply(EventType::Added, namespace).unwrap();
        let maps = Resource::find("", "v1", "configmaps").unwrap();
        let object = |value: &str| json!({"metadata": {"name": value}, "data": {"k": value}});
        store.create(maps, "a", object("one")).unwrap();
        store.create(maps, "a", object("two")).unwrap();
        let then = store.version();
        store.delete(maps, "a", "one", &Options::default()).unwrap();
        store.create(maps, "a", object("three")).unwrap();
        store
            .update(maps, "a", "two", |old| {
                let mut new = old.clone();
                new["data"]["k"] = json!("changed");
                Ok(new)
            })
            .unwrap();
        let shown = |version| {
            let list = store.list_at(maps, "a", version)?;
            let shown = list
                .iter()
                .map(|object| object["data"]["k"].as_str().unwrap().to_owned());
            Some(shown.collect::<Vec<_>>())
        };
        assert_eq!(shown(then).unwrap(), ["one", "two"]);
        assert_eq!(shown(then + 1).unwrap(), ["two"]);
        assert_eq!(shown(store.version()).unwrap(), ["three", "changed"]);
        store.compact();
        assert_eq!(shown(then), None);
    }
}
