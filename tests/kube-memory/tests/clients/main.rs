//! The unmodified `kube` client against the server: reads, writes, watches, apply, eviction, faults.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, also in what several tests share"
)]

mod objects;
mod pod_certificates;
mod server;
mod tokens;
mod watches;
mod workloads;

use std::time::{Duration, Instant};

use futures::{Stream, StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, EvictParams, GroupVersionKind, ListParams,
    Patch, PatchParams, PostParams, PropagationPolicy,
};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::Status;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, Config, Discovery, ResourceExt};
use kube_memory::{Cluster, ClusterConfig, Effect, Fault};
use serde_json::{Value, json};

pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) async fn connect(kubeconfig: &str) -> Client {
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig).unwrap();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .unwrap();
    config.default_retry = false;
    Client::try_from(config).unwrap()
}

pub(crate) async fn start() -> (Cluster, Client) {
    let cluster = Cluster::start(ClusterConfig::default()).await.unwrap();
    let client = connect(&cluster.kubeconfig()).await;
    (cluster, client)
}

pub(crate) fn status(error: &kube::Error) -> &Status {
    match error {
        kube::Error::Api(status) => status,
        other => panic!("not an API error: {other:?}"),
    }
}

pub(crate) fn parse<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

pub(crate) fn deployment(name: &str, replicas: i32) -> Deployment {
    parse(json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}},
                 "template": {"metadata": {"labels": {"app": name}},
                              "spec": {"containers": [{"name": "c", "image": "busybox:1"}]}}}}))
}

pub(crate) async fn until<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut check: impl FnMut() -> F,
) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = check().await {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "not seen: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) async fn running(pods: &Api<Pod>, label: &str, count: usize) -> Vec<Pod> {
    until(&format!("{count} running pods of {label}"), || async {
        let list = pods
            .list(&ListParams::default().labels(label))
            .await
            .unwrap();
        let good = |pod: &&Pod| {
            pod.metadata.deletion_timestamp.is_none()
                && pod
                    .status
                    .as_ref()
                    .and_then(|status| status.phase.as_deref())
                    == Some("Running")
        };
        (list.items.iter().filter(good).count() == count && list.items.len() == count)
            .then_some(list.items)
    })
    .await
}
