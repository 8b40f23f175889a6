//! The calls to the Docker Engine, and what one container looks like to the rest of the kubelet.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use bollard::errors::Error as DockerError;
use bollard::exec::{CreateExecOptions, StartExecResults};
use bollard::models::{ContainerCreateBody, ContainerInspectResponse, ContainerStateStatusEnum};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, EventsOptionsBuilder, ListContainersOptionsBuilder,
    RemoveContainerOptionsBuilder, StopContainerOptionsBuilder,
};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures::{Stream, StreamExt, TryStreamExt, future};
use k8s_openapi::jiff::Timestamp;

use crate::naming;

/// Longest a single call may take: `stop` lasts as long as a pod's grace period.
const CALL_TIMEOUT: Duration = Duration::from_secs(900);

/// Why a call to the Docker Engine failed.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// No engine at the socket.
    #[error("no Docker Engine answers at {socket}; start dockerd or give --docker-socket")]
    Unreachable {
        /// Path of the socket.
        socket: String,
        /// What connecting to it gave.
        #[source]
        source: DockerError,
    },
    /// The image must be there already.
    #[error(
        "image {0} is not on this machine, and this kubelet never pulls; docker load or docker import it"
    )]
    NoImage(String),
    /// The engine refused or broke off.
    #[error("docker {call} {subject}: {source}")]
    Call {
        /// What was asked for.
        call: &'static str,
        /// Container, image or filter.
        subject: String,
        /// The engine's answer.
        source: DockerError,
    },
}

/// One container of a pod as the engine sees it now.
#[derive(Clone, Debug)]
pub(crate) struct Observed {
    pub(crate) id: String,
    /// Name in the pod; `None` for the sandbox.
    pub(crate) container: Option<String>,
    pub(crate) attempt: u32,
    /// `sha256:<64 hex>`
    pub(crate) image_id: String,
    /// Address on the bridge; empty unless it is a running sandbox with a network of its own.
    pub(crate) address: String,
    pub(crate) state: State,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum State {
    /// Created, not started yet.
    Created,
    Running {
        started: Timestamp,
    },
    /// Ended, or could not be started.
    Exited {
        code: i64,
        /// As Kubernetes names it: Completed, Error, OOMKilled, ContainerCannotRun.
        reason: &'static str,
        started: Timestamp,
        finished: Timestamp,
    },
}

#[derive(Clone)]
pub(crate) struct Runtime {
    docker: Docker,
    cluster: String,
}

impl Runtime {
    pub(crate) async fn connect(socket: &Path, cluster: &str) -> Result<Self, RuntimeError> {
        let unreachable = |source| RuntimeError::Unreachable {
            socket: socket.display().to_string(),
            source,
        };
        let docker = Docker::connect_with_unix(
            &socket.display().to_string(),
            CALL_TIMEOUT.as_secs(),
            API_DEFAULT_VERSION,
        )
        .map_err(unreachable)?
        .negotiate_version()
        .await
        .map_err(unreachable)?;
        Ok(Self {
            docker,
            cluster: cluster.into(),
        })
    }

    /// The sandboxes and containers of a pod, in any state and order.
    pub(crate) async fn containers_of(&self, uid: &str) -> Result<Vec<Observed>, RuntimeError> {
        let ids = self.list(&[format!("{}={uid}", naming::POD_UID)]).await?;
        let observed = ids
            .into_iter()
            .map(|(id, _)| async move { self.observe(&id).await });
        Ok(future::try_join_all(observed)
            .await?
            .into_iter()
            .flatten()
            .collect())
    }

    /// Ids and pod uids of all containers of this cluster.
    pub(crate) async fn all(&self) -> Result<Vec<(String, String)>, RuntimeError> {
        self.list(&[]).await
    }

    /// A pod's uid for each change of the state of one of its containers.
    pub(crate) fn changes(&self) -> impl Stream<Item = Result<String, RuntimeError>> + use<> {
        let filters = HashMap::from([
            ("type", vec!["container".to_owned()]),
            (
                "event",
                ["die", "destroy", "start", "oom"]
                    .map(str::to_owned)
                    .to_vec(),
            ),
            (
                "label",
                vec![format!("{}={}", naming::CLUSTER_LABEL, self.cluster)],
            ),
        ]);
        let options = EventsOptionsBuilder::default().filters(&filters).build();
        self.docker.events(Some(options)).filter_map(|event| {
            future::ready(match event {
                Ok(event) => event
                    .actor
                    .and_then(|actor| actor.attributes)
                    .and_then(|mut attributes| attributes.remove(naming::POD_UID))
                    .map(Ok),
                Err(source) => Some(Err(call("events", "of containers", source))),
            })
        })
    }

    /// `sha256:<64 hex>` of an image given by name.
    pub(crate) async fn image_id(&self, name: &str) -> Result<String, RuntimeError> {
        match self.docker.inspect_image(name).await {
            Ok(image) => image.id.ok_or_else(|| RuntimeError::NoImage(name.into())),
            Err(error) if status_of(&error) == Some(404) => Err(RuntimeError::NoImage(name.into())),
            Err(source) => Err(call("inspect image", name, source)),
        }
    }

    /// Creates and starts a container; answers its id.
    pub(crate) async fn run(
        &self,
        name: &str,
        body: ContainerCreateBody,
    ) -> Result<String, RuntimeError> {
        let options = CreateContainerOptionsBuilder::default().name(name).build();
        let created = self
            .docker
            .create_container(Some(options), body)
            .await
            .map_err(|source| call("create", name, source))?;
        self.start(&created.id).await?;
        Ok(created.id)
    }

    pub(crate) async fn start(&self, id: &str) -> Result<(), RuntimeError> {
        self.docker
            .start_container(id, None)
            .await
            .map_err(|source| call("start", id, source))
    }

    /// SIGTERM, after `grace` SIGKILL; returns when the container has ended. A container that is
    /// gone has ended.
    pub(crate) async fn stop(&self, id: &str, grace: Duration) -> Result<(), RuntimeError> {
        let seconds = i32::try_from(grace.as_secs()).unwrap_or(i32::MAX);
        let options = StopContainerOptionsBuilder::default().t(seconds).build();
        match self.docker.stop_container(id, Some(options)).await {
            Err(error) if status_of(&error) == Some(404) => Ok(()),
            answer => answer.map_err(|source| call("stop", id, source)),
        }
    }

    /// Removes a container, running or not. One that is gone, or just going, is not an error.
    pub(crate) async fn remove(&self, id: &str) -> Result<(), RuntimeError> {
        let options = RemoveContainerOptionsBuilder::default()
            .force(true)
            .v(true)
            .build();
        match self.docker.remove_container(id, Some(options)).await {
            Err(error) if matches!(status_of(&error), Some(404 | 409)) => Ok(()),
            answer => answer.map_err(|source| call("rm", id, source)),
        }
    }

    /// Runs a command in a container; answers its exit code.
    pub(crate) async fn exec(&self, id: &str, command: &[String]) -> Result<i64, RuntimeError> {
        let options = CreateExecOptions {
            cmd: Some(command.to_vec()),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            ..Default::default()
        };
        let error = |source| call("exec", id, source);
        let exec = self.docker.create_exec(id, options).await.map_err(error)?;
        if let StartExecResults::Attached { mut output, .. } = self
            .docker
            .start_exec(&exec.id, None)
            .await
            .map_err(error)?
        {
            // Its end is the end of the command; what it prints doesn't matter to a probe.
            while output.try_next().await.map_err(error)?.is_some() {}
        }
        let inspected = self.docker.inspect_exec(&exec.id).await.map_err(error)?;
        Ok(inspected.exit_code.unwrap_or(-1))
    }

    async fn list(&self, labels: &[String]) -> Result<Vec<(String, String)>, RuntimeError> {
        let mut labels = labels.to_vec();
        labels.push(format!("{}={}", naming::CLUSTER_LABEL, self.cluster));
        let filters = HashMap::from([("label", labels)]);
        let options = ListContainersOptionsBuilder::default()
            .all(true)
            .filters(&filters)
            .build();
        let listed = self
            .docker
            .list_containers(Some(options))
            .await
            .map_err(|source| call("ps", &self.cluster, source))?;
        Ok(listed
            .into_iter()
            .filter_map(|container| {
                let uid = container.labels?.remove(naming::POD_UID)?;
                Some((container.id?, uid))
            })
            .collect())
    }

    /// `None` when it has gone since it was listed.
    async fn observe(&self, id: &str) -> Result<Option<Observed>, RuntimeError> {
        match self.docker.inspect_container(id, None).await {
            Ok(container) => Ok(observed(container)),
            Err(error) if status_of(&error) == Some(404) => Ok(None),
            Err(source) => Err(call("inspect", id, source)),
        }
    }
}

fn observed(container: ContainerInspectResponse) -> Option<Observed> {
    let labels = container.config?.labels?;
    let label = |key: &str| labels.get(key).cloned().unwrap_or_default();
    let sandbox = label(naming::TYPE) == naming::SANDBOX_TYPE;
    let attempt = label(if sandbox {
        naming::SANDBOX_ATTEMPT
    } else {
        naming::RESTART_COUNT
    });
    let address = container
        .network_settings
        .and_then(|settings| settings.networks)
        .into_iter()
        .flatten()
        .find_map(|(_, network)| network.ip_address.filter(|address| !address.is_empty()));
    Some(Observed {
        id: container.id?,
        container: (!sandbox).then(|| label(naming::CONTAINER_NAME)),
        attempt: attempt.parse().ok()?,
        image_id: container.image?,
        address: address.unwrap_or_default(),
        state: state_of(container.state?, container.created),
    })
}

fn state_of(state: bollard::models::ContainerState, created: Option<String>) -> State {
    let time = |text: Option<String>| -> Timestamp {
        text.and_then(|text| text.parse().ok())
            .unwrap_or(Timestamp::UNIX_EPOCH)
    };
    let code = state.exit_code.unwrap_or(0);
    let failed_to_start = state
        .error
        .as_deref()
        .is_some_and(|error| !error.is_empty());
    match state.status {
        Some(ContainerStateStatusEnum::CREATED) if failed_to_start => {
            // The engine doesn't say when it tried; it was right after the creation.
            let tried = time(created);
            let reason = "ContainerCannotRun";
            State::Exited {
                code,
                reason,
                started: tried,
                finished: tried,
            }
        }
        Some(ContainerStateStatusEnum::CREATED) => State::Created,
        Some(
            ContainerStateStatusEnum::RUNNING
            | ContainerStateStatusEnum::PAUSED
            | ContainerStateStatusEnum::RESTARTING,
        ) => State::Running {
            started: time(state.started_at),
        },
        _ => State::Exited {
            code,
            reason: match code {
                _ if state.oom_killed == Some(true) => "OOMKilled",
                0 => "Completed",
                _ => "Error",
            },
            started: time(state.started_at),
            finished: time(state.finished_at),
        },
    }
}

fn call(call: &'static str, subject: &str, source: DockerError) -> RuntimeError {
    RuntimeError::Call {
        call,
        subject: subject.into(),
        source,
    }
}

fn status_of(error: &DockerError) -> Option<u16> {
    match error {
        DockerError::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}
