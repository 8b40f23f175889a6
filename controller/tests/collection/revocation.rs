//! A node that is not trusted any more: nothing that is open to its agent stays open.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use impound_controller::agents::{AgentConnector, AgentError};
use impound_controller::revoked::{self, CONFIG_MAP};
use impound_proto::PeerId;
use impound_proto::agent::v1::InfoRequest;
use impound_proto::tls::{Peers, TlsFiles, client_credentials};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use kube_memory::{Cluster, ClusterConfig};
use serde_json::json;

use crate::agent::{FakeAgent, Fault};
use crate::fixture::{NODE, Nodes};

#[tokio::test]
async fn a_revocation_ends_what_runs_on_every_connection_to_the_node_also_on_those_that_are_not_kept()
 {
    let dir = tempfile::tempdir().unwrap();
    let plan = impound_proto::pki::Plan {
        nodes: vec![NODE.parse().unwrap()],
        ..Default::default()
    };
    impound_proto::pki::init(dir.path(), &plan).unwrap();
    let cluster = Cluster::start(ClusterConfig::default()).await.unwrap();
    let kubeconfig = Kubeconfig::from_yaml(&cluster.kubeconfig()).unwrap();
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
    let client = Client::try_from(config.unwrap()).unwrap();
    let (revoked, watch) = revoked::list();
    tokio::spawn({
        let client = client.clone();
        async move { watch.run(client, "default").await }
    });

    let agent = FakeAgent::new(NODE);
    let (port, _serving) = agent.serve(&dir.path().join("agents").join(NODE)).await;
    let files = TlsFiles::in_dir(&dir.path().join("controller"), "agent-ca.crt");
    let (credentials, _) = client_credentials(files, Peers::Only(PeerId::Controller)).unwrap();
    let connector = AgentConnector::new(
        credentials,
        Arc::new(Nodes(Mutex::new(port))),
        revoked.clone(),
    );
    tokio::spawn({
        let connector = connector.clone();
        async move { connector.cut_revoked().await }
    });

    let mut first = connector.connect(NODE).await.unwrap();
    let next = agent.state.lock().unwrap().begun;
    agent.state.lock().unwrap().hang_at = Some(next + 1);
    let running = tokio::spawn(async move { first.client.info(InfoRequest {}).await });
    until("a call that is not answered", || {
        agent.state.lock().unwrap().hung
    })
    .await;
    // The connector forgets the connection that this happens on, and makes another; the call goes on.
    agent.fail("info", Fault::Status(tonic::Code::Unavailable));
    assert!(connector.connect(NODE).await.is_err());
    let mut second = connector.connect(NODE).await.unwrap();
    assert!(!running.is_finished());

    let list = json!({"metadata": {"name": CONFIG_MAP}, "data": {"uid-node": "rootkit found"}});
    let list: ConfigMap = serde_json::from_value(list).unwrap();
    let maps = Api::<ConfigMap>::namespaced(client, "default");
    maps.create(&PostParams::default(), &list).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(60), running).await;
    ended.expect("the call ends").unwrap().unwrap_err();
    second.client.info(InfoRequest {}).await.unwrap_err();
    let refused = connector.connect(NODE).await;
    assert!(matches!(refused, Err(AgentError::Revoked { .. })));
}

async fn until(what: &str, so: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while !so() {
        assert!(tokio::time::Instant::now() < deadline, "not seen: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
