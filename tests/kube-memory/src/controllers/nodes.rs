//! Nodes: their registration, and the taint that follows `spec.unschedulable`.

use serde_json::{Value, json};

use super::scheduler::tolerates;
use super::tolerate;
use crate::clock;
use crate::json;
use crate::refusal::Outcome;
use crate::state::{By, DeleteOptions, State};

const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// A ready node, as a kubelet registers it.
pub(super) fn register(state: &mut State, name: &str, address: &str, kubelet: &str) -> Outcome<()> {
    let now = clock::now();
    let condition = |kind: &str, status: &str, reason: &str, message: &str| {
        json!({"type": kind, "status": status, "lastHeartbeatTime": now, "lastTransitionTime": now,
               "reason": reason, "message": message})
    };
    let resources =
        json!({"cpu": "4", "ephemeral-storage": "100Gi", "memory": "16Gi", "pods": "110"});
    let node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {
                "beta.kubernetes.io/arch": "amd64", "beta.kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64",
                "kubernetes.io/hostname": name, "kubernetes.io/os": "linux",
            },
            "annotations": {"kube-memory/kubelet": kubelet, "node.alpha.kubernetes.io/ttl": "0",
                            "volumes.kubernetes.io/controller-managed-attach-detach": "true"},
        },
        "spec": {},
        "status": {
            "capacity": resources, "allocatable": resources,
            "conditions": [
                condition("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
                condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
                condition("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
                condition("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
            ],
            "addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
            "nodeInfo": {
                "machineID": uuid::Uuid::new_v4().simple().to_string(),
                "systemUUID": uuid::Uuid::new_v4().to_string(), "bootID": uuid::Uuid::new_v4().to_string(),
                "kernelVersion": "6.1.0", "osImage": "Debian GNU/Linux 12 (bookworm)",
                "containerRuntimeVersion": "docker://20.10.24", "kubeletVersion": "v1.36.0",
                "kubeProxyVersion": "", "operatingSystem": "linux", "architecture": "amd64",
            },
        },
    });
    let resource = state.resource("nodes")?;
    state
        .create(&resource, "", node, &mut By::controller("kubelet"))
        .map(drop)
}

pub(super) fn sync(state: &mut State) -> Outcome<()> {
    for node in state.store.list("nodes", "") {
        let cordoned = json::truth(&node, "/spec/unschedulable");
        let is_taint = |taint: &Value| {
            json::text(taint, "/key") == UNSCHEDULABLE
                && json::text(taint, "/effect") == "NoSchedule"
        };
        let tainted = json::list(&node, "/spec/taints").iter().any(is_taint);
        if cordoned != tainted {
            let changed = state.change("nodes", &node, "", "kube-controller-manager", |node| {
                if let Some(taints) = json::entry_list(node, &["spec", "taints"]) {
                    if cordoned {
                        taints.push(json!({"key": UNSCHEDULABLE, "effect": "NoSchedule", "timeAdded": clock::now()}));
                    } else {
                        taints.retain(|taint| !is_taint(taint));
                    }
                }
            });
            tolerate("taint", changed);
        }
        drain_no_execute(state, &node);
    }
    Ok(())
}

/// Deletes pods that don't tolerate a NoExecute taint. `tolerationSeconds` is taken as for ever.
fn drain_no_execute(state: &mut State, node: &Value) {
    let taints: Vec<&Value> = json::list(node, "/spec/taints")
        .iter()
        .filter(|taint| json::text(taint, "/effect") == "NoExecute")
        .collect();
    if taints.is_empty() {
        return;
    }
    for pod in state.store.list("pods", "") {
        let here =
            json::text(&pod, "/spec/nodeName") == json::name(node) && !json::terminating(&pod);
        if here && !taints.iter().all(|taint| tolerates(&pod, taint)) {
            tolerate(
                "pod on a tainted node",
                state.discard("pods", &pod, &DeleteOptions::default()),
            );
        }
    }
}
