//! Which containers the node has, what they are called in the evidence, and the channel to ask.

use std::collections::BTreeSet;
use std::sync::Arc;

use impound_evidence::{Container, ContainerRole, EvidencePath, Pod, export_name, short_id};
use impound_proto::CASE_METADATA;
use impound_proto::agent::v1 as wire;

use super::fetch::Failure;
use super::note::Known;
use super::session::Session;
use super::{CollectError, TargetPod, instant};
use crate::agents::AgentConnection;

/// Difference between two readings of an agent's clock, in milliseconds, from which on the manifest
/// lists both: below it lies what a busy network adds to a measurement.
const CLOCK_STEP: u64 = 1000;

impl Session<'_> {
    /// The containers of `pods` on their node that are not sandboxes, and those of the same role that
    /// an earlier run has listed; noted, with a directory each. A pod that can't be listed is
    /// recorded as missing.
    pub(super) async fn containers(
        &self,
        pods: &[TargetPod],
        role: ContainerRole,
    ) -> Result<Vec<Known>, CollectError> {
        let nodes: BTreeSet<&str> = pods.iter().map(|pod| pod.node.as_str()).collect();
        for node in nodes {
            let pods: Vec<&TargetPod> = pods.iter().filter(|pod| pod.node == node).collect();
            match self.listed(node).await? {
                Ok(containers) => self.note_containers(&pods, role, &containers).await?,
                Err(why) => {
                    self.record_failed(&format!("listing the containers of node {node}"), &why)
                        .await?;
                    for pod in pods {
                        self.miss(&self.pod_directory(pod)?, false, why.clone());
                    }
                }
            }
        }
        // Also of pods that are no longer asked for: an earlier run may not have come to them.
        let of_role = |known: &&Known| known.container.role == role;
        Ok(self
            .noted(|note| note.containers.iter().filter(of_role).cloned().collect())
            .await)
    }

    /// An open connection to a node's agent; who it is gets into the manifest.
    pub(super) async fn connection(&self, node: &str) -> Result<Arc<AgentConnection>, Failure> {
        let mut connections = self.connections.lock().await;
        if let Some(open) = connections.get(node) {
            return Ok(Arc::clone(open));
        }
        let opened = self
            .collector
            .agents
            .connect(node)
            .await
            .map_err(|error| Failure::agent(&error))?;
        let opened = Arc::new(opened);
        let (agent, uid) = (opened.described(), opened.address.uid.clone());
        let offset = |agent: &impound_evidence::Agent| agent.clock_offset_ms.unwrap_or(0);
        self.note(|note| {
            let known = note.agents.iter().any(|known| {
                let same = impound_evidence::Agent {
                    clock_offset_ms: agent.clock_offset_ms,
                    ..known.clone()
                } == agent;
                same && offset(known).abs_diff(offset(&agent)) < CLOCK_STEP
            });
            if !known {
                note.agents.push(agent);
            }
            if node == self.job.target.node && !uid.is_empty() {
                note.node_uid = Some(uid);
            }
        })
        .await?;
        connections.insert(node.to_owned(), Arc::clone(&opened));
        Ok(opened)
    }

    /// The next request opens a new connection.
    pub(super) async fn disconnect(&self, node: &str) {
        self.connections.lock().await.remove(node);
    }

    /// A request that carries the case.
    pub(super) fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        // Cases are ASCII without controls, so they are metadata.
        if let Ok(case) = self.at.case.as_str().parse() {
            request.metadata_mut().insert(CASE_METADATA, case);
        }
        request
    }

    /// All containers of a node, or why not after every attempt.
    async fn listed(
        &self,
        node: &str,
    ) -> Result<Result<Vec<wire::Container>, String>, CollectError> {
        let mut attempt = 1;
        loop {
            let failure = match self.list(node).await {
                Ok(containers) => return Ok(Ok(containers)),
                Err(failure) => failure,
            };
            let (why, again) = failure.reason()?;
            if !again || attempt >= self.collector.retry.attempts {
                return Ok(Err(why));
            }
            attempt += 1;
            self.disconnect(node).await;
            tokio::time::sleep(self.collector.retry.before(attempt)).await;
        }
    }

    async fn list(&self, node: &str) -> Result<Vec<wire::Container>, Failure> {
        let mut client = self.connection(node).await?.client.clone();
        let answer = client
            .list_containers(self.request(wire::ListContainersRequest { pod: None }))
            .await;
        answer
            .map(|answer| answer.into_inner().containers)
            .map_err(|status| Failure::status(&status))
    }

    async fn note_containers(
        &self,
        pods: &[&TargetPod],
        role: ContainerRole,
        listed: &[wire::Container],
    ) -> Result<(), CollectError> {
        let mut found = Vec::new();
        for pod in pods {
            let named = |container: &&wire::Container| {
                !container.sandbox
                    && container.pod_namespace == pod.namespace
                    && container.pod_name == pod.name
            };
            let mut of_pod: Vec<_> = listed
                .iter()
                .filter(named)
                .filter(|container| container.pod_uid == pod.uid)
                .collect();
            if of_pod.is_empty() {
                // The kubelet labels a static pod's containers with a hash of its file, not with the
                // uid of the API. A uid of the API has dashes: that would be another pod of the name.
                of_pod = listed
                    .iter()
                    .filter(named)
                    .filter(|container| !container.pod_uid.contains('-'))
                    .collect();
            }
            if of_pod.is_empty() {
                let known = self
                    .noted(|note| {
                        note.containers
                            .iter()
                            .any(|known| is_of(&known.container.pod, pod))
                    })
                    .await;
                if !known {
                    let why = format!(
                        "the runtime of node {} has no container of pod {}/{}",
                        pod.node, pod.namespace, pod.name
                    );
                    self.miss(&self.pod_directory(pod)?, false, why);
                }
            }
            for container in of_pod {
                if short_id(&container.id).is_err() {
                    let why = format!(
                        "the agent listed a container whose id is none: {:?}",
                        container.id
                    );
                    self.miss(&self.pod_directory(pod)?, false, why);
                    continue;
                }
                found.push((self.pod_directory(pod)?, described(container, pod, role)));
            }
        }
        self.note(|note| {
            for (below, container) in found {
                if note
                    .containers
                    .iter()
                    .any(|known| known.container.id == container.id)
                {
                    continue;
                }
                let taken = |directory: &EvidencePath| {
                    note.containers
                        .iter()
                        .any(|known| known.directory == *directory)
                };
                let names = directories(&container);
                let free = names
                    .iter()
                    .filter_map(|name| below.join(name).ok())
                    .find(|directory| !taken(directory));
                if let Some(directory) = free {
                    note.containers.push(Known {
                        container,
                        directory,
                    });
                }
            }
        })
        .await
    }

    /// `artifacts/<node>/<namespace>_<pod>`
    pub(super) fn pod_directory(&self, pod: &TargetPod) -> Result<EvidencePath, CollectError> {
        self.path(
            &format!("artifacts/{}/{}_{}", pod.node, pod.namespace, pod.name),
            "the name of a node or pod",
        )
    }
}

/// What a container's directory may be called, best first. The last one is always free: no two
/// containers have one id.
fn directories(container: &Container) -> [String; 3] {
    let id = &container.id;
    // The agent's word is only a directory if it is a container's name.
    let name = if export_name(&container.name, id).is_ok() {
        container.name.as_str()
    } else {
        "unnamed"
    };
    [
        name.to_owned(),
        format!("{name}.{}", container.attempt),
        format!("{name}.{id}"),
    ]
}

fn is_of(of: &Pod, pod: &TargetPod) -> bool {
    of.namespace == pod.namespace && of.name == pod.name && of.uid == pod.uid
}

fn described(container: &wire::Container, pod: &TargetPod, role: ContainerRole) -> Container {
    let state = container.state().as_str_name();
    Container {
        role,
        pod: Pod {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            uid: pod.uid.clone(),
        },
        name: container.container_name.clone(),
        id: container.id.clone(),
        attempt: container.attempt,
        image: container.image.clone(),
        image_id: container.image_id.clone(),
        state: state
            .strip_prefix("CONTAINER_STATE_")
            .unwrap_or(state)
            .to_ascii_lowercase(),
        created: instant(container.created),
    }
}
