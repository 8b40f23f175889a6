//! The denial of all traffic of pods with the suspect label, in the strongest kind of each family that the
//! cluster serves. One object of each serves every quarantined pod of a namespace.
//!
//! It is an extra: the NetworkPolicy is there in any case, and what fails here holds nothing up. Which
//! plugin is at work can't be read from the API (definitions outlive the plugin that brought them), so every
//! family that is served gets one; a plugin that is not there ignores it.

use serde_json::{Value, json};

use super::{Family, Kind, Plugin, object_name};
use crate::contain::plan::delete_call;
use crate::contain::settings::{FIELD_MANAGER, PART_OF_LABEL, Settings};
use crate::resources::{ApiCall, DenyUndo, StepName};

/// Name of the objects that are in namespaces.
const NAME: &str = "impound-deny-suspects";

/// Label that every namespace has with its own name as value (Kubernetes API reference).
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// The objects that are to be, or are already, and a warning for each that can't be: a foreign one has its
/// name.
#[must_use]
pub fn wanted(
    plugin: &Plugin,
    namespace: &str,
    settings: &Settings,
) -> (Vec<DenyUndo>, Vec<String>) {
    let (mut denies, mut warnings) = (Vec::new(), Vec::new());
    for kind in strongest(plugin) {
        let deny = deny(kind, namespace, settings);
        let name = deny_name(kind, namespace);
        match plugin.find(kind, &name) {
            Some(foreign) if !is_ours(foreign) => warnings.push(format!(
                "A {} {name} exists that was not made by Impound: it is left as it is, and nothing is denied in \
                 this kind.",
                kind.title()
            )),
            _ => denies.push(deny),
        }
    }
    (denies, warnings)
}

/// The calls that make those of the objects that are not there.
#[must_use]
pub fn create(denies: &[DenyUndo], is_there: impl Fn(&DenyUndo) -> bool) -> Vec<ApiCall> {
    let missing = denies.iter().filter(|deny| !is_there(deny));
    missing
        .map(|deny| {
            let parent = deny.path.rsplit_once('/').map_or("", |(parent, _)| parent);
            ApiCall {
                step: StepName::Deny,
                method: "POST".into(),
                path: format!("{parent}?fieldManager={FIELD_MANAGER}"),
                content_type: "application/json".into(),
                body: deny.body.clone(),
                purpose: format!(
                    "{} denies all traffic of pods with the suspect label",
                    deny.kind
                ),
            }
        })
        .collect()
}

/// The call that removes an object as it is now; why none is needed, if so.
///
/// # Errors
/// The reason why it is left alone.
pub fn remove(deny: &DenyUndo, present: Option<&Value>) -> Result<Option<ApiCall>, String> {
    match present {
        None => Ok(None),
        Some(object) if !is_ours(object) => Err(format!(
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

/// Whether our denial in this family is in force as it was made.
#[must_use]
pub fn is_in_force(plugin: &Plugin, family: Family, namespace: &str, settings: &Settings) -> bool {
    let kind = strongest(plugin).find(|kind| kind.family == family);
    kind.is_some_and(|kind| {
        let present = plugin.find(kind, &deny_name(kind, namespace));
        present.is_some_and(|object| {
            is_ours(object) && holds(object.get("spec"), &spec(kind, namespace, settings))
        })
    })
}

/// The kind of each served family that is used.
pub fn strongest(plugin: &Plugin) -> impl Iterator<Item = &'static Kind> {
    let all = [Family::Cilium, Family::Calico, Family::Cluster];
    all.into_iter().filter_map(|family| {
        let mut kinds = plugin.kinds.iter().map(|(kind, _)| *kind);
        kinds.find(|kind| kind.family == family)
    })
}

/// Whether the object is one of ours, by its label.
#[must_use]
pub fn is_ours(object: &Value) -> bool {
    let labels = object.pointer("/metadata/labels");
    let part_of = labels.and_then(|labels| labels.get(PART_OF_LABEL.0)?.as_str());
    part_of == Some(PART_OF_LABEL.1)
}

fn deny(kind: &Kind, namespace: &str, settings: &Settings) -> DenyUndo {
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
        "spec": spec(kind, namespace, settings),
    });
    DenyUndo {
        kind: kind.title(),
        path: format!("{}/{name}", kind.path(namespace)),
        body: body.to_string(),
    }
}

/// In Calico's storage a policy's name begins with that of its tier; objects without a namespace carry it in
/// their name.
fn deny_name(kind: &Kind, namespace: &str) -> String {
    match kind.group {
        "crd.projectcalico.org" => format!("default.{NAME}"),
        _ if kind.namespaced => NAME.into(),
        _ => format!("impound-deny-{namespace}"),
    }
}

fn spec(kind: &Kind, namespace: &str, settings: &Settings) -> Value {
    let (key, value) = &settings.pod_label;
    let suspects = json!({ "matchLabels": { key: value } });
    match kind.family {
        // "all" is every identity, the host's and the world's among them.
        Family::Cilium => json!({
            "endpointSelector": suspects,
            "ingressDeny": [{ "fromEntities": ["all"] }],
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

/// Whether everything that was asked for is in what is there; a server may add defaults to objects.
fn holds(present: Option<&Value>, wanted: &Value) -> bool {
    match (present, wanted) {
        (Some(Value::Object(present)), Value::Object(wanted)) => wanted
            .iter()
            .all(|(key, value)| holds(present.get(key), value)),
        (Some(Value::Array(present)), Value::Array(wanted)) => {
            present.len() == wanted.len()
                && present
                    .iter()
                    .zip(wanted)
                    .all(|(present, wanted)| holds(Some(present), wanted))
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
