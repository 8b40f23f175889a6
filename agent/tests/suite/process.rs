//! The program itself: arguments, readiness, signals, exit codes.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use impound_proto::agent::v1::agent_client::AgentClient;
use impound_proto::agent::v1::{FreezeRequest, InfoRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

use crate::engine::{self, SOCKET};
use crate::pod::Pod;
use crate::world::{NODE, case, controller, issue};

#[tokio::test]
async fn the_agent_gets_ready_answers_and_ends_well_on_sigterm() {
    engine::require();
    let pki = tempfile::tempdir().unwrap();
    issue(pki.path());
    let (listen, ready) = (free_address().await, free_address().await);
    let agent = start(pki.path(), NODE, &listen, &ready, SOCKET);
    while probe(&ready).await != Some(200) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut client = AgentClient::new(controller(pki.path(), listen.parse().unwrap()).await);
    client.info(case(InfoRequest {})).await.unwrap();
    drop(client);
    let pid = rustix::process::Pid::from_raw(agent.id().unwrap().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let output = agent.wait_with_output().await.unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{log}");
    assert!(
        log.lines().all(|line| line.starts_with('{')),
        "the log is not JSON: {log}"
    );
    assert!(log.contains("the agent ends: it was told to"), "{log}");
    assert!(!log.contains("PRIVATE KEY"));
}

#[tokio::test]
async fn readiness_names_what_is_in_the_way() {
    let pki = tempfile::tempdir().unwrap();
    issue(pki.path());
    let (listen, ready) = (free_address().await, free_address().await);
    let mut agent = start(
        pki.path(),
        NODE,
        &listen,
        &ready,
        "/nonexistent/docker.sock",
    );
    let text = loop {
        match get(&ready).await {
            Some(text) if text.contains("docker.sock") => break text,
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    assert!(text.starts_with("HTTP/1.1 503"), "{text}");
    agent.kill().await.unwrap();
}

#[tokio::test]
async fn an_agent_with_another_nodes_certificate_does_not_start() {
    let pki = tempfile::tempdir().unwrap();
    issue(pki.path());
    let agent = start(
        pki.path(),
        "k8s-worker3",
        "127.0.0.1:0",
        "127.0.0.1:0",
        SOCKET,
    );
    let output = agent.wait_with_output().await.unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(
        log.contains("agent/k8s-worker3") && log.contains("agent/k8s-worker2"),
        "{log}"
    );
}

#[tokio::test]
async fn what_a_killed_agent_left_paused_goes_on_when_it_starts_again() {
    engine::require();
    let pki = tempfile::tempdir().unwrap();
    issue(pki.path());
    let pod = Pod::start("frozen");
    let limit_ms = 3_600_000;
    let container_ids = vec![pod.app.id.clone()];
    let (listen, ready) = (free_address().await, free_address().await);
    let mut first = start(pki.path(), NODE, &listen, &ready, SOCKET);
    while probe(&ready).await != Some(200) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut client = AgentClient::new(controller(pki.path(), listen.parse().unwrap()).await);
    let request = FreezeRequest {
        container_ids,
        limit_ms,
    };
    client.freeze(case(request)).await.unwrap();
    assert!(paused(&pod));
    first.kill().await.unwrap();
    assert!(paused(&pod), "the engine holds what is paused");
    let (listen, ready) = (free_address().await, free_address().await);
    let mut second = start(pki.path(), NODE, &listen, &ready, SOCKET);
    while paused(&pod) {
        assert!(second.try_wait().unwrap().is_none(), "the agent has ended");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    second.kill().await.unwrap();
}

fn paused(pod: &Pod) -> bool {
    let state = ["inspect", "-f", "{{.State.Paused}}", &pod.app.id];
    engine::line(engine::docker(&state)) == "true"
}

fn start(pki: &Path, node: &str, listen: &str, ready: &str, socket: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_impound-agent"))
        .args(["--node", node, "--listen", listen, "--ready-listen", ready])
        .args(["--docker-socket", socket, "--tls-dir"])
        .arg(pki.join("agents").join(NODE))
        .arg("--state-dir")
        .arg(pki.join("state"))
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// An address that was free a moment ago.
pub async fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string()
}

pub async fn probe(address: &str) -> Option<u16> {
    get(address).await?.split(' ').nth(1)?.parse().ok()
}

pub async fn get(address: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    stream
        .write_all(b"GET /ready HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    Some(answer)
}
