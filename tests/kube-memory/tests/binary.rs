//! The server as a process, with a kubelet outside of it.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, also in what several tests share"
)]

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, ResourceExt};
use serde_json::json;

#[tokio::test]
async fn it_says_when_it_is_ready_leaves_pods_to_an_outside_kubelet_and_stops_when_told() {
    let dir = tempfile::TempDir::new().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_kube-memory"))
        .args([
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--nodes",
            "n1=10.0.0.1",
            "--dir",
        ])
        .arg(dir.path())
        .arg("--audit")
        .arg(dir.path().join("audit.jsonl"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert!(line.starts_with("ready https://127.0.0.1:"), "{line}");
    let kubeconfig = Kubeconfig::read_from(dir.path().join("kubeconfig")).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .unwrap();
    let pods: Api<Pod> = Api::default_namespaced(Client::try_from(config).unwrap());
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "busybox:1"}]}}))
    .unwrap();
    pods.create(&PostParams::default(), &pod).await.unwrap();
    let start = Instant::now();
    let bound = loop {
        let pod = pods.get("p").await.unwrap();
        if pod.spec.as_ref().unwrap().node_name.is_some() {
            break pod;
        }
        assert!(start.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert_eq!(
        bound.status.unwrap().phase.as_deref(),
        Some("Pending"),
        "nobody runs it yet"
    );

    let status = json!({"status": {"phase": "Running", "podIP": "10.1.0.2",
        "conditions": [{"type": "Ready", "status": "True"}],
        "containerStatuses": [{"name": "c", "containerID": "docker://ab", "image": "busybox:1", "imageID": "",
                               "ready": true, "restartCount": 0, "state": {"running": {}}}]}});
    let running = pods
        .patch_status("p", &PatchParams::default(), &Patch::Strategic(status))
        .await
        .unwrap();
    let conditions = running
        .status
        .as_ref()
        .unwrap()
        .conditions
        .as_ref()
        .unwrap();
    assert_eq!(
        conditions.len(),
        2,
        "conditions merge by type: the scheduler's stays"
    );

    pods.delete("p", &DeleteParams::default().grace_period(5))
        .await
        .unwrap();
    let terminating = pods.get("p").await.unwrap();
    assert_eq!(terminating.metadata.deletion_grace_period_seconds, Some(5));
    let guard = kube::api::Preconditions {
        uid: terminating.uid(),
        resource_version: None,
    };
    let last = DeleteParams {
        preconditions: Some(guard),
        ..DeleteParams::default().grace_period(0)
    };
    pods.delete("p", &last).await.unwrap();
    assert!(pods.get_opt("p").await.unwrap().is_none());

    let id = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &id])
            .status()
            .unwrap()
            .success()
    );
    assert!(child.wait().unwrap().success());
    let audit = std::fs::read_to_string(dir.path().join("audit.jsonl")).unwrap();
    assert!(audit.lines().count() >= 6);
}
