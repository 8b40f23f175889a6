//! The denial of all traffic of pods with the suspect label, in the strongest kind of each family that the
//! cluster serves. One object of each serves every quarantined pod of a namespace.
//!
//! It is an extra: the NetworkPolicy is there in any case, and what fails here holds nothing up. Which
//! plugin is at work can't be read from the API (definitions outlive the plugin that brought them), so every
//! family that is served gets one; a plugin that is not there ignores it.

use serde_json::{Value, json};

use super::{Family, KINDS, Kind, Plugin, object_name};
use crate::contain::plan::delete_call;
use crate::contain::settings::{FIELD_MANAGER, PART_OF_LABEL};
use crate::resources::{ApiCall, DenyUndo, Label, Names, StepName};

/// Name of the objects that are in namespaces.
const NAME: &str = "impound-deny-suspects";

/// Label that every namespace has with its own name as value (Kubernetes API reference).
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// The objects that are to be, or are already, and a warning for each that can't be: a foreign one has its
/// name.
#[must_use]
pub fn wanted(plugin: &Plugin, namespace: &str, names: &Names) -> (Vec<DenyUndo>, Vec<String>) {
    let (mut denies, mut warnings) = (Vec::new(), Vec::new());
    for kind in strongest(plugin) {
        let deny = deny(kind, namespace, names);
        let name = deny_name(kind, namespace);
        let is_as_wanted = state(plugin, kind, namespace, names) == State::InForce;
        match plugin.find(kind, &name) {
            Some(foreign) if !is_ours(foreign) && !is_as_wanted => warnings.push(format!(
                "A {} {name} exists that was not made by Impound: it is left as it is, and nothing is denied in \
                 this kind.",
                kind.title()
            )),
            _ => denies.push(deny),
        }
    }
    (denies, warnings)
}

/// The call that makes an object as it is to be: made anew if it is gone, put back if somebody has
/// changed what it denies. None if it is so, and for somebody else's of that name.
#[must_use]
pub fn mend(
    deny: &DenyUndo,
    present: Option<&Value>,
    namespace: &str,
    names: &Names,
) -> Option<ApiCall> {
    let kind = kind_at(&deny.path, namespace)?;
    let purpose = format!("{} {}", kind.title(), effect(kind));
    let Some(present) = present else {
        let parent = kind.path(namespace);
        return Some(ApiCall {
            step: StepName::Deny,
            method: "POST".into(),
            path: format!("{parent}?fieldManager={FIELD_MANAGER}"),
            content_type: "application/json".into(),
            body: deny.body.clone(),
            purpose,
        });
    };
    let spec = spec(kind, namespace, names);
    if !is_ours(present) || is_exactly(present.get("spec"), &spec) {
        return None;
    }
    // A merge would leave what was added, as an exception is.
    let patch = json!([
        { "op": "test", "path": "/metadata/uid", "value": present.pointer("/metadata/uid") },
        { "op": "add", "path": "/spec", "value": spec },
    ]);
    Some(ApiCall {
        step: StepName::Deny,
        method: "PATCH".into(),
        path: format!("{}?fieldManager={FIELD_MANAGER}", deny.path),
        content_type: "application/json-patch+json".into(),
        body: patch.to_string(),
        purpose,
    })
}

/// What an object of a kind does, for people. Where the node itself still gets in, the kubelet's probes
/// do: without them it would restart the container, and what that has changed would be lost.
#[must_use]
pub fn effect(kind: &Kind) -> &'static str {
    match kind.family {
        Family::Cilium => {
            "denies all traffic of pods with the suspect label, except what comes in from their own node \
             (kubelet probes need it; pods in that node's network get in, too)"
        }
        // Source: Calico documentation, "Protect hosts".
        Family::Calico => {
            "denies all traffic of pods with the suspect label, except what comes in from their own node, \
             which Calico always allows"
        }
        Family::Cluster => {
            "denies what pods with the suspect label send, and what other pods send them"
        }
    }
}

/// The call that removes an object as it is now; why none is needed, if so.
///
/// # Errors
/// The reason why it is left alone.
pub fn remove(deny: &DenyUndo, present: Option<&Value>) -> Result<Option<ApiCall>, String> {
    match present {
        None => Ok(None),
        Some(object) if !is_ours(object) && !is_as_made(deny, object) => Err(format!(
            "{} {} was not made by Impound, so it is left as it is",
            deny.kind,
            object_name(object)
        )),
        Some(object) => Ok(Some(delete_call(
            StepName::UndoDeny,
            deny.path.clone(),
            object.pointer("/metadata/uid").and_then(Value::as_str),
            "no quarantined pod is left in the namespace",
        ))),
    }
}

/// Paths of our denials that are in force exactly as they were made.
#[must_use]
pub fn in_force(plugin: &Plugin, namespace: &str, names: &Names) -> Vec<String> {
    strongest(plugin)
        .filter(|kind| state(plugin, kind, namespace, names) == State::InForce)
        .map(|kind| path(kind, namespace))
        .collect()
}

/// How the denial of a kind stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It is there as it was made.
    InForce,
    /// Somebody changed it, or it is somebody else's: it may let traffic through.
    Altered,
    /// It is not there.
    Missing,
}

/// How the denial of a kind stands.
#[must_use]
pub fn state(plugin: &Plugin, kind: &Kind, namespace: &str, names: &Names) -> State {
    match plugin.find(kind, &deny_name(kind, namespace)) {
        None => State::Missing,
        Some(object) if is_exactly(object.get("spec"), &spec(kind, namespace, names)) => {
            State::InForce
        }
        Some(_) => State::Altered,
    }
}

/// The kind of each served family that is used.
pub fn strongest(plugin: &Plugin) -> impl Iterator<Item = &'static Kind> {
    let all = [Family::Cilium, Family::Calico, Family::Cluster];
    all.into_iter().filter_map(|family| {
        let mut kinds = plugin.kinds.iter().map(|(kind, _)| *kind);
        kinds.find(|kind| kind.family == family)
    })
}

/// Whether the object of our name may be changed and deleted, by its label. What it lets through is never
/// judged by that: anybody can write a label.
fn is_ours(object: &Value) -> bool {
    let labels = object.pointer("/metadata/labels");
    let part_of = labels.and_then(|labels| labels.get(PART_OF_LABEL.0)?.as_str());
    part_of == Some(PART_OF_LABEL.1)
}

fn is_as_made(deny: &DenyUndo, object: &Value) -> bool {
    let made = serde_json::from_str::<Value>(&deny.body).unwrap_or_default();
    let spec = made.get("spec");
    spec.is_some_and(|spec| is_exactly(object.get("spec"), spec))
}

fn deny(kind: &Kind, namespace: &str, names: &Names) -> DenyUndo {
    let name = deny_name(kind, namespace);
    let mut metadata = json!({
        "name": name,
        "labels": { PART_OF_LABEL.0: PART_OF_LABEL.1 },
    });
    if let (true, Some(metadata)) = (kind.namespaced, metadata.as_object_mut()) {
        metadata.insert("namespace".into(), json!(namespace));
    }
    let body = json!({
        "apiVersion": kind.api_version(),
        "kind": kind.name,
        "metadata": metadata,
        "spec": spec(kind, namespace, names),
    });
    DenyUndo {
        kind: kind.title(),
        path: path(kind, namespace),
        body: body.to_string(),
    }
}

fn path(kind: &Kind, namespace: &str) -> String {
    format!("{}/{}", kind.path(namespace), deny_name(kind, namespace))
}

fn kind_at(deny_path: &str, namespace: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| path(kind, namespace) == deny_path)
}

/// In Calico's storage a policy's name begins with that of its tier; objects without a namespace carry it in
/// their name.
pub(super) fn deny_name(kind: &Kind, namespace: &str) -> String {
    match kind.group {
        "crd.projectcalico.org" => format!("default.{NAME}"),
        _ if kind.namespaced => NAME.into(),
        _ => format!("impound-deny-{namespace}"),
    }
}

fn spec(kind: &Kind, namespace: &str, names: &Names) -> Value {
    let Label { key, value } = &names.pod_label;
    let suspects = json!({ "matchLabels": { key: value } });
    match kind.family {
        Family::Cilium => json!({
            "endpointSelector": suspects,
            "ingressDeny": cilium_ingress(),
            // The host's and the world's identity are among them. Answers to what was let in are no new traffic.
            "egressDeny": [{ "toEntities": ["all"] }],
        }),
        Family::Calico => json!({
            "tier": "default",
            "order": 0,
            "selector": format!("{key} == '{value}'"),
            "types": ["Ingress", "Egress"],
            "ingress": [{ "action": "Deny" }],
            "egress": [{ "action": "Deny" }],
        }),
        Family::Cluster => {
            let everywhere = json!([
                { "namespaces": {} },
                { "networks": ["0.0.0.0/0", "::/0"] },
            ]);
            let mut spec = json!({
                "priority": 0,
                "subject": { "pods": {
                    "namespaceSelector": { "matchLabels": { NAMESPACE_NAME: namespace } },
                    "podSelector": suspects,
                } },
                // Ingress knows no networks: what comes from outside is left to the NetworkPolicy.
                "ingress": [{ "name": "deny", "action": "Deny", "from": [{ "namespaces": {} }] }],
                "egress": [{ "name": "deny", "action": "Deny", "to": everywhere }],
            });
            if let (true, Some(spec)) = (kind.name == "ClusterNetworkPolicy", spec.as_object_mut())
            {
                spec.insert("tier".into(), json!("Admin"));
            }
            spec
        }
    }
}

/// Everybody but the pod's own node: a denial wins over the exception that Cilium makes for the kubelet.
/// "all" and "cluster" have the identity `host` among them, and so may "kube-apiserver", on the node that it
/// runs on; elsewhere it is a remote node or the world. Pods are told by the namespace that each of them has;
/// since Cilium 1.19 a selector that names no cluster means those of its own cluster. Two members of one rule
/// are refused.
/// Source: Cilium documentation, "Layer 3 Policies" (entities) and "Upgrade Guide" (1.19).
fn cilium_ingress() -> Value {
    let exists = |key: &str| json!({ "key": format!("k8s:{key}"), "operator": "Exists" });
    let namespace = exists("io.kubernetes.pod.namespace");
    let cluster = exists("io.cilium.k8s.policy.cluster");
    json!([
        { "fromEntities": ["world", "remote-node", "unmanaged", "init", "health", "ingress"] },
        { "fromEndpoints": [
            { "matchExpressions": [namespace] },
            { "matchExpressions": [namespace, cluster] },
        ] },
    ])
}

/// Whether a spec says what was asked for and nothing else: a further field can be an exception. What a
/// server adds is empty (Calico's `source: {}`), or says nothing about a denial.
fn is_exactly(present: Option<&Value>, wanted: &Value) -> bool {
    /// Cilium: whether what no rule names is denied as well.
    const NO_MATTER: &str = "enableDefaultDeny";
    match (present, wanted) {
        (Some(Value::Object(present)), Value::Object(wanted)) => {
            let all = wanted
                .iter()
                .all(|(key, value)| is_exactly(present.get(key), value));
            let more = present.iter().any(|(key, value)| {
                !wanted.contains_key(key) && key != NO_MATTER && !is_empty(value)
            });
            all && !more
        }
        (Some(Value::Array(present)), Value::Array(wanted)) => {
            present.len() == wanted.len()
                && present
                    .iter()
                    .zip(wanted)
                    .all(|(present, wanted)| is_exactly(Some(present), wanted))
        }
        (Some(present), wanted) => {
            present == wanted
                || present
                    .as_f64()
                    .is_some_and(|number| wanted.as_f64() == Some(number))
        }
        (None, _) => false,
    }
}

/// Whether a field says nothing. A list with an empty rule in it says a lot.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_empty),
        Value::Bool(_) | Value::Number(_) => false,
    }
}
