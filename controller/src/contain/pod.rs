//! The suspect itself: one guarded patch that strips and labels, and the way back.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Map, Value, json};

use super::observe::Observed;
use super::refusal::Refusal;
use super::selector::{Labels, demanded_keys, selects, service_selects};
use super::settings::{POD_ANNOTATIONS, QUARANTINE_LABEL, Settings};
use crate::resources::{ApiCall, PodUndo, StepName};

/// What the strip will do to the pod's metadata, and what it was before.
///
/// The labels that go are exactly those that the owner's selector and the Services that select
/// the pod demand.
///
/// # Errors
/// [`Refusal::StillSelected`] if the owner, a Service, or anything that adopts pods would select
/// the pod also afterwards (e.g. by `NotIn` or `DoesNotExist`).
pub fn undo(
    observed: &Observed,
    quarantine: &str,
    settings: &Settings,
) -> Result<PodUndo, Refusal> {
    let metadata = &observed.pod.metadata;
    let labels = metadata.labels.clone().unwrap_or_default();
    let annotations = metadata.annotations.clone().unwrap_or_default();
    let added = BTreeMap::from([
        settings.pod_label.clone(),
        (QUARANTINE_LABEL.to_owned(), quarantine.to_owned()),
    ]);
    let removed: Vec<String> = keys_to_strip(observed, &labels)
        .into_iter()
        .filter(|key| labels.contains_key(key) && !added.contains_key(key))
        .collect();
    let undo = PodUndo {
        owner_references: metadata.owner_references.clone().unwrap_or_default(),
        annotations: POD_ANNOTATIONS
            .iter()
            .map(|(key, _)| ((*key).to_owned(), annotations.get(*key).cloned()))
            .collect(),
        labels,
        removed,
        added,
    };
    refuse_if_still_selected(observed, &undo)?;
    Ok(undo)
}

/// The labels that the pod has once it is stripped.
#[must_use]
pub fn labels_after(undo: &PodUndo) -> Labels {
    let mut labels = undo.labels.clone();
    labels.retain(|key, _| !undo.removed.contains(key));
    labels.extend(undo.added.clone());
    labels
}

/// The one patch that strips and labels, `None` if the pod is stripped and labelled already.
#[must_use]
pub fn strip(pod: &Pod, undo: &PodUndo) -> Option<ApiCall> {
    let labels = pod.metadata.labels.clone().unwrap_or_default();
    let annotations = pod.metadata.annotations.clone().unwrap_or_default();
    let mut wanted: Map<String, Value> = undo
        .removed
        .iter()
        .filter(|key| labels.contains_key(*key))
        .map(|key| (key.clone(), Value::Null))
        .collect();
    wanted.extend(
        undo.added
            .iter()
            .filter(|(key, value)| labels.get(*key) != Some(*value))
            .map(|(key, value)| (key.clone(), json!(value))),
    );
    let wanted_annotations: Map<String, Value> = POD_ANNOTATIONS
        .iter()
        .filter(|(key, value)| annotations.get(*key).map(String::as_str) != Some(*value))
        .map(|(key, value)| ((*key).to_owned(), json!(value)))
        .collect();
    if wanted.is_empty() && wanted_annotations.is_empty() {
        return None;
    }
    Some(patch(
        StepName::Strip,
        pod,
        wanted,
        wanted_annotations,
        "owner and Services let go of the pod and the deny-all policy selects it, in one instant",
    ))
}

/// The patch that puts back what the strip changed, as far as nobody else changed it since;
/// `None` if nothing of ours is left.
#[must_use]
pub fn restore(pod: &Pod, undo: &PodUndo) -> Option<ApiCall> {
    let labels = pod.metadata.labels.clone().unwrap_or_default();
    let annotations = pod.metadata.annotations.clone().unwrap_or_default();
    let mut back: Map<String, Value> = undo
        .added
        .iter()
        .filter(|(key, value)| labels.get(*key) == Some(*value))
        .map(|(key, _)| {
            let before = undo
                .labels
                .get(key)
                .map_or(Value::Null, |value| json!(value));
            (key.clone(), before)
        })
        .collect();
    back.extend(
        undo.removed
            .iter()
            .filter(|key| !labels.contains_key(*key))
            .filter_map(|key| {
                undo.labels
                    .get(key)
                    .map(|value| (key.clone(), json!(value)))
            }),
    );
    let back_annotations: Map<String, Value> = POD_ANNOTATIONS
        .iter()
        .filter(|(key, value)| annotations.get(*key).map(String::as_str) == Some(*value))
        .filter_map(|(key, value)| {
            let before = undo.annotations.get(*key).cloned().flatten();
            (before.as_deref() != Some(*value))
                .then(|| ((*key).to_owned(), before.map_or(Value::Null, Value::from)))
        })
        .collect();
    if back.is_empty() && back_annotations.is_empty() {
        return None;
    }
    Some(patch(
        StepName::UndoStrip,
        pod,
        back,
        back_annotations,
        "the original labels are back: owner and Services take the pod up again",
    ))
}

fn keys_to_strip(observed: &Observed, labels: &Labels) -> BTreeSet<String> {
    let owners = observed
        .adopters
        .iter()
        .filter(|adopter| selects(&adopter.selector, labels))
        .flat_map(|adopter| demanded_keys(&adopter.selector));
    let services = observed
        .services
        .iter()
        .filter_map(|service| service.spec.as_ref()?.selector.as_ref())
        .filter(|selector| service_selects(Some(selector), labels))
        .flat_map(|selector| selector.keys().cloned());
    owners.chain(services).collect()
}

fn refuse_if_still_selected(observed: &Observed, undo: &PodUndo) -> Result<(), Refusal> {
    let after = labels_after(undo);
    let owner = observed
        .adopters
        .iter()
        .find(|adopter| selects(&adopter.selector, &after))
        .map(|adopter| format!("{} {}", adopter.kind, adopter.name));
    let service = observed
        .services
        .iter()
        .find(|service| {
            let selector = service
                .spec
                .as_ref()
                .and_then(|spec| spec.selector.as_ref());
            service_selects(selector, &after)
        })
        .map(|service| {
            format!(
                "Service {}",
                service.metadata.name.as_deref().unwrap_or_default()
            )
        });
    match owner.or(service) {
        None => Ok(()),
        Some(selected_by) => Err(Refusal::StillSelected {
            pod: super::plan::full_name(&observed.pod),
            selected_by,
            stripped: undo.removed.join(", "),
        }),
    }
}

fn patch(
    step: StepName,
    pod: &Pod,
    labels: Map<String, Value>,
    annotations: Map<String, Value>,
    purpose: &str,
) -> ApiCall {
    // uid: a pod re-created under the same name is never touched (422). resourceVersion: a change
    // since the read answers 409 and the patch is made again from a fresh read.
    let mut metadata = json!({
        "uid": pod.metadata.uid,
        "resourceVersion": pod.metadata.resource_version,
        "labels": labels,
    });
    if let (false, Some(metadata)) = (annotations.is_empty(), metadata.as_object_mut()) {
        metadata.insert("annotations".into(), Value::Object(annotations));
    }
    let path = format!(
        "/api/v1/namespaces/{}/pods/{}",
        pod.metadata.namespace.as_deref().unwrap_or_default(),
        pod.metadata.name.as_deref().unwrap_or_default()
    );
    super::plan::patch_call(step, path, &json!({ "metadata": metadata }), purpose)
}
