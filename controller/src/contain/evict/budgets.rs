//! Which disruption budgets keep a pod from being evicted, in words.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;

use crate::contain::selector::selects;

/// Says which budgets hold the pod, `None` if none selects it or all would let it go: then the API's own
/// words say more. `budgets` are those of the pod's namespace.
#[must_use]
pub fn blocking(pod: &Pod, budgets: &[PodDisruptionBudget]) -> Option<String> {
    let labels = pod.metadata.labels.clone().unwrap_or_default();
    // An empty selector selects every pod of the namespace, a missing one none (policy/v1).
    let selecting: Vec<&PodDisruptionBudget> = budgets
        .iter()
        .filter(|budget| {
            let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
            selector.is_some_and(|selector| selects(selector, &labels))
        })
        .collect();
    match selecting.as_slice() {
        [] => None,
        [one] => (allowed(one) < 1).then(|| state(one)),
        several => {
            let names: Vec<String> = several.iter().map(|budget| name(budget)).collect();
            Some(format!(
                "disruption budgets {} select it at once, and the API evicts no pod with more than one: delete \
                 all but one",
                names.join(" and ")
            ))
        }
    }
}

fn state(budget: &PodDisruptionBudget) -> String {
    let status = budget.status.as_ref();
    let healthy = status
        .and_then(|status| status.current_healthy)
        .unwrap_or(0);
    let needed = status
        .and_then(|status| status.desired_healthy)
        .unwrap_or(0);
    let all = status.and_then(|status| status.expected_pods).unwrap_or(0);
    format!(
        "disruption budget {} allows {} disruptions now: {healthy} of {all} pods are healthy, {needed} must be",
        name(budget),
        allowed(budget)
    )
}

fn allowed(budget: &PodDisruptionBudget) -> i32 {
    let status = budget.status.as_ref();
    status
        .and_then(|status| status.disruptions_allowed)
        .unwrap_or(0)
}

fn name(budget: &PodDisruptionBudget) -> String {
    format!(
        "{}/{}",
        budget.metadata.namespace.as_deref().unwrap_or_default(),
        budget.metadata.name.as_deref().unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn budget(name: &str, selector: Value, allowed: i32) -> PodDisruptionBudget {
        serde_json::from_value(json!({
            "metadata": { "name": name, "namespace": "shop" },
            "spec": { "minAvailable": 1, "selector": selector },
            "status": { "disruptionsAllowed": allowed, "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1 },
        }))
        .unwrap()
    }

    fn db() -> Pod {
        serde_json::from_value(json!({ "metadata": { "labels": { "app": "db" } } })).unwrap()
    }

    #[test]
    fn a_budget_that_is_exhausted_is_named_with_its_numbers() {
        let budgets = [
            budget("db", json!({ "matchLabels": { "app": "db" } }), 0),
            budget("web", json!({ "matchLabels": { "app": "web" } }), 0),
        ];
        assert_eq!(
            blocking(&db(), &budgets).unwrap(),
            "disruption budget shop/db allows 0 disruptions now: 1 of 1 pods are healthy, 1 must be"
        );
    }

    #[test]
    fn two_budgets_on_one_pod_are_named_both_whatever_they_allow() {
        let budgets = [
            budget("db", json!({ "matchLabels": { "app": "db" } }), 1),
            budget("all", json!({}), 1),
        ];
        let said = blocking(&db(), &budgets).unwrap();
        assert!(
            said.contains("shop/db and shop/all select it at once"),
            "{said}"
        );
    }

    #[test]
    fn a_budget_that_lets_go_or_does_not_select_is_not_blamed() {
        for budget in [
            budget("db", json!({ "matchLabels": { "app": "db" } }), 1),
            budget("none", Value::Null, 0),
            budget("web", json!({ "matchLabels": { "app": "web" } }), 0),
        ] {
            assert_eq!(blocking(&db(), &[budget]), None);
        }
    }
}
