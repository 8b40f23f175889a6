//! Isolates the suspect at its node, proves it by connection attempts before and after, keeps it so, and
//! takes it back.
//!
//! ```text
//! planned     try_before   what connects now; at the same time as cordon, policy and strip
//! Isolate     isolate      the agent sets the table; the API's containment never waits for it
//! Prove       prove        what connected before is tried again, while neighbours are evicted and evidence comes
//! in force    look         the table is read again and again, by the agent alone, and set again where it differs
//! released    undo         the table is removed
//! ```

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use impound_proto::agent::v1::{IsolateRequest, LiftIsolationRequest};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::containing::{StepError, backoff, in_force};
use super::guarding::{self, RESTORED};
use super::next_step::Next;
use super::record::Record;
use super::releasing::{Stop, Undone, unanswered};
use super::{Context, ReconcileError, verifying};
use crate::contain::isolation::{self, hindrance, is_wanted};
use crate::contain::observe::{self, ObserveError};
use crate::contain::owner::is_same;
use crate::contain::proof::{self, exceptions, is_permitted};
use crate::contain::refusal::Refusal;
use crate::isolate::{self, CallError, Lifted, Targets, Tried};
use crate::resources::{
    AttemptOrigin, Fact, FactState, IsolationStatus, StepName, StepState, TableState, now,
};

/// Attempts before the step is called failed. It is tried again as long as the quarantine is in force.
const ATTEMPTS: u32 = 3;

/// What an attempt before the isolation may take. In one network an answer needs milliseconds; what needs
/// longer counts as not answered.
const BEFORE: Duration = Duration::from_millis(150);

/// How long the isolation waits, from planning on, for the attempts before it: without them nothing can be
/// proved. Most of it passes with the steps at the API.
const PATIENCE: Duration = Duration::from_millis(300);

/// What an attempt after the isolation may take: room for one repetition of the first packet, which the
/// kernel sends after a second.
const AFTER: Duration = Duration::from_millis(1300);

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

/// Attempts that are being made.
struct Before {
    task: JoinHandle<Result<Tried, CallError>>,
    begun: Instant,
    /// When the isolation was sent: what ended later proves nothing.
    sent: Option<Timestamp>,
}

/// Begins to try what connects before anything is changed. Returns at once.
pub fn try_before(record: &Record, context: &Context, pod: &Pod) {
    if !is_planned(record) {
        return;
    }
    let task = tokio::spawn(probe(record, context, pod, BEFORE));
    let before = Before {
        task,
        begun: Instant::now(),
        sent: None,
    };
    locked(&context.isolation.before).insert(record.uid(), before);
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

/// Begins to try again what connected before. Returns at once: [`take_proof`] takes what came of it.
pub async fn prove(record: &mut Record, context: &Context) {
    record.begin(StepName::Prove);
    gather(record, context, None).await;
    if !is_in_force(record)
        && !record
            .status
            .attempts
            .iter()
            .any(proof::tells_without_a_table)
    {
        let message = "nothing is in force at the node, so nothing is proved there";
        record.end(StepName::Prove, StepState::Skipped, message);
        return;
    }
    try_after(record, context);
}

/// Tries what connected before, and wakes the quarantine when it was tried.
fn try_after(record: &Record, context: &Context) {
    let (asked, wake) = (
        probe(record, context, &record.suspect_before(), AFTER),
        context.endings.waker(record),
    );
    let task = tokio::spawn(async move {
        let tried = asked.await;
        wake();
        tried
    });
    locked(&context.isolation.after).insert(record.uid(), AbortOnDropHandle::new(task));
}

/// Takes what the attempts afterwards came to, once they have ended, and states the facts; says whether it did.
/// Those of a process that is gone are made again.
///
/// # Errors
/// If the API can't be read.
pub async fn take_proof(
    record: &mut Record,
    context: &Context,
    next: Next,
) -> Result<bool, ReconcileError> {
    let running =
        super::next_step::state(&record.status, StepName::Prove) == Some(StepState::Running);
    if !running || matches!(next, Next::Undo(_) | Next::FinishRelease | Next::Rest) {
        return Ok(false);
    }
    let task = locked(&context.isolation.after).remove(&record.uid());
    let Some(task) = task else {
        try_after(record, context);
        return Ok(false);
    };
    if !task.is_finished() {
        locked(&context.isolation.after).insert(record.uid(), task);
        return Ok(false);
    }
    let pod = record.suspect_before();
    let tried = match task.await {
        Ok(tried) => tried,
        Err(error) => {
            tracing::warn!(%error, "the attempts after the isolation ended unexpectedly");
            return Ok(false);
        }
    };
    let tried = note_again(record, &pod, tried);
    verifying::state_again(record, context).await?;
    conclude(record, tried);
    Ok(true)
}

/// Says what the attempts afterwards have proved.
fn conclude(record: &mut Record, tried: Result<(), CallError>) {
    let facts = facts(record);
    let of_state = |state| {
        let facts = facts.iter().filter(|fact| fact.state == state);
        let messages: Vec<&str> = facts.map(|fact| fact.message.as_str()).collect();
        messages.join("; ")
    };
    let (untrue, open) = (of_state(FactState::False), of_state(FactState::Unverified));
    let (state, message) = if let Err(error) = tried {
        let message = format!("the connections could not be tried again: {error}");
        (StepState::Failed, message)
    } else if !untrue.is_empty() {
        (StepState::Failed, untrue)
    } else if !open.is_empty() {
        (StepState::Done, format!("not all is proved: {open}"))
    } else {
        let message = "what connected before does not any more, in either direction";
        (StepState::Done, message.to_owned())
    };
    record.end(StepName::Prove, state, message);
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

/// Waits for the attempts before the isolation, as long as it may, and records those that ended in time.
async fn gather(record: &mut Record, context: &Context, patience: Option<Duration>) {
    let taken = locked(&context.isolation.before).remove(&record.uid());
    let Some(mut before) = taken else {
        return;
    };
    let ended = match patience {
        None => Some((&mut before.task).await),
        Some(patience) => {
            let left = patience.saturating_sub(before.begun.elapsed());
            timeout(left, &mut before.task).await.ok()
        }
    };
    let tried = match ended {
        None => {
            locked(&context.isolation.before).insert(record.uid(), before);
            return;
        }
        Some(Ok(Ok(tried))) => tried,
        Some(Ok(Err(error))) => {
            tracing::info!(%error, "nothing was tried before the isolation");
            return;
        }
        Some(Err(error)) => {
            tracing::warn!(%error, "the attempts before the isolation ended unexpectedly");
            return;
        }
    };
    let sent = before.sent.unwrap_or_else(Timestamp::now);
    record.status.attempts = tried
        .attempts
        .into_iter()
        .map(|(mut attempt, ended)| {
            attempt.before = attempt.before.filter(|_| ended <= sent);
            attempt
        })
        .collect();
    if let Some(isolation) = record.status.isolation.clone() {
        install(record, isolation);
    }
}

/// Tries what connected before again; what can't be tried is not known any more.
async fn again(record: &mut Record, context: &Context, pod: &Pod) -> Result<(), CallError> {
    let tried = probe(record, context, pod, AFTER).await;
    note_again(record, pod, tried)
}

/// Attempts at what may connect, each for no longer than `limit`.
fn probe(
    record: &Record,
    context: &Context,
    pod: &Pod,
    limit: Duration,
) -> impl Future<Output = Result<Tried, CallError>> + Send + use<> {
    let node = record.status.node.clone().unwrap_or_default();
    let case = record.object.spec.case.clone();
    let (client, agents) = (context.client.clone(), context.agents.clone());
    let port = context.settings.agent_port;
    let pod = pod.clone();
    async move {
        let targets = Targets::of(&client, &pod).await;
        let selector = isolation::selector(&pod);
        isolate::probe(&agents, &node, selector, &case, &targets, port, limit).await
    }
}

/// Notes what the attempts afterwards came to.
fn note_again(
    record: &mut Record,
    pod: &Pod,
    tried: Result<Tried, CallError>,
) -> Result<(), CallError> {
    let tried = match tried {
        Ok(tried) => tried,
        Err(error) => {
            tracing::info!(%error, "the connections could not be tried again");
            for attempt in &mut record.status.attempts {
                attempt.after = None;
            }
            return Err(error);
        }
    };
    let attempts = &mut record.status.attempts;
    // What was tried at an address that the pod has no more, or only afterwards, says nothing any more.
    let addresses = isolation::addresses(pod);
    attempts.retain(|attempt| {
        let target = attempt.target.parse::<SocketAddr>();
        attempt.before.is_some()
            && (attempt.from == AttemptOrigin::Pod
                || target.is_ok_and(|target| addresses.contains(&target.ip())))
    });
    for attempt in attempts.iter_mut() {
        attempt.after = None;
    }
    for (mut tried, _) in tried.attempts {
        let after = tried.before.take();
        let known = attempts
            .iter_mut()
            .find(|known| known.from == tried.from && known.target == tried.target);
        match known {
            Some(known) => known.after = after,
            None => {
                tried.after = after;
                attempts.push(tried);
            }
        }
    }
    if let Some(isolation) = record.status.isolation.clone() {
        install(record, isolation);
    }
    Ok(())
}

/// Whether it is time to read the table: some time has passed, or the pod's containers or addresses are
/// others than at the last look.
fn is_due(record: &Record, context: &Context, pod: &Pod) -> bool {
    let seen = format!(
        "{:?} {:?}",
        guarding::container_ids(pod),
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

/// These maps are whole after every statement, so a panic elsewhere doesn't spoil them.
fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
