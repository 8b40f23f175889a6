//! Create, replace, patch, delete and delete of a collection.

use serde_json::{Value, json};

use super::read::{Filter, plain_list, shown};
use super::{Call, Reply};
use crate::admission::Actor;
use crate::json;
use crate::kinds;
use crate::managed::{self, Writer};
use crate::patch;
use crate::refusal::{FieldError, Outcome, Refusal};
use crate::registry::Resource;
use crate::state::{By, DeleteOptions, Deleted, State, shapes};
use crate::store::Object;

impl Call<'_> {
    pub(super) fn actor(&self) -> Actor {
        Actor {
            user: self.request.user.clone(),
            groups: self.request.groups.clone(),
        }
    }

    fn by(&self) -> By<'_> {
        By {
            manager: self.request.manager(),
            actor: Some(self.actor()),
            collection: false,
            dry_run: self.request.dry_run(),
            strict: self.request.query.get("fieldValidation") == Some("Strict"),
            warnings: Vec::new(),
            replaces: false,
            applied: false,
        }
    }

    /// The answer of a write, in the version that was asked for.
    fn written(&self, code: u16, object: &Object, by: By<'_>) -> Reply {
        let warnings = match self.request.query.get("fieldValidation") {
            Some("Ignore") => Vec::new(),
            _ => by.warnings,
        };
        Reply::json(code, &shown(&self.resource, object)).warn(warnings)
    }
}

/// Events of both groups are stored as core events.
fn stored_resource(state: &State, call: &Call<'_>) -> Outcome<std::sync::Arc<Resource>> {
    if call.resource.group == "events.k8s.io" {
        state.resource("events")
    } else {
        Ok(call.resource.clone())
    }
}

fn to_stored(call: &Call<'_>, object: &mut Value) {
    if call.resource.group == "events.k8s.io" {
        kinds::event_as_stored(object);
    }
}

pub(super) fn create(call: &Call<'_>) -> Outcome<Reply> {
    let mut object = call.request.json()?;
    let mut by = call.by();
    to_stored(call, &mut object);
    let created = call.core.shared.with(|state| {
        let resource = stored_resource(state, call)?;
        state.create(&resource, &call.target.namespace, object, &mut by)
    })?;
    Ok(call.written(201, &created, by))
}

pub(super) fn replace(call: &Call<'_>) -> Outcome<Reply> {
    let mut object = call.request.json()?;
    to_stored(call, &mut object);
    let mut by = call.by();
    by.replaces = true;
    let target = &call.target;
    let updated = call.core.shared.with(|state| {
        let resource = stored_resource(state, call)?;
        state.update(
            &resource,
            &target.namespace,
            &target.name,
            &target.subresource,
            &mut by,
            |_| Ok(object),
        )
    })?;
    Ok(call.written(200, &updated, by))
}

/// Patches by their content type.
pub(super) fn patch(call: &Call<'_>) -> Outcome<Reply> {
    let kind = call
        .request
        .content_type
        .split(';')
        .next()
        .unwrap_or("")
        .trim();
    let custom = call.resource.custom.is_some();
    let body = &call.request.body;
    if kind == "application/apply-patch+yaml" {
        return apply(call);
    }
    if custom && kind == "application/strategic-merge-patch+json" {
        return Err(Refusal::unsupported_media(
            "the body of the request was in an unknown format - accepted media types include: \
             application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml",
        ));
    }
    let known = [
        "application/json-patch+json",
        "application/merge-patch+json",
        "application/strategic-merge-patch+json",
    ];
    if !known.contains(&kind) {
        let mut refusal = Refusal::unsupported_media("415: Unsupported Media Type");
        refusal.details = Some(json!({}));
        return Err(refusal);
    }
    let patch: Value = serde_json::from_slice(body).map_err(|_| {
        Refusal::bad_request(format!(
            "error decoding patch: {}",
            patch::go_syntax_error(body)
        ))
    })?;
    let mut by = call.by();
    let target = &call.target;
    let updated = call.core.shared.with(|state| {
        let resource = stored_resource(state, call)?;
        state.update(
            &resource,
            &target.namespace,
            &target.name,
            &target.subresource,
            &mut by,
            |old| {
                let mut new = if call.resource.group == "events.k8s.io" {
                    kinds::event_as_new(old)
                } else {
                    old.clone()
                };
                match kind {
                    "application/json-patch+json" => {
                        new = patch::json_patch::apply(&new, &patch)
                            .ok_or_else(Refusal::unprocessable)?;
                    }
                    "application/merge-patch+json" => patch::merge(&mut new, &patch),
                    _ => patch::strategic::merge(&mut new, &patch),
                }
                to_stored(call, &mut new);
                Ok(new)
            },
        )
    })?;
    Ok(call.written(200, &updated, by))
}

/// Server-side apply; what doesn't exist is created.
fn apply(call: &Call<'_>) -> Outcome<Reply> {
    let manager = call.request.query.get("fieldManager").unwrap_or("");
    if manager.is_empty() {
        let error = FieldError::required("fieldManager", "is required for apply patch");
        return Err(Refusal::invalid_kind(
            "PatchOptions",
            "meta.k8s.io",
            "",
            &[error],
        ));
    }
    let body = &call.request.body;
    let mut config: Value = serde_json::from_slice(body).map_err(|_| {
        // YAML would be allowed here; kubectl and kube send JSON, which is YAML too.
        Refusal::bad_request(format!(
            "error decoding YAML (only JSON is read here): {}",
            patch::go_syntax_error(body)
        ))
    })?;
    let resource = &call.resource;
    let (kind, version) = (
        json::text(&config, "/kind"),
        json::text(&config, "/apiVersion"),
    );
    if kind != resource.kind || version != resource.api_version() {
        return Err(Refusal::bad_request(format!(
            "invalid object type: {version}, Kind={kind}; expected {}, Kind={}",
            resource.api_version(),
            resource.kind
        )));
    }
    if json::present(&config, "/metadata/managedFields") {
        return Err(Refusal::bad_request("metadata.managedFields must be nil"));
    }
    let force = call.request.query.flag("force") && call.request.query.get("force").is_some();
    let target = &call.target;
    json::put(&mut config, &["metadata", "name"], target.name.as_str());
    let api_version = resource.api_version();
    let writer = Writer {
        manager,
        api_version: &api_version,
        subresource: &target.subresource,
        shapes: shapes(resource),
    };
    let merged = |live: Option<&Value>| {
        managed::apply(live, &config, writer, force)
            .map_err(|conflicts| Refusal::apply_conflict(conflicts.message, conflicts.causes))
    };
    let mut by = call.by();
    by.applied = true;
    let (code, object) = call.core.shared.with(|state| {
        let namespace = if resource.namespaced {
            target.namespace.as_str()
        } else {
            ""
        };
        let exists = state
            .store
            .get(&resource.table, namespace, &target.name)
            .is_some();
        if exists || !target.subresource.is_empty() {
            let apply = |old: &Value| merged(Some(old));
            return state
                .update(
                    resource,
                    namespace,
                    &target.name,
                    &target.subresource,
                    &mut by,
                    apply,
                )
                .map(|object| (200, object));
        }
        if !json::uid(&config).is_empty() {
            // An applier that knows the uid means an object that was there.
            let why = format!(
                "uid mismatch: the provided object specified uid {}, and no existing object was found",
                json::uid(&config)
            );
            return Err(Refusal::storage_conflict(resource, &target.name, why));
        }
        state
            .create(resource, namespace, merged(None)?, &mut by)
            .map(|object| (201, object))
    })?;
    Ok(call.written(code, &object, by))
}

/// Options from the body, else from the query.
fn delete_options(call: &Call<'_>) -> Outcome<(DeleteOptions, bool)> {
    let body = call.request.json()?;
    let mut options = DeleteOptions::read(&body);
    let query = &call.request.query;
    if options.grace.is_none() {
        options.grace = query
            .get("gracePeriodSeconds")
            .and_then(|grace| grace.parse().ok());
    }
    if options.propagation.is_none() {
        options.propagation = query.get("propagationPolicy").map(str::to_owned);
    }
    let dry_run = call.request.dry_run()
        || json::list(&body, "/dryRun")
            .iter()
            .any(|item| item == "All");
    Ok((options, dry_run))
}

/// Kinds whose immediate delete answers with the object, not with a Status.
fn answers_object(resource: &Resource) -> bool {
    matches!(
        &*resource.table,
        "pods"
            | "services"
            | "serviceaccounts"
            | "persistentvolumes"
            | "persistentvolumeclaims"
            | "resourcequotas"
    )
}

pub(super) fn delete(call: &Call<'_>) -> Outcome<Reply> {
    let (options, dry_run) = delete_options(call)?;
    let (resource, target) = (&call.resource, &call.target);
    let by = By {
        dry_run,
        ..call.by()
    };
    let deleted = call
        .core
        .shared
        .with(|state| state.delete(resource, &target.namespace, &target.name, &options, &by))?;
    Ok(match deleted {
        Deleted::Gone(object) if !answers_object(resource) => {
            let mut status = json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
                "details": {"name": target.name, "kind": resource.plural, "uid": json::uid(&object)},
            });
            if !resource.group.is_empty() {
                json::put(&mut status, &["details", "group"], resource.group.as_str());
            }
            Reply::json(200, &status)
        }
        Deleted::Gone(object) | Deleted::Marked(object) => {
            Reply::json(200, &shown(resource, &object))
        }
    })
}

pub(super) fn delete_collection(call: &Call<'_>) -> Outcome<Reply> {
    let (options, dry_run) = delete_options(call)?;
    let filter = Filter::of(call)?;
    let resource = &call.resource;
    let by = By {
        dry_run,
        collection: true,
        ..call.by()
    };
    let (version, items) = call.core.shared.with(|state| {
        let mut items = state.store.list(&resource.table, &call.target.namespace);
        items.retain(|object| filter.matches(object));
        for object in &items {
            let (namespace, name) = (json::namespace(object), json::name(object));
            state.delete(resource, namespace, name, &options, &by)?;
        }
        Ok::<_, Refusal>((state.store.version(), items))
    })?;
    Ok(plain_list(
        resource,
        &items,
        json!({"resourceVersion": version.to_string()}),
    ))
}
