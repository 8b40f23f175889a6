//! What the controller asks of the API server while everything is contained and nothing happens.

use std::collections::BTreeMap;
use std::time::Duration;

use super::world::{World, name};

/// Quarantines in force.
const QUARANTINES: usize = 10;

/// Longer than the time between two looks at a quarantine.
const WINDOW: Duration = Duration::from_secs(60);

#[tokio::test]
async fn ten_quarantines_at_rest_cost_the_api_server_one_request_a_second() {
    let world = World::start_in_memory().await;
    let pods = world.deployment("web", QUARANTINES, None).await;
    let mut alice = world.responder("alice").await;
    let mut names = Vec::new();
    for pod in &pods {
        let mut request = world.request(&name(pod));
        request.keep_neighbours = true;
        request.skip_collection = true;
        let answer = alice.create_quarantine(request).await.unwrap().into_inner();
        names.push(answer.quarantine.unwrap().name);
    }
    for one in &names {
        assert_eq!(world.settled(one).await.phase, "Complete");
    }
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
    let limit = usize::try_from(WINDOW.as_secs()).unwrap();
    assert!(
        requests.len() <= limit,
        "{} requests in {WINDOW:?}: {by_kind:#?}",
        requests.len()
    );
}
