//! The garbage collector: objects whose owners are gone, and the finalizers of the propagation policies.

use std::sync::Arc;

use serde_json::Value;

use super::tolerate;
use crate::json;
use crate::refusal::Outcome;
use crate::state::{DeleteOptions, State};
use crate::store::Object;

const MANAGER: &str = "kube-controller-manager";

/// Looks at the namespaces that changed; at all after a deletion of something cluster-wide.
pub(super) fn sync<'a>(
    state: &mut State,
    namespaces: impl Iterator<Item = &'a String>,
    deletions: bool,
) -> Outcome<()> {
    for namespace in namespaces {
        for (table, object) in owned_or_held(state, namespace) {
            let finalizers = json::list(&object, "/metadata/finalizers");
            let has = |wanted: &str| finalizers.iter().any(|finalizer| finalizer == wanted);
            if json::terminating(&object) && has("orphan") {
                orphan(state, &table, &object)?;
            } else if json::terminating(&object) && has("foregroundDeletion") {
                foreground(state, &table, &object)?;
            } else if deletions && !json::terminating(&object) && ownerless(state, &object) {
                tolerate(
                    "garbage",
                    state.discard(&table, &object, &DeleteOptions::default()),
                );
            }
        }
    }
    Ok(())
}

/// Objects with owners, or on their way out with a finalizer.
fn owned_or_held(state: &State, namespace: &str) -> Vec<(Arc<str>, Object)> {
    let mut found = Vec::new();
    for (table, objects) in state
        .store
        .tables()
        .filter(|(table, _)| &***table != "events")
    {
        for object in objects.list(namespace) {
            let held =
                json::terminating(object) && !json::list(object, "/metadata/finalizers").is_empty();
            if held || !json::list(object, "/metadata/ownerReferences").is_empty() {
                found.push((table.clone(), object.clone()));
            }
        }
    }
    found
}

fn owner_of(state: &State, object: &Value, reference: &Value) -> Option<Object> {
    let resource = state.registry.of_kind(
        json::text(reference, "/apiVersion"),
        json::text(reference, "/kind"),
    )?;
    let namespace = if resource.namespaced {
        json::namespace(object)
    } else {
        ""
    };
    let owner = state
        .store
        .get(&resource.table, namespace, json::text(reference, "/name"))?;
    (json::uid(&owner) == json::text(reference, "/uid")).then_some(owner)
}

/// It had owners, and none is left. An owner of a kind that isn't served counts as there: who knows.
fn ownerless(state: &State, object: &Value) -> bool {
    let references = json::list(object, "/metadata/ownerReferences");
    !references.is_empty()
        && references.iter().all(|reference| {
            let served = state
                .registry
                .of_kind(
                    json::text(reference, "/apiVersion"),
                    json::text(reference, "/kind"),
                )
                .is_some();
            served && owner_of(state, object, reference).is_none()
        })
}

fn dependents(state: &State, owner: &Value) -> Vec<(Arc<str>, Object)> {
    let mut all = owned_or_held(state, json::namespace(owner));
    all.retain(|(_, object)| {
        json::list(object, "/metadata/ownerReferences")
            .iter()
            .any(|reference| json::text(reference, "/uid") == json::uid(owner))
    });
    all
}

fn take_finalizer(state: &mut State, table: &str, object: &Value, gone: &str) -> Outcome<()> {
    state
        .change(table, object, "", MANAGER, |object| {
            if let Some(list) = json::list_mut(object, "/metadata/finalizers") {
                list.retain(|finalizer| finalizer != gone);
            }
        })
        .map(drop)
}

fn orphan(state: &mut State, table: &str, owner: &Object) -> Outcome<()> {
    for (table, dependent) in dependents(state, owner) {
        let freed = state.change(&table, &dependent, "", MANAGER, |dependent| {
            if let Some(list) = json::list_mut(dependent, "/metadata/ownerReferences") {
                list.retain(|reference| json::text(reference, "/uid") != json::uid(owner));
            }
        });
        tolerate("orphan", freed);
    }
    take_finalizer(state, table, owner, "orphan")
}

fn foreground(state: &mut State, table: &str, owner: &Object) -> Outcome<()> {
    let dependents = dependents(state, owner);
    for (table, dependent) in dependents
        .iter()
        .filter(|(_, dependent)| !json::terminating(dependent))
    {
        let options = DeleteOptions {
            propagation: Some("Foreground".to_owned()),
            ..DeleteOptions::default()
        };
        tolerate("dependent", state.discard(table, dependent, &options));
    }
    let blocking = dependents.iter().any(|(table, dependent)| {
        state
            .store
            .get(table, json::namespace(dependent), json::name(dependent))
            .is_some()
            && json::list(dependent, "/metadata/ownerReferences")
                .iter()
                .any(|r| {
                    json::text(r, "/uid") == json::uid(owner)
                        && json::truth(r, "/blockOwnerDeletion")
                })
    });
    if blocking {
        Ok(())
    } else {
        take_finalizer(state, table, owner, "foregroundDeletion")
    }
}
