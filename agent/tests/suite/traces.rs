//! What an OpenTelemetry collector is told by an agent that is split: its front exports, confined as it is, and the
//! part behind it has no network.

use std::process::Stdio;
use std::time::Duration;

use impound_proto::agent::v1::InfoRequest;
use impound_proto::agent::v1::agent_client::AgentClient;
use tokio::process::{Child, Command};

use crate::process::free_address;
use crate::receiver::Receiver;
use crate::world::{NODE, case, controller, issue, socket};

const CALLER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[tokio::test]
async fn a_split_agents_front_continues_the_callers_trace_and_exports_its_call() {
    let (received, otlp) = Receiver::start().await;
    let pki = tempfile::tempdir().unwrap();
    issue(pki.path());
    let state = pki.path().join("state");
    let collector = socket(pki.path(), impound_agent::Part::Collector).to_string();
    let uid = rustix::process::getuid().as_raw().to_string();
    let _collector = start(
        "collector",
        &[
            "--listen",
            &collector,
            "--front-uid",
            &uid,
            "--state-dir",
            state.to_str().unwrap(),
        ],
    );
    let listen = free_address().await;
    let tls = pki.path().join("agents").join(NODE);
    let mut front = start(
        "front",
        &[
            "--listen",
            &listen,
            "--collector",
            &collector,
            "--tls-dir",
            tls.to_str().unwrap(),
            "--otlp-endpoint",
            &otlp,
        ],
    );
    let address = listen.parse().unwrap();
    while tokio::net::TcpStream::connect(&listen).await.is_err() {
        assert!(front.try_wait().unwrap().is_none(), "the front has ended");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut client = AgentClient::new(controller(pki.path(), address).await);
    let mut request = case(InfoRequest {});
    request
        .metadata_mut()
        .insert("traceparent", CALLER.parse().unwrap());
    client.info(request).await.unwrap();
    let arrived = async {
        loop {
            if let Some(span) = received.spans().pop() {
                return span;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let span = tokio::time::timeout(Duration::from_secs(60), arrived).await;
    let span = span.expect("a span is exported");
    assert_eq!(span.service, "impound-agent");
    assert_eq!(span.name, "impound.agent.v1.Agent/Info");
    assert_eq!(span.trace, "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(span.parent, "b7ad6b7169203331");
    assert!(front.try_wait().unwrap().is_none(), "the front has ended");
}

fn start(mode: &str, arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_impound-agent"))
        .args([mode, "--node", NODE])
        .args(arguments)
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}
