//! Sets of fields, as `metadata.managedFields` writes them (`FieldsV1`): made from objects and from the difference of
//! two, and subtracted, united, and looked for. Whose they are is `managed`'s.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::schema::{ListKind, Shape};

/// A set of fields, as a tree of steps: `f:name`, `k:{"key":"value"}` for a list's item, `v:"value"` for a set's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FieldSet {
    /// Whether the place that this node stands for is in the set itself.
    pub(crate) itself: bool,
    pub(crate) children: BTreeMap<String, FieldSet>,
}

/// What stands in the metadata that nobody manages.
const UNMANAGED: [&str; 9] = [
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "managedFields",
    "selfLink",
];

impl FieldSet {
    fn leaf() -> Self {
        Self {
            itself: true,
            children: BTreeMap::new(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        !self.itself && self.children.values().all(Self::is_empty)
    }

    /// Reads `FieldsV1`.
    pub(crate) fn parse(value: &Value) -> Self {
        let mut set = Self::default();
        for (key, child) in value.as_object().into_iter().flatten() {
            if key == "." {
                set.itself = true;
            } else {
                let mut parsed = Self::parse(child);
                parsed.itself |= parsed.children.is_empty();
                set.children.insert(key.clone(), parsed);
            }
        }
        set
    }

    /// Writes `FieldsV1`.
    pub(crate) fn to_value(&self) -> Value {
        let mut map = Map::new();
        if self.itself && !self.children.is_empty() {
            map.insert(".".to_owned(), json!({}));
        }
        for (key, child) in &self.children {
            map.insert(key.clone(), child.to_value());
        }
        Value::Object(map)
    }

    /// The fields of an applied object: its leaves, and the items of its lists.
    pub(crate) fn of_applied(shape: Shape<'_>, object: &Value) -> Result<Self, String> {
        let mut set = Self::default();
        for (name, value) in managed_part(object) {
            if name == "metadata" {
                let metadata = Self::of_object(shape.field(&name), &value, false)?;
                if !metadata.is_empty() && !metadata.children.is_empty() {
                    set.children.insert("f:metadata".to_owned(), metadata);
                }
            } else {
                let below = Self::of_value(shape.field(&name), &value, false)?;
                set.children.insert(format!("f:{name}"), below);
            }
        }
        Ok(set)
    }

    fn of_value(shape: Shape<'_>, value: &Value, containers: bool) -> Result<Self, String> {
        match value {
            Value::Object(_) if !shape.is_atomic_object() => Self::of_object(shape, value, containers),
            Value::Array(items) => {
                let kind = shape.list_kind();
                if kind == ListKind::Atomic {
                    return Ok(Self::leaf());
                }
                let mut set = Self {
                    itself: containers || items.is_empty(),
                    ..Self::default()
                };
                for item in items {
                    let key = item_key(&kind, item)?;
                    let mut below = Self::of_value(shape.items(), item, containers)?;
                    below.itself = true;
                    set.children.insert(key, below);
                }
                Ok(set)
            }
            _ => Ok(Self::leaf()),
        }
    }

    fn of_object(shape: Shape<'_>, value: &Value, containers: bool) -> Result<Self, String> {
        let mut set = Self::default();
        for (name, value) in value.as_object().into_iter().flatten() {
            set.children.insert(
                format!("f:{name}"),
                Self::of_value(shape.field(name), value, containers)?,
            );
        }
        set.itself = containers || set.children.is_empty();
        Ok(set)
    }

    /// What is new or other in `new` than in `old`, with the containers that are new.
    pub(crate) fn changed(shape: Shape<'_>, old: &Value, new: &Value) -> Self {
        let (old, new) = (managed_part(old), managed_part(new));
        let mut set = Self::difference_of_maps(shape, &old, &new);
        if let Some(metadata) = set.children.get_mut("f:metadata") {
            metadata.itself = false;
            if metadata.is_empty() {
                set.children.remove("f:metadata");
            }
        }
        set
    }

    fn difference_of_maps(shape: Shape<'_>, old: &Map<String, Value>, new: &Map<String, Value>) -> Self {
        let mut set = Self::default();
        for (name, value) in new {
            let shape = shape.field(name);
            let below = match old.get(name) {
                // A list without keys can't be told apart further, and then it is one value.
                None => Self::of_value(shape, value, true).unwrap_or_else(|_| Self::leaf()),
                Some(before) => Self::difference(shape, before, value),
            };
            if !below.is_empty() {
                set.children.insert(format!("f:{name}"), below);
            }
        }
        set
    }

    fn difference(shape: Shape<'_>, old: &Value, new: &Value) -> Self {
        if old == new {
            return Self::default();
        }
        match (old, new) {
            (Value::Object(old), Value::Object(new)) if !shape.is_atomic_object() => {
                Self::difference_of_maps(shape, old, new)
            }
            (Value::Array(old), Value::Array(new)) if shape.list_kind() != ListKind::Atomic => {
                let kind = shape.list_kind();
                let mut set = Self::default();
                for item in new {
                    let Ok(key) = item_key(&kind, item) else {
                        return Self::leaf();
                    };
                    let before = old.iter().find(|old| item_key(&kind, old).as_ref() == Ok(&key));
                    let below = match before {
                        None => {
                            let mut below = Self::of_value(shape.items(), item, true).unwrap_or_else(|_| Self::leaf());
                            below.itself = true;
                            below
                        }
                        Some(before) => Self::difference(shape.items(), before, item),
                    };
                    if !below.is_empty() {
                        set.children.insert(key, below);
                    }
                }
                set
            }
            _ => Self::leaf(),
        }
    }

    /// These without those.
    pub(crate) fn without(&self, other: &Self) -> Self {
        let children = self.children.iter().filter_map(|(key, child)| {
            let left = other
                .children
                .get(key)
                .map_or_else(|| child.clone(), |gone| child.without(gone));
            (!left.is_empty()).then(|| (key.clone(), left))
        });
        Self {
            itself: self.itself && !other.itself,
            children: children.collect(),
        }
    }

    /// These and those.
    pub(crate) fn with(&self, other: &Self) -> Self {
        let mut all = self.clone();
        all.itself |= other.itself;
        for (key, child) in &other.children {
            let own = all.children.entry(key.clone()).or_default();
            *own = own.with(child);
        }
        all
    }

    /// Those of the fields that are in the object still.
    pub(crate) fn present_in(&self, shape: Shape<'_>, value: &Value) -> Self {
        let children = self.children.iter().filter_map(|(key, child)| {
            let below = step(shape, value, key)?;
            let left = child.present_in(step_shape(shape, key), below);
            (!left.is_empty()).then(|| (key.clone(), left))
        });
        Self {
            itself: self.itself,
            children: children.collect(),
        }
    }
}

/// The parts of an object that somebody may manage.
fn managed_part(object: &Value) -> Map<String, Value> {
    let mut map = object.as_object().cloned().unwrap_or_default();
    map.remove("apiVersion");
    map.remove("kind");
    if let Some(metadata) = map.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.retain(|name, _| !UNMANAGED.contains(&name.as_str()));
        if metadata.is_empty() {
            map.remove("metadata");
        }
    }
    map
}

/// The step to a list's item.
pub(crate) fn item_key(kind: &ListKind, item: &Value) -> Result<String, String> {
    match kind {
        ListKind::Map(keys) => {
            let mut fields = Map::new();
            for key in keys {
                let value = match item.get(key) {
                    Some(value) => value.clone(),
                    // The one default of a key in Kubernetes' own types.
                    None if key == "protocol" => json!("TCP"),
                    None => {
                        return Err(format!(
                            "associative list with keys has an element that omits key field {key:?} (and doesn't have default value)"
                        ));
                    }
                };
                fields.insert(key.clone(), value);
            }
            Ok(format!("k:{}", Value::Object(fields)))
        }
        ListKind::Set | ListKind::Atomic => Ok(format!("v:{item}")),
    }
}

/// What one step leads to in a value.
pub(crate) fn step<'a>(shape: Shape<'_>, value: &'a Value, key: &str) -> Option<&'a Value> {
    if let Some(name) = key.strip_prefix("f:") {
        return value.get(name);
    }
    let kind = shape.list_kind();
    value
        .as_array()?
        .iter()
        .find(|item| item_key(&kind, item).as_deref() == Ok(key))
}

/// The shape of what one step leads to.
pub(crate) fn step_shape<'a>(shape: Shape<'a>, key: &'a str) -> Shape<'a> {
    match key.strip_prefix("f:") {
        Some(name) => shape.field(name),
        None => shape.items(),
    }
}
