//! An installation looked at over gRPC: what is found, and what it says to do.

use std::collections::HashMap;

use impound_proto::controller::v1::{Check, DiagnoseRequest};

use super::agent::FakeAgent;
use super::world::{World, eventually};

async fn diagnose(world: &World) -> HashMap<String, Check> {
    let mut eve = world.responder("eve").await;
    let seen = eve.diagnose(DiagnoseRequest {}).await.unwrap().into_inner();
    assert_eq!(seen.version, env!("CARGO_PKG_VERSION"));
    let checks = seen.checks.into_iter();
    checks.map(|check| (check.about.clone(), check)).collect()
}

#[tokio::test]
async fn a_doctor_finds_what_works_and_says_what_to_do_about_the_rest() {
    let mut world = World::in_memory_without_controller().await;
    let node = "k8s-worker2";
    let agent = FakeAgent::new(node);
    let pki = world.dir.path().join("pki/agents").join(node);
    let (port, _serving) = agent.serve(&pki).await;
    world.about_agents = vec!["--agent-port".into(), port.to_string()];
    world.start_controller().await;
    let checks = eventually("a replica works", || async {
        let checks = diagnose(&world).await;
        match checks["working replica"].state.as_str() {
            "ok" => Ok(checks),
            _ => Err(format!("{checks:#?}")),
        }
    })
    .await;
    for good in [
        "Kubernetes API",
        "controller's rights",
        "controller's certificate towards agents",
        "controller's certificate towards responders",
        "store",
        "agent k8s-worker2, clock",
        "agent k8s-worker2, certificate",
    ] {
        assert_eq!(checks[good].state, "ok", "{good}: {:#?}", checks[good]);
    }
    // A directory proves nothing, and the policies are not there.
    for doubtful in ["store's memory", "admission policies"] {
        let check = &checks[doubtful];
        assert_eq!(check.state, "warning", "{check:#?}");
        assert!(!check.remedy.is_empty(), "{check:#?}");
    }
    // All nodes have the address of the one agent, which is another's for two of them.
    let other = &checks["agent k8s-worker1"];
    assert_eq!(other.state, "failed", "{other:#?}");
    assert!(other.remedy.contains("DaemonSet"), "{other:#?}");
    // What was written to try the store is gone again.
    let store = world.dir.path().join("store");
    assert_eq!(std::fs::read_dir(store).unwrap().count(), 0);
}

#[tokio::test]
async fn a_store_that_takes_nothing_is_found() {
    let world = World::start_in_memory().await;
    // As a volume that was unmounted: the directory that is open is no more.
    std::fs::remove_dir(world.dir.path().join("store")).unwrap();
    let store = &diagnose(&world).await["store"];
    assert_eq!(store.state, "failed", "{store:#?}");
}
