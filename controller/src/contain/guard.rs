//! The evidence guard: admission policies that keep everybody but the controller from destroying or
//! freeing what is quarantined, and the check whether the cluster has them.
//!
//! They are installed by an administrator (`deploy/admission`, printed by `impound-controller
//! admission`); the controller has no right to install them. What an admission policy can't stop:
//! whoever may delete the policies themselves, the node (kubelet, runtime, its eviction under
//! pressure, a failing liveness probe), `exec` through `nodes/proxy`, and access to etcd.

mod standing;

pub use standing::{Known, Standing};

use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use kube::Client;
use kube::api::{Api, PostParams};
use serde_json::{Value, json};

use super::settings::{
    DENY_ALL_LABEL, FINALIZER, PART_OF_LABEL, POD_ANNOTATIONS, QUARANTINE_LABEL, Settings,
};
use crate::kubernetes::{ApiError, from_kube};

/// User of the controller in the manifests of this repository.
pub const CONTROLLER: &str = "system:serviceaccount:impound:impound-controller";

/// Name and beginning of the condition that lets the controller through.
const NOT_BY_US: &str = "not-by-the-controller";
const NOT_USER: &str = "request.userInfo.username != '";

/// Who deletes what belongs to something that is deleted, and lets go of what is to stay: the garbage collector, with
/// credentials of its own or those of the whole controller manager.
const COLLECTORS: [&str; 2] = [
    "system:serviceaccount:kube-system:generic-garbage-collector",
    "system:kube-controller-manager",
];

const GROUP: &str = "admissionregistration.k8s.io";

/// What the file that everybody should install holds: each policy with its binding. `user` is the
/// controller's user name; it must be free of quotes and backslashes ([`user_name`]).
#[must_use]
pub fn guard(user: &str, settings: &Settings) -> Vec<Value> {
    [
        suspects(user),
        evictions(user),
        objects(user, settings),
        records(user),
    ]
    .concat()
}

/// What keeps people out of quarantined pods as well: installed by those who don't look into a suspect
/// with `kubectl exec`, which changes the evidence.
#[must_use]
pub fn access(user: &str) -> Vec<Value> {
    let connections = json!({
        "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CONNECT"], "scope": "*",
        "resources": ["pods/exec", "pods/attach", "pods/portforward", "pods/proxy"],
    });
    let denial = json!([{
        "expression": "!variables.inForce || request.name != params.spec.pod",
        "message": "the pod is quarantined and its containers are evidence: nobody enters them",
        "reason": "Forbidden",
    }]);
    with_quarantines("impound-access", user, json!([connections]), &denial)
}

/// The name under which the API server knows this process.
///
/// # Errors
/// If the API does not answer.
pub async fn own_user(client: &Client) -> Result<String, ApiError> {
    let review = Api::<SelfSubjectReview>::all(client.clone())
        .create(&PostParams::default(), &SelfSubjectReview::default())
        .await
        .map_err(|error| from_kube("POST", "selfsubjectreviews", error))?;
    let user = review.status.and_then(|status| status.user_info);
    Ok(user.and_then(|user| user.username).unwrap_or_default())
}

/// A user name that can be written into the policies.
///
/// # Errors
/// In words, if it can't.
pub fn user_name(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains(['\'', '"', '\\']) || text.contains(char::is_control) {
        return Err(format!(
            "expected a user name without quotes and backslashes, e.g. {CONTROLLER}, came {text:?}"
        ));
    }
    Ok(text.to_owned())
}

/// Pods with the quarantine label: not deleted but by the kubelet that ends a granted deletion, and
/// their labels are the controller's. The label itself is reserved: it makes a pod undeletable.
///
/// Nothing of their spec is changed, by whatever sub-resource. Another image restarts a container, other
/// resources may (its `resizePolicy`), `activeDeadlineSeconds` kills the pod. A debug container loses nothing,
/// but can't be taken out again, may hold what the suspect doesn't (CAP_NET_RAW, ptrace), and writes into what
/// is to be proved: whoever needs one enters from the node (`kubectl debug node/…`), which leaves the pod as
/// it is. Nobody but the controller is excepted: a role that is would be what an intruder looks for.
fn suspects(user: &str) -> Vec<Value> {
    let annotations: Vec<&str> = POD_ANNOTATIONS.iter().map(|(key, _)| *key).collect();
    let validations = json!([
        {
            "expression": "request.operation != 'DELETE' || ('system:nodes' in request.userInfo.groups && \
                           has(oldObject.metadata.deletionTimestamp))",
            "message": "the pod is quarantined and its containers are evidence: release it first (impound release)",
            "reason": "Forbidden",
        },
        {
            "expression": "request.operation != 'CREATE'",
            "message": format!("the label {QUARANTINE_LABEL} is set by Impound alone"),
            "reason": "Forbidden",
        },
        {
            // Through the status nothing of the spec can be changed; the kubelet must always get through.
            "expression": "request.operation != 'UPDATE' || request.subResource == 'status' || \
                           object.spec == oldObject.spec",
            "message": "the pod is quarantined: a changed image or resource restarts a container, a deadline ends it, \
                        and an added container works on the evidence (kubectl debug on its node does not need that)",
            "reason": "Forbidden",
        },
        {
            // Any label may be one that a Service, a controller or a policy selects by.
            "expression": "request.operation != 'UPDATE' || (has(object.metadata.labels) && \
                           has(oldObject.metadata.labels) && object.metadata.labels == oldObject.metadata.labels)",
            "message": "the pod is quarantined: its labels are changed by its release alone (impound release)",
            "reason": "Forbidden",
        },
        {
            "expression": format!(
                "request.operation != 'UPDATE' || !has(oldObject.metadata.annotations) || \
                 {annotations:?}.all(key, !(key in oldObject.metadata.annotations) || \
                 (has(object.metadata.annotations) && key in object.metadata.annotations && \
                 object.metadata.annotations[key] == oldObject.metadata.annotations[key]))"
            ),
            "message": "the pod is quarantined: what keeps autoscalers from deleting it stays until its release",
            "reason": "Forbidden",
        },
    ]);
    let rules = json!([
        rule("", "v1", &["CREATE", "UPDATE", "DELETE"], &["pods"]),
        // Labels can be changed through these as well, and the spec through the first two.
        rule(
            "",
            "v1",
            &["UPDATE"],
            &["pods/resize", "pods/ephemeralcontainers", "pods/status"]
        ),
    ]);
    let selector =
        json!({ "matchExpressions": [{ "key": QUARANTINE_LABEL, "operator": "Exists" }] });
    let policy = json!({
        "failurePolicy": "Fail",
        "matchConstraints": constraints(&rules, selector),
        "matchConditions": [not_by(user)],
        "validations": validations,
    });
    pair("impound-suspects", policy, None)
}

/// An eviction is admitted as an Eviction, which has no labels of the pod: the Quarantine objects
/// say which pods are meant. Our budget stops it too, but not for a pod that is not ready.
fn evictions(user: &str) -> Vec<Value> {
    let rules = json!([rule("", "v1", &["CREATE"], &["pods/eviction"])]);
    let denial = json!([{
        "expression": "!variables.inForce || request.name != params.spec.pod",
        "message": "the pod is quarantined and its containers are evidence: release it first (impound release)",
        "reason": "Forbidden",
    }]);
    with_quarantines("impound-evictions", user, rules, &denial)
}

/// The deny-all policies and the budgets of quarantines. A policy is known by its label: quarantines in force keep the
/// name that they were made with, whatever it is to be called now. That label is reserved, or a policy that allows
/// could be made that nobody can delete. The name is for policies that a version without the label made.
fn objects(user: &str, settings: &Settings) -> Vec<Value> {
    let (key, value) = PART_OF_LABEL;
    let name = &settings.names.policy;
    let label = DENY_ALL_LABEL.0;
    let labelled = |object: &str| {
        format!("(has({object}.metadata.labels) && '{label}' in {object}.metadata.labels)")
    };
    let policy = json!({
        "failurePolicy": "Fail",
        "matchConstraints": constraints(
            &json!([
                rule("networking.k8s.io", "v1", &["CREATE", "UPDATE", "DELETE"], &["networkpolicies"]),
                rule("policy", "v1", &["UPDATE", "DELETE"], &["poddisruptionbudgets"]),
            ]),
            json!({ "matchLabels": { key: value } }),
        ),
        "matchConditions": [
            not_by(user),
            {
                // Others' objects with our label, e.g. of an installation, are theirs.
                "name": "of-a-quarantine",
                "expression": format!(
                    "request.resource.resource == 'networkpolicies' ? \
                     ((request.operation != 'CREATE' && (oldObject.metadata.name == '{name}' || {})) || \
                     (request.operation != 'DELETE' && {})) : \
                     (has(oldObject.spec.selector) && has(oldObject.spec.selector.matchLabels) && \
                     '{QUARANTINE_LABEL}' in oldObject.spec.selector.matchLabels)",
                    labelled("oldObject"),
                    labelled("object"),
                ),
            },
        ],
        "validations": [
            {
                "expression": "request.operation != 'CREATE'",
                "message": format!("the label {label} is set by Impound alone"),
                "reason": "Forbidden",
            },
            {
                "expression": "request.operation == 'CREATE'",
                "message": "it holds a quarantined pod: it goes with the release (impound release)",
                "reason": "Forbidden",
            },
        ],
    });
    pair("impound-objects", policy, None)
}

/// Quarantines, Collections and Sweeps: nobody claims to be somebody else, takes one away that is in force, or
/// writes what became of it, or a sweep's list.
fn records(user: &str) -> Vec<Value> {
    let all = ["quarantines", "collections", "sweeps", "sweeprosters"];
    let status = all.map(|resource| format!("{resource}/status"));
    let status = status.each_ref().map(String::as_str);
    let own_name = |path: &str| {
        format!(
            "!has({path}.requestedBy) || {path}.requestedBy == '' || \
             {path}.requestedBy == request.userInfo.username"
        )
    };
    let validations = json!([
        {
            "expression": "!(request.subResource == 'status')",
            "message": "the status is written by the controller alone",
            "reason": "Forbidden",
        },
        {
            "expression": format!("request.operation != 'CREATE' || {}", own_name("object.spec")),
            "message": "spec.requestedBy is another name than yours: leave it out, or write your own",
            "reason": "Forbidden",
        },
        {
            "expression": format!(
                "request.operation == 'DELETE' || !has(object.spec.release) || (oldObject != null && \
                 has(oldObject.spec.release) && object.spec.release == oldObject.spec.release) || {}",
                own_name("object.spec.release")
            ),
            "message": "spec.release.requestedBy is another name than yours: leave it out, or write your own",
            "reason": "Forbidden",
        },
        {
            "expression": format!(
                "request.operation != 'UPDATE' || !has(oldObject.metadata.finalizers) || \
                 !('{FINALIZER}' in oldObject.metadata.finalizers) || \
                 (has(object.metadata.finalizers) && '{FINALIZER}' in object.metadata.finalizers)"
            ),
            "message": "the finalizer holds what is needed to undo the quarantine: release it (impound release)",
            "reason": "Forbidden",
        },
        {
            "expression": format!(
                "request.operation != 'DELETE' || !has(oldObject.metadata.finalizers) || \
                 !('{FINALIZER}' in oldObject.metadata.finalizers)"
            ),
            "message": "the quarantine is in force: release it first (impound release)",
            "reason": "Forbidden",
        },
        {
            "expression": "request.operation != 'DELETE' || request.resource.resource != 'collections' || \
                           !has(oldObject.status) || !has(oldObject.status.phase) || \
                           oldObject.status.phase in ['Sealed', 'Partial', 'Failed']",
            "message": "the collection is being taken: wait until it is sealed",
            "reason": "Forbidden",
        },
        {
            "expression": "request.operation != 'DELETE' || request.resource.resource != 'sweeps' || \
                           !has(oldObject.status) || !has(oldObject.status.phase) || \
                           oldObject.status.phase in ['Pending', 'Complete', 'Partial', 'Cancelled', 'Refused']",
            "message": "the sweep is under way, and what it has not begun would be named nowhere: cancel it, and wait for its end",
            "reason": "Forbidden",
        },
        {
            // A finalizer or an owner may come and go, as when its sweep is deleted and it is to stay.
            "expression": "request.resource.resource != 'sweeprosters' || request.operation == 'DELETE' || \
                           (request.operation == 'UPDATE' && object.spec == oldObject.spec)",
            "message": "the list of a sweep is written by the controller alone",
            "reason": "Forbidden",
        },
        {
            "expression": format!(
                "request.resource.resource != 'sweeprosters' || request.operation == 'CREATE' || \
                 request.userInfo.username in {COLLECTORS:?} || !has(oldObject.metadata.ownerReferences) || \
                 (request.operation == 'UPDATE' && has(object.metadata.ownerReferences) && \
                 object.metadata.ownerReferences == oldObject.metadata.ownerReferences)"
            ),
            "message": "the list of a sweep goes with it: delete the sweep",
            "reason": "Forbidden",
        },
    ]);
    let rules = json!([
        rule(
            "impound.dev",
            "v1alpha1",
            &["CREATE", "UPDATE", "DELETE"],
            &all
        ),
        rule("impound.dev", "v1alpha1", &["UPDATE"], &status),
    ]);
    let policy = json!({
        "failurePolicy": "Fail",
        "matchConstraints": constraints(&rules, json!({})),
        "matchConditions": [not_by(user)],
        "validations": validations,
    });
    pair("impound-records", policy, None)
}

/// A policy that is asked once for each Quarantine of the namespace, as `params`.
fn with_quarantines(name: &str, user: &str, rules: Value, validations: &Value) -> Vec<Value> {
    let policy = json!({
        "failurePolicy": "Fail",
        "paramKind": { "apiVersion": "impound.dev/v1alpha1", "kind": "Quarantine" },
        "matchConstraints": constraints(&rules, json!({})),
        "matchConditions": [not_by(user)],
        "variables": [{
            "name": "inForce",
            "expression": "has(params.status) && has(params.status.undo) && has(params.status.phase) && \
                           !(params.status.phase in ['Refused', 'Released'])",
        }],
        "validations": validations,
    });
    let every = json!({ "selector": {}, "parameterNotFoundAction": "Allow" });
    pair(name, policy, Some(every))
}

/// Every default is written out, so that what the API server stores is what was sent.
fn constraints(rules: &Value, objects: Value) -> Value {
    json!({
        "matchPolicy": "Equivalent",
        "namespaceSelector": {},
        "objectSelector": objects,
        "resourceRules": rules,
    })
}

fn rule(group: &str, version: &str, operations: &[&str], resources: &[&str]) -> Value {
    json!({
        "apiGroups": [group], "apiVersions": [version], "operations": operations,
        "resources": resources, "scope": "*",
    })
}

fn not_by(user: &str) -> Value {
    json!({ "name": NOT_BY_US, "expression": format!("{NOT_USER}{user}'") })
}

fn pair(name: &str, policy: Value, params: Option<Value>) -> Vec<Value> {
    let (key, value) = PART_OF_LABEL;
    let metadata = json!({ "name": name, "labels": { key: value } });
    let mut binding = json!({ "policyName": name, "validationActions": ["Deny"] });
    if let (Some(binding), Some(params)) = (binding.as_object_mut(), params) {
        binding.insert("paramRef".into(), params);
    }
    let object = |kind: &str, spec: Value| json!({ "apiVersion": format!("{GROUP}/v1"), "kind": kind, "metadata": metadata, "spec": spec });
    vec![
        object("ValidatingAdmissionPolicy", policy),
        object("ValidatingAdmissionPolicyBinding", binding),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_name_cannot_break_out_of_the_expression() {
        assert!(user_name("system:serviceaccount:a:b").is_ok());
        assert!(user_name("x' || true || 'x' == 'x").is_err());
    }
}
