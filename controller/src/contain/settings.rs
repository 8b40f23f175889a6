//! Names and labels that containment uses; the defaults are those of the manual procedure.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::resources::{Label, Names};

/// Label on a quarantined pod that names its Quarantine object: selected by the suspect's own
/// disruption budget.
pub const QUARANTINE_LABEL: &str = "impound.dev/quarantine";

/// Label on a Quarantine that is released or refused, so that planning need not read it. Those without
/// it are read and judged by their status: also objects of versions that did not set the label.
pub const OVER_LABEL: (&str, &str) = ("impound.dev/over", "true");

/// Label on pods that an eviction by Impound must leave alone: agent, controller, store.
pub const PART_OF_LABEL: (&str, &str) = ("app.kubernetes.io/part-of", "impound");

/// Label on the deny-all policies: the admission policies know them by it, whatever they are called.
pub const DENY_ALL_LABEL: (&str, &str) = ("impound.dev/deny-all", "true");

/// Annotations that keep autoscalers from deleting the suspect pod.
/// Source: Cluster Autoscaler FAQ ("safe-to-evict") and Karpenter's disruption documentation.
pub const POD_ANNOTATIONS: [(&str, &str); 2] = [
    ("cluster-autoscaler.kubernetes.io/safe-to-evict", "false"),
    ("karpenter.sh/do-not-disrupt", "true"),
];

/// Annotations that keep autoscalers from deleting the suspect's node. Sources as above.
pub const NODE_ANNOTATIONS: [(&str, &str); 2] = [
    (
        "cluster-autoscaler.kubernetes.io/scale-down-disabled",
        "true",
    ),
    ("karpenter.sh/do-not-disrupt", "true"),
];

/// Key of the taint that keeps new pods away even where they tolerate a cordon (DaemonSets do).
pub const TAINT_KEY: &str = "impound.dev/suspect";

/// Node label that the kubelet may not change: the NodeRestriction admission plugin protects the
/// prefix, so a compromised node cannot take it off itself.
pub const PROTECTED_NODE_LABEL: (&str, &str) =
    ("node-restriction.kubernetes.io/impound", "suspect");

/// Finalizer that keeps a Quarantine from being deleted, and its undo data from being lost, before it
/// is released.
pub const FINALIZER: &str = "impound.dev/undo";

/// Name under which the API server records our writes.
pub const FIELD_MANAGER: &str = "impound";

/// What an installation may choose.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What the marks of a quarantine that is planned from now on are called; of an older one its record says it.
    pub names: Names,
    /// Whether pods are isolated at their node, where a quarantine does not say.
    pub isolate: bool,
    /// Port at which every node's agent listens.
    pub agent_port: u16,
    /// Longest time for which a pod without liveness and startup probes is paused.
    pub freeze_limit: Duration,
    /// Namespace that the controller itself runs in, if it runs in the cluster.
    pub own_namespace: Option<String>,
    /// Name of the controller's own pod, if it is one.
    pub own_pod: Option<String>,
    /// Pods of the evidence store, which are never evicted.
    pub store_pods: Option<StorePods>,
}

/// Which pods the evidence store runs in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StorePods {
    /// Their namespace.
    pub namespace: String,
    /// Labels that each of them has; at least one.
    pub labels: BTreeMap<String, String>,
}

impl Default for Names {
    fn default() -> Self {
        let label = |value: &str| Label {
            key: "status".into(),
            value: value.into(),
        };
        Self {
            pod_label: label("suspectpod"),
            node_label: label("suspectnode"),
            policy: "deny-all-suspectpod".into(),
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            names: Names::default(),
            isolate: true,
            agent_port: 7443,
            freeze_limit: Duration::from_secs(60),
            own_namespace: None,
            own_pod: None,
            store_pods: None,
        }
    }
}
