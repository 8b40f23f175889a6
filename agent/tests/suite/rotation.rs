//! A certificate is replaced while everything is in use.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt;
use impound_evidence::Sha256;
use impound_proto::PeerId;
use impound_proto::agent::v1::ExportRequest;
use impound_proto::agent::v1::agent_client::AgentClient;
use impound_proto::pki::{Ca, LEAF_LIFE, Validity};
use impound_proto::tls::{Peers, TlsFiles, client_credentials, connect_shown};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Streaming};
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

use crate::fake::{Export, Fake};
use crate::world::{NODE, World, case, controller};

/// Streams that run meanwhile: as many exports as run at a time, and others.
const EXPORTS: usize = 4;
const OTHERS: usize = 96;

#[tokio::test]
async fn a_certificate_rotates_under_100_open_streams_and_the_next_handshake_shows_the_new_one() {
    let fake = Fake::new(Export::Endless);
    let (id, observed) = (fake.id().to_owned(), fake.observed.clone());
    let mut world = World::start(fake).await;
    let mut exports = Vec::new();
    for _ in 0..EXPORTS {
        let request = case(ExportRequest {
            container_id: id.clone(),
        });
        exports.push(world.client.export(request).await.unwrap().into_inner());
    }
    let channels = [
        controller(world.pki.path(), world.address).await,
        controller(world.pki.path(), world.address).await,
    ];
    let mut others = Vec::new();
    for number in 0..OTHERS {
        others.push(Conversation::with(channels[number % 2].clone()).await);
    }
    for _ in 0..2 {
        let new = rotate(world.pki.path());
        let shown = async {
            while shown(&world).await != new {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let rotated = tokio::time::timeout(Duration::from_secs(60), shown).await;
        rotated.expect("the next handshake shows the new certificate");
        for export in &mut exports {
            export.message().await.unwrap().expect("it goes on");
        }
        for other in &mut others {
            other.goes_on().await;
        }
    }
    assert_eq!(observed.dropped.load(Ordering::SeqCst), 0);
    println!(
        "{} streams open over 2 rotations, none broken",
        exports.len() + others.len()
    );
}

#[tokio::test]
async fn a_stream_outlives_the_certificate_it_was_opened_with_and_no_new_call_does() {
    let fake = Fake::new(Export::Endless);
    let (id, observed) = (fake.id().to_owned(), fake.observed.clone());
    let world = World::start(fake).await;
    let short = Validity::from_now(time::Duration::seconds(3));
    give_controller(world.pki.path(), short);
    let channel = controller(world.pki.path(), world.address).await;
    let mut client = AgentClient::new(channel);
    let export = || {
        case(ExportRequest {
            container_id: id.clone(),
        })
    };
    let mut running = client.export(export()).await.unwrap().into_inner();
    // The certificate says whole seconds.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let asked = observed.calls.load(Ordering::SeqCst);
    let refused = client.export(export()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
    assert_eq!(observed.calls.load(Ordering::SeqCst), asked);
    for _ in 0..100 {
        running.message().await.unwrap().expect("it goes on");
    }
    give_controller(world.pki.path(), Validity::from_now(LEAF_LIFE));
    let again = controller(world.pki.path(), world.address).await;
    let _anew = AgentClient::new(again).export(export()).await.unwrap();
    assert_eq!(observed.dropped.load(Ordering::SeqCst), 0);
}

/// Puts a new certificate into the controller's directory.
fn give_controller(pki: &Path, validity: Validity) {
    let read = |end| std::fs::read_to_string(pki.join(format!("ca/controller-ca.{end}"))).unwrap();
    let ca = Ca::from_pem(&read("crt"), &read("key")).unwrap();
    let issued = ca.issue(&PeerId::Controller, &[], validity).unwrap();
    let files = TlsFiles::in_dir(&pki.join("controller"), "agent-ca.crt");
    std::fs::write(files.key, &*issued.key).unwrap();
    std::fs::write(files.certificate, &issued.certificate).unwrap();
}

/// SHA-256 of the certificate that a new connection is shown.
async fn shown(world: &World) -> Sha256 {
    let files = TlsFiles::in_dir(&world.pki.path().join("controller"), "agent-ca.crt");
    let (credentials, _) = client_credentials(files, Peers::Only(PeerId::Controller)).unwrap();
    let agent = PeerId::agent(NODE).unwrap();
    let address = world.address.to_string();
    let (_, shown) = connect_shown(&address, credentials, agent).await.unwrap();
    shown.sha256().unwrap().into()
}

/// Puts a new certificate into the agent's directory, as its issuer or a kubelet does: the SHA-256 of it.
fn rotate(pki: &Path) -> Sha256 {
    let read = |end| std::fs::read_to_string(pki.join(format!("ca/agent-ca.{end}"))).unwrap();
    let ca = Ca::from_pem(&read("crt"), &read("key")).unwrap();
    let agent = PeerId::agent(NODE).unwrap();
    let issued = ca
        .issue(&agent, &[], Validity::from_now(LEAF_LIFE))
        .unwrap();
    let files = TlsFiles::in_dir(&pki.join("agents").join(NODE), "controller-ca.crt");
    for (file, text) in [
        (files.key, &*issued.key),
        (files.certificate, &issued.certificate),
    ] {
        let new = file.with_extension("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, file).unwrap();
    }
    Sha256::of(&CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap())
}

/// A stream in both directions that stays open.
struct Conversation {
    ask: mpsc::Sender<ServerReflectionRequest>,
    answers: Streaming<ServerReflectionResponse>,
}

impl Conversation {
    async fn with(channel: Channel) -> Self {
        let (ask, asked) = mpsc::channel(1);
        ask.send(question()).await.unwrap();
        let mut client = ServerReflectionClient::new(channel);
        let answers = client.server_reflection_info(ReceiverStream::new(asked));
        let answers = answers.await.unwrap().into_inner();
        let mut conversation = Self { ask, answers };
        conversation.answers.next().await.unwrap().unwrap();
        conversation
    }

    async fn goes_on(&mut self) {
        self.ask.send(question()).await.expect("the stream is open");
        self.answers.next().await.expect("an answer").unwrap();
    }
}

fn question() -> ServerReflectionRequest {
    ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    }
}
