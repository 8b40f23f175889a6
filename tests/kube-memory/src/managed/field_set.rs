//! Sets of field paths, in memory as they are written in `fieldsV1`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::shapes::{ListShape, Shapes};

/// A tree of path elements (`f:name`, `k:{…}`, `v:…`); `own` means the path that ends here is a member.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FieldSet {
    own: bool,
    children: BTreeMap<String, FieldSet>,
}

/// What changed between two objects.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub(crate) added: FieldSet,
    pub(crate) modified: FieldSet,
    pub(crate) removed: FieldSet,
}

impl FieldSet {
    fn member() -> Self {
        Self {
            own: true,
            children: BTreeMap::new(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        !self.own && self.children.is_empty()
    }

    pub(crate) fn owns(&self) -> bool {
        self.own
    }

    pub(crate) fn children(&self) -> &BTreeMap<String, FieldSet> {
        &self.children
    }

    pub(crate) fn child(&self, element: &str) -> Option<&Self> {
        self.children.get(element)
    }

    /// Everything an object mentions.
    pub(crate) fn of(value: &Value, shapes: Shapes<'_>) -> Self {
        let mut set = of_value(value, shapes, &mut Vec::new());
        set.own = false;
        set
    }

    pub(crate) fn decode(value: &Value) -> Self {
        let Some(map) = value.as_object() else {
            return Self::default();
        };
        let mut set = Self {
            own: map.contains_key("."),
            children: BTreeMap::new(),
        };
        for (element, child) in map.iter().filter(|(element, _)| *element != ".") {
            let mut child = Self::decode(child);
            // An element with nothing below it stands for itself.
            child.own |= child.children.is_empty();
            set.children.insert(element.clone(), child);
        }
        set
    }

    pub(crate) fn encode(&self) -> Value {
        let mut map = Map::new();
        if self.own && !self.children.is_empty() {
            map.insert(".".to_owned(), Value::Object(Map::new()));
        }
        for (element, child) in &self.children {
            map.insert(element.clone(), child.encode());
        }
        Value::Object(map)
    }

    pub(crate) fn union(&self, other: &Self) -> Self {
        let mut result = self.clone();
        result.own |= other.own;
        for (element, child) in &other.children {
            let merged = match result.children.get(element) {
                Some(mine) => mine.union(child),
                None => child.clone(),
            };
            result.children.insert(element.clone(), merged);
        }
        result
    }

    pub(crate) fn difference(&self, other: &Self) -> Self {
        self.combine(other, |mine, theirs| mine && !theirs, true)
    }

    pub(crate) fn intersection(&self, other: &Self) -> Self {
        self.combine(other, |mine, theirs| mine && theirs, false)
    }

    fn combine(&self, other: &Self, keep: fn(bool, bool) -> bool, alone: bool) -> Self {
        let mut result = Self {
            own: keep(self.own, other.own),
            children: BTreeMap::new(),
        };
        for (element, child) in &self.children {
            let combined = match other.children.get(element) {
                Some(theirs) => child.combine(theirs, keep, alone),
                None if alone => child.clone(),
                None => continue,
            };
            if !combined.is_empty() {
                result.children.insert(element.clone(), combined);
            }
        }
        result
    }

    /// Without what identifies an object or belongs to the server: nobody owns that.
    pub(crate) fn without_identity(mut self) -> Self {
        self.children.remove("f:apiVersion");
        self.children.remove("f:kind");
        if let Some(metadata) = self.children.get_mut("f:metadata") {
            metadata.own = false;
            for field in [
                "f:name",
                "f:namespace",
                "f:uid",
                "f:resourceVersion",
                "f:generation",
                "f:creationTimestamp",
                "f:deletionTimestamp",
                "f:deletionGracePeriodSeconds",
                "f:managedFields",
                "f:selfLink",
            ] {
                metadata.children.remove(field);
            }
            if metadata.children.is_empty() {
                self.children.remove("f:metadata");
            }
        }
        self
    }

    /// Member paths as conflict messages print them.
    pub(crate) fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.collect("", &mut paths);
        paths
    }

    fn collect(&self, path: &str, paths: &mut Vec<String>) {
        if self.own {
            paths.push(path.to_owned());
        }
        for (element, child) in &self.children {
            child.collect(&format!("{path}{}", printed(element)), paths);
        }
    }
}

fn printed(element: &str) -> String {
    if let Some(field) = element.strip_prefix("f:") {
        return format!(".{field}");
    }
    if let Some(key) = element.strip_prefix("k:") {
        let key: Map<String, Value> = serde_json::from_str(key).unwrap_or_default();
        let parts: Vec<String> = key
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        return format!("[{}]", parts.join(","));
    }
    format!("[={}]", element.strip_prefix("v:").unwrap_or(element))
}

/// The path element of a list item.
pub(crate) fn item_element(item: &Value, shape: &ListShape) -> String {
    match shape {
        ListShape::Map(keys) => {
            let mut map = Map::new();
            for key in keys {
                // The one key with a default in the API: ports are TCP unless they say otherwise.
                let value = match (item.get(key), key.as_str()) {
                    (None, "protocol") => Some(Value::from("TCP")),
                    (found, _) => found.cloned(),
                };
                if let Some(value) = value {
                    map.insert(key.clone(), value);
                }
            }
            format!("k:{}", Value::Object(map))
        }
        ListShape::Set | ListShape::Atomic => format!("v:{item}"),
    }
}

fn of_value<'v>(value: &'v Value, shapes: Shapes<'_>, path: &mut Vec<&'v str>) -> FieldSet {
    match value {
        Value::Object(map) if !map.is_empty() && !shapes.atomic_map(path) => {
            let mut set = FieldSet::default();
            for (key, child) in map {
                path.push(key);
                set.children
                    .insert(format!("f:{key}"), of_value(child, shapes, path));
                path.pop();
            }
            set
        }
        Value::Array(items) if !items.is_empty() => {
            let shape = shapes.list(path);
            if shape == ListShape::Atomic {
                return FieldSet::member();
            }
            let mut set = FieldSet::default();
            for item in items {
                let mut child = of_value(item, shapes, path);
                child.own = true;
                set.children.insert(item_element(item, &shape), child);
            }
            set
        }
        _ => FieldSet::member(),
    }
}

/// What a write changed. Everything below an added map is added, and the map itself.
pub(crate) fn compare(old: Option<&Value>, new: Option<&Value>, shapes: Shapes<'_>) -> Changes {
    let mut changes = compare_at(old, new, shapes, &mut Vec::new());
    changes.added.own = false;
    changes.added = changes.added.without_identity();
    changes.modified = changes.modified.without_identity();
    changes
}

fn compare_at<'v>(
    old: Option<&'v Value>,
    new: Option<&'v Value>,
    shapes: Shapes<'_>,
    path: &mut Vec<&'v str>,
) -> Changes {
    let mut changes = Changes::default();
    let whole = |value, path: &mut Vec<&'v str>| {
        let mut set = of_value(value, shapes, path);
        set.own = true;
        set
    };
    match (old, new) {
        (None, Some(new)) => changes.added = whole(new, path),
        (Some(old), None) => changes.removed = whole(old, path),
        (Some(old), Some(new)) if old == new => {}
        (Some(Value::Object(old)), Some(Value::Object(new))) if !shapes.atomic_map(path) => {
            let added = new.keys().filter(|key| !old.contains_key(*key));
            for key in old.keys().chain(added) {
                path.push(key);
                let below = compare_at(old.get(key), new.get(key), shapes, path);
                path.pop();
                changes.attach(&format!("f:{key}"), below);
            }
        }
        (Some(Value::Array(old)), Some(Value::Array(new)))
            if shapes.list(path) != ListShape::Atomic =>
        {
            let shape = shapes.list(path);
            let index = |list: &'v [Value]| -> BTreeMap<String, &'v Value> {
                list.iter()
                    .map(|item| (item_element(item, &shape), item))
                    .collect()
            };
            let (old, new) = (index(old), index(new));
            for element in old
                .keys()
                .chain(new.keys().filter(|e| !old.contains_key(*e)))
            {
                let pair = (old.get(element).copied(), new.get(element).copied());
                let below = compare_at(pair.0, pair.1, shapes, path);
                changes.attach(element, below);
            }
        }
        (Some(_), Some(_)) => changes.modified.own = true,
        (None, None) => {}
    }
    changes
}

impl Changes {
    fn attach(&mut self, element: &str, below: Changes) {
        for (set, below) in [
            (&mut self.added, below.added),
            (&mut self.modified, below.modified),
            (&mut self.removed, below.removed),
        ] {
            if !below.is_empty() {
                set.children.insert(element.to_owned(), below);
            }
        }
    }
}
