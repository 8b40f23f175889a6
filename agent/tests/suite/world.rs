//! One agent with its certificates, and a controller's client to it.

use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use impound_agent::runtime::ContainerRuntime;
use impound_agent::runtime::docker::Docker;
use impound_agent::{Agent, Disk, Front, Part, RunError, SocketPath, Worker};
use impound_evidence::Sha256;
use impound_proto::agent::v1::agent_client::AgentClient;
use impound_proto::agent::v1::artifact_message::Message;
use impound_proto::agent::v1::{ArtifactHeader, ArtifactMessage, ArtifactTrailer, ExportRequest};
use impound_proto::pki::{self, Plan};
use impound_proto::tls::{Peers, TlsFiles, client_credentials, connect};
use impound_proto::{CASE_METADATA, PeerId};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

pub const NODE: &str = "k8s-worker2";
pub const CASE: &str = "INC-2026-001";

pub struct World {
    pub pki: tempfile::TempDir,
    pub address: SocketAddr,
    pub client: AgentClient<Channel>,
    stop: Option<oneshot::Sender<()>>,
    agent: JoinHandle<Result<(), RunError>>,
    /// The other processes of a split agent; they end with the world.
    pub parts: JoinSet<Result<(), RunError>>,
}

impl World {
    /// An agent in front of the real engine.
    pub async fn docker() -> Self {
        crate::engine::require();
        Self::start(Docker::new(crate::engine::SOCKET)).await
    }

    /// The same, allowed to isolate pods.
    pub async fn isolating() -> Self {
        crate::engine::require();
        let runtime = Docker::new(crate::engine::SOCKET);
        Self::with(runtime, Disk::new("/var/lib/docker", 0), true).await
    }

    pub async fn start(runtime: impl ContainerRuntime) -> Self {
        Self::with_disk(runtime, Disk::new("/var/lib/docker", 0)).await
    }

    pub async fn with_disk(runtime: impl ContainerRuntime, disk: Disk) -> Self {
        Self::with(runtime, disk, false).await
    }

    async fn with(runtime: impl ContainerRuntime, disk: Disk, allow_isolation: bool) -> Self {
        let pki = tempfile::tempdir().unwrap();
        issue(pki.path());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let agent = Agent {
            enrolment: None,
            node: NODE.parse().unwrap(),
            files: TlsFiles::in_dir(&pki.path().join("agents").join(NODE), "controller-ca.crt"),
            runtime: Arc::new(runtime),
            disk,
            ready: None,
            drain: Duration::from_secs(20),
            allow_isolation,
            state_dir: pki.path().join("state"),
        };
        let (stop, stopped) = oneshot::channel();
        let agent = tokio::spawn(agent.serve(listener, async {
            let _ = stopped.await;
        }));
        let channel = controller(pki.path(), address).await;
        Self {
            client: AgentClient::new(channel),
            pki,
            address,
            stop: Some(stop),
            agent,
            parts: JoinSet::new(),
        }
    }

    /// A split agent: front, collector and, if it is to isolate, the isolator, each as its process
    /// serves it, with the sockets between them.
    pub async fn split(runtime: impl ContainerRuntime + Clone, isolates: bool) -> Self {
        let pki = tempfile::tempdir().unwrap();
        issue(pki.path());
        let mut parts = JoinSet::new();
        let mut work = |part: Part| {
            let socket = socket(pki.path(), part);
            let worker = Worker {
                part,
                node: NODE.parse().unwrap(),
                runtime: Arc::new(runtime.clone()),
                disk: Disk::new("/var/lib/docker", 0),
                state_dir: pki.path().join("state"),
                front_uid: rustix::process::getuid().as_raw(),
                drain: Duration::from_secs(20),
            };
            let listener = impound_agent::listen(&socket).unwrap();
            parts.spawn(worker.serve(listener, std::future::pending()));
            socket
        };
        let collector = work(Part::Collector);
        let isolator = isolates.then(|| work(Part::Isolator));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let front = Front {
            enrolment: None,
            node: NODE.parse().unwrap(),
            files: TlsFiles::in_dir(&pki.path().join("agents").join(NODE), "controller-ca.crt"),
            collector,
            isolator,
            ready: None,
            drain: Duration::from_secs(20),
        };
        let (stop, stopped) = oneshot::channel();
        let agent = tokio::spawn(front.serve(listener, async {
            let _ = stopped.await;
        }));
        let channel = controller(pki.path(), address).await;
        Self {
            client: AgentClient::new(channel),
            pki,
            address,
            stop: Some(stop),
            agent,
            parts,
        }
    }

    /// Tells the agent to stop, as SIGTERM does.
    pub fn stop(&mut self) -> impl Future<Output = Result<(), RunError>> + use<> {
        drop(self.stop.take());
        let agent = std::mem::replace(&mut self.agent, tokio::spawn(async { Ok(()) }));
        async { agent.await.unwrap() }
    }

    pub async fn export(&mut self, id: &str) -> Result<Artifact, Status> {
        let request = case(ExportRequest {
            container_id: id.to_owned(),
        });
        Artifact::read(self.client.export(request).await?.into_inner()).await
    }
}

/// Where a part of a split agent listens.
pub fn socket(dir: &Path, part: Part) -> SocketPath {
    format!("unix:{}/{part}.sock", dir.display())
        .parse()
        .unwrap()
}

/// The files of an installation with one node.
pub fn issue(dir: &Path) {
    let plan = Plan {
        nodes: vec![NODE.parse().unwrap()],
        responders: vec![("alice".parse().unwrap(), impound_proto::Role::Custodian).into()],
        ..Plan::default()
    };
    pki::init(dir, &plan).unwrap();
}

/// A channel as the controller opens it.
pub async fn controller(pki: &Path, address: SocketAddr) -> Channel {
    let files = TlsFiles::in_dir(&pki.join("controller"), "agent-ca.crt");
    let (credentials, _) = client_credentials(files, Peers::Only(PeerId::Controller)).unwrap();
    connect(
        &address.to_string(),
        credentials,
        PeerId::agent(NODE).unwrap(),
    )
    .await
    .unwrap()
}

/// A request of the test case.
pub fn case<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert(CASE_METADATA, CASE.parse().unwrap());
    request
}

/// A whole artifact stream, checked as the controller checks it.
pub struct Artifact {
    pub header: ArtifactHeader,
    pub bytes: Bytes,
    pub chunks: usize,
    pub trailer: ArtifactTrailer,
}

impl Artifact {
    pub async fn read(mut stream: Streaming<ArtifactMessage>) -> Result<Self, Status> {
        let mut header = None;
        let mut bytes = BytesMut::new();
        let mut chunks = 0;
        let mut trailer = None;
        while let Some(message) = stream.message().await? {
            assert!(trailer.is_none(), "a message came after the trailer");
            match message.message.unwrap() {
                Message::Header(first) => {
                    assert!(header.replace(first).is_none() && chunks == 0);
                }
                Message::Chunk(chunk) => {
                    assert!(header.is_some());
                    assert_eq!(chunk.offset, bytes.len() as u64);
                    assert!((1..=1 << 20).contains(&chunk.data.len()));
                    bytes.extend_from_slice(&chunk.data);
                    chunks += 1;
                }
                Message::Trailer(last) => trailer = Some(last),
            }
        }
        let trailer = trailer.expect("a stream that ends well ends with a trailer");
        assert_eq!(trailer.size, bytes.len() as u64);
        assert_eq!(trailer.sha256, Sha256::of(&bytes).as_bytes());
        Ok(Self {
            header: header.unwrap(),
            bytes: bytes.freeze(),
            chunks,
            trailer,
        })
    }

    pub fn complete(&self) -> bool {
        use impound_proto::agent::v1::Completeness;
        match self.trailer.completeness() {
            Completeness::Complete => {
                assert!(self.trailer.reasons.is_empty());
                true
            }
            Completeness::Incomplete => {
                assert!(!self.trailer.reasons.is_empty());
                false
            }
            Completeness::Unspecified => panic!("the trailer does not say whether it is complete"),
        }
    }
}

/// Names of the services that reflection tells.
pub async fn reflected_services(channel: Channel) -> Vec<String> {
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = ServerReflectionClient::new(channel)
        .server_reflection_info(futures::stream::iter([request]))
        .await
        .unwrap()
        .into_inner();
    match answers
        .message()
        .await
        .unwrap()
        .unwrap()
        .message_response
        .unwrap()
    {
        MessageResponse::ListServicesResponse(list) => list
            .service
            .into_iter()
            .map(|service| service.name)
            .collect(),
        other => panic!("expected a list of services, found {other:?}"),
    }
}
