//! The reconcilers: from the state recorded in a custom resource to the next step, again and again.
//!
//! `next_step` decides and touches nothing; the other modules carry one step out and record it.

pub mod collection;
pub mod containing;
pub mod evicting;
pub mod guarding;
pub mod next_step;
pub mod quarantine;
pub mod record;
pub mod releasing;
pub mod verifying;

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::runtime::controller::Action;
use kube::runtime::events::Recorder;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::{Controller, watcher};
use kube::{Api, Client, ResourceExt};
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use crate::agents::AgentConnector;
use crate::collect::Collector;
use crate::contain::observe::ObserveError;
use crate::contain::settings::{
    PART_OF_LABEL, PROTECTED_NODE_LABEL, QUARANTINE_LABEL, Settings,
};
use crate::describe::describe;
use crate::kubernetes::ApiError;
use crate::resources::{Collection, Quarantine};
use crate::seal::CustodyAppender;

/// What the reconcilers share.
pub struct Context {
    /// The Kubernetes API.
    pub client: Client,
    /// Publishes an Event for each step.
    pub recorder: Recorder,
    /// Names and labels of this installation.
    pub settings: Settings,
    /// How agents are reached.
    pub agents: AgentConnector,
    /// Takes evidence off nodes.
    pub collector: Arc<Collector>,
    /// Writes to the custody logs.
    pub custody: Arc<CustodyAppender>,
    /// Collections that this process is working on.
    pub running: collection::Running,
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
    /// The status could not be serialised.
    #[error("the status could not be written as JSON")]
    Json(#[from] serde_json::Error),
}

/// Delay before a failed reconciliation is tried again.
const RETRY_DELAY: Duration = Duration::from_secs(2);

/// Watches both resources and reconciles them until `stop` is cancelled.
pub async fn run(context: Arc<Context>, stop: CancellationToken) {
    let quarantines = Api::<Quarantine>::all(context.client.clone());
    let collections = Api::<Collection>::all(context.client.clone());
    let controller = Controller::new(quarantines, watcher::Config::default());
    let known = controller.store();
    let watched = guarded_objects(controller, &context.client, &known);
    let quarantine_controller = watched
        .watches(collections.clone(), watcher::Config::default(), |collection| {
            let quarantine = collection.spec.quarantine.clone();
            let namespace = collection.namespace().unwrap_or_default();
            quarantine.map(|name| ObjectRef::<Quarantine>::new(&name).within(&namespace))
        })
        .graceful_shutdown_on(stop.clone().cancelled_owned())
        .run(quarantine::reconcile, retry, context.clone())
        .for_each(log_outcome);
    let collection_controller = Controller::new(collections, watcher::Config::default())
        .graceful_shutdown_on(stop.cancelled_owned())
        .run(collection::reconcile, retry, context)
        .for_each(log_outcome);
    futures::join!(quarantine_controller, collection_controller);
}

/// Watches what a quarantine has changed, so that whoever changes it back is noticed at once. Only
/// objects that carry our labels are watched: a label that is taken off arrives as a deletion.
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
        references(&known, move |quarantine| quarantine.namespace() == namespace)
    };
    let [by_pod, by_node, by_policy, by_budget] = std::array::from_fn(|_| known.clone());
    controller
        .watches(Api::<Pod>::all(client.clone()), suspects, move |pod: Pod| {
            references(&by_pod, |quarantine| {
                quarantine.namespace() == pod.namespace() && quarantine.spec.pod == pod.name_any()
            })
        })
        .watches(Api::<Node>::all(client.clone()), nodes, move |node: Node| {
            references(&by_node, |quarantine| {
                let status = quarantine.status.as_ref();
                status.and_then(|status| status.node.as_deref()) == node.metadata.name.as_deref()
            })
        })
        .watches(Api::<NetworkPolicy>::all(client.clone()), ours.clone(), move |policy| {
            in_namespace(by_policy.clone(), policy.namespace())
        })
        .watches(Api::<PodDisruptionBudget>::all(client.clone()), ours, move |budget| {
            in_namespace(by_budget.clone(), budget.namespace())
        })
}

fn references(
    known: &Store<Quarantine>,
    wanted: impl Fn(&Quarantine) -> bool,
) -> Vec<ObjectRef<Quarantine>> {
    let all = known.state();
    all.iter().filter(|quarantine| wanted(quarantine)).map(|quarantine| ObjectRef::from_obj(&**quarantine)).collect()
}

fn retry<K: ResourceExt>(object: Arc<K>, error: &ReconcileError, _: Arc<Context>) -> Action {
    tracing::warn!(
        object = object.name_any(),
        namespace = object.namespace(),
        error = %describe(error),
        "reconciliation failed and is tried again"
    );
    Action::requeue(RETRY_DELAY)
}

async fn log_outcome<K, E: std::error::Error>(
    outcome: Result<(ObjectRef<K>, Action), kube::runtime::controller::Error<ReconcileError, E>>,
) where
    K: kube::runtime::reflector::Lookup,
    K::DynamicType: std::fmt::Debug,
{
    use kube::runtime::controller::Error;
    match outcome {
        // The reconciler's own errors are logged by `retry`; an object that is gone needs nothing.
        Ok(_) | Err(Error::ReconcilerFailed(..) | Error::ObjectNotFound(_)) => {}
        Err(error) => tracing::warn!(error = %describe(&error), "watch failed and is tried again"),
    }
}
