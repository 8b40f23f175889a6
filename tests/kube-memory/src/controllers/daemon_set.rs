//! DaemonSets: one pod on every node whose taints it tolerates.

use serde_json::{Value, json};

use super::owned::{self, active, ready};
use super::scheduler;
use super::tolerate;
use crate::json;
use crate::refusal::Outcome;
use crate::state::{DeleteOptions, State};
use crate::store::Object;

const TABLE: &str = "daemonsets.apps";
const NAME: &str = "daemonset-controller";

pub(super) fn sync(state: &mut State, namespace: &str) -> Outcome<()> {
    for set in state.store.list(TABLE, namespace) {
        sync_one(state, &set)?;
    }
    Ok(())
}

/// The pod for one node: bound there by affinity, tolerating what every daemon tolerates.
fn template(set: &Value, node: &str, hash: &str) -> Value {
    let mut pod = owned::from_template(set);
    json::put(
        &mut pod,
        &["metadata", "labels", "controller-revision-hash"],
        hash,
    );
    json::put(
        &mut pod,
        &["metadata", "labels", "pod-template-generation"],
        generation(set),
    );
    json::put(
        &mut pod,
        &[
            "spec",
            "affinity",
            "nodeAffinity",
            "requiredDuringSchedulingIgnoredDuringExecution",
        ],
        json!({"nodeSelectorTerms": [
            {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}]}),
    );
    let mut tolerated = vec![
        ("not-ready", "NoExecute"),
        ("unreachable", "NoExecute"),
        ("disk-pressure", "NoSchedule"),
        ("memory-pressure", "NoSchedule"),
        ("pid-pressure", "NoSchedule"),
        ("unschedulable", "NoSchedule"),
    ];
    if json::truth(&pod, "/spec/hostNetwork") {
        tolerated.push(("network-unavailable", "NoSchedule"));
    }
    if let Some(list) = json::entry_list(&mut pod, &["spec", "tolerations"]) {
        for (key, effect) in tolerated {
            list.push(json!({"key": format!("node.kubernetes.io/{key}"), "operator": "Exists", "effect": effect}));
        }
    }
    pod
}

fn generation(set: &Value) -> String {
    json::text(
        set,
        "/metadata/annotations/deprecated.daemonset.template.generation",
    )
    .to_owned()
}

/// The node a pod is on or made for.
fn node_of(pod: &Value) -> &str {
    let bound = json::text(pod, "/spec/nodeName");
    if !bound.is_empty() {
        return bound;
    }
    json::text(
        pod,
        "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms/0/matchFields/0/values/0",
    )
}

fn sync_one(state: &mut State, set: &Object) -> Outcome<()> {
    let mut pods = owned::claim(state, "pods", set, "kube-controller-manager", active)?;
    if json::terminating(set) {
        return Ok(());
    }
    let hash = owned::hash(set.pointer("/spec/template").unwrap_or(&Value::Null));
    let (mut desired, mut current, mut available, mut updated, mut misplaced) = (0, 0, 0, 0, 0);
    let settled = pods.iter().all(|pod| ready(pod) && !json::terminating(pod));
    let mut replaced = json::text(set, "/spec/updateStrategy/type") == "OnDelete" || !settled;
    for node in state.store.list("nodes", "") {
        let name = json::name(&node);
        let wanted = template(set, name, &hash);
        let fits = scheduler::unfit(&wanted, &node).is_none();
        let mut here: Vec<Object> = pods
            .iter()
            .filter(|pod| node_of(pod) == name)
            .cloned()
            .collect();
        for pod in here
            .iter()
            .filter(|pod| owned::finished(pod) && !json::terminating(pod))
        {
            tolerate(
                "finished daemon pod",
                state.discard("pods", pod, &DeleteOptions::default()),
            );
        }
        let waits = here.iter().any(|pod| json::terminating(pod));
        here.retain(|pod| active(pod));
        if fits
            && here.is_empty()
            && !waits
            && let Some(pod) = owned::make_pod(state, set, wanted, NAME)
        {
            pods.push(pod.clone());
            here.push(pod);
        }
        // Oldest first: a second one came by adoption.
        here.sort_by_key(|pod| state.store.born(pod));
        for extra in here.iter().skip(1) {
            owned::delete_pod(state, set, extra, NAME);
        }
        let Some(pod) = here.first() else {
            desired += usize::from(fits);
            continue;
        };
        let is_new = json::text(pod, "/metadata/labels/controller-revision-hash") == hash;
        if fits && !is_new && !replaced {
            owned::delete_pod(state, set, pod, NAME);
            replaced = true;
        }
        if fits {
            desired += 1;
            current += 1;
            available += usize::from(ready(pod));
            updated += usize::from(is_new);
        } else {
            misplaced += 1;
        }
    }
    let mut status = json!({
        "currentNumberScheduled": current, "numberMisscheduled": misplaced, "desiredNumberScheduled": desired,
        "numberReady": available, "observedGeneration": json::number(set, "/metadata/generation"),
    });
    super::replica_set::put_counts(
        &mut status,
        &[
            ("updatedNumberScheduled", updated),
            ("numberAvailable", available),
            ("numberUnavailable", desired.saturating_sub(available)),
        ],
    );
    owned::write_status(state, TABLE, set, status)
}
