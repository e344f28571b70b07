//! What happens to objects, in a watch's words and wire forms. When it happens is the store's; who hears of it is
//! `watch`'s.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{resources::Resource, table};

/// What happened to an object, in a watch's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum EventType {
    /// It is new.
    Added,
    /// It has changed.
    Modified,
    /// It is gone.
    Deleted,
}

/// One event, in each wire form made at most once however many watches there are.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) kind: EventType,
    pub(crate) resource: &'static Resource,
    pub(crate) version: u64,
    pub(crate) object: Arc<Value>,
    /// What a changed object was before: a watch with a selector may see it come or go.
    pub(crate) previous: Option<Arc<Value>>,
    plain: OnceLock<Bytes>,
    table: OnceLock<Bytes>,
}

impl Event {
    pub(crate) fn new(kind: EventType, resource: &'static Resource, object: Arc<Value>) -> Self {
        Self {
            kind,
            resource,
            version: version_of(&object),
            object,
            previous: None,
            plain: OnceLock::new(),
            table: OnceLock::new(),
        }
    }

    /// The same, with what the object was before.
    pub(crate) fn after(mut self, previous: Option<Arc<Value>>) -> Self {
        self.previous = previous;
        self
    }

    /// The line of a watch for which the object comes or goes by a change.
    pub(crate) fn line_as(&self, kind: EventType, as_table: bool) -> Bytes {
        Self::new(kind, self.resource, self.object.clone()).line(as_table)
    }

    /// The line of a watch, with its newline.
    pub(crate) fn line(&self, as_table: bool) -> Bytes {
        if as_table {
            self.table
                .get_or_init(|| {
                    let metadata = json!({"resourceVersion": self.version.to_string()});
                    let table = table::table(self.resource, &[&self.object], &metadata);
                    line(&json!({"type": self.kind, "object": table}))
                })
                .clone()
        } else {
            self.plain
                .get_or_init(|| line(&json!({"type": self.kind, "object": *self.object})))
                .clone()
        }
    }
}

/// A value as one line.
pub(crate) fn line(value: &Value) -> Bytes {
    let mut text = value.to_string();
    text.push('\n');
    text.into()
}

fn version_of(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"]
        .as_str()
        .and_then(|version| version.parse().ok())
        .unwrap_or_default()
}
