//! Keeps a contained pod contained: what somebody takes away again is put back and written down, and a restarted
//! container is seen to ([`restarts`]).
//!
//! Each look asks the same pure functions as containment did: a call that they still want made is
//! something that has drifted.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::jiff::Timestamp;

use super::containing::mend_denies;
use super::next_step::ended;
use super::record::Record;
use super::{Context, ReconcileError, isolating, restarts, verifying};
use crate::contain::facts::Seen;
use crate::contain::observe::{self, ObserveError};
use crate::contain::owner::is_same;
use crate::contain::refusal::Refusal;
use crate::contain::{credentials, node, pod, policy, protect};
use crate::describe::describe;
use crate::kubernetes::{ApiError, pace, read, send};
use crate::resources::{ApiCall, Drift, QuarantinePhase, StepName, now};

/// Entries kept in the status: enough to see a pattern, far below any size limit. Every one is
/// also an Event and a line in the log.
const KEPT: usize = 50;

/// Reason of what was put back.
pub(super) const RESTORED: &str = "Restored";

/// Pause before a write that met a conflict, and before one that was refused, is tried again; doubled with each
/// of its kind.
const CONFLICT_PAUSE: Duration = Duration::from_millis(500);
const REFUSED_PAUSE: Duration = Duration::from_secs(5);

/// Somebody (a controller, an intruder) who takes the same thing away again and again is answered more
/// and more slowly, up to this; as is an API that refuses it again and again.
const SLOWEST: Duration = Duration::from_secs(60);

/// While a quarantine waits for something, its pod is looked at no more often than this.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// What a look is called where it is put off.
const LOOK: &str = "look";

/// What it is called to ask again for rights that could not be read, and how often that is done: it takes lists of all
/// rights in the cluster, and may be refused for ever.
const RIGHTS: &str = "rights";
const RIGHTS_EVERY: Duration = Duration::from_secs(600);

/// Whether a quarantine in this phase is in force and not about to end.
#[must_use]
pub fn applies(phase: QuarantinePhase) -> bool {
    matches!(
        phase,
        QuarantinePhase::Contained
            | QuarantinePhase::Complete
            | QuarantinePhase::Incomplete
            | QuarantinePhase::Failed
    )
}

/// Everything was looked at just now.
pub fn looked(record: &Record, context: &Context) {
    context.pace.put_off(&record.uid(), LOOK, LOOK_EVERY);
}

/// [`look`] for a quarantine whose work goes on, unless the last one was a moment ago. Returns when the next
/// is due, if something is to be seen to before anything is heard.
///
/// # Errors
/// If the API can't be read.
pub async fn look_meanwhile(
    record: &mut Record,
    context: &Context,
) -> Result<Option<Duration>, ReconcileError> {
    let begun = [StepName::Strip, StepName::Verify];
    let over = record.status.phase.is_over() || record.status.phase == QuarantinePhase::Releasing;
    if over || !begun.iter().any(|step| ended(&record.status, *step)) {
        return Ok(None);
    }
    match context.pace.left(&record.uid(), LOOK) {
        Some(left) => Ok(Some(left)),
        None => look(record, context).await,
    }
}

/// Looks at pod, node, policy and budget, puts back what is missing, and states the facts anew.
/// Returns a delay if something could not be put back.
///
/// # Errors
/// If the API can't be read, or does not take the status.
pub async fn look(
    record: &mut Record,
    context: &Context,
) -> Result<Option<Duration>, ReconcileError> {
    looked(record, context);
    record.record_names();
    let namespace = record.namespace();
    let suspect = match observe::suspect(&context.client, &namespace, &record.object.spec.pod).await
    {
        Ok((_, pod)) if is_same(&record.suspect_before(), &pod) => Some(pod),
        Ok(_) | Err(ObserveError::Refused(Refusal::NoSuchPod { .. })) => None,
        Err(error) => return Err(error.into()),
    };
    let Some(suspect) = suspect else {
        note(
            record,
            "PodGone",
            "the suspect pod is gone: its containers can't be collected any more".into(),
        );
        verifying::gone(record);
        return Ok(None);
    };
    if suspect.metadata.uid != record.status.pod_uid {
        let (was, is) = (&record.status.pod_uid, &suspect.metadata.uid);
        let what = format!(
            "the kubelet made the static pod's mirror anew: uid {} is now {}; by its manifest it is the same pod",
            was.as_deref().unwrap_or_default(),
            is.as_deref().unwrap_or_default()
        );
        note(record, "MirrorMadeAnew", what);
    }
    restarts::look(record, &suspect);
    if record.untouched().is_some() {
        context.endings.attend(record, &suspect);
    }
    let mut again = None;
    let Missing {
        calls,
        node,
        policies,
    } = missing(record, context, &suspect).await?;
    // What is put back is to be seen afterwards.
    let as_seen = calls.is_empty();
    for call in calls {
        let pause = put_back(record, context, &call).await;
        again = Some(again.unwrap_or(pause).min(pause));
    }
    let looked = isolating::look(record, context, &suspect).await;
    // Before verification, what is not so is not yet so.
    if ended(&record.status, StepName::Verify) {
        let seen = as_seen.then_some(Seen {
            pod: suspect,
            node,
            policies,
        });
        verifying::state_seen(record, context, seen).await?;
    }
    report_rights_again(record, context).await?;
    if let Some(again) = again.filter(|again| *again < LOOK_EVERY) {
        context.pace.put_off(&record.uid(), LOOK, again);
    }
    Ok([again, looked].into_iter().flatten().min())
}

/// Reports what the suspect could act with again, if the API did not say all of it before. Nothing that holds the pod
/// waits for it, nor does what was seen of that.
async fn report_rights_again(record: &mut Record, context: &Context) -> Result<(), ReconcileError> {
    let uid = record.uid();
    let is_whole = credentials::unread(&record.status.credentials) == 0;
    if is_whole || context.pace.left(&uid, RIGHTS).is_some() {
        return Ok(());
    }
    context.pace.put_off(&uid, RIGHTS, RIGHTS_EVERY);
    record.save().await?;
    verifying::report_credentials(record, context).await;
    Ok(())
}

/// Makes a call whose effect has gone, unless it was made a moment ago. Returns when to look again.
async fn put_back(record: &mut Record, context: &Context, call: &ApiCall) -> Duration {
    let (uid, refused) = (record.uid(), format!("{} {}", call.method, call.path));
    let too_soon = too_soon(record, call).or_else(|| context.pace.left(&uid, &refused));
    if let Some(wait) = too_soon {
        return wait;
    }
    match send(&context.client, call).await {
        Ok(_) => {
            context.pace.clear(&uid, &refused);
            note(record, RESTORED, restored(call));
            // A node is put back in two patches, and what was put back is to be seen.
            CONFLICT_PAUSE
        }
        // Somebody else wrote at the same moment.
        Err(error) if error.is_conflict() => pace::pause(CONFLICT_PAUSE, SLOWEST),
        Err(error) => {
            let what = format!("{}: {}", call.purpose, describe(&error));
            note(record, "NotRestored", what);
            let pace = &context.pace;
            pace.failed(&uid, &refused, REFUSED_PAUSE, SLOWEST)
        }
    }
}

/// How long to leave a thing alone that was put back before, by how often that was.
fn too_soon(record: &Record, call: &ApiCall) -> Option<Duration> {
    let what = restored(call);
    let times = record
        .status
        .drift
        .iter()
        .filter(|drift| drift.what == what);
    let last = times.clone().map(|drift| drift.time.0).max()?;
    let doubled = 1_u64 << times.count().min(6);
    let pause = Duration::from_millis(250 * doubled).min(SLOWEST);
    let since = Duration::try_from(Timestamp::now().duration_since(last)).unwrap_or_default();
    pause.checked_sub(since).filter(|left| !left.is_zero())
}

fn restored(call: &ApiCall) -> String {
    format!("{}: was not so any more, put back", call.purpose)
}

/// What is to be put back, and what was read to find out.
struct Missing {
    calls: Vec<ApiCall>,
    node: Option<Node>,
    policies: Vec<NetworkPolicy>,
}

async fn missing(
    record: &mut Record,
    context: &Context,
    suspect: &Pod,
) -> Result<Missing, ReconcileError> {
    let namespace = record.namespace();
    let undo = record.status.undo.clone().unwrap_or_default();
    let names = record.names();
    let node_name = record.status.node.clone().unwrap_or_default();
    let budget_path = protect::budget_path(&namespace, &record.name());
    let (node, policies, budget, denies) = futures::try_join!(
        observe::node(&context.client, &node_name),
        observe::policies(&context.client, &namespace),
        async {
            read(&context.client, &budget_path)
                .await
                .map_err(|error: ApiError| error.into())
        },
        async {
            // Where the right to read them is missing, so is that to make them: the facts say so.
            Ok(mend_denies(context, &namespace, &undo.denies, &names)
                .await
                .unwrap_or_default())
        },
    )?;
    let mut calls = Vec::new();
    if let Some(node) = &node {
        // One patch at a time: the second would carry a resourceVersion that the first has changed.
        calls.extend(node::cordon(node).or_else(|| node::label(node, &names)));
    }
    if undo.untouched.is_some() {
        calls.retain(|call| ended(&record.status, call.step));
        return Ok(Missing {
            calls,
            node,
            policies,
        });
    }
    if budget.is_none() {
        calls.push(protect::create(&namespace, &record.name()));
    }
    match policy::deny_all(&namespace, &policies, &names) {
        Ok(call) => {
            calls.extend(call.or_else(|| policy::mark(&namespace, &policies, &names)));
        }
        // Its own step says so.
        Err(_) if !ended(&record.status, StepName::Policy) => {}
        // It may be somebody's own by now: it is told, and left alone.
        Err(refusal) => note(record, "PolicyChanged", refusal.to_string()),
    }
    calls.extend(policy::exclude::exclude(
        &namespace,
        &policies,
        &undo.policies,
        &names,
    ));
    calls.extend(pod::strip(suspect, &undo.pod));
    calls.extend(denies);
    // What was not made yet is not missing: its step makes it.
    calls.retain(|call| ended(&record.status, call.step));
    Ok(Missing {
        calls,
        node,
        policies,
    })
}

/// Records what happened. A state that lasts is recorded once; each restoration is a new event.
pub(super) fn note(record: &mut Record, reason: &str, what: String) {
    let said = record
        .status
        .drift
        .iter()
        .any(|drift| drift.reason == reason && drift.what == what);
    if said && reason != RESTORED {
        return;
    }
    record.alert(reason, what.clone());
    record.status.drift.push(Drift {
        time: now(),
        reason: reason.into(),
        what,
    });
    let surplus = record.status.drift.len().saturating_sub(KEPT);
    record.status.drift.drain(..surplus);
}
