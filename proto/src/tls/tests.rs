//! Who gets through the door and who does not, and what each side is told.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod expiry;

use std::io::Write;
use std::sync::{Arc, Mutex};

use futures::StreamExt;
use rcgen::string::Ia5String;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use time::OffsetDateTime;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Server};
use tonic::{Code, service::Routes};

use super::*;
use crate::agent::v1::InfoRequest;
use crate::agent::v1::agent_client::AgentClient;
use crate::identity::Role;
use crate::pki::{Ca, Issued, LEAF_LIFE, Validity};

#[tokio::test]
async fn the_expected_peer_gets_through_and_is_known_by_name() {
    let world = World::new();
    let (address, mut incoming) = world.listen().await;
    let client = world.client(
        &world.controller,
        &PeerId::Controller,
        Validity::from_now(LEAF_LIFE),
    );
    // Never completes: nothing here answers it.
    let connecting = tokio::spawn(connect_to(address, client, agent()));
    let peer = incoming.next().await.unwrap().unwrap().connect_info();
    assert_eq!(peer.id, PeerId::Controller);
    assert_ne!(peer.certificate_sha256, [0; 32]);
    connecting.abort();
}

#[tokio::test]
async fn a_call_passes_and_then_the_server_answers_it() {
    let world = World::new();
    let address = world.serve().await;
    let client = world.client(
        &world.controller,
        &PeerId::Controller,
        Validity::from_now(LEAF_LIFE),
    );
    let channel = connect_to(address, client, agent()).await.unwrap();
    assert_eq!(call(channel).await, Code::Unimplemented);
    assert_eq!(world.log.refusals(), Vec::<String>::new());
}

#[tokio::test]
async fn every_refused_client_is_told_and_logged_once_with_the_reason() {
    let ago = |days| OffsetDateTime::now_utc() - time::Duration::days(days);
    let fresh = Validity::from_now(LEAF_LIFE);
    let expired = Validity {
        not_before: ago(9),
        not_after: ago(1),
    };
    let early = Validity {
        not_before: ago(-1),
        not_after: ago(-9),
    };
    let responder = PeerId::responder("alice", Role::Custodian).unwrap();
    let world = World::new();
    let cases = [
        (
            "certificate expired",
            world.issue(&world.controller, &PeerId::Controller, expired),
        ),
        (
            "certificate not valid yet",
            world.issue(&world.controller, &PeerId::Controller, early),
        ),
        (
            "UnknownIssuer",
            world.issue(&world.responder, &PeerId::Controller, fresh),
        ),
        (
            "UnknownIssuer",
            world.issue(&world.agent, &PeerId::Controller, fresh),
        ),
        (
            "found spiffe://impound.dev/responder/custodian/alice",
            world.issue(&world.controller, &responder, fresh),
        ),
        // An agent's certificate is not for clients at all.
        (
            "certificate does not allow extended key usage for client",
            world.issue(&world.controller, &agent(), fresh),
        ),
        (
            "exactly one URI subject alternative name in the certificate, found 2",
            two_names(&world.controller),
        ),
    ];
    for (reason, issued) in cases {
        let world = World {
            log: Log::start(),
            ..world.clone()
        };
        let address = world.serve().await;
        let error = connect_raw(address, &world.agent, Some(&issued)).await;
        assert!(
            error.contains("received fatal alert"),
            "{reason}: the client was told {error:?}"
        );
        let refusals = world.log.refusals();
        assert!(
            matches!(refusals.as_slice(), [one] if one.contains(reason) && one.contains("127.0.0.1:")),
            "expected one refusal because of {reason:?}, found {refusals:?}"
        );
    }
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let world = World::new();
    let address = world.serve().await;
    let error = connect_raw(address, &world.agent, None).await;
    assert!(
        error.contains("CertificateRequired"),
        "the client was told {error:?}"
    );
    assert!(
        matches!(world.log.refusals().as_slice(), [one] if one.contains("presented no certificate"))
    );
}

#[tokio::test]
async fn no_session_is_resumed_past_the_verifier() {
    let world = World::new();
    let address = world.serve().await;
    let issued = world.issue(
        &world.controller,
        &PeerId::Controller,
        Validity::from_now(LEAF_LIFE),
    );
    // rustls resumes whenever the server let it: one configuration is one memory of sessions.
    let config = raw(&world.agent, Some(&issued));
    for _ in 0..3 {
        let mut tls = handshake_raw(address, Arc::clone(&config)).await;
        // The server's first bytes: tickets, if there were any, came before.
        assert_eq!(tls.read(&mut [0]).await.unwrap(), 1);
        let (_, session) = tls.get_ref();
        assert_eq!(session.handshake_kind(), Some(rustls::HandshakeKind::Full));
        assert_eq!(session.tls13_tickets_received(), 0);
    }
}

#[tokio::test]
async fn a_refusal_is_an_error_of_connecting() {
    let world = World::new();
    let address = world.serve().await;
    // From the right CA for a responder, but agents let in the controller only.
    let alice = PeerId::responder("alice", Role::Viewer).unwrap();
    let client = world.client(&world.controller, &alice, Validity::from_now(LEAF_LIFE));
    let error = connect_to(address, client.clone(), agent())
        .await
        .unwrap_err();
    let text = explain(&error);
    assert!(
        text.contains("refused our certificate") && text.contains("CertificateUnknown"),
        "{text}"
    );

    // And the same of a lazy channel's call.
    let lazy = channel(&address.to_string(), client, agent()).unwrap();
    let status = AgentClient::new(lazy)
        .info(InfoRequest {})
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(
        explain(&status).contains("refused our certificate"),
        "{}",
        explain(&status)
    );
}

#[tokio::test]
async fn a_client_talks_to_nobody_but_the_expected_peer() {
    let world = World::new();
    let address = world.serve().await;
    let fresh = Validity::from_now(LEAF_LIFE);
    let ours = world.issue(&world.controller, &PeerId::Controller, fresh);
    for (roots, expected, reason) in [
        // Another node's agent: the DNS name differs.
        (
            &world.agent,
            PeerId::agent("other").unwrap(),
            "certificate not valid for name",
        ),
        (
            &world.agent,
            PeerId::Controller,
            "certificate not valid for name",
        ),
        // The agent's own CA is not trusted.
        (&world.controller, agent(), "UnknownIssuer"),
    ] {
        let client = world.client_with(&ours, roots, Peers::Only(PeerId::Controller));
        let text = explain(&connect_to(address, client, expected).await.unwrap_err());
        assert!(text.contains(reason), "expected {reason:?}, found {text}");
    }
}

#[tokio::test]
async fn an_identity_that_contradicts_the_dns_name_is_refused_by_both_ends() {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let world = World::new();
    let name = agent().dns_name().unwrap();
    let mut params = CertificateParams::new(vec![name]).unwrap();
    let uri = "spiffe://impound.dev/agent/k8s-worker3";
    params
        .subject_alt_names
        .push(SanType::URI(Ia5String::try_from(uri).unwrap()));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let issued = sign(&params, &world.agent);

    // Our own server does not start with it ...
    let files = world.files("contradiction", &issued, world.controller.certificate());
    let only_controller = Peers::Only(PeerId::Controller);
    let error = server_credentials(files, agent(), only_controller.clone())
        .err()
        .unwrap();
    assert!(matches!(error, MaterialError::NotOurs { .. }), "{error}");

    // ... and a client does not talk to a server that does.
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(
        rustls::crypto::ring::default_provider(),
    ))
    .with_protocol_versions(&[&rustls::version::TLS13])
    .unwrap()
    .with_no_client_auth()
    .with_single_cert(
        vec![CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap()],
        PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap(),
    )
    .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let _ = tokio_rustls::TlsAcceptor::from(Arc::new(config))
            .accept(tcp)
            .await;
    });
    let client = world.client(
        &world.controller,
        &PeerId::Controller,
        Validity::from_now(LEAF_LIFE),
    );
    let text = explain(&connect_to(address, client, agent()).await.unwrap_err());
    assert!(
        text.contains("expected spiffe://impound.dev/agent/k8s-worker2"),
        "{text}"
    );
    assert!(
        text.contains("found spiffe://impound.dev/agent/k8s-worker3"),
        "{text}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_cut_off_after_the_handshake_timeout() {
    let world = World::new();
    let (address, _incoming) = world.listen().await;
    let mut silent = TcpStream::connect(address).await.unwrap();
    let mut byte = [0];
    assert_eq!(silent.read(&mut byte).await.unwrap(), 0);
    assert!(
        matches!(world.log.refusals().as_slice(), [one] if one.contains("no complete handshake within 10s"))
    );
}

#[tokio::test]
async fn one_address_cannot_take_every_handshake_slot() {
    let world = World::new();
    let (address, _incoming) = world.listen().await;
    let mut silent = Vec::new();
    for _ in 0..17 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let mut last = silent.pop().unwrap();
    let mut byte = [0];
    assert_eq!(last.read(&mut byte).await.unwrap(), 0);
    assert!(
        matches!(world.log.refusals().as_slice(), [one] if one.contains("too many unfinished handshakes"))
    );
}

#[tokio::test]
async fn a_key_and_its_certificate_in_one_file_are_read_and_replaced_together() {
    let world = World::new();
    let fresh = Validity::from_now(LEAF_LIFE);
    let issue = || world.issue(&world.agent, &agent(), fresh);
    let bundle = |key: &Issued, chain: &Issued| format!("{}{}", *key.key, chain.certificate);
    let dir = world.dir.path();
    let files = TlsFiles::bundle_in_dir(dir, "credentials.pem", "roots.crt");
    let (first, second) = (issue(), issue());
    std::fs::write(&files.roots, world.controller.certificate()).unwrap();
    std::fs::write(&files.certificate, bundle(&first, &first)).unwrap();
    let accept = Peers::Only(PeerId::Controller);
    let (credentials, mut reloader) = server_credentials(files.clone(), agent(), accept).unwrap();
    let working = credentials.current();
    for broken in [bundle(&first, &second), second.certificate.clone()] {
        std::fs::write(&files.certificate, broken).unwrap();
        assert!(matches!(reloader.check(), Reload::Refused(_)));
        assert!(Arc::ptr_eq(&working, &credentials.current()));
    }
    std::fs::write(&files.certificate, bundle(&second, &second)).unwrap();
    assert!(matches!(reloader.check(), Reload::Replaced));
    certificate_life(&files).unwrap();
}

#[tokio::test]
async fn a_broken_new_certificate_never_replaces_a_working_one() {
    let world = World::new();
    let fresh = Validity::from_now(LEAF_LIFE);
    let first = world.issue(&world.controller, &PeerId::Controller, fresh);
    let files = world.files("rotating", &first, world.agent.certificate());
    let (credentials, mut reloader) =
        client_credentials(files.clone(), Peers::Only(PeerId::Controller)).unwrap();
    let working = credentials.current();
    assert!(matches!(reloader.check(), Reload::Unchanged));

    let second = world.issue(&world.controller, &PeerId::Controller, fresh);
    let alice = PeerId::responder("alice", Role::Viewer).unwrap();
    let past = OffsetDateTime::now_utc() - time::Duration::hours(1);
    let expired = Validity {
        not_before: past - time::Duration::DAY,
        not_after: past,
    };
    // The leaf of one CA with another CA's certificate behind it.
    let leaf = second
        .certificate
        .split_inclusive("-----END CERTIFICATE-----")
        .next()
        .unwrap();
    let broken_chain = format!("{leaf}\n{}", world.responder.certificate());
    let renewed_late = world.issue(&world.controller, &PeerId::Controller, expired);
    for (what, certificate, key) in [
        (
            "a certificate that is no PEM",
            "broken",
            second.key.as_str(),
        ),
        (
            "the key of another certificate",
            &first.certificate,
            second.key.as_str(),
        ),
        ("a broken chain", &broken_chain, second.key.as_str()),
        (
            "an expired certificate",
            &renewed_late.certificate,
            renewed_late.key.as_str(),
        ),
        (
            "somebody else's certificate",
            &world.issue(&world.controller, &alice, fresh).certificate,
            &first.key,
        ),
    ] {
        std::fs::write(&files.certificate, certificate).unwrap();
        std::fs::write(&files.key, key).unwrap();
        assert!(
            matches!(reloader.check(), Reload::Refused(_)),
            "{what} was accepted"
        );
        assert!(
            matches!(reloader.check(), Reload::Unchanged),
            "{what} was reported twice"
        );
        assert!(
            Arc::ptr_eq(&credentials.current(), &working),
            "{what} is in use"
        );
    }
    std::fs::remove_file(&files.key).unwrap();
    assert!(matches!(
        reloader.check(),
        Reload::Refused(MaterialError::Read { .. })
    ));
    assert!(matches!(reloader.check(), Reload::Unchanged));

    std::fs::write(&files.certificate, &second.certificate).unwrap();
    std::fs::write(&files.key, second.key.as_bytes()).unwrap();
    assert!(matches!(reloader.check(), Reload::Replaced));
    assert!(!Arc::ptr_eq(&credentials.current(), &working));
}

#[tokio::test]
async fn new_handshakes_use_the_new_certificate_without_a_restart() {
    let world = World::new();
    let fresh = Validity::from_now(LEAF_LIFE);
    let files = world.files(
        "server",
        &world.issue(&world.agent, &agent(), fresh),
        world.controller.certificate(),
    );
    let (credentials, mut reloader) =
        server_credentials(files.clone(), agent(), Peers::Only(PeerId::Controller)).unwrap();
    let address = serve(credentials).await;
    let ours = world.issue(&world.controller, &PeerId::Controller, fresh);
    let dial = |roots: &Ca| {
        let client = world.client_with(&ours, roots, Peers::Only(PeerId::Controller));
        connect_to(address, client, agent())
    };
    let before = dial(&world.agent).await.unwrap();

    let other_ca = Ca::generate("next agent-ca", fresh).unwrap();
    let next = world.issue(&other_ca, &agent(), fresh);
    std::fs::write(&files.certificate, &next.certificate).unwrap();
    std::fs::write(&files.key, next.key.as_bytes()).unwrap();
    assert!(matches!(reloader.check(), Reload::Replaced));

    assert!(dial(&world.agent).await.is_err());
    assert_eq!(
        call(dial(&other_ca).await.unwrap()).await,
        Code::Unimplemented
    );
    // The connection that was open goes on.
    assert_eq!(call(before).await, Code::Unimplemented);
}

#[tokio::test]
async fn a_certificate_that_is_not_valid_yet_is_used_once_it_is() {
    let world = World::new();
    let fresh = Validity::from_now(LEAF_LIFE);
    let first = world.issue(&world.controller, &PeerId::Controller, fresh);
    let files = world.files("early", &first, world.agent.certificate());
    let (credentials, mut reloader) =
        client_credentials(files.clone(), Peers::Only(PeerId::Controller)).unwrap();
    let working = credentials.current();

    let soon = Validity {
        // Whole seconds in the certificate: at least one is left.
        not_before: OffsetDateTime::now_utc() + time::Duration::seconds(2),
        not_after: fresh.not_after,
    };
    let next = world.issue(&world.controller, &PeerId::Controller, soon);
    std::fs::write(&files.certificate, &next.certificate).unwrap();
    std::fs::write(&files.key, next.key.as_bytes()).unwrap();
    assert!(matches!(reloader.check(), Reload::Refused(_)));
    assert!(Arc::ptr_eq(&credentials.current(), &working));
    let replaced = async {
        loop {
            match reloader.check() {
                Reload::Unchanged => tokio::time::sleep(Duration::from_millis(50)).await,
                other => return other,
            }
        }
    };
    let replaced = tokio::time::timeout(Duration::from_secs(30), replaced).await;
    assert!(matches!(replaced, Ok(Reload::Replaced)), "{replaced:?}");
    assert!(!Arc::ptr_eq(&credentials.current(), &working));
}

#[tokio::test]
async fn broken_files_are_reported_again_after_the_working_ones_were_back() {
    let world = World::new();
    let fresh = Validity::from_now(LEAF_LIFE);
    let first = world.issue(&world.controller, &PeerId::Controller, fresh);
    let files = world.files("back", &first, world.agent.certificate());
    let (_credentials, mut reloader) =
        client_credentials(files.clone(), Peers::Only(PeerId::Controller)).unwrap();
    for _ in 0..2 {
        std::fs::write(&files.certificate, "broken").unwrap();
        assert!(matches!(reloader.check(), Reload::Refused(_)));
        assert!(matches!(reloader.check(), Reload::Unchanged));
        std::fs::write(&files.certificate, &first.certificate).unwrap();
        assert!(matches!(reloader.check(), Reload::Unchanged));
    }
}

#[test]
fn an_address_must_be_host_and_port() {
    let world = World::new();
    for address in [
        "",
        "host",
        "host:",
        "host:1/path",
        "http://host:1",
        "host:99999",
        "ho st:1",
    ] {
        let credentials = world.client(
            &world.controller,
            &PeerId::Controller,
            Validity::from_now(LEAF_LIFE),
        );
        let error = channel(address, credentials, agent()).unwrap_err();
        assert!(
            matches!(error, ConnectError::Address { .. }),
            "{address}: {error}"
        );
    }
}

type Client = Credentials<rustls::ClientConfig>;

/// The CAs of an installation and the log of one server.
#[derive(Clone)]
struct World {
    controller: Arc<Ca>,
    agent: Arc<Ca>,
    responder: Arc<Ca>,
    dir: Arc<tempfile::TempDir>,
    log: Log,
}

impl World {
    fn new() -> Self {
        let ca = |name| Arc::new(Ca::generate(name, Validity::from_now(LEAF_LIFE)).unwrap());
        Self {
            controller: ca("controller-ca"),
            agent: ca("agent-ca"),
            responder: ca("responder-ca"),
            dir: Arc::new(tempfile::tempdir().unwrap()),
            log: Log::start(),
        }
    }

    fn issue(&self, ca: &Ca, peer: &PeerId, validity: Validity) -> Issued {
        ca.issue(peer, &[], validity).unwrap()
    }

    fn files(&self, name: &str, issued: &Issued, roots: &str) -> TlsFiles {
        let dir = self.dir.path().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        let files = TlsFiles::in_dir(&dir, "roots.crt");
        std::fs::write(&files.certificate, &issued.certificate).unwrap();
        std::fs::write(&files.key, issued.key.as_bytes()).unwrap();
        std::fs::write(&files.roots, roots).unwrap();
        files
    }

    fn server(&self) -> Credentials<rustls::ServerConfig> {
        let issued = self.issue(&self.agent, &agent(), Validity::from_now(LEAF_LIFE));
        let files = self.files("server", &issued, self.controller.certificate());
        server_credentials(files, agent(), Peers::Only(PeerId::Controller))
            .unwrap()
            .0
    }

    fn client(&self, ca: &Ca, peer: &PeerId, validity: Validity) -> Client {
        self.client_with(
            &self.issue(ca, peer, validity),
            &self.agent,
            Peers::Only(peer.clone()),
        )
    }

    fn client_with(&self, issued: &Issued, roots: &Ca, own: Peers) -> Client {
        let files = self.files("client", issued, roots.certificate());
        client_credentials(files, own).unwrap().0
    }

    async fn listen(&self) -> (std::net::SocketAddr, Incoming) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        (
            listener.local_addr().unwrap(),
            incoming(listener, self.server()),
        )
    }

    async fn serve(&self) -> std::net::SocketAddr {
        serve(self.server()).await
    }
}

async fn serve(credentials: Credentials<rustls::ServerConfig>) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = http2::server(Server::builder()).add_routes(Routes::default());
    tokio::spawn(server.serve_with_incoming(incoming(listener, credentials)));
    address
}

fn agent() -> PeerId {
    PeerId::agent("k8s-worker2").unwrap()
}

async fn connect_to(
    address: std::net::SocketAddr,
    client: Client,
    expected: PeerId,
) -> Result<Channel, ConnectError> {
    connect(&address.to_string(), client, expected).await
}

async fn call(channel: Channel) -> Code {
    AgentClient::new(channel)
        .info(InfoRequest {})
        .await
        .unwrap_err()
        .code()
}

/// A client that checks nothing about itself, as an attacker's would: what it reads first.
async fn connect_raw(address: std::net::SocketAddr, roots: &Ca, issued: Option<&Issued>) -> String {
    let mut tls = handshake_raw(address, raw(roots, issued)).await;
    let mut byte = [0];
    match tls.read(&mut byte).await {
        Ok(read) => format!("{read} bytes"),
        Err(error) => error.to_string(),
    }
}

async fn handshake_raw(
    address: std::net::SocketAddr,
    config: Arc<rustls::ClientConfig>,
) -> tokio_rustls::client::TlsStream<TcpStream> {
    let tcp = TcpStream::connect(address).await.unwrap();
    let name = rustls::pki_types::ServerName::try_from(agent().dns_name().unwrap()).unwrap();
    let connector = tokio_rustls::TlsConnector::from(config);
    connector.connect(name, tcp).await.unwrap()
}

fn raw(roots: &Ca, issued: Option<&Issued>) -> Arc<rustls::ClientConfig> {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let mut store = rustls::RootCertStore::empty();
    store
        .add(CertificateDer::from_pem_slice(roots.certificate().as_bytes()).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(store);
    let mut config = match issued {
        None => builder.with_no_client_auth(),
        Some(issued) => builder
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(issued.key.as_bytes()).unwrap(),
            )
            .unwrap(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

fn two_names(ca: &Ca) -> Issued {
    let mut params = CertificateParams::default();
    for uri in [
        "spiffe://impound.dev/controller",
        "spiffe://example.org/controller",
    ] {
        params
            .subject_alt_names
            .push(SanType::URI(Ia5String::try_from(uri).unwrap()));
    }
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    sign(&params, ca)
}

fn sign(params: &CertificateParams, ca: &Ca) -> Issued {
    let issuer =
        Issuer::from_ca_cert_pem(ca.certificate(), KeyPair::from_pem(&ca.key()).unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    Issued {
        certificate: params.signed_by(&key, &issuer).unwrap().pem(),
        key: zeroize::Zeroizing::new(key.serialize_pem()),
    }
}

/// What this thread logged since `start`. Each test runs its server on its own thread.
#[derive(Clone)]
struct Log {
    text: Arc<Mutex<Vec<u8>>>,
    _guard: Arc<tracing::subscriber::DefaultGuard>,
}

impl Log {
    fn start() -> Self {
        let text = Arc::new(Mutex::new(Vec::new()));
        let writer = LogWriter(Arc::clone(&text));
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        Self {
            text,
            _guard: Arc::new(tracing::subscriber::set_default(subscriber)),
        }
    }

    fn refusals(&self) -> Vec<String> {
        self.lines("refused a peer")
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
struct LogWriter(Arc<Mutex<Vec<u8>>>);

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
