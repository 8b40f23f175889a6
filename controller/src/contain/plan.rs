//! The plan of a containment: every call in order, the consequences in words, and the undo data.
//! Pure: the same observation gives the same plan, which a dry run prints and a real run sends.

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::evict;
use super::observe::{Observed, phase};
use super::refusal::Refusal;
use super::settings::{FIELD_MANAGER, QUARANTINE_LABEL, Settings};
use super::{node, pod, policy, protect};
use crate::resources::{
    ApiCall, EvictionState, EvictionStatus, NodeUndo, Quarantine, QuarantineSpec, StepName, Undo,
};

/// Longest name of a Quarantine: it becomes a label value (63 characters at most).
pub const NAME_LIMIT: usize = 63;

/// What containment does to one pod.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Calls in the order in which they are made.
    pub calls: Vec<ApiCall>,
    /// Consequences and limits, one sentence each.
    pub warnings: Vec<String>,
    /// What release needs.
    pub undo: Undo,
    /// Kind and name of the pod's controller.
    pub owner: String,
    /// The node's other pods and what is to become of them.
    pub evictions: Vec<EvictionStatus>,
}

/// Plans the containment of an observed pod. `others` are the quarantines that are in force.
///
/// # Errors
/// [`Refusal`] with the reason if the pod can't be contained safely.
pub fn plan(
    observed: &Observed,
    quarantine: &str,
    spec: &QuarantineSpec,
    others: &[Quarantine],
    settings: &Settings,
) -> Result<Plan, Refusal> {
    let namespace = observed.pod.metadata.namespace.as_deref().unwrap_or_default();
    refuse_name(quarantine)?;
    refuse_uid(&observed.pod, spec.pod_uid.as_deref())?;
    refuse_other_quarantine(&observed.pod, quarantine, others)?;
    refuse_state(&observed.pod)?;
    let owner = refuse_owner(observed)?;

    let undo = Undo {
        pod: pod::undo(observed, quarantine, settings)?,
        node: shared_node_undo(observed, quarantine, others)
            .unwrap_or_else(|| node::undo(&observed.node, settings)),
    };
    let evictions = evict::candidates(observed, spec);
    let mut calls = Vec::new();
    calls.extend(node::cordon(&observed.node));
    calls.push(protect::create(namespace, quarantine));
    calls.extend(policy::deny_all(namespace, &observed.policies, settings)?);
    calls.extend(pod::strip(&observed.pod, &undo.pod));
    calls.extend(node::label(&observed.node, settings));
    calls.extend(
        evictions
            .iter()
            .filter(|eviction| eviction.state == EvictionState::Pending)
            .map(evict::call),
    );
    Ok(Plan {
        calls,
        warnings: warnings(observed, &undo, &owner, &evictions),
        undo,
        owner,
        evictions,
    })
}

/// Namespace and name of a pod, for messages.
#[must_use]
pub fn full_name(pod: &Pod) -> String {
    format!(
        "{}/{}",
        pod.metadata.namespace.as_deref().unwrap_or_default(),
        pod.metadata.name.as_deref().unwrap_or_default()
    )
}

/// A merge patch as a call.
pub(crate) fn patch_call(step: StepName, path: String, patch: &Value, purpose: &str) -> ApiCall {
    ApiCall {
        step,
        method: "PATCH".into(),
        path: format!("{path}?fieldManager={FIELD_MANAGER}"),
        content_type: "application/merge-patch+json".into(),
        body: patch.to_string(),
        purpose: purpose.into(),
    }
}

/// A deletion of exactly the object with this uid, as a call.
pub(crate) fn delete_call(step: StepName, path: String, uid: Option<&str>, purpose: &str) -> ApiCall {
    let body = uid.map_or_else(String::new, |uid| {
        json!({ "apiVersion": "v1", "kind": "DeleteOptions", "preconditions": { "uid": uid } })
            .to_string()
    });
    ApiCall {
        step,
        method: "DELETE".into(),
        path,
        content_type: if body.is_empty() { String::new() } else { "application/json".into() },
        body,
        purpose: purpose.into(),
    }
}

fn refuse_name(quarantine: &str) -> Result<(), Refusal> {
    if quarantine.len() <= NAME_LIMIT {
        return Ok(());
    }
    Err(Refusal::NameTooLong {
        name: quarantine.to_owned(),
        limit: NAME_LIMIT,
    })
}

fn refuse_uid(pod: &Pod, expected: Option<&str>) -> Result<(), Refusal> {
    let found = pod.metadata.uid.as_deref().unwrap_or_default();
    match expected {
        Some(expected) if expected != found => Err(Refusal::OtherUid {
            pod: full_name(pod),
            expected: expected.to_owned(),
            found: found.to_owned(),
        }),
        _ => Ok(()),
    }
}

fn refuse_other_quarantine(
    pod: &Pod,
    quarantine: &str,
    others: &[Quarantine],
) -> Result<(), Refusal> {
    let uid = pod.metadata.uid.as_deref();
    let by_status = others.iter().find(|other| {
        other.metadata.name.as_deref() != Some(quarantine)
            && other.metadata.namespace == pod.metadata.namespace
            && other.status.as_ref().and_then(|status| status.pod_uid.as_deref()) == uid
    });
    match by_status {
        None => Ok(()),
        Some(other) => Err(Refusal::AlreadyQuarantined {
            pod: full_name(pod),
            by: other.metadata.name.clone().unwrap_or_default(),
        }),
    }
}

fn refuse_state(pod: &Pod) -> Result<(), Refusal> {
    let name = full_name(pod);
    if let Some(since) = &pod.metadata.deletion_timestamp {
        return Err(Refusal::Terminating { pod: name, since: since.0.to_string() });
    }
    let phase = phase(pod);
    if matches!(phase, "Succeeded" | "Failed") {
        return Err(Refusal::Ended { pod: name, phase: phase.to_owned() });
    }
    if pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true) {
        return Err(Refusal::HostNetwork { pod: name });
    }
    Ok(())
}

/// The owner in words, or why its pods can't be contained.
fn refuse_owner(observed: &Observed) -> Result<String, Refusal> {
    let name = full_name(&observed.pod);
    let mirror = observed
        .pod
        .metadata
        .annotations
        .as_ref()
        .is_some_and(|annotations| annotations.contains_key("kubernetes.io/config.mirror"));
    if mirror {
        return Err(unsupported(
            name,
            "a manifest file on its node",
            "static",
            "The API holds only a mirror of it: labels can't be changed there, only on the node.",
        ));
    }
    let Some(owner) = &observed.owner else {
        return Err(unsupported(
            name,
            "nobody",
            "bare",
            "No controller would replace it and nothing releases it.",
        ));
    };
    let described = format!("{} {}", owner.reference.kind, owner.reference.name);
    let why = match owner.reference.kind.as_str() {
        "ReplicaSet" if owner.raw.is_none() => {
            return Err(Refusal::OwnerGone { pod: name, owner: described });
        }
        "ReplicaSet" => {
            return Ok(match &owner.parent {
                Some(parent) => format!("{} {} ({described})", parent.kind, parent.name),
                None => described,
            });
        }
        "StatefulSet" => {
            "Its name stays taken after release, so no replacement starts and no event says so."
        }
        "DaemonSet" => "Its replacement tolerates a cordon and would start on the suspect node.",
        "Job" => "The Job counts it as missing, and its deadline may still kill the pod.",
        _ => "How that controller reacts to a released pod is not known.",
    };
    let kind = owner.reference.kind.clone();
    Err(unsupported(name, &described, &kind, why))
}

fn unsupported(pod: String, owner: &str, kind: &str, why: &'static str) -> Refusal {
    Refusal::UnsupportedOwner { pod, owner: owner.into(), kind: kind.into(), why }
}

/// A node that another quarantine has cordoned already must be undone to the state before the
/// first of them: its recorded undo is taken over.
fn shared_node_undo(
    observed: &Observed,
    quarantine: &str,
    others: &[Quarantine],
) -> Option<NodeUndo> {
    let node = observed.node.metadata.name.as_deref();
    others
        .iter()
        .filter(|other| other.metadata.name.as_deref() != Some(quarantine))
        .filter_map(|other| other.status.as_ref())
        .find(|status| status.node.as_deref() == node && status.undo.is_some())
        .and_then(|status| status.undo.as_ref())
        .map(|undo| undo.node.clone())
}

fn warnings(
    observed: &Observed,
    undo: &Undo,
    owner: &str,
    evictions: &[EvictionStatus],
) -> Vec<String> {
    let mut warnings = vec![
        format!(
            "{owner} replaces the pod with a new one from the same template: if the image is \
             malicious, the replacement is too."
        ),
        "A NetworkPolicy holds only as far as the cluster's network plugin enforces it; traffic to \
         and from the pod's own node stays allowed, and connections that exist may survive."
            .to_owned(),
    ];
    warnings.extend(policy::still_allowing(&observed.policies, &pod::labels_after(&undo.pod)));
    if undo.node.unschedulable {
        warnings.push("The node was unschedulable before; release leaves it so.".to_owned());
    }
    warnings.extend(liveness_warning(&observed.pod));
    warnings.extend(
        evictions
            .iter()
            .filter(|eviction| eviction.state == EvictionState::Kept)
            .map(|eviction| {
                format!("{}/{} stays on the node: {}", eviction.namespace, eviction.pod, eviction.message)
            }),
    );
    warnings
}

/// Probes can't be changed on a running pod, and a restart loses the writable layer.
fn liveness_warning(pod: &Pod) -> Option<String> {
    let probed: Vec<&str> = pod
        .spec
        .iter()
        .flat_map(|spec| &spec.containers)
        .filter(|container| container.liveness_probe.is_some())
        .map(|container| container.name.as_str())
        .collect();
    (!probed.is_empty()).then(|| {
        format!(
            "A liveness probe still runs on {}: if it fails, the kubelet restarts the container \
             and what it changed is soon lost. Collect quickly.",
            probed.join(", ")
        )
    })
}

/// Whether the pod carries the label of this quarantine.
#[must_use]
pub fn is_labelled(pod: &Pod, quarantine: &str) -> bool {
    pod.metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(QUARANTINE_LABEL))
        .is_some_and(|value| value == quarantine)
}

#[cfg(test)]
mod tests;
