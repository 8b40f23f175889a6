//! The `kubectl` binary against the server.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, also in what several tests share"
)]

use std::process::{Command, Stdio};
use std::time::Duration;

use kube_memory::{Cluster, ClusterConfig};
use tempfile::TempDir;

struct Kubectl {
    cluster: Cluster,
    dir: TempDir,
}

impl Kubectl {
    async fn start() -> Self {
        let cluster = Cluster::start(ClusterConfig::default()).await.unwrap();
        let dir = TempDir::new().unwrap();
        std::fs::write(dir.path().join("kubeconfig"), cluster.kubeconfig()).unwrap();
        Self { cluster, dir }
    }

    /// Runs kubectl on a blocking thread, so that the server goes on; (success, output and errors together).
    async fn try_run(&self, arguments: &str, input: &str) -> (bool, String) {
        let mut command = Command::new("kubectl");
        command
            .args(arguments.split_whitespace())
            .env("KUBECONFIG", self.dir.path().join("kubeconfig"))
            // The default cache is keyed by host and port, and ports come again.
            .env("KUBECACHEDIR", self.dir.path().join("cache"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let input = input.to_owned();
        tokio::task::spawn_blocking(move || {
            let mut child = command.spawn().unwrap_or_else(|error| {
                panic!("kubectl can't be started ({error}): install it, for example from https://dl.k8s.io or as the package kubernetes-client")
            });
            std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
            let output = child.wait_with_output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
            (output.status.success(), text)
        })
        .await
        .unwrap()
    }

    async fn run(&self, arguments: &str) -> String {
        self.run_with(arguments, "").await
    }

    async fn run_with(&self, arguments: &str, input: &str) -> String {
        let (success, output) = self.try_run(arguments, input).await;
        assert!(success, "kubectl {arguments}: {output}");
        output
    }
}

const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers: [{name: c, image: "nginx:1", ports: [{containerPort: 80}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80}]}
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_is_applied_watched_described_and_deleted() {
    let kubectl = Kubectl::start().await;
    let output = kubectl.run_with("apply -f -", WEB).await;
    assert!(
        output.contains("deployment.apps/web created") && !output.contains("arning"),
        "{output}"
    );
    let output = kubectl
        .run("rollout status deployment/web --timeout=20s")
        .await;
    assert!(output.contains("successfully rolled out"), "{output}");
    let output = kubectl.run_with("apply -f -", WEB).await;
    assert!(output.contains("deployment.apps/web unchanged"), "{output}");
    let output = kubectl
        .run_with("apply -f -", &WEB.replace("replicas: 2", "replicas: 3"))
        .await;
    assert!(
        output.contains("deployment.apps/web configured"),
        "{output}"
    );
    kubectl
        .run("rollout status deployment/web --timeout=20s")
        .await;
    let wide = kubectl.run("get pods -o wide").await;
    assert_eq!(wide.matches("Running").count(), 3, "{wide}");
    assert!(
        wide.contains("NOMINATED NODE") && wide.contains("k8s-worker2"),
        "{wide}"
    );
    let deployments = kubectl.run("get deployments").await;
    assert!(deployments.contains("3/3"), "{deployments}");
    let described = kubectl.run("describe pods -l app=web").await;
    assert!(
        described.contains("Successfully assigned default/web-"),
        "{described}"
    );
    let described = kubectl.run("describe deployment web").await;
    assert!(described.contains("ScalingReplicaSet"), "{described}");
    let endpoints = kubectl.run("get endpointslices -l kubernetes.io/service-name=web -o jsonpath={.items[0].endpoints[*].addresses[0]}").await;
    assert_eq!(endpoints.split_whitespace().count(), 3, "{endpoints}");
    let all = kubectl.run("get all").await;
    assert!(
        all.contains("service/web") && all.contains("replicaset.apps/web-"),
        "{all}"
    );
    let output = kubectl
        .run_with("apply --server-side --force-conflicts -f -", WEB)
        .await;
    assert!(output.contains("serverside-applied"), "{output}");
    let output = kubectl.run("delete deployment web --timeout=20s").await;
    assert!(output.contains("deleted"), "{output}");
    kubectl
        .run("wait --for=delete pod -l app=web --timeout=20s")
        .await;
    kubectl.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_labelled_tainted_cordoned_and_drained() {
    let kubectl = Kubectl::start().await;
    kubectl
        .run_with("apply -f -", &WEB.replace("replicas: 2", "replicas: 6"))
        .await;
    kubectl
        .run("rollout status deployment/web --timeout=20s")
        .await;
    kubectl
        .run("label node k8s-worker1 status=suspectnode")
        .await;
    kubectl
        .run("taint node k8s-worker1 impound.dev/suspect=true:NoSchedule")
        .await;
    kubectl.run("cordon k8s-worker1").await;
    let nodes = kubectl.run("get nodes -o wide").await;
    assert!(
        nodes.contains("SchedulingDisabled") && nodes.contains("docker://"),
        "{nodes}"
    );
    let (success, output) = kubectl
        .try_run(
            "drain k8s-worker1 --timeout=20s --pod-selector=app=nothing",
            "",
        )
        .await;
    assert!(success, "{output}");
    let output = kubectl
        .run("drain k8s-worker1 --ignore-daemonsets --timeout=20s")
        .await;
    assert!(
        output.contains("evicting pod default/web-") && output.contains("drained"),
        "{output}"
    );
    let left = kubectl
        .run("get pods --field-selector spec.nodeName=k8s-worker1 -o name")
        .await;
    assert_eq!(left, "");
    kubectl
        .run("rollout status deployment/web --timeout=20s")
        .await;
    kubectl.run("uncordon k8s-worker1").await;
    kubectl
        .run("taint node k8s-worker1 impound.dev/suspect-")
        .await;
    tokio::time::timeout(Duration::from_secs(5), async {
        while !kubectl
            .run("get node k8s-worker1 -o jsonpath={.spec.taints}")
            .await
            .is_empty()
        {}
    })
    .await
    .unwrap();
    kubectl.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_without_force_refuses_a_bare_pod() {
    let kubectl = Kubectl::start().await;
    kubectl.run("run bare --image=busybox:1").await;
    kubectl
        .run("wait --for=condition=Ready pod/bare --timeout=20s")
        .await;
    let node = kubectl
        .run("get pod bare -o jsonpath={.spec.nodeName}")
        .await;
    let (success, output) = kubectl
        .try_run(&format!("drain {node} --timeout=5s"), "")
        .await;
    assert!(!success && output.contains("cannot delete"), "{output}");
    kubectl
        .run(&format!("drain {node} --force --timeout=20s"))
        .await;
    let (success, output) = kubectl.try_run("get pod bare", "").await;
    assert!(
        !success && output.contains("pods \"bare\" not found"),
        "{output}"
    );
    kubectl.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_is_patched_in_every_way_and_released() {
    let kubectl = Kubectl::start().await;
    kubectl.run_with("apply -f -", WEB).await;
    kubectl
        .run("rollout status deployment/web --timeout=20s")
        .await;
    let pod = kubectl
        .run("get pods -o jsonpath={.items[0].metadata.name}")
        .await;
    kubectl
        .run(&format!("label pod {pod} status=suspectpod app-"))
        .await;
    tokio::time::timeout(Duration::from_secs(5), async {
        while !kubectl
            .run(&format!(
                "get pod {pod} -o jsonpath={{.metadata.ownerReferences}}"
            ))
            .await
            .is_empty()
        {}
    })
    .await
    .unwrap();
    kubectl.run(&format!(r#"patch pod {pod} --type=json -p [{{"op":"add","path":"/metadata/labels/a","value":"1"}}]"#)).await;
    kubectl
        .run(&format!(
            r#"patch pod {pod} --type=merge -p {{"metadata":{{"labels":{{"b":"2"}}}}}}"#
        ))
        .await;
    kubectl
        .run(&format!(
            r#"patch pod {pod} -p {{"metadata":{{"labels":{{"c":"3"}}}}}}"#
        ))
        .await;
    let labels = kubectl
        .run(&format!("get pod {pod} --show-labels --no-headers"))
        .await;
    assert!(labels.contains("a=1,b=2,c=3"), "{labels}");
    kubectl.run(&format!("annotate pod {pod} note=x")).await;
    let (success, output) = kubectl
        .try_run(
            &format!(r#"patch pod {pod} -p {{"spec":{{"restartPolicy":"Never"}}}}"#),
            "",
        )
        .await;
    assert!(
        !success && output.contains("pod updates may not change fields"),
        "{output}"
    );
    let output = kubectl.run("auth can-i patch pods").await;
    assert!(output.contains("yes"), "{output}");
    kubectl
        .run(&format!(
            "delete pod {pod} --wait=false --grace-period=0 --force"
        ))
        .await;
    kubectl.cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_custom_resource_is_shown_with_its_columns() {
    let kubectl = Kubectl::start().await;
    let definition = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: things.example.dev}
spec:
  group: example.dev
  scope: Namespaced
  names: {plural: things, singular: thing, kind: Thing, shortNames: [th]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    additionalPrinterColumns:
    - {name: Colour, type: string, jsonPath: .spec.colour}
    - {name: Age, type: date, jsonPath: .metadata.creationTimestamp}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            required: [colour]
            properties: {colour: {type: string, enum: [red, blue]}}
"#;
    kubectl.run_with("apply -f -", definition).await;
    kubectl
        .run("wait --for=condition=Established crd/things.example.dev --timeout=20s")
        .await;
    let thing = |colour: &str| {
        format!(
            "apiVersion: example.dev/v1\nkind: Thing\nmetadata: {{name: t}}\nspec: {{colour: {colour}}}\n"
        )
    };
    kubectl.run_with("apply -f -", &thing("red")).await;
    kubectl.run_with("apply -f -", &thing("blue")).await;
    let shown = kubectl.run("get th").await;
    assert!(
        shown.contains("COLOUR") && shown.contains("blue"),
        "{shown}"
    );
    let (success, output) = kubectl.try_run("apply -f -", &thing("green")).await;
    assert!(
        !success && output.contains("Unsupported value: \"green\""),
        "{output}"
    );
    let (success, output) = kubectl.try_run("apply -f -", &thing("red, size: 1")).await;
    assert!(
        !success && output.contains("unknown field \"spec.size\""),
        "{output}"
    );
    kubectl
        .run("delete crd things.example.dev --timeout=20s")
        .await;
    kubectl.cluster.shutdown().await;
}
