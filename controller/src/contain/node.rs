//! The suspect's node: cordon, own taint, labels, autoscaler annotations, and back.
//!
//! `spec.taints` is one atomic list, which a merge patch replaces. Every patch here that depends on what was
//! read (the list as a whole, or a label that is still ours) therefore carries uid and resourceVersion: a
//! change in between answers 409 and the patch is made again from a fresh read, so no foreign taint or label
//! is ever lost. Only [`label`] does without the version: it sets what it sets, whatever was there.

use k8s_openapi::api::core::v1::{Node, Taint};
use serde_json::{Map, Value, json};

use super::settings::{NODE_ANNOTATIONS, PROTECTED_NODE_LABEL, TAINT_KEY};
use crate::resources::{ApiCall, Names, NodeUndo, StepName, TaintRecord};

/// What release needs to know of the node, read before the first change.
#[must_use]
pub fn undo(node: &Node, names: &Names) -> NodeUndo {
    let labels = node.metadata.labels.clone().unwrap_or_default();
    let annotations = node.metadata.annotations.clone().unwrap_or_default();
    NodeUndo {
        unschedulable: is_unschedulable(node),
        labels: wanted_labels(names)
            .into_iter()
            .map(|(key, _)| (key.clone(), labels.get(&key).cloned()))
            .collect(),
        annotations: NODE_ANNOTATIONS
            .iter()
            .map(|(key, _)| ((*key).to_owned(), annotations.get(*key).cloned()))
            .collect(),
        taints: taints(node)
            .iter()
            .map(|taint| TaintRecord {
                key: taint.key.clone(),
                value: taint.value.clone(),
                effect: taint.effect.clone(),
            })
            .collect(),
    }
}

/// The call that cordons and taints the node, `None` if it is so already.
#[must_use]
pub fn cordon(node: &Node) -> Option<ApiCall> {
    let annotations = node.metadata.annotations.clone().unwrap_or_default();
    let missing: Map<String, Value> = NODE_ANNOTATIONS
        .iter()
        .filter(|(key, value)| annotations.get(*key).map(String::as_str) != Some(*value))
        .map(|(key, value)| ((*key).to_owned(), json!(value)))
        .collect();
    if is_cordoned(node) && missing.is_empty() {
        return None;
    }
    let mut taints = taints(node).to_vec();
    if !has_own_taint(node) {
        taints.push(own_taint());
    }
    let mut patch = guarded(node);
    merge(
        &mut patch,
        "spec",
        json!({ "unschedulable": true, "taints": taints }),
    );
    if !missing.is_empty() {
        merge(&mut patch, "metadata", json!({ "annotations": missing }));
    }
    Some(call(
        StepName::Cordon,
        node,
        patch,
        "no new pod is scheduled to the node, DaemonSet pods included; autoscalers keep it",
    ))
}

/// The call that labels the node as suspect, `None` if it is labelled already.
#[must_use]
pub fn label(node: &Node, names: &Names) -> Option<ApiCall> {
    let labels = node.metadata.labels.clone().unwrap_or_default();
    let missing: Map<String, Value> = wanted_labels(names)
        .into_iter()
        .filter(|(key, value)| labels.get(key) != Some(value))
        .map(|(key, value)| (key, json!(value)))
        .collect();
    if missing.is_empty() {
        return None;
    }
    let mut patch = json!({ "metadata": { "uid": node.metadata.uid } });
    merge(&mut patch, "metadata", json!({ "labels": missing }));
    Some(call(
        StepName::LabelNode,
        node,
        patch,
        "people and tools see that the node is suspect",
    ))
}

/// The call that takes the suspect labels off, `None` if nothing of ours is there. A label that was so before
/// stays.
#[must_use]
pub fn unlabel(node: &Node, undo: &NodeUndo, names: &Names) -> Option<ApiCall> {
    let labels = node.metadata.labels.clone().unwrap_or_default();
    let back: Map<String, Value> = wanted_labels(names)
        .into_iter()
        .filter(|(key, value)| labels.get(key) == Some(value))
        .filter_map(|(key, value)| {
            let before = undo.labels.get(&key).cloned().flatten();
            (before.as_ref() != Some(&value))
                .then(|| (key, before.map_or(Value::Null, Value::from)))
        })
        .collect();
    if back.is_empty() {
        return None;
    }
    let mut patch = guarded(node);
    merge(&mut patch, "metadata", json!({ "labels": back }));
    Some(call(
        StepName::UndoLabelNode,
        node,
        patch,
        "the node is not suspect any more",
    ))
}

/// The call that makes the node schedulable again as far as it was, `None` if it is so already.
#[must_use]
pub fn uncordon(node: &Node, undo: &NodeUndo) -> Option<ApiCall> {
    let annotations = node.metadata.annotations.clone().unwrap_or_default();
    let back: Map<String, Value> = NODE_ANNOTATIONS
        .iter()
        .filter(|(key, value)| annotations.get(*key).map(String::as_str) == Some(*value))
        .filter_map(|(key, value)| {
            let before = undo.annotations.get(*key).cloned().flatten();
            (before.as_deref() != Some(*value))
                .then(|| ((*key).to_owned(), before.map_or(Value::Null, Value::from)))
        })
        .collect();
    let lift = is_unschedulable(node) && !undo.unschedulable;
    if !lift && !has_own_taint(node) && back.is_empty() {
        return None;
    }
    let mut patch = guarded(node);
    let taints: Vec<&Taint> = taints(node)
        .iter()
        .filter(|taint| taint.key != TAINT_KEY)
        .collect();
    merge(&mut patch, "spec", json!({ "taints": taints }));
    if lift {
        merge(&mut patch, "spec", json!({ "unschedulable": null }));
    }
    if !back.is_empty() {
        merge(&mut patch, "metadata", json!({ "annotations": back }));
    }
    let purpose = if undo.unschedulable {
        "our taint goes; the node stays unschedulable as it was before"
    } else {
        "pods may be scheduled to the node again"
    };
    Some(call(StepName::UndoCordon, node, patch, purpose))
}

/// Whether neither ordinary nor DaemonSet pods are scheduled to the node.
#[must_use]
pub fn is_cordoned(node: &Node) -> bool {
    is_unschedulable(node) && has_own_taint(node)
}

/// The address at which the node's agent listens: the first InternalIP.
#[must_use]
pub fn internal_ip(node: &Node) -> Option<&str> {
    node.status
        .as_ref()?
        .addresses
        .iter()
        .flatten()
        .find(|address| address.type_ == "InternalIP")
        .map(|address| address.address.as_str())
}

fn is_unschedulable(node: &Node) -> bool {
    node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true)
}

fn has_own_taint(node: &Node) -> bool {
    let own = own_taint();
    taints(node)
        .iter()
        .any(|taint| taint.key == own.key && taint.effect == own.effect)
}

fn own_taint() -> Taint {
    Taint {
        key: TAINT_KEY.into(),
        value: Some("true".into()),
        effect: "NoSchedule".into(),
        time_added: None,
    }
}

fn taints(node: &Node) -> &[Taint] {
    node.spec
        .as_ref()
        .and_then(|spec| spec.taints.as_deref())
        .unwrap_or_default()
}

fn wanted_labels(names: &Names) -> [(String, String); 2] {
    let (key, value) = PROTECTED_NODE_LABEL;
    [names.node_label.pair(), (key.to_owned(), value.to_owned())]
}

fn guarded(node: &Node) -> Value {
    json!({ "metadata": { "uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version } })
}

fn merge(patch: &mut Value, field: &str, more: Value) {
    if let (Some(patch), Value::Object(more)) = (patch.as_object_mut(), more) {
        let target = patch.entry(field).or_insert_with(|| json!({}));
        if let Some(target) = target.as_object_mut() {
            target.extend(more);
        }
    }
}

fn call(step: StepName, node: &Node, patch: Value, purpose: &str) -> ApiCall {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    super::plan::patch_call(step, format!("/api/v1/nodes/{name}"), &patch, purpose)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_release_takes_off_a_node_is_guarded_by_the_version_that_was_read() {
        let names = Names::default();
        let node = json!({ "metadata": { "name": "n", "uid": "u", "resourceVersion": "7" } });
        let mut node: Node = serde_json::from_value(node).unwrap();
        let undo = undo(&node, &names);
        node.metadata.labels = Some(wanted_labels(&names).into());
        node.spec.get_or_insert_default().taints = Some(vec![own_taint()]);
        for call in [unlabel(&node, &undo, &names), uncordon(&node, &undo)] {
            let body: Value = serde_json::from_str(&call.unwrap().body).unwrap();
            assert_eq!(body["metadata"]["uid"], "u", "{body}");
            assert_eq!(body["metadata"]["resourceVersion"], "7", "{body}");
        }
    }

    fn node(labels: Value) -> Node {
        let node = json!({ "metadata": { "name": "n", "uid": "u", "labels": labels }, "spec": {} });
        serde_json::from_value(node).unwrap()
    }

    /// The labels that a release patches on a node that looked so before, and looks so after containment.
    fn released(before: Value, after: Value) -> Option<Value> {
        let names = Names::default();
        let call = unlabel(&node(after), &undo(&node(before), &names), &names)?;
        let patch: Value = serde_json::from_str(&call.body).unwrap();
        patch.pointer("/metadata/labels").cloned()
    }

    #[test]
    fn a_node_that_was_labelled_before_stays_so() {
        let (protected, value) = PROTECTED_NODE_LABEL;
        let contained = json!({ "status": "suspectnode", protected: value });
        assert_eq!(
            released(json!({ "status": "suspectnode" }), contained.clone()),
            Some(json!({ protected: null }))
        );
        assert_eq!(released(contained.clone(), contained.clone()), None);
        assert_eq!(
            released(json!({ "status": "old" }), contained.clone()),
            Some(json!({ "status": "old", protected: null }))
        );
        assert_eq!(
            released(json!({}), contained),
            Some(json!({ "status": null, protected: null }))
        );
    }
}
