//! What the kubelet and Prometheus see of the controller.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::world::World;

async fn page(world: &World, path: &str) -> (u16, String) {
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
    let world = World::start_in_memory().await;
    world
        .memory
        .as_ref()
        .unwrap()
        .inject(kube_memory::Fault::answer(500).on("GET", "/version"));
    let (status, text) = page(&world, "/ready").await;
    assert_eq!(status, 503);
    assert!(text.starts_with("kubernetes: "), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
}
