//! The kubelet itself: follows the pods of its nodes and the engine's events, and keeps a worker
//! for each pod. At its end it removes every container of its cluster.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, future};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch_objects};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use crate::naming::PodRef;
use crate::pod::{Desired, Surroundings, Worker};
use crate::runtime::{Runtime, RuntimeError};

/// Wait before the engine's events are asked for again after they broke off.
const EVENTS_RETRY: Duration = Duration::from_millis(500);

/// What a kubelet needs to know.
pub struct Config {
    /// The API whose pods are run.
    pub client: kube::Client,
    /// Socket of the Docker Engine.
    pub docker_socket: PathBuf,
    /// Names of the Node objects whose pods are run; each must have an InternalIP.
    pub nodes: Vec<String>,
    /// Value of [`CLUSTER_LABEL`](crate::CLUSTER_LABEL) on every container.
    pub cluster: String,
    /// Image of the sandboxes; its process has to wait and to end on SIGTERM.
    pub pause_image: String,
    /// Directory for emptyDir volumes.
    pub volumes: PathBuf,
}

/// Why a kubelet can't start or has to end.
#[derive(Debug, thiserror::Error)]
pub enum KubeletError {
    /// The Docker Engine.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// A node can't be read.
    #[error("node {node} can't be read from the Kubernetes API: {source}")]
    Node {
        /// Name of the Node object.
        node: String,
        /// The API's answer.
        source: kube::Error,
    },
    /// A node without an address.
    #[error("node {0} has no address of type InternalIP in its status; pods need it as hostIP")]
    NoAddress(String),
    /// The watch of the pods has ended, which it never should.
    #[error("the watch of the pods ended")]
    WatchEnded,
}

/// Runs the pods of its nodes until it is told to stop.
pub struct Kubelet {
    config: Config,
    runtime: Runtime,
    addresses: HashMap<String, String>,
}

struct Running {
    desired: watch::Sender<Desired>,
    changed: Arc<Notify>,
}

impl Kubelet {
    /// Checks that the engine answers and that the nodes exist.
    pub async fn connect(config: Config) -> Result<Self, KubeletError> {
        let runtime = Runtime::connect(&config.docker_socket, &config.cluster).await?;
        let mut addresses = HashMap::new();
        for node in &config.nodes {
            addresses.insert(node.clone(), address_of(&config.client, node).await?);
        }
        Ok(Self {
            config,
            runtime,
            addresses,
        })
    }

    /// Serves until `stop` completes; then every container of this cluster is removed.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), KubeletError> {
        let mut pods = HashMap::new();
        let mut workers = JoinSet::new();
        let served = tokio::select! {
            () = stop => Ok(()),
            served = self.serve(&mut pods, &mut workers) => served,
        };
        workers.shutdown().await;
        let removed = self.remove_all().await;
        served.and(removed)
    }

    async fn serve(
        &self,
        pods: &mut HashMap<String, Running>,
        workers: &mut JoinSet<String>,
    ) -> Result<(), KubeletError> {
        let api: Api<Pod> = Api::all(self.config.client.clone());
        let mut objects =
            std::pin::pin!(watch_objects(api, watcher::Config::default()).default_backoff());
        let mut changes = std::pin::pin!(self.runtime.changes());
        let mut listed = HashSet::new();
        tracing::info!(nodes = ?self.config.nodes, cluster = %self.config.cluster, "serving");
        loop {
            tokio::select! {
                event = objects.next() => match event.ok_or(KubeletError::WatchEnded)? {
                    Ok(Event::Apply(pod)) => self.apply(pod, pods, workers),
                    Ok(Event::Delete(pod)) => gone(&pod, pods),
                    Ok(Event::Init) => listed.clear(),
                    Ok(Event::InitApply(pod)) => {
                        listed.extend(pod.metadata.uid.clone());
                        self.apply(pod, pods, workers);
                    }
                    Ok(Event::InitDone) => self.remove_unlisted(&listed, pods).await?,
                    // The watcher goes on by itself.
                    Err(error) => tracing::warn!(%error, "the watch of the pods broke off"),
                },
                change = changes.next() => match change {
                    Some(Ok(uid)) => if let Some(pod) = pods.get(&uid) {
                        pod.changed.notify_one();
                    },
                    other => {
                        if let Some(Err(error)) = other {
                            tracing::warn!(%error, "the engine's events broke off");
                        }
                        tokio::time::sleep(EVENTS_RETRY).await;
                        changes.set(self.runtime.changes());
                        // Whatever happened meanwhile was not told.
                        pods.values().for_each(|pod| pod.changed.notify_one());
                    }
                },
                Some(ended) = workers.join_next() => match ended {
                    Ok(uid) => drop(pods.remove(&uid)),
                    Err(error) => tracing::error!(%error, "the worker of a pod ended unexpectedly"),
                },
            }
        }
    }

    fn apply(&self, pod: Pod, pods: &mut HashMap<String, Running>, workers: &mut JoinSet<String>) {
        let Some((identity, node)) = identify(&pod) else {
            return;
        };
        let Some(host_address) = self.addresses.get(&node) else {
            return;
        };
        let uid = identity.uid.clone();
        let pod = Arc::new(pod);
        if let Some(known) = pods.get(&uid) {
            known.desired.send_if_modified(|desired| match desired {
                Desired::Run(before) => {
                    let matters = differ(before, &pod);
                    // Kept also when it doesn't matter: its status is what the API knows.
                    *before = pod;
                    matters
                }
                Desired::Gone(_) => false,
            });
            return;
        }
        let (desired, receiver) = watch::channel(Desired::Run(pod));
        let changed = Arc::new(Notify::new());
        let around = Surroundings {
            client: self.config.client.clone(),
            runtime: self.runtime.clone(),
            cluster: self.config.cluster.clone(),
            node,
            host_address: host_address.clone(),
            pause_image: self.config.pause_image.clone(),
            volumes: self.config.volumes.clone(),
        };
        let worker = Worker::new(around, identity, receiver, changed.clone());
        let ended = uid.clone();
        workers.spawn(async move {
            worker.run().await;
            ended
        });
        pods.insert(uid, Running { desired, changed });
    }

    /// What a list didn't name has gone while nobody watched: pods, and containers of pods that
    /// an earlier process of this kubelet ran.
    async fn remove_unlisted(
        &self,
        listed: &HashSet<String>,
        pods: &HashMap<String, Running>,
    ) -> Result<(), KubeletError> {
        for (_, pod) in pods.iter().filter(|(uid, _)| !listed.contains(*uid)) {
            pod.desired.send_modify(end);
        }
        let orphans = self
            .runtime
            .all()
            .await?
            .into_iter()
            .filter(|(_, uid)| !listed.contains(uid) && !pods.contains_key(uid));
        for (id, _) in orphans {
            tracing::info!(container = %id, "removing: its pod is gone");
            self.runtime.remove(&id).await?;
        }
        Ok(())
    }

    async fn remove_all(&self) -> Result<(), KubeletError> {
        let all = self.runtime.all().await?;
        tracing::info!(
            containers = all.len(),
            "removing the containers of this cluster"
        );
        future::try_join_all(all.iter().map(|(id, _)| self.runtime.remove(id))).await?;
        crate::volumes::remove(&self.config.volumes);
        Ok(())
    }
}

async fn address_of(client: &kube::Client, name: &str) -> Result<String, KubeletError> {
    let api: Api<Node> = Api::all(client.clone());
    let node = api.get(name).await.map_err(|source| KubeletError::Node {
        node: name.into(),
        source,
    })?;
    let addresses = node
        .status
        .and_then(|status| status.addresses)
        .unwrap_or_default();
    addresses
        .into_iter()
        .find(|address| address.type_ == "InternalIP")
        .map(|address| address.address)
        .ok_or_else(|| KubeletError::NoAddress(name.into()))
}

/// The pod and its node, if it has one.
fn identify(pod: &Pod) -> Option<(PodRef, String)> {
    let identity = PodRef {
        namespace: pod.metadata.namespace.clone()?,
        name: pod.metadata.name.clone()?,
        uid: pod.metadata.uid.clone()?,
    };
    Some((identity, pod.spec.as_ref()?.node_name.clone()?))
}

/// Whether a change concerns the containers; a new status or label doesn't.
fn differ(before: &Pod, after: &Pod) -> bool {
    before.spec != after.spec
        || before.metadata.deletion_timestamp != after.metadata.deletion_timestamp
        || before.metadata.deletion_grace_period_seconds
            != after.metadata.deletion_grace_period_seconds
}

fn gone(pod: &Pod, pods: &HashMap<String, Running>) {
    if let Some(known) = pod.metadata.uid.as_ref().and_then(|uid| pods.get(uid)) {
        known.desired.send_modify(end);
    }
}

fn end(desired: &mut Desired) {
    if let Desired::Run(pod) = desired {
        *desired = Desired::Gone(pod.clone());
    }
}
