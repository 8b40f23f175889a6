//! Strategic merge patch: a merge patch that knows which lists are merged by key, with its directives.

use serde_json::{Map, Value};

use crate::shapes::{strategic_key, strategic_set};

/// Merges a patch into an object of a built-in type.
pub(crate) fn merge(target: &mut Value, patch: &Value) {
    merge_at(target, patch, &mut Vec::new());
}

fn merge_at<'p>(target: &mut Value, patch: &'p Value, path: &mut Vec<&'p str>) {
    let Some(fields) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() || directive(patch) == Some("replace") {
        *target = Value::Object(Map::new());
    }
    if directive(patch) == Some("delete") {
        *target = Value::Null;
        return;
    }
    let Some(map) = target.as_object_mut() else {
        return;
    };
    if let Some(kept) = fields.get("$retainKeys").and_then(Value::as_array) {
        map.retain(|key, _| kept.iter().any(|kept| kept == key.as_str()));
    }
    for (key, value) in fields {
        if let Some(field) = key.strip_prefix("$deleteFromPrimitiveList/") {
            if let (Some(list), Some(gone)) = (
                map.get_mut(field).and_then(Value::as_array_mut),
                value.as_array(),
            ) {
                list.retain(|item| !gone.contains(item));
            }
            continue;
        }
        if key.starts_with('$') {
            continue;
        }
        path.push(key);
        match value {
            Value::Null => {
                map.remove(key);
            }
            Value::Object(_) if directive(value) == Some("delete") => {
                map.remove(key);
            }
            Value::Object(_) => {
                merge_at(map.entry(key.clone()).or_insert(Value::Null), value, path)
            }
            Value::Array(items) => {
                let place = map.entry(key.clone()).or_insert(Value::Null);
                merge_list(place, items, path);
            }
            scalar => {
                map.insert(key.clone(), scalar.clone());
            }
        }
        path.pop();
    }
    for (key, order) in fields {
        if let (Some(field), Some(order)) =
            (key.strip_prefix("$setElementOrder/"), order.as_array())
        {
            path.push(field);
            let merge_key = strategic_key(path);
            path.pop();
            if let Some(list) = map.get_mut(field).and_then(Value::as_array_mut) {
                sort(list, order, merge_key);
            }
        }
    }
}

fn merge_list<'p>(place: &mut Value, items: &'p [Value], path: &mut Vec<&'p str>) {
    let replace = items.iter().any(|item| directive(item) == Some("replace"));
    let plain = || {
        items
            .iter()
            .filter(|item| directive(item).is_none())
            .cloned()
            .collect()
    };
    if !place.is_array() || replace {
        *place = Value::Array(Vec::new());
    }
    if replace {
        *place = plain();
        return;
    }
    let key = strategic_key(path);
    let Some(list) = place.as_array_mut() else {
        return;
    };
    match key {
        Some(key) => {
            for item in items {
                let found = list.iter().position(|old| old.get(key) == item.get(key));
                match (directive(item), found) {
                    (Some("delete"), _) => list.retain(|old| old.get(key) != item.get(key)),
                    (_, Some(found)) => {
                        if let Some(old) = list.get_mut(found) {
                            merge_at(old, item, path);
                        }
                    }
                    (_, None) => {
                        let mut fresh = Value::Null;
                        merge_at(&mut fresh, item, path);
                        list.push(fresh);
                    }
                }
            }
        }
        None if strategic_set(path) => {
            for item in items {
                if !list.contains(item) {
                    list.push(item.clone());
                }
            }
        }
        None => *place = plain(),
    }
}

fn directive(value: &Value) -> Option<&str> {
    value.get("$patch").and_then(Value::as_str)
}

/// Items in the wanted order first, the others after them as they were.
fn sort(list: &mut [Value], order: &[Value], key: Option<&str>) {
    list.sort_by_key(|item| {
        order
            .iter()
            .position(|wanted| match key {
                Some(key) => wanted.get(key) == item.get(key),
                None => wanted == item,
            })
            .unwrap_or(order.len())
    });
}
