//! An agent that is split by privilege does what one process does, and the front lets nothing else
//! through.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use impound_agent::Part;
use impound_agent::runtime::docker::Docker;
use impound_proto::agent::v1::agent_client::AgentClient;
use impound_proto::agent::v1::{
    CommitRequest, ExportRequest, InfoRequest, InspectIsolationRequest, PodSelector,
};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::engine::{self, Container, SOCKET, docker};
use crate::fake::{Export, Fake};
use crate::process::{free_address, get, probe};
use crate::world::{NODE, World, case, controller, issue, socket};

#[tokio::test]
async fn evidence_through_front_and_collector_is_what_docker_gives() {
    engine::require();
    let container = Container::exited("echo changed > /srv/file; rm /etc/doomed");
    let mut world = World::split(Docker::new(SOCKET), false).await;
    let artifact = world.export(&container.id).await.unwrap();
    assert!(artifact.complete());
    assert_eq!(artifact.bytes, docker(&["export", &container.id]));
    let info = world.client.info(case(InfoRequest {})).await.unwrap();
    assert_eq!(info.get_ref().node, NODE);
}

#[tokio::test]
async fn what_breaks_behind_the_front_is_told_in_front_of_it() {
    let fake = Fake::new(Export::Breaks(vec![0; 100_000].into()));
    let id = fake.id().to_owned();
    let mut world = World::split(fake, false).await;
    let Err(status) = world.export(&id).await else {
        panic!("a broken export ended well");
    };
    assert_eq!(status.code(), Code::DataLoss, "{status}");
    let Err(status) = world.export(&"cd".repeat(32)).await else {
        panic!("a container that is not there was exported");
    };
    assert_eq!(status.code(), Code::NotFound, "{status}");
}

#[tokio::test]
async fn a_client_that_leaves_stops_the_export_in_the_collector() {
    let fake = Fake::new(Export::Endless);
    let (id, observed) = (fake.id().to_owned(), Arc::clone(&fake.observed));
    let mut world = World::split(fake, false).await;
    let request = case(ExportRequest { container_id: id });
    let mut stream = world.client.export(request).await.unwrap().into_inner();
    for _ in 0..3 {
        stream.message().await.unwrap().unwrap();
    }
    drop(stream);
    while observed.dropped.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_client_that_stops_reading_holds_the_export_back_not_the_memory() {
    let fake = Fake::new(Export::Endless);
    let (id, observed) = (fake.id().to_owned(), Arc::clone(&fake.observed));
    let mut world = World::split(fake, false).await;
    let request = case(ExportRequest { container_id: id });
    let stream = world.client.export(request).await.unwrap().into_inner();
    // Until nothing moves any more: both hops' windows are full.
    let mut pulled = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = observed.pulled.load(Ordering::SeqCst);
        if now == pulled && now > 0 {
            break;
        }
        pulled = now;
    }
    assert!(
        pulled < 32 << 20,
        "{pulled} bytes are on their way to a client that reads nothing"
    );
    drop(stream);
}

#[tokio::test]
async fn a_message_that_is_too_large_never_reaches_the_collector() {
    let fake = Fake::new(Export::Endless);
    let observed = Arc::clone(&fake.observed);
    let mut world = World::split(fake, false).await;
    let status = world
        .client
        .commit(case(CommitRequest {
            message: "x".repeat(70_000),
            ..CommitRequest::default()
        }))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    assert_eq!(observed.calls.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn isolation_that_was_not_chosen_is_refused_with_what_to_do() {
    let mut world = World::split(Fake::new(Export::Endless), false).await;
    let status = world
        .client
        .inspect_isolation(case(InspectIsolationRequest::default()))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    assert!(status.message().contains("isolation.enabled"), "{status}");
}

#[tokio::test]
async fn isolation_goes_to_the_isolator_and_nothing_else_does() {
    let mut world = World::split(Fake::new(Export::Endless), true).await;
    let pod = PodSelector {
        namespace: "default".into(),
        name: "web".into(),
        uid: "1".into(),
    };
    // Only the isolator gets so far as to look for the pod.
    let request = InspectIsolationRequest {
        pod: Some(pod),
        ..InspectIsolationRequest::default()
    };
    let status = world
        .client
        .inspect_isolation(case(request.clone()))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::NotFound, "{status}");

    let collector = behind_the_front(world.pki.path(), Part::Collector).await;
    let status = AgentClient::new(collector)
        .inspect_isolation(as_front(request))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented, "{status}");
    let isolator = behind_the_front(world.pki.path(), Part::Isolator).await;
    let status = AgentClient::new(isolator)
        .info(as_front(InfoRequest {}))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented, "{status}");
}

#[tokio::test]
async fn a_part_answers_nobody_whom_the_front_does_not_name() {
    let fake = Fake::new(Export::Endless);
    let (id, observed) = (fake.id().to_owned(), Arc::clone(&fake.observed));
    let world = World::split(fake, false).await;
    let collector = behind_the_front(world.pki.path(), Part::Collector).await;
    let status = AgentClient::new(collector)
        .export(case(ExportRequest { container_id: id }))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    assert_eq!(observed.calls.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_controller_cannot_pass_for_somebody_else_behind_the_front() {
    let mut world = World::split(Fake::new(Export::Endless), false).await;
    let mut request = case(InfoRequest {});
    for (name, value) in [
        ("impound-peer", "spiffe://impound.dev/agent/k8s-worker2"),
        ("impound-peer-remote", "nonsense"),
        ("impound-peer-certificate", "nonsense"),
    ] {
        request.metadata_mut().insert(name, value.parse().unwrap());
    }
    // What it claims is dropped; the collector sees what the certificate says.
    world.client.info(request).await.unwrap();
}

#[tokio::test]
async fn without_its_collector_the_front_says_so_and_goes_on_once_it_is_back() {
    let fake = Fake::new(Export::Endless);
    let mut world = World::split(fake.clone(), false).await;
    world.client.info(case(InfoRequest {})).await.unwrap();
    let health = HealthClient::new(controller(world.pki.path(), world.address).await);
    until(&health, ServingStatus::Serving).await;
    world.parts.shutdown().await;
    let status = world.client.info(case(InfoRequest {})).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(
        status.message().contains("collector of node k8s-worker2"),
        "{status}"
    );
    until(&health, ServingStatus::NotServing).await;

    let worker = impound_agent::Worker {
        part: Part::Collector,
        node: NODE.parse().unwrap(),
        runtime: Arc::new(fake),
        disk: impound_agent::Disk::new("/", 0),
        state_dir: world.pki.path().join("state"),
        front_uid: rustix::process::getuid().as_raw(),
        drain: Duration::from_secs(1),
    };
    let listener = impound_agent::listen(&socket(world.pki.path(), Part::Collector)).unwrap();
    world
        .parts
        .spawn(worker.serve(listener, std::future::pending()));
    while world.client.info(case(InfoRequest {})).await.is_err() {
        tokio::task::yield_now().await;
    }
    until(&health, ServingStatus::Serving).await;
}

#[tokio::test]
async fn the_processes_are_confined_and_work_together() {
    engine::require();
    let container = Container::exited("echo changed > /srv/file");
    let pki = tempfile::tempdir().unwrap();
    issue(pki.path());
    let (listen, ready) = (free_address().await, free_address().await);
    let own = rustix::process::getuid().as_raw().to_string();
    let at = |part| socket(pki.path(), part).to_string();
    let (collector_at, isolator_at) = (at(Part::Collector), at(Part::Isolator));
    let docker_at = ["--docker-socket", SOCKET, "--front-uid", &own, "--listen"];
    let collector = start("collector", &[&docker_at[..], &[&collector_at]].concat());
    let isolator = start("isolator", &[&docker_at[..], &[&isolator_at]].concat());
    let tls = pki.path().join("agents").join(NODE);
    let front = start(
        "front",
        &[
            "--tls-dir",
            tls.to_str().unwrap(),
            "--listen",
            &listen,
            "--ready-listen",
            &ready,
            "--collector",
            &collector_at,
            "--isolator",
            &isolator_at,
        ],
    );
    while probe(&ready).await != Some(200) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for process in [&collector, &isolator, &front] {
        let status = status(process);
        for line in ["Seccomp:\t2", "NoNewPrivs:\t1"] {
            assert!(status.contains(line), "expected {line:?} in {status}");
        }
        let proc = Path::new("/proc").join(process.id().unwrap().to_string());
        let limits = std::fs::read_to_string(proc.join("limits")).unwrap();
        let core = limits
            .lines()
            .find(|line| line.starts_with("Max core file size"));
        assert!(
            core.unwrap()
                .split_whitespace()
                .filter(|word| *word == "0")
                .count()
                == 2,
            "{core:?}"
        );
        let arguments = std::fs::read_to_string(proc.join("cmdline")).unwrap();
        assert!(!arguments.contains("PRIVATE"));
    }
    let mut client = AgentClient::new(controller(pki.path(), listen.parse().unwrap()).await);
    let request = case(ExportRequest {
        container_id: container.id.clone(),
    });
    let exported = client.export(request).await.unwrap().into_inner();
    let artifact = crate::world::Artifact::read(exported).await.unwrap();
    assert!(artifact.complete());
    let pod = PodSelector {
        namespace: "default".into(),
        name: "none".into(),
        uid: "1".into(),
    };
    let request = InspectIsolationRequest {
        pod: Some(pod),
        ..InspectIsolationRequest::default()
    };
    let status = client.inspect_isolation(case(request)).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound, "{status}");

    drop(collector);
    let pending = loop {
        match get(&ready).await {
            Some(text) if text.starts_with("HTTP/1.1 503") => break text,
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    assert!(
        pending.contains("the collector does not answer"),
        "{pending}"
    );
}

fn start(mode: &str, arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_impound-agent"))
        .args([mode, "--node", NODE])
        .args(arguments)
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

fn status(process: &Child) -> String {
    std::fs::read_to_string(format!("/proc/{}/status", process.id().unwrap())).unwrap()
}

async fn until(health: &HealthClient<Channel>, wanted: ServingStatus) {
    let mut watch = health
        .clone()
        .watch(HealthCheckRequest::default())
        .await
        .unwrap()
        .into_inner();
    while watch.message().await.unwrap().unwrap().status() != wanted {}
}

/// A channel to a part, as only the front has it.
async fn behind_the_front(dir: &Path, part: Part) -> Channel {
    let path = socket(dir, part).as_path().to_owned();
    let connect = tower::service_fn(move |_| {
        let path = path.clone();
        async move {
            let stream = UnixStream::connect(path).await?;
            std::io::Result::Ok(hyper_util::rt::TokioIo::new(stream))
        }
    });
    Endpoint::from_static("http://part")
        .connect_with_connector(connect)
        .await
        .unwrap()
}

/// A request that names a peer as the front does.
fn as_front<T>(message: T) -> Request<T> {
    let mut request = case(message);
    let certificate = "00".repeat(32);
    for (name, value) in [
        ("impound-peer", "spiffe://impound.dev/controller"),
        ("impound-peer-certificate", &certificate),
        ("impound-peer-remote", "10.0.0.9:40000"),
    ] {
        request.metadata_mut().insert(name, value.parse().unwrap());
    }
    request
}
