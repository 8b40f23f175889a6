//! A cluster with a DaemonSet of agents, and an issuer that listens.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use impound_agent::enroll::Enrolment;
use impound_controller::issue::{AUDIENCE, AgentIssuer, REQUEST_LIMIT, Rules, Service};
use impound_controller::revoked::{self, CONFIG_MAP, Revoked};
use impound_proto::issuer::v1::issuer_client::IssuerClient;
use impound_proto::issuer::v1::issuer_server::IssuerServer;
use impound_proto::issuer::v1::{IssueAgentCertificateRequest, IssueAgentCertificateResponse};
use impound_proto::pki::{Ca, KeyRequest, Plan, init};
use impound_proto::tls::{
    Connector, Credentials, TlsFiles, connect_with, http2, incoming_open, open_server_credentials,
};
use impound_proto::{NodeName, PeerId};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use kube_memory::{Cluster, ClusterConfig};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tonic::transport::Server;
use tonic::{Code, Status};

pub(crate) const NAMESPACE: &str = "impound-system";
pub(crate) const NODE: &str = "k8s-worker2";
/// The issuer's user.
pub(crate) const ISSUER: &str = "impound";

pub(crate) struct World {
    pub(crate) cluster: Cluster,
    pub(crate) client: Client,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) issuer: String,
    pub(crate) revoked: Revoked,
    pub(crate) answering: Arc<AgentIssuer>,
}

impl World {
    /// An issuer whose certificates live for `life`.
    pub(crate) async fn start(life: time::Duration) -> Self {
        Self::start_in(ClusterConfig::default(), life).await
    }

    /// The same in a cluster that is set up like that.
    pub(crate) async fn start_in(config: ClusterConfig, life: time::Duration) -> Self {
        let cluster = Cluster::start(config).await.unwrap();
        // The issuer has a user of its own, so that the log of the API tells its calls from ours.
        let client = connect(&cluster.kubeconfig()).await;
        let issuers = connect(&cluster.kubeconfig_as(ISSUER)).await;
        let dir = tempfile::tempdir().unwrap();
        let pki = dir.path().join("pki");
        init(&pki, &Plan::default()).unwrap();
        let read = |name: &str| std::fs::read_to_string(pki.join("ca").join(name)).unwrap();
        let ca = Ca::from_pem(&read("agent-ca.crt"), &read("agent-ca.key")).unwrap();
        let rules = Rules {
            namespace: NAMESPACE.into(),
            service_account: "impound-agent".into(),
            daemon_set: "impound-agent".into(),
        };
        let (revoked, watch) = revoked::list();
        tokio::spawn({
            let client = issuers.clone();
            async move { watch.run(client, NAMESPACE).await }
        });
        let issuer = AgentIssuer::new(issuers, ca, rules, life, revoked.clone());
        let (credentials, _) = open_server_credentials(
            TlsFiles::in_dir(&pki.join("controller"), "agent-ca.crt"),
            PeerId::Controller,
        )
        .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(
            http2::server(Server::builder())
                .add_service(
                    IssuerServer::new(Service(issuer.clone()))
                        .max_decoding_message_size(REQUEST_LIMIT),
                )
                .serve_with_incoming(incoming_open(listener, credentials)),
        );
        let world = Self {
            cluster,
            client,
            dir,
            issuer: address,
            revoked,
            answering: issuer,
        };
        world.furnish().await;
        world
    }

    async fn furnish(&self) {
        self.post(
            "/api/v1/namespaces",
            json!({"metadata": {"name": NAMESPACE}}),
        )
        .await;
        for account in ["impound-agent", "other"] {
            let path = format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts");
            self.post(&path, json!({"metadata": {"name": account}}))
                .await;
        }
        self.post(
            &format!("/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets"),
            json!({"metadata": {"name": "impound-agent"}, "spec": {
                "selector": {"matchLabels": {"app": "agent"}},
                "template": {"metadata": {"labels": {"app": "agent"}}, "spec": {
                    "serviceAccountName": "impound-agent", "tolerations": [{"operator": "Exists"}],
                    "containers": [{"name": "agent", "image": "impound-agent"}]}}}}),
        )
        .await;
        self.until("the list of revoked nodes is read", || async {
            self.revoked.is_known().then_some(())
        })
        .await;
    }

    pub(crate) async fn until<T, F: Future<Output = Option<T>>>(
        &self,
        what: &str,
        mut look: impl FnMut() -> F,
    ) -> T {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(found) = look().await {
                return found;
            }
            assert!(tokio::time::Instant::now() < deadline, "not seen: {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub(crate) async fn ask(&self, method: &str, path: &str, body: &Value) -> kube::Result<Value> {
        ask(&self.client, method, path, body).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Value {
        self.ask("POST", path, &body).await.unwrap()
    }

    /// Puts the node with this uid on the list of those that get no certificate.
    pub(crate) async fn revoke(&self, uid: &str, reason: &str) {
        let maps = format!("/api/v1/namespaces/{NAMESPACE}/configmaps");
        let list = json!({"metadata": {"name": CONFIG_MAP}, "data": {uid: reason}});
        self.post(&maps, list).await;
        self.until("the revocation", || async { self.revoked.reason(uid) })
            .await;
    }

    /// The agent's pod on [`NODE`].
    pub(crate) async fn agent_pod(&self) -> Value {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=app=agent");
        self.until("the agent's pod", || async {
            let pods = self.ask("GET", &path, &Value::Null).await.unwrap();
            let pods = pods["items"].as_array().unwrap().clone();
            pods.into_iter().find(|pod| pod["spec"]["nodeName"] == NODE)
        })
        .await
    }

    /// A token of a service account, bound to a pod if one is given.
    pub(crate) async fn token(&self, account: &str, audience: &str, pod: Option<&Value>) -> String {
        let mut body = json!({"spec": {"audiences": [audience], "expirationSeconds": 600}});
        if let Some(pod) = pod {
            body["spec"]["boundObjectRef"] = json!({"kind": "Pod", "apiVersion": "v1",
                "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]});
        }
        let path = format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{account}/token");
        let made = self.post(&path, body).await;
        made["status"]["token"].as_str().unwrap().to_owned()
    }

    /// A token as the kubelet projects it into the agent's pod on [`NODE`].
    pub(crate) async fn good_token(&self) -> String {
        let pod = self.agent_pod().await;
        self.token("impound-agent", AUDIENCE, Some(&pod)).await
    }

    pub(crate) fn controller_ca(&self) -> PathBuf {
        self.dir.path().join("pki/ca/controller-ca.crt")
    }

    /// Asks as an agent would.
    pub(crate) async fn issue(
        &self,
        token: &str,
        certificate_request: Vec<u8>,
    ) -> Result<IssueAgentCertificateResponse, Status> {
        let own = PeerId::agent(NODE).unwrap();
        let credentials = Credentials::without_certificate(own, &self.controller_ca()).unwrap();
        let connector = Connector::new(credentials, PeerId::Controller).unwrap();
        let (channel, _) = connect_with(&self.issuer, connector).await.unwrap();
        let request = IssueAgentCertificateRequest {
            token: token.into(),
            certificate_request,
        };
        let mut client = IssuerClient::new(channel);
        client
            .issue_agent_certificate(request)
            .await
            .map(tonic::Response::into_inner)
    }

    /// A new key's request is refused with this code and a reason that contains `reason`.
    pub(crate) async fn refuses(&self, token: &str, code: Code, reason: &str) {
        let status = self
            .issue(token, KeyRequest::generate().unwrap().request)
            .await
            .expect_err(reason);
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(reason), "{status}");
        assert!(!status.message().contains(token), "no token in a message");
    }

    pub(crate) async fn enrolment(&self, node: &str) -> Enrolment {
        let token = self.dir.path().join("token");
        std::fs::write(&token, self.good_token().await).unwrap();
        let tls_dir = self.dir.path().join("agent");
        std::fs::create_dir_all(&tls_dir).unwrap();
        Enrolment {
            issuer: self.issuer.clone(),
            token,
            controller_ca: self.controller_ca(),
            tls_dir,
            node: node.parse::<NodeName>().unwrap(),
        }
    }
}

pub(crate) async fn ask(
    client: &Client,
    method: &str,
    path: &str,
    body: &Value,
) -> kube::Result<Value> {
    let bytes = if body.is_null() {
        Vec::new()
    } else {
        body.to_string().into_bytes()
    };
    let kind = if method == "PATCH" {
        "application/merge-patch+json"
    } else {
        "application/json"
    };
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", kind);
    client.request(request.body(bytes).unwrap()).await
}

pub(crate) async fn connect(kubeconfig: &str) -> Client {
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig).unwrap();
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .unwrap();
    config.default_retry = false;
    Client::try_from(config).unwrap()
}
