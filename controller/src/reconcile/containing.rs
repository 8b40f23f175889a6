//! Plans a containment and carries its steps out.

use std::time::Duration;

use kube::api::{Api, ListParams, Patch};
use serde_json::{Value, json};

use super::record::{Record, manager};
use super::{Context, LONGEST_WAIT, ReconcileError, isolating};
use crate::contain::observe::{self, ObserveError, Observed, observe};
use crate::contain::plan::{self, Plan, plan};
use crate::contain::plugin::deny;
use crate::contain::refusal::Refusal;
use crate::contain::settings::{FINALIZER, OVER_LABEL};
use crate::contain::{node, pod, policy, protect};
use crate::describe::describe;
use crate::kubernetes::{ApiError, from_kube, pace, read, send};
use crate::resources::{
    ApiCall, Before, DenyUndo, Names, Quarantine, QuarantinePhase, QuarantineSpec, StepName,
    StepState, Undo, recipients,
};

/// Tries of one call within one attempt: most conflicts with somebody else's writes are over at once, and
/// those that are not end with a pause.
pub(super) const TRIES: usize = 2;

/// Longest Retry-After that a step which only helps containment follows: those after it must not wait longer.
const MERCY: Duration = Duration::from_secs(5);

/// Attempts before a step that only helps containment is given up and reported as failed: after some
/// three seconds.
const HELPER_ATTEMPTS: u32 = 4;

/// The same for the steps that go beyond the procedure: the first of them comes before the strip.
const EXTRA_ATTEMPTS: u32 = 3;

/// Observes a pod and plans its containment; changes nothing.
///
/// # Errors
/// [`ObserveError::Refused`] if it can't be contained safely, else if the API does not answer.
pub async fn prepare(
    context: &Context,
    namespace: &str,
    quarantine: &str,
    spec: &QuarantineSpec,
) -> Result<(Observed, Plan), ObserveError> {
    recipients(&spec.encrypt_to).map_err(|source| Refusal::Recipients { source })?;
    let (mut observed, others, plugin) = futures::try_join!(
        observe(&context.client, namespace, &spec.pod),
        in_force(context),
        async { Ok(context.plugins.observe(&context.client, namespace).await) },
    )?;
    observed.plugin = plugin;
    let plan = plan(&observed, quarantine, spec, &others, &context.settings)?;
    Ok((observed, plan))
}

/// Records plan, undo data and the untouched objects, before anything is changed. Tells whether there
/// is a plan now.
///
/// # Errors
/// If the API does not answer. A refusal is no error: it is recorded as the phase.
pub async fn record_plan(record: &mut Record, context: &Context) -> Result<bool, ReconcileError> {
    hold(record, context).await?;
    // Node and policy are shared: nobody releases them between our look and our record.
    let _alone = context.shared.lock().await;
    let prepared = prepare(
        context,
        &record.namespace(),
        &record.name(),
        &record.object.spec,
    )
    .await;
    let (observed, plan) = match prepared {
        Ok(prepared) => prepared,
        Err(ObserveError::Refused(refusal)) => {
            record.enter(QuarantinePhase::Refused, refusal.to_string());
            record.save().await?;
            return Ok(false);
        }
        Err(error) => {
            record.status.message =
                format!("not planned yet, nothing is changed: {}", describe(&error));
            record.save().await?;
            return Err(error.into());
        }
    };
    let status = &mut record.status;
    status.pod_uid.clone_from(&observed.pod.metadata.uid);
    status.node.clone_from(&observed.node.metadata.name);
    status.owner = Some(plan.owner);
    status.plan = plan.calls;
    status.warnings = plan.warnings;
    status.undo = Some(plan.undo);
    status.evictions = plan.evictions;
    status.before = Some(Before {
        pod: observed.pod_raw.clone(),
        node: observed.node_raw.clone(),
        owner: observed.owner.as_ref().and_then(|owner| owner.raw.clone()),
    });
    isolating::try_before(record, context, &observed.pod);
    record.enter(QuarantinePhase::Containing, "containment is under way");
    record.save().await?;
    Ok(true)
}

/// Carries one step out. With `planned` the recorded plan has just been made, and its calls are sent as
/// they are; without (after a crash, or a pause) what is still to be done is looked at first.
///
/// Returns a delay if the step has to be tried again.
///
/// # Errors
/// Only if a read fails in a way that says nothing about the step.
pub async fn carry_out(
    record: &mut Record,
    context: &Context,
    step: StepName,
    planned: bool,
) -> Result<Option<Duration>, ReconcileError> {
    let attempts = record.begin(step);
    let undo = record.status.undo.clone().unwrap_or_default();
    match attempt(record, context, step, planned, &undo).await {
        Ok(message) => record.end(step, StepState::Done, message),
        Err(StepError::Hopeless(message)) => record.end(step, StepState::Failed, message),
        Err(StepError::Refused(message)) if is_extra(step) => {
            record.end(step, StepState::Failed, message);
        }
        Err(error) if patience(step).is_some_and(|limit| attempts >= limit) => {
            let message = format!("given up after {attempts} attempts: {}", error.message());
            record.end(step, StepState::Failed, message);
        }
        Err(error) => {
            record.wait(step, format!("NOT done, tried again: {}", error.message()));
            let longest = patience(step).map_or(LONGEST_WAIT, |_| MERCY);
            let asked = error.wait().min(longest);
            pace::leave_alone(asked);
            return Ok(Some(backoff(attempts).max(asked)));
        }
    }
    Ok(None)
}

/// Quarantines whose changes are in force, of all namespaces; also those that are being undone, which
/// still have something to undo.
///
/// # Errors
/// If the API does not answer.
pub async fn in_force(context: &Context) -> Result<Vec<Quarantine>, ObserveError> {
    let not_over = not_over(context).await?;
    Ok(not_over.into_iter().filter(is_in_force).collect())
}

/// Quarantines that are not over, planned or not. Those that are marked as over are not even read, so
/// that what was released over the years does not slow a containment down.
///
/// # Errors
/// If the API does not answer.
pub async fn not_over(context: &Context) -> Result<Vec<Quarantine>, ObserveError> {
    let (over, _) = OVER_LABEL;
    let list = Api::<Quarantine>::all(context.client.clone())
        .list(&ListParams::default().labels(&format!("!{over}")))
        .await
        .map_err(|error| from_kube("GET", "/apis/impound.dev/v1alpha1/quarantines", error))?;
    let mut open = list.items;
    open.retain(|quarantine| {
        let status = quarantine.status.as_ref();
        status.is_none_or(|status| !status.phase.is_over())
    });
    Ok(open)
}

/// Delay before the next attempt: 0.2 s after the first, since most trouble is over at once, then 1 s,
/// doubled up to 30 s.
#[must_use]
pub fn backoff(attempts: u32) -> Duration {
    match attempts {
        0 | 1 => Duration::from_millis(200),
        more => Duration::from_secs(1 << (more - 2).min(5)).min(Duration::from_secs(30)),
    }
}

fn is_in_force(quarantine: &Quarantine) -> bool {
    quarantine
        .status
        .as_ref()
        .is_some_and(|status| status.undo.is_some() && !status.phase.is_over())
}

/// Steps without which the pod is still contained are given up after so many attempts, so that they
/// never keep policy and strip waiting.
fn patience(step: StepName) -> Option<u32> {
    match step {
        StepName::Cordon | StepName::Protect | StepName::LabelNode => Some(HELPER_ATTEMPTS),
        step if is_extra(step) => Some(EXTRA_ATTEMPTS),
        _ => None,
    }
}

/// Steps beyond the procedure: a right that is missing for them ends them at once. The watch over what
/// is in force goes on trying.
fn is_extra(step: StepName) -> bool {
    matches!(step, StepName::Exclude | StepName::Deny)
}

/// Why a step did not succeed.
#[derive(Debug)]
pub enum StepError {
    /// It can succeed later.
    Transient(String),
    /// It can succeed later, and the server said when: after so long.
    Overloaded(String, Duration),
    /// The API does not allow it: only somebody's help (rights, a webhook) changes that.
    Refused(String),
    /// What it is about is gone, or is another thing.
    Hopeless(String),
}

impl StepError {
    /// What happened.
    #[must_use]
    pub fn message(&self) -> &str {
        let (Self::Transient(message)
        | Self::Overloaded(message, _)
        | Self::Refused(message)
        | Self::Hopeless(message)) = self;
        message
    }

    /// How long the server wants to be left alone, up to [`LONGEST_WAIT`]; zero if it did not say.
    #[must_use]
    pub fn wait(&self) -> Duration {
        match self {
            Self::Overloaded(_, wait) => (*wait).min(LONGEST_WAIT),
            _ => Duration::ZERO,
        }
    }
}

impl From<ApiError> for StepError {
    fn from(error: ApiError) -> Self {
        if error.is_transient() && !error.retry_after().is_zero() {
            Self::Overloaded(describe(&error), error.retry_after())
        } else if error.is_transient() {
            Self::Transient(describe(&error))
        } else {
            Self::Refused(describe(&error))
        }
    }
}

impl From<ObserveError> for StepError {
    fn from(error: ObserveError) -> Self {
        match error {
            ObserveError::Api(error) => error.into(),
            ObserveError::Refused(refusal) => Self::Hopeless(refusal.to_string()),
            ObserveError::Shape { .. } | ObserveError::NotServed { .. } => {
                Self::Refused(describe(&error))
            }
        }
    }
}

impl From<Refusal> for StepError {
    fn from(refusal: Refusal) -> Self {
        Self::Hopeless(refusal.to_string())
    }
}

async fn attempt(
    record: &Record,
    context: &Context,
    step: StepName,
    planned: bool,
    undo: &Undo,
) -> Result<String, StepError> {
    let plan = record.status.plan.iter();
    let mut stored: Option<Vec<ApiCall>> =
        planned.then(|| plan.filter(|call| call.step == step).cloned().collect());
    let mut done = Vec::new();
    let mut last = None;
    for _ in 0..TRIES {
        let calls = match stored.take() {
            Some(calls) => calls,
            None => next_calls(record, context, step, undo).await?,
        };
        let conflict = send_all(context, calls, &mut done).await?;
        match conflict {
            None if done.is_empty() => return Ok("it was so already".into()),
            None => return Ok(done.join("; ")),
            conflict => last = conflict,
        }
    }
    Err(last.map_or_else(
        || StepError::Transient("no attempt was made".into()),
        StepError::from,
    ))
}

/// Sends the calls of one step and notes what each did. One that fails does not keep the others back.
/// Gives a conflict if there was one: then it is to be looked again.
async fn send_all(
    context: &Context,
    calls: Vec<ApiCall>,
    done: &mut Vec<String>,
) -> Result<Option<ApiError>, StepError> {
    let (mut conflict, mut failure) = (None, None);
    for call in calls {
        match send(&context.client, &call).await {
            Ok(_) => done.push(call.purpose),
            // Somebody else wrote in between, or (422) the object is another one: look again.
            Err(error) if error.is_conflict() || error.code() == 422 => conflict = Some(error),
            Err(error) => failure = Some(error),
        }
    }
    match failure {
        Some(failure) => Err(failure.into()),
        None => Ok(conflict),
    }
}

/// What is still to be sent for a step; nothing if its effect is there.
async fn next_calls(
    record: &Record,
    context: &Context,
    step: StepName,
    undo: &Undo,
) -> Result<Vec<ApiCall>, StepError> {
    let namespace = record.namespace();
    let names = &record.names();
    let calls = match step {
        StepName::Cordon => node::cordon(&current_node(record, context).await?),
        StepName::LabelNode => node::label(&current_node(record, context).await?, names),
        StepName::Protect => {
            let quarantine = record.name();
            let path = protect::budget_path(&namespace, &quarantine);
            let budget = read(&context.client, &path).await?;
            budget
                .is_none()
                .then(|| protect::create(&namespace, &quarantine))
        }
        StepName::Policy => {
            let policies = observe::policies(&context.client, &namespace).await?;
            policy::deny_all(&namespace, &policies, names)?
        }
        StepName::Exclude => {
            let policies = observe::policies(&context.client, &namespace).await?;
            return Ok(policy::exclude::exclude(
                &namespace,
                &policies,
                &undo.policies,
                names,
            ));
        }
        StepName::Deny => return Ok(mend_denies(context, &namespace, &undo.denies, names).await?),
        StepName::Strip => pod::strip(&current_pod(record, context).await?, &undo.pod),
        other => {
            return Err(StepError::Hopeless(format!(
                "{other} is not a containment step"
            )));
        }
    };
    Ok(calls.into_iter().collect())
}

/// What makes our policies in the network plugin's own kinds as they are to be again.
///
/// # Errors
/// If the API does not answer.
pub async fn mend_denies(
    context: &Context,
    namespace: &str,
    denies: &[DenyUndo],
    names: &Names,
) -> Result<Vec<ApiCall>, ApiError> {
    let mut calls = Vec::new();
    for deny in denies {
        let present = read(&context.client, &deny.path).await?;
        calls.extend(deny::mend(deny, present.as_ref(), namespace, names));
    }
    Ok(calls)
}

/// The suspect as it is now, provided that it is still the same pod.
async fn current_pod(
    record: &Record,
    context: &Context,
) -> Result<k8s_openapi::api::core::v1::Pod, StepError> {
    let (_, pod) = observe::suspect(
        &context.client,
        &record.namespace(),
        &record.object.spec.pod,
    )
    .await?;
    let expected = record.status.pod_uid.clone().unwrap_or_default();
    let found = pod.metadata.uid.clone().unwrap_or_default();
    if found != expected {
        return Err(Refusal::OtherUid {
            pod: plan::full_name(&pod),
            expected,
            found,
        }
        .into());
    }
    Ok(pod)
}

async fn current_node(
    record: &Record,
    context: &Context,
) -> Result<k8s_openapi::api::core::v1::Node, StepError> {
    let name = record.status.node.clone().unwrap_or_default();
    observe::node(&context.client, &name)
        .await?
        .ok_or_else(|| StepError::Hopeless(format!("node {name} does not exist any more")))
}

/// Puts the finalizer on before anything is changed. An object made from a copy of one that is over does
/// not stay marked so.
async fn hold(record: &mut Record, context: &Context) -> Result<(), ReconcileError> {
    let metadata = &record.object.metadata;
    let mut finalizers = metadata.finalizers.clone().unwrap_or_default();
    let held = finalizers.iter().any(|finalizer| finalizer == FINALIZER);
    let marked = is_marked(record);
    if metadata.deletion_timestamp.is_some() || (held && !marked) {
        return Ok(());
    }
    if !held {
        finalizers.push(FINALIZER.into());
    }
    patch_metadata(record, context, &json!(finalizers), Value::Null).await
}

/// Takes the finalizer off once nothing is left to undo, and marks the object as over.
///
/// # Errors
/// If the API does not take the change.
pub async fn let_go(record: &mut Record, context: &Context) -> Result<(), ReconcileError> {
    let finalizers = record.object.metadata.finalizers.clone();
    let mut left = finalizers.unwrap_or_default();
    let before = left.len();
    left.retain(|finalizer| finalizer != FINALIZER);
    if left.len() == before && is_marked(record) {
        return Ok(());
    }
    patch_metadata(record, context, &json!(left), json!(OVER_LABEL.1)).await
}

fn is_marked(record: &Record) -> bool {
    let labels = record.object.metadata.labels.as_ref();
    labels.is_some_and(|labels| labels.contains_key(OVER_LABEL.0))
}

async fn patch_metadata(
    record: &mut Record,
    context: &Context,
    finalizers: &Value,
    over: Value,
) -> Result<(), ReconcileError> {
    // The list is written whole: the version guards what others put into it.
    let patch = json!({ "metadata": {
        "uid": record.object.metadata.uid,
        "resourceVersion": record.object.metadata.resource_version,
        "finalizers": finalizers,
        "labels": { OVER_LABEL.0: over },
    } });
    let api = Api::<Quarantine>::namespaced(context.client.clone(), &record.namespace());
    let name = record.name();
    let patched = api.patch(&name, &manager(), &Patch::Merge(patch)).await;
    match patched.map_err(|error| from_kube("PATCH", &format!("quarantines/{name}"), error)) {
        Ok(object) => {
            record.take_over(object);
            Ok(())
        }
        Err(error) if error.code() == 404 => Ok(()),
        Err(error) => Err(error.into()),
    }
}
