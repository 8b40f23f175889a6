//! The status of PodDisruptionBudgets: how many pods may go now.

use serde_json::{Value, json};

use super::owned;
use crate::clock;
use crate::json;
use crate::refusal::Outcome;
use crate::selector::Selector;
use crate::state::State;
use crate::store::Object;

const TABLE: &str = "poddisruptionbudgets.policy";

pub(super) fn sync(state: &mut State, namespace: &str) -> Outcome<()> {
    let pods = state.store.list("pods", namespace);
    for budget in state.store.list(TABLE, namespace) {
        let Some(selector) = Selector::of_object(budget.pointer("/spec/selector")) else {
            continue;
        };
        let chosen: Vec<&Object> = pods
            .iter()
            .filter(|pod| selector.matches(json::labels(pod)) && !owned::finished(pod))
            .collect();
        let status = status(state, &budget, &chosen);
        owned::write_status(state, TABLE, &budget, status)?;
    }
    Ok(())
}

fn status(state: &State, budget: &Value, pods: &[&Object]) -> Value {
    // A pod whose eviction was granted counts as gone from then on.
    let mut disrupted = json::map(budget, "/status/disruptedPods")
        .cloned()
        .unwrap_or_default();
    disrupted.retain(|name, _| {
        pods.iter()
            .any(|pod| json::name(pod) == name && !json::terminating(pod))
    });
    let healthy = pods
        .iter()
        .filter(|pod| {
            owned::ready(pod) && !json::terminating(pod) && !disrupted.contains_key(json::name(pod))
        })
        .count();
    let healthy = i64::try_from(healthy).unwrap_or(0);
    let (expected, desired) = wanted(state, budget, pods);
    let allowed = if expected > 0 {
        (healthy - desired).max(0)
    } else {
        0
    };
    let (holds, reason) = if allowed > 0 {
        ("True", "SufficientPods")
    } else {
        ("False", "InsufficientPods")
    };
    let generation = json::number(budget, "/metadata/generation");
    let before = json::list(budget, "/status/conditions").first();
    let since = before
        .filter(|before| json::text(before, "/status") == holds)
        .map_or_else(clock::now, |before| {
            json::text(before, "/lastTransitionTime").to_owned()
        });
    let mut status = json!({
        "observedGeneration": generation, "disruptionsAllowed": allowed, "currentHealthy": healthy,
        "desiredHealthy": desired, "expectedPods": expected,
        "conditions": [{"type": "DisruptionAllowed", "status": holds, "observedGeneration": generation,
                        "lastTransitionTime": since, "reason": reason, "message": ""}],
    });
    if !disrupted.is_empty() {
        json::put(&mut status, &["disruptedPods"], disrupted);
    }
    status
}

/// Expected and desired pods. Percentages and maxUnavailable count what the owners want, not what is there.
fn wanted(state: &State, budget: &Value, pods: &[&Object]) -> (i64, i64) {
    let count = i64::try_from(pods.len()).unwrap_or(0);
    match (
        budget.pointer("/spec/minAvailable"),
        budget.pointer("/spec/maxUnavailable"),
    ) {
        (Some(Value::String(percent)), _) => {
            let expected = expected(state, pods);
            (expected, share(percent, expected))
        }
        (Some(number), _) => (count, number.as_i64().unwrap_or(0)),
        (None, Some(limit)) => {
            let expected = expected(state, pods);
            let most = match limit {
                Value::String(percent) => share(percent, expected),
                number => number.as_i64().unwrap_or(0),
            };
            (expected, (expected - most).max(0))
        }
        (None, None) => (count, 1),
    }
}

/// A percentage of a count, rounded up.
fn share(percent: &str, of: i64) -> i64 {
    let percent: i64 = percent.trim_end_matches('%').parse().unwrap_or(0);
    (of * percent + 99) / 100
}

/// The sum of the replicas of all owners; a pod without one counts itself.
fn expected(state: &State, pods: &[&Object]) -> i64 {
    let mut seen: Vec<String> = Vec::new();
    let mut sum = 0;
    for pod in pods {
        let Some(owner) = json::controller(pod) else {
            sum += 1;
            continue;
        };
        let uid = json::text(owner, "/uid").to_owned();
        if seen.contains(&uid) {
            continue;
        }
        seen.push(uid);
        let resource = state
            .registry
            .of_kind(json::text(owner, "/apiVersion"), json::text(owner, "/kind"));
        let found = resource.and_then(|resource| {
            state.store.get(
                &resource.table,
                json::namespace(pod),
                json::text(owner, "/name"),
            )
        });
        let replicas = found.and_then(|owner| {
            json::number(&owner, "/spec/replicas")
                .or_else(|| json::number(&owner, "/status/desiredNumberScheduled"))
        });
        sum += replicas.unwrap_or(1);
    }
    sum
}
