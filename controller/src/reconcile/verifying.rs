//! Checks what containment achieved, until the API's own controllers have caught up.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::time::{Instant, sleep};

use super::next_step::is_contained;
use super::record::Record;
use super::{Context, ReconcileError};
use crate::contain::observe::ObserveError;
use crate::contain::{credentials, facts};
use crate::resources::{Fact, FactState, QuarantinePhase, StepName, StepState};

/// The API's own controllers release a pod and rewrite EndpointSlices within about 100 ms on an
/// idle cluster (measured on Kubernetes 1.36); a busy one gets this long.
const SETTLE_LIMIT: Duration = Duration::from_secs(15);

/// First pause between two looks; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(20);

/// States the facts, and `Contained` only if they hold.
///
/// # Errors
/// If the API does not answer.
pub async fn verify(record: &mut Record, context: &Context) -> Result<(), ReconcileError> {
    record.begin(StepName::Verify);
    let deadline = Instant::now() + SETTLE_LIMIT;
    let mut pause = FIRST_PAUSE;
    loop {
        let checked = facts::check(
            &context.client,
            &record.namespace(),
            &record.object.spec.pod,
            record.status.node.as_deref().unwrap_or_default(),
            &record.name(),
            &context.settings,
        )
        .await;
        match checked {
            Ok(facts) => {
                let settling = facts::settling(&facts);
                record.status.facts = facts;
                if !settling || Instant::now() >= deadline {
                    break;
                }
            }
            Err(ObserveError::Refused(refusal)) => {
                record.status.facts.clear();
                record.end(StepName::Verify, StepState::Failed, refusal.to_string());
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(2));
    }
    conclude(record);
    Ok(())
}

/// Reports what the suspect could act with. After containment, which must not wait for it.
pub async fn report_credentials(record: &mut Record, context: &Context) {
    let pod: Option<Pod> = record
        .status
        .before
        .as_ref()
        .and_then(|before| serde_json::from_value(before.pod.clone()).ok());
    if let Some(pod) = pod {
        record.status.credentials = credentials::report(&context.client, &pod).await;
    }
}

/// States the facts anew, long after containment. A pod that is no longer contained, or is only now,
/// is called what it is.
///
/// # Errors
/// If the API does not answer.
pub async fn state_again(record: &mut Record, context: &Context) -> Result<(), ReconcileError> {
    let node = record.status.node.clone().unwrap_or_default();
    let checked = facts::check(
        &context.client,
        &record.namespace(),
        &record.object.spec.pod,
        &node,
        &record.name(),
        &context.settings,
    )
    .await;
    let facts = match checked {
        Ok(facts) => facts,
        Err(ObserveError::Refused(_)) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    if facts == record.status.facts {
        return Ok(());
    }
    let was = is_contained(&record.status);
    record.status.facts = facts;
    let is = is_contained(&record.status);
    let untrue = sentences(&record.status.facts, FactState::False);
    if was && !is {
        record.alert("NotContained", format!("NOT contained any more: {untrue}"));
    } else if is && !was {
        record.end(
            StepName::Verify,
            StepState::Done,
            "contained at the Kubernetes API, later than expected",
        );
    }
    Ok(())
}

fn conclude(record: &mut Record) {
    let untrue = sentences(&record.status.facts, FactState::False);
    let open = sentences(&record.status.facts, FactState::Unverified);
    if !is_contained(&record.status) {
        let message = format!("NOT contained: {untrue}");
        record.end(StepName::Verify, StepState::Failed, message.clone());
        // Eviction and collection go on: the evidence is needed all the more.
        record.enter(QuarantinePhase::Containing, message);
        return;
    }
    let proved = "contained at the Kubernetes API";
    if untrue.is_empty() {
        record.end(StepName::Verify, StepState::Done, proved);
        record.enter(
            QuarantinePhase::Contained,
            format!("{proved}; not proved: {open}"),
        );
    } else {
        record.end(
            StepName::Verify,
            StepState::Failed,
            format!("{proved}, but {untrue}"),
        );
        record.enter(
            QuarantinePhase::Contained,
            format!("{proved}, but {untrue}; not proved: {open}"),
        );
    }
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
