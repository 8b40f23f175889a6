//! The columns `kubectl get` shows of the built-in kinds.

use serde_json::{Value, json};

use crate::clock;
use crate::json;
use crate::selector::Selector;

/// Name, type, priority (1: only with `-o wide`). The name column comes before these.
type Columns = &'static [(&'static str, &'static str, i32)];

const PODS: Columns = &[
    ("Ready", "string", 0),
    ("Status", "string", 0),
    ("Restarts", "string", 0),
    ("Age", "string", 0),
    ("IP", "string", 1),
    ("Node", "string", 1),
    ("Nominated Node", "string", 1),
    ("Readiness Gates", "string", 1),
];
const NODES: Columns = &[
    ("Status", "string", 0),
    ("Roles", "string", 0),
    ("Age", "string", 0),
    ("Version", "string", 0),
    ("Internal-IP", "string", 1),
    ("External-IP", "string", 1),
    ("OS-Image", "string", 1),
    ("Kernel-Version", "string", 1),
    ("Container-Runtime", "string", 1),
];
const DEPLOYMENTS: Columns = &[
    ("Ready", "string", 0),
    ("Up-to-date", "string", 0),
    ("Available", "string", 0),
    ("Age", "string", 0),
    ("Containers", "string", 1),
    ("Images", "string", 1),
    ("Selector", "string", 1),
];
const REPLICA_SETS: Columns = &[
    ("Desired", "integer", 0),
    ("Current", "integer", 0),
    ("Ready", "integer", 0),
    ("Age", "string", 0),
    ("Containers", "string", 1),
    ("Images", "string", 1),
    ("Selector", "string", 1),
];
const STATEFUL_SETS: Columns = &[
    ("Ready", "string", 0),
    ("Age", "string", 0),
    ("Containers", "string", 1),
    ("Images", "string", 1),
];
const DAEMON_SETS: Columns = &[
    ("Desired", "integer", 0),
    ("Current", "integer", 0),
    ("Ready", "integer", 0),
    ("Up-to-date", "integer", 0),
    ("Available", "integer", 0),
    ("Node Selector", "string", 0),
    ("Age", "string", 0),
    ("Containers", "string", 1),
    ("Images", "string", 1),
    ("Selector", "string", 1),
];
const JOBS: Columns = &[
    ("Status", "string", 0),
    ("Completions", "string", 0),
    ("Age", "string", 0),
];
const SERVICES: Columns = &[
    ("Type", "string", 0),
    ("Cluster-IP", "string", 0),
    ("External-IP", "string", 0),
    ("Port(s)", "string", 0),
    ("Age", "string", 0),
    ("Selector", "string", 1),
];
const NAMESPACES: Columns = &[("Status", "string", 0), ("Age", "string", 0)];
const EVENTS: Columns = &[
    ("Last Seen", "string", 0),
    ("Type", "string", 0),
    ("Reason", "string", 0),
    ("Object", "string", 0),
    ("Message", "string", 0),
];
const POLICIES: Columns = &[("Pod-Selector", "string", 0), ("Age", "string", 0)];
const BUDGETS: Columns = &[
    ("Min Available", "string", 0),
    ("Max Unavailable", "string", 0),
    ("Allowed Disruptions", "integer", 0),
    ("Age", "string", 0),
];
const LEASES: Columns = &[("Holder", "string", 0), ("Age", "string", 0)];
const DEFINITIONS: Columns = &[("Created At", "date", 0)];
const DATA: Columns = &[("Data", "integer", 0), ("Age", "string", 0)];

/// The columns of a table after the name; empty: only the age is shown.
pub(super) fn of(table: &str) -> Columns {
    match table {
        "pods" => PODS,
        "nodes" => NODES,
        "deployments.apps" => DEPLOYMENTS,
        "replicasets.apps" => REPLICA_SETS,
        "statefulsets.apps" => STATEFUL_SETS,
        "daemonsets.apps" => DAEMON_SETS,
        "jobs.batch" => JOBS,
        "services" => SERVICES,
        "namespaces" => NAMESPACES,
        "events" => EVENTS,
        "networkpolicies.networking.k8s.io" => POLICIES,
        "poddisruptionbudgets.policy" => BUDGETS,
        "leases.coordination.k8s.io" => LEASES,
        "customresourcedefinitions.apiextensions.k8s.io" => DEFINITIONS,
        "configmaps" => DATA,
        _ => &[],
    }
}

/// The cells of these columns.
pub(super) fn cells(table: &str, object: &Value) -> Vec<Value> {
    let age = json!(clock::age(json::text(
        object,
        "/metadata/creationTimestamp"
    )));
    let text = |pointer: &str| or_none(json::text(object, pointer));
    let count = |pointer: &str| json!(json::number(object, pointer).unwrap_or(0));
    let ratio = |a: &str, b: &str| {
        json!(format!(
            "{}/{}",
            json::number(object, a).unwrap_or(0),
            json::number(object, b).unwrap_or(0)
        ))
    };
    match table {
        "pods" => vec![
            json!(ready_containers(object)),
            json!(pod_status(object)),
            json!(restarts(object)),
            age,
            text("/status/podIP"),
            text("/spec/nodeName"),
            text("/status/nominatedNodeName"),
            json!("<none>"),
        ],
        "nodes" => vec![
            json!(node_status(object)),
            json!("<none>"),
            age,
            text("/status/nodeInfo/kubeletVersion"),
            json!(internal_ip(object)),
            json!("<none>"),
            text("/status/nodeInfo/osImage"),
            text("/status/nodeInfo/kernelVersion"),
            text("/status/nodeInfo/containerRuntimeVersion"),
        ],
        "deployments.apps" => {
            let mut cells = vec![
                ratio("/status/readyReplicas", "/spec/replicas"),
                count("/status/updatedReplicas"),
                count("/status/availableReplicas"),
                age,
            ];
            cells.extend(template(object, true));
            cells
        }
        "replicasets.apps" => {
            let mut cells = vec![
                count("/spec/replicas"),
                count("/status/replicas"),
                count("/status/readyReplicas"),
                age,
            ];
            cells.extend(template(object, true));
            cells
        }
        "statefulsets.apps" => {
            let mut cells = vec![ratio("/status/readyReplicas", "/spec/replicas"), age];
            cells.extend(template(object, false));
            cells
        }
        "daemonsets.apps" => {
            let selector =
                Selector::of_map(json::map(object, "/spec/template/spec/nodeSelector")).to_text();
            let mut cells = vec![
                count("/status/desiredNumberScheduled"),
                count("/status/currentNumberScheduled"),
                count("/status/numberReady"),
                count("/status/updatedNumberScheduled"),
                count("/status/numberAvailable"),
                or_none(&selector),
                age,
            ];
            cells.extend(template(object, true));
            cells
        }
        "jobs.batch" => {
            let status = match (
                json::condition(object, "Complete"),
                json::condition(object, "Failed"),
            ) {
                ("True", _) => "Complete",
                (_, "True") => "Failed",
                _ => "Running",
            };
            vec![
                json!(status),
                ratio("/status/succeeded", "/spec/completions"),
                age,
            ]
        }
        "services" => vec![
            text("/spec/type"),
            text("/spec/clusterIP"),
            json!("<none>"),
            json!(ports(object)),
            age,
            or_none(&Selector::of_map(json::map(object, "/spec/selector")).to_text()),
        ],
        "namespaces" => vec![text("/status/phase"), age],
        "events" => {
            let last = [
                "/lastTimestamp",
                "/eventTime",
                "/firstTimestamp",
                "/metadata/creationTimestamp",
            ]
            .into_iter()
            .map(|pointer| json::text(object, pointer))
            .find(|time| !time.is_empty())
            .unwrap_or("");
            let kind = json::text(object, "/involvedObject/kind").to_lowercase();
            vec![
                json!(clock::age(last)),
                text("/type"),
                text("/reason"),
                json!(format!(
                    "{kind}/{}",
                    json::text(object, "/involvedObject/name")
                )),
                text("/message"),
            ]
        }
        "networkpolicies.networking.k8s.io" => {
            let selector =
                Selector::of_object(object.pointer("/spec/podSelector")).unwrap_or_default();
            vec![or_none(&selector.to_text()), age]
        }
        "poddisruptionbudgets.policy" => {
            let limit = |pointer: &str| match object.pointer(pointer) {
                Some(Value::String(text)) => json!(text),
                Some(value) => json!(value.to_string()),
                None => json!("N/A"),
            };
            vec![
                limit("/spec/minAvailable"),
                limit("/spec/maxUnavailable"),
                count("/status/disruptionsAllowed"),
                age,
            ]
        }
        "leases.coordination.k8s.io" => {
            vec![json!(json::text(object, "/spec/holderIdentity")), age]
        }
        "customresourcedefinitions.apiextensions.k8s.io" => {
            vec![json!(json::text(object, "/metadata/creationTimestamp"))]
        }
        "configmaps" => vec![
            json!(json::map(object, "/data").map_or(0, |data| data.len())),
            age,
        ],
        _ => Vec::new(),
    }
}

fn or_none(text: &str) -> Value {
    json!(if text.is_empty() { "<none>" } else { text })
}

fn template(object: &Value, selector: bool) -> Vec<Value> {
    let all = |field: &str| {
        let found = json::list(object, "/spec/template/spec/containers")
            .iter()
            .map(|c| json::text(c, field));
        json!(found.collect::<Vec<_>>().join(","))
    };
    let mut cells = vec![all("/name"), all("/image")];
    if selector {
        cells.push(or_none(
            &Selector::of_object(object.pointer("/spec/selector"))
                .unwrap_or_default()
                .to_text(),
        ));
    }
    cells
}

fn ready_containers(pod: &Value) -> String {
    let ready = json::list(pod, "/status/containerStatuses")
        .iter()
        .filter(|c| json::truth(c, "/ready"))
        .count();
    format!("{ready}/{}", json::list(pod, "/spec/containers").len())
}

fn restarts(pod: &Value) -> String {
    let statuses = json::list(pod, "/status/containerStatuses").iter();
    statuses
        .filter_map(|c| json::number(c, "/restartCount"))
        .sum::<i64>()
        .to_string()
}

fn pod_status(pod: &Value) -> String {
    let mut status = json::text(pod, "/status/phase").to_owned();
    if !json::text(pod, "/status/reason").is_empty() {
        json::text(pod, "/status/reason").clone_into(&mut status);
    }
    for container in json::list(pod, "/status/containerStatuses") {
        for pointer in ["/state/waiting/reason", "/state/terminated/reason"] {
            if !json::text(container, pointer).is_empty() {
                json::text(container, pointer).clone_into(&mut status);
            }
        }
    }
    if json::terminating(pod) {
        "Terminating".to_owned()
    } else {
        status
    }
}

fn node_status(node: &Value) -> String {
    let ready = if json::condition(node, "Ready") == "True" {
        "Ready"
    } else {
        "NotReady"
    };
    let cordoned = if json::truth(node, "/spec/unschedulable") {
        ",SchedulingDisabled"
    } else {
        ""
    };
    format!("{ready}{cordoned}")
}

fn internal_ip(node: &Value) -> String {
    json::list(node, "/status/addresses")
        .iter()
        .find(|address| json::text(address, "/type") == "InternalIP")
        .map_or("<none>", |address| json::text(address, "/address"))
        .to_owned()
}

fn ports(service: &Value) -> String {
    let ports = json::list(service, "/spec/ports").iter().map(|port| {
        format!(
            "{}/{}",
            json::number(port, "/port").unwrap_or(0),
            json::text(port, "/protocol")
        )
    });
    ports.collect::<Vec<_>>().join(",")
}
