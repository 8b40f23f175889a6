//! Measures an export over mutual TLS against `docker export >/dev/null`, and the agent's peak memory.
//!
//! `cargo bench -p impound-agent --bench export -- [MiB]`, 2048 MiB unless told. Needs a Docker Engine
//! and as much free disk.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    dead_code,
    unreachable_pub,
    reason = "a measurement"
)]

#[path = "../tests/suite/engine.rs"]
mod engine;
#[path = "../tests/suite/world.rs"]
mod world;

use std::process::{Child, Command, Stdio};
use std::time::Instant;

use impound_proto::agent::v1::ExportRequest;
use impound_proto::agent::v1::agent_client::AgentClient;
use impound_proto::agent::v1::artifact_message::Message;
use tonic::transport::Channel;

#[tokio::main]
async fn main() {
    engine::require();
    let mebibytes = std::env::args()
        .skip(1)
        .find_map(|argument| argument.parse().ok())
        .unwrap_or(2048_u64);
    // Two directories deep in one big file and many middling ones, none of it compressible.
    let script = format!(
        "mkdir /srv/small; dd if=/dev/urandom of=/srv/big bs=1048576 count={} 2>/dev/null; \
         i=0; while [ $i -lt 256 ]; do dd if=/dev/urandom of=/srv/small/$i bs=1048576 count={} 2>/dev/null; \
         i=$((i+1)); done",
        mebibytes / 2,
        (mebibytes / 512).max(1)
    );
    let container = engine::Container::exited(&script);
    let pki = tempfile::tempdir().unwrap();
    world::issue(pki.path());
    let listen = {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap()
    };
    let mut agent = Agent(
        Command::new(env!("CARGO_BIN_EXE_impound-agent"))
            .args([
                "--node",
                world::NODE,
                "--listen",
                &listen.to_string(),
                "--tls-dir",
            ])
            .arg(pki.path().join("agents").join(world::NODE))
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    while std::net::TcpStream::connect(listen).is_err() {
        std::thread::yield_now();
    }
    let mut client = AgentClient::new(world::controller(pki.path(), listen).await);
    println!("agent at rest: {}", agent.memory());
    for round in 1..=3 {
        let started = Instant::now();
        let done = Command::new("docker")
            .args(["export", &container.id])
            .stdout(Stdio::null())
            .status();
        assert!(done.unwrap().success());
        let reference = started.elapsed();
        let started = Instant::now();
        let bytes = export(&mut client, &container.id).await;
        let ours = started.elapsed();
        let rate = |elapsed: std::time::Duration| bytes as f64 / elapsed.as_secs_f64() / 1e6;
        println!(
            "round {round}: {bytes} bytes, docker export >/dev/null {:.0} MB/s, over mutual TLS {:.0} MB/s, {}",
            rate(reference),
            rate(ours),
            agent.memory()
        );
    }
    let stalled = stall(&mut client, &container.id).await;
    println!("with four clients that stopped reading: {}", agent.memory());
    drop(stalled);
    agent.0.kill().unwrap();
}

async fn export(client: &mut AgentClient<Channel>, id: &str) -> u64 {
    let request = world::case(ExportRequest {
        container_id: id.to_owned(),
    });
    let mut stream = client.export(request).await.unwrap().into_inner();
    let mut bytes = 0;
    let mut complete = false;
    while let Some(message) = stream.message().await.unwrap() {
        match message.message.unwrap() {
            Message::Header(_) => {}
            Message::Chunk(chunk) => bytes += chunk.data.len() as u64,
            Message::Trailer(trailer) => complete = trailer.reasons.is_empty(),
        }
    }
    assert!(complete);
    bytes
}

async fn stall(client: &mut AgentClient<Channel>, id: &str) -> Vec<impl Sized + use<>> {
    let mut streams = Vec::new();
    for _ in 0..4 {
        let request = world::case(ExportRequest {
            container_id: id.to_owned(),
        });
        let mut stream = client.export(request).await.unwrap().into_inner();
        stream.message().await.unwrap().unwrap();
        streams.push(stream);
    }
    // Long enough for every window to fill at any rate seen above.
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    streams
}

struct Agent(Child);

impl Agent {
    fn memory(&self) -> String {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        // 14th and 15th field: ticks of 10 ms in user and system mode.
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
        let ticks: u64 = stat
            .split(' ')
            .skip(13)
            .take(2)
            .map(|field| field.parse::<u64>().unwrap())
            .sum();
        let line = |name| {
            status
                .lines()
                .find(|line| line.starts_with(name))
                .unwrap()
                .replace('\t', " ")
        };
        let seconds = ticks as f64 / 100.0;
        format!(
            "agent: {}, {}, {seconds:.1} s of CPU since its start",
            line("VmHWM"),
            line("VmRSS")
        )
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
    }
}
