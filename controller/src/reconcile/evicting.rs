//! Evicts the node's other pods, one round at a time, and says what blocks them.

use std::collections::HashSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use kube::ResourceExt;
use kube::api::{Api, ListParams};

use super::record::Record;
use super::{Context, ReconcileError};
use crate::contain::observe::ObserveError;
use crate::contain::{evict, observe};
use crate::kubernetes::{from_kube, send};
use crate::resources::{EvictionState, EvictionStatus, Quarantine, StepName, StepState, now};

/// How long blocked evictions are tried before they are reported as failed.
const DEADLINE: SignedDuration = SignedDuration::from_secs(300);

/// Pause while granted evictions are terminating, and while a budget blocks one. A budget that is
/// exhausted answers 429 without Retry-After.
const TERMINATING_PAUSE: Duration = Duration::from_millis(500);
const BLOCKED_PAUSE: Duration = Duration::from_secs(5);

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
    let mut evictions = std::mem::take(&mut record.status.evictions);
    mark_gone(&mut evictions, &present);
    add_new(&mut evictions, &present, record);
    for eviction in evictions
        .iter_mut()
        .filter(|eviction| is_open(eviction.state))
    {
        let Some(pod) = present
            .iter()
            .find(|pod| pod.metadata.uid.as_deref() == Some(&eviction.uid))
        else {
            continue;
        };
        let suspect = quarantined.contains(&(eviction.namespace.clone(), eviction.pod.clone()));
        let stays = evict::reason_to_keep(pod, &record.object.spec)
            .or_else(|| suspect.then(|| "it is quarantined itself".to_owned()));
        if let Some(why) = stays {
            (eviction.state, eviction.message) = (EvictionState::Kept, why);
        } else if pod.metadata.deletion_timestamp.is_some() {
            (eviction.state, eviction.message) =
                (EvictionState::Evicting, "the pod is terminating".into());
        } else if is_due(eviction) {
            // Also one that was granted, or met a conflict, without the pod's ending: nothing came of it.
            let answer = send(&context.client, &evict::call(eviction)).await;
            (eviction.state, eviction.message) = evict::outcome(answer.as_ref().map(|_| ()));
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
    }
    if is_overdue(record) {
        for eviction in evictions
            .iter_mut()
            .filter(|eviction| is_open(eviction.state))
        {
            eviction.state = EvictionState::Failed;
            eviction.message = format!(
                "given up after {} s: {}",
                DEADLINE.as_secs(),
                eviction.message
            );
        }
    }
    record.status.evictions = evictions;
    Ok(conclude(record))
}

fn conclude(record: &mut Record) -> Option<Duration> {
    let summary = summary(&record.status.evictions);
    let any = |state| {
        record
            .status
            .evictions
            .iter()
            .any(|eviction| eviction.state == state)
    };
    if any(EvictionState::Evicting) || any(EvictionState::Blocked) {
        let pause = if any(EvictionState::Evicting) {
            TERMINATING_PAUSE
        } else {
            BLOCKED_PAUSE
        };
        record.wait(StepName::Evict, summary);
        return Some(pause);
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

/// E.g. "2 gone, 1 kept; default/db-0 blocked: waiting: …".
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
        (count(EvictionState::Kept), "kept"),
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
    if parts.is_empty() {
        return "no other pod is on the node".into();
    }
    parts.join(", ")
}

/// Pods that somebody asked to quarantine, planned or not: they must never be evicted, also in the
/// moment before they carry a label that says so.
async fn quarantined(context: &Context) -> Result<HashSet<(String, String)>, ObserveError> {
    let list = Api::<Quarantine>::all(context.client.clone())
        .list(&ListParams::default())
        .await
        .map_err(|error| from_kube("GET", "/apis/impound.dev/v1alpha1/quarantines", error))?;
    let open = list.items.into_iter().filter(|quarantine| {
        quarantine
            .status
            .as_ref()
            .is_none_or(|status| !status.phase.is_over())
    });
    Ok(open
        .map(|quarantine| {
            (
                quarantine.namespace().unwrap_or_default(),
                quarantine.spec.pod,
            )
        })
        .collect())
}

/// Pods that came to the node between the plan and the cordon.
fn add_new(evictions: &mut Vec<EvictionStatus>, present: &[Pod], record: &Record) {
    for pod in present {
        let uid = pod.metadata.uid.as_deref();
        let known = uid == record.status.pod_uid.as_deref()
            || evictions.iter().any(|eviction| uid == Some(&eviction.uid));
        if !known {
            evictions.push(evict::candidate(pod, &record.object.spec));
        }
    }
}

/// A blocked eviction is asked for again after a while, however often there is another reason to look.
fn is_due(eviction: &EvictionStatus) -> bool {
    let pause = SignedDuration::try_from(BLOCKED_PAUSE).unwrap_or_default();
    eviction
        .tried
        .as_ref()
        .is_none_or(|tried| Timestamp::now().duration_since(tried.0) >= pause)
}

/// A pod that is not on the node any more, or whose name belongs to another uid, is gone.
fn mark_gone(evictions: &mut [EvictionStatus], present: &[Pod]) {
    for eviction in evictions
        .iter_mut()
        .filter(|eviction| is_open(eviction.state))
    {
        let still_there = present
            .iter()
            .any(|pod| pod.metadata.uid.as_deref() == Some(&eviction.uid));
        if !still_there {
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

fn is_overdue(record: &Record) -> bool {
    let steps = &record.status.steps;
    let started = steps
        .iter()
        .find(|step| step.name == StepName::Evict)
        .and_then(|step| step.started.clone());
    started.is_some_and(|started| Timestamp::now().duration_since(started.0) > DEADLINE)
}
