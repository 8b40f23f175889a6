//! Plans a containment and carries its steps out.

use std::time::Duration;

use kube::api::{Api, ListParams, Patch};
use serde_json::{Value, json};

use super::record::{Record, manager};
use super::{Context, ReconcileError, isolating};
use crate::contain::observe::{self, ObserveError, Observed, observe};
use crate::contain::plan::{self, Plan, plan};
use crate::contain::refusal::Refusal;
use crate::contain::settings::FINALIZER;
use crate::contain::{node, pod, policy, protect};
use crate::describe::describe;
use crate::kubernetes::{ApiError, from_kube, read, send};
use crate::resources::{
    ApiCall, Before, Quarantine, QuarantinePhase, QuarantineSpec, StepName, StepState, Undo,
};

/// Tries of one call within one attempt: conflicts with somebody else's writes end quickly.
const TRIES: usize = 5;

/// Longest Retry-After that containment follows to the letter.
const MERCY: Duration = Duration::from_secs(5);

/// Attempts before a step that only helps containment is given up and reported as failed.
const HELPER_ATTEMPTS: u32 = 5;

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
    let (observed, others) = futures::try_join!(
        observe(&context.client, namespace, &spec.pod),
        in_force(context)
    )?;
    let plan = plan(&observed, quarantine, spec, &others, &context.settings)?;
    Ok((observed, plan))
}

/// Records plan, undo data and the untouched objects, before anything is changed.
///
/// # Errors
/// If the API does not answer. A refusal is no error: it is recorded as the phase.
pub async fn record_plan(
    record: &mut Record,
    context: &Context,
) -> Result<Option<Observed>, ReconcileError> {
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
            return Ok(None);
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
    Ok(Some(observed))
}

/// Carries one step out. `fresh` is what planning has just seen; it saves a read on the first try.
///
/// Returns a delay if the step has to be tried again.
///
/// # Errors
/// Only if a read fails in a way that says nothing about the step.
pub async fn carry_out(
    record: &mut Record,
    context: &Context,
    step: StepName,
    fresh: Option<&Observed>,
) -> Result<Option<Duration>, ReconcileError> {
    let attempts = record.begin(step);
    let undo = record.status.undo.clone().unwrap_or_default();
    match attempt(record, context, step, fresh, &undo).await {
        Ok(message) => record.end(step, StepState::Done, message),
        Err(StepError::Hopeless(message)) => record.end(step, StepState::Failed, message),
        Err(StepError::Refused(message) | StepError::Transient(message))
            if is_helper(step) && attempts >= HELPER_ATTEMPTS =>
        {
            let message = format!("given up after {attempts} attempts: {message}");
            record.end(step, StepState::Failed, message);
        }
        Err(StepError::Refused(message) | StepError::Transient(message)) => {
            record.wait(step, format!("NOT done, tried again: {message}"));
            return Ok(Some(backoff(attempts)));
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
    let list = Api::<Quarantine>::all(context.client.clone())
        .list(&ListParams::default())
        .await
        .map_err(|error| from_kube("GET", "/apis/impound.dev/v1alpha1/quarantines", error))?;
    Ok(list.items.into_iter().filter(is_in_force).collect())
}

/// Delay before the next attempt: 0.2 s, doubled up to 30 s.
#[must_use]
pub fn backoff(attempts: u32) -> Duration {
    let doubled = 200_u64.saturating_mul(1 << attempts.saturating_sub(1).min(10));
    Duration::from_millis(doubled).min(Duration::from_secs(30))
}

fn is_in_force(quarantine: &Quarantine) -> bool {
    quarantine.status.as_ref().is_some_and(|status| {
        status.undo.is_some()
            && !matches!(
                status.phase,
                QuarantinePhase::Refused | QuarantinePhase::Released
            )
    })
}

/// Steps without which the pod is still contained: they are given up at last, so that they never
/// keep policy and strip waiting.
fn is_helper(step: StepName) -> bool {
    matches!(
        step,
        StepName::Cordon | StepName::Protect | StepName::LabelNode
    )
}

/// Why a step did not succeed.
#[derive(Debug)]
pub enum StepError {
    /// It can succeed later.
    Transient(String),
    /// The API does not allow it: only somebody's help (rights, a webhook) changes that.
    Refused(String),
    /// What it is about is gone, or is another thing.
    Hopeless(String),
}

impl From<ApiError> for StepError {
    fn from(error: ApiError) -> Self {
        if error.is_transient() {
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
    mut fresh: Option<&Observed>,
    undo: &Undo,
) -> Result<String, StepError> {
    let mut last = None;
    for _ in 0..TRIES {
        let call = match next_call(record, context, step, fresh.take(), undo).await? {
            Effect::There(message) => return Ok(message),
            Effect::Needs(call) => call,
        };
        match send(&context.client, &call).await {
            Ok(_) => return Ok(call.purpose),
            // Somebody else wrote in between, or (422) the object is another one: look again.
            Err(error) if error.is_conflict() || error.code() == 422 => last = Some(error),
            Err(error) => {
                // What the server asked for is kept within this attempt; longer pauses are the caller's.
                tokio::time::sleep(error.retry_after().min(MERCY)).await;
                return Err(error.into());
            }
        }
    }
    Err(last.map_or_else(
        || StepError::Transient("no attempt was made".into()),
        StepError::from,
    ))
}

enum Effect {
    /// Seen to be there already.
    There(String),
    /// One call brings it about.
    Needs(ApiCall),
}

impl Effect {
    fn of(call: Option<ApiCall>, already: &str) -> Self {
        call.map_or_else(|| Self::There(already.into()), Self::Needs)
    }
}

async fn next_call(
    record: &Record,
    context: &Context,
    step: StepName,
    fresh: Option<&Observed>,
    undo: &Undo,
) -> Result<Effect, StepError> {
    let namespace = record.namespace();
    let settings = &context.settings;
    match step {
        StepName::Cordon | StepName::LabelNode => {
            let read_again;
            let node = match fresh {
                // The cordon has changed the node since the observation.
                Some(observed) if step == StepName::Cordon => &observed.node,
                _ => {
                    read_again = current_node(record, context).await?;
                    &read_again
                }
            };
            Ok(if step == StepName::Cordon {
                Effect::of(
                    node::cordon(node),
                    "the node was cordoned and tainted already",
                )
            } else {
                Effect::of(node::label(node, settings), "the node was labelled already")
            })
        }
        StepName::Protect => {
            let quarantine = record.name();
            // Created without looking first: on a first attempt it can't exist yet.
            if fresh.is_none() {
                let path = protect::budget_path(&namespace, &quarantine);
                if read(&context.client, &path).await?.is_some() {
                    return Ok(Effect::There("the budget existed already".into()));
                }
            }
            Ok(Effect::Needs(protect::create(&namespace, &quarantine)))
        }
        StepName::Policy => {
            let read_again;
            let policies = match fresh {
                Some(observed) => &observed.policies,
                None => {
                    read_again = observe::policies(&context.client, &namespace).await?;
                    &read_again
                }
            };
            let call = policy::deny_all(&namespace, policies, settings)?;
            Ok(Effect::of(call, "the deny-all policy existed already"))
        }
        StepName::Strip => {
            let read_again;
            let suspect = match fresh {
                Some(observed) => &observed.pod,
                None => {
                    read_again = current_pod(record, context).await?;
                    &read_again
                }
            };
            Ok(Effect::of(
                pod::strip(suspect, &undo.pod),
                "the pod was stripped and labelled already",
            ))
        }
        other => Err(StepError::Hopeless(format!(
            "{other} is not a containment step"
        ))),
    }
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

/// Puts the finalizer on before anything is changed.
async fn hold(record: &Record, context: &Context) -> Result<(), ReconcileError> {
    let metadata = &record.object.metadata;
    let mut finalizers = metadata.finalizers.clone().unwrap_or_default();
    if finalizers.iter().any(|finalizer| finalizer == FINALIZER)
        || metadata.deletion_timestamp.is_some()
    {
        return Ok(());
    }
    finalizers.push(FINALIZER.into());
    patch_finalizers(record, context, &json!(finalizers)).await
}

/// Takes the finalizer off once nothing is left to undo.
///
/// # Errors
/// If the API does not take the change.
pub async fn let_go(record: &Record, context: &Context) -> Result<(), ReconcileError> {
    let finalizers = record
        .object
        .metadata
        .finalizers
        .clone()
        .unwrap_or_default();
    if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
        return Ok(());
    }
    let left: Vec<String> = finalizers
        .into_iter()
        .filter(|finalizer| finalizer != FINALIZER)
        .collect();
    patch_finalizers(record, context, &json!(left)).await
}

async fn patch_finalizers(
    record: &Record,
    context: &Context,
    finalizers: &Value,
) -> Result<(), ReconcileError> {
    // The list is written whole: the version guards what others put into it.
    let patch = json!({ "metadata": {
        "uid": record.object.metadata.uid,
        "resourceVersion": record.object.metadata.resource_version,
        "finalizers": finalizers,
    } });
    let api = Api::<Quarantine>::namespaced(context.client.clone(), &record.namespace());
    let name = record.name();
    let patched = api.patch(&name, &manager(), &Patch::Merge(patch)).await;
    match patched.map_err(|error| from_kube("PATCH", &format!("quarantines/{name}"), error)) {
        Err(error) if error.code() == 404 => Ok(()),
        other => other.map(drop).map_err(Into::into),
    }
}
