//! The node's other pods: which are evicted, which stay and why, and what an answer means.
//!
//! The filters are those of `kubectl drain`: DaemonSet pods come back at once and stay, mirror
//! pods can't be evicted, pods without a controller and pods with emptyDir data are lost and need
//! an explicit wish. Finished pods have nothing to lose.

mod budgets;

pub use budgets::blocking;

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use super::observe::{Observed, controller_of, phase};
use super::settings::{PART_OF_LABEL, QUARANTINE_LABEL, Settings};
use crate::kubernetes::ApiError;
use crate::resources::{ApiCall, EvictionState, EvictionStatus, QuarantineSpec, StepName};

/// What decides whether a pod leaves the node.
#[derive(Clone, Copy)]
pub struct Rules<'r> {
    /// What the responder wants.
    pub spec: &'r QuarantineSpec,
    /// Which pods are Impound's own.
    pub settings: &'r Settings,
    /// uids of the DaemonSets that exist; `None` if that is not known.
    pub daemon_sets: Option<&'r BTreeSet<String>>,
}

/// Every other pod of the suspect's node, to be evicted (`Pending`) or to stay (`Kept`).
#[must_use]
pub fn candidates(
    observed: &Observed,
    spec: &QuarantineSpec,
    settings: &Settings,
) -> Vec<EvictionStatus> {
    let suspect = observed.pod.metadata.uid.as_deref();
    let rules = Rules {
        spec,
        settings,
        daemon_sets: observed.daemon_sets.as_ref(),
    };
    observed
        .pods_on_node
        .iter()
        .filter(|pod| pod.metadata.uid.as_deref() != suspect)
        .map(|pod| candidate(pod, rules))
        .collect()
}

/// One pod, to be evicted or to stay.
#[must_use]
pub fn candidate(pod: &Pod, rules: Rules<'_>) -> EvictionStatus {
    let kept = reason_to_keep(pod, rules);
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
        retry_after: None,
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

/// What the answer to an eviction means for the pod, and for how many seconds the API server wants to be
/// left alone with it. That it is gone is never concluded from an answer: only the list of the node's pods
/// says so.
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
pub fn reason_to_keep(pod: &Pod, rules: Rules<'_>) -> Option<String> {
    let Rules {
        spec,
        settings,
        daemon_sets,
    } = rules;
    let has_label = |key: &str| {
        let labels = pod.metadata.labels.as_ref();
        labels.is_some_and(|labels| labels.contains_key(key))
    };
    let annotations = pod.metadata.annotations.clone().unwrap_or_default();
    let owner = controller_of(pod.metadata.owner_references.as_ref());
    let ended = matches!(phase(pod), "Succeeded" | "Failed");
    let empty_dir = pod
        .spec
        .iter()
        .flat_map(|spec| spec.volumes.iter().flatten())
        .any(|volume| volume.empty_dir.is_some());
    let by_daemon_set = owner.is_some_and(|owner| owner.kind == "DaemonSet");
    // Not known counts as there: a pod that comes back at once must not be evicted again and again.
    let orphan = by_daemon_set
        && daemon_sets.is_some_and(|known| owner.is_none_or(|owner| !known.contains(&owner.uid)));
    let reason = if spec.keep_neighbours {
        "the request says to keep the neighbours"
    } else if has_label(QUARANTINE_LABEL) {
        "it is quarantined itself"
    } else if is_own(pod, settings) {
        "it is part of Impound"
    } else if annotations.contains_key("kubernetes.io/config.mirror") {
        "it is a static pod, which only a manifest file on the node can remove"
    } else if ended {
        return None;
    } else if by_daemon_set && !orphan {
        "its DaemonSet would start it again on the same node"
    } else if orphan && !spec.evict_unmanaged {
        "its DaemonSet is gone, so nothing would start it again; --evict-unmanaged evicts it and it is lost"
    } else if owner.is_none() && !spec.evict_unmanaged {
        "no controller would recreate it; --evict-unmanaged evicts it and it is lost"
    } else if empty_dir && !spec.delete_empty_dir_data {
        "it has emptyDir data; --delete-emptydir-data evicts it and the data is lost"
    } else {
        return None;
    };
    Some(reason.to_owned())
}

/// Agent, controller and store. The label alone is no proof where the own namespace is known: anybody may
/// put it on a pod in theirs.
pub(crate) fn is_own(pod: &Pod, settings: &Settings) -> bool {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let labels = pod.metadata.labels.clone().unwrap_or_default();
    let labelled = labels.get(PART_OF_LABEL.0).map(String::as_str) == Some(PART_OF_LABEL.1);
    let own_namespace = settings.own_namespace.as_deref();
    let this_process = own_namespace == Some(namespace)
        && settings.own_pod.is_some()
        && settings.own_pod == pod.metadata.name;
    let store = settings.store_pods.as_ref().is_some_and(|store| {
        store.namespace == namespace
            && store
                .labels
                .iter()
                .all(|(key, value)| labels.get(key) == Some(value))
    });
    this_process || store || (labelled && own_namespace.is_none_or(|own| own == namespace))
}
