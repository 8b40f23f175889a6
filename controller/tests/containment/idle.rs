//! What the controller asks of the API server while everything is contained and nothing happens.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use super::agent::FakeAgent;
use super::world::{World, eventually, name};

/// Quarantines in force.
const QUARANTINES: usize = 10;

/// Longer than the time between two looks at a quarantine.
const WINDOW: Duration = Duration::from_secs(60);

#[tokio::test]
async fn ten_quarantines_at_rest_cost_the_api_server_one_request_a_second() {
    let world = World::start_in_memory().await;
    let pods = world.deployment("web", QUARANTINES, None).await;
    let names = quarantined(&world, &pods).await;
    at_rest(&world, &names, WINDOW.as_secs()).await;
}

#[tokio::test]
async fn ten_isolated_at_their_node_cost_it_half_more_and_a_table_that_goes_is_put_back() {
    const NODE: &str = "k8s-worker1";
    let mut world = World::in_memory_without_controller().await;
    let agent = FakeAgent::new(NODE);
    let tls = world.dir.path().join("pki/agents").join(NODE);
    let (port, _server) = agent.serve(&tls).await;
    world.about_agents = vec!["--agent-port".into(), port.to_string()];
    world.start_controller().await;
    let pods = world.deployment("web", QUARANTINES, Some(NODE)).await;
    let names = quarantined(&world, &pods).await;
    let looks = || {
        let calls = agent.calls();
        calls
            .iter()
            .filter(|call| call.contains("inspect_isolation"))
            .count()
    };
    let before = looks();
    // For each look at a table the agent is found by its Node.
    at_rest(&world, &names, WINDOW.as_secs() * 3 / 2).await;
    assert!(looks() >= before + QUARANTINES, "{:#?}", agent.calls());
    agent.state.lock().unwrap().isolated = false;
    eventually("the table is put back", || async {
        let now = world.current(&names[0]).await;
        let back = now
            .drift
            .iter()
            .any(|drift| drift.what.contains("the table was removed"));
        if back {
            Ok(())
        } else {
            Err(format!("{:#?}", now.drift))
        }
    })
    .await;
}

async fn quarantined(world: &World, pods: &[Pod]) -> Vec<String> {
    let mut alice = world.responder("alice").await;
    let mut names = Vec::new();
    for pod in pods {
        let mut request = world.request(&name(pod));
        request.keep_neighbours = true;
        request.skip_collection = true;
        let answer = alice.create_quarantine(request).await.unwrap().into_inner();
        names.push(answer.quarantine.unwrap().name);
    }
    for one in &names {
        assert_eq!(world.settled(one).await.phase, "Complete");
    }
    names
}

/// Nothing happens for a while, and little is asked.
async fn at_rest(world: &World, names: &[String], limit: u64) {
    // What came of the last of them is over.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let before = world.requests().len();
    tokio::time::sleep(WINDOW).await;
    let requests = world.requests().split_off(before);
    let mut by_kind: BTreeMap<String, usize> = BTreeMap::new();
    for request in &requests {
        let path = request.path.split('?').next().unwrap_or_default();
        let path = path.replace(&world.namespace, "{ns}");
        let kind: Vec<&str> = path
            .split('/')
            .filter(|part| !names.iter().any(|name| part.contains(name.as_str())))
            .collect();
        *by_kind
            .entry(format!("{} {}", request.method, kind.join("/")))
            .or_default() += 1;
    }
    assert!(
        requests.len() as u64 <= limit,
        "{} requests in {WINDOW:?}: {by_kind:#?}",
        requests.len()
    );
}
