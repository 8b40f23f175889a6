//! An installation to be refused by: a controller with all its ports, an agent whose runtime notes what it is asked,
//! and the logs of both.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use impound_agent::runtime::docker::Docker;
use impound_agent::{Agent, Disk};
use impound_controller::service::AUDIENCE;
use impound_proto::agent::v1::agent_client::AgentClient;
use impound_proto::controller::v1 as wire;
use impound_proto::controller::v1::controller_client::ControllerClient;
use impound_proto::issuer::v1::IssueAgentCertificateRequest;
use impound_proto::issuer::v1::issuer_client::IssuerClient;
use impound_proto::pki::{Ca, Issued, LEAF_LIFE, Validity};
use impound_proto::tls::{self, Credentials, Peers, TlsFiles};
use impound_proto::{PeerId, Role};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::{binding, quarantine};
use crate::world::{World, eventually, free_port};

pub(super) const NODE: &str = "k8s-worker2";

/// How long the certificates last that end while their connections are open: two handshakes have to be made before.
const A_WHILE: time::Duration = time::Duration::seconds(20);

/// Calls of one caller at the same time, as the controller is told.
const AT_ONCE: usize = 8;

/// What an attempt comes to: Err says how it was refused.
type Attempt = BoxFuture<'static, Result<(), Status>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Port {
    Agent,
    Controller,
    Issuer,
}

pub(super) struct Scene {
    pub(super) world: World,
    agent: SocketAddr,
    issuer: SocketAddr,
    agent_log: Log,
    /// First lines of the requests to the agent's runtime.
    engine: Arc<Mutex<Vec<String>>>,
    /// Cases so far.
    pub(super) refused: usize,
}

impl Scene {
    pub(super) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With further arguments of the controller.
    pub(super) async fn start_with(arguments: &[&str]) -> Self {
        let agent_log = Log::start();
        let mut world = World::in_memory_without_controller().await;
        let issuer = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let pki = world.dir.path().join("pki");
        let agent_ca = world.dir.path().join("agent-ca");
        std::fs::create_dir(&agent_ca).unwrap();
        for end in ["crt", "key"] {
            let from = pki.join(format!("ca/agent-ca.{end}"));
            std::fs::copy(from, agent_ca.join(format!("ca.{end}"))).unwrap();
        }
        let namespace = world.namespace.clone();
        world.arguments = [
            "--kubernetes-tokens".to_owned(),
            "--caller-rate=20".to_owned(),
            format!("--caller-calls={AT_ONCE}"),
            format!("--issuer-listen={issuer}"),
            format!("--agent-ca-dir={}", agent_ca.display()),
            format!("--agent-namespace={namespace}"),
        ]
        .to_vec();
        let further = arguments.iter().map(|argument| (*argument).to_owned());
        world.arguments.extend(further);
        // No agent is there, and what waits for one goes on to wait.
        world.about_agents = [
            "--agent-port=1",
            "--agent-patience=600",
            "--no-node-isolation",
        ]
        .map(String::from)
        .to_vec();
        world.start_controller().await;
        let engine = Arc::new(Mutex::new(Vec::new()));
        let socket = world.dir.path().join("engine.sock");
        tokio::spawn(listen_as_engine(
            UnixListener::bind(&socket).unwrap(),
            engine.clone(),
        ));
        let agent = serve_agent(pki.join("agents").join(NODE), socket).await;
        let scene = Self {
            world,
            agent,
            issuer,
            agent_log,
            engine,
            refused: 0,
        };
        scene.furnish().await;
        scene
    }

    /// Service accounts, agents' pods, and the roles that deploy/ installs with who is bound to them.
    async fn furnish(&self) {
        for account in ["impound-agent", "other"] {
            self.world
                .create(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account}}))
                .await;
        }
        let template = json!({"metadata": {"labels": {"app": "agent"}}, "spec": {
            "serviceAccountName": "impound-agent", "tolerations": [{"operator": "Exists"}],
            "containers": [{"name": "agent", "image": "impound-agent"}]}});
        self.world
            .create(json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "impound-agent"},
                "spec": {"selector": {"matchLabels": {"app": "agent"}}, "template": template}}))
            .await;
        let installed = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../deploy/kustomize/components/kubernetes-tokens/roles.yaml"
        );
        let rbac = "/apis/rbac.authorization.k8s.io/v1";
        let mut roles = 0;
        for document in std::fs::read_to_string(installed).unwrap().split("\n---\n") {
            let object: Value = serde_saphyr::from_str(document).unwrap();
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            if object["kind"] == "ClusterRole" && name.starts_with("impound-access-") {
                self.post(&format!("{rbac}/clusterroles"), object).await;
                roles += 1;
            }
        }
        assert_eq!(roles, 3, "deploy/ has a role for each of ours");
        let here = format!("{rbac}/namespaces/{}/rolebindings", self.world.namespace);
        let soar = binding("RoleBinding", "soar", "impound-access-responder", "soar");
        let looker = binding("RoleBinding", "looker", "impound-access-viewer", "looker");
        let auditor = binding(
            "ClusterRoleBinding",
            "auditor",
            "impound-access-custodian",
            "auditor",
        );
        let warden = binding(
            "RoleBinding",
            "warden",
            "impound-access-custodian",
            "warden",
        );
        self.post(&here, soar).await;
        self.post(&here, warden).await;
        self.post(&here, looker).await;
        self.post(&format!("{rbac}/clusterrolebindings"), auditor)
            .await;
    }

    pub(super) fn namespace(&self) -> String {
        self.world.namespace.clone()
    }

    pub(super) fn address(&self, port: Port) -> SocketAddr {
        match port {
            Port::Agent => self.agent,
            Port::Controller => self.world.address(),
            Port::Issuer => self.issuer,
        }
    }

    /// Tries what must be refused: once, with one line in the log of who refused it that says why, and with no call.
    pub(super) async fn refuses<E: ToString>(
        &mut self,
        port: Port,
        what: &str,
        why: &str,
        attempt: impl Future<Output = Result<(), E>>,
    ) {
        self.refuse(1, port, what, why, attempt).await;
    }

    /// The same of so many attempts together.
    pub(super) async fn refuse<E: ToString>(
        &mut self,
        count: usize,
        port: Port,
        what: &str,
        why: &str,
        attempt: impl Future<Output = Result<(), E>>,
    ) {
        let before = (self.lines(port).len(), self.api_calls(port).len());
        let told = attempt.await;
        let told = match told {
            Ok(()) => panic!("{port:?}: {what}: let in"),
            Err(told) => told.to_string(),
        };
        let lines = eventually("the refusal is logged", || async {
            let lines = self.lines(port).split_off(before.0);
            match lines.len() >= count {
                true => Ok(lines),
                false => Err(format!("{port:?}: {what} (told {told:?}): {lines:?}")),
            }
        })
        .await;
        assert_eq!(lines.len(), count, "{port:?}: {what}: {lines:#?}");
        for line in &lines {
            assert!(
                line.contains(why),
                "{port:?}: {what}: expected {why:?} in {line}"
            );
        }
        let calls = self.api_calls(port).split_off(before.1);
        assert!(calls.is_empty(), "{port:?}: {what}: {calls:#?}");
        let engine = self.engine.lock().unwrap().clone();
        assert!(engine.is_empty(), "{port:?}: {what}: {engine:?}");
        self.refused += count;
    }

    /// The same of a call that is answered with this code.
    pub(super) async fn denies(&mut self, what: &str, code: Code, why: &str, attempt: Attempt) {
        let attempt = async {
            let status = match attempt.await {
                Ok(()) => return Ok(()),
                Err(status) => status,
            };
            assert_eq!(status.code(), code, "{what}: {status}");
            assert!(status.message().contains(why), "{what}: {status}");
            if code == Code::ResourceExhausted {
                assert!(
                    !status.details().is_empty(),
                    "{what}: says when to come again"
                );
                assert!(
                    status.metadata().contains_key("grpc-retry-pushback-ms"),
                    "{what}"
                );
            }
            Err(status)
        };
        let outcome = format!("\"outcome\":\"{code:?}\"");
        self.refuses(Port::Controller, what, &outcome, attempt)
            .await;
    }

    /// All lines of refusals in both logs.
    pub(super) fn refusals_logged(&self) -> usize {
        let ports = [Port::Agent, Port::Controller];
        ports.into_iter().map(|port| self.lines(port).len()).sum()
    }

    /// The lines in the log of whoever listens there that say that somebody was refused.
    fn lines(&self, port: Port) -> Vec<String> {
        let log = match port {
            Port::Agent => self.agent_log.text(),
            Port::Controller | Port::Issuer => self.world.log(),
        };
        let is_refusal = |line: &&str| {
            let Ok(line) = serde_json::from_str::<Value>(line) else {
                return false;
            };
            let message = line["fields"]["message"].as_str().unwrap_or_default();
            line["level"] == "WARN"
                && [
                    "refused a peer",
                    "refused a call",
                    "refused an agent's certificate",
                    "call",
                ]
                .contains(&message)
        };
        log.lines().filter(is_refusal).map(str::to_owned).collect()
    }

    /// What the controller asked the Kubernetes API, without what it asks by itself all the time, and without what a
    /// token is checked with.
    fn api_calls(&self, port: Port) -> Vec<String> {
        let mut aside = vec![
            "/leases",
            "/selfsubjectreviews",
            "/admissionregistration",
            "/events",
            "/version",
            "watch=true",
            "/tokenreviews",
            "/subjectaccessreviews",
        ];
        if port == Port::Issuer {
            // Whether the token's pod and node are there.
            aside.extend(["/pods/", "/nodes/"]);
        }
        let requests = self.world.requests().into_iter();
        requests
            .filter(|request| !aside.iter().any(|aside| request.path.contains(aside)))
            .map(|request| format!("{} {}", request.method, request.path))
            .collect()
    }

    /// That the refused ones were not refused because everybody is.
    pub(super) async fn everybody_else_is_let_in(&self) {
        let namespace = self.namespace();
        let bob = impound_proto::Namespaces::only([&*namespace]).unwrap();
        let bob = PeerId::responder_in("bob", Role::Responder, bob).unwrap();
        let soar = self
            .stranger(&format!("Bearer {}", self.token_of("soar", AUDIENCE)))
            .await;
        let looker = self
            .stranger(&format!("bearer {}", self.token_of("looker", AUDIENCE)))
            .await;
        let auditor = self
            .stranger(&format!("Bearer {}", self.token_of("auditor", AUDIENCE)))
            .await;
        for (what, good) in [
            (
                "bob looks",
                self.caller(&bob).await.list_quarantines(&namespace),
            ),
            ("soar looks", soar.list_quarantines(&namespace)),
            ("looker looks", looker.list_quarantines(&namespace)),
            ("auditor looks everywhere", auditor.list_quarantines("")),
        ] {
            good.await
                .unwrap_or_else(|status| panic!("{what}: {status}"));
        }
        // There is no such pod: whoever is told so was let through.
        for (what, through) in [
            (
                "bob quarantines",
                self.caller(&bob).await.quarantine_dry(&namespace),
            ),
            ("soar quarantines", soar.quarantine_dry(&namespace)),
        ] {
            let status = through.await.expect_err(what);
            assert_eq!(status.code(), Code::NotFound, "{what}: {status}");
        }
        let status = auditor.read_evidence().await.expect_err("there is none");
        assert_eq!(status.code(), Code::NotFound, "{status}");
    }

    pub(super) fn ca(&self, name: &str) -> Ca {
        let read = |end| std::fs::read_to_string(self.pki(&format!("ca/{name}.{end}"))).unwrap();
        Ca::from_pem(&read("crt"), &read("key")).unwrap()
    }

    pub(super) fn root(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.pki(&format!("ca/{name}.crt"))).unwrap()
    }

    fn pki(&self, path: &str) -> PathBuf {
        self.world.dir.path().join("pki").join(path)
    }

    pub(super) fn issue(&self, ca: &str, peer: &PeerId) -> Issued {
        let fresh = Validity::from_now(LEAF_LIFE);
        self.ca(ca).issue(peer, &[], fresh).unwrap()
    }

    pub(super) fn expired(&self, ca: &str, peer: &PeerId) -> Issued {
        self.issued_between(ca, peer, -48, -1)
    }

    pub(super) fn early(&self, ca: &str, peer: &PeerId) -> Issued {
        self.issued_between(ca, peer, 1, 48)
    }

    fn issued_between(&self, ca: &str, peer: &PeerId, from: i64, to: i64) -> Issued {
        let now = time::OffsetDateTime::now_utc();
        let validity = Validity {
            not_before: now + time::Duration::hours(from),
            not_after: now + time::Duration::hours(to),
        };
        self.ca(ca).issue(peer, &[], validity).unwrap()
    }

    /// The real controller's way to an agent, with its own certificate.
    pub(super) fn controller_wants(
        &self,
        peer: &PeerId,
        at: SocketAddr,
    ) -> impl Future<Output = Result<(), String>> + use<> {
        let files = TlsFiles::in_dir(&self.pki("controller"), "agent-ca.crt");
        let own = Peers::Only(PeerId::Controller);
        let (credentials, _) = tls::client_credentials(files, own).unwrap();
        let peer = peer.clone();
        async move {
            let connected = tls::connect(&at.to_string(), credentials, peer).await;
            connected.map(drop).map_err(|error| tls::explain(&error))
        }
    }

    /// One of the responders that the installation began with.
    pub(super) async fn responder(&self, name: &str) -> Caller {
        Caller::of(self.world.try_channel(name).await.unwrap())
    }

    /// Anybody with a good certificate of the responder CA.
    pub(super) async fn caller(&self, peer: &PeerId) -> Caller {
        let issued = self.issue("responder-ca", peer);
        let dir = tempfile::tempdir().unwrap();
        let files = TlsFiles::in_dir(dir.path(), "controller-ca.crt");
        std::fs::write(&files.certificate, &issued.certificate).unwrap();
        std::fs::write(&files.key, issued.key.as_bytes()).unwrap();
        std::fs::write(&files.roots, self.root("controller-ca")).unwrap();
        let (credentials, _) = tls::client_credentials(files, Peers::AnyResponder).unwrap();
        self.connected(credentials).await
    }

    /// An open connection to the agent and one to the controller, with certificates that end soon.
    pub(super) async fn connected_for_a_while(&self) -> Ending {
        let soon = |ca: &str, peer: &PeerId, roots: &str| {
            let issued = self
                .ca(ca)
                .issue(peer, &[], Validity::from_now(A_WHILE))
                .unwrap();
            let dir = tempfile::tempdir().unwrap();
            let files = TlsFiles::in_dir(dir.path(), "roots.crt");
            std::fs::write(&files.certificate, &issued.certificate).unwrap();
            std::fs::write(&files.key, issued.key.as_bytes()).unwrap();
            std::fs::write(&files.roots, self.root(roots)).unwrap();
            let own = Peers::Only(peer.clone());
            tls::client_credentials(files, own).unwrap().0
        };
        let alice = PeerId::responder("alice", Role::Custodian).unwrap();
        let alice = soon("responder-ca", &alice, "controller-ca");
        let controller = soon("controller-ca", &PeerId::Controller, "agent-ca");
        let at = self.agent.to_string();
        let node = PeerId::agent(NODE).unwrap();
        let ending = Ending {
            agent: tls::connect(&at, controller, node).await.unwrap(),
            caller: self.connected(alice).await,
            over: Instant::now() + A_WHILE.unsigned_abs() + Duration::from_secs(2),
        };
        // Until then they are as good as any.
        for channel in [&ending.agent, &ending.caller.channel] {
            let mut health = HealthClient::new(channel.clone());
            health.check(HealthCheckRequest::default()).await.unwrap();
        }
        ending
    }

    /// Somebody without a certificate, with this in the header "authorization".
    pub(super) async fn stranger(&self, authorization: &str) -> Caller {
        let roots = self.pki("ca/controller-ca.crt");
        let credentials = Credentials::without_certificate(PeerId::Controller, &roots).unwrap();
        self.connected(credentials).await.with(authorization)
    }

    async fn connected(&self, credentials: Credentials<rustls::ClientConfig>) -> Caller {
        let at = self.world.address().to_string();
        Caller::of(
            tls::connect(&at, credentials, PeerId::Controller)
                .await
                .unwrap(),
        )
    }

    pub(super) fn token_of(&self, user: &str, audience: &str) -> String {
        self.world
            .memory
            .as_ref()
            .unwrap()
            .token_for(user, audience)
    }

    pub(super) async fn token_of_a_deleted_pod(&self) -> String {
        let pod = self.pod("short-lived", "other").await;
        let token = self
            .service_account_token("other", AUDIENCE, Some(&pod))
            .await;
        let path = format!(
            "/api/v1/namespaces/{}/pods/short-lived?gracePeriodSeconds=0",
            self.world.namespace
        );
        self.ask("DELETE", &path, None).await;
        token
    }

    /// A pod with the agents' service account that does not belong to their DaemonSet.
    pub(super) async fn rogue_pod(&self) -> Value {
        self.pod("rogue", "impound-agent").await
    }

    pub(super) async fn pod(&self, name: &str, account: &str) -> Value {
        let path = format!("/api/v1/namespaces/{}/pods", self.world.namespace);
        let pod = json!({"metadata": {"name": name}, "spec": {"serviceAccountName": account, "nodeName": NODE,
            "containers": [{"name": "c", "image": "busybox:1"}]}});
        self.post(&path, pod).await
    }

    pub(super) async fn agent_pod(&self) -> Value {
        let path = format!(
            "/api/v1/namespaces/{}/pods?labelSelector=app=agent",
            self.world.namespace
        );
        eventually("an agent's pod", || async {
            let pods = self.ask("GET", &path, None).await;
            let pods = pods["items"].as_array().unwrap().clone();
            let found = pods.into_iter().find(|pod| pod["spec"]["nodeName"] == NODE);
            found.ok_or_else(|| "none yet".to_owned())
        })
        .await
    }

    pub(super) async fn service_account_token(
        &self,
        account: &str,
        audience: &str,
        pod: Option<&Value>,
    ) -> String {
        let mut body = json!({"spec": {"audiences": [audience], "expirationSeconds": 600}});
        if let Some(pod) = pod {
            body["spec"]["boundObjectRef"] = json!({"kind": "Pod", "apiVersion": "v1",
                "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]});
        }
        let namespace = &self.world.namespace;
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let made = self.post(&path, body).await;
        made["status"]["token"].as_str().unwrap().to_owned()
    }

    /// Asks the issuer for an agent's certificate.
    pub(super) fn issuer_gives(
        &self,
        token: &str,
        certificate_request: Vec<u8>,
    ) -> impl Future<Output = Result<(), Status>> + use<> {
        let roots = self.pki("ca/controller-ca.crt");
        let own = PeerId::agent(NODE).unwrap();
        let credentials = Credentials::without_certificate(own, &roots).unwrap();
        let (at, token) = (self.issuer.to_string(), token.to_owned());
        async move {
            let channel = tls::connect(&at, credentials, PeerId::Controller)
                .await
                .unwrap();
            let request = IssueAgentCertificateRequest {
                token,
                certificate_request,
            };
            let asked = IssuerClient::new(channel)
                .issue_agent_certificate(request)
                .await;
            asked.map(drop)
        }
    }

    pub(super) async fn post(&self, path: &str, body: Value) -> Value {
        self.ask("POST", path, Some(body)).await
    }

    pub(super) async fn ask(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", "application/json")
            .body(
                body.map(|body| body.to_string().into_bytes())
                    .unwrap_or_default(),
            )
            .unwrap();
        self.world.client.request(request).await.unwrap()
    }
}

/// Connections whose certificates end.
pub(super) struct Ending {
    agent: Channel,
    pub(super) caller: Caller,
    /// They have ended by then.
    pub(super) over: Instant,
}

impl Ending {
    pub(super) fn list_the_agents_containers(&self) -> Attempt {
        let mut agent = AgentClient::new(self.agent.clone());
        Box::pin(async move {
            let asked = impound_proto::agent::v1::ListContainersRequest::default();
            agent.list_containers(asked).await.map(drop)
        })
    }
}

/// Somebody with a connection to the controller's port.
#[derive(Clone)]
pub(super) struct Caller {
    channel: Channel,
    authorization: String,
}

impl Caller {
    fn of(channel: Channel) -> Self {
        Self {
            channel,
            authorization: String::new(),
        }
    }

    /// The same with this header.
    pub(super) fn with(self, authorization: &str) -> Self {
        Self {
            authorization: authorization.to_owned(),
            ..self
        }
    }

    pub(super) fn client(&self) -> ControllerClient<Channel> {
        ControllerClient::new(self.channel.clone())
    }

    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if !self.authorization.is_empty() {
            let value = self.authorization.parse().unwrap();
            request.metadata_mut().insert("authorization", value);
        }
        request
    }

    /// A call that is made when it is awaited.
    fn call<T, A, F>(
        &self,
        message: T,
        call: impl FnOnce(ControllerClient<Channel>, Request<T>) -> F + Send + 'static,
    ) -> Attempt
    where
        T: Send + 'static,
        F: Future<Output = Result<Response<A>, Status>> + Send,
    {
        let (client, request) = (
            ControllerClient::new(self.channel.clone()),
            self.request(message),
        );
        Box::pin(async move { call(client, request).await.map(drop) })
    }

    pub(super) fn list_quarantines(&self, namespace: &str) -> Attempt {
        let message = wire::ListQuarantinesRequest {
            namespace: namespace.into(),
            ..Default::default()
        };
        self.call(message, |mut to, asked| async move {
            to.list_quarantines(asked).await
        })
    }

    pub(super) fn get_quarantine(&self, namespace: &str) -> Attempt {
        let message = wire::GetQuarantineRequest {
            namespace: namespace.into(),
            name: "nginx".into(),
        };
        self.call(message, |mut to, asked| async move {
            to.get_quarantine(asked).await
        })
    }

    pub(super) fn watch_collection(&self, namespace: &str) -> Attempt {
        let message = wire::WatchCollectionRequest {
            namespace: namespace.into(),
            name: "nginx".into(),
        };
        self.call(message, |mut to, asked| async move {
            to.watch_collection(asked).await
        })
    }

    pub(super) fn quarantine(&self, namespace: &str) -> Attempt {
        self.quarantine_with_reason(namespace, "beaconing".into())
    }

    pub(super) fn quarantine_with_reason(&self, namespace: &str, reason: String) -> Attempt {
        self.call(
            quarantine(namespace, reason, false),
            |mut to, asked| async move { to.create_quarantine(asked).await },
        )
    }

    pub(super) fn quarantine_dry(&self, namespace: &str) -> Attempt {
        let message = quarantine(namespace, "beaconing".into(), true);
        self.call(message, |mut to, asked| async move {
            to.create_quarantine(asked).await
        })
    }

    pub(super) fn release(&self, namespace: &str) -> Attempt {
        self.call(releasing(namespace), |mut to, asked| async move {
            to.release_quarantine(asked).await
        })
    }

    pub(super) fn plan_release(&self, namespace: &str) -> Attempt {
        self.call(releasing(namespace), |mut to, asked| async move {
            to.plan_release(asked).await
        })
    }

    pub(super) fn collect(&self, namespace: &str) -> Attempt {
        let message = wire::CreateCollectionRequest {
            namespace: namespace.into(),
            pod: "nginx".into(),
            case_id: "INC-1".into(),
            reason: "baseline".into(),
            ..Default::default()
        };
        self.call(message, |mut to, asked| async move {
            to.create_collection(asked).await
        })
    }

    pub(super) fn read_evidence(&self) -> Attempt {
        let message = wire::ReadEvidenceRequest {
            case_id: "INC-1".into(),
            collection: "nginx".into(),
            path: "manifest.json".into(),
            offset: 0,
        };
        self.call(message, |mut to, asked| async move {
            to.read_evidence(asked).await
        })
    }

    pub(super) fn list_evidence(&self) -> Attempt {
        let message = wire::ListEvidenceRequest {
            case_id: "INC-1".into(),
            collection: "nginx".into(),
        };
        self.call(message, |mut to, asked| async move {
            to.list_evidence(asked).await
        })
    }

    pub(super) fn sweep(&self, namespace: &str) -> Attempt {
        let message = wire::CreateSweepRequest {
            name: "inc-1".into(),
            select: Some(wire::PodSelection {
                namespaces: vec![namespace.into()],
                ..Default::default()
            }),
            case_id: "INC-1".into(),
            reason: "baseline".into(),
            ..Default::default()
        };
        self.call(message, |mut to, asked| async move {
            to.create_sweep(asked).await
        })
    }

    pub(super) fn list_sweeps(&self) -> Attempt {
        let message = wire::ListSweepsRequest::default();
        self.call(message, |mut to, asked| async move {
            to.list_sweeps(asked).await
        })
    }

    pub(super) fn get_sweep(&self) -> Attempt {
        let name = "inc-1".into();
        self.call(wire::GetSweepRequest { name }, |mut to, asked| async move {
            to.get_sweep(asked).await
        })
    }

    pub(super) fn watch_sweep(&self) -> Attempt {
        let name = "inc-1".into();
        self.call(
            wire::WatchSweepRequest { name },
            |mut to, asked| async move { to.watch_sweep(asked).await },
        )
    }

    pub(super) fn list_sweep_targets(&self) -> Attempt {
        let name = "inc-1".into();
        self.call(
            wire::ListSweepTargetsRequest { name },
            |mut to, asked| async move { to.list_sweep_targets(asked).await },
        )
    }

    pub(super) fn set_sweep(&self) -> Attempt {
        let message = wire::SetSweepRequest {
            name: "inc-1".into(),
            state: "Cancelled".into(),
            reason: "enough".into(),
        };
        self.call(
            message,
            |mut to, asked| async move { to.set_sweep(asked).await },
        )
    }

    pub(super) fn quarantine_and_evict_unmanaged(&self, namespace: &str) -> Attempt {
        let message = wire::CreateQuarantineRequest {
            evict_unmanaged: true,
            ..quarantine(namespace, "beaconing".into(), false)
        };
        self.call(message, |mut to, asked| async move {
            to.create_quarantine(asked).await
        })
    }

    pub(super) fn quarantine_and_delete_data(&self, namespace: &str) -> Attempt {
        let message = wire::CreateQuarantineRequest {
            delete_empty_dir_data: true,
            ..quarantine(namespace, "beaconing".into(), false)
        };
        self.call(message, |mut to, asked| async move {
            to.create_quarantine(asked).await
        })
    }

    pub(super) fn verify_evidence(&self) -> Attempt {
        let message = wire::VerifyEvidenceRequest {
            case_id: "INC-1".into(),
            collection: "nginx".into(),
        };
        self.call(message, |mut to, asked| async move {
            to.verify_evidence(asked).await
        })
    }

    pub(super) fn hold(&self, lift: bool) -> Attempt {
        let message = wire::HoldEvidenceRequest {
            case_id: "INC-1".into(),
            collection: "nginx".into(),
            lift,
            reason: "court".into(),
        };
        self.call(message, |mut to, asked| async move {
            to.hold_evidence(asked).await
        })
    }

    pub(super) fn list_containers(&self) -> Attempt {
        let message = wire::ListContainersRequest { node: NODE.into() };
        self.call(message, |mut to, asked| async move {
            to.list_containers(asked).await
        })
    }

    /// Calls that cost nothing, one after the other, until one is refused.
    pub(super) fn calls_without_pause(&self) -> Attempt {
        let mut health = HealthClient::new(self.channel.clone());
        Box::pin(async move {
            for _ in 0..1_000 {
                health.check(HealthCheckRequest::default()).await?;
            }
            Ok(())
        })
    }

    /// One stream more than may be open at the same time.
    pub(super) fn streams_that_stay_open(&self) -> Attempt {
        let mut health = HealthClient::new(self.channel.clone());
        Box::pin(async move {
            let mut open = Vec::new();
            for _ in 0..=AT_ONCE {
                open.push(health.watch(HealthCheckRequest::default()).await?);
            }
            Ok(())
        })
    }
}

fn releasing(namespace: &str) -> wire::ReleaseQuarantineRequest {
    wire::ReleaseQuarantineRequest {
        namespace: namespace.into(),
        name: "nginx".into(),
        reason: "false alarm".into(),
        force: true,
    }
}

/// The real agent, before a runtime that does nothing.
async fn serve_agent(tls_dir: PathBuf, engine: PathBuf) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let agent = Agent {
        node: NODE.parse().unwrap(),
        enrolment: None,
        files: TlsFiles::in_dir(&tls_dir, "controller-ca.crt"),
        runtime: Arc::new(Docker::new(engine)),
        disk: Disk::new("/", 0),
        ready: None,
        drain: Duration::ZERO,
        allow_isolation: false,
        state_dir: tls_dir.join("state"),
    };
    tokio::spawn(agent.serve(listener, std::future::pending()));
    address
}

/// Notes each request but the ping and the version, which the agent asks for again and again to see whether anybody
/// is there.
async fn listen_as_engine(listener: UnixListener, noted: Arc<Mutex<Vec<String>>>) {
    while let Ok((mut connection, _)) = listener.accept().await {
        let noted = noted.clone();
        tokio::spawn(async move {
            let mut head = vec![0; 4096];
            let Ok(length) = connection.read(&mut head).await else {
                return;
            };
            let head = String::from_utf8_lossy(&head[..length]).into_owned();
            let line = head.lines().next().unwrap_or_default().to_owned();
            if !line.contains("/version") && !line.contains("/_ping") {
                noted.lock().unwrap().push(line);
            }
            let body = r#"{"Version":"20.10.24","ApiVersion":"1.41","MinAPIVersion":"1.12"}"#;
            let answer = format!(
                "HTTP/1.1 200 OK\r\napi-version: 1.41\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
            let _ = connection.write_all(answer.as_bytes()).await;
        });
    }
}

/// What this thread logs: the agent of a single-threaded test runs on it.
struct Log {
    text: Arc<Mutex<Vec<u8>>>,
    _guard: tracing::subscriber::DefaultGuard,
}

impl Log {
    fn start() -> Self {
        let text = Arc::new(Mutex::new(Vec::new()));
        let writer = Writer(Arc::clone(&text));
        let log = tracing_subscriber::fmt()
            .json()
            .with_writer(move || writer.clone())
            .finish();
        Self {
            text,
            _guard: tracing::subscriber::set_default(log),
        }
    }

    fn text(&self) -> String {
        String::from_utf8(self.text.lock().unwrap().clone()).unwrap()
    }
}

#[derive(Clone)]
struct Writer(Arc<Mutex<Vec<u8>>>);

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
