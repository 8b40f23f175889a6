//! Reconciles a quarantine: reads it afresh, carries out one step after the other, records each.

use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt;
use kube::api::{Api, PostParams};
use kube::runtime::controller::Action;

use impound_evidence::Event as CustodyEvent;

use super::custody::{AT_LEISURE, AT_ONCE};
use super::next_step::{self, CONTAINMENT, Next, is_contained};
use super::record::Record;
use super::{
    Context, ReconcileError, containing, custody, evicting, guarding, isolating, releasing,
    verifying,
};
use crate::contain::facts::is_gone;
use crate::kubernetes::from_kube;
use crate::resources::{
    Collection, CollectionPhase, CollectionSpec, CollectionStatus, FactState, Quarantine,
    QuarantinePhase, StepName, StepState,
};

/// Looks again although nothing was heard: a lost watch event must not stop the work.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// A contained pod is looked at this often also when nothing was heard: a watch shows what carries our
/// labels, and what others add (a policy that allows, a Service) carries none.
const WATCH_OVER: Duration = Duration::from_secs(60);

/// Pauses this long leave time for a look at what is in force.
const SLOW: Duration = Duration::from_secs(5);

/// Brings a quarantine as far as it gets without waiting.
///
/// # Errors
/// If the API does not answer; the work is then begun again from what was recorded.
pub async fn reconcile(
    cached: Arc<Quarantine>,
    context: Arc<Context>,
) -> Result<Action, ReconcileError> {
    let namespace = cached.namespace().unwrap_or_default();
    let api = Api::<Quarantine>::namespaced(context.client.clone(), &namespace);
    // The watch can be behind our own last status: only a fresh read says which steps are done.
    let Some(object) = api
        .get_opt(&cached.name_any())
        .await
        .map_err(|error| from_kube("GET", "quarantine", error))?
    else {
        return Ok(Action::await_change());
    };
    let mut record = Record::new(object, context.clone());
    withdraw(&mut record);
    let mut planned = false;
    loop {
        let collection = collection(&record, &context).await?;
        let status = collection
            .as_ref()
            .and_then(|collection| collection.status.clone());
        let delay = match next_step::next(&record.object.spec, &record.status, status.as_ref()) {
            Next::Plan => {
                planned = containing::record_plan(&mut record, &context).await?;
                // Written again before anything is evicted, and said if it can't be.
                let logged = custody::within(AT_ONCE, log_request(&record, &context));
                report(&record, logged.await);
                None
            }
            Next::Contain(step) => {
                let delay = containing::carry_out(&mut record, &context, step, planned).await?;
                if delay.is_some() || Some(&step) == CONTAINMENT.last() {
                    record.save().await?;
                }
                delay
            }
            Next::Isolate => {
                let delay = isolating::isolate(&mut record, &context).await?;
                // On the first attempt verification follows at once, and saves.
                let verified = next_step::state(&record.status, StepName::Verify).is_some();
                if verified {
                    verifying::state_again(&mut record, &context).await?;
                    record.save().await?;
                }
                delay.filter(|_| verified)
            }
            Next::Prove => {
                isolating::prove(&mut record, &context).await?;
                record.save().await?;
                None
            }
            Next::Verify => {
                verifying::verify(&mut record, &context).await?;
                let logged = custody::within(AT_ONCE, log_contained(&record, &context));
                report(&record, logged.await);
                record.save().await?;
                verifying::report_credentials(&mut record, &context).await;
                None
            }
            Next::Neighbours => neighbours(&mut record, &context, collection.as_ref()).await?,
            Next::Evict => {
                let delay = evicting::round(&mut record, &context).await?;
                if delay.is_none_or(|delay| delay >= SLOW) {
                    guarding::look(&mut record, &context).await?;
                }
                record.save().await?;
                delay
            }
            Next::Collect => {
                collected(&mut record, status.as_ref());
                record.save().await?;
                None
            }
            Next::AwaitCollection => {
                if collection.is_none() {
                    let what =
                        "its Collection object was deleted; what was stored is still in the store";
                    record.end(StepName::Collect, StepState::Failed, what);
                } else {
                    record.wait(StepName::Collect, "evidence is on its way");
                }
                let again = guarding::look(&mut record, &context).await?;
                record.save().await?;
                if collection.is_none() {
                    None
                } else {
                    Some(again.unwrap_or(HEARTBEAT))
                }
            }
            Next::Finish => {
                finish(&mut record);
                record.save().await?;
                None
            }
            Next::Undo(step) => {
                let delay = releasing::undo(&mut record, &context, step).await?;
                record.save().await?;
                delay
            }
            Next::FinishRelease => {
                match custody::within(AT_LEISURE, log_release(&record, &context)).await {
                    Ok(()) => releasing::finish(&mut record),
                    Err(problem) => {
                        record.status.message = format!("everything is undone; {problem}");
                        record.save().await?;
                        return Ok(Action::requeue(HEARTBEAT));
                    }
                }
                record.save().await?;
                None
            }
            Next::RefuseRelease => {
                let again = guarding::look(&mut record, &context).await?;
                record.status.message = releasing::refusal();
                let logged = custody::within(AT_LEISURE, log_refused_release(&record, &context));
                report(&record, logged.await);
                record.save().await?;
                return Ok(Action::requeue(again.unwrap_or(WATCH_OVER)));
            }
            Next::Rest => {
                let mut again = None;
                if record.status.phase == QuarantinePhase::Refused {
                    let logged = custody::within(AT_LEISURE, log_request(&record, &context)).await;
                    again = logged.is_err().then_some(WATCH_OVER);
                    report(&record, logged);
                }
                if guarding::applies(record.status.phase) {
                    let looked = guarding::look(&mut record, &context).await?;
                    let evicting = evicting::again(&mut record, &context).await?;
                    again = [looked, evicting, Some(WATCH_OVER)]
                        .into_iter()
                        .flatten()
                        .min();
                    // What is called contained, complete or failed follows the facts of now.
                    finish(&mut record);
                    withdraw(&mut record);
                }
                record.save().await?;
                if matches!(
                    record.status.phase,
                    QuarantinePhase::Released | QuarantinePhase::Refused
                ) {
                    containing::let_go(&mut record, &context).await?;
                }
                return Ok(again.map_or_else(Action::await_change, Action::requeue));
            }
        };
        if let Some(delay) = delay {
            return Ok(Action::requeue(delay));
        }
    }
}

/// A quarantine that is deleted or released before anything was changed ends there; one that is
/// deleted later says what its deletion waits for.
fn withdraw(record: &mut Record) {
    let deleting = record.object.metadata.deletion_timestamp.is_some();
    let release = record.object.spec.release.is_some();
    if record.status.undo.is_none() {
        if (deleting || release) && record.status.phase == QuarantinePhase::Pending {
            record.enter(
                QuarantinePhase::Released,
                "withdrawn before anything was changed",
            );
        }
    } else if deleting && !release && !record.status.phase.is_over() {
        record.status.message = "deletion waits until it is released: `impound release`".into();
    }
}

/// Makes the Collection, which begins with the quick inspect and diff of the whole node, and waits
/// for that part: eviction would destroy what it reads.
async fn neighbours(
    record: &mut Record,
    context: &Context,
    collection: Option<&Collection>,
) -> Result<Option<Duration>, ReconcileError> {
    let spec = &record.object.spec;
    if spec.skip_collection {
        let nothing = "the request says to collect nothing";
        match log_again(record, context).await {
            Ok(()) => record.end(StepName::Neighbours, StepState::Skipped, nothing),
            Err(problem) => record.end(
                StepName::Neighbours,
                StepState::Failed,
                format!("{nothing}; {problem}"),
            ),
        }
        record.save().await?;
        return Ok(None);
    }
    let Some(collection) = collection else {
        record.begin(StepName::Neighbours);
        create_collection(record, context).await?;
        record.status.collection = Some(record.name());
        record.wait(
            StepName::Neighbours,
            "inspect and diff of every container on the node",
        );
        record.save().await?;
        return Ok(None);
    };
    if collection.spec.quarantine.as_deref() != Some(&record.name()) {
        let message = format!(
            "a collection named {} exists and is not this quarantine's",
            record.name()
        );
        record.end(StepName::Neighbours, StepState::Failed, message.clone());
        record.end(StepName::Collect, StepState::Failed, message);
        record.save().await?;
        return Ok(None);
    }
    record.status.collection = Some(record.name());
    let status = collection.status.clone().unwrap_or_default();
    if status.quick_done {
        let mut problems = status.missing.clone();
        problems.extend(log_again(record, context).await.err());
        if problems.is_empty() {
            record.end(
                StepName::Neighbours,
                StepState::Done,
                "stored before any eviction",
            );
        } else {
            let message = format!("not all is stored: {}", problems.join("; "));
            record.end(StepName::Neighbours, StepState::Failed, message);
        }
    } else if status.phase.is_final() {
        let mut problems = vec![status.message];
        problems.extend(log_again(record, context).await.err());
        record.end(StepName::Neighbours, StepState::Failed, problems.join("; "));
    } else {
        record.wait(
            StepName::Neighbours,
            "inspect and diff of every container on the node",
        );
        record.save().await?;
        return Ok(Some(HEARTBEAT));
    }
    record.save().await?;
    Ok(None)
}

async fn create_collection(record: &Record, context: &Context) -> Result<(), ReconcileError> {
    let spec = &record.object.spec;
    let mut collection = Collection::new(
        &record.name(),
        CollectionSpec {
            pod: spec.pod.clone(),
            pod_uid: record.status.pod_uid.clone(),
            node: record.status.node.clone(),
            case: spec.case.clone(),
            reason: spec.reason.clone(),
            requested_by: spec.requested_by.clone(),
            pause: spec.pause,
            freeze: spec.freeze,
            quarantine: Some(record.name()),
        },
    );
    let request = custody::request_id(&record.object).map(|id| id.to_string());
    collection.metadata.annotations = request.map(|id| [(custody::REQUEST.into(), id)].into());
    let api = Api::<Collection>::namespaced(context.client.clone(), &record.namespace());
    match api.create(&PostParams::default(), &collection).await {
        Ok(_) => Ok(()),
        Err(error) => match from_kube("POST", "collections", error) {
            // Created by an attempt that did not get as far as recording it.
            error if error.is_conflict() => Ok(()),
            error => Err(error.into()),
        },
    }
}

async fn collection(
    record: &Record,
    context: &Context,
) -> Result<Option<Collection>, ReconcileError> {
    // It can't exist before containment is verified (Verify), and containment has no time for the read.
    if next_step::state(&record.status, StepName::Verify).is_none() {
        return Ok(None);
    }
    let api = Api::<Collection>::namespaced(context.client.clone(), &record.namespace());
    Ok(api
        .get_opt(&record.name())
        .await
        .map_err(|error| from_kube("GET", "collection", error))?)
}

fn collected(record: &mut Record, status: Option<&CollectionStatus>) {
    let Some(status) = status.filter(|_| !record.object.spec.skip_collection) else {
        record.end(
            StepName::Collect,
            StepState::Skipped,
            "the request says to collect nothing",
        );
        return;
    };
    let location = status.location.clone().unwrap_or_default();
    match status.phase {
        CollectionPhase::Sealed => {
            record.end(
                StepName::Collect,
                StepState::Done,
                format!("sealed at {location}"),
            );
        }
        CollectionPhase::Partial => {
            let missing = status.missing.join("; ");
            let message = format!("sealed at {location}, but not complete: {missing}");
            record.end(StepName::Collect, StepState::Failed, message);
        }
        _ => record.end(StepName::Collect, StepState::Failed, status.message.clone()),
    }
}

/// The last word: complete only if every step and every fact says so.
fn finish(record: &mut Record) {
    let failed: Vec<String> = record
        .status
        .steps
        .iter()
        .filter(|step| step.state == StepState::Failed)
        .map(|step| format!("{}: {}", step.name, step.message))
        .collect();
    let failed = failed.join("; ");
    let unproved = match verifying::sentences(&record.status.facts, FactState::Unverified) {
        open if open.is_empty() => String::new(),
        open => format!("; not proved: {open}"),
    };
    let proved = verifying::standing(record);
    if is_gone(&record.status.facts) {
        let gone = verifying::sentences(&record.status.facts, FactState::False);
        let message = [gone, failed]
            .into_iter()
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join("; ");
        let never = [StepName::Policy, StepName::Strip].iter().any(|step| {
            next_step::state(&record.status, *step).is_none_or(|state| state != StepState::Done)
        });
        let phase = if never {
            QuarantinePhase::Failed
        } else {
            QuarantinePhase::Incomplete
        };
        record.enter(phase, message);
    } else if !is_contained(&record.status) {
        let untrue = verifying::sentences(&record.status.facts, FactState::False);
        let message = [untrue, failed]
            .into_iter()
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join("; ");
        record.enter(QuarantinePhase::Failed, format!("NOT contained: {message}"));
    } else if failed.is_empty() {
        let location = if record.object.spec.skip_collection {
            "; no evidence was wanted"
        } else {
            "; evidence is sealed"
        };
        record.enter(
            QuarantinePhase::Complete,
            format!("{proved}{location}{unproved}"),
        );
    } else {
        record.enter(
            QuarantinePhase::Incomplete,
            format!("{proved}, but not all is done: {failed}{unproved}"),
        );
    }
}

/// Says that something is not in the custody log.
fn report(record: &Record, logged: Result<(), String>) {
    if let Err(problem) = logged {
        tracing::error!(
            quarantine = record.name(),
            problem,
            "not in the custody log"
        );
    }
}

/// Writes what containment did not wait for, unless it is there already.
async fn log_again(record: &Record, context: &Context) -> Result<(), String> {
    let writing = async {
        log_request(record, context).await?;
        log_contained(record, context).await
    };
    custody::within(AT_LEISURE, writing).await
}

/// The custody log says who asked, and at once if it is refused.
async fn log_request(record: &Record, context: &Context) -> Result<(), String> {
    let spec = &record.object.spec;
    let subject = subject("quarantine", record);
    let request = custody::request_id(&record.object);
    let authorised =
        request.map(|id| custody::request("quarantine", &record.namespace(), &record.name(), id));
    let asked = custody::Asked {
        event: CustodyEvent::Requested,
        who: &spec.requested_by,
        subject: &subject,
        authorised: authorised.as_deref(),
        request,
        reason: &spec.reason,
    };
    custody::asked(context, &spec.case, asked).await?;
    if record.status.phase != QuarantinePhase::Refused {
        return Ok(());
    }
    let why = Some(record.status.message.clone());
    custody::done(context, &spec.case, CustodyEvent::Refused, &subject, why).await
}

/// The custody log says when and how far the pod was contained.
async fn log_contained(record: &Record, context: &Context) -> Result<(), String> {
    let facts: Vec<String> = record
        .status
        .facts
        .iter()
        .map(|fact| format!("{}={:?}", fact.name, fact.state))
        .collect();
    let event = if is_contained(&record.status) {
        CustodyEvent::Contained
    } else {
        CustodyEvent::Failed
    };
    let what = format!(
        "containment of pod {}/{} (uid {}) by {}: {}",
        record.namespace(),
        record.object.spec.pod,
        record.status.pod_uid.as_deref().unwrap_or_default(),
        subject("quarantine", record),
        facts.join(", ")
    );
    custody::done(context, &record.object.spec.case, event, &what, None).await
}

async fn log_release(record: &Record, context: &Context) -> Result<(), String> {
    let release = record.object.spec.release.clone().unwrap_or_default();
    let subject = subject("release of quarantine", record);
    let asked = custody::Asked {
        event: CustodyEvent::Released,
        who: &release.requested_by,
        subject: &subject,
        authorised: Some(&subject),
        request: None,
        reason: &release.reason,
    };
    custody::asked(context, &record.object.spec.case, asked).await
}

async fn log_refused_release(record: &Record, context: &Context) -> Result<(), String> {
    let what = subject("release of quarantine", record);
    let why = Some(releasing::refusal());
    let case = &record.object.spec.case;
    custody::done(context, case, CustodyEvent::Refused, &what, why).await
}

fn subject(kind: &str, record: &Record) -> String {
    let uid = record.object.metadata.uid.as_deref().unwrap_or_default();
    custody::subject(kind, &record.namespace(), &record.name(), uid)
}
