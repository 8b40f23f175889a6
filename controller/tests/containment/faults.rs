//! A Kubernetes API that refuses, loses requests and answers, and cuts watches, each at every call:
//! containment and release end as undisturbed ones do, no effect comes twice, and the API is never flooded.

use std::time::Duration;

use impound_controller::resources::QuarantinePhase;
use kube_memory::{Effect, Fault};
use serde_json::Value;

use super::outcome::{Owner, Scene, differences};
use super::world::{CONTROLLER, eventually};

/// Quarantine and release, with the outcome and the effects of both.
async fn both_ways(fault: Option<Fault>) -> [(Value, Vec<String>); 2] {
    let scene = Scene::new(Owner::Deployment).await;
    let handle = fault.map(|fault| {
        let memory = scene.world.api();
        memory.inject(fault.by(CONTROLLER).but("/events"))
    });
    scene.ask().await;
    let contained = scene.ended(QuarantinePhase::Complete).await;
    let contained = (scene.outcome(&contained).await, scene.effects());
    scene.ask_for_release().await;
    let released = scene.ended(QuarantinePhase::Released).await;
    let released = (scene.outcome(&released).await, scene.effects());
    if let Some(handle) = handle {
        assert!(handle.hits() > 3, "only {} calls met it", handle.hits());
    }
    [contained, released]
}

async fn at_every_call(faults: Vec<Fault>) {
    let undisturbed = both_ways(None).await;
    for fault in faults {
        let what = format!("{fault:?}");
        let disturbed = both_ways(Some(fault.each_call_once())).await;
        for (found, expected) in disturbed.iter().zip(&undisturbed) {
            let differs = differences(&found.0, &expected.0);
            assert!(differs.is_empty(), "{what}: {differs:#?}");
            assert_eq!(found.1, expected.1, "{what}");
        }
    }
}

#[tokio::test]
async fn every_call_may_be_refused_once() {
    at_every_call(vec![
        Fault::answer(409),
        Fault::answer(410),
        Fault::answer(429).retry_after(1),
    ])
    .await;
}

#[tokio::test]
async fn every_call_may_meet_a_server_that_fails() {
    at_every_call(vec![Fault::answer(500), Fault::answer(503)]).await;
}

#[tokio::test]
async fn every_call_and_every_answer_may_be_lost_once() {
    at_every_call(vec![
        Fault::new(Effect::DropBefore),
        Fault::new(Effect::DropAfter),
    ])
    .await;
}

#[tokio::test]
async fn every_call_may_cut_all_watches() {
    at_every_call(vec![Fault::new(Effect::CutWatches).on("PATCH", "")]).await;
}

#[tokio::test]
async fn an_eviction_that_hangs_delays_no_containment() {
    let scene = Scene::new(Owner::Deployment).await;
    let memory = scene.world.api();
    let slow =
        memory.inject(Fault::new(Effect::Delay(Duration::from_secs(8))).on("POST", "/eviction"));
    scene.ask().await;
    eventually("the eviction is asked for", || async {
        if slow.hits() > 0 {
            Ok(())
        } else {
            Err("not yet".to_owned())
        }
    })
    .await;
    // Everything that contains has been sent before.
    let effects = scene.effects().len();
    assert_eq!(effects, 5, "{:#?}", scene.effects());
    let pods = scene.world.deployment("other", 1, None).await;
    let started = std::time::Instant::now();
    let mut alice = scene.world.responder("alice").await;
    let request = scene
        .world
        .request(&super::world::name(pods.first().unwrap()));
    let other = alice.create_quarantine(request).await.unwrap().into_inner();
    let other = other.quarantine.unwrap().name;
    eventually("the other pod is contained", || async {
        let now = scene.world.current(&other).await;
        match now.phase.as_str() {
            "Contained" | "Complete" => Ok(()),
            phase => Err(phase.to_owned()),
        }
    })
    .await;
    assert!(
        started.elapsed() < Duration::from_secs(6),
        "it took {:?}",
        started.elapsed()
    );
}
