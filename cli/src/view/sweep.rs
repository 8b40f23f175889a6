//! Sweeps and their targets as JSON and YAML.

use impound_proto::controller::v1 as wire;
use serde::Serialize;

use crate::human::exact;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Sweep {
    name: String,
    case: String,
    reason: String,
    requested_by: String,
    select: PodSelection,
    at_once: u32,
    per_node: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<String>,
    state: String,
    phase: String,
    message: String,
    targets: u32,
    nodes: u32,
    namespaces: u32,
    #[serde(skip_serializing_if = "String::is_empty")]
    left_out: String,
    counts: SweepCounts,
    bytes: u64,
    exceptions: Vec<SweepTarget>,
    more_exceptions: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expanded: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finished: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PodSelection {
    all_namespaces: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    namespaces: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    labels: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    node_labels: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    images: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    owner: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct SweepCounts {
    waiting: u32,
    running: u32,
    sealed: u32,
    partial: u32,
    failed: u32,
    absent: u32,
    expired: u32,
    cancelled: u32,
}

/// A pod of a sweep.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SweepTarget {
    namespace: String,
    pod: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pod_uid: String,
    node: String,
    state: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    case: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    collection: String,
    bytes: u64,
}

/// What a sweep would take.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SweepPlan {
    targets: u32,
    nodes: Vec<Share>,
    namespaces: Vec<Share>,
    cases: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    left_out: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Share {
    name: String,
    targets: u32,
}

impl From<&wire::Sweep> for Sweep {
    fn from(sweep: &wire::Sweep) -> Self {
        let select = sweep.select.clone().unwrap_or_default();
        let counts = sweep.counts.unwrap_or_default();
        Self {
            name: sweep.name.clone(),
            case: sweep.case_id.clone(),
            reason: sweep.reason.clone(),
            requested_by: sweep.requested_by.clone(),
            select: PodSelection {
                all_namespaces: select.all_namespaces,
                namespaces: select.namespaces,
                labels: select.labels,
                node_labels: select.node_labels,
                images: select.images,
                owner: select.owner,
            },
            at_once: sweep.at_once,
            per_node: sweep.per_node,
            expires: exact(sweep.expires.as_ref()),
            state: sweep.state.clone(),
            phase: sweep.phase.clone(),
            message: sweep.message.clone(),
            targets: sweep.targets,
            nodes: sweep.nodes,
            namespaces: sweep.namespaces,
            left_out: sweep.left_out.clone(),
            counts: SweepCounts {
                waiting: counts.waiting,
                running: counts.running,
                sealed: counts.sealed,
                partial: counts.partial,
                failed: counts.failed,
                absent: counts.absent,
                expired: counts.expired,
                cancelled: counts.cancelled,
            },
            bytes: sweep.bytes,
            exceptions: sweep.exceptions.iter().map(SweepTarget::from).collect(),
            more_exceptions: sweep.more_exceptions,
            created: exact(sweep.created.as_ref()),
            expanded: exact(sweep.expanded.as_ref()),
            finished: exact(sweep.finished.as_ref()),
        }
    }
}

impl From<&wire::SweepTarget> for SweepTarget {
    fn from(target: &wire::SweepTarget) -> Self {
        Self {
            namespace: target.namespace.clone(),
            pod: target.pod.clone(),
            pod_uid: target.pod_uid.clone(),
            node: target.node.clone(),
            state: target.state.clone(),
            message: target.message.clone(),
            case: target.case_id.clone(),
            collection: target.collection.clone(),
            bytes: target.bytes,
        }
    }
}

impl From<&wire::SweepPlan> for SweepPlan {
    fn from(plan: &wire::SweepPlan) -> Self {
        let share = |share: &wire::Share| Share {
            name: share.name.clone(),
            targets: share.targets,
        };
        Self {
            targets: plan.targets,
            nodes: plan.nodes.iter().map(share).collect(),
            namespaces: plan.namespaces.iter().map(share).collect(),
            cases: plan.cases.clone(),
            left_out: plan.left_out.clone(),
        }
    }
}
