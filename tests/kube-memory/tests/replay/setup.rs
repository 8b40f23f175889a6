//! The unrecorded parts of the scenarios: what was there before, and what happened between exchanges.

use serde_json::{Value, json};

use super::compare::Mapping;
use super::run::{Answer, Run};

fn template(labels: Value, spec: Value) -> Value {
    let mut all = json!({
        "terminationGracePeriodSeconds": 1,
        "containers": [{"name": "c", "image": "busybox:1", "imagePullPolicy": "IfNotPresent",
                        "command": ["/bin/sleep", "100000"]}],
    });
    for (key, value) in spec.as_object().into_iter().flatten() {
        all[key] = value.clone();
    }
    json!({"metadata": {"labels": labels}, "spec": all})
}

fn on(node: &str) -> Value {
    json!({"nodeSelector": {"kubernetes.io/hostname": node}})
}

async fn pod(run: &Run, namespace: &str, name: &str, labels: Value, spec: Value) {
    let mut pod = template(labels, spec);
    pod["metadata"]["name"] = name.into();
    run.ask("POST", &format!("/api/v1/namespaces/{namespace}/pods"), pod)
        .await;
}

async fn deployment(run: &Run, namespace: &str, name: &str, label: &str, spec: Value) {
    let labels = json!({"app": label});
    let body = json!({"metadata": {"name": name},
                      "spec": {"replicas": 2, "selector": {"matchLabels": labels}, "template": template(labels, spec)}});
    run.ask(
        "POST",
        &format!("/apis/apps/v1/namespaces/{namespace}/deployments"),
        body,
    )
    .await;
}

/// Maps recorded pod names (and uids) to the live pods of a label, on a node if one is given.
async fn map_pods(
    run: &mut Run,
    namespace: &str,
    label: &str,
    node: &str,
    recorded: &[(&str, &str)],
) {
    run.settle().await;
    let list = run
        .ask(
            "GET",
            &format!("/api/v1/namespaces/{namespace}/pods?labelSelector=app%3D{label}"),
            Value::Null,
        )
        .await;
    let found = list["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|pod| node.is_empty() || pod["spec"]["nodeName"] == node);
    for (pod, (name, uid)) in found.zip(recorded) {
        let metadata = &pod["metadata"];
        run.mapping.learn(name, metadata["name"].as_str().unwrap());
        if !uid.is_empty() {
            run.mapping.learn(uid, metadata["uid"].as_str().unwrap());
        }
        if let (Some((old, _)), Some((new, _))) = (
            name.rsplit_once('-'),
            metadata["name"].as_str().unwrap().rsplit_once('-'),
        ) {
            run.mapping.learn(old, new);
        }
    }
}

async fn set_node(run: &Run, name: &str, patch: Value) {
    run.ask("PATCH", &format!("/api/v1/nodes/{name}"), patch)
        .await;
}

/// What was there before the first exchange.
pub(crate) async fn prepare(run: &mut Run, name: &str) {
    match name {
        "02-guard-failures" => {
            pod(
                run,
                "rec-02",
                "suspect",
                json!({"app": "nginx"}),
                on("k8s-worker2"),
            )
            .await
        }
        "05-eviction" => {
            deployment(run, "rec-05", "web", "nginx", on("k8s-worker2")).await;
            map_pods(
                run,
                "rec-05",
                "nginx",
                "",
                &[
                    (
                        "web-65fbfb646d-8mb8c",
                        "5dd1caee-2598-43c2-8eeb-9b99e5bf58f5",
                    ),
                    (
                        "web-65fbfb646d-hzd7t",
                        "39214ed2-1d49-4de4-a580-1ae6eb11dcf0",
                    ),
                ],
            )
            .await;
        }
        "07-daemonset" => {
            set_node(run, "k8s-worker1", json!({"spec": {"unschedulable": true}})).await
        }
        "15-admission-policy" => {
            let labels = json!({"app": "bare", "status": "suspectpod"});
            for name in ["s1", "s2", "s3"] {
                pod(run, "rec-15", name, labels.clone(), on("k8s-worker2")).await;
            }
            deployment(run, "rec-15", "web", "nginx", on("k8s-worker2")).await;
            let pods = [
                (
                    "web-65fbfb646d-smrmp",
                    "9763b9f1-64ff-4714-ae28-a0646698dee9",
                ),
                (
                    "web-65fbfb646d-x6p8k",
                    "bf49630f-f861-4d88-9ffa-e782e2b9ade9",
                ),
            ];
            map_pods(run, "rec-15", "nginx", "", &pods).await;
        }
        "16-liveness-restart" | "14-access" => {}
        _ => {}
    }
    run.settle().await;
}

/// What happened, unrecorded, just before an exchange.
pub(crate) async fn before(run: &mut Run, name: &str, at: usize) {
    match (name, at) {
        ("02-guard-failures", 26) => {
            let patch = json!({"metadata": {"finalizers": ["impound.dev/hold"]}});
            run.ask("PATCH", "/api/v1/namespaces/rec-02/pods/suspect", patch)
                .await;
        }
        ("04-node-cordon", 2) => {
            // The recorded node's status changes by itself; any change makes the guard stale.
            let node = run
                .ask("GET", "/api/v1/nodes/k8s-worker1", Value::Null)
                .await;
            assert!(node["metadata"]["labels"]["impound.dev/state"] == "suspect");
        }
        // Between these the taints were put back to the unschedulable one alone.
        ("04-node-cordon", 8 | 10) => {
            let patch = json!({"spec": {"taints": null}});
            set_node(run, "k8s-worker1", patch).await;
            run.settle().await;
        }
        ("04-node-cordon", 12) => {
            pod(
                run,
                "rec-04",
                "pending",
                json!({"app": "nginx"}),
                on("k8s-worker1"),
            )
            .await;
        }
        ("05-eviction", 10) => {
            let budget = json!({"metadata": {"name": "two"},
                                "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "nginx"}}}});
            run.ask(
                "POST",
                "/apis/policy/v1/namespaces/rec-05/poddisruptionbudgets",
                budget,
            )
            .await;
        }
        ("05-eviction", 11) => {
            run.ask(
                "DELETE",
                "/apis/policy/v1/namespaces/rec-05/poddisruptionbudgets/two",
                Value::Null,
            )
            .await;
        }
        ("05-eviction", 14) => {
            let affinity = json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In",
                                                             "values": ["k8s-worker1", "k8s-worker3"]}]}]}}}});
            deployment(run, "rec-05", "free", "free", affinity).await;
            let evicted = (
                "free-776fff45df-5shhf",
                "bbdfc607-c147-4a41-9846-a8b2fdf53941",
            );
            map_pods(run, "rec-05", "free", "k8s-worker1", &[evicted]).await;
        }
        ("05-eviction", 23) => {
            pod(
                run,
                "rec-05",
                "run",
                json!({"app": "run"}),
                on("k8s-worker2"),
            )
            .await;
            run.settle().await;
            let found = run
                .ask("GET", "/api/v1/namespaces/rec-05/pods/run", Value::Null)
                .await;
            run.mapping.learn(
                "e2317121-d7ed-4dc0-b453-a64481595925",
                found["metadata"]["uid"].as_str().unwrap(),
            );
        }
        ("07-daemonset", 1) => {
            map_pods(
                run,
                "rec-07",
                "nginx",
                "k8s-worker1",
                &[("agent-rxw2m", "1d388860-71d5-4b0e-91ab-84ece8474e46")],
            )
            .await;
        }
        ("08-job", 1) => {
            map_pods(
                run,
                "rec-08",
                "nginx",
                "",
                &[("batch-6v749", "e6e7a779-3eaa-44fa-997f-cae89a120185")],
            )
            .await;
        }
        ("15-admission-policy", 6) => {
            let path =
                "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/impound-hold-15";
            let policy = run.ask("GET", path, Value::Null).await;
            let mut validations = policy["spec"]["validations"].clone();
            validations[0]["reason"] = json!("Forbidden");
            let patch = json!({"spec": {"validations": validations}});
            run.ask("PATCH", path, patch).await;
        }
        ("15-admission-policy", 20) => {
            let binding = json!({"metadata": {"name": "impound-hold-15-ev"}, "spec": {
                "policyName": "impound-hold-15-ev", "validationActions": ["Deny"], "matchResources": {
                    "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "rec-15"}}}}});
            let path = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings";
            run.ask("POST", path, binding).await;
        }
        ("11-watch", 12) => {
            pod(
                run,
                "rec-11",
                "y",
                json!({"app": "nginx"}),
                on("k8s-worker2"),
            )
            .await
        }
        _ => {}
    }
}

/// Whether to wait for the controllers first. Not where the recording followed at once.
pub(crate) fn settles(name: &str, at: usize) -> bool {
    !matches!((name, at), ("05-eviction", 6 | 16) | ("09-bare-pod", 13))
}

/// Checks that stand in for a comparison that isn't possible.
pub(crate) fn after(
    name: &str,
    at: usize,
    answer: &Answer,
    mapping: &Mapping,
    differences: &mut Vec<String>,
) {
    let body = answer.json();
    let message = body["message"].as_str().unwrap_or("");
    match (name, at) {
        ("01-deployment-release", 8) => {
            let suspect = mapping.translate("web-65fbfb646d-kv7lk");
            if answer.text.contains(&suspect) {
                differences.push(format!("{suspect} is still in the slice"));
            }
        }
        ("01-deployment-release", 17) => {
            let items = body["items"].as_array().cloned().unwrap_or_default();
            let going = items
                .iter()
                .filter(|pod| !pod["metadata"]["deletionTimestamp"].is_null())
                .count();
            let suspect = mapping.translate("web-65fbfb646d-kv7lk");
            let spared = items.iter().any(|pod| {
                pod["metadata"]["name"] == suspect && pod["metadata"]["deletionTimestamp"].is_null()
            });
            if going != 1 || !spared {
                differences.push(format!("{going} pods are terminating, not one"));
            }
        }
        ("09-bare-pod", 6 | 7) => {
            let start = "Pod \"bare\" is invalid: spec: Forbidden: pod updates may not change fields other than \
                         `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,\
                         `spec.tolerations` (only additions to existing tolerations),\
                         `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously \
                         negative)\n@@ ";
            let cause = &body["details"]["causes"][0];
            if !message.starts_with(start)
                || cause["reason"] != "FieldValueForbidden"
                || cause["field"] != "spec"
            {
                differences.push(format!("message: {message}"));
            }
        }
        ("12-lease", 8 | 9) => {
            let end = if at == 8 {
                "parsing time \"2026-01-01T00:00:00Z\" as \"2006-01-02T15:04:05.000000Z07:00\": cannot parse \"Z\" as \".000000\""
            } else {
                "parsing time \"yesterday\" as \"2006-01-02T15:04:05.000000Z07:00\": cannot parse \"yesterday\" as \"2006\""
            };
            let cause = &body["details"]["causes"][0];
            let begins = message.starts_with(" \"\" is invalid: patch: Invalid value: \"{");
            if !begins || !message.ends_with(end) || cause["field"] != "patch" {
                differences.push(format!("message: {message}"));
            }
        }
        _ => {}
    }
}
