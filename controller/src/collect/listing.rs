//! Which containers the node has, what they are called in the evidence, and the channel to ask.

use std::collections::BTreeMap;
use std::sync::Arc;

use impound_evidence::{Container, ContainerRole, EvidencePath, Pod, export_name, short_id};
use impound_proto::CASE_METADATA;
use impound_proto::agent::v1 as wire;

use super::failure::{Failure, LOOK_UP, cut, within};
use super::note::{Known, Note};
use super::session::Session;
use super::{CollectError, TargetPod, instant};
use crate::agents::AgentConnection;

/// Difference between two readings of an agent's clock, in milliseconds, from which on the manifest
/// lists both: below it lies what a busy network adds to a measurement.
const CLOCK_STEP: u64 = 1000;
/// Most containers of one pod: restarts leave some, and the kubelet removes them.
const CONTAINERS: usize = 1000;

impl Session<'_> {
    /// The containers of `pods` on their node that are not sandboxes, and those of the same role that
    /// an earlier run has listed; noted, with a directory each. A pod that can't be listed is
    /// recorded as missing.
    pub(super) async fn containers(
        &self,
        pods: &[TargetPod],
        role: ContainerRole,
    ) -> Result<Vec<Known>, CollectError> {
        // Once a node's agent has not answered, its other pods are not asked for one by one.
        let mut silent: BTreeMap<&str, String> = BTreeMap::new();
        for pod in pods {
            let listed = match silent.get(pod.node.as_str()) {
                Some(why) => Err((why.clone(), false)),
                None => self.listed(pod).await?,
            };
            match listed {
                Ok(containers) => self.note_containers(pod, role, containers).await?,
                Err((why, of_node)) => {
                    self.miss(&self.pod_directory(pod)?, false, why.clone());
                    if of_node {
                        let what = format!("listing the containers of node {}", pod.node);
                        self.record_failed(&what, &why).await?;
                        silent.insert(&pod.node, why);
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
        let agent = opened.described();
        let (uid, boot_id) = (opened.address.uid.clone(), opened.address.boot_id.clone());
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
                note.node_boot_id = boot_id;
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

    /// The containers of a pod; or why they can't be listed after every attempt, and whether that is
    /// so for every pod of its node.
    async fn listed(
        &self,
        pod: &TargetPod,
    ) -> Result<Result<Vec<wire::Container>, (String, bool)>, CollectError> {
        let mut attempt = 1;
        loop {
            let failure = match self.list(pod).await {
                Ok(containers) => return Ok(Ok(containers)),
                Err(failure) => failure,
            };
            let of_node = failure.is_of_channel();
            let (why, again) = failure.reason()?;
            if !again || attempt >= self.collector.retry.attempts {
                return Ok(Err((why, of_node)));
            }
            attempt += 1;
            self.disconnect(&pod.node).await;
            tokio::time::sleep(self.collector.retry.before(attempt)).await;
        }
    }

    async fn list(&self, pod: &TargetPod) -> Result<Vec<wire::Container>, Failure> {
        let connection = self.connection(&pod.node).await?;
        let selector = wire::PodSelector {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            uid: pod.uid.clone(),
        };
        let message = wire::ListContainersRequest {
            pod: Some(selector),
        };
        let mut client = connection.client.clone();
        let answer = within(LOOK_UP, client.list_containers(self.request(message))).await?;
        Ok(answer.containers)
    }

    async fn note_containers(
        &self,
        pod: &TargetPod,
        role: ContainerRole,
        listed: Vec<wire::Container>,
    ) -> Result<(), CollectError> {
        let below = self.pod_directory(pod)?;
        self.had(&below);
        if listed.len() > CONTAINERS {
            let why = format!(
                "the agent listed {} containers, only the newest {CONTAINERS} are collected",
                listed.len()
            );
            self.miss(&below, true, why);
        }
        // The agent selects; its answer is checked all the same. By uid: a pod that was re-created
        // under the same name is another pod.
        let of_pod = |container: &wire::Container| {
            !container.sandbox
                && container.pod_namespace == pod.namespace
                && container.pod_name == pod.name
                && container.pod_uid == pod.uid
        };
        let mut found = Vec::new();
        for container in listed.into_iter().take(CONTAINERS).filter(of_pod) {
            if short_id(&container.id).is_ok() {
                found.push(described(container, pod, role));
            } else {
                let id = cut(container.id);
                let why = format!("the agent listed a container whose id is none: {id:?}");
                self.miss(&below, false, why);
            }
        }
        let known = |note: &Note| {
            note.containers
                .iter()
                .any(|known| is_of(&known.container.pod, pod))
        };
        if found.is_empty() && !self.noted(known).await {
            let why = format!(
                "the runtime of node {} has no container of pod {}/{} with uid {}",
                pod.node, pod.namespace, pod.name, pod.uid
            );
            self.miss(&below, false, why);
        }
        self.note(|note| {
            for container in found {
                let is_same = |known: &Known| known.container.id == container.id;
                if note.containers.iter().any(is_same) {
                    continue;
                }
                let names = directories(&container);
                let free =
                    names
                        .iter()
                        .filter_map(|name| below.join(name).ok())
                        .find(|directory| {
                            let is_taken = |known: &Known| known.directory == *directory;
                            !note.containers.iter().any(is_taken)
                        });
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

fn described(container: wire::Container, pod: &TargetPod, role: ContainerRole) -> Container {
    let state = container.state().as_str_name();
    let image_digest = pod.image_digests.get(&container.container_name).cloned();
    Container {
        role,
        pod: Pod {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            uid: pod.uid.clone(),
        },
        name: cut(container.container_name),
        id: container.id,
        attempt: container.attempt,
        image: cut(container.image),
        image_id: cut(container.image_id),
        image_digest,
        state: state
            .strip_prefix("CONTAINER_STATE_")
            .unwrap_or(state)
            .to_ascii_lowercase(),
        created: instant(container.created),
    }
}
