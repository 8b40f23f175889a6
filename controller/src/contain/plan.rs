//! The plan of a containment: every call in order, the consequences in words, and the undo data.
//! Pure: the same observation gives the same plan, which a dry run prints and a real run sends.

use impound_evidence::{CaseId, CollectionName};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde_json::{Value, json};

use super::evict;
use super::observe::{Observed, phase};
use super::owner::{Ownership, dependence, ownership};
use super::plugin::{deny, foreign};
use super::recorded::Recorded;
use super::refusal::Refusal;
use super::settings::{FIELD_MANAGER, QUARANTINE_LABEL, Settings};
use super::{isolation, node, pod, policy, protect};
use crate::resources::{
    ApiCall, EvictionState, EvictionStatus, Names, NodeUndo, PodUndo, PolicyUndo, Quarantine,
    QuarantineSpec, StepName, Undo,
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
    let namespace = observed
        .pod
        .metadata
        .namespace
        .as_deref()
        .unwrap_or_default();
    refuse_name(quarantine, &spec.case)?;
    refuse_uid(&observed.pod, spec.pod_uid.as_deref())?;
    refuse_other_quarantine(&observed.pod, quarantine, others)?;
    refuse_state(&observed.pod)?;
    isolation::check_rules(&spec.isolation)?;
    let Ownership {
        owner,
        consequences,
        untouched,
    } = ownership(observed);

    let others: Vec<&Quarantine> = others
        .iter()
        .filter(|other| !is(other, namespace, quarantine))
        .collect();
    let (names, names_warnings) = names(observed, &others, settings);
    let isolated =
        isolation::is_wanted(spec, settings) && isolation::hindrance(&observed.pod).is_none();
    let node_undo =
        shared_node_undo(observed, &others).unwrap_or_else(|| node::undo(&observed.node, &names));
    let mut warnings = consequences;
    warnings.extend(names_warnings);
    let stripped = match untouched {
        Some(why) => Err(why),
        None => pod::undo(observed, quarantine, &names),
    };
    let undo = match stripped {
        Err(why) => Undo {
            names: Some(names.clone()),
            untouched: Some(why),
            isolated,
            pod: pod::as_it_is(&observed.pod),
            node: node_undo,
            ..Undo::default()
        },
        Ok(pod_undo) => {
            let (denies, deny_warnings) = if uses_node_network(&observed.pod) {
                Default::default()
            } else {
                deny::wanted(&observed.plugin, namespace, &names)
            };
            warnings.extend(deny_warnings);
            Undo {
                names: Some(names.clone()),
                untouched: None,
                isolated,
                policies: excluded_policies(observed, &pod_undo, spec, &others, &names),
                denies,
                pod: pod_undo,
                node: node_undo,
            }
        }
    };
    let evictions = evict::candidates(observed, spec, settings);
    warnings.extend(self::warnings(observed, namespace, &undo, &evictions));
    let mut calls = Vec::new();
    calls.extend(node::cordon(&observed.node));
    if undo.untouched.is_none() {
        calls.push(protect::create(namespace, quarantine));
        match policy::deny_all(namespace, &observed.policies, &names) {
            Ok(call) => calls.extend(call),
            // Whoever has taken the name must not keep everything else from being done: the call meets its conflict,
            // the step fails, and without that policy the pod is not called contained.
            Err(refusal) => {
                warnings.push(format!(
                    "{refusal}. Without the policy the pod is NOT contained."
                ));
                calls.push(policy::create(namespace, &names));
            }
        }
        calls.extend(policy::exclude::exclude(
            namespace,
            &observed.policies,
            &undo.policies,
            &names,
        ));
        calls.extend(pod::strip(&observed.pod, &undo.pod));
        calls.extend(undo.denies.iter().filter_map(|deny| {
            let present = observed.plugin.at(namespace, &deny.path);
            deny::mend(deny, present, namespace, &names)
        }));
    }
    calls.extend(node::label(&observed.node, &names));
    if isolated {
        let node = observed.node.metadata.name.as_deref().unwrap_or_default();
        let request = isolation::request(&observed.pod, quarantine, spec);
        calls.push(isolation::call(node, &request));
    }
    calls.extend(
        evictions
            .iter()
            .filter(|eviction| eviction.state == EvictionState::Pending)
            .map(evict::call),
    );
    Ok(Plan {
        calls,
        warnings,
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
pub(crate) fn delete_call(
    step: StepName,
    path: String,
    uid: Option<&str>,
    purpose: &str,
) -> ApiCall {
    let body = uid.map_or_else(String::new, |uid| {
        json!({ "apiVersion": "v1", "kind": "DeleteOptions", "preconditions": { "uid": uid } })
            .to_string()
    });
    ApiCall {
        step,
        method: "DELETE".into(),
        path,
        content_type: if body.is_empty() {
            String::new()
        } else {
            "application/json".into()
        },
        body,
        purpose: purpose.into(),
    }
}

/// Names that the store would refuse are refused before the pod is contained, not after.
fn refuse_name(quarantine: &str, case: &str) -> Result<(), Refusal> {
    if quarantine.len() > NAME_LIMIT {
        return Err(Refusal::NameTooLong {
            name: quarantine.to_owned(),
            limit: NAME_LIMIT,
        });
    }
    let case = case.parse::<CaseId>().map(drop);
    let name = quarantine.parse::<CollectionName>().map(drop);
    case.and(name).map_err(|error| Refusal::BadName {
        reason: error.to_string(),
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
            && other
                .status
                .as_ref()
                .and_then(|status| status.pod_uid.as_deref())
                == uid
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
    let phase = phase(pod);
    if matches!(phase, "Succeeded" | "Failed") {
        return Err(Refusal::Ended {
            pod: name,
            phase: phase.to_owned(),
        });
    }
    Ok(())
}

/// Whether it is the quarantine of this name in this namespace: one of the same name elsewhere is another.
fn is(other: &Quarantine, namespace: &str, quarantine: &str) -> bool {
    other.metadata.namespace.as_deref() == Some(namespace)
        && other.metadata.name.as_deref() == Some(quarantine)
}

/// What things are called. What is shared with a quarantine in force (policy and pod label with those of the
/// namespace, node label with those of the node) is called as that one has recorded it, also after the controller
/// was told other names: the policy selects one label, and whoever is released last takes away what it knows. Says
/// so where that differs.
fn names<'q>(
    observed: &Observed,
    others: &[&'q Quarantine],
    settings: &Settings,
) -> (Names, Vec<String>) {
    let node = observed.node.metadata.name.as_deref();
    let recorded = |other: &&'q Quarantine| {
        let status = other.status.as_ref()?;
        status.undo.as_ref()?;
        Some((*other, Recorded::of(status)))
    };
    let of_namespace: Vec<(&Quarantine, Recorded)> = others
        .iter()
        .filter(|other| other.metadata.namespace == observed.pod.metadata.namespace)
        .filter_map(recorded)
        .collect();
    let of_pod = of_namespace
        .iter()
        .find_map(|(other, recorded)| Some((*other, recorded.pod_label.as_ref()?)));
    // The policy for that label was made by one of them, and each of the others found it there.
    let of_policy = of_namespace
        .iter()
        .filter(|(_, recorded)| recorded.pod_label.as_ref() == of_pod.map(|(_, label)| label))
        .find_map(|(_, recorded)| recorded.policy.as_ref());
    let of_node = others
        .iter()
        .filter(|other| {
            let status = other.status.as_ref();
            status.and_then(|status| status.node.as_deref()) == node
        })
        .filter_map(recorded)
        .find_map(|(other, recorded)| Some((other, recorded.node_label?)));
    let (mut names, mut warnings) = (settings.names.clone(), Vec::new());
    let mut take_over = |other: &Quarantine, what: String| {
        warnings.push(format!(
            "{what}, though the controller is configured to use another: quarantine {}/{} was made before that, is \
             still in force and shares it.",
            other.metadata.namespace.as_deref().unwrap_or_default(),
            other.metadata.name.as_deref().unwrap_or_default()
        ));
    };
    if let Some((other, pod_label)) = of_pod {
        let policy = of_policy.unwrap_or(&names.policy).clone();
        if names.pod_label != *pod_label || names.policy != policy {
            take_over(
                other,
                format!("The suspect label is {pod_label} and the NetworkPolicy {policy}"),
            );
        }
        names.pod_label = pod_label.clone();
        names.policy = policy;
    }
    if let Some((other, node_label)) = of_node {
        if names.node_label != node_label {
            take_over(other, format!("The node's label is {node_label}"));
        }
        names.node_label = node_label;
    }
    (names, warnings)
}

/// A node that another quarantine has cordoned already must be undone to the state before the
/// first of them: its recorded undo is taken over.
fn shared_node_undo(observed: &Observed, others: &[&Quarantine]) -> Option<NodeUndo> {
    let node = observed.node.metadata.name.as_deref();
    others
        .iter()
        .filter_map(|other| other.status.as_ref())
        .find(|status| status.node.as_deref() == node && status.undo.is_some())
        .and_then(|status| status.undo.as_ref())
        .map(|undo| undo.node.clone())
}

/// The policies that the suspect is to be taken out of; also those that another quarantine of the
/// namespace has taken its own suspect out of: whoever is released last puts them back.
fn excluded_policies(
    observed: &Observed,
    pod: &PodUndo,
    spec: &QuarantineSpec,
    others: &[&Quarantine],
    names: &Names,
) -> Vec<PolicyUndo> {
    if !spec.exclude_from_policies {
        return Vec::new();
    }
    let mut excluded = policy::exclude::undo(&observed.policies, &pod::labels_after(pod), names);
    let shared = others
        .iter()
        .filter(|other| other.metadata.namespace == observed.pod.metadata.namespace)
        .filter_map(|other| other.status.as_ref()?.undo.as_ref())
        .flat_map(|undo| &undo.policies);
    for policy in shared {
        if !excluded.iter().any(|known| known.uid == policy.uid) {
            excluded.push(policy.clone());
        }
    }
    excluded
}

fn warnings(
    observed: &Observed,
    namespace: &str,
    undo: &Undo,
    evictions: &[EvictionStatus],
) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(why) = &undo.untouched {
        warnings.push(untouched_warning(&observed.pod, why, undo.isolated));
        warnings.extend(state_warnings(&observed.pod));
    } else {
        warnings.push(
            "A NetworkPolicy holds only as far as the cluster's network plugin enforces it; traffic to \
             and from the pod's own node stays allowed, and connections that exist may survive."
                .to_owned(),
        );
        warnings.extend(state_warnings(&observed.pod));
        warnings.extend(policy_warnings(observed, undo));
        warnings.extend(plugin_warnings(observed, namespace, undo));
    }
    if undo.node.unschedulable {
        warnings.push("The node was unschedulable before; release leaves it so.".to_owned());
    }
    warnings.extend(liveness_warning(&observed.pod));
    warnings.extend(
        evictions
            .iter()
            .filter(|eviction| eviction.state == EvictionState::Kept)
            .map(|eviction| {
                format!(
                    "{}/{} stays on the node: {}",
                    eviction.namespace, eviction.pod, eviction.message
                )
            }),
    );
    warnings
}

/// What is left out for a pod that is not changed, and what then holds it.
fn untouched_warning(pod: &Pod, why: &str, isolated: bool) -> String {
    let held = if isolated {
        "What holds it is its node's table alone."
    } else if uses_node_network(pod) {
        "Nothing here can hold it."
    } else {
        "What could hold it is its node's table, and that is not asked for or not allowed here: it is NOT cut off."
    };
    format!(
        "Pod {} is not changed: {why}. It keeps its labels, so its owner and Services keep it, and neither a \
         NetworkPolicy nor a budget of ours selects it. {held} The node is cordoned, its other pods leave, and the \
         evidence is taken, as for every pod.",
        full_name(pod)
    )
}

/// What other policies go on allowing, and what is done about those that don't.
fn policy_warnings(observed: &Observed, undo: &Undo) -> Vec<String> {
    let mut warnings: Vec<String> = undo
        .pod
        .for_policies
        .iter()
        .map(|(key, policy)| {
            format!(
                "The label {key} is taken off too, because NetworkPolicy {policy} allows traffic to pods with it; \
                 neither an owner nor a Service selects by its absence."
            )
        })
        .collect();
    warnings.extend(undo.policies.iter().map(|policy| {
        format!(
            "NetworkPolicy {} is changed: it no longer selects pods with the suspect label. For all other pods it \
             stays as it is; what manages it may put it back, which is then restored and reported.",
            policy.name
        )
    }));
    // None of them applies to it, so what they allow is not what lets its traffic through.
    if uses_node_network(&observed.pod) {
        return warnings;
    }
    let excluded = |policy: &NetworkPolicy| {
        let uid = policy.metadata.uid.as_deref();
        undo.policies
            .iter()
            .any(|undo| Some(undo.uid.as_str()) == uid)
    };
    let others: Vec<NetworkPolicy> = observed
        .policies
        .iter()
        .filter(|policy| !excluded(policy))
        .cloned()
        .collect();
    let allowed = policy::still_allowing(&others, &pod::labels_after(&undo.pod));
    warnings.extend(allowed.into_iter().map(|allowed| {
        format!(
            "{allowed}. Policies add up, so this traffic flows: --exclude-from-policies takes the suspect out \
             of the policy."
        )
    }));
    warnings
}

/// What policies of other kinds would let through once our denials in those kinds are in place.
fn plugin_warnings(observed: &Observed, namespace: &str, undo: &Undo) -> Vec<String> {
    if uses_node_network(&observed.pod) {
        return Vec::new();
    }
    let planned: Vec<String> = undo.denies.iter().map(|deny| deny.path.clone()).collect();
    let labels = pod::labels_after(&undo.pod);
    let foreign::Findings { allowing, open } =
        foreign::judge(&observed.plugin, namespace, &labels, &planned);
    let allowing = allowing.into_iter().map(|allowed| {
        format!("{allowed}: change or delete that policy, or the pod is not cut off.")
    });
    allowing.chain(open).collect()
}

/// States in which less can be done than for a running pod on its own network.
fn state_warnings(pod: &Pod) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(since) = &pod.metadata.deletion_timestamp {
        let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(30);
        warnings.push(format!(
            "The pod is being deleted since {}: its containers are killed within {grace} s, and nothing in \
             the API stops that. What is collected until then is what there will be.",
            since.0
        ));
    }
    if uses_node_network(pod) {
        warnings.push(
            "The pod uses its node's network (hostNetwork): no NetworkPolicy applies to it, so it is NOT \
             cut off. Cut the node off at the network if you have to."
                .to_owned(),
        );
    }
    if let Some(what) = pod
        .metadata
        .owner_references
        .as_deref()
        .and_then(dependence)
    {
        warnings.push(format!(
            "Of its owners that are no controllers nothing lets go of the pod: {what}."
        ));
    }
    if phase(pod) == "Pending" {
        warnings.push(
            "The pod does not run yet: there may be no container to collect from.".to_owned(),
        );
    }
    warnings
}

/// Whether no NetworkPolicy applies to the pod.
#[must_use]
pub fn uses_node_network(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true)
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
