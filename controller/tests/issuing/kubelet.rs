//! A node's kubelet, as far as it has certificates of pods made: it asks, waits, and writes the pod's volume.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use impound_controller::issue::SIGNER;
use impound_proto::pki::KeyRequest;
use kube::Client;
use kube_memory::ClusterConfig;
use serde_json::{Value, json};

use crate::world::{ISSUER, NAMESPACE, NODE, World, ask, connect};

/// The requests of all pods of the agents' namespace.
pub(crate) fn requests() -> String {
    format!("/apis/certificates.k8s.io/v1beta1/namespaces/{NAMESPACE}/podcertificaterequests")
}

/// A cluster that serves them, with an issuer that answers them and has the right to.
pub(crate) async fn world_with_pod_certificates(life: time::Duration) -> World {
    let world = World::start_in(
        ClusterConfig {
            pod_certificates: true,
            ..ClusterConfig::default()
        },
        life,
    )
    .await;
    allow_signing(&world).await;
    answer(&world).await;
    world
}

/// Has the issuer answer from now on.
pub(crate) async fn answer(world: &World) {
    let issuer = world.answering.clone();
    let client = connect(&world.cluster.kubeconfig_as(ISSUER)).await;
    tokio::spawn(async move { issuer.answer_kubelets(client).await });
}

/// Gives the issuer the role that deploy/ has for that.
pub(crate) async fn allow_signing(world: &World) {
    let installed = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../deploy/kustomize/overlays/pod-certificates/roles.yaml"
    );
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let installed = std::fs::read_to_string(installed).unwrap();
    let documents = installed.split("\n---\n");
    let objects = documents.map(|text| serde_saphyr::from_str::<Value>(text).unwrap());
    for object in objects {
        if object["kind"] == "ClusterRole" {
            let name = object["metadata"]["name"].clone();
            world.post(&format!("{rbac}/clusterroles"), object).await;
            let binding = json!({"metadata": {"name": name},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": ISSUER}]});
            world
                .post(&format!("{rbac}/clusterrolebindings"), binding)
                .await;
        }
    }
}

/// The kubelet of a node.
pub(crate) struct Kubelet {
    client: Client,
}

impl Kubelet {
    pub(crate) async fn of(world: &World, node: &str) -> Self {
        let user = format!("system:node:{node}");
        Self {
            client: connect(&world.cluster.kubeconfig_as(&user)).await,
        }
    }

    /// Asks; gives the request's name.
    pub(crate) async fn asks(&self, spec: Value) -> kube::Result<String> {
        let body = json!({"metadata": {"generateName": "req-agent-"}, "spec": spec});
        let made = ask(&self.client, "POST", &requests(), &body).await?;
        Ok(made["metadata"]["name"].as_str().unwrap().to_owned())
    }
}

/// What the kubelet asks for that pod, with a PKCS#10 request as Kubernetes 1.36 has it.
pub(crate) async fn spec(world: &World, pod: &Value, request: &[u8]) -> Value {
    let node = pod["spec"]["nodeName"].as_str().unwrap_or(NODE);
    let path = format!("/api/v1/nodes/{node}");
    let node = world.ask("GET", &path, &Value::Null).await.unwrap();
    json!({
        "signerName": SIGNER,
        "podName": pod["metadata"]["name"],
        "podUID": pod["metadata"]["uid"],
        "serviceAccountName": pod["spec"]["serviceAccountName"],
        "serviceAccountUID": "0e5d9f2c-1d0f-4a83-bd60-0e3a43b0c8a1",
        "nodeName": node["metadata"]["name"],
        "nodeUID": node["metadata"]["uid"],
        "maxExpirationSeconds": 43_200,
        "stubPKCS10Request": STANDARD.encode(request),
    })
}

/// The request's status, once it is answered.
pub(crate) async fn answered(world: &World, name: &str) -> Value {
    let path = format!("{}/{name}", requests());
    world
        .until("an answer", || async {
            let seen = world.ask("GET", &path, &Value::Null).await.unwrap();
            let conditions = seen["status"]["conditions"].as_array();
            conditions?.first()?;
            Some(seen["status"].clone())
        })
        .await
}

/// A pod's projected volume: its files change all at once, by one rename.
pub(crate) struct Volume {
    pub(crate) dir: PathBuf,
    written: u32,
}

impl Volume {
    pub(crate) fn new(dir: PathBuf) -> Self {
        std::fs::create_dir_all(&dir).unwrap();
        Self { dir, written: 0 }
    }

    /// A new key, asked for by the kubelet of [`NODE`] for the agent's pod there, with its certificate and the
    /// controller's CA.
    pub(crate) async fn renew(&mut self, world: &World, kubelet: &Kubelet) {
        let key = KeyRequest::generate().unwrap();
        let spec = spec(world, &world.agent_pod().await, &key.request).await;
        let name = kubelet.asks(spec).await.unwrap();
        let status = answered(world, &name).await;
        assert_eq!(status["conditions"][0]["type"], "Issued", "{status}");
        let chain = status["certificateChain"].as_str().unwrap();
        let ca = std::fs::read_to_string(world.controller_ca()).unwrap();
        let bundle = format!("{}{chain}", *key.key);
        self.write(&[("credentials.pem", &bundle), ("controller-ca.crt", &ca)]);
    }

    fn write(&mut self, files: &[(&str, &str)]) {
        self.written += 1;
        let version = format!("..version-{}", self.written);
        std::fs::create_dir(self.dir.join(&version)).unwrap();
        for (name, text) in files {
            std::fs::write(self.dir.join(&version).join(name), text).unwrap();
        }
        symlink(&version, self.dir.join("..data_tmp")).unwrap();
        std::fs::rename(self.dir.join("..data_tmp"), self.dir.join("..data")).unwrap();
        for (name, _) in files {
            let visible = self.dir.join(name);
            if !visible.is_symlink() {
                symlink(Path::new("..data").join(name), visible).unwrap();
            }
        }
    }
}
