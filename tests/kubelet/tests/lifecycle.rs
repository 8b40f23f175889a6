//! Pods of an in-memory cluster as real Docker containers, from creation to their end.
//!
//! Needs a Docker Engine at /var/run/docker.sock and the image that `deploy/images.sh pause` builds.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that finds something else than it expects is to panic"
)]

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bollard::models::{ContainerInspectResponse, ContainerSummary};
use bollard::query_parameters::{
    KillContainerOptions, ListContainersOptionsBuilder, RemoveContainerOptionsBuilder,
};
use bollard::{API_DEFAULT_VERSION, Docker};
use docker_kubelet::{CLUSTER_LABEL, Config, Kubelet, KubeletError};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube_memory::{Cluster, ClusterConfig};
use serde_json::json;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

const SOCKET: &str = "/var/run/docker.sock";
const PAUSE: &str = "impound-demo/pause:1";
const NODE: &str = "k8s-worker1";
const PATIENCE: Duration = Duration::from_secs(30);

struct Setting {
    _cluster: Cluster,
    pods: Api<Pod>,
    docker: Docker,
    id: String,
    stop: Option<oneshot::Sender<()>>,
    kubelet: Option<JoinHandle<Result<(), KubeletError>>>,
    _volumes: tempfile::TempDir,
}

impl Setting {
    async fn new(name: &str) -> Self {
        let docker =
            Docker::connect_with_unix(SOCKET, 120, API_DEFAULT_VERSION).unwrap_or_else(|error| {
                panic!("no Docker Engine at {SOCKET} ({error}); start dockerd")
            });
        let docker = docker.negotiate_version().await.expect("start dockerd");
        docker
            .inspect_image(PAUSE)
            .await
            .expect("run deploy/images.sh pause");
        let config = ClusterConfig {
            instant_kubelet: false,
            ..ClusterConfig::default()
        };
        let cluster = Cluster::start(config).await.unwrap();
        let kubeconfig = Kubeconfig::from_yaml(&cluster.kubeconfig()).unwrap();
        let options = KubeConfigOptions::default();
        let api = kube::Config::from_custom_kubeconfig(kubeconfig, &options)
            .await
            .unwrap();
        let client = kube::Client::try_from(api).unwrap();
        let volumes = tempfile::tempdir().unwrap();
        let id = format!("{name}-{}", std::process::id());
        let kubelet = Kubelet::connect(Config {
            client: client.clone(),
            docker_socket: SOCKET.into(),
            nodes: vec![NODE.into()],
            cluster: id.clone(),
            pause_image: PAUSE.into(),
            volumes: volumes.path().join("pods"),
        })
        .await
        .unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let kubelet = Some(tokio::spawn(kubelet.run(async move {
            let _ = stopped.await;
        })));
        let stop = Some(stop);
        let pods = Api::namespaced(client, "default");
        Self {
            _cluster: cluster,
            pods,
            docker,
            id,
            stop,
            kubelet,
            _volumes: volumes,
        }
    }

    async fn create(&self, name: &str, command: &str) -> Pod {
        let pod = serde_json::from_value(json!({
            "metadata": { "name": name, "labels": { "app": name } },
            "spec": {
                "nodeName": NODE,
                "terminationGracePeriodSeconds": 5,
                "containers": [{ "name": "c", "image": PAUSE, "command": ["sh", "-c", command] }]
            }
        }))
        .unwrap();
        self.pods
            .create(&PostParams::default(), &pod)
            .await
            .unwrap()
    }

    /// The status of a pod's container, once it is as wanted.
    async fn container(
        &self,
        pod: &str,
        wanted: impl Fn(&ContainerStatus) -> bool,
    ) -> ContainerStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.pods.get(pod).await.unwrap().status.unwrap_or_default();
            let one = status
                .container_statuses
                .unwrap_or_default()
                .into_iter()
                .next();
            match one {
                Some(one) if wanted(&one) => return one,
                other => assert!(
                    Instant::now() < deadline,
                    "{pod} did not get there: {other:?}"
                ),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn containers(&self) -> Vec<ContainerSummary> {
        let filters = HashMap::from([("label", vec![format!("{CLUSTER_LABEL}={}", self.id)])]);
        let options = ListContainersOptionsBuilder::default()
            .all(true)
            .filters(&filters)
            .build();
        self.docker.list_containers(Some(options)).await.unwrap()
    }

    async fn inspect(&self, status: &ContainerStatus) -> ContainerInspectResponse {
        let id = status
            .container_id
            .as_deref()
            .unwrap()
            .strip_prefix("docker://")
            .unwrap();
        self.docker.inspect_container(id, None).await.unwrap()
    }

    async fn end(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        self.kubelet.take().unwrap().await.unwrap().unwrap();
    }
}

/// A test that fails in the middle leaves no containers either.
impl Drop for Setting {
    fn drop(&mut self) {
        if self.kubelet.is_some() {
            let label = format!("label={CLUSTER_LABEL}={}", self.id);
            let remove = "docker ps -aq --filter \"$0\" | xargs -r docker rm -f";
            let _ = std::process::Command::new("sh")
                .args(["-c", remove, &label])
                .status();
        }
    }
}

fn running(status: &ContainerStatus) -> bool {
    status.ready
        && status
            .state
            .as_ref()
            .is_some_and(|state| state.running.is_some())
}

/// Ends at once on SIGTERM.
const WAIT: &str = "trap 'exit 0' TERM; while :; do sleep 0.1; done";

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_runs_as_a_container_like_a_kubelets_and_leaves_nothing_behind() {
    let setting = Setting::new("life").await;
    let pod = setting.create("web", WAIT).await;
    let uid = pod.metadata.uid.unwrap();
    let status = setting.container("web", running).await;

    let container = setting.inspect(&status).await;
    assert_eq!(
        container.name.unwrap(),
        format!("/k8s_c_web_default_{uid}_0")
    );
    let config = container.config.unwrap();
    let labels = config.labels.unwrap();
    assert_eq!(labels["io.kubernetes.docker.type"], "container");
    assert_eq!(labels["io.kubernetes.container.name"], "c");
    assert_eq!(labels["io.kubernetes.pod.name"], "web");
    assert_eq!(labels["io.kubernetes.pod.namespace"], "default");
    assert_eq!(labels["io.kubernetes.pod.uid"], uid);
    assert_eq!(
        labels["annotation.io.kubernetes.container.restartCount"],
        "0"
    );
    assert!(
        config.image.unwrap().starts_with("sha256:"),
        "given by id, not by name"
    );

    let sandbox = &labels["io.kubernetes.sandbox.id"];
    let mode = container.host_config.unwrap().network_mode.unwrap();
    assert_eq!(mode, format!("container:{sandbox}"));
    let sandbox = setting
        .docker
        .inspect_container(sandbox, None)
        .await
        .unwrap();
    assert_eq!(
        sandbox.name.unwrap(),
        format!("/k8s_POD_web_default_{uid}_0")
    );
    let sandbox_labels = sandbox.config.unwrap().labels.unwrap();
    assert_eq!(sandbox_labels["io.kubernetes.docker.type"], "podsandbox");
    assert_eq!(sandbox_labels["io.kubernetes.container.name"], "POD");
    assert_eq!(sandbox_labels["app"], "web");
    let address = sandbox.network_settings.unwrap().networks.unwrap()["bridge"]
        .ip_address
        .clone();
    let reported = setting.pods.get("web").await.unwrap().status.unwrap();
    assert_eq!(reported.pod_ip, address);
    assert_eq!(reported.phase.as_deref(), Some("Running"));

    setting
        .pods
        .delete("web", &DeleteParams::default())
        .await
        .unwrap();
    let deadline = Instant::now() + PATIENCE;
    while setting.pods.get_opt("web").await.unwrap().is_some() {
        assert!(Instant::now() < deadline, "the pod's object stays");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(setting.containers().await.is_empty());
    setting.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_container_starts_again_beside_the_old_one() {
    let setting = Setting::new("restart").await;
    setting.create("web", WAIT).await;
    let first = setting.container("web", running).await;
    let id = first.container_id.clone().unwrap();
    let id = id.strip_prefix("docker://").unwrap();
    setting
        .docker
        .kill_container(id, None::<KillContainerOptions>)
        .await
        .unwrap();

    let second = setting
        .container("web", |status| status.restart_count == 1 && running(status))
        .await;
    assert_ne!(second.container_id, first.container_id);
    let ended = second
        .last_state
        .as_ref()
        .unwrap()
        .terminated
        .as_ref()
        .unwrap();
    assert_eq!(ended.exit_code, 137);
    assert_eq!(ended.container_id, first.container_id);
    assert!(setting.inspect(&second).await.name.unwrap().ends_with("_1"));
    let old = setting.inspect(&first).await;
    assert!(
        old.name.unwrap().ends_with("_0"),
        "the ended attempt is still there"
    );
    setting.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_its_end_it_removes_its_own_containers_and_no_others() {
    let (ending, other) = tokio::join!(Setting::new("ending"), Setting::new("other"));
    ending.create("web", WAIT).await;
    other.create("web", WAIT).await;
    ending.container("web", running).await;
    other.container("web", running).await;

    let (docker, id) = (ending.docker.clone(), ending.id.clone());
    ending.end().await;
    let filters = HashMap::from([("label", vec![format!("{CLUSTER_LABEL}={id}")])]);
    let options = ListContainersOptionsBuilder::default()
        .all(true)
        .filters(&filters)
        .build();
    assert!(
        docker
            .list_containers(Some(options))
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(other.containers().await.len(), 2, "sandbox and container");
    other.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_sandbox_is_replaced_and_the_container_starts_again_in_it() {
    let setting = Setting::new("sandbox").await;
    setting.create("web", WAIT).await;
    let first = setting.container("web", running).await;
    let labels = setting
        .inspect(&first)
        .await
        .config
        .unwrap()
        .labels
        .unwrap();
    let lost = &labels["io.kubernetes.sandbox.id"];
    let force = RemoveContainerOptionsBuilder::default().force(true).build();
    setting
        .docker
        .remove_container(lost, Some(force))
        .await
        .unwrap();

    let second = setting
        .container("web", |status| status.restart_count == 1 && running(status))
        .await;
    let labels = setting
        .inspect(&second)
        .await
        .config
        .unwrap()
        .labels
        .unwrap();
    assert_ne!(&labels["io.kubernetes.sandbox.id"], lost);
    setting.end().await;
}
