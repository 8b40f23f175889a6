//! The suspect itself: one guarded patch that strips and labels, and the way back.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Pod, Service};
use serde_json::{Map, Value, json};

use super::observe::Observed;
use super::policy::leave::leave;
use super::selector::{Labels, demanded_keys, selects, service_selects};
use super::settings::{POD_ANNOTATIONS, QUARANTINE_LABEL};
use crate::resources::{ApiCall, Names, PodUndo, StepName};

/// What the strip will do to the pod's metadata, and what it was before.
///
/// The labels that go are exactly those that the owner's selector and the Services that select
/// the pod demand, and those without which NetworkPolicies that allow it traffic let go of it.
///
/// # Errors
/// In words, if the owner, a Service, or anything that adopts pods would select the pod also afterwards (e.g. by
/// `NotIn` or `DoesNotExist`): stripped or not, it would not let go.
pub fn undo(observed: &Observed, quarantine: &str, names: &Names) -> Result<PodUndo, String> {
    let metadata = &observed.pod.metadata;
    let labels = metadata.labels.clone().unwrap_or_default();
    let annotations = metadata.annotations.clone().unwrap_or_default();
    let added = BTreeMap::from([
        names.pod_label.pair(),
        (QUARANTINE_LABEL.to_owned(), quarantine.to_owned()),
    ]);
    let removed: Vec<String> = keys_to_strip(observed, &labels)
        .into_iter()
        .filter(|key| labels.contains_key(key) && !added.contains_key(key))
        .collect();
    let mut undo = PodUndo {
        owner_references: metadata.owner_references.clone().unwrap_or_default(),
        annotations: POD_ANNOTATIONS
            .iter()
            .map(|(key, _)| ((*key).to_owned(), annotations.get(*key).cloned()))
            .collect(),
        labels,
        removed,
        for_policies: BTreeMap::new(),
        added,
    };
    let after = labels_after(&undo);
    if let Some(selected_by) = selected_by(observed, &after) {
        let stripped = match undo.removed.join(", ") {
            none if none.is_empty() => "whatever label is taken off".to_owned(),
            stripped => format!("without the labels {stripped}"),
        };
        return Err(format!(
            "{selected_by} would select it {stripped}, and take it up; once that selector is changed, release it \
             and quarantine it again"
        ));
    }
    undo.for_policies = leave(&observed.policies, &after, &undo.added, |labels| {
        selected_by(observed, labels).is_some()
    });
    undo.removed.extend(undo.for_policies.keys().cloned());
    Ok(undo)
}

/// The undo data of a pod that is not changed.
#[must_use]
pub fn as_it_is(pod: &Pod) -> PodUndo {
    PodUndo {
        labels: pod.metadata.labels.clone().unwrap_or_default(),
        owner_references: pod.metadata.owner_references.clone().unwrap_or_default(),
        ..PodUndo::default()
    }
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
        .filter_map(service_selector)
        .filter(|selector| service_selects(Some(selector), labels))
        .flat_map(|selector| selector.keys().cloned());
    owners.chain(services).collect()
}

/// What a Service selects pods by. An alias of a name elsewhere (ExternalName) selects none, whatever it says (API
/// reference).
fn service_selector(service: &Service) -> Option<&BTreeMap<String, String>> {
    let spec = service.spec.as_ref()?;
    let is_alias = spec.type_.as_deref() == Some("ExternalName");
    spec.selector.as_ref().filter(|_| !is_alias)
}

/// What release leaves as it is in the pod's metadata, because others changed it since the strip.
#[must_use]
pub fn changed_by_others(pod: &Pod, undo: &PodUndo) -> Vec<String> {
    let labels = pod.metadata.labels.clone().unwrap_or_default();
    let annotations = pod.metadata.annotations.clone().unwrap_or_default();
    // What is as it was before needs no word, whoever made it so.
    let put_on = undo
        .added
        .iter()
        .filter(|(key, value)| {
            let now = labels.get(*key);
            now != Some(*value) && now != undo.labels.get(*key)
        })
        .map(|(key, _)| ("label", key.clone(), labels.get(key)));
    let taken_off = undo
        .removed
        .iter()
        .filter(|key| {
            labels
                .get(*key)
                .is_some_and(|now| undo.labels.get(*key) != Some(now))
        })
        .map(|key| ("label", key.clone(), labels.get(key)));
    let annotated = POD_ANNOTATIONS
        .iter()
        .filter(|(key, value)| {
            let now = annotations.get(*key);
            let before = undo.annotations.get(*key).cloned().flatten();
            now.map(String::as_str) != Some(*value) && now != before.as_ref()
        })
        .map(|(key, _)| ("annotation", (*key).to_owned(), annotations.get(*key)));
    put_on
        .chain(taken_off)
        .chain(annotated)
        .map(|(kind, key, now)| {
            let now = now.map_or_else(|| "taken off".to_owned(), |now| format!("set to {now}"));
            format!("{kind} {key} was {now} by somebody and stays so")
        })
        .collect()
}

/// Kind and name of an owner or a Service that would take up a pod with these labels.
fn selected_by(observed: &Observed, labels: &Labels) -> Option<String> {
    let owner = observed
        .adopters
        .iter()
        .find(|adopter| selects(&adopter.selector, labels))
        .map(|adopter| format!("{} {}", adopter.kind, adopter.name));
    let mut services = observed.services.iter();
    let service = services.find(|service| service_selects(service_selector(service), labels));
    owner.or_else(|| {
        let name = service?.metadata.name.as_deref().unwrap_or_default();
        Some(format!("Service {name}"))
    })
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
