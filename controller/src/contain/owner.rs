//! What owns a pod, and what follows from taking the pod away from it, in words for a responder.
//!
//! How each kind reacts was recorded on Kubernetes 1.36.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::Value;

use super::observe::{Observed, controller_of};

/// The owner of a pod and the consequences of its release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ownership {
    /// Kind and name, e.g. "Deployment web (ReplicaSet web-65f)", or "nobody".
    pub owner: String,
    /// What happens once the labels are off, one sentence each.
    pub consequences: Vec<String>,
    /// Why the pod can't be changed without losing it, or at all; none for most.
    pub untouched: Option<String>,
}

/// Reads the ownership of an observed pod.
#[must_use]
pub fn ownership(observed: &Observed) -> Ownership {
    if is_static(&observed.pod) {
        return Ownership {
            owner: "a manifest file on its node".into(),
            consequences: vec![
                "It ends when its manifest is moved away on the node itself: do that once its evidence is sealed."
                    .into(),
            ],
            untouched: Some(
                "it is a static pod, of which the API holds only the mirror of a manifest file on its node: the \
                 kubelet makes that anew as it was"
                    .into(),
            ),
        };
    }
    let Some(owner) = &observed.owner else {
        return Ownership {
            owner: "nobody".into(),
            consequences: vec!["No controller owns the pod: nothing replaces it.".into()],
            untouched: None,
        };
    };
    let described = format!("{} {}", owner.reference.kind, owner.reference.name);
    let known = [
        "ReplicaSet",
        "StatefulSet",
        "DaemonSet",
        "Job",
        "ReplicationController",
    ];
    let built_in = ["v1", "apps/v1", "batch/v1"].contains(&owner.reference.api_version.as_str());
    if !built_in || !known.contains(&owner.reference.kind.as_str()) {
        return Ownership {
            consequences: vec![format!(
                "{described} may restart or delete the pod at any time, and the cordon does not stop it: take its \
                 evidence at once."
            )],
            untouched: Some(format!(
                "it belongs to {described}, and how that controller reacts when the labels are taken off is not \
                 known: it may delete the pod"
            )),
            owner: described,
        };
    }
    if owner.raw.is_none() {
        return Ownership {
            consequences: vec![format!(
                "{described} does not exist any more: nothing replaces the pod, and garbage collection deletes it \
                 unless the evidence guard keeps it from that. Take its evidence at once."
            )],
            owner: format!("{described}, which is gone"),
            untouched: None,
        };
    }
    let described = match &owner.parent {
        Some(parent) => format!("{} {} ({described})", parent.kind, parent.name),
        None => described,
    };
    let consequences = match owner.reference.kind.as_str() {
        "StatefulSet" => vec![format!(
            "{described} starts no replacement as long as the suspect keeps its name, and no event says \
             so: the set runs one pod short until the suspect is released or deleted."
        )],
        "DaemonSet" => vec![format!(
            "{described} would start a new pod on the suspect node, because its pods tolerate a cordon; \
             Impound's own taint keeps it away, so the node runs without one until the release."
        )],
        "Job" => job(observed, &described),
        _ => vec![format!(
            "{described} replaces the pod with a new one from the same template: if the image is \
             malicious, the replacement is too."
        )],
    };
    Ownership {
        owner: described,
        consequences,
        untouched: None,
    }
}

/// The controller that the pod had when it was contained, if that was gone by then: it takes nothing back. `owner`
/// is what was recorded of it.
#[must_use]
pub fn is_orphan(suspect: &Pod, owner: Option<&Value>) -> bool {
    let reference = controller_of(suspect.metadata.owner_references.as_ref());
    reference.is_some() && owner.is_none()
}

/// What owners that are no controllers can do to the pod; `None` if there are none.
#[must_use]
pub fn dependence(owners: &[OwnerReference]) -> Option<String> {
    let others = owners.iter().filter(|owner| owner.controller != Some(true));
    let others: Vec<String> = others
        .map(|owner| format!("{} {}", owner.kind, owner.name))
        .collect();
    (!others.is_empty()).then(|| {
        format!(
            "garbage collection deletes it once {} and whatever else owns it are gone, unless the evidence guard keeps \
             it from that",
            others.join(", ")
        )
    })
}

/// Whether the pod is the mirror of a manifest file on its node.
#[must_use]
pub fn is_static(pod: &Pod) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    annotations.is_some_and(|annotations| annotations.contains_key("kubernetes.io/config.mirror"))
}

/// The uid by which the kubelet and the runtime know the pod: of a static pod that of its manifest, which
/// the mirror has as an annotation; its own is the mirror's alone.
#[must_use]
pub fn runtime_uid(pod: &Pod) -> String {
    let annotations = pod.metadata.annotations.as_ref();
    let of_manifest = annotations
        .filter(|_| is_static(pod))
        .and_then(|annotations| annotations.get("kubernetes.io/config.hash"));
    let uid = of_manifest.or(pod.metadata.uid.as_ref());
    uid.cloned().unwrap_or_default()
}

/// Whether a pod is the suspect. A static pod is what its manifest says: when its mirror is deleted, or the kubelet
/// starts anew, the kubelet makes another mirror under another uid, and no container of it has changed.
#[must_use]
pub fn is_same(suspect: &Pod, pod: &Pod) -> bool {
    let place = |pod: &Pod| {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
        (
            pod.metadata.namespace.clone(),
            pod.metadata.name.clone(),
            node,
        )
    };
    let mirrors = is_static(suspect) && is_static(pod) && place(suspect) == place(pod);
    pod.metadata.uid == suspect.metadata.uid
        || (mirrors && runtime_uid(suspect) == runtime_uid(pod))
}

fn job(observed: &Observed, described: &str) -> Vec<String> {
    let mut consequences = vec![format!(
        "{described} no longer counts the pod, neither as succeeded nor as failed, and starts another \
         one in its place. Its job-tracking finalizer goes with the release."
    )];
    let raw = observed.owner.as_ref().and_then(|owner| owner.raw.as_ref());
    let deadline = raw.and_then(|raw| raw.pointer("/spec/activeDeadlineSeconds")?.as_i64());
    let own = observed
        .pod
        .spec
        .as_ref()
        .and_then(|spec| spec.active_deadline_seconds);
    if let Some(seconds) = own {
        consequences.push(format!(
            "The pod itself has activeDeadlineSeconds {seconds}: the kubelet kills it then, also in quarantine. \
             Collect before."
        ));
    } else if let Some(seconds) = deadline {
        consequences.push(format!(
            "The Job has activeDeadlineSeconds {seconds}: what it kills then is its own pods, not the released one."
        ));
    }
    consequences
}
