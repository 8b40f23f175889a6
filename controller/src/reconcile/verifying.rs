//! Checks what containment achieved, until the API's own controllers have caught up.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::next_step::{blocked, is_contained, state};
use super::record::Record;
use super::{Context, ReconcileError, isolating};
use crate::contain::observe::ObserveError;
use crate::contain::owner::is_orphan;
use crate::contain::plan::uses_node_network;
use crate::contain::plugin::facts as plugin_facts;
use crate::contain::{credentials, facts, pod};
use crate::kubernetes::pace;
use crate::resources::{Fact, FactState, QuarantinePhase, StepName, StepState, Verdict};

/// The API's own controllers release a pod and rewrite EndpointSlices within about 100 ms on an
/// idle cluster (measured on Kubernetes 1.36); a busy one gets this long.
const SETTLE_LIMIT: Duration = Duration::from_secs(15);

/// Pauses before the next looks, each of which reads four things; then there are [`LATER_PAUSE`]s.
const PAUSES: [Duration; 3] = [
    Duration::from_millis(20),
    Duration::from_millis(60),
    Duration::from_millis(180),
];
const LATER_PAUSE: Duration = Duration::from_secs(1);

/// States the facts, and `Contained` only if they hold.
///
/// # Errors
/// If the API does not answer.
pub async fn verify(record: &mut Record, context: &Context) -> Result<(), ReconcileError> {
    record.begin(StepName::Verify);
    let deadline = Instant::now() + SETTLE_LIMIT;
    let mut pauses = PAUSES.into_iter();
    loop {
        match check(record, context, None).await {
            Ok(mut facts) => {
                let settling = facts::settling(&facts) && comes_by_itself(record);
                let last = !settling || Instant::now() >= deadline;
                if last {
                    let standing = context.guard.look(&context.client, &context.settings);
                    facts.push(standing.await.fact());
                }
                record.state(facts);
                if last {
                    break;
                }
            }
            Err(ObserveError::Refused(refusal)) => {
                record.state(facts::gone());
                record.end(StepName::Verify, StepState::Failed, refusal.to_string());
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
        sleep(pauses.next().unwrap_or_else(|| {
            pace::slow_down();
            LATER_PAUSE
        }))
        .await;
    }
    let mut facts = std::mem::take(&mut record.status.facts);
    add_plugin_facts(record, context, &mut facts).await;
    record.state(facts);
    conclude(record);
    Ok(())
}

/// What a step that has failed or is still refused would bring about does not come by itself.
fn comes_by_itself(record: &Record) -> bool {
    let failed = |step| state(&record.status, step) == Some(StepState::Failed);
    blocked(&record.status).is_none() && !failed(StepName::Policy) && !failed(StepName::Strip)
}

/// What policies of other kinds mean for the pod; nothing where the cluster serves none.
async fn add_plugin_facts(record: &Record, context: &Context, facts: &mut Vec<Fact>) {
    // None of them applies to a pod on its node's network either.
    if record.untouched().is_some() || uses_node_network(&record.suspect_before()) {
        return;
    }
    let namespace = record.namespace();
    let plugin = context.plugins.observe(&context.client, &namespace).await;
    let undo = record.status.undo.clone().unwrap_or_default();
    let labels = pod::labels_after(&undo.pod);
    plugin_facts::add(facts, &plugin, &namespace, &labels, &record.names());
}

/// Reports what the suspect could act with, if that says more than what was reported. Once its collection is made, since
/// nothing must wait for it.
pub async fn report_credentials(record: &mut Record, context: &Context) {
    let pod = record.suspect_before();
    let report = credentials::report(&context.client, &pod).await;
    if credentials::is_better(&report, &record.status.credentials) {
        record.status.credentials = report;
    }
}

/// States the facts anew, long after containment. A pod that is no longer contained, or is only now,
/// is called what it is.
///
/// # Errors
/// If the API does not answer.
pub async fn state_again(record: &mut Record, context: &Context) -> Result<(), ReconcileError> {
    state_seen(record, context, None).await
}

/// The same of what was seen just now.
///
/// # Errors
/// As above.
pub async fn state_seen(
    record: &mut Record,
    context: &Context,
    seen: Option<facts::Seen>,
) -> Result<(), ReconcileError> {
    let facts = match check(record, context, seen).await {
        Ok(mut facts) => {
            facts.push(guarded(context).await);
            add_plugin_facts(record, context, &mut facts).await;
            facts
        }
        Err(ObserveError::Refused(_)) => {
            gone(record);
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    if facts == record.status.facts {
        return Ok(());
    }
    let (was, verdict) = (is_contained(&record.status), record.status.verdict);
    record.state(facts);
    let is = is_contained(&record.status);
    let untrue = sentences(&record.status.facts, FactState::False);
    if was && !is {
        let message = format!("NOT contained any more: {untrue}");
        record.alert("NotContained", message.clone());
        if record.status.phase == QuarantinePhase::Contained {
            record.enter(QuarantinePhase::Containing, message);
        }
    } else if is && !was {
        record.end(
            StepName::Verify,
            StepState::Done,
            format!("{}, later than expected", standing(record)),
        );
    } else if verdict == Some(Verdict::Isolated) && record.status.verdict != verdict {
        let open = sentences(&record.status.facts, FactState::Unverified);
        record.alert(
            "NotIsolated",
            format!("not called isolated any more: {untrue}{open}"),
        );
    }
    if !is && !was && record.status.phase == QuarantinePhase::Containing {
        record.status.message = not_contained(record);
    }
    // The last word on a quarantine that is over and done with is said elsewhere.
    if is
        && matches!(
            record.status.phase,
            QuarantinePhase::Containing | QuarantinePhase::Contained
        )
    {
        say(record);
    }
    Ok(())
}

/// The suspect is gone, or its name is another pod's: nothing that was said of it holds any more.
pub fn gone(record: &mut Record) {
    record.state(facts::gone());
    // The last word on a quarantine that is over and done with is said elsewhere.
    if matches!(
        record.status.phase,
        QuarantinePhase::Containing | QuarantinePhase::Contained
    ) {
        let message = sentences(&record.status.facts, FactState::False);
        record.enter(QuarantinePhase::Containing, message);
    }
}

/// Everything that can be said of the pod now.
async fn check(
    record: &Record,
    context: &Context,
    seen: Option<facts::Seen>,
) -> Result<Vec<Fact>, ObserveError> {
    let suspect = record.suspect_before();
    let before = record.status.before.as_ref();
    let is_orphan = is_orphan(&suspect, before.and_then(|before| before.owner.as_ref()));
    let mut facts = facts::check(
        &context.client,
        &suspect,
        record.status.node.as_deref().unwrap_or_default(),
        &record.name(),
        (record.untouched(), is_orphan),
        seen,
        &record.names(),
    )
    .await?;
    facts.extend(isolating::facts(record));
    Ok(facts)
}

/// How far the pod is contained, for people.
#[must_use]
pub fn standing(record: &Record) -> &'static str {
    match (record.untouched(), record.status.verdict) {
        (None, Some(Verdict::Isolated)) => "isolated, at the Kubernetes API and at its node",
        (None, _) => "contained at the Kubernetes API",
        (Some(_), Some(Verdict::Isolated)) => "isolated at its node, and there alone",
        (Some(_), _) => "contained at its node, and there alone",
    }
}

/// Whether the evidence guard is in the cluster.
async fn guarded(context: &Context) -> Fact {
    let standing = context.guard.standing(&context.client, &context.settings);
    standing.await.fact()
}

fn conclude(record: &mut Record) {
    let untrue = sentences(&record.status.facts, FactState::False);
    if !is_contained(&record.status) {
        let message = not_contained(record);
        record.end(StepName::Verify, StepState::Failed, message.clone());
        // Eviction and collection go on: the evidence is needed all the more.
        record.enter(QuarantinePhase::Containing, message);
        return;
    }
    let proved = standing(record);
    if untrue.is_empty() {
        record.end(StepName::Verify, StepState::Done, proved);
    } else {
        let message = format!("{proved}, but {untrue}");
        record.end(StepName::Verify, StepState::Failed, message);
    }
    say(record);
}

/// Why the pod is not contained.
fn not_contained(record: &Record) -> String {
    let untrue = sentences(&record.status.facts, FactState::False);
    let blocked = blocked(&record.status);
    let blocked = blocked.map(|step| format!("; {}: {}", step.name, step.message));
    format!("NOT contained: {untrue}{}", blocked.unwrap_or_default())
}

/// Says of a contained pod how far it is.
fn say(record: &mut Record) {
    let proved = standing(record);
    let untrue = sentences(&record.status.facts, FactState::False);
    let open = sentences(&record.status.facts, FactState::Unverified);
    let but = if untrue.is_empty() {
        String::new()
    } else {
        format!(", but {untrue}")
    };
    let not_proved = if open.is_empty() {
        String::new()
    } else {
        format!("; not proved: {open}")
    };
    record.enter(
        QuarantinePhase::Contained,
        format!("{proved}{but}{not_proved}"),
    );
}

/// The messages of the facts in a state.
#[must_use]
pub fn sentences(facts: &[Fact], state: FactState) -> String {
    let of_state = facts.iter().filter(|fact| fact.state == state);
    of_state
        .map(|fact| fact.message.as_str())
        .collect::<Vec<_>>()
        .join("; ")
}
