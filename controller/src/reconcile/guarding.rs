//! Keeps a contained pod contained: what somebody takes away again is put back and written down,
//! and a restarted container is reported as the loss of evidence that it is.
//!
//! Each look asks the same pure functions as containment did: a call that they still want made is
//! something that has drifted.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use super::record::Record;
use super::{Context, ReconcileError};
use crate::contain::observe::{self, ObserveError};
use crate::contain::refusal::Refusal;
use crate::contain::{node, pod, policy, protect};
use crate::describe::describe;
use crate::kubernetes::{ApiError, read, send};
use crate::resources::{ApiCall, Drift, QuarantinePhase, now};

/// Entries kept in the status: enough to see a pattern, far below any size limit. Every one is
/// also an Event and a line in the log.
const KEPT: usize = 50;

const RESTORED: &str = "Restored";

/// Whether a quarantine in this phase is in force and not about to end.
#[must_use]
pub fn applies(phase: QuarantinePhase) -> bool {
    matches!(
        phase,
        QuarantinePhase::Contained | QuarantinePhase::Complete | QuarantinePhase::Incomplete
    )
}

/// Looks at pod, node, policy and budget, puts back what is missing, and records it.
///
/// # Errors
/// If the API can't be read; a refused write is recorded and tried again at the next look.
pub async fn look(record: &mut Record, context: &Context) -> Result<(), ReconcileError> {
    let namespace = record.namespace();
    let suspect = match observe::suspect(&context.client, &namespace, &record.object.spec.pod).await {
        Ok((_, pod)) if pod.metadata.uid == record.status.pod_uid => Some(pod),
        Ok(_) | Err(ObserveError::Refused(Refusal::NoSuchPod { .. })) => None,
        Err(error) => return Err(error.into()),
    };
    let Some(suspect) = suspect else {
        note(record, "PodGone", "the suspect pod is gone: its containers can't be collected any more".into());
        return Ok(());
    };
    restarts(record, &suspect);
    for call in missing(record, context, &suspect).await? {
        match send(&context.client, &call).await {
            Ok(_) => note(record, RESTORED, format!("{}: taken away by somebody, put back", call.purpose)),
            // Somebody else writes at the same moment: their change triggers the next look.
            Err(error) if error.is_conflict() => {}
            Err(error) => note(record, "NotRestored", format!("{}: {}", call.purpose, describe(&error))),
        }
    }
    Ok(())
}

async fn missing(
    record: &Record,
    context: &Context,
    suspect: &Pod,
) -> Result<Vec<ApiCall>, ReconcileError> {
    let namespace = record.namespace();
    let undo = record.status.undo.clone().unwrap_or_default();
    let node_name = record.status.node.clone().unwrap_or_default();
    let budget_path = protect::budget_path(&namespace, &record.name());
    let (node, policies, budget) = futures::try_join!(
        observe::node(&context.client, &node_name),
        observe::policies(&context.client, &namespace),
        async { read(&context.client, &budget_path).await.map_err(|error: ApiError| error.into()) },
    )?;
    let mut calls = Vec::new();
    if let Some(node) = &node {
        // One patch at a time: the second would carry a resourceVersion that the first has changed.
        calls.extend(node::cordon(node).or_else(|| node::label(node, &context.settings)));
    }
    if budget.is_none() {
        calls.push(protect::create(&namespace, &record.name()));
    }
    // A foreign policy of our name was refused at the start; now it can only be told.
    if let Ok(call) = policy::deny_all(&namespace, &policies, &context.settings) {
        calls.extend(call);
    }
    calls.extend(pod::strip(suspect, &undo.pod));
    Ok(calls)
}

/// Compares the containers with those that ran when the pod was contained.
fn restarts(record: &mut Record, suspect: &Pod) {
    let before: Option<Pod> = record
        .status
        .before
        .as_ref()
        .and_then(|before| serde_json::from_value(before.pod.clone()).ok());
    let before = before.as_ref().map(container_ids).unwrap_or_default();
    for (name, (id, restarts)) in container_ids(suspect) {
        let Some((old, _)) = before.get(&name).filter(|(old, _)| *old != id) else { continue };
        note(
            record,
            "EvidenceLoss",
            format!(
                "container {name} was restarted (restart {restarts}): {old} is now {id}; what {old} changed is \
                 lost as soon as the kubelet removes it. It was collected if it still existed"
            ),
        );
    }
}

fn container_ids(pod: &Pod) -> BTreeMap<String, (String, i32)> {
    let statuses = pod.status.iter().flat_map(|status| {
        let all = [
            &status.init_container_statuses,
            &status.container_statuses,
            &status.ephemeral_container_statuses,
        ];
        all.into_iter().flatten().flatten()
    });
    let known = |status: &ContainerStatus| {
        let id = status.container_id.clone()?;
        Some((status.name.clone(), (id, status.restart_count)))
    };
    statuses.filter_map(known).collect()
}

/// Records what happened. A state that lasts is recorded once; each restoration is a new event.
fn note(record: &mut Record, reason: &str, what: String) {
    let said = record.status.drift.iter().any(|drift| drift.reason == reason && drift.what == what);
    if said && reason != RESTORED {
        return;
    }
    record.alert(reason, what.clone());
    record.status.drift.push(Drift { time: now(), reason: reason.into(), what });
    let surplus = record.status.drift.len().saturating_sub(KEPT);
    record.status.drift.drain(..surplus);
}
