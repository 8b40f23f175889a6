//! The deny-all NetworkPolicy, and other policies that would still let traffic through.
//!
//! Policies are additive: whatever any policy that selects the pod allows is allowed. One
//! deny-all object serves every quarantined pod of a namespace.

use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicySpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::json;

use super::refusal::Refusal;
use super::selector::{Labels, selects};
use super::settings::{FIELD_MANAGER, PART_OF_LABEL, Settings};
use crate::resources::{ApiCall, StepName};

/// The call that creates the deny-all policy, `None` if it is there already.
///
/// # Errors
/// [`Refusal::ForeignPolicy`] if a policy of that name does something else.
pub fn deny_all(
    namespace: &str,
    policies: &[NetworkPolicy],
    settings: &Settings,
) -> Result<Option<ApiCall>, Refusal> {
    let existing = policies
        .iter()
        .find(|policy| policy.metadata.name.as_deref() == Some(&settings.policy_name));
    match existing {
        Some(policy) if denies_all(policy, settings) => return Ok(None),
        Some(_) => {
            return Err(Refusal::ForeignPolicy {
                namespace: namespace.to_owned(),
                name: settings.policy_name.clone(),
                label: format!("{}={}", settings.pod_label.0, settings.pod_label.1),
            });
        }
        None => {}
    }
    let (key, value) = &settings.pod_label;
    let body = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {
            "name": settings.policy_name,
            "namespace": namespace,
            "labels": { PART_OF_LABEL.0: PART_OF_LABEL.1 },
        },
        "spec": {
            "podSelector": { "matchLabels": { key: value } },
            "policyTypes": ["Ingress", "Egress"],
        },
    });
    Ok(Some(ApiCall {
        step: StepName::Policy,
        method: "POST".into(),
        path: format!(
            "/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies?fieldManager={FIELD_MANAGER}"
        ),
        content_type: "application/json".into(),
        body: body.to_string(),
        purpose: format!("denies all traffic of pods with the label {key}={value}"),
    }))
}

/// The call that removes the deny-all policy if Impound made it, `None` if it is gone or foreign.
#[must_use]
pub fn remove(namespace: &str, policies: &[NetworkPolicy], settings: &Settings) -> Option<ApiCall> {
    let policy = policies.iter().find(|policy| {
        policy.metadata.name.as_deref() == Some(&settings.policy_name)
            && policy
                .metadata
                .labels
                .as_ref()
                .and_then(|labels| labels.get(PART_OF_LABEL.0))
                == Some(&PART_OF_LABEL.1.to_owned())
    })?;
    Some(super::plan::delete_call(
        StepName::UndoPolicy,
        format!(
            "/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies/{}",
            settings.policy_name
        ),
        policy.metadata.uid.as_deref(),
        "no quarantined pod is left in the namespace",
    ))
}

/// Whether the policy selects the suspect label and nothing narrower, for both directions, and
/// allows nothing.
#[must_use]
pub fn denies_all(policy: &NetworkPolicy, settings: &Settings) -> bool {
    let Some(spec) = &policy.spec else {
        return false;
    };
    let (key, value) = &settings.pod_label;
    let suspect = Labels::from([(key.clone(), value.clone())]);
    selects(&pod_selector(spec), &suspect)
        && allows(spec, "Ingress") == Direction::Denied
        && allows(spec, "Egress") == Direction::Denied
}

/// What other policies let through for a pod with these labels: one sentence per policy and
/// direction.
#[must_use]
pub fn still_allowing(policies: &[NetworkPolicy], labels: &Labels) -> Vec<String> {
    let mut found = Vec::new();
    for policy in policies {
        let Some(spec) = &policy.spec else { continue };
        if !selects(&pod_selector(spec), labels) {
            continue;
        }
        let name = policy.metadata.name.as_deref().unwrap_or_default();
        for direction in ["Ingress", "Egress"] {
            if let Direction::Allowed(rules) = allows(spec, direction) {
                found.push(format!(
                    "NetworkPolicy {name} still allows {} for the pod: {rules}",
                    direction.to_lowercase()
                ));
            }
        }
    }
    found
}

#[derive(Debug, PartialEq, Eq)]
enum Direction {
    /// The policy says nothing about the direction.
    Unaffected,
    /// The policy covers the direction and allows nothing.
    Denied,
    /// The policy allows something; its rules as JSON.
    Allowed(String),
}

fn allows(spec: &NetworkPolicySpec, direction: &str) -> Direction {
    let egress = direction == "Egress";
    // Without policyTypes: Ingress always, Egress if there are egress rules (API reference).
    let covered = match spec.policy_types.as_deref() {
        Some(types) if !types.is_empty() => types.iter().any(|kind| kind == direction),
        _ => !egress || spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()),
    };
    let rules = if egress {
        spec.egress.as_ref().map(serde_json::to_string)
    } else {
        spec.ingress.as_ref().map(serde_json::to_string)
    };
    match rules {
        _ if !covered => Direction::Unaffected,
        Some(Ok(rules)) if rules != "[]" => Direction::Allowed(rules),
        _ => Direction::Denied,
    }
}

fn pod_selector(spec: &NetworkPolicySpec) -> LabelSelector {
    spec.pod_selector.clone().unwrap_or_default()
}
