//! What a `Quarantine` needs to undo what it changes: recorded in its status before the first change.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::any_object;

/// What release puts back.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Undo {
    /// The pod's metadata as it was.
    pub pod: PodUndo,
    /// The node's state as it was.
    pub node: NodeUndo,
    /// What things were called when the plan was made: what is put on and made by these names is watched and taken
    /// away by them, whatever the controller is told to call them later. None: a version before this one made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub names: Option<Names>,
    /// Why the pod itself is not changed, nor anything made in the API that would hold it; none for most
    /// pods. What can hold it then is its node's table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub untouched: Option<String>,
    /// Whether the pod is to be isolated at its node, which release has to lift.
    #[serde(default)]
    pub isolated: bool,
    /// NetworkPolicies that the suspect is taken out of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<PolicyUndo>,
    /// Policies of the network plugin's own kinds that are made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub denies: Vec<DenyUndo>,
}

/// What an installation chooses to call the marks of a containment.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Names {
    /// Label put on the suspect pod and selected by the deny-all policy.
    pub pod_label: Label,
    /// Label put on the suspect's node.
    pub node_label: Label,
    /// Name of the deny-all NetworkPolicy.
    pub policy: String,
}

/// A label with its value.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct Label {
    /// Its key.
    pub key: String,
    /// Its value.
    pub value: String,
}

impl Label {
    /// As key and value.
    #[must_use]
    pub fn pair(&self) -> (String, String) {
        (self.key.clone(), self.value.clone())
    }
}

impl std::fmt::Display for Label {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}={}", self.key, self.value)
    }
}

/// A NetworkPolicy of the pod's namespace before its podSelector is narrowed.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyUndo {
    /// Object name.
    pub name: String,
    /// metadata.uid: a policy re-created under the same name is another one.
    pub uid: String,
    /// Its spec.podSelector as it was, for the record: release takes out what was put in and leaves
    /// the rest as it is by then.
    #[schemars(schema_with = "any_object")]
    pub pod_selector: serde_json::Value,
}

/// A policy of a network plugin's own kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DenyUndo {
    /// Kind, e.g. `CiliumNetworkPolicy`.
    pub kind: String,
    /// Path of the object below the API server.
    pub path: String,
    /// The object as it is made, as JSON text.
    pub body: String,
}

/// The pod's metadata before the change.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodUndo {
    /// All labels as they were.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Owner references as they were, for the record: adoption is up to the controller.
    #[serde(default)]
    #[schemars(schema_with = "owner_references")]
    pub owner_references: Vec<OwnerReference>,
    /// Label keys that the strip removes.
    #[serde(default)]
    pub removed: Vec<String>,
    /// Those of them that neither owner nor Services need gone: by key the NetworkPolicy that lets go of
    /// the pod without it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub for_policies: BTreeMap<String, String>,
    /// Labels that the strip sets.
    #[serde(default)]
    pub added: BTreeMap<String, String>,
    /// Annotations that the strip sets, with the value that was there before.
    #[serde(default)]
    pub annotations: BTreeMap<String, Option<String>>,
}

/// The node's state before the change.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeUndo {
    /// Whether the node was unschedulable already, by somebody else's will.
    #[serde(default)]
    pub unschedulable: bool,
    /// Label keys that are set, with the value that was there before.
    #[serde(default)]
    pub labels: BTreeMap<String, Option<String>>,
    /// Annotations that are set, with the value that was there before.
    #[serde(default)]
    pub annotations: BTreeMap<String, Option<String>>,
    /// Taints as they were, for the record.
    #[serde(default)]
    pub taints: Vec<TaintRecord>,
}

/// A node's taint.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaintRecord {
    /// Taint key.
    pub key: String,
    /// Taint value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// NoSchedule, PreferNoSchedule or NoExecute.
    pub effect: String,
}

/// Objects as the API server gave them before the first change.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Before {
    /// The pod.
    #[schemars(schema_with = "any_object")]
    pub pod: serde_json::Value,
    /// Its node.
    #[schemars(schema_with = "any_object")]
    pub node: serde_json::Value,
    /// Its controller, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_object")]
    pub owner: Option<serde_json::Value>,
}

fn owner_references(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array",
        "items": { "type": "object", "x-kubernetes-preserve-unknown-fields": true }
    })
}
