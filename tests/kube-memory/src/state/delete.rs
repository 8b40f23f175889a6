//! Delete: preconditions, grace period, finalizers, propagation.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{By, State};
use crate::admission::Question;
use crate::clock;
use crate::crd;
use crate::json;
use crate::refusal::{Outcome, Refusal};
use crate::registry::Resource;
use crate::store::Object;

/// `DeleteOptions`, from the body or the query.
#[derive(Debug, Clone, Default)]
pub(crate) struct DeleteOptions {
    pub(crate) grace: Option<i64>,
    pub(crate) propagation: Option<String>,
    pub(crate) uid: Option<String>,
    pub(crate) version: Option<String>,
}

impl DeleteOptions {
    /// Reads a `DeleteOptions` object.
    pub(crate) fn read(options: &Value) -> Self {
        let text = |pointer| {
            Some(json::text(options, pointer))
                .filter(|text| !text.is_empty())
                .map(str::to_owned)
        };
        let orphan = options
            .pointer("/orphanDependents")
            .and_then(Value::as_bool);
        Self {
            grace: json::number(options, "/gracePeriodSeconds"),
            propagation: text("/propagationPolicy")
                .or(orphan.map(|orphan| if orphan { "Orphan" } else { "Background" }.to_owned())),
            uid: text("/preconditions/uid"),
            version: text("/preconditions/resourceVersion"),
        }
    }

    pub(crate) fn now() -> Self {
        Self {
            grace: Some(0),
            ..Self::default()
        }
    }
}

/// What a delete came to.
#[derive(Debug)]
pub(crate) enum Deleted {
    /// The object stays for now, marked.
    Marked(Object),
    Gone(Object),
}

impl State {
    /// Removes an object, or marks it where a grace period or a finalizer keeps it.
    pub(crate) fn delete(
        &mut self,
        resource: &Arc<Resource>,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
        by: &By<'_>,
    ) -> Outcome<Deleted> {
        let namespace = if resource.namespaced { namespace } else { "" };
        let old = self.get(resource, namespace, name)?;
        check_preconditions(resource, name, &old, options)?;
        let mut new = Value::clone(&old);
        let policy = options.propagation.as_deref().unwrap_or("Background");
        set_propagation(&mut new, policy, resource);
        let mut grace = 0;
        if resource.is("pods") {
            match pod_grace(&old, options) {
                Some(seconds) => grace = seconds,
                // Already terminating, and not asked to hurry: nothing changes.
                None => return Ok(Deleted::Marked(old)),
            }
        }
        if let Some(actor) = &by.actor {
            let question = Question {
                operation: "DELETE",
                resource,
                subresource: "",
                namespace,
                name: if by.collection { "" } else { name },
                object: &Value::Null,
                old: &old,
                actor,
                dry_run: by.dry_run,
            };
            question.ask(self)?;
        }
        let stays = grace > 0
            || !json::list(&new, "/metadata/finalizers").is_empty()
            || resource.is("namespaces");
        if !stays {
            if by.dry_run {
                return Ok(Deleted::Gone(old));
            }
            // Watchers of a pod see that its grace period is over before they see it go.
            if resource.is("pods")
                && json::number(&new, "/metadata/deletionGracePeriodSeconds") != Some(0)
                && json::terminating(&new)
            {
                mark(&mut new, 0, false);
                self.store.put(&resource.table, new);
            }
            let gone = self.store.remove(&resource.table, namespace, name);
            return Ok(Deleted::Gone(gone.unwrap_or(old)));
        }
        let definition = resource.is(crd::DEFINITIONS);
        mark(&mut new, grace, resource.generation && !definition);
        if resource.is("namespaces") {
            json::put(&mut new, &["status", "phase"], "Terminating");
        }
        if definition {
            json::take(&mut new, &["metadata", "deletionGracePeriodSeconds"]);
            crd::mark_terminating(&mut new);
        }
        if by.dry_run {
            return Ok(Deleted::Marked(Arc::new(new)));
        }
        if new == *old {
            return Ok(Deleted::Marked(old));
        }
        Ok(Deleted::Marked(self.store.put(&resource.table, new)))
    }
}

fn check_preconditions(
    resource: &Resource,
    name: &str,
    old: &Value,
    options: &DeleteOptions,
) -> Outcome<()> {
    if let Some(uid) = &options.uid
        && uid != json::uid(old)
    {
        return Err(Refusal::precondition(
            resource,
            name,
            format!(
                "the UID in the precondition ({uid}) does not match the UID in record ({}). \
                 The object might have been deleted and then recreated",
                json::uid(old)
            ),
        ));
    }
    let version = json::text(old, "/metadata/resourceVersion");
    if let Some(wanted) = &options.version
        && wanted != version
    {
        return Err(Refusal::precondition(
            resource,
            name,
            format!(
                "the ResourceVersion in the precondition ({wanted}) does not match the ResourceVersion in record \
                 ({version}). The object might have been modified"
            ),
        ));
    }
    Ok(())
}

/// The propagation policies are finalizers that the garbage collector takes away again.
fn set_propagation(object: &mut Value, policy: &str, resource: &Resource) {
    let wanted = match policy {
        "Orphan" => Some("orphan"),
        "Foreground" => Some("foregroundDeletion"),
        _ => None,
    };
    if let Some(list) = json::list_mut(object, "/metadata/finalizers")
        && !resource.is("namespaces")
    {
        list.retain(|item| item != "orphan" && item != "foregroundDeletion");
    }
    let wanted = wanted.or_else(|| {
        // The objects of a definition go before it does.
        resource
            .is("customresourcedefinitions.apiextensions.k8s.io")
            .then_some(crd::CLEANUP)
    });
    if let Some(finalizer) = wanted
        && let Some(list) = json::entry_list(object, &["metadata", "finalizers"])
        && !list.iter().any(|item| item == finalizer)
    {
        list.push(json!(finalizer));
    }
    if json::list(object, "/metadata/finalizers").is_empty() {
        json::take(object, &["metadata", "finalizers"]);
    }
}

/// Seconds the pod still has; none if it is terminating and nothing shortens that.
fn pod_grace(pod: &Value, options: &DeleteOptions) -> Option<i64> {
    let spec = json::number(pod, "/spec/terminationGracePeriodSeconds").unwrap_or(30);
    let mut grace = options.grace.unwrap_or(spec).max(0);
    // Nobody runs it: no kubelet would finish the deletion.
    if json::text(pod, "/spec/nodeName").is_empty()
        || matches!(json::text(pod, "/status/phase"), "Succeeded" | "Failed")
    {
        grace = 0;
    }
    if json::terminating(pod) {
        let current = json::number(pod, "/metadata/deletionGracePeriodSeconds").unwrap_or(0);
        if options.grace.is_none() || grace >= current && current > 0 {
            return None;
        }
    }
    Some(grace)
}

fn mark(object: &mut Value, grace: i64, generation: bool) {
    let first = !json::terminating(object);
    let current = json::number(object, "/metadata/deletionGracePeriodSeconds");
    if first || current.is_some_and(|current| grace < current) {
        json::put(
            object,
            &["metadata", "deletionTimestamp"],
            clock::after(grace),
        );
        json::put(object, &["metadata", "deletionGracePeriodSeconds"], grace);
    }
    if first && generation {
        let generation = json::number(object, "/metadata/generation").unwrap_or(0) + 1;
        json::put(object, &["metadata", "generation"], generation);
    }
}
