//! Short ways to read and write paths of untyped Kubernetes objects.
//!
//! The server keeps every object as JSON, as it came: most of what it does is the same for all kinds.

use serde_json::{Map, Value};

/// The string at a JSON pointer, `""` when it isn't there.
pub(crate) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

/// The integer at a JSON pointer.
pub(crate) fn number(value: &Value, pointer: &str) -> Option<i64> {
    value.pointer(pointer).and_then(Value::as_i64)
}

/// True only for a literal `true`.
pub(crate) fn truth(value: &Value, pointer: &str) -> bool {
    value.pointer(pointer).and_then(Value::as_bool) == Some(true)
}

/// The list at a JSON pointer, empty when it isn't there.
pub(crate) fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value
        .pointer(pointer)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// The object at a JSON pointer.
pub(crate) fn map<'a>(value: &'a Value, pointer: &str) -> Option<&'a Map<String, Value>> {
    value.pointer(pointer).and_then(Value::as_object)
}

/// Whether there is anything but null at a JSON pointer.
pub(crate) fn present(value: &Value, pointer: &str) -> bool {
    value.pointer(pointer).is_some_and(|found| !found.is_null())
}

/// The value at a path, made (as objects) where it isn't there yet.
pub(crate) fn entry<'a>(value: &'a mut Value, path: &[&str]) -> &'a mut Value {
    let mut current = value;
    for key in path {
        if !current.is_object() {
            *current = Value::Object(Map::new());
        }
        // The line above made it an object, so the other arm can't be reached; it keeps the type checker content.
        current = match current {
            Value::Object(map) => map.entry((*key).to_owned()).or_insert(Value::Null),
            other => other,
        };
    }
    current
}

/// Sets the value at a path.
pub(crate) fn put(value: &mut Value, path: &[&str], new: impl Into<Value>) {
    *entry(value, path) = new.into();
}

/// Sets the value at a path unless there is one.
pub(crate) fn fill(value: &mut Value, path: &[&str], new: impl Into<Value>) {
    let place = entry(value, path);
    if place.is_null() {
        *place = new.into();
    }
}

/// Removes the value at a path.
pub(crate) fn take(value: &mut Value, path: &[&str]) -> Option<Value> {
    let (last, parents) = path.split_last()?;
    let mut current = value;
    for key in parents {
        current = current.get_mut(*key)?;
    }
    current.as_object_mut()?.remove(*last)
}

/// The list at a path, made where it isn't there yet.
pub(crate) fn entry_list<'a>(value: &'a mut Value, path: &[&str]) -> Option<&'a mut Vec<Value>> {
    let place = entry(value, path);
    if !place.is_array() {
        *place = Value::Array(Vec::new());
    }
    place.as_array_mut()
}

/// The list at a path, only if it is there.
pub(crate) fn list_mut<'a>(value: &'a mut Value, pointer: &str) -> Option<&'a mut Vec<Value>> {
    value.pointer_mut(pointer).and_then(Value::as_array_mut)
}

/// `metadata.name`.
pub(crate) fn name(value: &Value) -> &str {
    text(value, "/metadata/name")
}

/// `metadata.namespace`, `""` for a cluster-wide object.
pub(crate) fn namespace(value: &Value) -> &str {
    text(value, "/metadata/namespace")
}

/// `metadata.uid`.
pub(crate) fn uid(value: &Value) -> &str {
    text(value, "/metadata/uid")
}

/// `metadata.labels`.
pub(crate) fn labels(value: &Value) -> Option<&Map<String, Value>> {
    map(value, "/metadata/labels")
}

/// Whether the object is being deleted.
pub(crate) fn terminating(value: &Value) -> bool {
    present(value, "/metadata/deletionTimestamp")
}

/// The owner reference with `controller: true`.
pub(crate) fn controller(value: &Value) -> Option<&Value> {
    list(value, "/metadata/ownerReferences")
        .iter()
        .find(|owner| truth(owner, "/controller"))
}

/// The status of a condition, `""` when it isn't there.
pub(crate) fn condition<'a>(value: &'a Value, kind: &str) -> &'a str {
    list(value, "/status/conditions")
        .iter()
        .find(|condition| text(condition, "/type") == kind)
        .map_or("", |condition| text(condition, "/status"))
}
