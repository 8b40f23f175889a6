//! Jobs: pods until enough have succeeded; a finalizer keeps finished pods until they are counted.

use serde_json::{Value, json};

use super::owned::{self, active};
use crate::clock;
use crate::json;
use crate::refusal::Outcome;
use crate::state::{DeleteOptions, State};
use crate::store::Object;

/// The finalizer on a job's pods.
pub(super) const TRACKING: &str = "batch.kubernetes.io/job-tracking";

const TABLE: &str = "jobs.batch";
const NAME: &str = "job-controller";
const MANAGER: &str = "kube-controller-manager";

pub(super) fn sync(state: &mut State, namespace: &str) -> Outcome<()> {
    for job in state.store.list(TABLE, namespace) {
        sync_one(state, &job)?;
    }
    // Nobody counts the pods of a job that is gone.
    for pod in state.store.list("pods", namespace) {
        let owner = json::controller(&pod).map(|owner| json::text(owner, "/uid").to_owned());
        let tracked = json::list(&pod, "/metadata/finalizers")
            .iter()
            .any(|f| f == TRACKING);
        let jobs = || state.store.list(TABLE, namespace);
        if tracked
            && (owner.is_none()
                || !jobs()
                    .iter()
                    .any(|job| Some(json::uid(job)) == owner.as_deref()))
        {
            untrack(state, &pod)?;
        }
    }
    Ok(())
}

fn untrack(state: &mut State, pod: &Object) -> Outcome<()> {
    state
        .change("pods", pod, "", MANAGER, |pod| {
            if let Some(list) = json::list_mut(pod, "/metadata/finalizers") {
                list.retain(|finalizer| finalizer != TRACKING);
            }
        })
        .map(drop)
}

fn sync_one(state: &mut State, job: &Object) -> Outcome<()> {
    let mut pods = owned::claim(state, "pods", job, MANAGER, active)?;
    if json::terminating(job) || !json::list(job, "/status/conditions").is_empty() {
        return Ok(());
    }
    let count = |field: &str| usize::try_from(json::number(job, field).unwrap_or(0)).unwrap_or(0);
    let (mut succeeded, mut failed) = (count("/status/succeeded"), count("/status/failed"));
    for pod in &pods {
        let tracked = json::list(pod, "/metadata/finalizers")
            .iter()
            .any(|f| f == TRACKING);
        let lost = json::terminating(pod) && !owned::finished(pod);
        if !tracked || !(owned::finished(pod) || lost) {
            continue;
        }
        if lost && json::number(pod, "/metadata/deletionGracePeriodSeconds").unwrap_or(0) > 0 {
            continue;
        }
        if json::text(pod, "/status/phase") == "Succeeded" {
            succeeded += 1
        } else {
            failed += 1
        }
        untrack(state, pod)?;
    }
    pods.retain(|pod| active(pod));
    let completions = json::number(job, "/spec/completions").and_then(|n| usize::try_from(n).ok());
    let parallelism = count("/spec/parallelism");
    let complete = match completions {
        Some(wanted) => succeeded >= wanted,
        None => succeeded > 0 && pods.is_empty(),
    };
    let over = failed > count("/spec/backoffLimit");
    let suspended = json::truth(job, "/spec/suspend");
    let wanted = match completions {
        _ if complete || over || suspended => 0,
        Some(completions) => parallelism.min(completions.saturating_sub(succeeded)),
        None if succeeded > 0 => pods.len(),
        None => parallelism,
    };
    while pods.len() < wanted {
        let mut pod = owned::from_template(job);
        json::put(&mut pod, &["metadata", "finalizers"], json!([TRACKING]));
        let Some(pod) = owned::make_pod(state, job, pod, NAME) else {
            break;
        };
        pods.push(pod);
    }
    if over || suspended {
        for pod in &pods {
            state.discard("pods", pod, &DeleteOptions::default())?;
        }
    }
    let active = if over || suspended { 0 } else { pods.len() };
    write_status(
        state,
        job,
        &pods,
        active,
        (succeeded, failed),
        (complete, over),
    )
}

fn write_status(
    state: &mut State,
    job: &Object,
    pods: &[Object],
    active: usize,
    (succeeded, failed): (usize, usize),
    (complete, over): (bool, bool),
) -> Outcome<()> {
    let now = clock::now();
    let start = Some(json::text(job, "/status/startTime"))
        .filter(|time| !time.is_empty())
        .unwrap_or(&now);
    let ready = pods.iter().filter(|pod| owned::ready(pod)).count();
    let mut status = json!({
        "startTime": start, "terminating": 0, "uncountedTerminatedPods": {}, "ready": ready,
    });
    super::replica_set::put_counts(
        &mut status,
        &[
            ("active", active),
            ("succeeded", succeeded),
            ("failed", failed),
        ],
    );
    let condition = |kind: &str, reason: &str, message: &str| -> Value {
        json!({"type": kind, "status": "True", "lastProbeTime": now, "lastTransitionTime": now,
               "reason": reason, "message": message})
    };
    if complete {
        let message = "Reached expected number of succeeded pods";
        json::put(
            &mut status,
            &["conditions"],
            json!([
                condition("SuccessCriteriaMet", "CompletionsReached", message),
                condition("Complete", "CompletionsReached", message)
            ]),
        );
        json::put(&mut status, &["completionTime"], now.as_str());
    } else if over {
        let message = "Job has reached the specified backoff limit";
        json::put(
            &mut status,
            &["conditions"],
            json!([
                condition("FailureTarget", "BackoffLimitExceeded", message),
                condition("Failed", "BackoffLimitExceeded", message)
            ]),
        );
    }
    owned::write_status(state, TABLE, job, status)
}
