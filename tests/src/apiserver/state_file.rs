//! The objects in a file, so that a server that is stopped or killed comes back with them. The history of events isn't
//! kept: a watch from before is told so (410), as after a restart of kube-apiserver.

use std::{path::Path, sync::Arc, time::Duration};

use serde_json::{Value, json};

use super::{
    Shared,
    resources::Resource,
    store::{Key, Store},
    sync::lock,
};

/// How long changes are gathered before they are written.
const GATHER: Duration = Duration::from_millis(20);
/// More changes than a server that was killed can have told of and not written. None of their versions is given again.
const UNWRITTEN: u64 = 10_000;

impl Store {
    fn to_text(&self) -> String {
        let state = lock(&self.state);
        let objects: Vec<&Value> = state.objects.values().map(AsRef::as_ref).collect();
        json!({"resourceVersion": state.version, "objects": objects}).to_string()
    }

    /// Takes on what a file says, in place of what there is.
    fn take_on(&self, text: &str) -> Result<(), String> {
        let file: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let mut state = lock(&self.state);
        let written = file["resourceVersion"].as_u64().ok_or("it has no resourceVersion")?;
        state.version = written + UNWRITTEN;
        state.forgotten = state.version;
        state.history.clear();
        state.objects.clear();
        let mut objects: Vec<Value> = file["objects"].as_array().cloned().unwrap_or_default();
        // A custom resource is known once its definition is.
        objects.sort_by_key(|object| object["kind"] != "CustomResourceDefinition");
        for object in objects {
            let resource: &'static Resource = state
                .catalogue
                .of_object(&object)
                .ok_or_else(|| format!("no resource is of {} {}", object["apiVersion"], object["kind"]))?;
            state.define(resource, &object, true);
            state.objects.insert(Key::of(resource, &object), Arc::new(object));
        }
        Ok(())
    }
}

/// Reads the file, where there is one.
pub(crate) async fn load(store: &Store, path: &Path) -> Result<bool, String> {
    match tokio::fs::read_to_string(path).await {
        Ok(text) => store.take_on(&text).map(|()| true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error.to_string()),
    }
}

/// Writes the file after each change, and once more at the end, until the server stops.
pub(crate) async fn keep(shared: Arc<Shared>, path: std::path::PathBuf) {
    loop {
        let stopped = tokio::select! {
            () = shared.store.changed.notified() => false,
            () = shared.stop.cancelled() => true,
        };
        if !stopped {
            tokio::time::sleep(GATHER).await;
        }
        if let Err(error) = write(&shared.store, &path).await {
            tracing::error!(path = %path.display(), %error, "the state is not written");
        }
        if stopped {
            return;
        }
    }
}

/// Writes the file in one step.
pub(crate) async fn write(store: &Store, path: &Path) -> std::io::Result<()> {
    let next = path.with_extension("next");
    tokio::fs::write(&next, store.to_text()).await?;
    tokio::fs::rename(&next, path).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apiserver::event::EventType;

    #[tokio::test]
    async fn a_store_comes_back_with_its_definitions() {
        let store = Store::default();
        let apply = |object: Value| store.apply(EventType::Added, object).unwrap();
        apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}}));
        apply(json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": "things.example.com"},
            "spec": {
                "group": "example.com", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"},
                "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}],
            },
        }));
        apply(json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "one", "namespace": "a"}}));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        write(&store, &path).await.unwrap();

        let again = Store::default();
        assert!(load(&again, &path).await.unwrap());
        assert!(again.version() > store.version());
        let things = again.catalogue().find("example.com", "v1", "things").unwrap();
        assert_eq!(again.list(things, "a").0.len(), 1);
        let pods = Resource::find("", "v1", "pods").unwrap();
        let behind = again.subscribe(pods, "", Some(store.version())).err().unwrap();
        assert_eq!(behind.code(), 410);
        assert!(!load(&again, &dir.path().join("none")).await.unwrap());
    }
}
