//! RFC 6902: add, remove, replace, move, copy, test.

use serde_json::Value;

/// Applies every operation in order; none if one doesn't fit. The API tells the client no reason.
pub(crate) fn apply(target: &Value, patch: &Value) -> Option<Value> {
    let mut result = target.clone();
    for operation in patch.as_array()? {
        step(&mut result, operation)?;
    }
    Some(result)
}

fn step(target: &mut Value, operation: &Value) -> Option<()> {
    let path = operation.get("path")?.as_str()?;
    let value = || operation.get("value").cloned();
    let from = || operation.get("from").and_then(Value::as_str);
    match operation.get("op")?.as_str()? {
        "add" => add(target, path, value()?),
        "remove" => remove(target, path).map(drop),
        "replace" => {
            *target.pointer_mut(path)? = value()?;
            Some(())
        }
        "move" => {
            let moved = remove(target, from()?)?;
            add(target, path, moved)
        }
        "copy" => {
            let copied = target.pointer(from()?)?.clone();
            add(target, path, copied)
        }
        "test" => (target.pointer(path).unwrap_or(&Value::Null) == &value()?).then_some(()),
        _ => None,
    }
}

/// The parent of a path and the last part, unescaped.
fn split<'a>(target: &'a mut Value, path: &str) -> Option<(&'a mut Value, String)> {
    let (parent, last) = path.rsplit_once('/')?;
    Some((
        target.pointer_mut(parent)?,
        last.replace("~1", "/").replace("~0", "~"),
    ))
}

fn add(target: &mut Value, path: &str, value: Value) -> Option<()> {
    if path.is_empty() {
        *target = value;
        return Some(());
    }
    let (parent, last) = split(target, path)?;
    match parent {
        Value::Object(map) => {
            map.insert(last, value);
        }
        Value::Array(list) if last == "-" => list.push(value),
        Value::Array(list) => {
            let position: usize = last.parse().ok()?;
            if position > list.len() {
                return None;
            }
            list.insert(position, value);
        }
        _ => return None,
    }
    Some(())
}

fn remove(target: &mut Value, path: &str) -> Option<Value> {
    let (parent, last) = split(target, path)?;
    match parent {
        Value::Object(map) => map.remove(&last),
        Value::Array(list) => {
            let position: usize = last.parse().ok()?;
            (position < list.len()).then(|| list.remove(position))
        }
        _ => None,
    }
}
