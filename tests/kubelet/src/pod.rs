//! The worker of one pod: observes its containers, lets [`plan`] decide, acts, reports, and waits
//! for the next event. Ends when the pod's containers and its object are gone.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future;
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};

use crate::naming::PodRef;
use crate::plan::{self, Action};
use crate::probe::Probes;
use crate::runtime::{Runtime, RuntimeError};
use crate::spec::{self, ContainerRequest, Place, SpecError};
use crate::status::{self, Conditions, Facts, Problem};
use crate::volumes;

/// Wait after a failure before the next attempt; a kubelet's resync is of this order.
const RETRY: Duration = Duration::from_secs(1);

/// What the API wants of a pod.
#[derive(Clone)]
pub(crate) enum Desired {
    Run(Arc<Pod>),
    /// Its object has gone: nothing may be left of it.
    Gone(Arc<Pod>),
}

/// What all workers of a node share.
#[derive(Clone)]
pub(crate) struct Surroundings {
    pub(crate) client: kube::Client,
    pub(crate) runtime: Runtime,
    pub(crate) cluster: String,
    pub(crate) node: String,
    pub(crate) host_address: String,
    pub(crate) pause_image: String,
    pub(crate) volumes: PathBuf,
}

pub(crate) struct Worker {
    around: Surroundings,
    identity: PodRef,
    desired: watch::Receiver<Desired>,
    /// A container of the pod changed, or a probe's result.
    changed: Arc<Notify>,
    probes: Probes,
    problems: HashMap<String, Problem>,
    conditions: Conditions,
    reported: Value,
    directory: PathBuf,
}

impl Worker {
    pub(crate) fn new(
        around: Surroundings,
        identity: PodRef,
        desired: watch::Receiver<Desired>,
        changed: Arc<Notify>,
    ) -> Self {
        Self {
            probes: Probes::new(around.runtime.clone(), changed.clone()),
            directory: around.volumes.join(&identity.uid),
            around,
            identity,
            desired,
            changed,
            problems: HashMap::new(),
            conditions: Conditions::default(),
            reported: Value::Null,
        }
    }

    pub(crate) async fn run(mut self) {
        loop {
            let desired = self.desired.borrow_and_update().clone();
            let result = match &desired {
                Desired::Run(pod) if pod.metadata.deletion_timestamp.is_none() => {
                    self.advance(pod).await
                }
                Desired::Run(pod) | Desired::Gone(pod) => {
                    let gone = matches!(desired, Desired::Gone(_));
                    match self.terminate(pod, gone).await {
                        Ok(Ended::All) => return,
                        Ok(Ended::AskAgain) => continue,
                        Err(error) => Err(error),
                    }
                }
            };
            let wait = result.unwrap_or_else(|error| {
                tracing::warn!(pod = %self.identity, %error, "will be tried again");
                Some(RETRY)
            });
            self.next_event(wait).await;
        }
    }

    /// One round of observe, decide, act, report. Answers how long to wait at most.
    async fn advance(&mut self, pod: &Pod) -> Result<Option<Duration>, WorkerError> {
        loop {
            let observed = self
                .around
                .runtime
                .containers_of(&self.identity.uid)
                .await?;
            let address = plan::sandbox(&observed)
                .map_or("", |sandbox| &sandbox.address)
                .to_owned();
            let containers = containers(pod);
            let running: Vec<_> = containers
                .iter()
                .filter_map(|one| {
                    let latest = plan::latest(&observed, &one.name)?;
                    plan::is_running(latest).then(|| (one, latest.id.clone()))
                })
                .collect();
            self.probes.follow(&running, &address);

            let reported = |name: &str| reported_restarts(pod, name);
            let plan = plan::plan(
                pod,
                &observed,
                &self.probes.unhealthy(),
                reported,
                Timestamp::now(),
            );
            self.report(pod, &observed, false).await?;
            // A deletion is not kept waiting by what is still to be started.
            if plan.actions.is_empty() || self.desired.has_changed().unwrap_or(true) {
                return Ok(plan.again.map(until));
            }
            let sandbox = plan::sandbox(&observed).map_or("", |sandbox| &sandbox.id);
            let acted = plan
                .actions
                .iter()
                .map(|action| self.act(pod, &containers, action, sandbox, &address));
            let results = future::join_all(acted).await;
            let mut failed = false;
            for (name, result) in results {
                match result {
                    Ok(()) => {
                        self.problems.remove(&name);
                    }
                    Err(problem) => {
                        failed = true;
                        if self.problems.get(&name) != Some(&problem) {
                            tracing::warn!(pod = %self.identity, container = %name,
                                reason = problem.reason, "{}", problem.message);
                        }
                        self.problems.insert(name, problem);
                    }
                }
            }
            if failed {
                let observed = self
                    .around
                    .runtime
                    .containers_of(&self.identity.uid)
                    .await?;
                self.report(pod, &observed, false).await?;
                return Ok(Some(RETRY));
            }
        }
    }

    async fn act(
        &self,
        pod: &Pod,
        containers: &[Container],
        action: &Action,
        sandbox: &str,
        address: &str,
    ) -> (String, Result<(), Problem>) {
        let runtime = &self.around.runtime;
        match action {
            Action::CreateSandbox { attempt } => {
                let result = self.create_sandbox(pod, *attempt).await;
                let problem =
                    |error: RuntimeError| problem("FailedCreatePodSandBox", &error.to_string());
                (status::SANDBOX.into(), result.map_err(problem))
            }
            Action::Run {
                container: name,
                attempt,
            } => {
                let Some(container) = containers.iter().find(|one| one.name == *name) else {
                    return (name.clone(), Ok(()));
                };
                // The next tries of something that failed are told by what they say, if it is new.
                if !self.problems.contains_key(name) {
                    tracing::info!(pod = %self.identity, container = %name, attempt, "starting");
                }
                let result = self
                    .run_container(pod, container, *attempt, sandbox, address)
                    .await;
                (name.clone(), result)
            }
            Action::Start { id } => {
                let result = runtime.start(id).await;
                (
                    status::SANDBOX.into(),
                    result.map_err(|error| cannot_run(&error)),
                )
            }
            Action::Stop { id } => {
                tracing::info!(pod = %self.identity, container = %id, "stopping");
                let grace = grace(pod);
                let result = runtime.stop(id, grace).await;
                (
                    status::SANDBOX.into(),
                    result.map_err(|error| cannot_run(&error)),
                )
            }
        }
    }

    async fn create_sandbox(&self, pod: &Pod, attempt: u32) -> Result<(), RuntimeError> {
        let name = self.identity.sandbox_name(attempt);
        let image = self.around.pause_image.clone();
        // Inspected first, so that a missing image is told as such and not as a failed create.
        self.around.runtime.image_id(&image).await?;
        let body = spec::sandbox_body(pod, &self.identity, &self.around.cluster, image, attempt);
        self.around.runtime.run(&name, body).await.map(drop)
    }

    async fn run_container(
        &self,
        pod: &Pod,
        container: &Container,
        attempt: u32,
        sandbox: &str,
        pod_address: &str,
    ) -> Result<(), Problem> {
        let runtime = &self.around.runtime;
        let config = |error: SpecError| problem("CreateContainerConfigError", &error.to_string());
        if container.restart_policy.is_some() {
            return Err(config(SpecError::RestartableInit(container.name.clone())));
        }
        let image = container.image.as_deref().unwrap_or_default();
        let image_id = runtime.image_id(image).await.map_err(|error| match error {
            RuntimeError::NoImage(_) => problem("ErrImageNeverPull", &error.to_string()),
            error => problem("ImageInspectError", &error.to_string()),
        })?;
        let volumes = volumes::prepare(pod, &self.directory)
            .map_err(|error| config(SpecError::Volume(error)))?;
        let place = Place {
            cluster: &self.around.cluster,
            node: &self.around.node,
            host_address: &self.around.host_address,
        };
        let request = ContainerRequest {
            container,
            attempt,
            image_id,
            sandbox,
            pod_address,
        };
        let body = spec::container_body(pod, &self.identity, &place, &volumes, &request)
            .map_err(config)?;
        let name = self.identity.container_name(&container.name, attempt);
        match runtime.run(&name, body).await {
            // It is there, in state created with an error: the next round sees it as ended.
            Err(RuntimeError::Call { call: "start", .. }) | Ok(_) => Ok(()),
            Err(error) => Err(problem("CreateContainerError", &error.to_string())),
        }
    }

    /// Stops, reports, removes, and takes the finalized object away.
    async fn terminate(&mut self, pod: &Pod, gone: bool) -> Result<Ended, WorkerError> {
        self.probes.follow(&[], "");
        let runtime = self.around.runtime.clone();
        let observed = runtime.containers_of(&self.identity.uid).await?;
        let grace = grace(pod);
        tracing::info!(pod = %self.identity, grace = grace.as_secs(), "stopping the pod");
        let running = observed
            .iter()
            .filter(|one| one.container.is_some() && plan::is_running(one));
        let stops = future::join_all(running.map(|one| runtime.stop(&one.id, grace)));
        tokio::select! {
            stopped = stops => {
                stopped.into_iter().collect::<Result<Vec<()>, _>>()?;
            }
            // A shorter grace period, or the object has gone: ask anew.
            changed = self.desired.changed() => {
                if changed.is_ok() {
                    return Ok(Ended::AskAgain);
                }
            }
        }
        let observed = runtime.containers_of(&self.identity.uid).await?;
        if !gone {
            self.report(pod, &observed, true).await?;
        }
        let removals = observed.iter().map(|one| runtime.remove(&one.id));
        future::try_join_all(removals).await?;
        volumes::remove(&self.directory);
        if !gone {
            self.delete_object(pod).await?;
        }
        tracing::info!(pod = %self.identity, "gone");
        Ok(Ended::All)
    }

    async fn delete_object(&self, pod: &Pod) -> Result<(), WorkerError> {
        let parameters = DeleteParams::default()
            .grace_period(0)
            .preconditions(Preconditions {
                uid: pod.metadata.uid.clone(),
                resource_version: None,
            });
        match self.api().delete(&self.identity.name, &parameters).await {
            Ok(_) => Ok(()),
            Err(error) if is_gone(&error) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Tells the API, if anything is different from what it was told last.
    async fn report(
        &mut self,
        pod: &Pod,
        observed: &[crate::runtime::Observed],
        terminating: bool,
    ) -> Result<(), WorkerError> {
        let status = {
            let facts = Facts {
                pod,
                observed,
                problems: &self.problems,
                health: &|id| self.probes.health(id),
                host_address: &self.around.host_address,
                terminating,
                now: Timestamp::now(),
            };
            status::pod_status(&facts, &mut self.conditions)
        };
        if status == self.reported {
            return Ok(());
        }
        // The uid makes sure that a pod which took the name over is never given this status.
        let patch = json!({ "metadata": { "uid": self.identity.uid }, "status": status });
        let patched = self
            .api()
            .patch_status(
                &self.identity.name,
                &PatchParams::default(),
                &Patch::Strategic(patch),
            )
            .await;
        match patched {
            Ok(_) => self.reported = status,
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    async fn next_event(&mut self, wait: Option<Duration>) {
        let limit = async {
            match wait {
                Some(wait) => tokio::time::sleep(wait).await,
                None => future::pending().await,
            }
        };
        tokio::select! {
            () = self.changed.notified() => {}
            // An error means that the kubelet is ending, and this worker with it.
            changed = self.desired.changed() => if changed.is_err() { future::pending().await },
            () = limit => {}
        }
    }

    fn api(&self) -> Api<Pod> {
        Api::namespaced(self.around.client.clone(), &self.identity.namespace)
    }
}

#[derive(Debug, thiserror::Error)]
enum WorkerError {
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error("the Kubernetes API: {0}")]
    Api(#[from] kube::Error),
}

enum Ended {
    All,
    AskAgain,
}

/// Init, main and ephemeral containers, which differ in nothing that matters here.
fn containers(pod: &Pod) -> Vec<Container> {
    let Some(spec) = &pod.spec else {
        return Vec::new();
    };
    let mut all: Vec<Container> = spec.init_containers.clone().unwrap_or_default();
    all.extend(spec.containers.iter().cloned());
    all.extend(
        spec.ephemeral_containers
            .iter()
            .flatten()
            .filter_map(|one| {
                serde_json::to_value(one)
                    .and_then(serde_json::from_value)
                    .ok()
            }),
    );
    all
}

fn reported_restarts(pod: &Pod, container: &str) -> Option<u32> {
    let status = pod.status.as_ref()?;
    let all = [&status.container_statuses, &status.init_container_statuses];
    let one = all
        .into_iter()
        .flatten()
        .flatten()
        .find(|one| one.name == container)?;
    one.container_id.as_ref()?;
    u32::try_from(one.restart_count).ok()
}

fn grace(pod: &Pod) -> Duration {
    Duration::from_secs(u64::try_from(spec::grace_seconds(pod)).unwrap_or(0))
}

fn until(time: Timestamp) -> Duration {
    let left = time.duration_since(Timestamp::now());
    if left.is_negative() {
        Duration::ZERO
    } else {
        left.unsigned_abs()
    }
}

fn problem(reason: &'static str, message: &str) -> Problem {
    Problem {
        reason,
        message: message.into(),
    }
}

fn cannot_run(error: &RuntimeError) -> Problem {
    problem("RunContainerError", &error.to_string())
}

/// The object went away, or another one has its name: nothing more to tell about this pod.
fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 404 | 409 | 422))
}
