//! From a pod to its network namespace: the sandbox that the kubelet's runtime keeps for it.

use impound_proto::tls::explain;
use serde::Deserialize;

use super::IsolateError;
use super::namespace::{NamespaceId, NetworkNamespace, Process};
use crate::runtime::{Container, ContainerId, ContainerRuntime, RuntimeError, State};

/// A pod, exactly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pod {
    /// Its namespace.
    pub(crate) namespace: String,
    /// Its name.
    pub(crate) name: String,
    /// metadata.uid
    pub(crate) uid: String,
}

impl std::fmt::Display for Pod {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{} (uid {})", self.namespace, self.name, self.uid)
    }
}

/// A pod's running sandbox.
pub(super) struct Sandbox {
    pub(super) id: ContainerId,
    pub(super) process: Process,
    pub(super) namespace: NetworkNamespace,
    /// The node's own, which it is not.
    pub(super) host: NetworkNamespace,
    /// Containers of the pod that run, without the sandbox: id and name.
    pub(super) containers: Vec<(ContainerId, String)>,
    /// uid of the pod, which the kubelet's control group of all of it is named by.
    pub(super) pod_uid: String,
}

/// What of a container's description matters here.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Description {
    state: Running,
    host_config: HostConfig,
}

#[derive(Deserialize, PartialEq, Eq)]
#[serde(rename_all = "PascalCase")]
struct Running {
    running: bool,
    pid: u32,
    started_at: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HostConfig {
    network_mode: String,
}

impl Sandbox {
    /// Finds the sandbox of `pod`, holds its namespace open, and refuses the host's.
    pub(super) async fn find(
        runtime: &dyn ContainerRuntime,
        pod: &Pod,
    ) -> Result<Self, IsolateError> {
        let all = runtime.containers().await?;
        let (sandbox, others) = choose(pod, &all)?;
        let id = sandbox.id.clone();
        let (process, network_mode) = running(runtime, pod, sandbox).await?;
        let namespace = process.namespace()?;
        // Only now, with the namespace open: if the process is still the container's, what we hold
        // is the container's.
        let (again, _) = running(runtime, pod, sandbox).await?;
        if again.pid != process.pid {
            return Err(IsolateError::Changed { pod: pod.clone() });
        }
        let host = Host::of(runtime).await?;
        if network_mode == "host" || host.has(namespace.id) {
            return Err(IsolateError::HostNetwork { pod: pod.clone() });
        }
        let containers = others.iter().map(|one| (one.id.clone(), one.name.clone()));
        Ok(Self {
            id,
            process,
            namespace,
            host: host.namespace,
            containers: containers.collect(),
            pod_uid: pod.uid.clone(),
        })
    }
}

/// Every namespace that must never be isolated.
struct Host {
    namespace: NetworkNamespace,
    others: Vec<NamespaceId>,
}

impl Host {
    /// Where the first process and the runtime are (one of the two may be out of sight: a security
    /// module can hide the first, a proxy can stand before the other), and where the agent is.
    async fn of(runtime: &dyn ContainerRuntime) -> Result<Self, IsolateError> {
        let own = Process::open(std::process::id())?.namespace()?.id;
        let first = Process::open(1).and_then(|process| process.namespace());
        let runtimes = match runtime.process().await {
            Ok(pid) => Process::open(pid)
                .and_then(|process| process.namespace())
                .map_err(IsolateError::from),
            Err(error) => Err(error.into()),
        };
        let (namespace, others) = match (first, runtimes) {
            (Ok(first), Ok(runtimes)) => (first, vec![own, runtimes.id]),
            (Ok(first), Err(_)) => (first, vec![own]),
            (Err(_), Ok(runtimes)) => (runtimes, vec![own]),
            (Err(first), Err(runtimes)) => {
                return Err(IsolateError::NoHost {
                    first: explain(&first),
                    runtime: explain(&runtimes),
                });
            }
        };
        Ok(Self { namespace, others })
    }

    fn has(&self, id: NamespaceId) -> bool {
        self.namespace.id == id || self.others.contains(&id)
    }
}

/// The one running sandbox among all containers of the node, and the pod's running containers.
fn choose<'a>(
    pod: &Pod,
    all: &'a [Container],
) -> Result<(&'a Container, Vec<&'a Container>), IsolateError> {
    let label = |one: &'a Container, name: &str| one.labels.get(name).map_or("", String::as_str);
    let named: Vec<&Container> = all
        .iter()
        .filter(|one| {
            label(one, "io.kubernetes.pod.namespace") == pod.namespace
                && label(one, "io.kubernetes.pod.name") == pod.name
        })
        .collect();
    let uid = |one: &'a Container| label(one, "io.kubernetes.pod.uid");
    let Some(first) = named.first() else {
        return Err(IsolateError::UnknownPod { pod: pod.clone() });
    };
    if !named.iter().any(|one| uid(one) == pod.uid) {
        return Err(IsolateError::OtherUid {
            pod: pod.clone(),
            found: uid(first).to_owned(),
        });
    }
    let running = |one: &&Container| matches!(one.state, State::Running | State::Paused);
    let ours = named.into_iter().filter(|one| uid(one) == pod.uid);
    let (sandboxes, others): (Vec<&Container>, Vec<&Container>) = ours
        .filter(running)
        .partition(|one| label(one, "io.kubernetes.docker.type") == "podsandbox");
    match sandboxes.as_slice() {
        [one] => Ok((one, others)),
        [] => Err(IsolateError::NoSandbox { pod: pod.clone() }),
        several => Err(IsolateError::SeveralSandboxes {
            pod: pod.clone(),
            count: several.len(),
        }),
    }
}

/// The process of a container, which is certain to be the container's, and the container's network
/// mode.
async fn running(
    runtime: &dyn ContainerRuntime,
    pod: &Pod,
    container: &Container,
) -> Result<(Process, String), IsolateError> {
    let id = &container.id;
    let description = describe(runtime, id).await?;
    if !description.state.running || description.state.pid == 0 {
        return Err(IsolateError::Changed { pod: pod.clone() });
    }
    let process = Process::open(description.state.pid)?;
    if !process.belongs_to(id)? {
        return Err(IsolateError::NotItsProcess {
            pid: process.pid,
            container: container.name.clone(),
        });
    }
    // The control group could be of an earlier process with the same number only if the container
    // was restarted in between.
    if describe(runtime, id).await?.state != description.state {
        return Err(IsolateError::Changed { pod: pod.clone() });
    }
    Ok((process, description.host_config.network_mode))
}

async fn describe(
    runtime: &dyn ContainerRuntime,
    id: &ContainerId,
) -> Result<Description, IsolateError> {
    let reading = runtime.inspect(id).await?;
    serde_json::from_slice(&reading.bytes).map_err(|error| {
        IsolateError::Runtime(RuntimeError::Malformed {
            call: reading.api_call,
            why: error.to_string(),
        })
    })
}

#[cfg(test)]
mod tests;
