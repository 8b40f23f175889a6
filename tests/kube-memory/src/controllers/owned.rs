//! What owners of pods have in common: claim, release, adopt, make and count pods.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Teller, tell};
use crate::json;
use crate::refusal::Outcome;
use crate::selector::Selector;
use crate::state::{DeleteOptions, State, random_suffix};
use crate::store::Object;

/// Running or going to: neither finished nor terminating.
pub(super) fn active(pod: &Value) -> bool {
    !json::terminating(pod) && !finished(pod)
}

pub(super) fn finished(pod: &Value) -> bool {
    matches!(json::text(pod, "/status/phase"), "Succeeded" | "Failed")
}

pub(super) fn ready(pod: &Value) -> bool {
    json::condition(pod, "Ready") == "True"
}

/// The owner reference of a controller.
pub(super) fn reference(owner: &Value) -> Value {
    json!({
        "apiVersion": json::text(owner, "/apiVersion"), "kind": json::text(owner, "/kind"),
        "name": json::name(owner), "uid": json::uid(owner), "controller": true, "blockOwnerDeletion": true,
    })
}

/// The pods of an owner, after releasing those that no longer match and adopting orphans that do.
///
/// `may_adopt` says whether a matching orphan can be one of this owner's (a StatefulSet knows its names).
pub(super) fn claim(
    state: &mut State,
    table: &str,
    owner: &Value,
    manager: &str,
    may_adopt: impl Fn(&Value) -> bool,
) -> Outcome<Vec<Object>> {
    let selector = Selector::of_object(owner.pointer("/spec/selector"));
    let mut owned = Vec::new();
    for object in state.store.list(table, json::namespace(owner)) {
        let matches = selector
            .as_ref()
            .is_some_and(|selector| selector.matches(json::labels(&object)));
        let controller = json::controller(&object).map(|controller| json::text(controller, "/uid"));
        match controller {
            Some(uid) if uid == json::uid(owner) => {
                if matches {
                    owned.push(object);
                } else if !json::terminating(owner) {
                    release(state, table, &object, owner, manager)?;
                }
            }
            None if matches
                && !json::terminating(owner)
                && !json::terminating(&object)
                && may_adopt(&object) =>
            {
                let adopted = state.change(table, &object, "", manager, |object| {
                    if let Some(list) = json::entry_list(object, &["metadata", "ownerReferences"]) {
                        list.push(reference(owner));
                    }
                })?;
                owned.push(adopted);
            }
            _ => {}
        }
    }
    Ok(owned)
}

fn release(
    state: &mut State,
    table: &str,
    object: &Value,
    owner: &Value,
    manager: &str,
) -> Outcome<()> {
    let uid = json::uid(owner).to_owned();
    let released = state.change(table, object, "", manager, |object| {
        if let Some(list) = json::list_mut(object, "/metadata/ownerReferences") {
            list.retain(|reference| json::text(reference, "/uid") != uid);
        }
        // A released pod of a Job is no longer counted, so nothing must wait for the count.
        if let Some(list) = json::list_mut(object, "/metadata/finalizers") {
            list.retain(|finalizer| finalizer != super::job::TRACKING);
        }
    });
    released.map(drop)
}

/// A pod of an owner's template.
pub(super) fn from_template(owner: &Value) -> Value {
    let template = owner.pointer("/spec/template").unwrap_or(&Value::Null);
    let mut metadata =
        json!({"namespace": json::namespace(owner), "ownerReferences": [reference(owner)]});
    for field in ["labels", "annotations"] {
        if let Some(value) = template.pointer(&format!("/metadata/{field}")) {
            json::put(&mut metadata, &[field], value.clone());
        }
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata,
           "spec": template.get("spec").cloned().unwrap_or_else(|| json!({}))})
}

/// Makes a pod and tells of it, or of why it couldn't be made.
pub(super) fn make_pod(
    state: &mut State,
    owner: &Value,
    mut pod: Value,
    component: &str,
) -> Option<Object> {
    if json::name(&pod).is_empty() {
        let prefix = format!("{}-", json::name(owner));
        json::put(
            &mut pod,
            &["metadata", "name"],
            format!("{prefix}{}", random_suffix(5)),
        );
        json::put(&mut pod, &["metadata", "generateName"], prefix);
    }
    let teller = Teller {
        component,
        host: "",
    };
    match state.make("pods", pod, "kube-controller-manager") {
        Ok(pod) => {
            let message = format!("Created pod: {}", json::name(&pod));
            tell(
                state,
                owner,
                "",
                false,
                "SuccessfulCreate",
                &message,
                teller,
            );
            Some(pod)
        }
        Err(refusal) => {
            let message = format!("Error creating: {}", refusal.message);
            tell(state, owner, "", true, "FailedCreate", &message, teller);
            None
        }
    }
}

/// Deletes a pod of an owner and tells of it.
pub(super) fn delete_pod(state: &mut State, owner: &Value, pod: &Value, component: &str) {
    let teller = Teller {
        component,
        host: "",
    };
    match state.discard("pods", pod, &DeleteOptions::default()) {
        Ok(_) => {
            let message = format!("Deleted pod: {}", json::name(pod));
            tell(
                state,
                owner,
                "",
                false,
                "SuccessfulDelete",
                &message,
                teller,
            );
        }
        Err(refusal) => {
            let message = format!("Error deleting: {}", refusal.message);
            // A real controller counts repetitions in one event and waits longer and longer; here a new event
            // would be a change to look at again at once.
            let told = state
                .store
                .list("events", json::namespace(owner))
                .iter()
                .any(|event| {
                    json::text(event, "/message") == message
                        && json::text(event, "/involvedObject/uid") == json::uid(owner)
                });
            if !told {
                tell(state, owner, "", true, "FailedDelete", &message, teller);
            }
        }
    }
}

/// Writes a status if it differs from what is there.
pub(super) fn write_status(
    state: &mut State,
    table: &str,
    object: &Value,
    status: Value,
) -> Outcome<()> {
    if object.get("status") == Some(&status) {
        return Ok(());
    }
    state
        .change(
            table,
            object,
            "status",
            "kube-controller-manager",
            |object| {
                json::put(object, &["status"], status);
            },
        )
        .map(drop)
}

/// A short name of a template's content, in the letters generated names use.
pub(super) fn hash(template: &Value) -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let digest = Sha256::digest(template.to_string().as_bytes());
    digest
        .iter()
        .take(10)
        .filter_map(|byte| LETTERS.get(usize::from(*byte) % LETTERS.len()))
        .map(|letter| char::from(*letter))
        .collect()
}
