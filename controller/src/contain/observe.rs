//! Reads everything that a plan depends on, in two rounds of parallel calls.

use std::collections::{BTreeMap, BTreeSet};

use futures::future::{try_join, try_join_all};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, OwnerReference};
use kube::Client;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;

use super::plugin::Plugin;
use super::refusal::Refusal;
use crate::kubernetes::{ApiError, is_object_name, read};

/// What was seen of a suspect and its surroundings.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The suspect.
    pub pod: Pod,
    /// Exactly as the API server gave it.
    pub pod_raw: Value,
    /// The suspect's node.
    pub node: Node,
    /// Exactly as the API server gave it.
    pub node_raw: Value,
    /// The controller of the pod, if it has one.
    pub owner: Option<Owner>,
    /// Everything in the namespace that selects pods in order to own them: kind, name, selector.
    pub adopters: Vec<Adopter>,
    /// Services of the namespace.
    pub services: Vec<Service>,
    /// NetworkPolicies of the namespace.
    pub policies: Vec<NetworkPolicy>,
    /// Policies of other kinds, where the cluster serves them.
    pub plugin: Plugin,
    /// Every pod on the node, the suspect included.
    pub pods_on_node: Vec<Pod>,
    /// uids of the DaemonSets that exist, if any pod on the node belongs to one; `None` if they could not be
    /// read.
    pub daemon_sets: Option<BTreeSet<String>>,
}

/// The controller of a pod.
#[derive(Clone, Debug)]
pub struct Owner {
    /// The reference in the pod.
    pub reference: OwnerReference,
    /// Exactly as the API server gave it; `None` if it is gone or of a kind that is not read.
    pub raw: Option<Value>,
    /// The owner's own controller, e.g. the Deployment of a ReplicaSet.
    pub parent: Option<OwnerReference>,
}

/// Something that takes pods over when their labels fit.
#[derive(Clone, Debug)]
pub struct Adopter {
    /// E.g. `ReplicaSet`.
    pub kind: &'static str,
    /// Object name.
    pub name: String,
    /// metadata.uid.
    pub uid: String,
    /// Its pod selector.
    pub selector: LabelSelector,
}

/// Why nothing could be planned.
#[derive(Debug, Error)]
pub enum ObserveError {
    /// The pod can't be contained.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The API did not answer as it should.
    #[error("the Kubernetes API could not be read")]
    Api(#[from] ApiError),
    /// An API that every cluster has is not there: this is no Kubernetes API, or not all of it.
    #[error("{path} is not served: check which API server the controller talks to")]
    NotServed {
        /// Path that was read.
        path: String,
    },
    /// The API's answer has not the expected shape.
    #[error("{path}: the answer is not a {expected}")]
    Shape {
        /// Path that was read.
        path: String,
        /// Kind that was expected.
        expected: &'static str,
        /// What did not fit.
        #[source]
        source: serde_json::Error,
    },
}

/// Kinds that own pods by selector, with their collection's API path.
const ADOPTERS: [(&str, &str); 5] = [
    ("ReplicaSet", "apis/apps/v1"),
    ("StatefulSet", "apis/apps/v1"),
    ("DaemonSet", "apis/apps/v1"),
    ("Job", "apis/batch/v1"),
    ("ReplicationController", "api/v1"),
];

/// Reads the pod and all that decides how it can be contained.
///
/// # Errors
/// [`Refusal`] if the pod or its node does not exist, or the pod is not scheduled.
pub async fn observe(
    client: &Client,
    namespace: &str,
    pod: &str,
) -> Result<Observed, ObserveError> {
    let (pod_raw, pod) = suspect(client, namespace, pod).await?;
    let name = format!(
        "{namespace}/{}",
        pod.metadata.name.as_deref().unwrap_or_default()
    );
    let node_name = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.node_name.clone())
        .ok_or_else(|| Refusal::NotScheduled {
            pod: name.clone(),
            phase: phase(&pod).to_owned(),
        })?;

    let node_path = format!("/api/v1/nodes/{node_name}");
    let services_path = format!("/api/v1/namespaces/{namespace}/services");
    let policies_path =
        format!("/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies");
    let ((node_raw, owner), (adopters, (services, (policies, pods_on_node)))) = try_join(
        try_join(read_any(client, &node_path), owner(client, namespace, &pod)),
        try_join(
            adopters(client, namespace),
            try_join(
                list::<Service>(client, &services_path),
                try_join(
                    list::<NetworkPolicy>(client, &policies_path),
                    pods_on_node(client, &node_name),
                ),
            ),
        ),
    )
    .await?;
    let node_raw = node_raw.ok_or(Refusal::NoSuchNode {
        pod: name,
        node: node_name,
    })?;
    let node = typed(&node_path, "Node", node_raw.clone())?;
    let daemon_sets = daemon_sets(client, &pods_on_node).await;
    Ok(Observed {
        pod,
        pod_raw,
        node,
        node_raw,
        owner,
        adopters,
        services,
        policies,
        plugin: Plugin::default(),
        pods_on_node,
        daemon_sets,
    })
}

/// uids of the DaemonSets that exist, read only if one of the pods belongs to one: a pod whose DaemonSet is
/// gone is an orphan, which nothing starts again.
pub async fn daemon_sets(client: &Client, pods: &[Pod]) -> Option<BTreeSet<String>> {
    let owned = pods.iter().any(|pod| {
        controller_of(pod.metadata.owner_references.as_ref())
            .is_some_and(|owner| owner.kind == "DaemonSet")
    });
    if !owned {
        return Some(BTreeSet::new());
    }
    let all = list::<Value>(client, "/apis/apps/v1/daemonsets")
        .await
        .ok()?;
    let uid = |item: &Value| item.pointer("/metadata/uid")?.as_str().map(str::to_owned);
    Some(all.iter().filter_map(uid).collect())
}

/// Reads the suspect pod alone.
///
/// # Errors
/// [`Refusal::NoSuchPod`] if there is none.
pub async fn suspect(
    client: &Client,
    namespace: &str,
    pod: &str,
) -> Result<(Value, Pod), ObserveError> {
    let no_such_pod = || Refusal::NoSuchPod {
        namespace: namespace.to_owned(),
        pod: pod.to_owned(),
    };
    // It becomes part of a path: `web/status` or `web?x` would read the pod `web`.
    if !is_object_name(pod) {
        return Err(no_such_pod().into());
    }
    let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}");
    let raw = read(client, &path).await?.ok_or_else(no_such_pod)?;
    let pod = typed(&path, "Pod", raw.clone())?;
    Ok((raw, pod))
}

/// Reads a node, `None` if it does not exist.
///
/// # Errors
/// If the API does not answer as it should.
pub async fn node(client: &Client, name: &str) -> Result<Option<Node>, ObserveError> {
    let path = format!("/api/v1/nodes/{name}");
    match read(client, &path).await? {
        Some(raw) => typed(&path, "Node", raw).map(Some),
        None => Ok(None),
    }
}

/// Every pod that the API knows on a node.
///
/// # Errors
/// If the API does not answer as it should.
pub async fn pods_on_node(client: &Client, node: &str) -> Result<Vec<Pod>, ObserveError> {
    list(
        client,
        &format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{node}"),
    )
    .await
}

/// The NetworkPolicies of a namespace.
///
/// # Errors
/// If the API does not answer as it should.
pub async fn policies(
    client: &Client,
    namespace: &str,
) -> Result<Vec<NetworkPolicy>, ObserveError> {
    list(
        client,
        &format!("/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies"),
    )
    .await
}

/// A collection's items.
///
/// # Errors
/// If the API does not answer as it should.
pub async fn list<T: DeserializeOwned>(
    client: &Client,
    path: &str,
) -> Result<Vec<T>, ObserveError> {
    #[derive(Deserialize)]
    struct Items<T> {
        items: Vec<T>,
    }
    let raw = read(client, path)
        .await?
        .ok_or_else(|| ObserveError::NotServed {
            path: path.to_owned(),
        })?;
    let items: Items<T> = typed(path, "list", raw)?;
    Ok(items.items)
}

/// Pod phase, empty if it has none yet.
#[must_use]
pub fn phase(pod: &Pod) -> &str {
    pod.status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .unwrap_or_default()
}

/// The owner reference that is marked as the controller.
#[must_use]
pub fn controller_of(owners: Option<&Vec<OwnerReference>>) -> Option<&OwnerReference> {
    owners?.iter().find(|owner| owner.controller == Some(true))
}

async fn owner(client: &Client, namespace: &str, pod: &Pod) -> Result<Option<Owner>, ObserveError> {
    let Some(reference) = controller_of(pod.metadata.owner_references.as_ref()) else {
        return Ok(None);
    };
    let same = |(kind, group): &&(&str, &str)| {
        *kind == reference.kind
            && group.trim_start_matches("apis/").trim_start_matches("api/") == reference.api_version
    };
    let Some((_, group)) = ADOPTERS.iter().find(same) else {
        return Ok(Some(Owner {
            reference: reference.clone(),
            raw: None,
            parent: None,
        }));
    };
    let path = format!(
        "/{group}/namespaces/{namespace}/{}s/{}",
        reference.kind.to_lowercase(),
        reference.name
    );
    // Another one of its name is not the owner: to the API's garbage collection the owner is gone.
    let raw = read(client, &path).await?.filter(|raw| {
        let uid = raw.pointer("/metadata/uid").and_then(Value::as_str);
        uid == Some(&reference.uid)
    });
    let parent = raw
        .as_ref()
        .and_then(|raw| raw.pointer("/metadata/ownerReferences").cloned())
        .and_then(|owners| serde_json::from_value::<Vec<OwnerReference>>(owners).ok());
    Ok(Some(Owner {
        reference: reference.clone(),
        raw,
        parent: controller_of(parent.as_ref()).cloned(),
    }))
}

async fn adopters(client: &Client, namespace: &str) -> Result<Vec<Adopter>, ObserveError> {
    let lists = try_join_all(ADOPTERS.iter().map(|(kind, group)| async move {
        let path = format!("/{group}/namespaces/{namespace}/{}s", kind.to_lowercase());
        let items: Vec<Value> = list(client, &path).await?;
        Ok::<_, ObserveError>(items.into_iter().filter_map(|item| adopter(kind, &item)))
    }))
    .await?;
    Ok(lists.into_iter().flatten().collect())
}

fn adopter(kind: &'static str, item: &Value) -> Option<Adopter> {
    let selector = item.pointer("/spec/selector")?.clone();
    // A ReplicationController's selector is a plain map.
    let selector = if kind == "ReplicationController" {
        LabelSelector {
            match_labels: serde_json::from_value::<BTreeMap<String, String>>(selector).ok(),
            match_expressions: None,
        }
    } else {
        serde_json::from_value(selector).ok()?
    };
    Some(Adopter {
        kind,
        name: item.pointer("/metadata/name")?.as_str()?.to_owned(),
        uid: item.pointer("/metadata/uid")?.as_str()?.to_owned(),
        selector,
    })
}

async fn read_any(client: &Client, path: &str) -> Result<Option<Value>, ObserveError> {
    Ok(read(client, path).await?)
}

/// An answer as what it is to be.
///
/// # Errors
/// If it has another shape.
pub(super) fn typed<T: DeserializeOwned>(
    path: &str,
    expected: &'static str,
    raw: Value,
) -> Result<T, ObserveError> {
    serde_json::from_value(raw).map_err(|source| ObserveError::Shape {
        path: path.to_owned(),
        expected,
        source,
    })
}
