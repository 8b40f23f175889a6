//! Reconciles a quarantine: reads it afresh, carries out one step after the other, records each.

use std::sync::Arc;
use std::time::Duration;

use impound_proto::traces::{self, TARGET};
use kube::ResourceExt;
use kube::api::Api;
use kube::runtime::controller::Action;
use tracing::{Instrument, Span};

mod logged;

use self::logged::{
    log_again, log_contained, log_refused_release, log_release, log_request, report,
};
use super::collecting::{self, Made};
use super::containing::{StepError, backoff};
use super::custody::{AT_LEISURE, AT_ONCE};
use super::next_step::{self, CONTAINMENT, Next, is_contained};
use super::record::{Record, not_kept};
use super::{
    Context, ReconcileError, blocking, containing, custody, evicting, guarding, isolating,
    releasing, restarts, verifying,
};
use crate::contain::facts::is_gone;
use crate::kubernetes::{from_kube, pace};
use crate::resources::{
    Collection, CollectionPhase, FactState, Quarantine, QuarantinePhase, StepName, StepState,
};

/// Looks again although nothing was heard: a lost watch event must not stop the work.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// A contained pod is looked at this often also when nothing was heard: a watch shows what carries our
/// labels, and what others add (a policy that allows, a Service) carries none.
const WATCH_OVER: Duration = Duration::from_secs(120);

/// What making the first collection is called where it is put off, and what is waited for once it is made.
const ASK: &str = "first collection";
const COLLECTION_NAME: &str = "status.collectionName";
const READING: &str = "inspect and diff of every container on the node";

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
        context.forget(&cached.uid().unwrap_or_default());
        return Ok(Action::await_change());
    };
    let mut record = Record::new(object, context.clone());
    withdraw(&mut record);
    restarts::follow(&mut record, &context).await?;
    let mut planned = false;
    loop {
        let collection = collection(&record, &context).await?;
        let status = collection
            .as_ref()
            .and_then(|collection| collection.status.as_ref());
        let next = next_step::next(&record.object.spec, &record.status, status);
        if isolating::take_proof(&mut record, &context, next).await? {
            record.save().await?;
            continue;
        }
        if blocking::is_due(&record, &context, next) {
            blocking::try_again(&mut record, &context).await?;
            record.save().await?;
            continue;
        }
        if restarts::is_due(&record, &context) {
            restarts::make(&mut record, &context).await?;
            record.save().await?;
            continue;
        }
        let undoing = matches!(next, Next::Undo(_));
        if undoing && restarts::look_before_release(&mut record, &context).await? {
            record.save().await?;
            continue;
        }
        let collection = collection.as_ref();
        let span = step(next, &record.object);
        let worked = work(&mut record, &context, next, collection, &mut planned);
        match worked.instrument(span).await? {
            Then::GoOn => {}
            Then::Save => record.save().await?,
            Then::Wait(pause) => return wait(&mut record, &context, pause).await,
            Then::Rest => return rest(&mut record, &context, next).await,
        }
    }
}

/// What follows a piece of work.
enum Then {
    /// The next one, which records this one too.
    GoOn,
    /// The next one, once this one is recorded.
    Save,
    /// Something outside must happen first: it is looked again after this long, if nothing is heard before.
    Wait(Duration),
    /// Nothing, until somebody wants something else.
    Rest,
}

impl Then {
    fn after(delay: Option<Duration>) -> Self {
        delay.map_or(Self::Save, Self::Wait)
    }
}

/// The span of what is done next; none of what is only waited for.
fn step(next: Next, object: &Quarantine) -> Span {
    let step = match next {
        Next::Contain(step) | Next::Undo(step) => format!("{step:?}"),
        Next::AwaitProof
        | Next::AwaitCollection
        | Next::AwaitContainment
        | Next::AwaitLater
        | Next::Rest => return Span::none(),
        next => format!("{next:?}"),
    };
    let span = tracing::info_span!(
        target: TARGET,
        "quarantine step",
        otel.name = format!("step {step}"),
        step,
        case = object.spec.case,
        quarantine = object.name_any(),
        namespace = object.namespace(),
        pod = object.spec.pod,
    );
    traces::of_object(&span, &object.uid().unwrap_or_default());
    span
}

/// Carries out what comes next. `planned`: the plan has just been made, and is carried out as it is.
async fn work(
    record: &mut Record,
    context: &Context,
    next: Next,
    collection: Option<&Collection>,
    planned: &mut bool,
) -> Result<Then, ReconcileError> {
    Ok(match next {
        Next::Plan => {
            *planned = containing::record_plan(record, context).await?;
            // Written again before anything is evicted, and said if it can't be.
            let logged = custody::within(AT_ONCE, log_request(record, context));
            report(record, logged.await);
            Then::GoOn
        }
        Next::Contain(step) => {
            match containing::carry_out(record, context, step, *planned).await? {
                None if Some(&step) != CONTAINMENT.last() => Then::GoOn,
                Some(pause) if blocking::begins(record, context, pause) => Then::Save,
                delay => Then::after(delay),
            }
        }
        Next::Isolate => {
            let delay = isolating::isolate(record, context).await?;
            // On the first attempt verification follows at once.
            if next_step::state(&record.status, StepName::Verify).is_none() {
                return Ok(Then::GoOn);
            }
            verifying::state_again(record, context).await?;
            Then::after(delay)
        }
        Next::Verify => {
            verifying::verify(record, context).await?;
            guarding::looked(record, context);
            let logged = custody::within(AT_ONCE, log_contained(record, context));
            report(record, logged.await);
            Then::Save
        }
        Next::Neighbours => {
            let first = next_step::state(&record.status, StepName::Neighbours).is_none();
            let then = neighbours(record, context, collection).await?;
            // Neither containment nor evidence waits for the lists of all rights in the cluster.
            if first {
                verifying::report_credentials(record, context).await;
            }
            then
        }
        Next::Prove => {
            isolating::prove(record, context).await;
            Then::Save
        }
        Next::AwaitProof => Then::Wait(HEARTBEAT),
        Next::Evict => Then::after(evicting::round(record, context).await?),
        Next::Collect => {
            collected(record, collection);
            Then::Save
        }
        Next::AwaitCollection if collection.is_none() => {
            let what = "its Collection object was deleted, or is not this quarantine's any more; what was stored is still in \
                        the store";
            record.end(StepName::Collect, StepState::Failed, what);
            Then::Save
        }
        Next::AwaitCollection => {
            record.wait(StepName::Collect, "evidence is on its way");
            Then::Wait(HEARTBEAT)
        }
        Next::AwaitContainment => Then::Wait(HEARTBEAT),
        Next::Finish => {
            finish(record);
            Then::Save
        }
        Next::Undo(step) => Then::after(releasing::undo(record, context, step).await?),
        Next::FinishRelease => {
            match custody::within(AT_LEISURE, log_release(record, context)).await {
                Ok(()) => {
                    releasing::finish(record);
                    Then::Save
                }
                Err(problem) => {
                    record.status.message = format!("everything is undone; {problem}");
                    Then::Wait(HEARTBEAT)
                }
            }
        }
        Next::AwaitLater | Next::Rest | Next::RefuseRelease => Then::Rest,
    })
}

/// Whatever is waited for, what is in force is kept so meanwhile.
async fn wait(
    record: &mut Record,
    context: &Context,
    pause: Duration,
) -> Result<Action, ReconcileError> {
    // A look that fails takes nothing of it back.
    record.save().await?;
    let look = guarding::look_meanwhile(record, context).await?;
    if let Some(why) = releasing::waits_for(record) {
        record.status.message = why;
    }
    record.save().await?;
    let pauses = [
        look,
        blocking::left(record, context),
        restarts::left(record, context),
    ];
    Ok(again_in(
        pauses.into_iter().flatten().fold(pause, Duration::min),
    ))
}

/// Everything has ended, well or not, or waits for somebody: what is in force is kept so, and what could not
/// be done is tried now and then.
async fn rest(
    record: &mut Record,
    context: &Context,
    next: Next,
) -> Result<Action, ReconcileError> {
    let mut again = None;
    if record.status.phase == QuarantinePhase::Refused {
        let logged = custody::within(AT_LEISURE, log_request(record, context)).await;
        again = logged.is_err().then_some(WATCH_OVER);
        report(record, logged);
    }
    if guarding::applies(record.status.phase) {
        let looked = guarding::look(record, context).await?;
        let evicting = evicting::again(record, context).await?;
        let blocking = blocking::left(record, context);
        let later = restarts::left(record, context);
        again = [looked, evicting, blocking, later, Some(WATCH_OVER)]
            .into_iter()
            .flatten()
            .min();
        // What is called contained, complete or failed follows the facts of now.
        finish(record);
        withdraw(record);
    }
    if let Some(why) = releasing::waits_for(record).filter(|_| next == Next::AwaitLater) {
        record.status.message = why;
    }
    if next == Next::RefuseRelease {
        record.status.message = releasing::refusal();
        let logged = custody::within(AT_LEISURE, log_refused_release(record, context));
        report(record, logged.await);
    }
    record.save().await?;
    if record.status.phase.is_over() {
        containing::let_go(record, context).await?;
        context.forget(&record.uid());
    }
    Ok(again.map_or_else(Action::await_change, again_in))
}

/// Looks again after a pause, if nothing happens before.
fn again_in(pause: Duration) -> Action {
    pace::due_in(pause);
    Action::requeue(pause)
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
) -> Result<Then, ReconcileError> {
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
        return Ok(Then::Save);
    }
    let Some(collection) = collection else {
        return ask(record, context).await;
    };
    record.status.collection = Some(collection.name_any());
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
        record.wait(StepName::Neighbours, READING);
        return Ok(Then::Wait(HEARTBEAT));
    }
    Ok(Then::Save)
}

/// Makes the first collection. One that the API does not take is tried again, and said: what is in force is watched
/// meanwhile, and nothing is evicted that was not read.
async fn ask(record: &mut Record, context: &Context) -> Result<Then, ReconcileError> {
    let uid = record.uid();
    if let Some(left) = context.pace.left(&uid, ASK) {
        return Ok(Then::Wait(left));
    }
    let attempts = record.begin(StepName::Neighbours);
    let wanted = record.first_collection();
    let name = wanted.name_any();
    let chosen = record.status.collection_name.is_some();
    let waited = match collecting::make(record, context, &wanted, chosen).await {
        Ok(Made::There(_)) => {
            context.pace.clear(&uid, ASK);
            record.status.collection = Some(name);
            READING.to_owned()
        }
        Ok(Made::Taken(how)) => match collecting::another_name(record) {
            Some(another) => {
                record.status.collection_name = Some(another.clone());
                record.save().await?;
                if record.has_kept(COLLECTION_NAME) {
                    collecting::write_down(record, &name, how, &another);
                    format!("its collection is to be made as {another}")
                } else {
                    // What is made under a name that is forgotten would be made again and again, and never found.
                    record.status.collection_name = None;
                    context.pace.put_off(&uid, ASK, backoff(attempts));
                    format!(
                        "its collection can't be made as {name}, and is NOT made under another name. {}",
                        not_kept(COLLECTION_NAME)
                    )
                }
            }
            None => {
                every_name_taken(record, &name);
                return Ok(Then::Save);
            }
        },
        Err(error) => {
            let error = StepError::from(error);
            let pause = backoff(attempts).max(error.wait());
            context.pace.put_off(&uid, ASK, pause);
            pace::leave_alone(error.wait());
            format!(
                "collection {name} is NOT made yet, and tried again: {}; no neighbour is evicted before",
                error.message()
            )
        }
    };
    record.wait(StepName::Neighbours, waited);
    Ok(Then::Save)
}

/// Nothing is collected under a name that is somebody else's.
fn every_name_taken(record: &mut Record, name: &str) {
    let message = format!(
        "NOT collected: every name that was tried is that of a collection that is not this quarantine's, {name} the \
         last. {}",
        restarts::by_hand(record, "its own collection could not be made")
    );
    record.end(StepName::Neighbours, StepState::Failed, message.clone());
    record.end(StepName::Collect, StepState::Failed, message);
}

/// The quarantine's first collection, if it is there; what else has its name is none.
async fn collection(
    record: &Record,
    context: &Context,
) -> Result<Option<Collection>, ReconcileError> {
    // It can't exist before containment is verified (Verify), and containment has no time for the read. What
    // came of it is recorded (Collect), and asked for again only by a release.
    let state = |step| next_step::state(&record.status, step);
    let recorded = state(StepName::Collect).is_some_and(StepState::is_final);
    if state(StepName::Verify).is_none() || (recorded && record.object.spec.release.is_none()) {
        return Ok(None);
    }
    Ok(collecting::find(record, context, &record.first_collection()).await?)
}

fn collected(record: &mut Record, collection: Option<&Collection>) {
    let status = collection.and_then(|collection| collection.status.as_ref());
    let Some(status) = status.filter(|_| !record.object.spec.skip_collection) else {
        record.end(
            StepName::Collect,
            StepState::Skipped,
            "the request says to collect nothing",
        );
        return;
    };
    restarts::hold(record, status);
    let state = match status.phase {
        CollectionPhase::Sealed => StepState::Done,
        _ => StepState::Failed,
    };
    record.end(StepName::Collect, state, status.outcome());
}

/// The last word: complete only if every step and every fact says so.
fn finish(record: &mut Record) {
    let blocked = next_step::blocked(&record.status).map(|step| step.name);
    let failed: Vec<String> = record
        .status
        .steps
        .iter()
        .filter(|step| {
            step.state == StepState::Failed
                || blocked
                    .as_ref()
                    .is_some_and(|blocked| *blocked == step.name)
        })
        .map(|step| format!("{}: {}", step.name, step.message))
        .collect();
    let failed = failed.join("; ");
    let unproved = match verifying::sentences(&record.status.facts, FactState::Unverified) {
        open if open.is_empty() => String::new(),
        open => format!("; not proved: {open}"),
    };
    let proved = verifying::standing(record);
    let mut steps = record.status.steps.iter();
    let later = steps.find(|step| step.name == StepName::CollectAgain);
    let later = later.filter(|step| !step.state.is_final());
    let later = later.map(|step| step.message.clone());
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
    } else if let Some(later) = later {
        let failed = match failed {
            failed if failed.is_empty() => failed,
            failed => format!("; not all is done: {failed}"),
        };
        record.enter(
            QuarantinePhase::Contained,
            format!("{proved}; {later}{failed}{unproved}"),
        );
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
