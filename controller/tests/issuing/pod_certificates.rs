//! Certificates that kubelets ask for in the name of the agents' pods.

use std::process::Stdio;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use impound_proto::PeerId;
use impound_proto::pki::KeyRequest;
use impound_proto::tls::{Peers, ShownCertificate, TlsFiles, client_credentials, connect_shown};
use kube_memory::ClusterConfig;
use rcgen::{KeyPair, PublicKeyData};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::kubelet::{
    Kubelet, Volume, allow_signing, answer, answered, requests, spec, world_with_pod_certificates,
};
use crate::world::{NAMESPACE, NODE, World};

const LIFE: time::Duration = time::Duration::hours(12);

#[tokio::test]
async fn an_agent_serves_with_what_its_kubelet_got_for_it_and_with_the_next_one_without_a_restart()
{
    let world = world_with_pod_certificates(LIFE).await;
    let kubelet = Kubelet::of(&world, NODE).await;
    let mut volume = Volume::new(world.dir.path().join("volume"));
    volume.renew(&world, &kubelet).await;
    let agent = Agent::start(&world, &volume).await;
    let (channel, shown) = agent.connect(&world).await;
    let mut client = HealthClient::new(channel);
    client.check(HealthCheckRequest::default()).await.unwrap();
    let first = shown.sha256().unwrap();
    volume.renew(&world, &kubelet).await;
    world
        .until("the next certificate", || async {
            let (_, shown) = agent.connect(&world).await;
            (shown.sha256().unwrap() != first).then_some(())
        })
        .await;
    client
        .check(HealthCheckRequest::default())
        .await
        .expect("the connection is the same as before");
}

#[tokio::test]
async fn a_status_says_what_the_certificate_does_and_the_names_are_ours() {
    let world = world_with_pod_certificates(LIFE).await;
    let kubelet = Kubelet::of(&world, NODE).await;
    // A request that asks to be the controller.
    let key = KeyPair::generate().unwrap();
    let names = vec!["controller.impound.internal".to_owned()];
    let params = rcgen::CertificateParams::new(names).unwrap();
    let request = params.serialize_request(&key).unwrap().der().to_vec();
    let mut spec = spec(&world, &world.agent_pod().await, &request).await;
    spec["maxExpirationSeconds"] = json!(7200);
    let name = kubelet.asks(spec).await.unwrap();
    let status = answered(&world, &name).await;
    let chain = status["certificateChain"].as_str().unwrap();
    let der = CertificateDer::from_pem_slice(chain.as_bytes()).unwrap();
    assert_eq!(
        PeerId::from_certificate(&der).unwrap(),
        PeerId::agent(NODE).unwrap()
    );
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
    assert_eq!(parsed.public_key().raw, key.subject_public_key_info());
    let usage = parsed.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && !usage.client_auth);
    let life = parsed.validity().not_after.timestamp() - parsed.validity().not_before.timestamp();
    assert_eq!(life, 7200, "no longer than was asked for");
    let path = format!("/api/v1/nodes/{NODE}");
    let node = world.ask("GET", &path, &Value::Null).await.unwrap();
    assert_eq!(
        PeerId::node_uid(&der).unwrap().as_deref(),
        node["metadata"]["uid"].as_str(),
        "a node is revoked by that"
    );
}

#[tokio::test]
async fn a_key_with_a_signature_over_the_pods_uid_is_certified_as_kubernetes_1_35_asks() {
    let world = world_with_pod_certificates(LIFE).await;
    let kubelet = Kubelet::of(&world, NODE).await;
    let pod = world.agent_pod().await;
    let key = KeyPair::generate().unwrap();
    let proof = sign(&key, pod["metadata"]["uid"].as_str().unwrap());
    let name = kubelet
        .asks(with_key(spec(&world, &pod, &[]).await, &key, &proof))
        .await
        .unwrap();
    let status = answered(&world, &name).await;
    assert_eq!(status["conditions"][0]["type"], "Issued", "{status}");
}

#[tokio::test]
async fn what_a_kubelet_asks_that_is_not_for_an_agent_of_its_node_is_denied_with_the_reason() {
    let world = world_with_pod_certificates(LIFE).await;
    let pods = format!("/api/v1/namespaces/{NAMESPACE}/pods");
    let pod_of = |name: &str, account: &str| {
        json!({"metadata": {"name": name}, "spec": {"serviceAccountName": account,
            "nodeName": NODE, "containers": [{"name": "c", "image": "busybox:1"}]}})
    };
    let agent = world.agent_pod().await;
    let rogue = world.post(&pods, pod_of("rogue", "impound-agent")).await;
    let other = world.post(&pods, pod_of("other", "other")).await;
    let request = KeyRequest::generate().unwrap().request;
    let good = spec(&world, &agent, &request).await;
    let changed = |field: &str, value: Value| {
        let mut spec = good.clone();
        spec[field] = value;
        spec
    };
    let (ours, others) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let uid = agent["metadata"]["uid"].as_str().unwrap();
    let of_another_key = with_key(good.clone(), &ours, &sign(&others, uid));
    let of_another_pod = with_key(good.clone(), &ours, &sign(&ours, "another"));
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let p384 = rcgen::CertificateParams::default()
        .serialize_request(&p384)
        .unwrap();
    let node3 = world
        .ask("GET", "/api/v1/nodes/k8s-worker3", &Value::Null)
        .await
        .unwrap();
    let mut elsewhere = changed("nodeName", json!("k8s-worker3"));
    elsewhere["nodeUID"] = node3["metadata"]["uid"].clone();
    let cases = [
        (
            "a pod of another service account",
            spec(&world, &other, &request).await,
            "NotAnAgent",
            "expected a pod of the service account impound-agent, other is one of \"other\"",
        ),
        (
            "one that says it is of ours",
            {
                let mut spec = spec(&world, &other, &request).await;
                spec["serviceAccountName"] = json!("impound-agent");
                spec
            },
            "NotAnAgent",
            "other is one of \"other\"",
        ),
        (
            "a pod of no DaemonSet",
            spec(&world, &rogue, &request).await,
            "NotAnAgent",
            "does not belong to the DaemonSet impound-system/impound-agent",
        ),
        (
            "a pod that there was",
            changed("podUID", json!("another")),
            "NotAnAgent",
            "is gone",
        ),
        (
            "a pod that there never was",
            changed("podName", json!("impound-agent-none")),
            "NotAnAgent",
            "is gone",
        ),
        (
            "another node's pod",
            elsewhere,
            "NotAnAgent",
            "is on node k8s-worker2, and what it shows says k8s-worker3",
        ),
        (
            "a node that there was",
            changed("nodeUID", json!("another")),
            "NotAnAgent",
            "node k8s-worker2 is gone",
        ),
        (
            "a key of another kind",
            changed("stubPKCS10Request", json!(STANDARD.encode(p384.der()))),
            "UnsupportedKeyType",
            "ECDSAP256",
        ),
        ("another's proof", of_another_key, "NotProven", "ECDSA"),
        (
            "a proof for another pod",
            of_another_pod,
            "NotProven",
            "ECDSA",
        ),
        (
            "annotations",
            changed(
                "unverifiedUserAnnotations",
                json!({"example.org/name": "controller"}),
            ),
            "InvalidUnverifiedUserAnnotations",
            "example.org/name",
        ),
    ];
    // Some of it no kubelet could ask for: the API server keeps it from that. So somebody asks who may ask anything.
    for (what, spec, reason, why) in cases {
        denies(&world, what, spec, reason, why).await;
    }
    // The agent's own pod, once it has ended; and a node that is not trusted any more.
    let name = agent["metadata"]["name"].as_str().unwrap();
    let uid = good["nodeUID"].as_str().unwrap().to_owned();
    world.revoke(&uid, "rootkit found").await;
    denies(
        &world,
        "a revoked node",
        good.clone(),
        "NodeRevoked",
        &format!(
            "rootkit found. Once that is taken back: kubectl delete pod -n {NAMESPACE} {name};"
        ),
    )
    .await;
    world.cluster.hold_controllers(true);
    let ended = json!({"status": {"phase": "Failed"}});
    let path = format!("{pods}/{name}/status");
    world.ask("PATCH", &path, &ended).await.unwrap();
    denies(
        &world,
        "a pod that has ended",
        good,
        "NotAnAgent",
        "has ended",
    )
    .await;
}

async fn denies(world: &World, what: &str, spec: Value, reason: &str, why: &str) {
    let body = json!({"metadata": {"generateName": "req-"}, "spec": spec});
    let made = world.post(&requests(), body).await;
    let status = answered(world, made["metadata"]["name"].as_str().unwrap()).await;
    let condition = &status["conditions"][0];
    assert_eq!(condition["type"], "Denied", "{what}: {status}");
    assert_eq!(condition["reason"], reason, "{what}: {status}");
    let said = condition["message"].as_str().unwrap();
    assert!(said.contains(why), "{what}: {said}");
    assert!(status.get("certificateChain").is_none(), "{what}: {status}");
}

#[tokio::test]
async fn requests_of_other_signers_are_left_alone() {
    let world = world_with_pod_certificates(LIFE).await;
    let kubelet = Kubelet::of(&world, NODE).await;
    let request = KeyRequest::generate().unwrap().request;
    let ours = spec(&world, &world.agent_pod().await, &request).await;
    let mut theirs = ours.clone();
    theirs["signerName"] = json!("example.org/agent");
    let theirs = kubelet.asks(theirs).await.unwrap();
    // Requests come in the order in which they were made.
    let ours = kubelet.asks(ours).await.unwrap();
    answered(&world, &ours).await;
    let written: Vec<String> = world
        .cluster
        .requests()
        .into_iter()
        .filter(|call| call.method == "PATCH" && call.user == crate::world::ISSUER)
        .map(|call| call.path)
        .collect();
    assert!(
        written.iter().any(|path| path.contains(&ours)),
        "{written:?}"
    );
    assert!(
        !written.iter().any(|path| path.contains(&theirs)),
        "{written:?}"
    );
}

#[tokio::test]
async fn without_the_right_to_sign_a_request_stays_open_until_the_right_is_there() {
    let config = ClusterConfig {
        pod_certificates: true,
        ..ClusterConfig::default()
    };
    let world = World::start_in(config, LIFE).await;
    answer(&world).await;
    let kubelet = Kubelet::of(&world, NODE).await;
    let request = KeyRequest::generate().unwrap().request;
    let spec = spec(&world, &world.agent_pod().await, &request).await;
    let name = kubelet.asks(spec).await.unwrap();
    world
        .until("a refusal by the API server", || async {
            let calls = world.cluster.requests();
            calls
                .iter()
                .any(|call| call.method == "PATCH" && call.status == 422)
                .then_some(())
        })
        .await;
    allow_signing(&world).await;
    let status = answered(&world, &name).await;
    assert_eq!(status["conditions"][0]["type"], "Issued", "{status}");
}

fn sign(key: &KeyPair, message: &str) -> Vec<u8> {
    let (random, der) = (SystemRandom::new(), key.serialize_der());
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &der, &random).unwrap();
    let signature = key.sign(&random, message.as_bytes()).unwrap();
    signature.as_ref().to_vec()
}

/// As Kubernetes 1.35 asks: the key by itself.
fn with_key(mut spec: Value, key: &KeyPair, proof: &[u8]) -> Value {
    spec.as_object_mut().unwrap().remove("stubPKCS10Request");
    spec["pkixPublicKey"] = json!(STANDARD.encode(key.subject_public_key_info()));
    spec["proofOfPossession"] = json!(STANDARD.encode(proof));
    spec
}

/// A process of the agent, as its pod runs it.
struct Agent {
    address: String,
    _process: Child,
}

impl Agent {
    async fn start(world: &World, volume: &Volume) -> Self {
        // Beside the tests' own directory; built with them.
        let tests = std::env::current_exe().unwrap();
        let program = tests.ancestors().nth(2).unwrap().join("impound-agent");
        assert!(
            program.exists(),
            "{} is missing: `cargo nextest run --workspace` builds it, or `cargo build -p impound-agent`",
            program.display()
        );
        let at = |name: &str| world.dir.path().join(name).display().to_string();
        let mut process = Command::new(program)
            .args(["--node", NODE, "--listen", "127.0.0.1:0"])
            .args(["--tls-dir", volume.dir.to_str().unwrap()])
            .args(["--tls-bundle", "credentials.pem"])
            .args(["--docker-socket", &at("no-engine.sock")])
            .args(["--docker-root", &at("."), "--state-dir", &at("state")])
            .env_remove("RUST_LOG")
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut log = BufReader::new(process.stderr.take().unwrap()).lines();
        let mut said = String::new();
        let serving = async {
            while let Some(line) = log.next_line().await.unwrap() {
                let entry: Value = serde_json::from_str(&line).unwrap_or_default();
                if entry["message"] == "serving" {
                    return entry["address"].as_str().map(str::to_owned);
                }
                said.push_str(&line);
            }
            None
        };
        let address = tokio::time::timeout(Duration::from_secs(60), serving).await;
        let Ok(Some(address)) = address else {
            panic!("the agent does not serve: {said}");
        };
        // Whoever writes into a pipe that nobody reads ends.
        tokio::spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });
        Self {
            address,
            _process: process,
        }
    }

    /// As the controller.
    async fn connect(&self, world: &World) -> (Channel, ShownCertificate) {
        let files = TlsFiles::in_dir(&world.dir.path().join("pki/controller"), "agent-ca.crt");
        let (credentials, _) = client_credentials(files, Peers::Only(PeerId::Controller)).unwrap();
        connect_shown(&self.address, credentials, PeerId::agent(NODE).unwrap())
            .await
            .unwrap()
    }
}
