//! A Kubernetes API that refuses, loses answers and cuts watches: containment converges, and never
//! floods the API.

use kube_memory::{Effect, Fault};

use super::world::{World, name};

async fn converges(fault: Fault) {
    let world = World::start_in_memory().await;
    let pods = world.deployment("nginx", 2, None).await;
    let handle = world.memory.as_ref().unwrap().inject(fault);
    let mut alice = world.responder("alice").await;
    let request = world.request(&name(pods.first().unwrap()));
    let quarantine = loop {
        // The request itself may meet the fault; a responder tries again.
        match alice.create_quarantine(request.clone()).await {
            Ok(created) => break created.into_inner().quarantine.unwrap().name,
            Err(status) if status.code() == tonic::Code::AlreadyExists => {
                break world.current(&request.pod).await.name;
            }
            Err(status) => assert!(
                matches!(
                    status.code(),
                    tonic::Code::Unavailable | tonic::Code::Aborted
                ),
                "{status}"
            ),
        }
    };
    let done = world.settled(&quarantine).await;
    assert!(handle.hits() > 0, "the fault was never met");
    assert_eq!(done.phase, "Complete", "{done:#?}");
}

#[tokio::test]
async fn refused_writes_are_tried_again() {
    for status in [409, 429, 500, 503] {
        converges(Fault::answer(status).on("PATCH", "/api/v1/").times(3)).await;
    }
}

#[tokio::test]
async fn lost_connections_and_lost_answers_are_looked_into_and_not_repeated() {
    for effect in [Effect::DropBefore, Effect::DropAfter] {
        for (method, path) in [
            ("POST", "/networkpolicies"),
            ("POST", "/poddisruptionbudgets"),
            ("PATCH", "/pods/"),
            ("PATCH", "/nodes/"),
            ("PATCH", "/status"),
        ] {
            converges(Fault::new(effect.clone()).on(method, path).times(1)).await;
        }
    }
}

#[tokio::test]
async fn cut_watches_lose_nothing() {
    converges(Fault::new(Effect::CutWatches).on("PATCH", "").times(5)).await;
}
