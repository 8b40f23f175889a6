//! Evicts the node's other pods, one round at a time, and says what blocks them.
//!
//! What is still there after a while ([`Context::eviction_patience`]) is reported as failed, so that the
//! quarantine comes to an end, and is asked for again now and then for as long as the quarantine is in force.
//! A pod that terminates is not asked for again: its end is watched for ([`super::ending`]).

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use kube::ResourceExt;

use super::containing::not_over;
use super::next_step;
use super::record::Record;
use super::{Context, ReconcileError};
use crate::contain::evict::Rules;
use crate::contain::observe::ObserveError;
use crate::contain::{evict, observe};
use crate::kubernetes::{ApiError, send};
use crate::resources::{EvictionState, EvictionStatus, StepName, StepState, now};

/// Pause while an eviction is blocked, or was granted and the pod is not seen terminating yet. A budget that
/// is exhausted answers 429 without Retry-After.
const BLOCKED_PAUSE: Duration = Duration::from_secs(5);

/// Pause while all that is left terminates. Their end is told by a watch.
const TERMINATING_PAUSE: Duration = Duration::from_secs(15);

/// Longest Retry-After that is followed to the letter.
const MERCY: u32 = 60;

/// One round over the pods that are not gone yet; returns a delay if another is needed.
///
/// # Errors
/// If the node's pods can't be read.
pub async fn round(
    record: &mut Record,
    context: &Context,
) -> Result<Option<Duration>, ReconcileError> {
    record.begin(StepName::Evict);
    let node = record.status.node.clone().unwrap_or_default();
    let (present, quarantined) = futures::try_join!(
        observe::pods_on_node(&context.client, &node),
        quarantined(context)
    )?;
    let daemon_sets = observe::daemon_sets(&context.client, &present).await;
    let rules = Rules {
        spec: &record.object.spec.clone(),
        settings: &context.settings,
        daemon_sets: daemon_sets.as_ref(),
    };
    let mut evictions = std::mem::take(&mut record.status.evictions);
    mark_gone(&mut evictions, &present);
    add_new(&mut evictions, &present, record, rules);
    for eviction in evictions
        .iter_mut()
        .filter(|eviction| is_open(eviction.state))
    {
        let Some(pod) = on_node(&present, eviction) else {
            continue;
        };
        let suspect = quarantined.contains(&(eviction.namespace.clone(), eviction.pod.clone()));
        let stays = evict::reason_to_keep(pod, rules)
            .or_else(|| suspect.then(|| "it is quarantined itself".to_owned()));
        if let Some(why) = stays {
            (eviction.state, eviction.message) = (EvictionState::Kept, why);
        } else if is_terminating(Some(pod)) {
            (eviction.state, eviction.message) =
                (EvictionState::Evicting, "the pod is terminating".into());
        } else if is_due(eviction) {
            // Also one that was granted, or met a conflict, without the pod's ending: nothing came of it.
            ask(record, context, eviction).await;
        }
    }
    say_what_blocks(context, &mut evictions, &present).await;
    let patience = context.eviction_patience;
    if until_overdue(record, patience).is_zero() {
        for eviction in evictions
            .iter_mut()
            .filter(|eviction| is_open(eviction.state))
        {
            give_up(eviction, on_node(&present, eviction), patience);
        }
    }
    record.status.evictions = evictions;
    await_ends(record, context, &present);
    Ok(conclude(record, &present, patience))
}

/// Looks after what was given up, as long as the quarantine is in force: asks again now and then, and
/// notices what is gone. Returns when to look again, if at all.
///
/// # Errors
/// If the node's pods can't be read.
pub async fn again(
    record: &mut Record,
    context: &Context,
) -> Result<Option<Duration>, ReconcileError> {
    if next_step::state(&record.status, StepName::Evict) != Some(StepState::Failed) {
        return Ok(None);
    }
    let patience = context.eviction_patience;
    let node = record.status.node.clone().unwrap_or_default();
    let present = observe::pods_on_node(&context.client, &node).await?;
    let mut evictions = std::mem::take(&mut record.status.evictions);
    for eviction in evictions
        .iter_mut()
        .filter(|eviction| is_left(eviction.state))
    {
        let pod = on_node(&present, eviction);
        if pod.is_none() {
            (eviction.state, eviction.message) = (EvictionState::Gone, String::new());
        } else if !is_terminating(pod) && until_due(eviction, patience).is_zero() {
            ask(record, context, eviction).await;
        }
    }
    say_what_blocks(context, &mut evictions, &present).await;
    for eviction in &mut evictions {
        let granted = eviction.state == EvictionState::Evicting;
        let overdue = granted && until_due(eviction, patience).is_zero();
        if eviction.state == EvictionState::Blocked || overdue {
            give_up(eviction, on_node(&present, eviction), patience);
        }
    }
    record.status.evictions = evictions;
    await_ends(record, context, &present);
    let evictions = record.status.evictions.iter();
    let left = evictions.filter(|eviction| is_left(eviction.state));
    // Whoever terminates and was given up is not asked for again.
    let asked_for = left.clone().filter(|eviction| {
        eviction.state == EvictionState::Evicting || !is_terminating(on_node(&present, eviction))
    });
    let due = asked_for.map(|eviction| until_due(eviction, patience));
    let due = due.min();
    if left.count() == 0 {
        let summary = summary(&record.status.evictions);
        record.end(StepName::Evict, StepState::Done, summary);
    }
    Ok(due)
}

/// Has the end of what terminates told, given up or not.
fn await_ends(record: &Record, context: &Context, present: &[Pod]) {
    let evictions = record.status.evictions.iter();
    let ending = evictions.filter(|eviction| match eviction.state {
        EvictionState::Evicting => true,
        state => is_left(state) && is_terminating(on_node(present, eviction)),
    });
    let ending: BTreeSet<String> = ending.map(|eviction| eviction.uid.clone()).collect();
    context.endings.watch(record, ending);
}

async fn ask(record: &Record, context: &Context, eviction: &mut EvictionStatus) {
    let answer = send(&context.client, &evict::call(eviction)).await;
    let answer = answer.as_ref().map(|_| ());
    eviction.retry_after = answer
        .err()
        .map(ApiError::retry_after)
        .and_then(|wait| u32::try_from(wait.as_secs()).ok())
        .filter(|seconds| *seconds > 0)
        .map(|seconds| seconds.min(MERCY));
    (eviction.state, eviction.message) = evict::outcome(answer);
    eviction.tried = Some(now());
    tracing::info!(
        case = record.object.spec.case,
        pod = eviction.pod,
        namespace = eviction.namespace,
        state = ?eviction.state,
        message = eviction.message,
        "eviction answered"
    );
}

/// Names the budgets behind the refusals of this round. What can't be read leaves the API's own words.
async fn say_what_blocks(context: &Context, evictions: &mut [EvictionStatus], present: &[Pod]) {
    let mut known: BTreeMap<String, Vec<PodDisruptionBudget>> = BTreeMap::new();
    let just_asked = |eviction: &EvictionStatus| {
        let tried = eviction.tried.as_ref();
        eviction.state == EvictionState::Blocked
            && tried.is_some_and(|tried| since(tried.0) < SignedDuration::from_secs(1))
    };
    for eviction in evictions.iter_mut().filter(|eviction| just_asked(eviction)) {
        let Some(pod) = on_node(present, eviction) else {
            continue;
        };
        let namespace = &eviction.namespace;
        if !known.contains_key(namespace) {
            let path = format!("/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets");
            let budgets = observe::list(&context.client, &path).await;
            known.insert(namespace.clone(), budgets.unwrap_or_default());
        }
        let budgets = known.get(namespace).map(Vec::as_slice).unwrap_or_default();
        if let Some(why) = evict::blocking(pod, budgets) {
            eviction.message = format!("waiting: {why}");
        }
    }
}

/// Says why, and what a responder can do now. `present` is the pod as it is on the node.
fn give_up(eviction: &mut EvictionStatus, present: Option<&Pod>, patience: SignedDuration) {
    let EvictionStatus {
        namespace,
        pod,
        message,
        ..
    } = eviction;
    let seconds = patience.as_secs();
    eviction.message = if is_terminating(present) {
        format!(
            "given up after {seconds} s: the pod is still terminating: its finalizers or its node's kubelet keep it, \
             which kubectl get pod {pod} -n {namespace} -o yaml shows. Its end will be noticed"
        )
    } else {
        let why = message.strip_prefix("waiting: ").unwrap_or(message);
        format!(
            "given up after {seconds} s: {why}. It is asked for again every {seconds} s; to be done with it at once, \
             past every budget: kubectl delete pod {pod} -n {namespace}"
        )
    };
    eviction.state = EvictionState::Failed;
}

fn conclude(record: &mut Record, present: &[Pod], patience: SignedDuration) -> Option<Duration> {
    let summary = summary(&record.status.evictions);
    let any = |state| {
        record
            .status
            .evictions
            .iter()
            .any(|eviction| eviction.state == state)
    };
    if any(EvictionState::Evicting) || any(EvictionState::Blocked) {
        record.wait(StepName::Evict, summary);
        let mut open = record.status.evictions.iter();
        let all_end = open.all(|one| !is_open(one.state) || is_terminating(on_node(present, one)));
        let pause = if all_end {
            TERMINATING_PAUSE
        } else {
            BLOCKED_PAUSE
        };
        return Some(pause.min(until_overdue(record, patience)));
    }
    if any(EvictionState::Failed) {
        record.end(StepName::Evict, StepState::Failed, summary);
    } else if record.object.spec.keep_neighbours {
        record.end(
            StepName::Evict,
            StepState::Skipped,
            "the request says to keep the neighbours",
        );
    } else {
        record.end(StepName::Evict, StepState::Done, summary);
    }
    None
}

/// Pods that stay and are named in the step's message; all are in the status.
const NAMED: usize = 8;

/// E.g. "2 evicted, default/db-0 not evicted: waiting: …, kube-system/logs-x stays: its DaemonSet …".
fn summary(evictions: &[EvictionStatus]) -> String {
    let count = |state| {
        evictions
            .iter()
            .filter(|eviction| eviction.state == state)
            .count()
    };
    let counts = [
        (count(EvictionState::Gone), "evicted"),
        (count(EvictionState::Evicting), "terminating"),
    ];
    let mut parts: Vec<String> = counts
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, word)| format!("{count} {word}"))
        .collect();
    parts.extend(
        evictions
            .iter()
            .filter(|eviction| {
                matches!(
                    eviction.state,
                    EvictionState::Blocked | EvictionState::Failed
                )
            })
            .map(|eviction| {
                format!(
                    "{}/{} not evicted: {}",
                    eviction.namespace, eviction.pod, eviction.message
                )
            }),
    );
    let stay = evictions
        .iter()
        .filter(|eviction| eviction.state == EvictionState::Kept)
        .map(|eviction| {
            format!(
                "{}/{} stays: {}",
                eviction.namespace, eviction.pod, eviction.message
            )
        });
    let stay: Vec<String> = stay.collect();
    let more = stay.len().saturating_sub(NAMED);
    parts.extend(stay.into_iter().take(NAMED));
    if more > 0 {
        parts.push(format!("{more} more stay, see the warnings"));
    }
    if parts.is_empty() {
        return "no other pod is on the node".into();
    }
    parts.join(", ")
}

/// Pods that somebody asked to quarantine, planned or not: they must never be evicted, also in the
/// moment before they carry a label that says so.
async fn quarantined(context: &Context) -> Result<HashSet<(String, String)>, ObserveError> {
    let open = not_over(context).await?.into_iter();
    let pods = open.map(|quarantine| {
        (
            quarantine.namespace().unwrap_or_default(),
            quarantine.spec.pod,
        )
    });
    Ok(pods.collect())
}

/// Pods that came to the node between the plan and the cordon.
fn add_new(
    evictions: &mut Vec<EvictionStatus>,
    present: &[Pod],
    record: &Record,
    rules: Rules<'_>,
) {
    for pod in present {
        let uid = pod.metadata.uid.as_deref();
        let known = uid == record.status.pod_uid.as_deref()
            || evictions.iter().any(|eviction| uid == Some(&eviction.uid));
        if !known {
            evictions.push(evict::candidate(pod, rules));
        }
    }
}

/// A blocked eviction is asked for again after a while, however often there is another reason to look, and
/// not before the API server's Retry-After.
fn is_due(eviction: &EvictionStatus) -> bool {
    let pause = SignedDuration::try_from(BLOCKED_PAUSE).unwrap_or_default();
    let asked = SignedDuration::from_secs(eviction.retry_after.unwrap_or_default().into());
    let tried = eviction.tried.as_ref();
    tried.is_none_or(|tried| since(tried.0) >= pause.max(asked))
}

/// How long until something that was given up is asked for again, or a grant that came to nothing given up.
fn until_due(eviction: &EvictionStatus, patience: SignedDuration) -> Duration {
    let tried = eviction.tried.as_ref();
    let left = tried.map(|tried| patience - since(tried.0));
    left.and_then(|left| Duration::try_from(left).ok())
        .unwrap_or_default()
}

fn since(time: Timestamp) -> SignedDuration {
    Timestamp::now().duration_since(time)
}

fn on_node<'p>(present: &'p [Pod], eviction: &EvictionStatus) -> Option<&'p Pod> {
    present
        .iter()
        .find(|pod| pod.metadata.uid.as_deref() == Some(&eviction.uid))
}

/// A pod that is not on the node any more, or whose name belongs to another uid, is gone.
fn mark_gone(evictions: &mut [EvictionStatus], present: &[Pod]) {
    for eviction in evictions
        .iter_mut()
        .filter(|eviction| is_open(eviction.state))
    {
        if on_node(present, eviction).is_none() {
            eviction.state = EvictionState::Gone;
            eviction.message.clear();
        }
    }
}

fn is_open(state: EvictionState) -> bool {
    matches!(
        state,
        EvictionState::Pending | EvictionState::Blocked | EvictionState::Evicting
    )
}

/// Not gone yet, given up or not.
fn is_left(state: EvictionState) -> bool {
    is_open(state) || state == EvictionState::Failed
}

fn is_terminating(pod: Option<&Pod>) -> bool {
    pod.is_some_and(|pod| pod.metadata.deletion_timestamp.is_some())
}

/// How long evictions are tried yet, from the begin of the step on.
fn until_overdue(record: &Record, patience: SignedDuration) -> Duration {
    let steps = &record.status.steps;
    let step = steps.iter().find(|step| step.name == StepName::Evict);
    let started = step.and_then(|step| step.started.as_ref());
    let left = patience - started.map_or(SignedDuration::ZERO, |started| since(started.0));
    Duration::try_from(left).unwrap_or_default()
}
