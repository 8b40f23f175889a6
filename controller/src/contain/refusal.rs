//! Why a pod is not contained: said before anything is changed.

use impound_evidence::age::AgeError;
use thiserror::Error;

/// A pod that can't be contained safely. Nothing was changed.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Refusal {
    /// The evidence can't be encrypted to somebody who is to read it.
    #[error(
        "encryptTo: {source}; nothing is changed yet: create another quarantine with the right keys"
    )]
    Recipients {
        /// Why.
        source: AgeError,
    },
    /// The pod does not exist.
    #[error(
        "pod {namespace}/{pod} does not exist: check the name with `kubectl get pods -n {namespace}`"
    )]
    NoSuchPod {
        /// Namespace asked for.
        namespace: String,
        /// Pod asked for.
        pod: String,
    },
    /// The pod of that name is another one.
    #[error(
        "pod {pod} has uid {found}, expected {expected}: it was re-created; the pod you mean is gone"
    )]
    OtherUid {
        /// Namespace and name.
        pod: String,
        /// uid asked for.
        expected: String,
        /// uid found.
        found: String,
    },
    /// The pod is not on a node.
    #[error(
        "pod {pod} is not scheduled to a node yet (phase {phase}): nothing of it runs; delete it or wait"
    )]
    NotScheduled {
        /// Namespace and name.
        pod: String,
        /// Pod phase.
        phase: String,
    },
    /// The node object does not exist.
    #[error("node {node} of pod {pod} does not exist in the API: check `kubectl get nodes`")]
    NoSuchNode {
        /// Namespace and name.
        pod: String,
        /// Node of the pod.
        node: String,
    },
    /// The pod has ended.
    #[error(
        "pod {pod} has ended (phase {phase}), so there is nothing to contain; \
         collect its evidence with `impound collect`"
    )]
    Ended {
        /// Namespace and name.
        pod: String,
        /// Pod phase.
        phase: String,
    },
    /// The pod is quarantined already.
    #[error("pod {pod} is quarantined already by {by}: see `impound status {by}`")]
    AlreadyQuarantined {
        /// Namespace and name.
        pod: String,
        /// Name of the other Quarantine.
        by: String,
    },
    /// A rule of the isolation's allow-list that the agent would not take.
    #[error("the isolation can't allow {rule:?}: {reason}. Nothing was changed; create it again")]
    BadAllowRule {
        /// The rule in words.
        rule: String,
        /// What was expected.
        reason: &'static str,
    },
    /// A policy of that name exists and is somebody else's.
    #[error(
        "a NetworkPolicy {namespace}/{name} exists that does not deny all traffic of the label \
         {label}: it is not as Impound makes it; delete or rename it, or choose another name with --policy-name"
    )]
    ForeignPolicy {
        /// Namespace.
        namespace: String,
        /// Policy name.
        name: String,
        /// Label expected.
        label: String,
    },
    /// A Quarantine whose name can't be a label value.
    #[error(
        "the Quarantine's name {name} has {} characters, at most {limit} are possible: create it \
         again with a shorter name", name.len()
    )]
    NameTooLong {
        /// Name of the Quarantine.
        name: String,
        /// Greatest length in characters.
        limit: usize,
    },
    /// A case or a Quarantine whose name can't be part of the evidence's path.
    #[error(
        "the evidence could not be stored under this name: {reason}. Nothing was changed; create it again"
    )]
    BadName {
        /// What was expected and what came.
        reason: String,
    },
}
