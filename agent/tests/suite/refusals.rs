//! Nobody but the controller gets anything out of an agent.

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use impound_proto::agent::v1::agent_client::AgentClient;
use impound_proto::agent::v1::{ExportRequest, InfoRequest};
use impound_proto::pki::{Ca, LEAF_LIFE, Validity};
use impound_proto::{CASE_METADATA, PeerId, Role};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::fake::{Export, Fake};
use crate::world::{NODE, World, case, controller};

#[tokio::test]
async fn refused_peers_make_no_runtime_call_and_are_logged() {
    let now = time::OffsetDateTime::now_utc();
    let fresh = Validity::from_now(LEAF_LIFE);
    let expired = Validity {
        not_before: now - 2 * time::Duration::DAY,
        not_after: now - time::Duration::HOUR,
    };
    let agent = PeerId::agent(NODE).unwrap();
    let responder = PeerId::responder("alice", Role::Custodian).unwrap();
    let cases = [
        ("presented no certificate", None),
        (
            "UnknownIssuer",
            Some(("responder-ca", PeerId::Controller, fresh)),
        ),
        (
            "certificate expired",
            Some(("controller-ca", PeerId::Controller, expired)),
        ),
        (
            "found spiffe://impound.dev/responder/custodian/alice",
            Some(("controller-ca", responder, fresh)),
        ),
        (
            "extended key usage",
            Some(("controller-ca", agent.clone(), fresh)),
        ),
        ("extended key usage", Some(("agent-ca", agent, fresh))),
    ];
    for (reason, certificate) in cases {
        let log = Log::start();
        let fake = Fake::new(Export::Endless);
        let observed = Arc::clone(&fake.observed);
        let world = World::start(fake).await;
        let ca = |name: &str| {
            let read = |end| {
                std::fs::read_to_string(world.pki.path().join(format!("ca/{name}.{end}"))).unwrap()
            };
            Ca::from_pem(&read("crt"), &read("key")).unwrap()
        };
        let issued = certificate.map(|(name, peer, validity)| {
            let issued = ca(name).issue(&peer, &[], validity).unwrap();
            (issued.certificate.clone(), issued.key.to_string())
        });
        let told = stranger(world.pki.path(), world.address, issued).await;
        assert!(
            told.contains("fatal alert"),
            "{reason}: the client was told {told:?}"
        );
        assert_eq!(
            observed.calls.load(Ordering::SeqCst),
            0,
            "{reason}: the runtime was called"
        );
        let refusals = log.lines("refused a peer");
        assert!(
            matches!(refusals.as_slice(), [one] if one.contains(reason) && one.contains("127.0.0.1:")),
            "expected one refusal because of {reason:?}, found {refusals:?}"
        );
    }
}

#[tokio::test]
async fn the_case_peer_and_result_of_every_call_are_logged() {
    let log = Log::start();
    let fake = Fake::new(Export::Bytes(vec![0; 1024].into()));
    let id = fake.id().to_owned();
    let mut world = World::start(fake).await;
    world.export(&id).await.unwrap();
    let sent = log.lines("sent, complete");
    let [sent] = sent.as_slice() else {
        panic!("expected one line, found {sent:?}")
    };
    for part in [
        "Export",
        "INC-2026-001",
        "spiffe://impound.dev/controller",
        &id,
        "bytes=1024",
        "sha256=",
    ] {
        assert!(sent.contains(part), "{part} is not in {sent}");
    }
    let mut malformed = Request::new(InfoRequest {});
    malformed
        .metadata_mut()
        .insert(CASE_METADATA, "../etc".parse().unwrap());
    let status = world.client.info(malformed).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
}

#[tokio::test]
async fn health_and_reflection_are_served_to_the_controller() {
    let mut world = World::start(Fake::new(Export::Endless)).await;
    let channel = controller(world.pki.path(), world.address).await;
    let mut health = HealthClient::new(channel.clone());
    for service in ["", "impound.agent.v1.Agent"] {
        let mut watch = health
            .watch(HealthCheckRequest {
                service: service.into(),
            })
            .await
            .unwrap()
            .into_inner();
        // Not serving until the runtime has answered for the first time.
        while watch.message().await.unwrap().unwrap().status() != ServingStatus::Serving {}
    }
    let services = crate::world::reflected_services(channel).await;
    assert!(
        services.contains(&"impound.agent.v1.Agent".to_owned()),
        "{services:?}"
    );
    assert_eq!(
        world
            .client
            .info(case(InfoRequest {}))
            .await
            .unwrap()
            .into_inner()
            .node,
        NODE
    );
}

#[tokio::test]
async fn an_agent_without_a_runtime_says_that_it_is_not_serving() {
    let world = World::start(impound_agent::runtime::docker::Docker::new("/nonexistent")).await;
    let mut health = HealthClient::new(controller(world.pki.path(), world.address).await);
    let answer = health
        .check(HealthCheckRequest {
            service: String::new(),
        })
        .await
        .unwrap();
    assert_eq!(answer.into_inner().status(), ServingStatus::NotServing);
}

#[tokio::test]
async fn a_service_without_verified_peers_answers_nobody() {
    use impound_agent::Disk;
    use impound_agent::service::Service;
    use impound_proto::agent::v1::agent_server::AgentServer;
    use tonic::transport::{Endpoint, Server};
    let fake = Fake::new(Export::Endless);
    let observed = Arc::clone(&fake.observed);
    let service = Service::new(
        NODE.parse().unwrap(),
        Arc::new(fake),
        Disk::new("/", 0),
        [0; 32],
        false,
        "/nonexistent".into(),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    tokio::spawn(
        Server::builder()
            .add_service(AgentServer::new(service))
            .serve_with_incoming(incoming),
    );
    let channel = Endpoint::from_shared(format!("http://{address}"))
        .unwrap()
        .connect()
        .await
        .unwrap();
    let request = ExportRequest {
        container_id: "ab".repeat(32),
    };
    let status = AgentClient::new(channel).export(request).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert_eq!(observed.calls.load(Ordering::SeqCst), 0);
}

/// What a client with this certificate and key is told. It checks nothing about itself.
async fn stranger(pki: &Path, address: SocketAddr, issued: Option<(String, String)>) -> String {
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(pki.join("ca/agent-ca.crt")).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match issued {
        None => builder.with_no_client_auth(),
        Some((certificate, key)) => builder
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
            )
            .unwrap(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let name = ServerName::try_from(format!("{NODE}.agent.impound.internal")).unwrap();
    let tcp = TcpStream::connect(address).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let mut tls = connector.connect(name, tcp).await.unwrap();
    match tls.read(&mut [0]).await {
        Ok(read) => format!("{read} bytes"),
        Err(error) => error.to_string(),
    }
}

/// What this thread logs; the agent of a single-threaded test runs on it.
struct Log {
    text: Arc<Mutex<Vec<u8>>>,
    _guard: tracing::subscriber::DefaultGuard,
}

impl Log {
    fn start() -> Self {
        let text = Arc::new(Mutex::new(Vec::new()));
        let writer = Writer(Arc::clone(&text));
        let log = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        Self {
            text,
            _guard: tracing::subscriber::set_default(log),
        }
    }

    fn lines(&self, with: &str) -> Vec<String> {
        let text = String::from_utf8(self.text.lock().unwrap().clone()).unwrap();
        text.lines()
            .filter(|line| line.contains(with))
            .map(str::to_owned)
            .collect()
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
