//! The controller's certificate is replaced while responders hold streams open.

use std::time::Duration;

use futures::StreamExt;
use impound_evidence::Sha256;
use impound_proto::PeerId;
use impound_proto::pki::{Ca, LEAF_LIFE, Validity};
use impound_proto::tls::{self, Peers, TlsFiles};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

use crate::world::{World, eventually};

#[tokio::test]
async fn the_controllers_certificate_rotates_under_100_open_streams_and_the_next_handshake_shows_the_new_one()
 {
    let mut world = World::in_memory_without_controller().await;
    world.arguments = vec!["--caller-calls=200".into(), "--caller-rate=1000".into()];
    world.start_controller().await;
    let channels = [
        world.try_channel("alice").await.unwrap(),
        world.try_channel("alice").await.unwrap(),
    ];
    let mut open = Vec::new();
    for number in 0..100 {
        open.push(Conversation::with(channels[number % 2].clone()).await);
    }
    let new = rotate(&world);
    eventually("the next handshake shows the new certificate", || async {
        match shown(&world).await == new {
            true => Ok(()),
            false => Err("it is the old one".to_owned()),
        }
    })
    .await;
    for conversation in &mut open {
        conversation.goes_on().await;
    }
    println!("{} streams open over a rotation, none broken", open.len());
}

async fn shown(world: &World) -> Sha256 {
    let dir = world.dir.path().join("pki/responders/alice");
    let files = TlsFiles::in_dir(&dir, "controller-ca.crt");
    let (credentials, _) = tls::client_credentials(files, Peers::AnyResponder).unwrap();
    let address = world.address().to_string();
    let connected = tls::connect_shown(&address, credentials, PeerId::Controller).await;
    let (_, shown) = connected.unwrap();
    shown.sha256().unwrap().into()
}

/// A new certificate in the controller's directory, and its SHA-256.
fn rotate(world: &World) -> Sha256 {
    let pki = world.dir.path().join("pki");
    let read = |end| std::fs::read_to_string(pki.join(format!("ca/controller-ca.{end}"))).unwrap();
    let ca = Ca::from_pem(&read("crt"), &read("key")).unwrap();
    let fresh = Validity::from_now(LEAF_LIFE);
    let issued = ca.issue(&PeerId::Controller, &[], fresh).unwrap();
    let files = TlsFiles::in_dir(&pki.join("controller"), "responder-ca.crt");
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
        let question = tokio::time::timeout(Duration::from_secs(10), self.ask.send(question()));
        question.await.unwrap().expect("the stream is open");
        self.answers.next().await.expect("an answer").unwrap();
    }
}

fn question() -> ServerReflectionRequest {
    ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    }
}
