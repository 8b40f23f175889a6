//! A disruption budget of the suspect's own: a relabelled pod has left its former budget, and
//! without one an eviction (by an autoscaler, a drain, an upgrade) would destroy the evidence.

use serde_json::json;

use super::settings::{FIELD_MANAGER, PART_OF_LABEL, QUARANTINE_LABEL};
use crate::resources::{ApiCall, StepName};

/// Name of the budget of a quarantine.
#[must_use]
pub fn budget_name(quarantine: &str) -> String {
    format!("impound-{quarantine}")
}

/// Path of the budget.
#[must_use]
pub fn budget_path(namespace: &str, quarantine: &str) -> String {
    format!(
        "/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets/{}",
        budget_name(quarantine)
    )
}

/// The call that creates the budget. `minAvailable` is an integer because a percentage needs a
/// controller that has a scale, which a released pod has not.
#[must_use]
pub fn create(namespace: &str, quarantine: &str) -> ApiCall {
    let body = json!({
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {
            "name": budget_name(quarantine),
            "namespace": namespace,
            "labels": { PART_OF_LABEL.0: PART_OF_LABEL.1 },
        },
        "spec": {
            "minAvailable": 1,
            "selector": { "matchLabels": { QUARANTINE_LABEL: quarantine } },
        },
    });
    ApiCall {
        step: StepName::Protect,
        method: "POST".into(),
        path: format!(
            "/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets?fieldManager={FIELD_MANAGER}"
        ),
        content_type: "application/json".into(),
        body: body.to_string(),
        purpose: "the suspect itself can't be evicted".into(),
    }
}

/// The call that removes the budget.
#[must_use]
pub fn remove(namespace: &str, quarantine: &str, uid: Option<&str>) -> ApiCall {
    super::plan::delete_call(
        StepName::UndoProtect,
        budget_path(namespace, quarantine),
        uid,
        "the pod may be evicted again",
    )
}
