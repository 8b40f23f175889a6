//! The containers on a node as its agent sees them, beside what the Kubernetes API knows.

use std::collections::HashSet;

use impound_proto::agent::v1 as agent;
use impound_proto::controller::v1 as wire;
use tonic::Status;

use super::{Service, status};
use crate::contain::observe;

pub(super) async fn list(
    service: &Service,
    request: wire::ListContainersRequest,
) -> Result<wire::ListContainersResponse, Status> {
    status::checked_name("node", &request.node)?;
    let mut connection = service
        .context
        .agents
        .connect(&request.node)
        .await
        .map_err(|error| status::of_agent(&error))?;
    let pods = observe::pods_on_node(&service.context.client, &request.node)
        .await
        .map_err(|error| status::of_observe(&error))?;
    let known: HashSet<String> = pods
        .into_iter()
        .filter_map(|pod| pod.metadata.uid)
        .collect();
    let info = connection
        .client
        .info(agent::InfoRequest {})
        .await?
        .into_inner();
    let listed = connection
        .client
        .list_containers(agent::ListContainersRequest { pod: None })
        .await?
        .into_inner();
    Ok(wire::ListContainersResponse {
        containers: listed
            .containers
            .into_iter()
            .map(|container| described(container, &known))
            .collect(),
        runtime: info.runtime,
        runtime_version: info.runtime_version,
    })
}

fn described(container: agent::Container, known: &HashSet<String>) -> wire::NodeContainer {
    let state = container.state().as_str_name();
    wire::NodeContainer {
        state: state
            .strip_prefix("CONTAINER_STATE_")
            .unwrap_or(state)
            .to_lowercase(),
        known_to_kubernetes: known.contains(&container.pod_uid),
        id: container.id,
        name: container.name,
        image: container.image,
        created: container.created,
        pod_namespace: container.pod_namespace,
        pod_name: container.pod_name,
        container_name: container.container_name,
        attempt: container.attempt,
        sandbox: container.sandbox,
    }
}
