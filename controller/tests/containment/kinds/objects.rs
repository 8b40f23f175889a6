//! The objects that the rows of the table are made of. Every pod is labelled `app: s`, `tier: web`, `team: red`.

use serde_json::{Value, json};

use super::super::world::container;

/// Stands for the uid of the object made before.
pub(super) const LAST: &str = "last";

fn labels() -> Value {
    json!({ "app": "s", "tier": "web", "team": "red" })
}

fn pod_spec(more: Value) -> Value {
    let mut spec = json!({ "terminationGracePeriodSeconds": 1, "containers": [container("c")] });
    spec.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    spec
}

pub(super) fn bare(spec: Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "s", "labels": labels() }, "spec": pod_spec(spec) })
}

pub(super) fn owner(kind: &str, spec: Value) -> Value {
    let mut all = json!({
        "selector": { "matchLabels": { "app": "s" } },
        "template": { "metadata": { "labels": labels() }, "spec": pod_spec(json!({})) },
    });
    all.as_object_mut()
        .unwrap()
        .extend(spec.as_object().unwrap().clone());
    json!({ "apiVersion": "apps/v1", "kind": kind, "metadata": { "name": "s" }, "spec": all })
}

pub(super) fn on_node_network(kind: &str) -> Value {
    let mut owner = owner(kind, json!({}));
    owner["spec"]["template"]["spec"]["hostNetwork"] = json!(true);
    owner
}

pub(super) fn slow_to_end(kind: &str) -> Value {
    let mut owner = owner(kind, json!({ "replicas": 1 }));
    owner["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = json!(60);
    owner
}

pub(super) fn selected_by(expressions: Value) -> Value {
    owner(
        "ReplicaSet",
        json!({ "replicas": 1, "selector": { "matchExpressions": expressions } }),
    )
}

/// It wants whatever has no label `app`.
pub(super) fn grabber() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": { "name": "grabber" },
        "spec": {
            "replicas": 0, "selector": { "matchExpressions": [{ "key": "app", "operator": "DoesNotExist" }] },
            "template": { "metadata": { "labels": { "of": "grabber" } }, "spec": pod_spec(json!({})) },
        },
    })
}

pub(super) fn job(spec: Value) -> Value {
    let template = json!({ "metadata": { "labels": labels() }, "spec": pod_spec(json!({ "restartPolicy": "Never" })) });
    let mut all = json!({ "backoffLimit": 3, "template": template });
    all.as_object_mut()
        .unwrap()
        .extend(spec.as_object().unwrap().clone());
    json!({ "apiVersion": "batch/v1", "kind": "Job", "metadata": { "name": "s" }, "spec": all })
}

pub(super) fn cron_job() -> Value {
    json!({
        "apiVersion": "batch/v1", "kind": "CronJob", "metadata": { "name": "nightly" },
        "spec": { "schedule": "0 0 1 1 *", "suspend": true, "jobTemplate": job(json!({})) },
    })
}

/// As the CronJob, or `kubectl create job --from`, makes it.
pub(super) fn job_of_cron_job() -> Value {
    let mut job = job(json!({}));
    job["metadata"]["ownerReferences"] = json!([{ "apiVersion": "batch/v1", "kind": "CronJob", "name": "nightly", "uid": LAST, "controller": true }]);
    job
}

pub(super) fn service(name: &str, selector: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": name },
        "spec": { "selector": selector, "ports": [{ "port": 80 }] },
    })
}

/// Of a static pod, whose uid at its kubelet is this.
pub(super) fn mirror(manifest: &str) -> Value {
    let mut pod = bare(json!({}));
    pod["metadata"]["annotations"] =
        json!({ "kubernetes.io/config.hash": manifest, "kubernetes.io/config.mirror": manifest });
    pod["metadata"]["ownerReferences"] = json!([{ "apiVersion": "v1", "kind": "Node", "name": "n", "uid": "0", "controller": true }]);
    pod
}

pub(super) fn foreign() -> Value {
    let mut pod = bare(json!({}));
    pod["metadata"]["ownerReferences"] = json!([{ "apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout", "name": "s", "uid": "1", "controller": true }]);
    pod
}

/// It allows whatever has the label `status`, which the suspect gets.
pub(crate) fn allowing() -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": { "name": "allowing" },
        "spec": {
            "podSelector": { "matchExpressions": [{ "key": "status", "operator": "Exists" }] }, "ingress": [{}],
        },
    })
}
