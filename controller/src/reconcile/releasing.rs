//! Undoes what was recorded, in reverse, and nothing that others changed meanwhile.

use std::time::Duration;

use k8s_openapi::api::networking::v1::NetworkPolicy;

use super::containing::{StepError, TRIES, backoff, in_force};
use super::next_step::{self, RELEASE};
use super::record::Record;
use super::{Context, ReconcileError, isolating};
use crate::contain::observe::{self, ObserveError, controller_of};
use crate::contain::plugin::deny;
use crate::contain::refusal::Refusal;
use crate::contain::{node, pod, policy, protect};
use crate::kubernetes::{ApiError, pace, read, send};
use crate::resources::{
    ApiCall, DenyUndo, EvictionState, Names, Quarantine, QuarantinePhase, StepName, StepState, Undo,
};

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
        Err(Stop::Unrecorded(error)) => return Err(error),
        // A release is not over while something is left to undo.
        Err(Stop::Step(error)) => {
            let message = format!("NOT undone, tried again: {}", error.message());
            record.wait(step, message);
            pace::leave_alone(error.wait());
            return Ok(Some(backoff(attempts).max(error.wait())));
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

/// Why an attempt to undo something has not done it.
pub(super) enum Stop {
    /// The step is tried again.
    Step(StepError),
    /// What was to be done could not be recorded before, so nothing was sent: the reconciliation is begun again.
    Unrecorded(ReconcileError),
}

impl<E: Into<StepError>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Step(error.into())
    }
}

impl From<ReconcileError> for Stop {
    fn from(error: ReconcileError) -> Self {
        Self::Unrecorded(error)
    }
}

/// What was brought about by a call whose answer never came.
pub(super) fn unanswered(what: &str) -> String {
    format!("{what} (seen afterwards: the answer to the call never came)")
}

async fn attempt(record: &mut Record, context: &Context, step: StepName) -> Result<Undone, Stop> {
    // Node and policy are shared: nobody plans with them between our look and our write.
    let _alone = context.shared.lock().await;
    let others = others(record, context).await?;
    let mut done = Vec::new();
    // What was sent and not answered, perhaps to a controller that has ended since: it may have had its effect.
    let mut open = record.intended(step);
    let mut last = StepError::Transient("no attempt was made".into());
    'tries: for _ in 0..TRIES {
        let Undoing { calls, left } = undoing(record, context, step, &others).await?;
        // What has to be sent has not had it.
        open.retain(|what| calls.iter().all(|call| call.purpose != *what));
        if !calls.is_empty() {
            let purposes = calls.iter().map(|call| call.purpose.clone());
            record.intend(step, open.iter().cloned().chain(purposes).collect());
            record.save().await?;
        }
        for call in calls {
            match send(&context.client, &call).await {
                Ok(_) => done.push(call.purpose),
                Err(error) if error.code() == 404 => {}
                Err(error) if error.is_conflict() || error.code() == 422 => {
                    last = error.into();
                    continue 'tries;
                }
                Err(error @ ApiError::NoAnswer { .. }) => {
                    last = error.into();
                    open.push(call.purpose);
                    continue 'tries;
                }
                Err(error) => {
                    record.intend(step, open);
                    return Err(error.into());
                }
            }
        }
        // Nothing is left of what is open, so it had its effect.
        open.retain(|what| !done.contains(what));
        done.extend(open.iter().map(|what| unanswered(what)));
        let undone = !done.is_empty();
        done.extend(left);
        let message = done.join("; ");
        return Ok(match (undone, message.is_empty()) {
            (true, _) => Undone::Now(message),
            (false, false) => Undone::NotNeeded(message),
            (false, true) => Undone::NotNeeded("nothing of ours was left".into()),
        });
    }
    record.intend(step, open);
    Err(last.into())
}

/// What a release would send now, in order, and what it leads to. The resourceVersions are those of now;
/// each is read again just before its call is made.
///
/// # Errors
/// If the API can't be read.
pub async fn plan(record: &Record, context: &Context) -> Result<Release, ObserveError> {
    let _alone = context.shared.lock().await;
    let others = others(record, context).await?;
    let mut planned = Release {
        calls: Vec::new(),
        warnings: consequences(record),
    };
    let status = &record.status;
    for step in RELEASE {
        let ended = next_step::state(status, step).is_some_and(StepState::is_final);
        if ended || !next_step::is_wanted(status, step) {
            continue;
        }
        if step == StepName::UndoIsolate && status.undo.as_ref().is_some_and(|undo| undo.isolated) {
            let node = status.node.clone().unwrap_or_default();
            planned.warnings.push(format!(
                "{step}: the agent of node {node} lifts the isolation."
            ));
        }
        let undoing = undoing(record, context, step, &others).await?;
        planned.calls.extend(undoing.calls);
        let left = undoing.left.into_iter();
        planned
            .warnings
            .extend(left.map(|why| format!("{step}: {why}.")));
    }
    Ok(planned)
}

/// What a release does.
pub struct Release {
    /// Calls in the order in which they are made.
    pub calls: Vec<ApiCall>,
    /// Consequences, and what is left as it is, one sentence each.
    pub warnings: Vec<String>,
}

/// What follows from putting the labels back, by the kind of the pod's controller (recorded on
/// Kubernetes 1.36).
fn consequences(record: &Record) -> Vec<String> {
    let status = &record.status;
    let Some(undo) = &status.undo else {
        return vec!["Nothing was changed yet: the quarantine is withdrawn.".into()];
    };
    let owner = status.owner.clone().unwrap_or_default();
    let kind = controller_of(Some(&undo.pod.owner_references)).map(|owner| owner.kind.as_str());
    let mut consequences = Vec::new();
    consequences.extend(match kind {
        None => None,
        Some(_) if undo.untouched.is_some() => None,
        Some("StatefulSet") => Some(format!(
            "{owner} adopts the pod again at once; it wanted a pod of this name, so none is deleted."
        )),
        Some("DaemonSet") => Some(format!(
            "{owner} adopts the pod again at once; if it has started another one on the node, it deletes one of \
             the two, perhaps this one."
        )),
        Some("Job") => Some(format!(
            "{owner} takes the pod up again at once and counts it; if it has as many as it wants, it deletes \
             one, perhaps this one."
        )),
        Some(_) => Some(format!(
            "{owner} adopts the pod again within milliseconds and, having started a replacement, deletes one of \
             its pods, perhaps this one: what of it is not collected is lost."
        )),
    });
    consequences.push(if undo.untouched.is_some() {
        "The pod itself was not changed; its node lets its traffic through again.".into()
    } else {
        "The suspect's traffic is let through again, and the Services that selected it send it requests.".into()
    });
    let moved = status.evictions.iter();
    let moved = moved.filter(|eviction| eviction.state == EvictionState::Gone);
    match moved.count() {
        0 => {}
        moved => consequences.push(format!(
            "The {moved} pods that were evicted stay where their controllers started them anew."
        )),
    }
    consequences
}

/// The other quarantines in force; those that are being undone need nothing any more.
async fn others(record: &Record, context: &Context) -> Result<Vec<Quarantine>, ObserveError> {
    let mut others = in_force(context).await?;
    others.retain(|other| {
        let phase = other.status.as_ref().map(|status| status.phase);
        other.metadata.uid != record.object.metadata.uid
            && phase != Some(QuarantinePhase::Releasing)
    });
    Ok(others)
}

/// The calls of one step, and why something is left as it is.
#[derive(Default)]
struct Undoing {
    calls: Vec<ApiCall>,
    left: Vec<String>,
}

impl Undoing {
    fn left(why: impl Into<String>) -> Self {
        Self {
            left: vec![why.into()],
            ..Self::default()
        }
    }
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
        StepName::UndoPolicy | StepName::UndoDeny => {
            other.metadata.namespace == record.object.metadata.namespace
        }
        _ => false,
    })?;
    Some(needed_by(sharing))
}

fn needed_by(other: &Quarantine) -> String {
    format!(
        "left as it is: quarantine {}/{} still needs it",
        other.metadata.namespace.as_deref().unwrap_or_default(),
        other.metadata.name.as_deref().unwrap_or_default()
    )
}

/// What a step has to send, as things are now.
async fn undoing(
    record: &Record,
    context: &Context,
    step: StepName,
    others: &[Quarantine],
) -> Result<Undoing, ObserveError> {
    if let Some(why) = still_needed(record, others, step) {
        return Ok(Undoing::left(why));
    }
    let undo = record.status.undo.clone().unwrap_or_default();
    let namespace = record.namespace();
    let names = &record.names();
    let call = match step {
        StepName::UndoLabelNode | StepName::UndoCordon => {
            let name = record.status.node.clone().unwrap_or_default();
            let Some(node) = observe::node(&context.client, &name).await? else {
                return Ok(Undoing::left(format!("node {name} is gone")));
            };
            if step == StepName::UndoCordon {
                node::uncordon(&node, &undo.node)
            } else {
                node::unlabel(&node, &undo.node, names)
            }
        }
        StepName::UndoStrip => {
            let pod = &record.object.spec.pod;
            match observe::suspect(&context.client, &namespace, pod).await {
                Ok((_, pod)) if pod.metadata.uid == record.status.pod_uid => {
                    let left = pod::changed_by_others(&pod, &undo.pod);
                    let calls = pod::restore(&pod, &undo.pod).into_iter().collect();
                    return Ok(Undoing { calls, left });
                }
                Ok(_) | Err(ObserveError::Refused(Refusal::NoSuchPod { .. })) => {
                    return Ok(Undoing::left("the pod is gone"));
                }
                Err(error) => return Err(error),
            }
        }
        StepName::UndoExclude => {
            let policies = observe::policies(&context.client, &namespace).await?;
            return Ok(include_again(record, &policies, &undo, others, names));
        }
        StepName::UndoDeny => return remove_denies(context, &undo.denies).await,
        StepName::UndoPolicy => {
            let policies = observe::policies(&context.client, &namespace).await?;
            policy::remove(&namespace, &policies, names)
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
        _ => None,
    };
    Ok(Undoing {
        calls: call.into_iter().collect(),
        left: Vec::new(),
    })
}

async fn remove_denies(context: &Context, denies: &[DenyUndo]) -> Result<Undoing, ObserveError> {
    let mut undoing = Undoing::default();
    for deny in denies {
        let present = read(&context.client, &deny.path).await?;
        match deny::remove(deny, present.as_ref()) {
            Ok(call) => undoing.calls.extend(call),
            Err(why) => undoing.left.push(why),
        }
    }
    Ok(undoing)
}

/// Policies that another quarantine of the namespace has narrowed too stay so until that one is released.
fn include_again(
    record: &Record,
    policies: &[NetworkPolicy],
    undo: &Undo,
    others: &[Quarantine],
    names: &Names,
) -> Undoing {
    let needs = |other: &Quarantine, uid: &str| {
        let theirs = other
            .status
            .as_ref()
            .and_then(|status| status.undo.as_ref());
        other.metadata.namespace == record.object.metadata.namespace
            && theirs.is_some_and(|undo| undo.policies.iter().any(|policy| policy.uid == uid))
    };
    let mut left = Vec::new();
    let mut mine = Vec::new();
    for policy in &undo.policies {
        match others.iter().find(|other| needs(other, &policy.uid)) {
            Some(other) => left.push(format!(
                "NetworkPolicy {} is {}",
                policy.name,
                needed_by(other)
            )),
            None => mine.push(policy.clone()),
        }
    }
    left.extend(policy::exclude::left_alone(policies, &mine, names));
    Undoing {
        calls: policy::exclude::include_again(&record.namespace(), policies, &mine, names),
        left,
    }
}

/// Every step has ended well; the objects that undoing needed are not kept any longer.
pub fn finish(record: &mut Record) {
    let owner = record.status.owner.clone().unwrap_or_default();
    let adopted = if owner == "nobody" || record.untouched().is_some() {
        "released".to_owned()
    } else {
        format!(
            "released; {owner} adopts the pod again and removes one of its pods, which may be this one"
        )
    };
    let left = record.status.steps.iter();
    let left = left.filter(|step| RELEASE.contains(&step.name) && step.state == StepState::Failed);
    let left = left.map(|step| format!("; {}: {}", step.name, step.message));
    let message = format!("{adopted}{}", left.collect::<String>());
    record.status.before = None;
    record.status.plan.clear();
    record.enter(QuarantinePhase::Released, message);
}

/// What a release that is asked for waits for; `None` without one.
#[must_use]
pub fn waits_for(record: &Record) -> Option<String> {
    let status = &record.status;
    if status.phase == QuarantinePhase::Releasing {
        let mut steps = status.steps.iter();
        let waiting =
            steps.find(|step| RELEASE.contains(&step.name) && step.state == StepState::Waiting)?;
        return Some(format!(
            "the release waits: {}: {}",
            waiting.name, waiting.message
        ));
    }
    record.object.spec.release.as_ref()?;
    Some(
        "the release waits until the evidence is sealed: putting the labels back makes the controller adopt the \
         pod and delete one of its pods. Ask for it with --force to release at once"
            .into(),
    )
}

/// The reason why a release is refused, for status and clients.
#[must_use]
pub fn refusal() -> String {
    "release refused: the evidence is not sealed complete, and putting the labels back makes the \
     controller adopt the pod and delete one of its pods. Collect again, or release with --force"
        .into()
}
