//! Isolates the suspect at its node, proves it by connection attempts before and after, keeps it so, and
//! takes it back.
//!
//! ```text
//! planned     proving      what connects now; at the same time as cordon, policy and strip
//! Isolate     isolate      the agent sets the table; the API's containment never waits for it
//! Prove       proving      what connected before is tried again, while neighbours are evicted and evidence comes
//! in force    look         the table is read again and again, by the agent alone, and set again where it differs
//! released    undo         the table is removed
//! ```

mod proving;

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use impound_proto::agent::v1::{IsolateRequest, LiftIsolationRequest};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;

use self::proving::{Before, again, conclude, gather};
pub use self::proving::{prove, take_proof, try_before};
use super::containing::{StepError, backoff, in_force};
use super::guarding::{self, RESTORED};
use super::record::Record;
use super::releasing::{Stop, Undone, unanswered};
use super::{Context, ReconcileError, restarts};
use crate::contain::isolation::{self, hindrance, is_wanted};
use crate::contain::observe::{self, ObserveError};
use crate::contain::owner::is_same;
use crate::contain::proof::{self, exceptions, is_permitted};
use crate::contain::refusal::Refusal;
use crate::isolate::{self, CallError, Lifted, Tried};
use crate::locked::locked;
use crate::resources::{Fact, IsolationStatus, StepName, StepState, TableState, now};

/// Attempts before the step is called failed. It is tried again as long as the quarantine is in force.
const ATTEMPTS: u32 = 3;

/// How long the isolation waits, from planning on, for the attempts before it: without them nothing can be
/// proved. Most of it passes with the steps at the API.
const PATIENCE: Duration = Duration::from_millis(300);

/// The table is read this often, and more often only when something about the pod has changed.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// What lifting the isolation brings about.
const LIFTED: &str = "the pod is on the network again, as far as its policies allow";

/// What this process remembers of the quarantines it works on, by their uid. A restart forgets it:
/// attempts before the isolation that were not recorded can't be made any more, and the next look is at
/// once.
#[derive(Default)]
pub struct Memory {
    before: Mutex<HashMap<String, Before>>,
    after: Mutex<HashMap<String, AbortOnDropHandle<Result<Tried, CallError>>>>,
    looks: Mutex<HashMap<String, (Instant, String)>>,
    watches: Mutex<HashMap<String, AbortOnDropHandle<()>>>,
}

impl Memory {
    /// The quarantine with this uid is over.
    pub fn forget(&self, quarantine: &str) {
        locked(&self.before).remove(quarantine);
        locked(&self.after).remove(quarantine);
        locked(&self.looks).remove(quarantine);
        locked(&self.watches).remove(quarantine);
    }
}

/// Carries the step out; returns a delay if it has to be tried again.
///
/// # Errors
/// If the API can't be read.
pub async fn isolate(
    record: &mut Record,
    context: &Context,
) -> Result<Option<Duration>, ReconcileError> {
    let attempts = record.begin(StepName::Isolate);
    if !is_planned(record) {
        let pod = record.suspect_before();
        match hindrance(&pod).filter(|_| is_wanted(&record.object.spec, &context.settings)) {
            Some(reason) => record.end(StepName::Isolate, StepState::Failed, reason),
            None => record.end(StepName::Isolate, StepState::Skipped, "not asked for"),
        }
        return Ok(None);
    }
    // The pod's addresses may have changed since planning, or come to be.
    let pod = if attempts == 1 {
        record.suspect_before()
    } else {
        match suspect(record, context).await? {
            Some(pod) => pod,
            None => {
                record.end(StepName::Isolate, StepState::Failed, "the pod is gone");
                return Ok(None);
            }
        }
    };
    gather(record, context, Some(PATIENCE)).await;
    match set(record, context, &pod).await {
        Ok(message) => record.end(StepName::Isolate, StepState::Done, message),
        // Whoever starts the agent has decided so; what is there without it stands.
        Err(off @ CallError::Off(_)) => {
            record.end(StepName::Isolate, StepState::Skipped, off.to_string());
        }
        Err(error) if attempts >= ATTEMPTS => {
            let message = format!(
                "not isolated at its node after {attempts} attempts; it is tried again while the quarantine is in force: {error}"
            );
            record.end(StepName::Isolate, StepState::Failed, message);
        }
        Err(error) => {
            record.wait(StepName::Isolate, format!("NOT done, tried again: {error}"));
            return Ok(Some(backoff(attempts)));
        }
    }
    Ok(None)
}

/// Reads the table, sets it again where it is not as it was set, and notes that. Returns when to look
/// again.
pub async fn look(record: &mut Record, context: &Context, suspect: &Pod) -> Option<Duration> {
    let settled = [StepState::Done, StepState::Failed, StepState::Skipped];
    let ended = super::next_step::state(&record.status, StepName::Isolate);
    if !is_planned(record) || !ended.is_some_and(|state| settled.contains(&state)) {
        return None;
    }
    if !is_due(record, context, suspect) {
        return unless_watched(record, context);
    }
    let difference = match record.status.isolation.clone() {
        None => None,
        Some(known) => {
            let node = record.status.node.clone().unwrap_or_default();
            let asked = isolation::request(suspect, &record.name(), &record.object.spec);
            match isolate::inspect(&context.agents, &node, &asked, &known).await {
                Ok(Ok(found)) => {
                    let proved_before = known.state == TableState::InForce;
                    install(record, found.clone());
                    watch(record, context, asked, found);
                    // Its facts were withdrawn while it could not be seen.
                    if !proved_before {
                        let _said = again(record, context, suspect).await;
                    }
                    return unless_watched(record, context);
                }
                Ok(Err(difference)) => Some(difference),
                Err(error) => {
                    locked(&context.isolation.watches).remove(&record.uid());
                    lose(
                        record,
                        TableState::Unknown,
                        format!("it can't be looked at: {error}"),
                    );
                    return Some(LOOK_EVERY);
                }
            }
        }
    };
    match (set(record, context, suspect).await, difference) {
        (Ok(message), None) => {
            record.end(
                StepName::Isolate,
                StepState::Done,
                format!("later than expected: {message}"),
            );
            let tried = again(record, context, suspect).await;
            // Proved anew, if it was already said that it can't be.
            if super::next_step::ended(&record.status, StepName::Prove) {
                conclude(record, tried);
            }
        }
        (Ok(_), Some(difference)) => {
            guarding::note(
                record,
                RESTORED,
                format!("isolation at the node: {difference}; it is set again"),
            );
            let _said = again(record, context, suspect).await;
        }
        (Err(error), Some(difference)) => {
            guarding::note(
                record,
                "NotRestored",
                format!("isolation at the node: {difference}; it could not be set again: {error}"),
            );
            locked(&context.isolation.watches).remove(&record.uid());
            lose(record, TableState::Missing, difference);
        }
        // As before; the step says why.
        (Err(error), None) => tracing::debug!(%error, "still not isolated at its node"),
    }
    unless_watched(record, context)
}

/// Has the table read again and again without a request to the Kubernetes API, until it is not as it was `found`
/// or can't be read: then the quarantine is looked at.
fn watch(record: &Record, context: &Context, asked: IsolateRequest, found: IsolationStatus) {
    let node = record.status.node.clone().unwrap_or_default();
    let (agents, wake) = (context.agents.clone(), context.endings.waker(record));
    let task = tokio::spawn(async move {
        loop {
            sleep(LOOK_EVERY).await;
            match isolate::inspect(&agents, &node, &asked, &found).await {
                Ok(Ok(now)) if now.weaknesses == found.weaknesses => {}
                _ => break,
            }
        }
        wake();
    });
    let task = AbortOnDropHandle::new(task);
    locked(&context.isolation.watches).insert(record.uid(), task);
}

/// When to look, if nobody looks meanwhile.
fn unless_watched(record: &Record, context: &Context) -> Option<Duration> {
    let watches = locked(&context.isolation.watches);
    let watched = watches
        .get(&record.uid())
        .is_some_and(|task| !task.is_finished());
    (!watched).then_some(LOOK_EVERY)
}

/// Removes the table; says why it need not be, or can't be yet.
///
/// # Errors
/// If it has to be tried again.
pub(super) async fn undo(
    record: &mut Record,
    context: &Context,
    attempts: u32,
) -> Result<Undone, Stop> {
    context.isolation.forget(&record.uid());
    if super::next_step::state(&record.status, StepName::Prove) == Some(StepState::Running) {
        let released = "it is released before the connections were tried again";
        record.end(StepName::Prove, StepState::Skipped, released);
    }
    if !is_planned(record) || super::next_step::state(&record.status, StepName::Isolate).is_none() {
        return Ok(Undone::NotNeeded("it was not isolated at its node".into()));
    }
    let node = record.status.node.clone().unwrap_or_default();
    let pod = record.suspect_before();
    // A table that another quarantine of the same pod asked for and left is lifted as well, unless that
    // one is in force.
    let others = in_force(context).await?;
    let held = others.iter().any(|other| {
        other.metadata.uid != record.object.metadata.uid
            && other
                .status
                .as_ref()
                .and_then(|status| status.pod_uid.as_ref())
                == record.status.pod_uid.as_ref()
    });
    let request = LiftIsolationRequest {
        pod: Some(isolation::selector(&pod)),
        case_id: record.object.spec.case.clone(),
        quarantine: record.name(),
        force: !held,
    };
    let tried_before = !record.intended(StepName::UndoIsolate).is_empty();
    if record.status.isolation.is_some() {
        record.intend(StepName::UndoIsolate, vec![LIFTED.into()]);
        record.save().await?;
    }
    let reason = match isolate::lift(&context.agents, &node, request).await {
        Ok(lifted) => {
            record.status.isolation = None;
            return Ok(match lifted {
                Lifted::Removed => Undone::Now(LIFTED.into()),
                Lifted::NoTable if tried_before => Undone::Now(unanswered(LIFTED)),
                Lifted::NoTable => Undone::NotNeeded("there was no table any more".into()),
                Lifted::NoPod => {
                    Undone::NotNeeded("the pod is gone from its node, and the table with it".into())
                }
            });
        }
        Err(error) => error.to_string(),
    };
    if suspect(record, context)
        .await
        .map_err(|error| StepError::Transient(error.to_string()))?
        .is_none()
    {
        record.status.isolation = None;
        let gone = "the pod is gone, and its network namespace with it";
        return Ok(Undone::NotNeeded(gone.into()));
    }
    if observe::node(&context.client, &node).await?.is_none() {
        return Ok(Undone::GivenUp(format!(
            "NOT lifted: node {node} does not exist any more, so its agent can't be asked; if the machine still \
             runs, the table stays in the pod's network namespace until the pod ends"
        )));
    }
    let enough = attempts >= ATTEMPTS;
    if enough && record.status.isolation.is_none() {
        return Ok(Undone::NotNeeded(format!(
            "it was never seen to be isolated at its node, whose agent can't be asked: {reason}"
        )));
    }
    if enough
        && record
            .object
            .spec
            .release
            .as_ref()
            .is_some_and(|release| release.force)
    {
        return Ok(Undone::GivenUp(format!(
            "NOT lifted, and the release was forced: the table stays in the pod's network namespace until the pod ends: {reason}"
        )));
    }
    Err(StepError::Transient(reason).into())
}

/// The facts about the node.
#[must_use]
pub fn facts(record: &Record) -> Vec<Fact> {
    let steps = &record.status.steps;
    let step = steps.iter().find(|step| step.name == StepName::Isolate);
    let why_not = step.map_or("not yet", |step| step.message.as_str());
    proof::facts(
        &record.suspect_before(),
        record.status.isolation.as_ref(),
        &record.status.attempts,
        why_not,
    )
}

/// Has the agent set the table, and records what is in force.
async fn set(record: &mut Record, context: &Context, pod: &Pod) -> Result<String, CallError> {
    let node = record.status.node.clone().unwrap_or_default();
    let asked = isolation::request(pod, &record.name(), &record.object.spec);
    if let Some(before) = locked(&context.isolation.before).get_mut(&record.uid()) {
        before.sent.get_or_insert_with(Timestamp::now);
    }
    let spec = &record.object.spec;
    let status = isolate::isolate(&context.agents, &node, asked.clone(), spec).await?;
    let message = format!(
        "everything in and out is dropped in the pod's network namespace, established connections too{}",
        exceptions(&status)
    );
    install(record, status.clone());
    watch(record, context, asked, status);
    is_due(record, context, pod);
    Ok(message)
}

fn install(record: &mut Record, isolation: IsolationStatus) {
    for attempt in &mut record.status.attempts {
        attempt.permitted = attempt
            .target
            .parse()
            .is_ok_and(|target| is_permitted(&isolation, attempt.from, target));
    }
    record.status.isolation = Some(isolation);
}

fn lose(record: &mut Record, state: TableState, problem: String) {
    if let Some(isolation) = &mut record.status.isolation {
        isolation.state = state;
        isolation.problem = problem;
        isolation.looked = Some(now());
    }
}

/// Whether it is time to read the table: some time has passed, or the pod's containers or addresses are
/// others than at the last look.
fn is_due(record: &Record, context: &Context, pod: &Pod) -> bool {
    let seen = format!(
        "{:?} {:?}",
        restarts::container_ids(pod),
        isolation::addresses(pod)
    );
    let mut looks = locked(&context.isolation.looks);
    let recent = looks
        .get(&record.uid())
        .is_some_and(|(at, known)| *known == seen && at.elapsed() < LOOK_EVERY);
    if !recent {
        looks.insert(record.uid(), (Instant::now(), seen));
    }
    !recent
}

/// The suspect as it is now; `None` if it is gone or another pod has its name.
async fn suspect(record: &Record, context: &Context) -> Result<Option<Pod>, ReconcileError> {
    let namespace = record.namespace();
    match observe::suspect(&context.client, &namespace, &record.object.spec.pod).await {
        Ok((_, pod)) if is_same(&record.suspect_before(), &pod) => Ok(Some(pod)),
        Ok(_) | Err(ObserveError::Refused(Refusal::NoSuchPod { .. })) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn is_planned(record: &Record) -> bool {
    record
        .status
        .undo
        .as_ref()
        .is_some_and(|undo| undo.isolated)
}

fn is_in_force(record: &Record) -> bool {
    let isolation = record.status.isolation.as_ref();
    isolation.is_some_and(|isolation| isolation.state == TableState::InForce)
}
