//! The instant kubelet: bound pods run at once, terminating pods end after a moment.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Teller, tell, tolerate};
use crate::clock;
use crate::core::Core;
use crate::json;
use crate::refusal::Outcome;
use crate::state::{By, DeleteOptions, State, random_id};
use crate::store::Object;

const MANAGER: &str = "kubelet";

/// Brings every bound pod forward by one step.
pub(super) fn sync(core: &Arc<Core>, termination: Duration) {
    let pods = core.shared.with(|state| state.store.list("pods", ""));
    for pod in pods
        .iter()
        .filter(|pod| !json::text(pod, "/spec/nodeName").is_empty())
    {
        if json::terminating(pod) {
            end_later(core, pod, termination);
            continue;
        }
        let result = core.shared.with(|state| {
            // The list may be a moment old.
            match state
                .store
                .get("pods", json::namespace(pod), json::name(pod))
            {
                Some(pod) if !json::terminating(&pod) => run(state, &pod),
                _ => Ok(()),
            }
        });
        tolerate("pod", result);
    }
}

fn run(state: &mut State, pod: &Object) -> Outcome<()> {
    let mirror = json::present(pod, "/metadata/annotations/kubernetes.io~1config.mirror");
    let of_node = json::list(pod, "/metadata/ownerReferences")
        .iter()
        .any(|owner| json::text(owner, "/kind") == "Node");
    if mirror && !of_node {
        // A kubelet deletes a mirror pod that it has no file for. One that a node owns is taken for a true one.
        let by = By::kubelet(json::text(pod, "/spec/nodeName"));
        return state
            .discard_as("pods", pod, &DeleteOptions::now(), &by)
            .map(drop);
    }
    let statuses = json::list(pod, "/status/ephemeralContainerStatuses").len();
    if json::list(pod, "/spec/ephemeralContainers").len() > statuses {
        let probes: Vec<Value> = json::list(pod, "/spec/ephemeralContainers")
            .iter()
            .map(|c| container_status(pod, c, false))
            .collect();
        return state
            .change("pods", pod, "status", MANAGER, |pod| {
                json::put(pod, &["status", "ephemeralContainerStatuses"], probes);
                observe_generation(pod);
            })
            .map(drop);
    }
    if json::text(pod, "/status/phase") != "Pending" {
        return Ok(());
    }
    start(state, pod)
}

/// The status is now about the newest spec.
fn observe_generation(pod: &mut Value) {
    let generation = json::number(pod, "/metadata/generation");
    json::put(pod, &["status", "observedGeneration"], generation);
    for condition in json::list_mut(pod, "/status/conditions")
        .into_iter()
        .flatten()
    {
        if json::text(condition, "/type") != "DisruptionTarget" {
            json::put(condition, &["observedGeneration"], generation);
        }
    }
}

fn teller(pod: &Value) -> Teller<'_> {
    Teller {
        component: "kubelet",
        host: json::text(pod, "/spec/nodeName"),
    }
}

fn start(state: &mut State, pod: &Object) -> Outcome<()> {
    let node_name = json::text(pod, "/spec/nodeName").to_owned();
    let node = state.store.get("nodes", "", &node_name);
    let host = node
        .iter()
        .flat_map(|node| json::list(node, "/status/addresses"))
        .find(|address| json::text(address, "/type") == "InternalIP")
        .map_or("127.0.0.1", |address| json::text(address, "/address"))
        .to_owned();
    let address = if json::truth(pod, "/spec/hostNetwork") {
        host.clone()
    } else {
        state.pod_ip(&node_name)
    };
    let now = clock::now();
    let generation = json::number(pod, "/metadata/generation");
    let statuses = |list: &str| -> Vec<Value> {
        json::list(pod, &format!("/spec/{list}"))
            .iter()
            .map(|c| container_status(pod, c, list == "containers"))
            .collect()
    };
    let (containers, inits) = (statuses("containers"), statuses("initContainers"));
    let running = state.change("pods", pod, "status", MANAGER, |pod| {
        let old = json::list(pod, "/status/conditions").to_vec();
        let kept = |kind: &str| old.iter().find(|condition| json::text(condition, "/type") == kind).cloned();
        let since = |kind: &str| {
            kept(kind).map_or_else(|| now.clone(), |c| json::text(&c, "/lastTransitionTime").to_owned())
        };
        let mut conditions: Vec<Value> =
            ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"]
                .iter()
                .map(|kind| {
                    json!({"type": kind, "observedGeneration": generation, "status": "True",
                           "lastProbeTime": null, "lastTransitionTime": since(kind)})
                })
                .collect();
        conditions.extend(kept("DisruptionTarget"));
        let quality = pod.pointer("/status/qosClass").cloned().unwrap_or(Value::Null);
        let mut status = json!({
            "observedGeneration": generation, "phase": "Running", "conditions": conditions,
            "hostIP": host, "hostIPs": [{"ip": host}], "podIP": address, "podIPs": [{"ip": address}],
            "startTime": now, "containerStatuses": containers, "qosClass": quality, "resources": {},
        });
        if !inits.is_empty() {
            json::put(&mut status, &["initContainerStatuses"], inits);
        }
        json::put(pod, &["status"], status);
    })?;
    for container in json::list(&running, "/spec/containers") {
        let field = format!("spec.containers{{{}}}", json::text(container, "/name"));
        let image = json::text(container, "/image");
        let pulled = format!(
            "Container image \"{image}\" already present on machine and can be accessed by the pod"
        );
        for (reason, message) in [
            ("Pulled", pulled.as_str()),
            ("Created", "Container created"),
            ("Started", "Container started"),
        ] {
            tell(
                state,
                &running,
                &field,
                false,
                reason,
                message,
                teller(&running),
            );
        }
    }
    Ok(())
}

/// A running container, or an init container that is done.
fn container_status(pod: &Value, container: &Value, main: bool) -> Value {
    let id = format!("docker://{}", random_id());
    let now = clock::now();
    let is_init = json::list(pod, "/spec/initContainers").contains(container);
    let ephemeral = json::list(pod, "/spec/ephemeralContainers").contains(container);
    let state = if is_init {
        json!({"terminated": {"exitCode": 0, "reason": "Completed", "startedAt": now, "finishedAt": now, "containerID": id}})
    } else {
        json!({"running": {"startedAt": now}})
    };
    let mut status = json!({
        "name": json::text(container, "/name"), "state": state, "lastState": {},
        "ready": main || is_init, "restartCount": 0, "image": json::text(container, "/image"),
        "imageID": image_id(json::text(container, "/image")), "containerID": id, "resources": {},
    });
    if !ephemeral {
        json::put(&mut status, &["started"], !is_init);
        let mounts: Vec<Value> = json::list(container, "/volumeMounts")
            .iter()
            .map(|mount| {
                let mut shown = mount.clone();
                if json::truth(mount, "/readOnly") {
                    json::put(&mut shown, &["recursiveReadOnly"], "Disabled");
                }
                shown
            })
            .collect();
        if !mounts.is_empty() {
            json::put(&mut status, &["volumeMounts"], mounts);
        }
    }
    status
}

/// One image has one id, on all nodes.
fn image_id(image: &str) -> String {
    let digest = Sha256::digest(image.as_bytes());
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("docker://sha256:{hex}")
}

fn end_later(core: &Arc<Core>, pod: &Object, termination: Duration) {
    let grace = json::number(pod, "/metadata/deletionGracePeriodSeconds").unwrap_or(0);
    let grace = Duration::from_secs(u64::try_from(grace).unwrap_or(0));
    let (core, pod) = (core.clone(), pod.clone());
    if json::text(&pod, "/status/phase") == "Failed" {
        // Its containers are dead already: only a finalizer keeps it.
        tolerate("ended pod", core.shared.with(|state| end(state, &pod)));
        return;
    }
    tokio::spawn(async move {
        tokio::time::sleep(termination.min(grace)).await;
        tolerate(
            "terminating pod",
            core.shared.with(|state| end(state, &pod)),
        );
    });
}

/// Kills the containers, then lets the object go unless a finalizer keeps it.
fn end(state: &mut State, pod: &Object) -> Outcome<()> {
    let current = state
        .store
        .get("pods", json::namespace(pod), json::name(pod));
    let Some(mut pod) = current.filter(|current| json::uid(current) == json::uid(pod)) else {
        return Ok(());
    };
    if !super::owned::finished(&pod) {
        for container in json::list(&pod, "/spec/containers") {
            let name = json::text(container, "/name");
            let field = format!("spec.containers{{{name}}}");
            tell(
                state,
                &pod,
                &field,
                false,
                "Killing",
                &format!("Stopping container {name}"),
                teller(&pod),
            );
        }
        pod = state.change("pods", &pod, "status", MANAGER, fail)?;
    }
    if json::list(&pod, "/metadata/finalizers").is_empty() {
        let by = By::kubelet(json::text(&pod, "/spec/nodeName"));
        state.discard_as("pods", &pod, &DeleteOptions::now(), &by)?;
    }
    Ok(())
}

/// The status of a pod whose containers were killed.
fn fail(pod: &mut Value) {
    let now = clock::now();
    json::put(pod, &["status", "phase"], "Failed");
    observe_generation(pod);
    for condition in json::list_mut(pod, "/status/conditions")
        .into_iter()
        .flatten()
    {
        if matches!(
            json::text(condition, "/type"),
            "Ready" | "ContainersReady" | "PodReadyToStartContainers"
        ) {
            json::put(condition, &["status"], "False");
            json::put(condition, &["lastTransitionTime"], now.as_str());
            if json::text(condition, "/type") != "PodReadyToStartContainers" {
                json::put(condition, &["reason"], "PodFailed");
            }
        }
    }
    for list in ["containerStatuses", "ephemeralContainerStatuses"] {
        for status in json::list_mut(pod, &format!("/status/{list}"))
            .into_iter()
            .flatten()
        {
            let started = json::text(status, "/state/running/startedAt").to_owned();
            let id = json::text(status, "/containerID").to_owned();
            json::put(
                status,
                &["state"],
                json!({"terminated": {"exitCode": 137, "reason": "Error", "startedAt": started,
                                      "finishedAt": now, "containerID": id}}),
            );
            json::put(status, &["ready"], false);
            json::put(status, &["started"], false);
        }
    }
}
