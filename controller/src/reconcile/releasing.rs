//! Undoes what was recorded, in reverse, and nothing that others changed meanwhile.

use std::time::Duration;

use super::containing::{StepError, backoff, in_force};
use super::record::Record;
use super::{Context, ReconcileError, isolating};
use crate::contain::observe::{self, ObserveError};
use crate::contain::refusal::Refusal;
use crate::contain::{node, pod, policy, protect};
use crate::kubernetes::{read, send};
use crate::resources::{ApiCall, Quarantine, QuarantinePhase, StepName, StepState, Undo};

/// Tries of one call within one attempt, as in containment.
const TRIES: usize = 5;

/// Carries one release step out; returns a delay if it has to be tried again.
///
/// # Errors
/// If the API can't be read.
pub async fn undo(
    record: &mut Record,
    context: &Context,
    step: StepName,
) -> Result<Option<Duration>, ReconcileError> {
    if record.status.phase != QuarantinePhase::Releasing {
        record.enter(
            QuarantinePhase::Releasing,
            "recorded changes are being undone, last first",
        );
    }
    let attempts = record.begin(step);
    let undone = match step {
        StepName::UndoIsolate => isolating::undo(record, context, attempts).await,
        _ => attempt(record, context, step).await,
    };
    match undone {
        Ok(Undone::Now(message)) => record.end(step, StepState::Done, message),
        Ok(Undone::NotNeeded(message)) => record.end(step, StepState::Skipped, message),
        Ok(Undone::GivenUp(message)) => record.end(step, StepState::Failed, message),
        // A release is not over while something is left to undo.
        Err(
            StepError::Transient(message)
            | StepError::Refused(message)
            | StepError::Hopeless(message),
        ) => {
            record.wait(step, format!("NOT undone, tried again: {message}"));
            return Ok(Some(backoff(attempts)));
        }
    }
    Ok(None)
}

/// How a release step ended, with what to say of it.
pub(super) enum Undone {
    /// Its effect was brought about.
    Now(String),
    /// Nothing of ours was left, or others need it.
    NotNeeded(String),
    /// It is left undone, as a forced release may.
    GivenUp(String),
}

async fn attempt(record: &Record, context: &Context, step: StepName) -> Result<Undone, StepError> {
    // Node and policy are shared: nobody plans with them between our look and our write.
    let _alone = context.shared.lock().await;
    let others: Vec<Quarantine> = in_force(context)
        .await?
        .into_iter()
        .filter(|other| other.metadata.uid != record.object.metadata.uid)
        .filter(|other| {
            other
                .status
                .as_ref()
                .is_some_and(|status| status.phase != QuarantinePhase::Releasing)
        })
        .collect();
    if let Some(message) = still_needed(record, &others, step) {
        return Ok(Undone::NotNeeded(message));
    }
    let mut last = StepError::Transient("no attempt was made".into());
    for _ in 0..TRIES {
        let call = match next_call(record, context, step).await? {
            Ok(call) => call,
            Err(message) => return Ok(Undone::NotNeeded(message)),
        };
        match send(&context.client, &call).await {
            Ok(_) => return Ok(Undone::Now(call.purpose)),
            Err(error) if error.code() == 404 => {
                return Ok(Undone::NotNeeded("it is gone already".into()));
            }
            Err(error) if error.is_conflict() || error.code() == 422 => last = error.into(),
            Err(error) => return Err(error.into()),
        }
    }
    Err(last)
}

/// Node and namespace are shared: the last quarantine that is released undoes them.
fn still_needed(record: &Record, others: &[Quarantine], step: StepName) -> Option<String> {
    let sharing = others.iter().find(|other| match step {
        StepName::UndoLabelNode | StepName::UndoCordon => {
            other
                .status
                .as_ref()
                .and_then(|status| status.node.as_ref())
                == record.status.node.as_ref()
        }
        StepName::UndoPolicy => other.metadata.namespace == record.object.metadata.namespace,
        _ => false,
    })?;
    Some(format!(
        "left as it is: quarantine {}/{} still needs it",
        sharing.metadata.namespace.as_deref().unwrap_or_default(),
        sharing.metadata.name.as_deref().unwrap_or_default()
    ))
}

/// The call of a step, or why none is needed.
async fn next_call(
    record: &Record,
    context: &Context,
    step: StepName,
) -> Result<Result<ApiCall, String>, StepError> {
    let Undo {
        pod: pod_undo,
        node: node_undo,
        ..
    } = record.status.undo.clone().unwrap_or_default();
    let namespace = record.namespace();
    let call = match step {
        StepName::UndoLabelNode | StepName::UndoCordon => {
            let name = record.status.node.clone().unwrap_or_default();
            let Some(node) = observe::node(&context.client, &name).await? else {
                return Ok(Err(format!("node {name} is gone")));
            };
            if step == StepName::UndoCordon {
                node::uncordon(&node, &node_undo)
            } else {
                node::unlabel(&node, &node_undo, &context.settings)
            }
        }
        StepName::UndoStrip => {
            let pod = &record.object.spec.pod;
            match observe::suspect(&context.client, &namespace, pod).await {
                Ok((_, pod)) if pod.metadata.uid == record.status.pod_uid => {
                    pod::restore(&pod, &pod_undo)
                }
                Ok(_) | Err(ObserveError::Refused(Refusal::NoSuchPod { .. })) => {
                    return Ok(Err("the pod is gone".into()));
                }
                Err(error) => return Err(error.into()),
            }
        }
        StepName::UndoPolicy => {
            let policies = observe::policies(&context.client, &namespace).await?;
            policy::remove(&namespace, &policies, &context.settings)
        }
        StepName::UndoProtect => {
            let path = protect::budget_path(&namespace, &record.name());
            let budget = read(&context.client, &path).await?;
            budget.map(|budget| {
                let uid = budget
                    .pointer("/metadata/uid")
                    .and_then(serde_json::Value::as_str);
                protect::remove(&namespace, &record.name(), uid)
            })
        }
        other => {
            return Err(StepError::Hopeless(format!(
                "{other} is not a release step"
            )));
        }
    };
    Ok(call.ok_or_else(|| "nothing of ours was left".into()))
}

/// Every step has ended well; the objects that undoing needed are not kept any longer.
pub fn finish(record: &mut Record) {
    let owner = record.status.owner.clone().unwrap_or_default();
    let adopted = if owner == "nobody" {
        "released".to_owned()
    } else {
        format!(
            "released; {owner} adopts the pod again and removes one of its pods, which may be this one"
        )
    };
    record.status.before = None;
    record.status.plan.clear();
    record.enter(QuarantinePhase::Released, adopted);
}

/// The reason why a release has to wait, for status and clients.
#[must_use]
pub fn refusal() -> String {
    "release refused: the evidence is not sealed complete, and putting the labels back makes the \
     controller adopt the pod and delete one of its pods. Collect again, or release with --force"
        .into()
}
