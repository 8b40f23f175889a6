//! From a pod's specification to what the Docker Engine is asked to create.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use bollard::models::{ContainerCreateBody, HostConfig};
use k8s_openapi::api::core::v1::{Container, EnvVar, Pod};

use crate::naming::PodRef;
use crate::volumes::{VolumeError, Volumes};

/// What Kubernetes takes when a pod doesn't say it.
const DEFAULT_GRACE_SECONDS: i64 = 30;
/// Longest hostname that Linux has.
const HOSTNAME_MAX: usize = 63;

/// Why a container can't be made from its specification; shown in the pod's status.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpecError {
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error(
        "container {container}: environment variable {variable} takes its value from something that this test kubelet doesn't have; it has values and fields of metadata, spec.nodeName, status.podIP and status.hostIP"
    )]
    Environment { container: String, variable: String },
    #[error("init container {0} is restartable, which this test kubelet doesn't have")]
    RestartableInit(String),
}

/// Addresses and names that a container may ask for.
pub(crate) struct Place<'a> {
    pub(crate) cluster: &'a str,
    pub(crate) node: &'a str,
    pub(crate) host_address: &'a str,
}

pub(crate) fn sandbox_body(
    pod: &Pod,
    identity: &PodRef,
    cluster: &str,
    pause_image: String,
    attempt: u32,
) -> ContainerCreateBody {
    let host_network = pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true);
    let labels = pod.metadata.labels.clone().unwrap_or_default();
    ContainerCreateBody {
        image: Some(pause_image),
        // As Kubernetes' own pause image: it holds no capability.
        user: Some("65535:65535".into()),
        hostname: (!host_network).then(|| identity.name.chars().take(HOSTNAME_MAX).collect()),
        labels: Some(identity.sandbox_labels(cluster, &labels, attempt)),
        host_config: Some(HostConfig {
            network_mode: Some(if host_network { "host" } else { "bridge" }.into()),
            ipc_mode: Some("shareable".into()),
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub(crate) struct ContainerRequest<'a> {
    pub(crate) container: &'a Container,
    pub(crate) attempt: u32,
    pub(crate) image_id: String,
    pub(crate) sandbox: &'a str,
    pub(crate) pod_address: &'a str,
}

pub(crate) fn container_body(
    pod: &Pod,
    identity: &PodRef,
    place: &Place<'_>,
    volumes: &Volumes,
    request: &ContainerRequest<'_>,
) -> Result<ContainerCreateBody, SpecError> {
    let container = request.container;
    let environment = container
        .env
        .iter()
        .flatten()
        .map(|variable| {
            value_of(variable, pod, identity, place, request.pod_address)
                .map(|value| format!("{}={value}", variable.name))
                .ok_or_else(|| SpecError::Environment {
                    container: container.name.clone(),
                    variable: variable.name.clone(),
                })
        })
        .collect::<Result<Vec<_>, _>>()?;
    if container.env_from.iter().flatten().next().is_some() {
        return Err(SpecError::Environment {
            container: container.name.clone(),
            variable: "(envFrom)".into(),
        });
    }
    let labels = identity.container_labels(
        place.cluster,
        &container.name,
        request.sandbox,
        request.attempt,
        &hash_of(container),
        grace_seconds(pod),
    );
    let mut host = HostConfig {
        network_mode: Some(format!("container:{}", request.sandbox)),
        ipc_mode: Some(format!("container:{}", request.sandbox)),
        binds: Some(volumes.binds(container)?),
        ..Default::default()
    };
    let mut body = ContainerCreateBody {
        image: Some(request.image_id.clone()),
        labels: Some(labels),
        env: Some(environment),
        entrypoint: container.command.clone(),
        cmd: container.args.clone(),
        working_dir: container.working_dir.clone(),
        tty: container.tty,
        open_stdin: container.stdin,
        ..Default::default()
    };
    secure(pod, container, &mut body, &mut host);
    body.host_config = Some(host);
    Ok(body)
}

/// Seconds between SIGTERM and SIGKILL that the pod wants.
pub(crate) fn grace_seconds(pod: &Pod) -> i64 {
    pod.metadata
        .deletion_grace_period_seconds
        .or(pod
            .spec
            .as_ref()
            .and_then(|spec| spec.termination_grace_period_seconds))
        .unwrap_or(DEFAULT_GRACE_SECONDS)
}

/// The pod's settings, overridden by the container's.
fn secure(pod: &Pod, container: &Container, body: &mut ContainerCreateBody, host: &mut HostConfig) {
    let for_pod = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.security_context.as_ref());
    let own = container.security_context.as_ref();
    let user = own
        .and_then(|own| own.run_as_user)
        .or(for_pod.and_then(|all| all.run_as_user));
    let group = own
        .and_then(|own| own.run_as_group)
        .or(for_pod.and_then(|all| all.run_as_group));
    body.user = match (user, group) {
        (Some(user), Some(group)) => Some(format!("{user}:{group}")),
        (Some(user), None) => Some(user.to_string()),
        (None, _) => None,
    };
    if let Some(own) = own {
        host.privileged = own.privileged;
        host.readonly_rootfs = own.read_only_root_filesystem;
        if let Some(capabilities) = &own.capabilities {
            host.cap_add.clone_from(&capabilities.add);
            host.cap_drop.clone_from(&capabilities.drop);
        }
    }
}

fn value_of(
    variable: &EnvVar,
    pod: &Pod,
    identity: &PodRef,
    place: &Place<'_>,
    pod_address: &str,
) -> Option<String> {
    let Some(source) = &variable.value_from else {
        return Some(variable.value.clone().unwrap_or_default());
    };
    let path = source.field_ref.as_ref()?.field_path.as_str();
    let keyed = |prefix: &str| path.strip_prefix(prefix)?.strip_suffix("']");
    if let Some(key) = keyed("metadata.labels['") {
        return Some(
            pod.metadata
                .labels
                .as_ref()?
                .get(key)
                .cloned()
                .unwrap_or_default(),
        );
    }
    if let Some(key) = keyed("metadata.annotations['") {
        return Some(
            pod.metadata
                .annotations
                .as_ref()?
                .get(key)
                .cloned()
                .unwrap_or_default(),
        );
    }
    match path {
        "metadata.name" => Some(identity.name.clone()),
        "metadata.namespace" => Some(identity.namespace.clone()),
        "metadata.uid" => Some(identity.uid.clone()),
        "spec.nodeName" => Some(place.node.into()),
        "status.hostIP" => Some(place.host_address.into()),
        "status.podIP" => Some(pod_address.into()),
        _ => None,
    }
}

/// Changes with the specification, as a kubelet's does; not the same number as a kubelet's.
fn hash_of(container: &Container) -> String {
    let mut hasher = DefaultHasher::new();
    serde_json::to_string(container)
        .unwrap_or_default()
        .hash(&mut hasher);
    format!("{:08x}", hasher.finish() & 0xffff_ffff)
}
