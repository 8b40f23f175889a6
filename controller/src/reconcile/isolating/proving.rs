//! Proves the isolation at the node by connection attempts: what connects before it, and does not any more after it.

use std::net::SocketAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::{facts, install, is_in_force, is_planned};
use crate::contain::isolation;
use crate::contain::proof;
use crate::isolate::{self, CallError, Targets, Tried};
use crate::locked::locked;
use crate::reconcile::next_step::{self, Next};
use crate::reconcile::record::Record;
use crate::reconcile::{Context, ReconcileError, verifying};
use crate::resources::{AttemptOrigin, FactState, StepName, StepState};

/// What an attempt before the isolation may take. In one network an answer needs milliseconds; what needs
/// longer counts as not answered.
const BEFORE: Duration = Duration::from_millis(150);

/// What an attempt after the isolation may take: room for one repetition of the first packet, which the
/// kernel sends after a second.
const AFTER: Duration = Duration::from_millis(1300);

/// Attempts that are being made.
pub(super) struct Before {
    task: JoinHandle<Result<Tried, CallError>>,
    begun: Instant,
    /// When the isolation was sent: what ended later proves nothing.
    pub(super) sent: Option<Timestamp>,
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
    let running = next_step::state(&record.status, StepName::Prove) == Some(StepState::Running);
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
pub(super) fn conclude(record: &mut Record, tried: Result<(), CallError>) {
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

/// Waits for the attempts before the isolation, as long as it may, and records those that ended in time.
pub(super) async fn gather(record: &mut Record, context: &Context, patience: Option<Duration>) {
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
pub(super) async fn again(
    record: &mut Record,
    context: &Context,
    pod: &Pod,
) -> Result<(), CallError> {
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
