//! The reconcilers: from the state recorded in a custom resource to the next step, again and again.
//!
//! `next_step` decides and touches nothing; the other modules carry one step out and record it.

pub mod blocking;
pub mod collecting;
pub mod collection;
pub mod containing;
pub mod custody;
pub mod ending;
pub mod evicting;
pub mod guarding;
pub mod isolating;
mod news;
pub mod next_step;
pub mod pace;
pub mod quarantine;
pub mod record;
pub mod releasing;
pub mod restarts;
pub mod sweep;
pub mod verifying;

use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt, Stream, StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{Node, ObjectReference, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::jiff::SignedDuration;
use kube::runtime::controller::Action;
use kube::runtime::events::{Event, Recorder};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::utils::Backoff;
use kube::runtime::{Controller, WatchStreamExt, reflector, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::sync::Mutex;

use self::news::news;
use crate::agents::AgentConnector;
use crate::claims::Claims;
use crate::collect::Collector;
use crate::contain::guard;
use crate::contain::observe::ObserveError;
use crate::contain::plugin::Discovery;
use crate::contain::settings::{PART_OF_LABEL, PROTECTED_NODE_LABEL, QUARANTINE_LABEL, Settings};
use crate::describe::describe;
use crate::kubernetes::ApiError;
use crate::kubernetes::pace::{Works, leave_alone};
use crate::locked::locked;
use crate::metrics::Metrics;
use crate::resources::{Collection, Quarantine, Sweep};
use crate::seal::CustodyAppender;

/// What the reconcilers share.
pub struct Context {
    /// The Kubernetes API.
    pub client: Client,
    /// Publishes an Event for each step.
    pub recorder: Recorder,
    /// Names and labels of this installation.
    pub settings: Settings,
    /// Which policy kinds the cluster serves beyond NetworkPolicy.
    pub plugins: Discovery,
    /// How agents are reached.
    pub agents: AgentConnector,
    /// Takes evidence off nodes.
    pub collector: Arc<Collector>,
    /// Writes to the custody logs.
    pub custody: Arc<CustodyAppender>,
    /// What happened, counted.
    pub metrics: Arc<Metrics>,
    /// Which collections are this process's to work on.
    pub claims: Claims,
    /// Collections that this process is working on.
    pub running: collection::Running,
    /// Held while shared things (a node, a namespace's policy) are looked at and planned with, or
    /// looked at and undone. One process contains at a time, so a lock in it is enough.
    pub shared: Mutex<()>,
    /// What is under way and known about isolations at nodes.
    pub isolation: isolating::Memory,
    /// What is done again only after a while.
    pub pace: pace::Pace,
    /// Neighbours whose end is waited for.
    pub endings: ending::Endings,
    /// What is known of the evidence guard in the cluster.
    pub guard: Arc<guard::Known>,
    /// Reconciliations that failed last time.
    pub failures: Failures,
    /// How fast the requests for each object may follow each other.
    pub works: Works,
    /// How long blocked evictions are tried before they are reported as failed, and how long then until
    /// each is asked for again.
    pub eviction_patience: SignedDuration,
    /// How long a collection waits for an agent; the default if none.
    pub agent_patience: Option<SignedDuration>,
    /// What is known of the sweeps under work.
    pub sweeps: sweep::Sweeps,
}

impl Context {
    /// How long an agent that can't be reached is waited for.
    #[must_use]
    pub fn agent_patience(&self) -> Duration {
        let patience = self.agent_patience.unwrap_or(collection::AGENT_PATIENCE);
        Duration::try_from(patience).unwrap_or_default()
    }

    /// Publishes Events about an object, in order. Nothing waits for them: the status and the custody log are the
    /// record.
    pub fn publish(&self, about: ObjectReference, events: Vec<Event>) {
        let recorder = self.recorder.clone();
        tokio::spawn(async move {
            for event in events {
                if let Err(error) = recorder.publish(&event, &about).await {
                    tracing::warn!(reason = event.reason, error = %describe(&error), "event not published");
                }
            }
        });
    }

    /// Nothing is remembered of the quarantine with this uid, which is over.
    pub fn forget(&self, quarantine: &str) {
        self.isolation.forget(quarantine);
        self.endings.forget(quarantine);
        self.pace.forget(quarantine);
    }
}

/// Why a reconciliation is tried again.
#[derive(Debug, Error)]
pub enum ReconcileError {
    /// The Kubernetes API did not answer as it should.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// A read failed.
    #[error(transparent)]
    Observe(#[from] ObserveError),
}

impl ReconcileError {
    /// How long the server wants to be left alone, up to [`LONGEST_WAIT`]; zero if it did not say.
    #[must_use]
    pub fn retry_after(&self) -> Duration {
        let asked = match self {
            Self::Api(error) | Self::Observe(ObserveError::Api(error)) => error.retry_after(),
            Self::Observe(_) => Duration::ZERO,
        };
        asked.min(LONGEST_WAIT)
    }
}

/// Longest Retry-After that is followed to the letter.
pub const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Delay before a failed reconciliation is tried again, doubled with each failure in a row up to the
/// second: a plan costs a dozen requests, and an API server in trouble needs no more of them.
const RETRY_DELAY: Duration = Duration::from_secs(1);
const SLOWEST_RETRY: Duration = Duration::from_secs(30);

/// Failures in a row, by kind, namespace and name of the object.
pub type Failures = std::sync::Mutex<HashMap<[String; 3], u32>>;

/// Watches quarantines and sweeps and reconciles them, for ever. One replica does. `client` is for the watches alone; `ended` are the
/// quarantines that [`Context::endings`] wakes. May be dropped at any point, as a crash may come at any point.
pub async fn run(client: Client, context: Arc<Context>, ended: ending::Ended) {
    let quarantines = Api::<Quarantine>::all(client.clone());
    let (known, writer) = reflector::store();
    let asked = watcher(quarantines, watcher::Config::default())
        .default_backoff()
        .reflect(writer)
        .applied_objects()
        .predicate_filter(wish, Default::default());
    let controller = Controller::for_stream(asked, known.clone()).trigger_backoff(Steady);
    let controller = guarded_objects(controller, &client, &known);
    let waiting = context.clone();
    let collections = Api::<Collection>::all(client.clone());
    let collected = watcher(collections, watcher::Config::default())
        .default_backoff()
        .touched_objects()
        .predicate_filter(progress, Default::default());
    let quarantine_controller = controller
        .reconcile_on(ending::woken(ended))
        .watches_stream(collected, move |collection: Collection| {
            let name = collection.spec.quarantine.clone()?;
            let namespace = collection.namespace().unwrap_or_default();
            waiting
                .works
                .came_on(&work_key::<Quarantine>(&namespace, &name));
            Some(ObjectRef::<Quarantine>::new(&name).within(&namespace))
        })
        .run(paced(quarantine::reconcile), retry, context.clone())
        .for_each(|outcome| log_outcome(context.clone(), outcome));
    let sweeps = Api::<Sweep>::all(client);
    let (known, writer) = reflector::store();
    let asked = watcher(sweeps, watcher::Config::default())
        .default_backoff()
        .reflect(writer)
        .applied_objects()
        .predicate_filter(wish, Default::default());
    let woken = stream::unfold(context.sweeps.wakes(), |mut woken| async {
        let sweep = woken.recv().await?;
        Some((sweep, woken))
    });
    let sweep_controller = Controller::for_stream(asked, known)
        .trigger_backoff(Steady)
        .reconcile_on(woken)
        .run(paced(sweep::reconcile), retry, context.clone())
        .for_each(|outcome| log_outcome(context.clone(), outcome));
    futures::join!(quarantine_controller, sweep_controller);
}

/// Watches the collections and works on those that this process claims, for ever. Every replica does. `client` is for
/// the watch alone. May be dropped at any point.
pub async fn collections(client: Client, context: Arc<Context>) {
    let collections = Api::<Collection>::all(client);
    let (known, writer) = reflector::store();
    context.sweeps.watched(known.clone());
    let seen = context.clone();
    let asked = watcher(collections, watcher::Config::default())
        .default_backoff()
        .modify(sweep::slim)
        .reflect(writer)
        .inspect_ok(move |event| {
            if let Some(sweep) = sweep::waiting_for(event) {
                seen.sweeps.wake(sweep);
            }
        })
        .applied_objects()
        .predicate_filter(wish, Default::default());
    Controller::for_stream(asked, known)
        .trigger_backoff(Steady)
        .run(paced(collection::reconcile), retry, context.clone())
        .for_each(|outcome| log_outcome(context.clone(), outcome))
        .await;
}

/// A reconciler whose requests are slowed down while they fail.
fn paced<K, F>(
    reconcile: impl Fn(Arc<K>, Arc<Context>) -> F + Copy + Send + Sync + 'static,
) -> impl FnMut(Arc<K>, Arc<Context>) -> BoxFuture<'static, Result<Action, ReconcileError>>
where
    K: Resource<DynamicType = ()> + Send + Sync + 'static,
    F: Future<Output = Result<Action, ReconcileError>> + Send + 'static,
{
    move |object, context| {
        let namespace = object.namespace().unwrap_or_default();
        let key = work_key::<K>(&namespace, &object.name_any());
        async move {
            if let Some(left) = context.works.left(&key) {
                return Ok(Action::requeue(left));
            }
            let work = async {
                let outcome = reconcile(object, context.clone()).await;
                if let Err(error) = &outcome {
                    leave_alone(error.retry_after());
                }
                outcome
            };
            context.works.run(key, work).await
        }
        .boxed()
    }
}

/// What the requests for an object are known by.
fn work_key<K: Resource<DynamicType = ()>>(namespace: &str, name: &str) -> String {
    format!("{} {namespace}/{name}", K::kind(&()))
}

/// What somebody wants of an object: its spec, or its deletion. Our own status writes are no reason to
/// look again; a pause would otherwise last no longer than the write that records it.
fn wish<K: ResourceExt>(object: &K) -> Option<u64> {
    let deleting = u64::from(object.meta().deletion_timestamp.is_some());
    let generation = object
        .meta()
        .generation
        .and_then(|generation| u64::try_from(generation).ok());
    Some(generation.unwrap_or_default() * 2 + deleting)
}

/// What a quarantine wants to know of its collection: the end of its quick part, and its end.
fn progress(collection: &Collection) -> Option<u64> {
    let status = collection.status.as_ref();
    let phase = status.map_or(0, |status| status.phase as u64);
    Some(phase * 2 + u64::from(status.is_some_and(|status| status.quick_done)))
}

/// kube-runtime holds all watches of a controller back while one of them fails. Each has a backoff of
/// its own here, so the common one stays short.
struct Steady;

impl Iterator for Steady {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(Duration::from_millis(200))
    }
}

impl Backoff for Steady {
    fn reset(&mut self) {}
}

/// Watches what a quarantine has changed, so that whoever changes it back is noticed at once. Only
/// objects that carry our labels are watched: a label that is taken off arrives as a deletion. Policies
/// are watched whatever they carry, because any of them can let the suspect's traffic through.
fn guarded_objects(
    controller: Controller<Quarantine>,
    client: &Client,
    known: &Store<Quarantine>,
) -> Controller<Quarantine> {
    let (key, value) = PART_OF_LABEL;
    let ours = watcher::Config::default().labels(&format!("{key}={value}"));
    let suspects = watcher::Config::default().labels(QUARANTINE_LABEL);
    let (key, value) = PROTECTED_NODE_LABEL;
    let nodes = watcher::Config::default().labels(&format!("{key}={value}"));
    let in_namespace = |known: Store<Quarantine>, namespace: Option<String>| {
        references(&known, move |quarantine| {
            quarantine.namespace() == namespace
        })
    };
    let [by_pod, by_node, by_policy, by_budget] = std::array::from_fn(|_| known.clone());
    let pods = touched::<Pod>(client, suspects);
    let nodes = touched::<Node>(client, nodes);
    let policies = touched::<NetworkPolicy>(client, watcher::Config::default());
    let budgets = touched::<PodDisruptionBudget>(client, ours);
    controller
        .watches_stream(pods, move |pod| {
            references(&by_pod, |quarantine| {
                quarantine.namespace() == pod.namespace() && quarantine.spec.pod == pod.name_any()
            })
        })
        .watches_stream(nodes, move |node| {
            references(&by_node, |quarantine| {
                let status = quarantine.status.as_ref();
                status.and_then(|status| status.node.as_deref()) == node.metadata.name.as_deref()
            })
        })
        .watches_stream(policies, move |policy| {
            in_namespace(by_policy.clone(), policy.namespace())
        })
        .watches_stream(budgets, move |budget| {
            in_namespace(by_budget.clone(), budget.namespace())
        })
}

/// What appears, changes or goes, also while a watch fails: it is begun again more and more slowly.
fn touched<K>(
    client: &Client,
    which: watcher::Config,
) -> impl Stream<Item = watcher::Result<K>> + Send + use<K>
where
    K: Resource<DynamicType = ()> + Clone + Default + DeserializeOwned + Debug + Send + 'static,
{
    news(watcher(Api::<K>::all(client.clone()), which).default_backoff())
}

fn references(
    known: &Store<Quarantine>,
    wanted: impl Fn(&Quarantine) -> bool,
) -> Vec<ObjectRef<Quarantine>> {
    let in_force = |quarantine: &Quarantine| {
        let status = quarantine.status.as_ref();
        status.is_none_or(|status| !status.phase.is_over())
    };
    let all = known.state();
    all.iter()
        .filter(|quarantine| in_force(quarantine) && wanted(quarantine))
        .map(|quarantine| ObjectRef::from_obj(&**quarantine))
        .collect()
}

fn retry<K: Resource<DynamicType = ()>>(
    object: Arc<K>,
    error: &ReconcileError,
    context: Arc<Context>,
) -> Action {
    let namespace = object.namespace().unwrap_or_default();
    let key = [K::kind(&()).into_owned(), namespace, object.name_any()];
    let mut failures = locked(&context.failures);
    let count = failures.entry(key).or_default();
    let delay = RETRY_DELAY
        .saturating_mul(1 << (*count).min(10))
        .min(SLOWEST_RETRY)
        .max(error.retry_after());
    *count = count.saturating_add(1);
    drop(failures);
    tracing::warn!(
        object = object.name_any(),
        namespace = object.namespace(),
        error = %describe(error),
        "reconciliation failed and is tried again"
    );
    Action::requeue(delay)
}

async fn log_outcome<K, E: std::error::Error>(
    context: Arc<Context>,
    outcome: Result<(ObjectRef<K>, Action), kube::runtime::controller::Error<ReconcileError, E>>,
) where
    K: kube::runtime::reflector::Lookup,
    K::DynamicType: std::fmt::Debug,
{
    use kube::runtime::controller::Error;
    match outcome {
        Ok((object, _)) => {
            let namespace = object.namespace.clone().unwrap_or_default();
            let key = [
                K::kind(&object.dyntype).into_owned(),
                namespace,
                object.name,
            ];
            locked(&context.failures).remove(&key);
        }
        // The reconciler's own errors are logged by `retry`; an object that is gone needs nothing.
        Err(Error::ReconcilerFailed(..) | Error::ObjectNotFound(_)) => {}
        Err(error) => tracing::warn!(error = %describe(&error), "watch failed and is tried again"),
    }
}
