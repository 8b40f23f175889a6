//! Tables and metadata-only answers, as kubectl and metadata clients ask for them.

mod columns;

use serde_json::{Value, json};

use super::Call;
use crate::clock;
use crate::json;
use crate::registry::Resource;
use crate::request::Request;
use crate::store::Object;

/// The form of an answer, by its Accept header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Plain,
    Table,
    Metadata,
}

impl Form {
    /// The first wanted form that is served.
    pub(super) fn of(accept: &str) -> Self {
        for wanted in accept.split(',') {
            let wanted: String = wanted.split_whitespace().collect();
            if !wanted.starts_with("application/json") && !wanted.starts_with("*/*") {
                continue;
            }
            if wanted.contains("as=Table") {
                return Self::Table;
            }
            if wanted.contains("as=PartialObjectMetadata") {
                return Self::Metadata;
            }
            return Self::Plain;
        }
        Self::Plain
    }

    pub(super) fn one(self, call: &Call<'_>, object: &Object, version: &str) -> Value {
        self.one_of(&call.resource, call.request, object, version)
    }

    /// One object in this form.
    pub(super) fn one_of(
        self,
        resource: &Resource,
        request: &Request,
        object: &Object,
        version: &str,
    ) -> Value {
        match self {
            Self::Plain => Value::clone(object),
            Self::Metadata => metadata(object),
            Self::Table => table(
                resource,
                request,
                std::slice::from_ref(object),
                json!({"resourceVersion": version}),
            ),
        }
    }

    /// A list in this form.
    pub(super) fn many(self, call: &Call<'_>, items: &[Object], list: Value) -> Value {
        match self {
            Self::Table => table(&call.resource, call.request, items, list),
            _ => json!({
                "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": list,
                "items": items.iter().map(|object| metadata(object)).collect::<Vec<_>>(),
            }),
        }
    }
}

fn metadata(object: &Value) -> Value {
    let metadata = object.get("metadata").cloned().unwrap_or_else(|| json!({}));
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
}

/// Name, type, format, description, priority of a column.
fn definition(name: &str, kind: &str, format: &str, description: &str, priority: i64) -> Value {
    json!({"name": name, "type": kind, "format": format, "description": description, "priority": priority})
}

const NAME: &str = "Name must be unique within a namespace. Is required when creating resources, although some resources may allow a client to request the generation of an appropriate name automatically. Name is primarily intended for creation idempotence and configuration definition. Cannot be updated. More info: https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names";

fn table(resource: &Resource, request: &Request, items: &[Object], list: Value) -> Value {
    // Events are known by what they are about; their generated names are for `-o wide`.
    let named_last = resource.is("events");
    let mut definitions = Vec::new();
    if !named_last {
        definitions.push(definition("Name", "string", "name", NAME, 0));
    }
    let built_in = columns::of(&resource.table);
    let custom = resource
        .custom
        .as_ref()
        .map(|custom| custom.columns.as_slice())
        .unwrap_or_default();
    for (name, kind, priority) in built_in {
        definitions.push(definition(name, kind, "", name, i64::from(*priority)));
    }
    for column in custom {
        definitions.push(definition(
            &column.name,
            &column.kind,
            &column.format,
            &column.description,
            column.priority,
        ));
    }
    if built_in.is_empty() && custom.is_empty() {
        definitions.push(definition("Age", "date", "", "CreationTimestamp", 0));
    }
    if named_last {
        definitions.push(definition("Name", "string", "name", NAME, 1));
    }
    let include = request
        .query
        .get("includeObject")
        .unwrap_or("Metadata")
        .to_owned();
    let rows: Vec<Value> = items
        .iter()
        .map(|object| {
            let mut cells = Vec::new();
            if !named_last {
                cells.push(json!(json::name(object)));
            }
            cells.extend(columns::cells(&resource.table, object));
            cells.extend(custom.iter().map(|column| column.cell(object)));
            if built_in.is_empty() && custom.is_empty() {
                cells.push(clock::age(json::text(object, "/metadata/creationTimestamp")).into());
            }
            if named_last {
                cells.push(json!(json::name(object)));
            }
            match include.as_str() {
                "None" => json!({"cells": cells}),
                "Object" => json!({"cells": cells, "object": Value::clone(object)}),
                _ => json!({"cells": cells, "object": metadata(object)}),
            }
        })
        .collect();
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": list,
           "columnDefinitions": definitions, "rows": rows})
}
