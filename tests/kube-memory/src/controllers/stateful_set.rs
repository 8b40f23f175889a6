//! StatefulSets: one pod per ordinal; a name that is taken by a pod of somebody else blocks it, without an event.

use serde_json::json;

use super::owned::{self, ready};
use super::replica_set::put_counts;
use super::{Teller, tell, tolerate};
use crate::json;
use crate::refusal::Outcome;
use crate::state::{DeleteOptions, State};
use crate::store::Object;

const TABLE: &str = "statefulsets.apps";
const TELLER: Teller<'static> = Teller {
    component: "statefulset-controller",
    host: "",
};

pub(super) fn sync(state: &mut State, namespace: &str) -> Outcome<()> {
    for set in state.store.list(TABLE, namespace) {
        sync_one(state, &set)?;
    }
    Ok(())
}

/// The ordinal of a pod's name, if it is one of the set's.
fn ordinal(set: &str, pod: &str) -> Option<usize> {
    pod.strip_prefix(set)?.strip_prefix('-')?.parse().ok()
}

fn sync_one(state: &mut State, set: &Object) -> Outcome<()> {
    let name = json::name(set).to_owned();
    let mut pods = owned::claim(state, "pods", set, "kube-controller-manager", |pod| {
        ordinal(&name, json::name(pod)).is_some()
    })?;
    if json::terminating(set) {
        return Ok(());
    }
    let revision = owned::hash(
        set.pointer("/spec/template")
            .unwrap_or(&serde_json::Value::Null),
    );
    let wanted = usize::try_from(json::number(set, "/spec/replicas").unwrap_or(1)).unwrap_or(0);
    let ordered = json::text(set, "/spec/podManagementPolicy") != "Parallel";
    for at in 0..wanted {
        let pod_name = format!("{name}-{at}");
        match pods.iter().find(|pod| json::name(pod) == pod_name) {
            Some(pod) if owned::finished(pod) && !json::terminating(pod) => {
                tolerate(
                    "finished pod",
                    state.discard("pods", pod, &DeleteOptions::now()),
                );
                break;
            }
            Some(pod) if ordered && (!ready(pod) || json::terminating(pod)) => break,
            Some(_) => {}
            None => {
                let taken = state
                    .store
                    .get("pods", json::namespace(set), &pod_name)
                    .is_some();
                if !taken && let Some(pod) = make(state, set, at, &pod_name, &revision) {
                    pods.push(pod);
                }
                if ordered {
                    break;
                }
            }
        }
    }
    for pod in pods.iter().rev().filter(|pod| !json::terminating(pod)) {
        let old = json::text(pod, "/metadata/labels/controller-revision-hash")
            != format!("{name}-{revision}");
        let surplus = ordinal(&name, json::name(pod)).is_none_or(|at| at >= wanted);
        let settled = pods.iter().all(|pod| ready(pod) && !json::terminating(pod));
        let rolling = json::text(set, "/spec/updateStrategy/type") != "OnDelete";
        if surplus || (old && rolling && settled) {
            if tolerate("pod", state.discard("pods", pod, &DeleteOptions::default())).is_some() {
                let message = format!(
                    "Delete Pod {} in StatefulSet {name} successful",
                    json::name(pod)
                );
                tell(state, set, "", false, "SuccessfulDelete", &message, TELLER);
            }
            break;
        }
    }
    write_status(state, set, &pods, &format!("{name}-{revision}"))
}

fn make(state: &mut State, set: &Object, at: usize, name: &str, revision: &str) -> Option<Object> {
    let mut pod = owned::from_template(set);
    json::put(&mut pod, &["metadata", "name"], name);
    json::put(
        &mut pod,
        &["metadata", "generateName"],
        format!("{}-", json::name(set)),
    );
    for (key, value) in [
        ("apps.kubernetes.io/pod-index", at.to_string()),
        (
            "controller-revision-hash",
            format!("{}-{revision}", json::name(set)),
        ),
        ("statefulset.kubernetes.io/pod-name", name.to_owned()),
    ] {
        json::put(&mut pod, &["metadata", "labels", key], value);
    }
    json::put(&mut pod, &["spec", "hostname"], name);
    json::put(
        &mut pod,
        &["spec", "subdomain"],
        json::text(set, "/spec/serviceName"),
    );
    match state.make("pods", pod, "kube-controller-manager") {
        Ok(pod) => {
            let message = format!(
                "Create Pod {name} in StatefulSet {} successful",
                json::name(set)
            );
            tell(state, set, "", false, "SuccessfulCreate", &message, TELLER);
            Some(pod)
        }
        Err(refusal) => {
            let message = format!(
                "Create Pod {name} in StatefulSet {} failed error: {}",
                json::name(set),
                refusal.message
            );
            tell(state, set, "", true, "FailedCreate", &message, TELLER);
            None
        }
    }
}

fn write_status(state: &mut State, set: &Object, pods: &[Object], revision: &str) -> Outcome<()> {
    let live: Vec<&Object> = pods.iter().filter(|pod| !owned::finished(pod)).collect();
    let ready = live.iter().filter(|pod| ready(pod)).count();
    let updated = live
        .iter()
        .filter(|pod| json::text(pod, "/metadata/labels/controller-revision-hash") == revision)
        .count();
    let before = json::text(set, "/status/currentRevision");
    let current = if before.is_empty() || updated == live.len() {
        revision
    } else {
        before
    };
    let of_current = live
        .iter()
        .filter(|pod| json::text(pod, "/metadata/labels/controller-revision-hash") == current)
        .count();
    let mut status = json!({
        "observedGeneration": json::number(set, "/metadata/generation"), "replicas": live.len(),
        "currentRevision": current, "updateRevision": revision, "collisionCount": 0, "availableReplicas": ready,
    });
    put_counts(
        &mut status,
        &[
            ("readyReplicas", ready),
            ("currentReplicas", of_current),
            ("updatedReplicas", updated),
        ],
    );
    owned::write_status(state, TABLE, set, status)
}
