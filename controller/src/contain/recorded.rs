//! What a quarantine in force called things, read off its record.
//!
//! A quarantine says it itself ([`Undo::names`]). One that a version before that planned has put a label on its pod
//! and recorded the bodies of its calls: what it is called today's configuration does not say, which may be another.
//!
//! [`Undo::names`]: crate::resources::Undo::names

use serde_json::Value;

use super::settings::{PROTECTED_NODE_LABEL, QUARANTINE_LABEL};
use crate::resources::{Label, Names, QuarantineStatus, StepName};

/// What the record of a quarantine says; none of what it does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recorded {
    /// Label put on the suspect pod.
    pub pod_label: Option<Label>,
    /// Label put on its node.
    pub node_label: Option<Label>,
    /// Name of the deny-all NetworkPolicy.
    pub policy: Option<String>,
}

impl Recorded {
    /// Reads a quarantine's record. Of one whose pod is not changed it tells the node's label alone, unless it says
    /// the names itself.
    #[must_use]
    pub fn of(status: &QuarantineStatus) -> Self {
        let names = status.undo.as_ref().and_then(|undo| undo.names.clone());
        match names {
            Some(names) => Self {
                pod_label: Some(names.pod_label),
                node_label: Some(names.node_label),
                policy: Some(names.policy),
            },
            None => Self {
                pod_label: pod_label(status),
                node_label: node_label(status),
                policy: policy(status),
            },
        }
    }

    /// All of it, if the record says it all.
    #[must_use]
    pub fn whole(self) -> Option<Names> {
        Some(Names {
            pod_label: self.pod_label?,
            node_label: self.node_label?,
            policy: self.policy?,
        })
    }

    /// What it does not say is called as `otherwise` says.
    #[must_use]
    pub fn or(self, otherwise: &Names) -> Names {
        Names {
            pod_label: self
                .pod_label
                .unwrap_or_else(|| otherwise.pod_label.clone()),
            node_label: self
                .node_label
                .unwrap_or_else(|| otherwise.node_label.clone()),
            policy: self.policy.unwrap_or_else(|| otherwise.policy.clone()),
        }
    }
}

/// Besides the label with the quarantine's own name it is the only one that is put on.
fn pod_label(status: &QuarantineStatus) -> Option<Label> {
    let mut added = status.undo.as_ref()?.pod.added.iter();
    let (key, value) = added.find(|(key, _)| *key != QUARANTINE_LABEL)?;
    Some(label(key, value))
}

/// As the call that puts it on says. Without it in that call the node had it already, as the object that was read
/// says.
fn node_label(status: &QuarantineStatus) -> Option<Label> {
    let is_ours = |key: &&String| *key != PROTECTED_NODE_LABEL.0;
    let of = |node: &Value, key: &str| {
        let value = node.get("metadata")?.get("labels")?.get(key)?.as_str()?;
        Some(label(key, value))
    };
    let called = body(status, StepName::LabelNode).unwrap_or_default();
    let labels = called
        .pointer("/metadata/labels")
        .and_then(Value::as_object);
    let put_on = labels.and_then(|labels| labels.keys().find(is_ours));
    if let Some(key) = put_on {
        return of(&called, key);
    }
    let key = status.undo.as_ref()?.node.labels.keys().find(is_ours)?;
    of(&status.before.as_ref()?.node, key)
}

/// Without the call that makes it, it was there already, made by a quarantine whose record says its name.
fn policy(status: &QuarantineStatus) -> Option<String> {
    let body = body(status, StepName::Policy)?;
    let name = body.pointer("/metadata/name")?.as_str()?;
    Some(name.to_owned())
}

fn body(status: &QuarantineStatus, step: StepName) -> Option<Value> {
    let call = status.plan.iter().find(|call| call.step == step)?;
    serde_json::from_str(&call.body).ok()
}

fn label(key: &str, value: &str) -> Label {
    Label {
        key: key.to_owned(),
        value: value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resources::{ApiCall, Before, Undo};

    /// The record of a version that did not write down what it called things.
    fn former(calls: &[(StepName, Value)]) -> QuarantineStatus {
        let mut undo = Undo::default();
        let ours = (QUARANTINE_LABEL.to_owned(), "q".to_owned());
        undo.pod.added = [ours, ("state".to_owned(), "evil".to_owned())].into();
        let keys = [PROTECTED_NODE_LABEL.0, "kind"].map(|key| (key.to_owned(), None));
        undo.node.labels = keys.into();
        let call = |(step, body): &(StepName, Value)| ApiCall {
            step: *step,
            method: String::new(),
            path: String::new(),
            content_type: String::new(),
            body: body.to_string(),
            purpose: String::new(),
        };
        QuarantineStatus {
            undo: Some(undo),
            plan: calls.iter().map(call).collect(),
            before: Some(Before {
                node: json!({ "metadata": { "labels": { "kind": "bad before" } } }),
                ..Before::default()
            }),
            ..QuarantineStatus::default()
        }
    }

    #[test]
    fn a_record_without_names_tells_them_by_what_was_put_on_and_made() {
        let (protected, value) = PROTECTED_NODE_LABEL;
        let labels = json!({ protected: value, "kind": "bad" });
        let policy = (
            StepName::Policy,
            json!({ "metadata": { "name": "deny-evil" } }),
        );
        let node = (
            StepName::LabelNode,
            json!({ "metadata": { "labels": labels } }),
        );
        let told = Recorded::of(&former(&[policy, node])).whole();
        let expected = Names {
            pod_label: label("state", "evil"),
            node_label: label("kind", "bad"),
            policy: "deny-evil".into(),
        };
        assert_eq!(told, Some(expected));
    }

    #[test]
    fn what_was_there_before_the_plan_is_told_by_the_object_that_was_read_or_not_at_all() {
        let told = Recorded::of(&former(&[]));
        assert_eq!(told.node_label, Some(label("kind", "bad before")));
        assert_eq!(told.policy, None);
        let names = Names::default();
        assert_eq!(told.clone().or(&names).policy, names.policy);
        assert_eq!(told.whole(), None);
    }
}
