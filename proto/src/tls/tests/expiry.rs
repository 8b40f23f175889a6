//! A connection outlives its certificates: what each end does then.

use std::time::SystemTime;

use tokio::io::AsyncReadExt;
use tokio::time::Instant;
use tonic::service::InterceptorLayer;

use super::super::cut::Cuttable;
use super::super::expiry::grace_after;
use super::*;

/// Whole seconds in the certificate: at least one is left when it is used.
const SHORT: time::Duration = time::Duration::seconds(2);

#[tokio::test]
async fn once_its_certificate_has_ended_a_peers_new_calls_are_refused_and_logged() {
    let world = World::new();
    let address = serve_asking(world.server()).await;
    let client = world.client(
        &world.controller,
        &PeerId::Controller,
        Validity::from_now(SHORT),
    );
    let channel = connect_to(address, client, agent()).await.unwrap();
    assert_eq!(call(channel.clone()).await, Code::Unimplemented);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let refused = AgentClient::new(channel).info(InfoRequest {}).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let told = "connect again with a new one";
    assert!(refused.message().contains(told), "{refused}");
    assert!(
        matches!(world.log.lines("refused a call").as_slice(), [one] if one.contains(told) && one.contains("127.0.0.1:")),
    );
}

#[tokio::test]
async fn a_link_begins_no_call_with_an_ended_certificate_of_ours_and_goes_on_with_the_new_one() {
    let world = World::new();
    let address = serve_asking(world.server()).await;
    let short = world.issue(
        &world.controller,
        &PeerId::Controller,
        Validity::from_now(SHORT),
    );
    let files = world.files("link", &short, world.agent.certificate());
    let own = Peers::Only(PeerId::Controller);
    let (credentials, mut reloader) = client_credentials(files.clone(), own).unwrap();
    let connector = Connector::new(credentials, agent()).unwrap();
    let (link, shown) = link(&address.to_string(), connector).await.unwrap();
    let mut client = AgentClient::new(link);
    assert_eq!(info(&mut client).await, Code::Unimplemented);
    tokio::time::sleep(Duration::from_secs(3)).await;
    // With nothing newer there is no way in, and it is the handshake that says so.
    assert_eq!(info(&mut client).await, Code::Unavailable);
    let fresh = Validity::from_now(LEAF_LIFE);
    let next = world.issue(&world.controller, &PeerId::Controller, fresh);
    std::fs::write(&files.certificate, &next.certificate).unwrap();
    std::fs::write(&files.key, next.key.as_bytes()).unwrap();
    assert!(matches!(reloader.check(), Reload::Replaced));
    assert_eq!(info(&mut client).await, Code::Unimplemented);
    assert_eq!(info(&mut client).await, Code::Unimplemented);
    assert_eq!(shown.handshakes(), 2);
    assert_eq!(world.log.lines("refused a call"), Vec::<String>::new());
}

#[tokio::test]
async fn a_link_leaves_a_peer_whose_certificate_has_ended_for_the_one_with_the_new_certificate() {
    let world = World::new();
    let short = world.issue(&world.agent, &agent(), Validity::from_now(SHORT));
    let files = world.files("server", &short, world.controller.certificate());
    let own = Peers::Only(PeerId::Controller);
    let (credentials, mut reloader) = server_credentials(files.clone(), agent(), own).unwrap();
    let address = serve_asking(credentials).await;
    let fresh = Validity::from_now(LEAF_LIFE);
    let ours = world.client(&world.controller, &PeerId::Controller, fresh);
    let connector = Connector::new(ours, agent()).unwrap();
    let (link, shown) = link(&address.to_string(), connector).await.unwrap();
    let mut client = AgentClient::new(link);
    assert_eq!(info(&mut client).await, Code::Unimplemented);
    let before = shown.sha256().unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(info(&mut client).await, Code::Unavailable);
    let next = world.issue(&world.agent, &agent(), fresh);
    std::fs::write(&files.certificate, &next.certificate).unwrap();
    std::fs::write(&files.key, next.key.as_bytes()).unwrap();
    assert!(matches!(reloader.check(), Reload::Replaced));
    // Many at once open one connection.
    let calls = (0..8).map(|_| {
        let mut client = client.clone();
        async move { info(&mut client).await }
    });
    assert_eq!(
        futures::future::join_all(calls).await,
        vec![Code::Unimplemented; 8]
    );
    assert_ne!(shown.sha256().unwrap(), before);
    assert_eq!(shown.handshakes(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_still_runs_an_hour_after_a_certificates_end_is_cut() {
    let (near, _far) = tokio::io::duplex(1);
    let end = SystemTime::now() + Duration::from_secs(5);
    let mut cuttable = Cuttable::new(near, grace_after(end));
    let began = Instant::now();
    let error = cuttable.read(&mut [0]).await.unwrap_err();
    assert!(error.to_string().contains("certificate ended"), "{error}");
    let took = began.elapsed();
    assert!(
        took >= GRACE && took <= GRACE + Duration::from_secs(6),
        "{took:?}"
    );
    assert!(cuttable.read(&mut [0]).await.is_err(), "it stays cut");
}

async fn info(client: &mut AgentClient<Link>) -> Code {
    client.info(InfoRequest {}).await.unwrap_err().code()
}

async fn serve_asking(credentials: Credentials<rustls::ServerConfig>) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut server = http2::server(Server::builder()).layer(InterceptorLayer::new(unexpired));
    let server = server.add_routes(Routes::default());
    tokio::spawn(server.serve_with_incoming(incoming(listener, credentials)));
    address
}
