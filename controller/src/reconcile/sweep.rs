//! Reconciles a sweep: makes its list once, then begins one collection after the other within its bounds, and records
//! what becomes of each target, until every one has ended.
//!
//! ```text
//! keep        it is not gone before its end
//! next_step   what is to be done, out of what is recorded
//! expand      the list, in rosters
//! memory      the list and its states in this process
//! look        whether a target's pod is there and its agent answers
//! turns       whose turn it is
//! begin       collections of targets whose turn it is
//! logged      what the custody logs say of it
//! ```
//! The collections themselves are the record of what was begun. What this process knows of them goes into the rosters
//! now and then; a process that begins anew finds those that are there under the names that its targets would give
//! them, and makes none twice. One controller works at a time, the one with the lease; the bounds are its own.

mod begin;
mod expand;
mod keep;
mod logged;
mod look;
mod memory;
pub mod next_step;
mod turns;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::Resource;
use kube::ResourceExt;
use kube::api::{Api, Patch};
use kube::runtime::controller::Action;
use kube::runtime::events::{Event, EventType};
use kube::runtime::reflector::ObjectRef;
use serde_json::json;
use tokio::time::Instant;

use super::record::{manager, shortened};
use super::{Context, ReconcileError};
use crate::kubernetes::{ApiError, from_kube, pace};
use crate::resources::sweep::SWEEP_LABEL;
use crate::resources::{
    Collection, Sweep, SweepPhase, SweepRoster, SweepRosterStatus, SweepState, SweepStatus,
    TargetState, TargetStatus, now,
};
use memory::{Part, Target, Work, is_ours};
pub use memory::{Sweeps, slim, waiting_for};
use next_step::{Hold, Step, hold, next_step, phase, words};
use turns::{chosen, give_up_silent_nodes};

/// How often at most the status is written while only numbers change, and each roster.
const STATUS_EVERY: Duration = Duration::from_secs(1);
const ROSTERS_EVERY: Duration = Duration::from_secs(5);

/// A look without being woken.
const LOOK_AGAIN: Duration = Duration::from_secs(20);

/// A look for what those targets show that were passed over.
const LATE: Duration = Duration::from_secs(1);

/// A look after somebody else wrote the sweep meanwhile, or when more can be begun at once.
const AT_ONCE: Duration = Duration::from_millis(50);

/// Works on a sweep as far as it gets.
///
/// # Errors
/// If the API does not answer; the next attempt goes on from what is recorded.
pub async fn reconcile(
    cached: Arc<Sweep>,
    context: Arc<Context>,
) -> Result<Action, ReconcileError> {
    let api = Api::<Sweep>::all(context.client.clone());
    let read = api.get_opt(&cached.name_any()).await;
    let read = read.map_err(|error| from_kube("GET", "sweep", error))?;
    let uid = cached.uid().unwrap_or_default();
    let there = |sweep: &Sweep| {
        let deleted = sweep.metadata.deletion_timestamp.is_some();
        sweep.uid().as_deref() == Some(&uid) && (!deleted || keep::is_kept(sweep))
    };
    let Some(mut sweep) = read.filter(there) else {
        context.sweeps.take(&uid);
        return Ok(Action::await_change());
    };
    let deleted = sweep.metadata.deletion_timestamp.is_some();
    if deleted {
        sweep.spec.state = SweepState::Cancelled;
    }
    let status = sweep.status.clone().unwrap_or_default();
    if !status.phase.is_final() {
        sweep = keep::keep(sweep, &context).await?;
    }
    match next_step(&sweep.spec, &status, Timestamp::now()) {
        Step::Rest => {
            context.sweeps.take(&uid);
            keep::let_go(&sweep, &context).await?;
            Ok(Action::await_change())
        }
        Step::Drop(hold) => {
            let why = match hold {
                Hold::Expired => "it expired before its pods were listed: nothing was collected",
                _ if deleted => "it was deleted before its pods were listed: nothing was collected",
                Hold::Cancelled | Hold::Paused => {
                    "it was cancelled before its pods were listed: nothing was collected"
                }
            };
            expand::refuse(&sweep, &context, why.into()).await
        }
        Step::Expand => expand::expand(&sweep, &context).await,
        Step::Work => work(&sweep, status, &context).await,
    }
}

/// One look at a sweep with a list.
async fn work(
    sweep: &Sweep,
    mut status: SweepStatus,
    context: &Context,
) -> Result<Action, ReconcileError> {
    let uid = sweep.uid().unwrap_or_default();
    // Whatever fails from here on, the next look reads everything again.
    let mut work = match context.sweeps.take(&uid) {
        Some(work) => work,
        None => match load(sweep, &status, context).await {
            Err(ReconcileError::Api(error)) if error.code() == 404 => {
                return give_up(sweep, status, &error, context).await;
            }
            loaded => loaded?,
        },
    };
    let before = status.clone();
    work.problem = None;
    let held = hold(&sweep.spec, Timestamp::now());
    // What is logged may not be in the status yet: somebody else wrote the sweep meanwhile.
    status.state = work.wished.unwrap_or(status.state);
    if status.state != sweep.spec.state {
        match logged::changed(sweep, context).await {
            Ok(()) => {
                status.state = sweep.spec.state;
                work.wished = Some(sweep.spec.state);
            }
            Err(problem) => work.problem = Some(problem),
        }
    }
    if let Err(error) = refresh(&mut work, held, context).await {
        context.sweeps.keep(&uid, work);
        return Err(error);
    }
    let mut again = LOOK_AGAIN;
    match held {
        Some(Hold::Paused) => work.is_held(),
        Some(Hold::Expired) => settle(&mut work, TargetState::Expired, "it was not begun in time"),
        Some(Hold::Cancelled) => {
            let why = match sweep.metadata.deletion_timestamp {
                Some(_) => "the sweep was deleted before its turn",
                None => "it was cancelled before its turn",
            };
            settle(&mut work, TargetState::Cancelled, why);
        }
        None => {
            let chosen = (chosen(sweep, &work), work.probes());
            let more = begin::begin(sweep, &mut work, chosen, context).await;
            give_up_silent_nodes(&mut work, context);
            if more {
                again = AT_ONCE;
            }
        }
    }
    (
        status.counts,
        status.bytes,
        status.exceptions,
        status.more_exceptions,
    ) = work.summary();
    status.phase = phase(status.counts, held);
    let over = status.phase.is_final();
    let rosters_due = work.rosters_saved.elapsed() >= ROSTERS_EVERY;
    if over || rosters_due {
        save_rosters(&mut work, context).await?;
    }
    if over {
        // Those without a collection are in no other log. Said as it is recorded, so that it is said once.
        if status.state != sweep.spec.state {
            status.phase = before.phase;
        } else if let Err(problem) = logged::ended(sweep, &work, context).await {
            work.problem = Some(problem);
            status.phase = before.phase;
        } else {
            status.finished = Some(now());
        }
    }
    status.message = message(&status, &work);
    let over = status.phase.is_final();
    let changed = status != before || before.observed_generation != sweep.metadata.generation;
    let due = status.phase != before.phase
        || work
            .status_saved
            .is_none_or(|then| then.elapsed() >= STATUS_EVERY);
    if changed && due {
        match save(sweep, &mut status, context).await {
            Ok(()) => work.status_saved = Some(Instant::now()),
            // Somebody paused it, or the like: what was begun is known, and the next look records it.
            Err(ReconcileError::Api(error)) if error.is_conflict() => {
                context.sweeps.keep(&uid, work);
                return Ok(Action::requeue(AT_ONCE));
            }
            Err(error) => return Err(error),
        }
    }
    if over {
        ended(context, sweep, &status);
        return Ok(Action::requeue(Duration::ZERO));
    }
    if changed && !due {
        again = again.min(STATUS_EVERY);
    }
    if work.parts.iter().any(|part| part.unsaved) {
        again = again.min(ROSTERS_EVERY);
    }
    if !work.looks.is_empty() {
        again = again.min(LATE);
    }
    if let Some(due) = work.due().filter(|_| held.is_none()) {
        let left = due.saturating_duration_since(Instant::now());
        again = again.min(left.max(AT_ONCE));
    }
    if let Some(expires) = &sweep.spec.expires {
        let left = expires.0.duration_since(Timestamp::now());
        // In the past: it is told by `held` already.
        again = again.min(Duration::try_from(left).unwrap_or(LOOK_AGAIN).max(AT_ONCE));
    }
    context.sweeps.keep(&uid, work);
    Ok(Action::requeue(again))
}

/// A part of the list is gone: what was begun goes on by itself, and nobody knows any more what was not.
async fn give_up(
    sweep: &Sweep,
    mut status: SweepStatus,
    missing: &ApiError,
    context: &Context,
) -> Result<Action, ReconcileError> {
    status.phase = SweepPhase::Partial;
    status.finished = Some(now());
    status.message = shortened(format!(
        "its list was deleted in part ({missing}), so nothing more is begun; what was begun is in the collections with the label {SWEEP_LABEL}={}",
        sweep.name_any()
    ));
    save(sweep, &mut status, context).await?;
    ended(context, sweep, &status);
    Ok(Action::requeue(Duration::ZERO))
}

/// The list as it is recorded, with the collections that are there.
async fn load(
    sweep: &Sweep,
    status: &SweepStatus,
    context: &Context,
) -> Result<Work, ReconcileError> {
    let uid = sweep.uid().unwrap_or_default();
    let api = Api::<SweepRoster>::all(context.client.clone());
    let mut parts = Vec::new();
    for name in &status.rosters {
        let roster = api.get(name).await;
        let roster = roster.map_err(|error| from_kube("GET", name, error))?;
        let mut states = roster
            .status
            .map(|status| status.targets)
            .unwrap_or_default();
        states.resize(roster.spec.targets.len(), TargetStatus::default());
        parts.push(Part {
            name: name.clone(),
            uid: roster.metadata.uid.unwrap_or_default(),
            version: roster.metadata.resource_version.unwrap_or_default(),
            case: roster.spec.case,
            first: usize::try_from(roster.spec.first).unwrap_or(usize::MAX),
            targets: roster.spec.targets,
            states,
            unsaved: false,
        });
    }
    let mut work = Work::new(&uid, parts);
    // Begun by a process that had no time to write it down.
    for target in work.of(TargetState::Waiting) {
        if let Some(collection) = watched(context, &target, &uid).await {
            work.take_over(target.place, collection.status.as_ref());
        }
    }
    Ok(work)
}

/// The collection of a target as the watch shows it, if it is there and the sweep's.
async fn watched(context: &Context, target: &Target, sweep: &str) -> Option<Arc<Collection>> {
    let collections = context.sweeps.collections()?;
    // Before its first list is there, nothing is known. It ends only with the process.
    collections.wait_until_ready().await.ok()?;
    let key = ObjectRef::new(&target.collection).within(&target.pod.namespace);
    let found = collections.get(&key)?;
    is_ours(&found, sweep, target).then_some(found)
}

/// Looks at the collections that are under way, or may be.
async fn refresh(
    work: &mut Work,
    held: Option<Hold>,
    context: &Context,
) -> Result<(), ReconcileError> {
    let mut ended = false;
    // Before anything is said of them, and at the latest before they are tried again.
    let uncertain: Vec<_> = work
        .uncertain
        .iter()
        .copied()
        .filter(|place| held.is_some() || !work.is_barred(place))
        .collect();
    for target in work.targets(&uncertain) {
        let collection = read(context, &target).await?;
        work.uncertain.remove(&target.place);
        if let Some(collection) = collection.filter(|one| is_ours(one, &work.uid, &target)) {
            work.requests.remove(&target.place);
            work.take_over(target.place, collection.status.as_ref());
        }
    }
    for target in work.of(TargetState::Running) {
        let status = match watched(context, &target, &work.uid).await {
            Some(collection) => collection.status.clone(),
            // The watch is behind, or somebody has deleted it.
            None => match read(context, &target).await? {
                Some(collection) if is_ours(&collection, &work.uid, &target) => collection.status,
                other => {
                    let other = match other {
                        Some(_) => ", and another has its name",
                        None => "",
                    };
                    let why = format!("its collection {} was deleted{other}", target.collection);
                    work.set(target.place, TargetState::Failed, &why, 0);
                    continue;
                }
            },
        };
        ended |= status
            .as_ref()
            .is_some_and(|status| status.phase.is_final());
        work.take_over(target.place, status.as_ref());
    }
    if ended {
        pace::came_on();
    }
    Ok(())
}

/// What has the name of a target's collection.
async fn read(context: &Context, target: &Target) -> Result<Option<Collection>, ApiError> {
    let api = Api::<Collection>::namespaced(context.client.clone(), &target.pod.namespace);
    let read = api.get_opt(&target.collection).await;
    read.map_err(|error| from_kube("GET", "collection", error))
}

/// Nothing more is begun: whoever waits has ended.
fn settle(work: &mut Work, state: TargetState, why: &str) {
    work.is_held();
    for target in work.of(TargetState::Waiting) {
        work.set(target.place, state, why, 0);
    }
}

fn message(status: &SweepStatus, work: &Work) -> String {
    let mut text = words(
        status.phase,
        status.counts,
        &status.exceptions,
        status.more_exceptions,
    );
    if !status.phase.is_final() {
        let mut silent: Vec<_> = work.silent.iter().collect();
        silent.sort_by_key(|(node, _)| *node);
        if let Some((node, first)) = silent.first() {
            let others = match silent.len() - 1 {
                0 => String::new(),
                others => format!(" (and {others} more nodes)"),
            };
            text.push_str(&format!(
                "; no agent answers on node {node}{others}: {}",
                first.why
            ));
        }
    }
    let refused = work.refused.iter().min_by_key(|(place, _)| **place);
    if let Some((_, first)) = refused.filter(|_| !status.phase.is_final()) {
        let all = work.refused.len();
        text.push_str(&format!("; {all} can't be begun now: {}", first.why));
    }
    if let Some(problem) = &work.problem {
        text.push_str("; ");
        text.push_str(problem);
    }
    shortened(text)
}

async fn save_rosters(work: &mut Work, context: &Context) -> Result<(), ReconcileError> {
    let api = Api::<SweepRoster>::all(context.client.clone());
    for part in work.parts.iter_mut().filter(|part| part.unsaved) {
        let patch = json!({
            "metadata": { "uid": part.uid, "resourceVersion": part.version },
            "status": SweepRosterStatus { targets: part.states.clone() },
        });
        let path = format!("sweeprosters/{}/status", part.name);
        let answer = api
            .patch_status(&part.name, &manager(), &Patch::Merge(patch))
            .await
            .map_err(|error| from_kube("PATCH", &path, error))?;
        part.version = answer.metadata.resource_version.unwrap_or_default();
        part.unsaved = false;
    }
    work.rosters_saved = Instant::now();
    Ok(())
}

/// Writes the status, unless somebody else has written the sweep since it was read: a late write of a replica that
/// has lost its lease changes nothing.
async fn save(
    sweep: &Sweep,
    status: &mut SweepStatus,
    context: &Context,
) -> Result<(), ReconcileError> {
    status.observed_generation = sweep.metadata.generation;
    let metadata = &sweep.metadata;
    let patch = json!({
        "metadata": { "uid": metadata.uid, "resourceVersion": metadata.resource_version },
        "status": status,
    });
    let path = format!("sweeps/{}/status", sweep.name_any());
    Api::<Sweep>::all(context.client.clone())
        .patch_status(&sweep.name_any(), &manager(), &Patch::Merge(patch))
        .await
        .map(drop)
        .map_err(|error| from_kube("PATCH", &path, error).into())
}

/// Publishes an Event that says how a sweep ended. Nothing waits for it; the status is the record.
fn ended(context: &Context, sweep: &Sweep, status: &SweepStatus) {
    tracing::info!(
        case = sweep.spec.case,
        sweep = sweep.name_any(),
        phase = ?status.phase,
        message = status.message,
        "the sweep has ended"
    );
    let event = Event {
        type_: match status.phase {
            SweepPhase::Complete => EventType::Normal,
            _ => EventType::Warning,
        },
        reason: format!("{:?}", status.phase),
        note: Some(status.message.clone()),
        action: "Sweep".into(),
        secondary: None,
    };
    context.publish(sweep.object_ref(&()), vec![event]);
}
