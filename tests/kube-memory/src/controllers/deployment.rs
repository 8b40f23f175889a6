//! Deployments: one ReplicaSet per template; a new one takes over when its pods are available.

use serde_json::{Value, json};

use super::owned;
use super::replica_set::put_counts;
use super::{Teller, tell};
use crate::clock;
use crate::json;
use crate::refusal::Outcome;
use crate::state::State;
use crate::store::Object;

const TABLE: &str = "deployments.apps";
const SETS: &str = "replicasets.apps";
const MANAGER: &str = "kube-controller-manager";

pub(super) fn sync(state: &mut State, namespace: &str) -> Outcome<()> {
    for deployment in state.store.list(TABLE, namespace) {
        sync_one(state, &deployment)?;
    }
    Ok(())
}

fn sync_one(state: &mut State, deployment: &Object) -> Outcome<()> {
    let mut sets = owned::claim(state, SETS, deployment, MANAGER, |_| true)?;
    if json::terminating(deployment) {
        return Ok(());
    }
    let wanted = json::number(deployment, "/spec/replicas").unwrap_or(1);
    let template = deployment
        .pointer("/spec/template")
        .cloned()
        .unwrap_or(Value::Null);
    let current = sets.iter().position(|set| plain_template(set) == template);
    let recreate = json::text(deployment, "/spec/strategy/type") == "Recreate";
    let old_running = sets.iter().enumerate().any(|(at, set)| {
        Some(at) != current && json::number(set, "/status/replicas").unwrap_or(0) > 0
    });
    let current = match current {
        Some(at) => sets.swap_remove(at),
        None if json::truth(deployment, "/spec/paused") => {
            return status(state, deployment, None, &sets);
        }
        None => make_set(
            state,
            deployment,
            &template,
            &sets,
            if recreate && old_running { 0 } else { wanted },
        )?,
    };
    let current_wanted = if recreate && old_running { 0 } else { wanted };
    let current = scale(state, deployment, &current, current_wanted)?;
    let available = json::number(&current, "/status/availableReplicas").unwrap_or(0);
    if recreate || available >= wanted {
        for set in &mut sets {
            *set = scale(state, deployment, set, 0)?;
        }
    }
    status(state, deployment, Some(&current), &sets)
}

/// The template without the label that tells the sets apart.
fn plain_template(set: &Value) -> Value {
    let mut template = set
        .pointer("/spec/template")
        .cloned()
        .unwrap_or(Value::Null);
    json::take(&mut template, &["metadata", "labels", "pod-template-hash"]);
    template
}

fn revision(object: &Value) -> i64 {
    json::text(
        object,
        "/metadata/annotations/deployment.kubernetes.io~1revision",
    )
    .parse()
    .unwrap_or(0)
}

fn make_set(
    state: &mut State,
    deployment: &Object,
    template: &Value,
    old: &[Object],
    replicas: i64,
) -> Outcome<Object> {
    let hash = owned::hash(template);
    let name = format!("{}-{hash}", json::name(deployment));
    let revision = old.iter().map(|set| revision(set)).max().unwrap_or(0) + 1;
    let mut template = template.clone();
    json::put(
        &mut template,
        &["metadata", "labels", "pod-template-hash"],
        hash.as_str(),
    );
    let mut selector = deployment
        .pointer("/spec/selector")
        .cloned()
        .unwrap_or(Value::Null);
    json::put(
        &mut selector,
        &["matchLabels", "pod-template-hash"],
        hash.as_str(),
    );
    let set = json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet",
        "metadata": {
            "name": name, "namespace": json::namespace(deployment),
            "labels": template.pointer("/metadata/labels"),
            "annotations": {
                "deployment.kubernetes.io/desired-replicas": replicas.to_string(),
                "deployment.kubernetes.io/max-replicas": max_replicas(deployment, replicas).to_string(),
                "deployment.kubernetes.io/revision": revision.to_string(),
            },
            "ownerReferences": [owned::reference(deployment)],
        },
        "spec": {"replicas": replicas, "selector": selector, "template": template},
    });
    let set = state.make(SETS, set, MANAGER)?;
    state.change(TABLE, deployment, "", MANAGER, |deployment| {
        json::put(
            deployment,
            &[
                "metadata",
                "annotations",
                "deployment.kubernetes.io/revision",
            ],
            revision.to_string(),
        );
    })?;
    if replicas > 0 {
        told_scale(state, deployment, &set, 0, replicas);
    }
    Ok(set)
}

/// Replicas plus surge, rounded up.
fn max_replicas(deployment: &Value, replicas: i64) -> i64 {
    let surge = match deployment.pointer("/spec/strategy/rollingUpdate/maxSurge") {
        Some(Value::String(percent)) => {
            let percent: i64 = percent.trim_end_matches('%').parse().unwrap_or(0);
            (replicas * percent + 99) / 100
        }
        Some(number) => number.as_i64().unwrap_or(0),
        None => 0,
    };
    replicas + surge
}

fn scale(state: &mut State, deployment: &Object, set: &Object, replicas: i64) -> Outcome<Object> {
    let before = json::number(set, "/spec/replicas").unwrap_or(0);
    if before == replicas {
        return Ok(set.clone());
    }
    let most = max_replicas(deployment, replicas);
    let scaled = state.change(SETS, set, "", MANAGER, |set| {
        json::put(set, &["spec", "replicas"], replicas);
        for (key, value) in [("desired-replicas", replicas), ("max-replicas", most)] {
            let key = format!("deployment.kubernetes.io/{key}");
            json::put(set, &["metadata", "annotations", &key], value.to_string());
        }
    })?;
    told_scale(state, deployment, set, before, replicas);
    Ok(scaled)
}

fn told_scale(state: &mut State, deployment: &Object, set: &Value, from: i64, to: i64) {
    let direction = if to > from { "up" } else { "down" };
    let message = format!(
        "Scaled {direction} replica set {} from {from} to {to}",
        json::name(set)
    );
    let teller = Teller {
        component: "deployment-controller",
        host: "",
    };
    tell(
        state,
        deployment,
        "",
        false,
        "ScalingReplicaSet",
        &message,
        teller,
    );
}

fn status(
    state: &mut State,
    deployment: &Object,
    current: Option<&Object>,
    old: &[Object],
) -> Outcome<()> {
    let count = |set: &Object, field: &str| {
        usize::try_from(json::number(set, &format!("/status/{field}")).unwrap_or(0)).unwrap_or(0)
    };
    let all = |field: &str| {
        current
            .into_iter()
            .chain(old)
            .map(|set| count(set, field))
            .sum::<usize>()
    };
    let wanted =
        usize::try_from(json::number(deployment, "/spec/replicas").unwrap_or(1)).unwrap_or(0);
    let updated = current.map_or(0, |set| count(set, "replicas"));
    let available = all("availableReplicas");
    let mut status = json!({"observedGeneration": json::number(deployment, "/metadata/generation"),
                            "terminatingReplicas": all("terminatingReplicas")});
    put_counts(
        &mut status,
        &[
            ("replicas", all("replicas")),
            ("updatedReplicas", updated),
            ("readyReplicas", all("readyReplicas")),
            ("availableReplicas", available),
            ("unavailableReplicas", wanted.saturating_sub(available)),
        ],
    );
    let done = current.is_some_and(|set| count(set, "availableReplicas") >= wanted)
        && all("replicas") == updated;
    let name = current.map_or("", |set| json::name(set));
    let (reason, message) = if done {
        (
            "NewReplicaSetAvailable",
            format!("ReplicaSet \"{name}\" has successfully progressed."),
        )
    } else {
        (
            "ReplicaSetUpdated",
            format!("ReplicaSet \"{name}\" is progressing."),
        )
    };
    let progressing = condition(deployment, "Progressing", true, reason, &message);
    let least = wanted - wanted / 4;
    let enough = available >= least;
    let available = if enough {
        condition(
            deployment,
            "Available",
            true,
            "MinimumReplicasAvailable",
            "Deployment has minimum availability.",
        )
    } else {
        condition(
            deployment,
            "Available",
            false,
            "MinimumReplicasUnavailable",
            "Deployment does not have minimum availability.",
        )
    };
    json::put(
        &mut status,
        &["conditions"],
        json!([available, progressing]),
    );
    // The annotation may have been written above: read again.
    match state
        .store
        .get(TABLE, json::namespace(deployment), json::name(deployment))
    {
        Some(deployment) => owned::write_status(state, TABLE, &deployment, status),
        None => Ok(()),
    }
}

/// A condition that keeps its times while nothing changes.
fn condition(object: &Value, kind: &str, holds: bool, reason: &str, message: &str) -> Value {
    let status = if holds { "True" } else { "False" };
    let before = json::list(object, "/status/conditions")
        .iter()
        .find(|c| json::text(c, "/type") == kind);
    let mut condition =
        json!({"type": kind, "status": status, "reason": reason, "message": message});
    let same = before.filter(|before| json::text(before, "/status") == status);
    let now = clock::now();
    let transition = same.map_or(now.as_str(), |before| {
        json::text(before, "/lastTransitionTime")
    });
    let update = same
        .filter(|before| json::text(before, "/message") == message)
        .map_or(now.as_str(), |before| json::text(before, "/lastUpdateTime"));
    json::put(&mut condition, &["lastTransitionTime"], transition);
    json::put(&mut condition, &["lastUpdateTime"], update);
    condition
}
