//! The deny-all NetworkPolicy, and other policies that would still let traffic through.
//!
//! Policies are additive: whatever any policy that selects the pod allows is allowed. One
//! deny-all object serves every quarantined pod of a namespace. A policy that allows is left by taking
//! labels off (`leave`) or, if the responder says so, is narrowed (`exclude`).

pub mod exclude;
pub mod leave;
mod words;

use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicySpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::json;

use super::refusal::Refusal;
use super::selector::{Labels, selects};
use super::settings::{DENY_ALL_LABEL, FIELD_MANAGER, PART_OF_LABEL};
use crate::resources::{ApiCall, Label, Names, StepName};

/// The call that creates the deny-all policy, `None` if it is there already.
///
/// # Errors
/// [`Refusal::ForeignPolicy`] if a policy of that name does something else.
pub fn deny_all(
    namespace: &str,
    policies: &[NetworkPolicy],
    names: &Names,
) -> Result<Option<ApiCall>, Refusal> {
    let existing = policies
        .iter()
        .find(|policy| policy.metadata.name.as_deref() == Some(&names.policy));
    match existing {
        Some(policy) if denies_all(policy, names) => Ok(None),
        Some(_) => Err(Refusal::ForeignPolicy {
            namespace: namespace.to_owned(),
            name: names.policy.clone(),
            label: names.pod_label.to_string(),
        }),
        None => Ok(Some(create(namespace, names))),
    }
}

/// The call that creates the deny-all policy, whatever is there.
#[must_use]
pub fn create(namespace: &str, names: &Names) -> ApiCall {
    let Label { key, value } = &names.pod_label;
    let body = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {
            "name": names.policy,
            "namespace": namespace,
            "labels": { PART_OF_LABEL.0: PART_OF_LABEL.1, DENY_ALL_LABEL.0: DENY_ALL_LABEL.1 },
        },
        "spec": {
            "podSelector": { "matchLabels": { key: value } },
            "policyTypes": ["Ingress", "Egress"],
        },
    });
    ApiCall {
        step: StepName::Policy,
        method: "POST".into(),
        path: format!(
            "/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies?fieldManager={FIELD_MANAGER}"
        ),
        content_type: "application/json".into(),
        body: body.to_string(),
        purpose: format!("denies all traffic of pods with the label {key}={value}"),
    }
}

/// The call that puts its label on a deny-all policy that a former version made without it; `None` if none is needed.
#[must_use]
pub fn mark(namespace: &str, policies: &[NetworkPolicy], names: &Names) -> Option<ApiCall> {
    let (key, value) = DENY_ALL_LABEL;
    let policy = ours(policies, names).filter(|policy| denies_all(policy, names))?;
    let labels = policy.metadata.labels.as_ref();
    if labels.is_some_and(|labels| labels.contains_key(key)) {
        return None;
    }
    let patch = json!({ "metadata": {
        "uid": policy.metadata.uid,
        "resourceVersion": policy.metadata.resource_version,
        "labels": { key: value },
    } });
    Some(super::plan::patch_call(
        StepName::Policy,
        path(namespace, names),
        &patch,
        "the admission policies know the deny-all policy by a label of its own",
    ))
}

/// The call that removes the deny-all policy if Impound made it, `None` if it is gone or foreign.
#[must_use]
pub fn remove(namespace: &str, policies: &[NetworkPolicy], names: &Names) -> Option<ApiCall> {
    let policy = ours(policies, names)?;
    Some(super::plan::delete_call(
        StepName::UndoPolicy,
        path(namespace, names),
        policy.metadata.uid.as_deref(),
        "no quarantined pod is left in the namespace",
    ))
}

/// The policy of our name, if Impound made it.
fn ours<'p>(policies: &'p [NetworkPolicy], names: &Names) -> Option<&'p NetworkPolicy> {
    policies.iter().find(|policy| {
        let labels = policy.metadata.labels.as_ref();
        let part_of = labels.and_then(|labels| labels.get(PART_OF_LABEL.0));
        policy.metadata.name.as_deref() == Some(&names.policy)
            && part_of.map(String::as_str) == Some(PART_OF_LABEL.1)
    })
}

fn path(namespace: &str, names: &Names) -> String {
    format!(
        "/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies/{}",
        names.policy
    )
}

/// Whether the policy selects the suspect label and nothing narrower, for both directions, and
/// allows nothing.
#[must_use]
pub fn denies_all(policy: &NetworkPolicy, names: &Names) -> bool {
    let Some(spec) = &policy.spec else {
        return false;
    };
    let Label { key, value } = &names.pod_label;
    let suspect = Labels::from([(key.clone(), value.clone())]);
    selects(&pod_selector(spec), &suspect)
        && ingress(spec) == Direction::Denied
        && egress(spec) == Direction::Denied
}

/// What other policies let through for a pod with these labels: one sentence per policy and
/// direction.
#[must_use]
pub fn still_allowing(policies: &[NetworkPolicy], labels: &Labels) -> Vec<String> {
    let allowing = allowing(policies, labels);
    allowing.flat_map(what_it_allows).collect()
}

/// The policies that select the labels and allow them something.
pub fn allowing<'p>(
    policies: &'p [NetworkPolicy],
    labels: &Labels,
) -> impl Iterator<Item = &'p NetworkPolicy> {
    policies.iter().filter(|policy| {
        policy.spec.as_ref().is_some_and(|spec| {
            selects(&pod_selector(spec), labels)
                && [ingress(spec), egress(spec)]
                    .iter()
                    .any(|direction| matches!(direction, Direction::Allowed(_)))
        })
    })
}

/// What a policy allows the pods that it selects: one sentence per direction.
fn what_it_allows(policy: &NetworkPolicy) -> Vec<String> {
    let name = policy.metadata.name.as_deref().unwrap_or_default();
    let directions = policy
        .spec
        .iter()
        .flat_map(|spec| [("ingress", ingress(spec)), ("egress", egress(spec))]);
    directions
        .filter_map(|(word, direction)| match direction {
            Direction::Allowed(rules) => {
                Some(format!("NetworkPolicy {name} still allows {word} {rules}"))
            }
            Direction::Unaffected | Direction::Denied => None,
        })
        .collect()
}

#[derive(Debug, PartialEq, Eq)]
enum Direction {
    /// The policy says nothing about the direction.
    Unaffected,
    /// The policy covers the direction and allows nothing.
    Denied,
    /// The policy allows something; its rules in words.
    Allowed(String),
}

fn ingress(spec: &NetworkPolicySpec) -> Direction {
    // Without policyTypes: Ingress always (API reference).
    let rules = spec.ingress.as_deref().unwrap_or_default();
    match covers(spec, "Ingress").unwrap_or(true) {
        false => Direction::Unaffected,
        true if rules.is_empty() => Direction::Denied,
        true => Direction::Allowed(words::ingress(rules)),
    }
}

fn egress(spec: &NetworkPolicySpec) -> Direction {
    // Without policyTypes: Egress if there are egress rules (API reference).
    let rules = spec.egress.as_deref().unwrap_or_default();
    match covers(spec, "Egress").unwrap_or(!rules.is_empty()) {
        false => Direction::Unaffected,
        true if rules.is_empty() => Direction::Denied,
        true => Direction::Allowed(words::egress(rules)),
    }
}

/// Whether policyTypes names the direction; `None` if there are no policyTypes.
fn covers(spec: &NetworkPolicySpec, direction: &str) -> Option<bool> {
    let types = spec.policy_types.as_deref().unwrap_or_default();
    (!types.is_empty()).then(|| types.iter().any(|kind| kind == direction))
}

fn pod_selector(spec: &NetworkPolicySpec) -> LabelSelector {
    spec.pod_selector.clone().unwrap_or_default()
}

#[cfg(test)]
mod tests;
