//! What is not isolated, and what an agent needs before it isolates anything.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use impound_proto::agent::v1::agent_client::AgentClient;
use impound_proto::agent::v1::{
    AllowDirection, AllowRule, IsolateRequest, LiftIsolationRequest, PodSelector,
    ProbeIsolationRequest, ProbeOutcome::TimedOut, ProbeTarget,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tonic::Code;

use super::calls::{
    QUARANTINE, allow, inspect, isolate, lift, probe, request, target, until_connected,
};
use crate::engine::{SOCKET, docker};
use crate::pod::{HOST, Pod, host_rules};
use crate::world::{CASE, NODE, World, case, controller, issue};

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_or_must_not_be_isolated_is_refused_with_the_reason() {
    let world = World::isolating().await;
    let client = &world.client;
    let suspect = Pod::start("suspect");
    let refused = async |pod: PodSelector| {
        let request = IsolateRequest {
            pod: Some(pod),
            ..request(&suspect, Vec::new())
        };
        let status = client.clone().isolate(case(request)).await.unwrap_err();
        (status.code(), status.message().to_owned())
    };
    let selector = || suspect.selector.clone();

    let (code, text) = refused(PodSelector {
        name: "nobody".to_owned(),
        ..selector()
    })
    .await;
    assert!(
        code == Code::NotFound && text.contains("shop/nobody"),
        "{code:?} {text}"
    );
    let (code, text) = refused(PodSelector {
        uid: "another".to_owned(),
        ..selector()
    })
    .await;
    assert!(
        code == Code::FailedPrecondition && text.contains("made anew"),
        "{code:?} {text}"
    );
    let (code, text) = refused(PodSelector {
        uid: String::new(),
        ..selector()
    })
    .await;
    assert!(
        code == Code::InvalidArgument && text.contains("uid"),
        "{code:?} {text}"
    );

    let on_host = Pod::with("on-host", "host", &["--cap-drop", "ALL"]);
    let (code, text) = refused(on_host.selector.clone()).await;
    assert!(
        code == Code::FailedPrecondition && text.contains("host's network"),
        "{code:?} {text}"
    );
    assert!(!host_rules().contains("impound"), "the host has our table");
    let status = lift(client, &on_host).await.unwrap_err();
    assert!(status.message().contains("host's network"), "{status}");
    // The same when the runtime calls it otherwise and only the namespace tells.
    let shared = format!("container:{}", on_host.sandbox.id);
    let joined = Pod::with("joined", &shared, &["--cap-drop", "ALL"]);
    let (code, text) = refused(joined.selector.clone()).await;
    assert!(
        code == Code::FailedPrecondition && text.contains("host's network"),
        "{code:?} {text}"
    );
    assert!(!host_rules().contains("impound"), "the host has our table");

    // For another quarantine it stays, unless forced.
    isolate(client, &suspect, Vec::new()).await.unwrap();
    let other = |force| LiftIsolationRequest {
        pod: Some(selector()),
        case_id: CASE.to_owned(),
        quarantine: "shop/another".to_owned(),
        force,
    };
    let status = client
        .clone()
        .lift_isolation(case(other(false)))
        .await
        .unwrap_err();
    assert!(
        status.code() == Code::FailedPrecondition && status.message().contains(QUARANTINE),
        "{status}"
    );
    assert!(
        inspect(client, &suspect, Vec::new())
            .await
            .unwrap()
            .isolated
    );
    assert!(
        client
            .clone()
            .lift_isolation(case(other(true)))
            .await
            .unwrap()
            .into_inner()
            .removed
    );

    docker(&["stop", "-t", "0", &suspect.sandbox.id]);
    let (code, text) = refused(selector()).await;
    assert!(
        code == Code::FailedPrecondition && text.contains("no running sandbox"),
        "{code:?} {text}"
    );
    assert!(!lift(client, &suspect).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_requests_name_what_was_expected() {
    let world = World::isolating().await;
    let client = &world.client;
    let pod = || {
        Some(PodSelector {
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
            uid: "u".to_owned(),
        })
    };
    let whole = || IsolateRequest {
        pod: pod(),
        case_id: CASE.to_owned(),
        quarantine: QUARANTINE.to_owned(),
        ..IsolateRequest::default()
    };
    let with = |rule: AllowRule| IsolateRequest {
        allow: vec![rule],
        ..whole()
    };
    let rule = || allow(AllowDirection::Egress, HOST, 443);
    for (request, expected) in [
        (
            IsolateRequest {
                pod: None,
                ..whole()
            },
            "pod:",
        ),
        (
            IsolateRequest {
                case_id: String::new(),
                ..whole()
            },
            "case_id:",
        ),
        (
            IsolateRequest {
                quarantine: "a b".to_owned(),
                ..whole()
            },
            "quarantine:",
        ),
        (
            IsolateRequest {
                allow: vec![rule(); 65],
                ..whole()
            },
            "at most 64",
        ),
        (
            with(AllowRule {
                cidr: "10.0.0.1/8".to_owned(),
                ..rule()
            }),
            "allow, rule 1: cidr:",
        ),
        (
            with(AllowRule {
                port: 65536,
                ..rule()
            }),
            "port:",
        ),
        (
            with(AllowRule {
                direction: 0,
                ..rule()
            }),
            "direction:",
        ),
        (
            with(AllowRule {
                protocol: 9,
                ..rule()
            }),
            "protocol:",
        ),
    ] {
        let status = client.clone().isolate(case(request)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(expected), "{expected}: {status}");
    }
    let probing = |targets: Vec<ProbeTarget>, timeout_ms| ProbeIsolationRequest {
        pod: pod(),
        from_pod: targets,
        from_node: Vec::new(),
        timeout_ms,
        node_port: 0,
    };
    for (request, expected) in [
        (probing(Vec::new(), 0), "at least one"),
        (probing(vec![target(HOST); 17], 0), "at most 16"),
        (probing(vec![target("example.org")], 0), "IP address"),
        (
            probing(
                vec![ProbeTarget {
                    port: 0,
                    ..target(HOST)
                }],
                0,
            ),
            "port from 1",
        ),
        (probing(vec![target(HOST)], 60_000), "timeout_ms"),
    ] {
        let status = client
            .clone()
            .probe_isolation(case(request))
            .await
            .unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(expected), "{expected}: {status}");
    }
}

/// The program itself, with exactly the capabilities that the documentation names.
#[tokio::test(flavor = "multi_thread")]
async fn three_capabilities_are_enough_and_none_less_starts() {
    let suspect = Pod::start("suspect");
    let inward = [target(&suspect.address())];
    let pki = tempfile::tempdir().unwrap();
    issue(pki.path());
    let three = "-all,+net_admin,+sys_admin,+sys_ptrace";
    let (mut agent, address) = confined(pki.path(), three).await;
    let client = loop {
        assert!(agent.try_wait().unwrap().is_none(), "the agent ended");
        if TcpStream::connect(address).await.is_ok() {
            break AgentClient::new(controller(pki.path(), address).await);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    until_connected(&client, &suspect, &[], &inward).await;
    assert!(
        isolate(&client, &suspect, Vec::new())
            .await
            .unwrap()
            .installed
    );
    assert!(
        inspect(&client, &suspect, Vec::new())
            .await
            .unwrap()
            .isolated
    );
    assert_eq!(probe(&client, &suspect, &[], &inward).await[0].0, TimedOut);
    assert!(lift(&client, &suspect).await.unwrap());
    agent.kill().await.unwrap();

    for (capabilities, missing) in [
        ("-all,+sys_admin,+sys_ptrace", "CAP_NET_ADMIN"),
        ("-all,+net_admin,+sys_ptrace", "CAP_SYS_ADMIN"),
        ("-all,+net_admin,+sys_admin", "CAP_SYS_PTRACE"),
    ] {
        let (agent, _) = confined(pki.path(), capabilities).await;
        let output = agent.wait_with_output().await.unwrap();
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && log.contains(missing),
            "{capabilities}: {log}"
        );
    }
}

/// The agent under a bounding set, as in a container with few capabilities.
async fn confined(pki: &Path, capabilities: &str) -> (Child, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let agent = Command::new("setpriv")
        .args(["--inh-caps=-all", &format!("--bounding-set={capabilities}")])
        .arg(env!("CARGO_BIN_EXE_impound-agent"))
        .args([
            "--node",
            NODE,
            "--listen",
            &address.to_string(),
            "--allow-isolation",
        ])
        .args(["--docker-socket", SOCKET, "--tls-dir"])
        .arg(pki.join("agents").join(NODE))
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("install util-linux for `setpriv`");
    (agent, address)
}

#[tokio::test]
async fn an_agent_that_was_not_allowed_to_isolates_nothing_and_says_how_to_allow_it() {
    let world = World::docker().await;
    let mut client = world.client.clone();
    let suspect = Pod::start("suspect");
    let probing = ProbeIsolationRequest {
        pod: Some(suspect.selector.clone()),
        from_pod: vec![target(HOST)],
        ..ProbeIsolationRequest::default()
    };
    for status in [
        isolate(&client, &suspect, Vec::new()).await.unwrap_err(),
        inspect(&client, &suspect, Vec::new()).await.unwrap_err(),
        lift(&client, &suspect).await.unwrap_err(),
        client.probe_isolation(case(probing)).await.unwrap_err(),
    ] {
        assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
        assert!(status.message().contains("--allow-isolation"), "{status}");
    }
    assert!(
        !suspect
            .inside(&["nft", "list", "ruleset"])
            .contains("impound")
    );
}
