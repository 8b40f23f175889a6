//! What the API server fills in and checks for each built-in kind.

pub(crate) mod meta;
pub(crate) mod pod;
pub(crate) mod pod_certificate;
mod small;
mod workload;

use serde_json::{Value, json};

use crate::admission;
use crate::json;
use crate::refusal::{FieldError, Outcome};
use crate::registry::Resource;
use crate::state::State;

pub(crate) use small::{event_as_new, prepare_event as event_as_stored};

/// Defaults, and what a create sets or drops.
pub(crate) fn prepare_create(
    state: &mut State,
    resource: &Resource,
    object: &mut Value,
) -> Outcome<()> {
    strip_nulls(object);
    match &*resource.table {
        "pods" => pod::prepare_create(state, object)?,
        "deployments.apps"
        | "replicasets.apps"
        | "statefulsets.apps"
        | "daemonsets.apps"
        | "jobs.batch"
        | "cronjobs.batch"
        | "replicationcontrollers" => workload::prepare_create(resource, object),
        "services" => small::prepare_service(state, object, None),
        "namespaces" => {
            let name = json::name(object).to_owned();
            json::put(
                object,
                &["metadata", "labels", "kubernetes.io/metadata.name"],
                name,
            );
            json::put(object, &["spec"], json!({"finalizers": ["kubernetes"]}));
            json::put(object, &["status"], json!({"phase": "Active"}));
        }
        "nodes" => json::fill(object, &["spec"], json!({})),
        "poddisruptionbudgets.policy" => {
            json::put(
                object,
                &["status"],
                json!({"disruptionsAllowed": 0, "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0}),
            );
        }
        "customresourcedefinitions.apiextensions.k8s.io" => crate::crd::prepare_definition(object)?,
        "networkpolicies.networking.k8s.io" => small::prepare_policy(object),
        "secrets" => small::prepare_secret(object),
        pod_certificate::REQUESTS => pod_certificate::prepare(object),
        "validatingadmissionpolicies.admissionregistration.k8s.io"
        | "validatingadmissionpolicybindings.admissionregistration.k8s.io" => {
            admission::prepare(resource, object);
        }
        "events" => small::prepare_event(object),
        _ => {}
    }
    small::check_times(resource, object, false)
}

/// Defaults of an update, and what it keeps from the stored object.
pub(crate) fn prepare_update(
    state: &mut State,
    resource: &Resource,
    subresource: &str,
    old: &Value,
    new: &mut Value,
) -> Outcome<()> {
    strip_nulls(new);
    match &*resource.table {
        "pods" if subresource != "status" => pod::default_pod(new),
        "deployments.apps"
        | "replicasets.apps"
        | "statefulsets.apps"
        | "daemonsets.apps"
        | "jobs.batch"
        | "cronjobs.batch"
        | "replicationcontrollers"
            if subresource != "status" =>
        {
            workload::default_spec(resource, new);
        }
        "services" => small::prepare_service(state, new, Some(old)),
        "nodes" => {
            json::fill(new, &["spec"], json!({}));
            // Go leaves false out.
            if new.pointer("/spec/unschedulable") == Some(&json!(false)) {
                json::take(new, &["spec", "unschedulable"]);
            }
            if json::list(new, "/spec/taints").is_empty() {
                json::take(new, &["spec", "taints"]);
            }
        }
        "customresourcedefinitions.apiextensions.k8s.io" if subresource != "status" => {
            crate::crd::check_definition(new)?;
        }
        "networkpolicies.networking.k8s.io" => small::prepare_policy(new),
        "secrets" => small::prepare_secret(new),
        "validatingadmissionpolicies.admissionregistration.k8s.io"
        | "validatingadmissionpolicybindings.admissionregistration.k8s.io" => {
            admission::prepare(resource, new);
        }
        _ => {}
    }
    small::check_times(resource, new, true)
}

/// Field errors of the object; `old` (with the subresource it came through) for an update.
pub(crate) fn validate(
    resource: &Resource,
    object: &Value,
    old: Option<(&Value, &str)>,
) -> Vec<FieldError> {
    match &*resource.table {
        "pods" => pod::validate(object, old),
        "deployments.apps" | "replicasets.apps" | "statefulsets.apps" | "daemonsets.apps"
        | "jobs.batch" | "cronjobs.batch" => {
            workload::validate(resource, object, old.map(|(old, _)| old))
        }
        "nodes" => small::validate_node(object),
        "networkpolicies.networking.k8s.io" => small::validate_policy(object),
        "leases.coordination.k8s.io" => small::validate_lease(object),
        "services" => small::validate_service(object),
        "poddisruptionbudgets.policy" => small::validate_budget(object),
        admission::POLICIES => admission::validate(object),
        "rolebindings.rbac.authorization.k8s.io"
        | "clusterrolebindings.rbac.authorization.k8s.io" => {
            small::validate_binding(object, old.map(|(old, _)| old))
        }
        pod_certificate::REQUESTS => pod_certificate::validate(object, old.map(|(old, _)| old)),
        "configmaps" | "secrets" => small::validate_immutable(object, old.map(|(old, _)| old)),
        _ => Vec::new(),
    }
}

/// A null stands for an absent field; Go's types don't keep it.
fn strip_nulls(object: &mut Value) {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(map) => {
                map.retain(|_, value| !value.is_null());
                map.values_mut().for_each(strip);
            }
            Value::Array(list) => list.iter_mut().for_each(strip),
            _ => {}
        }
    }
    for (field, value) in object.as_object_mut().into_iter().flatten() {
        // Some status fields are printed as null on purpose (`lastProbeTime`).
        if field != "status" {
            strip(value);
        }
    }
}
