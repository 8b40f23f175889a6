//! Custom resources as messages of the wire contract.

use impound_proto::controller::v1 as wire;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use k8s_openapi::jiff;
use prost_types::Timestamp;

use super::isolation;
use crate::contain::plan::Plan;
use crate::progress::{ArtifactProgress, CollectionProgress};
use crate::resources::{ApiCall, ArtifactStatus, Collection, Quarantine};

pub(super) fn quarantine(object: &Quarantine) -> wire::Quarantine {
    let metadata = &object.metadata;
    let spec = &object.spec;
    let status = object.status.clone().unwrap_or_default();
    wire::Quarantine {
        namespace: metadata.namespace.clone().unwrap_or_default(),
        name: metadata.name.clone().unwrap_or_default(),
        case_id: spec.case.clone(),
        reason: spec.reason.clone(),
        requested_by: spec.requested_by.clone(),
        pod: spec.pod.clone(),
        pod_uid: status
            .pod_uid
            .or_else(|| spec.pod_uid.clone())
            .unwrap_or_default(),
        node: status.node.unwrap_or_default(),
        phase: format!("{:?}", status.phase),
        message: status.message,
        steps: status
            .steps
            .into_iter()
            .map(|step| wire::Step {
                name: step.name.to_string(),
                state: format!("{:?}", step.state),
                message: step.message,
                started: step.started.as_ref().map(micro),
                finished: step.finished.as_ref().map(micro),
                attempts: step.attempts,
            })
            .collect(),
        facts: status
            .facts
            .into_iter()
            .map(|fact| wire::Fact {
                name: fact.name,
                state: format!("{:?}", fact.state),
                message: fact.message,
            })
            .collect(),
        warnings: status.warnings,
        verdict: status
            .verdict
            .map_or_else(String::new, |verdict| format!("{verdict:?}")),
        isolation: status.isolation.as_ref().map(isolation::in_force),
        attempts: status.attempts.iter().map(isolation::attempt).collect(),
        collection: status.collection.unwrap_or_default(),
        later_collections: status
            .later_collections
            .into_iter()
            .map(|later| wire::LaterCollection {
                name: later.name,
                reason: later.reason,
                phase: later
                    .phase
                    .map_or_else(String::new, |phase| format!("{phase:?}")),
                message: later.message,
            })
            .collect(),
        created: metadata.creation_timestamp.as_ref().map(second),
        resource_version: metadata.resource_version.clone().unwrap_or_default(),
        credentials: status
            .credentials
            .into_iter()
            .map(|credential| wire::Credential {
                kind: credential.kind,
                name: credential.name,
                grants: credential.grants,
                revoke: credential.revoke,
            })
            .collect(),
        drift: status
            .drift
            .into_iter()
            .map(|drift| wire::Drift {
                time: Some(micro(&drift.time)),
                reason: drift.reason,
                what: drift.what,
            })
            .collect(),
        evictions: status
            .evictions
            .into_iter()
            .map(|eviction| wire::Eviction {
                namespace: eviction.namespace,
                pod: eviction.pod,
                state: format!("{:?}", eviction.state),
                message: eviction.message,
            })
            .collect(),
    }
}

/// `live` is newer than the object where this replica is collecting.
pub(super) fn collection(
    object: &Collection,
    live: Option<&CollectionProgress>,
) -> wire::Collection {
    let metadata = &object.metadata;
    let spec = &object.spec;
    let status = object.status.clone().unwrap_or_default();
    wire::Collection {
        namespace: metadata.namespace.clone().unwrap_or_default(),
        name: metadata.name.clone().unwrap_or_default(),
        case_id: spec.case.clone(),
        reason: spec.reason.clone(),
        requested_by: spec.requested_by.clone(),
        pod: spec.pod.clone(),
        pod_uid: status
            .pod_uid
            .clone()
            .or_else(|| spec.pod_uid.clone())
            .unwrap_or_default(),
        node: status
            .node
            .clone()
            .or_else(|| spec.node.clone())
            .unwrap_or_default(),
        phase: format!("{:?}", status.phase),
        artifacts: match live {
            Some(live) => live.artifacts.iter().map(live_artifact).collect(),
            None => status.artifacts.iter().map(recorded_artifact).collect(),
        },
        message: status.message,
        location: status.location.unwrap_or_default(),
        manifest_sha256: status.manifest_sha256.unwrap_or_default(),
        created: metadata.creation_timestamp.as_ref().map(second),
        finished: status.finished.as_ref().map(micro),
        resource_version: metadata.resource_version.clone().unwrap_or_default(),
    }
}

pub(super) fn plan(plan: &Plan) -> wire::Plan {
    calls(&plan.calls, &plan.warnings)
}

pub(super) fn calls(calls: &[ApiCall], warnings: &[String]) -> wire::Plan {
    wire::Plan {
        calls: calls.iter().map(call).collect(),
        warnings: warnings.to_vec(),
    }
}

fn recorded_artifact(artifact: &ArtifactStatus) -> wire::CollectedArtifact {
    wire::CollectedArtifact {
        path: artifact.path.clone(),
        state: format!("{:?}", artifact.state),
        bytes: artifact.bytes,
        expected_bytes: 0,
        sha256: artifact.sha256.clone().unwrap_or_default(),
        message: artifact.message.clone(),
        started: None,
        finished: None,
    }
}

fn live_artifact(artifact: &ArtifactProgress) -> wire::CollectedArtifact {
    wire::CollectedArtifact {
        path: artifact.path.to_string(),
        state: format!("{:?}", artifact.state),
        bytes: artifact.bytes,
        expected_bytes: artifact.expected_bytes,
        sha256: artifact
            .sha256
            .map(|sha256| sha256.to_string())
            .unwrap_or_default(),
        message: artifact.message.clone(),
        started: artifact.started.map(evidence_time),
        finished: artifact.finished.map(evidence_time),
    }
}

fn call(call: &ApiCall) -> wire::ApiCall {
    wire::ApiCall {
        step: call.step.to_string(),
        method: call.method.clone(),
        path: call.path.clone(),
        content_type: call.content_type.clone(),
        body: call.body.clone(),
        purpose: call.purpose.clone(),
    }
}

pub(super) fn micro(time: &MicroTime) -> Timestamp {
    timestamp(time.0)
}

pub(super) fn second(time: &Time) -> Timestamp {
    timestamp(time.0)
}

fn timestamp(time: jiff::Timestamp) -> Timestamp {
    Timestamp {
        seconds: time.as_second(),
        nanos: time.subsec_nanosecond(),
    }
}

fn evidence_time(time: impound_evidence::Timestamp) -> Timestamp {
    let time = time.to_utc();
    Timestamp {
        seconds: time.unix_timestamp(),
        nanos: i32::try_from(time.nanosecond()).unwrap_or(0),
    }
}
