//! Which containers there are, and which one an id means.

use std::collections::HashMap;

use impound_proto::agent::v1::{
    self as proto, ContainerState, ListContainersRequest, ListContainersResponse, PodSelector,
};
use tonic::Status;

use super::call::Call;
use super::{Shared, status};
use crate::runtime::{Container, ContainerId, State};

/// Fewest digits of an id that are accepted, as `docker ps` prints.
const SHORTEST_ID: usize = 12;

impl Shared {
    pub(super) async fn list(
        &self,
        request: ListContainersRequest,
    ) -> Result<ListContainersResponse, Status> {
        if let Some(pod) = &request.pod
            && (pod.namespace.is_empty() || pod.name.is_empty())
        {
            return Err(Status::invalid_argument(
                "pod: expected namespace and name, one of them is empty",
            ));
        }
        let mut found = self
            .runtime
            .containers()
            .await
            .map_err(|error| status::of(&error))?;
        found.sort_by_key(|container| std::cmp::Reverse(container.created));
        let containers = found
            .into_iter()
            .map(describe)
            .filter(|container| {
                request
                    .pod
                    .as_ref()
                    .is_none_or(|pod| belongs(container, pod))
            })
            .collect();
        Ok(ListContainersResponse { containers })
    }

    /// The container that `given`, a full id or the beginning of one, means.
    pub(super) async fn resolve(&self, call: &Call, given: &str) -> Result<ContainerId, Status> {
        let hexadecimal = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if !(SHORTEST_ID..=64).contains(&given.len()) || !given.bytes().all(hexadecimal) {
            let shown: String = given.chars().take(100).collect();
            return Err(Status::invalid_argument(format!(
                "container_id: expected {SHORTEST_ID} to 64 lower-case hexadecimal digits, found {shown:?}"
            )));
        }
        let all = self
            .runtime
            .containers()
            .await
            .map_err(|error| status::of(&error))?;
        let mut matching = all
            .into_iter()
            .filter(|one| one.id.as_str().starts_with(given));
        let Some(first) = matching.next() else {
            return Err(Status::not_found(format!(
                "there is no container {given} on node {}",
                self.node
            )));
        };
        if let Some(second) = matching.next() {
            return Err(Status::invalid_argument(format!(
                "container_id {given} is ambiguous: it begins {} and {}; give more digits",
                first.id, second.id
            )));
        }
        call.container(&first.id);
        Ok(first.id)
    }
}

fn describe(container: Container) -> proto::Container {
    let labels = &container.labels;
    // As the kubelet's Docker runtime sets them; a container that somebody started by hand has none.
    let label = |name: &str| labels.get(name).cloned().unwrap_or_default();
    let sandbox = label("io.kubernetes.docker.type") == "podsandbox";
    proto::Container {
        state: state(container.state).into(),
        created: Some(container.created.into()),
        pod_namespace: label("io.kubernetes.pod.namespace"),
        pod_name: label("io.kubernetes.pod.name"),
        pod_uid: label("io.kubernetes.pod.uid"),
        container_name: label("io.kubernetes.container.name"),
        sandbox,
        attempt: attempt(labels),
        id: container.id.to_string(),
        name: container.name,
        image: container.image,
        image_id: container.image_id,
    }
}

fn attempt(labels: &HashMap<String, String>) -> u32 {
    labels
        .get("annotation.io.kubernetes.container.restartCount")
        .and_then(|count| count.parse().ok())
        .unwrap_or(0)
}

fn belongs(container: &proto::Container, pod: &PodSelector) -> bool {
    container.pod_namespace == pod.namespace
        && container.pod_name == pod.name
        && (pod.uid.is_empty() || container.pod_uid == pod.uid)
}

fn state(state: State) -> ContainerState {
    match state {
        State::Unknown => ContainerState::Unspecified,
        State::Created => ContainerState::Created,
        State::Running => ContainerState::Running,
        State::Paused => ContainerState::Paused,
        State::Restarting => ContainerState::Restarting,
        State::Exited => ContainerState::Exited,
        State::Dead => ContainerState::Dead,
        State::Removing => ContainerState::Removing,
    }
}
