//! Who owns which field (`metadata.managedFields`), and server-side apply, which depends on it.
//!
//! The rules are those of structured-merge-diff: a write owns what it added or changed, an apply owns what it
//! mentions; what an applier no longer mentions and nobody else owns is removed.

pub(crate) mod field_set;
mod merge;

use serde_json::{Value, json};

use crate::clock;
use crate::json;
use crate::shapes::Shapes;
use field_set::{FieldSet, compare};

/// One element of managedFields.
#[derive(Debug, Clone, PartialEq)]
struct Entry {
    manager: String,
    operation: String,
    subresource: String,
    api_version: String,
    time: String,
    fields: FieldSet,
}

/// Who writes, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Writer<'a> {
    pub(crate) manager: &'a str,
    pub(crate) api_version: &'a str,
    pub(crate) subresource: &'a str,
    pub(crate) shapes: Shapes<'a>,
}

/// Conflicts of an apply: the message and the causes of the 409.
#[derive(Debug)]
pub(crate) struct Conflicts {
    pub(crate) message: String,
    pub(crate) causes: Vec<Value>,
}

fn read(object: Option<&Value>) -> Vec<Entry> {
    let entries = object.map(|object| json::list(object, "/metadata/managedFields"));
    let read = |entry: &Value| Entry {
        manager: json::text(entry, "/manager").to_owned(),
        operation: json::text(entry, "/operation").to_owned(),
        subresource: json::text(entry, "/subresource").to_owned(),
        api_version: json::text(entry, "/apiVersion").to_owned(),
        time: json::text(entry, "/time").to_owned(),
        fields: FieldSet::decode(entry.get("fieldsV1").unwrap_or(&Value::Null)),
    };
    entries.unwrap_or_default().iter().map(read).collect()
}

fn write(object: &mut Value, mut entries: Vec<Entry>) {
    entries.retain(|entry| !entry.fields.is_empty());
    // Appliers first, then by time, as the real server sorts them.
    entries.sort_by(|a, b| (&a.operation, &a.time).cmp(&(&b.operation, &b.time)));
    let entries: Vec<Value> = entries
        .into_iter()
        .map(|entry| {
            let mut value = json!({
                "manager": entry.manager, "operation": entry.operation, "apiVersion": entry.api_version,
                "time": entry.time, "fieldsType": "FieldsV1", "fieldsV1": entry.fields.encode(),
            });
            if !entry.subresource.is_empty() {
                json::put(&mut value, &["subresource"], entry.subresource);
            }
            value
        })
        .collect();
    if entries.is_empty() {
        json::take(object, &["metadata", "managedFields"]);
    } else {
        json::put(object, &["metadata", "managedFields"], entries);
    }
}

/// Records the ownership of a create or an update: `new` is what will be stored.
pub(crate) fn record(old: Option<&Value>, new: &mut Value, writer: Writer<'_>) {
    // A client that sends an empty list resets the ownership; else what it sends counts for nothing.
    let mut entries = read(old);
    let changes = compare(old, Some(new), writer.shapes);
    let touched = changes.added.union(&changes.modified);
    if touched.is_empty() && changes.removed.is_empty() {
        write(new, entries);
        return;
    }
    let mine = |entry: &Entry| {
        entry.operation == "Update"
            && entry.manager == writer.manager
            && entry.subresource == writer.subresource
            && entry.api_version == writer.api_version
    };
    for entry in &mut entries {
        entry.fields = entry.fields.difference(&changes.removed);
        if !mine(entry) {
            entry.fields = entry.fields.difference(&touched);
        }
    }
    let touched = touched.without_identity();
    match entries.iter_mut().find(|entry| mine(entry)) {
        Some(entry) => {
            entry.fields = entry.fields.union(&touched);
            entry.time = clock::now();
        }
        None => entries.push(Entry {
            manager: writer.manager.to_owned(),
            operation: "Update".to_owned(),
            subresource: writer.subresource.to_owned(),
            api_version: writer.api_version.to_owned(),
            time: clock::now(),
            fields: touched,
        }),
    }
    write(new, entries);
}

/// Server-side apply: the live object (none: it is created) with the configuration merged in.
pub(crate) fn apply(
    live: Option<&Value>,
    config: &Value,
    writer: Writer<'_>,
    force: bool,
) -> Result<Value, Conflicts> {
    let mut entries = read(live);
    let mine = |entry: &Entry| {
        entry.operation == "Apply"
            && entry.manager == writer.manager
            && entry.subresource == writer.subresource
    };
    let applied = FieldSet::of(config, writer.shapes).without_identity();
    let mut merged = live.cloned().unwrap_or(Value::Null);
    merge::merge(&mut merged, config, writer.shapes);

    let before = entries
        .iter()
        .find(|entry| mine(entry))
        .map(|entry| entry.fields.clone());
    let time = entries
        .iter()
        .find(|entry| mine(entry))
        .map(|entry| entry.time.clone());
    if let Some(before) = &before {
        let mut kept = applied.clone();
        for entry in entries.iter().filter(|entry| !mine(entry)) {
            kept = kept.union(&entry.fields);
        }
        merge::prune(
            &mut merged,
            &before.difference(&applied),
            &kept,
            writer.shapes,
        );
    }

    let changes = compare(live, Some(&merged), writer.shapes);
    let touched = changes.added.union(&changes.modified);
    let mut conflicts = Vec::new();
    for entry in entries.iter_mut().filter(|entry| !mine(entry)) {
        for path in entry.fields.intersection(&touched).paths() {
            conflicts.push((describe(entry), path));
        }
        entry.fields = entry
            .fields
            .difference(&touched)
            .difference(&changes.removed);
    }
    if !conflicts.is_empty() && !force {
        return Err(report(conflicts));
    }
    let unchanged = before.as_ref() == Some(&applied) && touched.is_empty();
    let time = time.filter(|_| unchanged).unwrap_or_else(clock::now);
    entries.retain(|entry| !mine(entry));
    entries.push(Entry {
        manager: writer.manager.to_owned(),
        operation: "Apply".to_owned(),
        subresource: writer.subresource.to_owned(),
        api_version: writer.api_version.to_owned(),
        time,
        fields: applied,
    });
    write(&mut merged, entries);
    Ok(merged)
}

fn describe(entry: &Entry) -> (String, String) {
    let mut text = format!("{:?}", entry.manager);
    if !entry.subresource.is_empty() {
        text = format!("{text} with subresource {:?}", entry.subresource);
    }
    if entry.operation == "Update" {
        text = format!("{text} using {}", entry.api_version);
    }
    // The order of the message: by manager, then Apply before Update.
    let order = format!(
        "{} {} {}",
        entry.manager, entry.operation, entry.subresource
    );
    (order, text)
}

fn report(mut conflicts: Vec<((String, String), String)>) -> Conflicts {
    conflicts.sort();
    let causes = conflicts
        .iter()
        .map(|((_, manager), path)| {
            json!({"reason": "FieldManagerConflict",
                   "message": format!("conflict with {manager}"), "field": path})
        })
        .collect();
    let message = match conflicts.as_slice() {
        [((_, manager), path)] => {
            format!("Apply failed with 1 conflict: conflict with {manager}: {path}")
        }
        many => {
            let mut lines = Vec::new();
            let mut last = None;
            for ((order, manager), path) in many {
                if last != Some(order) {
                    lines.push(format!("conflicts with {manager}:"));
                    last = Some(order);
                }
                lines.push(format!("- {path}"));
            }
            format!(
                "Apply failed with {} conflicts: {}",
                many.len(),
                lines.join("\n")
            )
        }
    };
    Conflicts { message, causes }
}
