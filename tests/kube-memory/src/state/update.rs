//! Update: the guards (version, uid), what belongs to the server, defaults, validation, then the store.

use std::sync::Arc;

use serde_json::Value;

use super::create::{check_type, place_in_namespace};
use super::{By, State, shapes};
use crate::admission::Question;
use crate::crd;
use crate::json;
use crate::kinds::{self, pod_certificate};
use crate::managed::{self, Writer};
use crate::refusal::{FieldError, Outcome, Refusal};
use crate::registry::Resource;
use crate::store::Object;

impl State {
    /// Replaces an object by what `change` makes of it. A change of nothing keeps the resourceVersion.
    pub(crate) fn update(
        &mut self,
        resource: &Arc<Resource>,
        namespace: &str,
        name: &str,
        subresource: &str,
        by: &mut By<'_>,
        change: impl FnOnce(&Value) -> Outcome<Value>,
    ) -> Outcome<Object> {
        let namespace = if resource.namespaced { namespace } else { "" };
        let old = self.get(resource, namespace, name)?;
        let mut new = change(&old)?;
        check_type(resource, &mut new)?;
        place_in_namespace(resource, &mut new, namespace)?;
        if json::name(&new) != name {
            if !json::name(&new).is_empty() {
                return Err(Refusal::bad_request(format!(
                    "the name of the object ({}) does not match the name on the URL ({name})",
                    json::name(&new)
                )));
            }
            json::put(&mut new, &["metadata", "name"], name);
        }
        check_version(resource, name, &old, &new, by)?;
        check_uid(resource, name, &old, &new, by)?;
        let mut errors = kinds::meta::decode(&new)?;
        keep_server_fields(&old, &mut new, by);
        split_status(resource, subresource, &old, &mut new);

        match &resource.custom {
            Some(custom) => crd::admit(resource, custom, &mut new, Some(&old), by)?,
            None => {
                kinds::prepare_update(self, resource, subresource, &old, &mut new)?;
                if subresource != "status" {
                    errors.extend(kinds::validate(resource, &new, Some((&old, subresource))));
                } else if resource.is(pod_certificate::REQUESTS) {
                    let actor = by.actor.as_ref();
                    errors.extend(pod_certificate::validate_status(self, &old, &new, actor));
                }
            }
        }
        errors.extend(kinds::meta::validate(resource, &new, Some(&old)));
        if !errors.is_empty() {
            return Err(Refusal::invalid(resource, name, &errors));
        }
        if let Some(actor) = &by.actor {
            let question = Question {
                operation: "UPDATE",
                resource,
                subresource,
                namespace,
                name,
                object: &new,
                old: &old,
                actor,
                dry_run: by.dry_run,
            };
            by.warnings.extend(question.ask(self)?);
        }
        // Where a pod runs isn't part of what was wished for.
        if resource.generation && subresource != "binding" && new_generation(&old, &new) {
            let generation = json::number(&old, "/metadata/generation").unwrap_or(0) + 1;
            json::put(&mut new, &["metadata", "generation"], generation);
        }
        if !by.applied {
            managed::record(
                Some(&old),
                &mut new,
                Writer {
                    manager: by.manager,
                    api_version: &resource.api_version(),
                    subresource,
                    shapes: shapes(resource),
                },
            );
        }
        json::put(
            &mut new,
            &["metadata", "resourceVersion"],
            json::text(&old, "/metadata/resourceVersion"),
        );
        if new == *old {
            return Ok(old);
        }
        if by.dry_run {
            return Ok(Arc::new(new));
        }
        let gone = json::terminating(&new)
            && json::list(&new, "/metadata/finalizers").is_empty()
            && json::number(&new, "/metadata/deletionGracePeriodSeconds").unwrap_or(0) == 0
            && !resource.is("namespaces");
        let stored = self.store.put(&resource.table, new);
        if gone {
            self.store.remove(&resource.table, namespace, name);
        }
        if resource.is("customresourcedefinitions.apiextensions.k8s.io") && !gone {
            crd::serve(self, &stored);
        }
        Ok(stored)
    }
}

fn check_version(
    resource: &Resource,
    name: &str,
    old: &Value,
    new: &Value,
    by: &By<'_>,
) -> Outcome<()> {
    let given = json::text(new, "/metadata/resourceVersion");
    if given.is_empty() || given == "0" {
        if by.replaces && !resource.unconditional_update {
            return Err(Refusal::invalid_kind(
                &resource.plural,
                &resource.group,
                name,
                &[FieldError::invalid(
                    "metadata.resourceVersion",
                    &Value::from(0),
                    "must be specified for an update",
                )],
            ));
        }
        return Ok(());
    }
    if given.parse::<u64>().is_err() {
        return Err(Refusal::internal(format!(
            "strconv.ParseUint: parsing \"{given}\": invalid syntax"
        )));
    }
    if given != json::text(old, "/metadata/resourceVersion") {
        return Err(Refusal::modified(resource, name));
    }
    Ok(())
}

/// A patch that names another uid changes an immutable field; a PUT that does is meant for another object.
fn check_uid(
    resource: &Resource,
    name: &str,
    old: &Value,
    new: &Value,
    by: &By<'_>,
) -> Outcome<()> {
    let (given, real) = (json::uid(new), json::uid(old));
    if given.is_empty() || given == real {
        return Ok(());
    }
    if by.replaces {
        return Err(Refusal::storage_conflict(
            resource,
            name,
            format!(
                "Precondition failed: UID in precondition: {given}, UID in object meta: {real}"
            ),
        ));
    }
    let error = FieldError::invalid_text("metadata.uid", given, "field is immutable");
    Err(Refusal::invalid(resource, name, &[error.clone(), error]))
}

/// What no client may change comes from the stored object.
fn keep_server_fields(old: &Value, new: &mut Value, by: &By<'_>) {
    for field in [
        "uid",
        "creationTimestamp",
        "generation",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generateName",
    ] {
        match old.get("metadata").and_then(|metadata| metadata.get(field)) {
            Some(value) => json::put(new, &["metadata", field], value.clone()),
            None => {
                json::take(new, &["metadata", field]);
            }
        }
    }
    json::take(new, &["metadata", "selfLink"]);
    if !by.applied {
        match old.pointer("/metadata/managedFields") {
            Some(value) => json::put(new, &["metadata", "managedFields"], value.clone()),
            None => {
                json::take(new, &["metadata", "managedFields"]);
            }
        }
    }
    // A patch leaves empty maps and lists behind where Go's types know none.
    for field in ["labels", "annotations", "finalizers", "ownerReferences"] {
        let empty = match new.pointer(&format!("/metadata/{field}")) {
            Some(Value::Object(map)) => map.is_empty(),
            Some(Value::Array(list)) => list.is_empty(),
            Some(Value::Null) => true,
            _ => false,
        };
        if empty {
            json::take(new, &["metadata", field]);
        }
    }
}

/// The main resource doesn't change status, and `/status` changes nothing but.
fn split_status(resource: &Resource, subresource: &str, old: &Value, new: &mut Value) {
    let keep = |new: &mut Value, field: &str| match old.get(field) {
        Some(value) => json::put(new, &[field], value.clone()),
        None => {
            json::take(new, &[field]);
        }
    };
    match subresource {
        "status" => {
            let fields: Vec<String> = old
                .as_object()
                .into_iter()
                .chain(new.as_object())
                .flat_map(|map| map.keys().cloned())
                .filter(|field| !matches!(field.as_str(), "status" | "metadata"))
                .collect();
            for field in fields {
                keep(new, &field);
            }
            if resource.custom.is_some() {
                let managed = json::take(new, &["metadata", "managedFields"]);
                keep(new, "metadata");
                if let Some(managed) = managed {
                    json::put(new, &["metadata", "managedFields"], managed);
                }
            } else {
                for field in ["ownerReferences", "finalizers"] {
                    match old.pointer(&format!("/metadata/{field}")) {
                        Some(value) => json::put(new, &["metadata", field], value.clone()),
                        None => {
                            json::take(new, &["metadata", field]);
                        }
                    }
                }
            }
        }
        // A binding also says that the pod is scheduled.
        "binding" => {}
        _ if resource.status => keep(new, "status"),
        _ => {}
    }
}

/// Whether anything but metadata and status changed.
fn new_generation(old: &Value, new: &Value) -> bool {
    let rest = |value: &Value| -> Vec<(String, Value)> {
        value
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(field, _)| !matches!(field.as_str(), "metadata" | "status"))
            .map(|(field, value)| (field.clone(), value.clone()))
            .collect()
    };
    rest(old) != rest(new)
}
