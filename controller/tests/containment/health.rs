//! What the kubelet and Prometheus see of the controller.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::world::World;

pub(crate) async fn page(world: &World, path: &str) -> (u16, String) {
    let mut tcp = TcpStream::connect(("127.0.0.1", world.health_port))
        .await
        .unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: health\r\n\r\n");
    tcp.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

#[tokio::test]
async fn what_was_done_is_counted_and_a_working_controller_is_ready() {
    let world = World::start().await;
    let pods = world.deployment("web", 1, None).await;
    let name = pods[0].metadata.name.clone().unwrap();
    world.quarantine(&name).await;
    assert_eq!(page(&world, "/live").await.0, 200);
    assert_eq!(page(&world, "/ready").await, (200, "ready\n".to_owned()));
    assert_eq!(page(&world, "/secret").await.0, 404);
    let (status, metrics) = page(&world, "/metrics").await;
    assert_eq!(status, 200);
    for line in [
        "impound_quarantine_steps_total{step=\"Strip\",state=\"Done\"} 1",
        "impound_quarantine_phases_total{phase=\"Contained\"} 1",
        "impound_requests_total{method=\"CreateQuarantine\",code=\"Ok\"} 1",
        "impound_leader 1",
    ] {
        assert!(
            metrics.lines().any(|found| found == line),
            "{line}\n{metrics}"
        );
    }
}

#[tokio::test]
async fn readiness_names_what_is_pending() {
    let world = World::start().await;
    world
        .api()
        .inject(kube_memory::Fault::answer(500).on("GET", "/version"));
    let (status, text) = page(&world, "/ready").await;
    assert_eq!(status, 503);
    assert!(text.starts_with("kubernetes: "), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
}

#[tokio::test]
async fn grpc_health_follows_readiness() {
    let world = World::start_in_memory().await;
    let mut health = HealthClient::new(world.try_channel("alice").await.unwrap());
    let mut answers = Vec::new();
    for service in ["", "impound.controller.v1.Controller"] {
        let service = service.to_owned();
        let watch = health.watch(HealthCheckRequest { service }).await.unwrap();
        answers.push(watch.into_inner());
    }
    for watch in &mut answers {
        while watch.message().await.unwrap().unwrap().status() != ServingStatus::Serving {}
    }
    world.memory.as_ref().unwrap().inject(
        kube_memory::Fault::answer(500)
            .on("GET", "/version")
            .times(usize::MAX),
    );
    for watch in &mut answers {
        while watch.message().await.unwrap().unwrap().status() != ServingStatus::NotServing {}
    }
}

#[tokio::test]
async fn reflection_names_every_service_that_is_served() {
    let world = World::start().await;
    let mut client = ServerReflectionClient::new(world.try_channel("alice").await.unwrap());
    let list = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let asked = futures::stream::iter([list]);
    let mut answers = client
        .server_reflection_info(asked)
        .await
        .unwrap()
        .into_inner();
    let answer = answers.message().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("{answer:?}");
    };
    let mut names: Vec<_> = list
        .service
        .into_iter()
        .map(|service| service.name)
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "impound.controller.v1.Controller"
        ]
    );
}
