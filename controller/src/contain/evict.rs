//! The node's other pods: which are evicted, which stay and why, and what an answer means.
//!
//! The filters are those of `kubectl drain`: DaemonSet pods come back at once and stay, mirror
//! pods can't be evicted, pods without a controller and pods with emptyDir data are lost and need
//! an explicit wish.

use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use super::observe::{Observed, controller_of, phase};
use super::settings::{PART_OF_LABEL, QUARANTINE_LABEL};
use crate::kubernetes::ApiError;
use crate::resources::{ApiCall, EvictionState, EvictionStatus, QuarantineSpec, StepName};

/// Every other pod of the suspect's node, to be evicted (`Pending`) or to stay (`Kept`).
#[must_use]
pub fn candidates(observed: &Observed, spec: &QuarantineSpec) -> Vec<EvictionStatus> {
    let suspect = observed.pod.metadata.uid.as_deref();
    observed
        .pods_on_node
        .iter()
        .filter(|pod| pod.metadata.uid.as_deref() != suspect)
        .map(|pod| candidate(pod, spec))
        .collect()
}

/// One pod, to be evicted or to stay.
#[must_use]
pub fn candidate(pod: &Pod, spec: &QuarantineSpec) -> EvictionStatus {
    let kept = reason_to_keep(pod, spec);
    EvictionStatus {
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        pod: pod.metadata.name.clone().unwrap_or_default(),
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        state: if kept.is_some() {
            EvictionState::Kept
        } else {
            EvictionState::Pending
        },
        message: kept.unwrap_or_default(),
        tried: None,
    }
}

/// The eviction of exactly the pod with this uid, through `policy/v1`, which respects budgets.
#[must_use]
pub fn call(eviction: &EvictionStatus) -> ApiCall {
    let EvictionStatus {
        namespace,
        pod,
        uid,
        ..
    } = eviction;
    let body = json!({
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": { "name": pod, "namespace": namespace },
        "deleteOptions": { "preconditions": { "uid": uid } },
    });
    ApiCall {
        step: StepName::Evict,
        method: "POST".into(),
        path: format!("/api/v1/namespaces/{namespace}/pods/{pod}/eviction"),
        content_type: "application/json".into(),
        body: body.to_string(),
        purpose: "leaves the suspect node alone with the suspect".into(),
    }
}

/// What the answer to an eviction means for the pod. That it is gone is never concluded from an
/// answer: only the list of the node's pods says so.
#[must_use]
pub fn outcome(answer: Result<(), &ApiError>) -> (EvictionState, String) {
    match answer {
        Ok(()) => (
            EvictionState::Evicting,
            "eviction granted; the pod is terminating".into(),
        ),
        // 404: gone. 409 with a uid precondition: the name belongs to another pod now.
        Err(error) if matches!(error.code(), 404 | 409) => {
            (EvictionState::Evicting, "the pod is ending".into())
        }
        Err(error) if error.code() == 429 => {
            let message = match error {
                ApiError::Refused { message, .. } => message.clone(),
                ApiError::NoAnswer { .. } => error.to_string(),
            };
            (EvictionState::Blocked, format!("waiting: {message}"))
        }
        // 500: two budgets select the pod, or a passing fault. Both are tried again until time is up.
        Err(error) if error.is_transient() => (EvictionState::Blocked, format!("waiting: {error}")),
        Err(error) => (EvictionState::Failed, error.to_string()),
    }
}

/// Why a pod stays on the node, `None` if it is to leave.
#[must_use]
pub fn reason_to_keep(pod: &Pod, spec: &QuarantineSpec) -> Option<String> {
    let labels = pod.metadata.labels.clone().unwrap_or_default();
    let annotations = pod.metadata.annotations.clone().unwrap_or_default();
    let owner = controller_of(pod.metadata.owner_references.as_ref());
    let ended = matches!(phase(pod), "Succeeded" | "Failed");
    let empty_dir = pod
        .spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten())
        .any(|volume| volume.empty_dir.is_some());
    let reason = if spec.keep_neighbours {
        "the request says to keep the neighbours"
    } else if labels.contains_key(QUARANTINE_LABEL) {
        "it is quarantined itself"
    } else if labels.get(PART_OF_LABEL.0).map(String::as_str) == Some(PART_OF_LABEL.1) {
        "it is part of Impound"
    } else if annotations.contains_key("kubernetes.io/config.mirror") {
        "it is a static pod, which only a manifest file on the node can remove"
    } else if owner.is_some_and(|owner| owner.kind == "DaemonSet") {
        "its DaemonSet would start it again on the same node"
    } else if owner.is_none() && !ended && !spec.evict_unmanaged {
        "no controller would recreate it; --evict-unmanaged evicts it and it is lost"
    } else if empty_dir && !ended && !spec.delete_empty_dir_data {
        "it has emptyDir data; --delete-emptydir-data evicts it and the data is lost"
    } else {
        return None;
    };
    Some(reason.to_owned())
}
