//! Reconciles a collection: claims it for this replica, starts the work once, reports how far it is, records how it
//! ended.

mod conclude;
mod recorded;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use impound_evidence::{CaseId, CollectionName, case_log};
use impound_proto::traces::{self, TARGET};
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::Api;
use kube::runtime::controller::Action;
use kube::runtime::events::{Event, EventType};
use kube::runtime::reflector::ObjectRef;
use kube::{Client, Resource, ResourceExt};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

use self::conclude::{PAUSE, conclude, fail, is_held};
use self::recorded::Recorded;
use super::custody;
use super::record::{is_younger, shortened};
use super::{Context, ReconcileError};
use crate::agents::AgentError;
use crate::collect::{
    Begun, CollectError, CollectionJob, Containment, ContainmentSource, SealedCollection,
    TargetPod, look_for_images,
};
use crate::contain::observe::{self, ObserveError};
use crate::contain::owner::{is_same, runtime_uid};
use crate::contain::standstill;
use crate::describe::describe;
use crate::kubernetes::{from_kube, read};
use crate::locked::locked;
use crate::progress::{ArtifactProgress, ArtifactState as Stage, CollectionProgress};
use crate::resources::{
    ArtifactState, ArtifactStatus, Before, Collection, CollectionPhase, CollectionStatus,
    Quarantine, now, recipients,
};
use crate::store::CollectionId;

/// Between two reports of progress in the object's status. Watchers over gRPC see more.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// The worker of a collection that was let go of; one that names none is an older version's.
const NOBODY: &str = "";

/// How often a collection is looked at that another replica works on. Three looks within five seconds would be taken
/// for a loop ([`crate::kubernetes::pace`]).
const LOOK_AGAIN: Duration = Duration::from_secs(3);

/// The same when somebody was faster, or there is no lease yet.
const AT_ONCE: Duration = Duration::from_secs(1);

/// How long the first byte waits for an agent that can't be reached: one whose pod is being replaced
/// is back within that time, and a collection is sealed only once.
pub(super) const AGENT_PATIENCE: SignedDuration = SignedDuration::from_secs(120);

/// Collections that this process is working on, with how far they are.
#[derive(Default)]
pub struct Running {
    at_work: Mutex<HashMap<ObjectRef<Collection>, watch::Receiver<CollectionProgress>>>,
    /// By its uid, since when a collection has met nothing but somebody else's hold in the store.
    held: Mutex<HashMap<String, Instant>>,
}

impl Running {
    /// How far a collection is, if this process is working on it.
    pub fn progress(&self, collection: &Collection) -> Option<watch::Receiver<CollectionProgress>> {
        let key = ObjectRef::from_obj(collection);
        locked(&self.at_work).get(&key).cloned()
    }

    /// How long the collection with this uid has met nothing but somebody else's hold, `now` included.
    fn held(&self, uid: &str, now: bool) -> Duration {
        let mut held = locked(&self.held);
        if !now {
            held.remove(uid);
            return Duration::ZERO;
        }
        held.entry(uid.to_owned())
            .or_insert_with(Instant::now)
            .elapsed()
    }
}

/// Takes a collection that is neither final nor under work and works on it until it ends.
///
/// # Errors
/// If the API does not answer; the work is then begun again and resumes what is stored.
pub async fn reconcile(
    cached: Arc<Collection>,
    context: Arc<Context>,
) -> Result<Action, ReconcileError> {
    // What has ended stays so. A process that begins sees all that ever were, and asks for none of them.
    let uid = cached.uid().unwrap_or_default();
    if is_final(&cached) {
        context.running.held(&uid, false);
        forget(&context, &cached);
        return Ok(Action::await_change());
    }
    if is_anothers(&context, cached.status.as_ref()).await? {
        forget(&context, &cached);
        return Ok(Action::requeue(LOOK_AGAIN));
    }
    // Containment waits for what a quarantine collects first.
    let shared = cached.spec.quarantine.is_none();
    // The claim is over when this reconciliation is, and not when the object goes: what is under way then is sealed.
    let Some(claim) = context.claims.stake(shared).await else {
        return Ok(Action::requeue(AT_ONCE));
    };
    let namespace = cached.namespace().unwrap_or_default();
    let api = Api::<Collection>::namespaced(context.client.clone(), &namespace);
    let read = api.get_opt(&cached.name_any()).await;
    let Some(object) = read.map_err(|error| from_kube("GET", "collection", error))? else {
        return Ok(Action::await_change());
    };
    let mut status = object.status.clone().unwrap_or_default();
    if status.phase.is_final() {
        return Ok(Action::await_change());
    }
    if is_anothers(&context, Some(&status)).await? {
        return Ok(Action::requeue(LOOK_AGAIN));
    }
    status.started.get_or_insert_with(now);
    // The first write is the claim: of two replicas one gets it, by the version that both have read.
    status.worker = Some(claim.worker().to_owned());
    let mut recorded = Recorded::new(object.clone());
    let (job, span) = match prepare(&object, &status, &context).await {
        Ok(prepared) => prepared,
        Err(Unready::Never(reason)) => {
            // The log says nothing of the end of a collection that another replica goes on with.
            if status.node.is_some()
                && let Some(later) = claimed_by_another(recorded.save(&context, &status).await)?
            {
                return Ok(later);
            }
            fail(&mut status, reason);
            give_up(&object, &mut status, &context).await;
            if let Some(later) = claimed_by_another(recorded.save(&context, &status).await)? {
                return Ok(later);
            }
            announce(&context, &recorded.object, &status);
            return Ok(Action::await_change());
        }
        Err(Unready::Now(error)) => return Err(error),
    };
    status.phase = CollectionPhase::Collecting;
    if let Some(reason) = unreachable(&context, &job.target.node, &status).await {
        context.metrics.agent_failed();
        status.message = format!("tried again in {} s: {reason}", PAUSE.as_secs());
        // Another replica may reach it, and has looked before this one comes again.
        status.worker = Some(NOBODY.into());
        let later = claimed_by_another(recorded.save(&context, &status).await)?;
        return Ok(later.unwrap_or_else(|| Action::requeue(PAUSE)));
    }
    status.message = "evidence is on its way".into();
    status.pod_uid = Some(job.target.uid.clone());
    status.node = Some(job.target.node.clone());
    if let Some(later) = claimed_by_another(recorded.save(&context, &status).await)? {
        return Ok(later);
    }

    // One reconciliation of an object runs at a time, so nobody else is at it in this process. Once its lease is
    // lost, or somebody else has written the status, nothing more is written, neither there nor to the store.
    // Large, as all that waits on the way to a node and to the store: it has a place of its own.
    let working = Box::pin(work(&context, &mut recorded, &mut status, job).instrument(span));
    let outcome = tokio::select! {
        biased;
        () = claim.lost() => Err("this worker's lease is lost"),
        outcome = working => outcome.ok_or("somebody else has written its status"),
    };
    let outcome = match outcome {
        Ok(outcome) => outcome,
        Err(why) => {
            let key = ObjectRef::from_obj(&recorded.object);
            locked(&context.running.at_work).remove(&key);
            let (case, worker) = (&object.spec.case, claim.worker());
            tracing::warn!(case, worker, why, "collection dropped");
            return Ok(Action::requeue(AT_ONCE));
        }
    };
    let held = outcome.as_ref().is_err_and(is_held);
    if held {
        tracing::warn!(
            case = object.spec.case,
            collection = object.name_any(),
            "collection waits: somebody else holds it in the store"
        );
    }
    let pause = conclude(&mut status, outcome, context.running.held(&uid, held));
    if status.phase == CollectionPhase::Failed {
        match held {
            // Whoever holds it may seal it yet, so nothing has ended.
            true => look_for_what_is_left(&object, &mut status),
            false => give_up(&object, &mut status, &context).await,
        }
    }
    if pause.is_some() {
        // Another replica may have more luck with store or agent, and has looked before this one comes again.
        status.worker = Some(NOBODY.into());
    }
    if status.phase.is_final() {
        let outcome = format!("{:?}", status.phase);
        context.metrics.collection_ended(&outcome, status.bytes);
    }
    recorded.save_surely(&context, &status).await?;
    if status.phase.is_final() {
        announce(&context, &recorded.object, &status);
    }
    Ok(pause.map_or_else(Action::await_change, Action::requeue))
}

/// Nothing is kept for another run of it here.
fn forget(context: &Context, collection: &Collection) {
    if let Ok(at) = collection_id(&collection.spec.case, &collection.name_any()) {
        context.collector.forget(&at);
    }
}

/// Says of a collection that has failed for good, in its status and in the custody log, what it may have left on its
/// node. Of one that was never begun there is nothing to say.
async fn give_up(object: &Collection, status: &mut CollectionStatus, context: &Context) {
    let Some(begun) = begun(object, status) else {
        return;
    };
    let said = context.collector.give_up(&begun, &status.message);
    let said = tokio::time::timeout(custody::AT_LEISURE, said).await;
    let Ok(said) = said else {
        return look_for_what_is_left(object, status);
    };
    for sentence in said {
        add(status, &sentence);
    }
}

/// Says in the status alone where to look for what a collection may have left on its node.
fn look_for_what_is_left(object: &Collection, status: &mut CollectionStatus) {
    if let Some(begun) = begun(object, status) {
        add(status, &look_for_images(&begun.at, &begun.target.node));
    }
}

fn add(status: &mut CollectionStatus, sentence: &str) {
    status.message.push_str("; ");
    status.message.push_str(sentence);
}

/// A collection that was on its way; `None` of one that never was.
fn begun(object: &Collection, status: &CollectionStatus) -> Option<Begun> {
    let spec = &object.spec;
    Some(Begun {
        at: collection_id(&spec.case, &object.name_any()).ok()?,
        target: TargetPod {
            namespace: object.namespace().unwrap_or_default(),
            name: spec.pod.clone(),
            uid: status.pod_uid.clone().unwrap_or_default(),
            node: status.node.clone()?,
            image_digests: BTreeMap::new(),
        },
        requested_by: spec.requested_by.clone(),
        reason: spec.reason.clone(),
    })
}

/// Whether another replica works on it. On one that is under work and names nobody it is the replica that leads, of an
/// older version.
async fn is_anothers(
    context: &Context,
    status: Option<&CollectionStatus>,
) -> Result<bool, ReconcileError> {
    let begun = status.is_some_and(|status| status.phase == CollectionPhase::Collecting);
    let worker = status.and_then(|status| status.worker.as_deref());
    Ok(match worker {
        None if begun => context.claims.leads_elsewhere().await?,
        worker => context.claims.is_anothers(worker).await?,
    })
}

/// When to look again at a collection that another replica has claimed at the same moment.
fn claimed_by_another(saved: Result<(), ReconcileError>) -> Result<Option<Action>, ReconcileError> {
    match saved {
        Err(error) if is_conflict(&error) => Ok(Some(Action::requeue(AT_ONCE))),
        saved => saved.map(|()| None),
    }
}

fn is_conflict(error: &ReconcileError) -> bool {
    matches!(error, ReconcileError::Api(error) if error.is_conflict())
}

fn is_final(collection: &Collection) -> bool {
    let status = collection.status.as_ref();
    status.is_some_and(|status| status.phase.is_final())
}

/// The state of each artifact as the status has it.
#[must_use]
pub fn artifacts(progress: &CollectionProgress) -> Vec<ArtifactStatus> {
    progress.artifacts.iter().map(artifact).collect()
}

fn artifact(progress: &ArtifactProgress) -> ArtifactStatus {
    ArtifactStatus {
        path: progress.path.to_string(),
        state: match progress.state {
            Stage::Pending => ArtifactState::Pending,
            Stage::Running => ArtifactState::Running,
            Stage::Stored => ArtifactState::Stored,
            Stage::Incomplete => ArtifactState::Incomplete,
            Stage::Failed => ArtifactState::Failed,
        },
        bytes: progress.bytes,
        sha256: progress.sha256.map(|sha256| sha256.to_string()),
        message: progress.message.clone(),
    }
}

/// Works until the collector ends, and meanwhile keeps the status near the truth. The end of the
/// quick stage is saved at once: evictions wait for it. `None` once somebody else has written the status: what is under
/// way is dropped.
async fn work(
    context: &Context,
    recorded: &mut Recorded,
    status: &mut CollectionStatus,
    job: CollectionJob,
) -> Option<Result<SealedCollection, CollectError>> {
    let (sink, seen) = watch::channel(CollectionProgress::default());
    let key = ObjectRef::from_obj(&recorded.object);
    locked(&context.running.at_work).insert(key.clone(), seen.clone());
    let collector = context.collector.clone();
    let done = CancellationToken::new();
    // Side by side: an API that is slow must not stop the evidence.
    let outcome = futures::try_join!(
        async {
            let outcome = Box::pin(collector.run(job, &sink)).await;
            done.cancel();
            Ok(outcome)
        },
        report(context, recorded, status, seen, &done),
    );
    take_over(status, &sink.borrow());
    locked(&context.running.at_work).remove(&key);
    outcome.ok().map(|(outcome, ())| outcome)
}

/// A collection that a Quarantine asks for, with this uid, is part of that one's trace.
fn span(object: &Collection, asked_by: Option<String>, job: &CollectionJob) -> Span {
    let span = tracing::info_span!(
        target: TARGET,
        "collection",
        case = %job.case,
        collection = %job.name,
        namespace = job.target.namespace,
        pod = job.target.name,
        node = job.target.node,
    );
    let uid = asked_by.or_else(|| object.uid());
    traces::of_object(&span, &uid.unwrap_or_default());
    span
}

/// Somebody else has written the status.
struct Overtaken;

/// Saves what has changed until the work is done. A save that was begun ends first, so none comes
/// after the last word.
///
/// # Errors
/// If somebody else has written the status: the collection is theirs.
async fn report(
    context: &Context,
    recorded: &mut Recorded,
    status: &mut CollectionStatus,
    mut seen: watch::Receiver<CollectionProgress>,
    done: &CancellationToken,
) -> Result<(), Overtaken> {
    let mut tick = interval(REPORT_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let at_once = tokio::select! {
            () = done.cancelled() => return Ok(()),
            changed = seen.changed() => {
                changed.is_ok() && seen.borrow_and_update().quick_done() && !status.quick_done
            }
            _ = tick.tick() => artifacts(&seen.borrow()) != status.artifacts,
        };
        if !at_once {
            continue;
        }
        take_over(status, &seen.borrow());
        if let Err(error) = recorded.save(context, status).await {
            if is_conflict(&error) {
                return Err(Overtaken);
            }
            tracing::warn!(case = recorded.object.spec.case, error = %describe(&error), "progress not recorded");
            // The next report says it again.
            status.quick_done = false;
            status.artifacts.clear();
        }
    }
}

fn take_over(status: &mut CollectionStatus, progress: &CollectionProgress) {
    // One that turns out to be sealed already, by a process that could not say so, is not gone through again.
    if progress.artifacts.is_empty() {
        return;
    }
    status.artifacts = artifacts(progress);
    status.bytes = progress
        .artifacts
        .iter()
        .map(|artifact| artifact.bytes)
        .sum();
    if let Some(quick) = &progress.quick {
        status.quick_done = true;
        status.missing.clone_from(&quick.failures);
    }
}

/// Publishes an Event that says how a collection ended: Sealed, Partial or Failed. Nothing waits for it; the
/// status and the custody log are the record.
fn announce(context: &Context, object: &Collection, status: &CollectionStatus) {
    let mut note = status.message.clone();
    if let Some(location) = &status.location {
        note = format!("{note}: {location}");
    }
    if !status.missing.is_empty() {
        note = format!("{note}; missing: {}", status.missing.join("; "));
    }
    let event = Event {
        type_: if status.phase == CollectionPhase::Sealed {
            EventType::Normal
        } else {
            EventType::Warning
        },
        reason: format!("{:?}", status.phase),
        note: Some(shortened(note)),
        action: "Collection".into(),
        secondary: Some(ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            name: Some(object.spec.pod.clone()),
            namespace: object.namespace(),
            uid: status.pod_uid.clone(),
            ..Default::default()
        }),
    };
    context.publish(object.object_ref(&()), vec![event]);
}

/// Why the node's agent can't be asked at the moment. An agent that is being restarted must not
/// turn into a collection that is sealed without the evidence, so the first bytes wait for it;
/// after [`AGENT_PATIENCE`] the collection goes on and names what is missing.
async fn unreachable(context: &Context, node: &str, status: &CollectionStatus) -> Option<String> {
    let since = status
        .started
        .as_ref()
        .map_or(SignedDuration::MAX, |started| {
            Timestamp::now().duration_since(started.0)
        });
    if since > context.agent_patience.unwrap_or(AGENT_PATIENCE) || !status.artifacts.is_empty() {
        return None;
    }
    let error = context
        .agents
        .connect(node)
        .await
        .err()
        .filter(AgentError::is_transient)?;
    Some(describe(&error))
}

/// Why work can't begin.
enum Unready {
    /// It never can.
    Never(String),
    /// Something did not answer.
    Now(ReconcileError),
}

impl From<ObserveError> for Unready {
    fn from(error: ObserveError) -> Self {
        match error {
            ObserveError::Refused(refusal) => Self::Never(refusal.to_string()),
            error => Self::Now(error.into()),
        }
    }
}

async fn prepare(
    object: &Collection,
    status: &CollectionStatus,
    context: &Context,
) -> Result<(CollectionJob, Span), Unready> {
    let namespace = object.namespace().unwrap_or_default();
    let spec = &object.spec;
    let at = collection_id(&spec.case, &object.name_any())
        .map_err(|error| Unready::Never(error.to_string()))?;
    if case_log().is_ok_and(|log| log == at.name) {
        return Err(Unready::Never(format!(
            "no collection can be called {}: the case's custody log is",
            at.name
        )));
    }
    let encrypt_to = recipients(&spec.encrypt_to);
    let encrypt_to = encrypt_to.map_err(|error| Unready::Never(format!("encryptTo: {error}")))?;
    let cluster = cluster_uid(context).await?;
    let quarantine = quarantine(object, status, context).await?;
    let name = object.name_any();
    let own = spec.quarantine.as_deref().is_some_and(|of| {
        let recorded = quarantine.as_ref().and_then(|found| found.status.as_ref());
        recorded.map_or(of, |status| status.first_collection(of)) == name
    });
    let asked_by = quarantine.as_ref().and_then(ResourceExt::uid);
    let (before, uid, node) = match quarantine {
        // As it was before containment, and also when the pod is gone meanwhile.
        Some(quarantine) => {
            let status = quarantine.status.unwrap_or_default();
            let mut before = status.before.unwrap_or_default();
            if !own && let Some(now) = restarted(&before, &namespace, &spec.pod, context).await? {
                before = now;
            }
            (
                before,
                status.pod_uid.unwrap_or_default(),
                status.node.unwrap_or_default(),
            )
        }
        None => match observe::observe(&context.client, &namespace, &spec.pod).await {
            Ok(seen) => {
                let uid = seen.pod.metadata.uid.clone().unwrap_or_default();
                let node = seen.node.metadata.name.clone().unwrap_or_default();
                let owner = seen.owner.and_then(|owner| owner.raw);
                (
                    Before {
                        pod: seen.pod_raw,
                        node: seen.node_raw,
                        owner,
                    },
                    uid,
                    node,
                )
            }
            // It was begun: what is stored, an image on the node and the seal must still be settled.
            Err(ObserveError::Refused(_)) if status.pod_uid.is_some() => {
                let uid = status.pod_uid.clone().unwrap_or_default();
                (
                    Before::default(),
                    uid,
                    status.node.clone().unwrap_or_default(),
                )
            }
            Err(error) => return Err(error.into()),
        },
    };
    let begun = status.pod_uid.as_deref() == Some(&uid);
    if let Some(expected) = spec
        .pod_uid
        .as_ref()
        .filter(|expected| **expected != uid && !begun)
    {
        return Err(Unready::Never(format!(
            "pod {namespace}/{} has uid {uid}, expected {expected}: it was re-created",
            spec.pod
        )));
    }
    // Those that a later collection finds were described by the first.
    let neighbours = if own {
        neighbours(context, &node, &uid).await?
    } else {
        Vec::new()
    };
    let pod: Pod = serde_json::from_value(before.pod.clone()).unwrap_or_default();
    let unpaused = standstill::why_no_paused_commit(&pod).filter(|_| spec.pause);
    let job = CollectionJob {
        case: at.case,
        name: at.name,
        requested_by: spec.requested_by.clone(),
        request: custody::request_id(object).map(|id| {
            let pod = (spec.pod.as_str(), spec.pod_uid.as_deref());
            let of = |kind, name: &str| custody::request(kind, &namespace, name, pod, id);
            // Its first collection is what a quarantine was asked for; later ones have requests of their own.
            match &spec.quarantine {
                Some(quarantine) if own => of("quarantine", quarantine),
                _ => of("collection", &name),
            }
        }),
        reason: spec.reason.clone(),
        cluster,
        target: TargetPod {
            namespace: namespace.clone(),
            name: spec.pod.clone(),
            // Of a pod that is gone only this is known.
            uid: if pod.metadata.uid.is_some() {
                runtime_uid(&pod)
            } else {
                uid
            },
            node,
            image_digests: image_digests(&before.pod),
        },
        before: files(&before),
        neighbours,
        pause: spec.pause && unpaused.is_none(),
        unpaused,
        freeze: spec
            .freeze
            .then(|| standstill::allowed(&pod, context.settings.freeze_limit)),
        encrypt_to,
        quarantine: spec
            .quarantine
            .as_ref()
            .map(|name| format!("{namespace}/{name}")),
        containment: spec.quarantine.as_ref().map(|name| {
            let (client, namespace, name) =
                (context.client.clone(), namespace.clone(), name.clone());
            ContainmentSource(Arc::new(ContainedBy {
                client,
                namespace,
                name,
            }))
        }),
    };
    let span = span(object, asked_by, &job);
    Ok((job, span))
}

/// The objects of a suspect that was contained, as they are now, for a later collection: what a container was restarted
/// to is in the pod's status. `None` if the pod is gone or another has its name.
async fn restarted(
    before: &Before,
    namespace: &str,
    pod: &str,
    context: &Context,
) -> Result<Option<Before>, Unready> {
    let contained: Pod = serde_json::from_value(before.pod.clone()).unwrap_or_default();
    match observe::observe(&context.client, namespace, pod).await {
        Ok(seen) if is_same(&contained, &seen.pod) => Ok(Some(Before {
            pod: seen.pod_raw,
            node: seen.node_raw,
            owner: seen.owner.and_then(|owner| owner.raw),
        })),
        Ok(_) | Err(ObserveError::Refused(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The node's other pods that have containers there: they are to be evicted, and with them goes what
/// they would have told. A pod that never had a container (evicted before, image not pulled) has
/// nothing to tell and is not missed.
async fn neighbours(
    context: &Context,
    node: &str,
    suspect: &str,
) -> Result<Vec<TargetPod>, Unready> {
    let pods = observe::pods_on_node(&context.client, node).await?;
    let others = pods
        .into_iter()
        .filter(|pod| pod.metadata.uid.as_deref() != Some(suspect));
    let others = others.filter(|pod| !super::restarts::container_ids(pod).is_empty());
    Ok(others.map(|pod| target(pod, node)).collect())
}

fn target(pod: Pod, node: &str) -> TargetPod {
    // A Pod is always serialisable.
    let image_digests = image_digests(&serde_json::to_value(&pod).unwrap_or_default());
    TargetPod {
        image_digests,
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        name: pod.metadata.name.clone().unwrap_or_default(),
        uid: runtime_uid(&pod),
        node: node.to_owned(),
    }
}

/// By the name of a container of `pod`, what its status says of its image.
fn image_digests(pod: &Value) -> BTreeMap<String, String> {
    let lists = [
        "containerStatuses",
        "initContainerStatuses",
        "ephemeralContainerStatuses",
    ];
    let of = |list: &&str| pod.pointer(&format!("/status/{list}"))?.as_array();
    let named = lists.iter().filter_map(of).flatten().filter_map(|status| {
        let text = |field| status.get(field).and_then(Value::as_str);
        let digest = text("imageID").filter(|digest| !digest.is_empty())?;
        Some((text("name")?.to_owned(), digest.to_owned()))
    });
    named.collect()
}

fn files(before: &Before) -> Vec<(String, Vec<u8>)> {
    let objects = [
        ("pod.json", Some(&before.pod)),
        ("node.json", Some(&before.node)),
        ("owner.json", before.owner.as_ref()),
    ];
    objects
        .into_iter()
        .filter_map(|(name, object)| {
            // Pretty, because people read it; a Value is always serialisable.
            let object = object.filter(|object| !object.is_null());
            object
                .and_then(|object| serde_json::to_vec_pretty(object).ok())
                .map(|bytes| (name.to_owned(), bytes))
        })
        .collect()
}

/// The Quarantine that a collection belongs to.
struct ContainedBy {
    client: Client,
    namespace: String,
    name: String,
}

#[async_trait]
impl Containment for ContainedBy {
    async fn read(&self) -> Result<Vec<u8>, String> {
        let (namespace, name) = (&self.namespace, &self.name);
        let path = format!("/apis/impound.dev/v1alpha1/namespaces/{namespace}/quarantines/{name}");
        match read(&self.client, &path).await {
            Ok(Some(object)) => {
                serde_json::to_vec_pretty(&object).map_err(|error| error.to_string())
            }
            Ok(None) => Err(format!("{namespace}/{name} does not exist any more")),
            Err(error) => Err(describe(&error)),
        }
    }
}

async fn quarantine(
    object: &Collection,
    status: &CollectionStatus,
    context: &Context,
) -> Result<Option<Quarantine>, Unready> {
    let Some(name) = &object.spec.quarantine else {
        return Ok(None);
    };
    let namespace = object.namespace().unwrap_or_default();
    let api = Api::<Quarantine>::namespaced(context.client.clone(), &namespace);
    match api.get_opt(name).await {
        Ok(Some(quarantine)) => {
            let (spec, of) = (&object.spec, &quarantine.spec);
            if spec.pod == of.pod && spec.case == of.case && is_younger(object, &quarantine) {
                return Ok(Some(quarantine));
            }
            Err(Unready::Never(format!(
                "it is not of quarantine {namespace}/{name}: that is of pod {} in case {}, and its collections are \
                 made after it",
                of.pod, of.case
            )))
        }
        // Released and deleted while it was taken: what is stored is sealed all the same.
        Ok(None) if status.pod_uid.is_some() => Ok(None),
        Ok(None) => Err(Unready::Never(format!(
            "quarantine {namespace}/{name} does not exist"
        ))),
        Err(error) => Err(Unready::Now(from_kube("GET", "quarantine", error).into())),
    }
}

/// A cluster has no id of its own; by convention it is the uid of the namespace kube-system
/// (Kubernetes SIG Architecture, KEP-2149).
async fn cluster_uid(context: &Context) -> Result<String, Unready> {
    let found = read(&context.client, "/api/v1/namespaces/kube-system").await;
    let found = found.map_err(|error| Unready::Now(error.into()))?;
    let uid = found
        .as_ref()
        .and_then(|namespace| namespace.pointer("/metadata/uid")?.as_str());
    Ok(uid.unwrap_or_default().to_owned())
}

pub(super) fn collection_id(
    case: &str,
    name: &str,
) -> Result<CollectionId, impound_evidence::NameError> {
    Ok(CollectionId {
        case: case.parse::<CaseId>()?,
        name: name.parse::<CollectionName>()?,
    })
}
