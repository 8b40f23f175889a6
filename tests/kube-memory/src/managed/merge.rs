//! The merge of an applied configuration into the live object, and the removal of what is applied no more.

use serde_json::{Map, Value};

use super::field_set::{FieldSet, item_element};
use crate::shapes::{ListShape, Shapes};

/// Merges `config` into `live`: maps by field, lists by their shape.
pub(super) fn merge(live: &mut Value, config: &Value, shapes: Shapes<'_>) {
    merge_at(live, config, shapes, &mut Vec::new());
}

fn merge_at<'v>(live: &mut Value, config: &'v Value, shapes: Shapes<'_>, path: &mut Vec<&'v str>) {
    match config {
        Value::Object(fields) if !shapes.atomic_map(path) => {
            if !live.is_object() {
                *live = Value::Object(Map::new());
            }
            let Some(map) = live.as_object_mut() else {
                return;
            };
            for (key, value) in fields {
                path.push(key);
                merge_at(
                    map.entry(key.clone()).or_insert(Value::Null),
                    value,
                    shapes,
                    path,
                );
                path.pop();
            }
        }
        Value::Array(items) => {
            let shape = shapes.list(path);
            match live.as_array_mut() {
                Some(list) if shape != ListShape::Atomic => {
                    for item in items {
                        let element = item_element(item, &shape);
                        match list
                            .iter_mut()
                            .find(|old| item_element(old, &shape) == element)
                        {
                            Some(old) => merge_at(old, item, shapes, path),
                            None => list.push(item.clone()),
                        }
                    }
                }
                _ => *live = config.clone(),
            }
        }
        _ => *live = config.clone(),
    }
}

/// Removes the members of `gone` that are not in `kept`.
pub(super) fn prune(value: &mut Value, gone: &FieldSet, kept: &FieldSet, shapes: Shapes<'_>) {
    prune_at(value, gone, Some(kept), shapes, &mut Vec::new());
}

fn prune_at(
    value: &mut Value,
    gone: &FieldSet,
    kept: Option<&FieldSet>,
    shapes: Shapes<'_>,
    path: &mut Vec<String>,
) {
    for (element, below) in gone.children() {
        let kept = kept.and_then(|kept| kept.child(element));
        // A path that others own, or own something below of, stays.
        let drop_whole = kept.is_none() && (below.owns() || element.starts_with("k:"));
        match value {
            Value::Object(map) => {
                let Some(key) = element.strip_prefix("f:") else {
                    continue;
                };
                if drop_whole {
                    map.remove(key);
                    continue;
                }
                if let Some(child) = map.get_mut(key) {
                    path.push(key.to_owned());
                    prune_at(child, below, kept, shapes, path);
                    path.pop();
                    let hollow = child.as_object().is_some_and(Map::is_empty)
                        || child.as_array().is_some_and(Vec::is_empty);
                    if hollow && kept.is_none() {
                        map.remove(key);
                    }
                }
            }
            Value::Array(list) => {
                let shape = {
                    let path: Vec<&str> = path.iter().map(String::as_str).collect();
                    shapes.list(&path)
                };
                if drop_whole {
                    list.retain(|item| item_element(item, &shape) != *element);
                } else if let Some(item) = list
                    .iter_mut()
                    .find(|item| item_element(item, &shape) == *element)
                {
                    prune_at(item, below, kept, shapes, path);
                }
            }
            _ => {}
        }
    }
}
