//! Takes the suspect out of a NetworkPolicy that it can't leave by its labels, and puts the policy back.
//!
//! The policy's podSelector gets one more expression: it selects no pod with the suspect label. For all
//! other pods the policy stays as it is. Lists are replaced whole by a merge patch, so every patch carries
//! uid and resourceVersion: what others change in between answers 409 and is read again.

use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use serde_json::{Value, json};

use super::{allowing, pod_selector};
use crate::contain::plan::patch_call;
use crate::contain::selector::Labels;
use crate::resources::{ApiCall, Label, Names, PolicyUndo, StepName};

/// The policies that allow a pod with these labels traffic, as they are before they are narrowed.
#[must_use]
pub fn undo(policies: &[NetworkPolicy], labels: &Labels, names: &Names) -> Vec<PolicyUndo> {
    allowing(policies, labels)
        .filter(|policy| policy.metadata.name.as_deref() != Some(&names.policy))
        .map(|policy| PolicyUndo {
            name: policy.metadata.name.clone().unwrap_or_default(),
            uid: policy.metadata.uid.clone().unwrap_or_default(),
            pod_selector: json!(policy.spec.as_ref().map(pod_selector).unwrap_or_default()),
        })
        .collect()
}

/// The calls that narrow those of the recorded policies that are not narrowed. A policy that is gone, or
/// was made again under its name, is another one and stays as it is.
#[must_use]
pub fn exclude(
    namespace: &str,
    policies: &[NetworkPolicy],
    undo: &[PolicyUndo],
    names: &Names,
) -> Vec<ApiCall> {
    let recorded = recorded(policies, undo);
    recorded
        .filter_map(|policy| {
            let mut selector = policy.spec.as_ref().map(pod_selector)?;
            if is_narrowed(&selector, names) {
                return None;
            }
            let expressions = selector.match_expressions.get_or_insert_default();
            expressions.push(no_suspects(names));
            let purpose = format!(
                "NetworkPolicy {} no longer allows pods with the suspect label any traffic; for all other pods \
                 it stays as it is",
                name(policy)
            );
            Some(patch(StepName::Exclude, namespace, policy, &selector, &purpose))
        })
        .collect()
}

/// The calls that take out of the recorded policies what was put in. What others changed in them stays; a
/// policy that is gone, or made again, is left alone.
#[must_use]
pub fn include_again(
    namespace: &str,
    policies: &[NetworkPolicy],
    undo: &[PolicyUndo],
    names: &Names,
) -> Vec<ApiCall> {
    let recorded = recorded(policies, undo);
    recorded
        .filter_map(|policy| {
            let mut selector = policy.spec.as_ref().map(pod_selector)?;
            if !is_narrowed(&selector, names) {
                return None;
            }
            let ours = no_suspects(names);
            selector.match_expressions = selector
                .match_expressions
                .map(|all| all.into_iter().filter(|one| *one != ours).collect());
            let purpose = format!("NetworkPolicy {} selects as it did before", name(policy));
            Some(patch(
                StepName::UndoExclude,
                namespace,
                policy,
                &selector,
                &purpose,
            ))
        })
        .collect()
}

/// The recorded policies that release leaves as they are, because they are not as they were left.
#[must_use]
pub fn left_alone(policies: &[NetworkPolicy], undo: &[PolicyUndo], names: &Names) -> Vec<String> {
    let changed = undo.iter().filter_map(|undo| {
        let present = policies
            .iter()
            .find(|policy| policy.metadata.name.as_deref() == Some(&undo.name));
        let why = match present {
            None => "is gone",
            Some(policy) if policy.metadata.uid.as_deref() != Some(&undo.uid) => {
                "was made again by somebody"
            }
            Some(policy) => {
                let selector = policy.spec.as_ref().map(pod_selector).unwrap_or_default();
                if is_narrowed(&selector, names) {
                    return None;
                }
                "was changed by somebody and does not hold what was put in"
            }
        };
        Some(format!(
            "NetworkPolicy {} {why}, so it is left as it is",
            undo.name
        ))
    });
    changed.collect()
}

fn recorded<'p>(
    policies: &'p [NetworkPolicy],
    undo: &[PolicyUndo],
) -> impl Iterator<Item = &'p NetworkPolicy> {
    policies.iter().filter(|policy| {
        undo.iter().any(|undo| {
            policy.metadata.name.as_deref() == Some(&undo.name)
                && policy.metadata.uid.as_deref() == Some(&undo.uid)
        })
    })
}

fn is_narrowed(selector: &LabelSelector, names: &Names) -> bool {
    let expressions = selector.match_expressions.as_deref().unwrap_or_default();
    expressions.contains(&no_suspects(names))
}

fn no_suspects(names: &Names) -> LabelSelectorRequirement {
    let Label { key, value } = names.pod_label.clone();
    LabelSelectorRequirement {
        key,
        operator: "NotIn".into(),
        values: Some(vec![value]),
    }
}

fn name(policy: &NetworkPolicy) -> &str {
    policy.metadata.name.as_deref().unwrap_or_default()
}

fn patch(
    step: StepName,
    namespace: &str,
    policy: &NetworkPolicy,
    selector: &LabelSelector,
    purpose: &str,
) -> ApiCall {
    let expressions = match selector.match_expressions.as_deref().unwrap_or_default() {
        [] => Value::Null,
        some => json!(some),
    };
    let patch = json!({
        "metadata": {
            "uid": policy.metadata.uid,
            "resourceVersion": policy.metadata.resource_version,
        },
        "spec": { "podSelector": { "matchExpressions": expressions } },
    });
    let path = format!(
        "/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies/{}",
        name(policy)
    );
    patch_call(step, path, &patch, purpose)
}
