//! A Kubernetes API that refuses, loses requests and answers, and cuts watches, each at every call:
//! containment and release end as undisturbed ones do, no effect comes twice, and the API is never flooded.

use std::collections::BTreeMap;
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
        let memory = scene.world.memory.as_ref().unwrap();
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

/// All requests of the controller a second, lease and events included, over ten seconds of a fault that lasts,
/// and which they were.
async fn rate(fault: Fault) -> (f64, BTreeMap<String, usize>) {
    const SECONDS: u32 = 10;
    let scene = Scene::new(Owner::Deployment).await;
    let memory = scene.world.memory.as_ref().unwrap();
    let handle = memory.inject(fault.by(CONTROLLER));
    scene.ask().await;
    // What goes on without the refused call is done by then.
    eventually("the fault is met", || async {
        if handle.hits() > 3 {
            Ok(())
        } else {
            Err("not yet".to_owned())
        }
    })
    .await;
    let before = scene.world.requests().len();
    tokio::time::sleep(Duration::from_secs(SECONDS.into())).await;
    let requests = scene.world.requests().split_off(before);
    let rate = f64::from(u32::try_from(requests.len()).unwrap()) / f64::from(SECONDS);
    let mut which = BTreeMap::new();
    for request in requests {
        let path = request.path.split('?').next().unwrap_or_default();
        let path = path.replace(&scene.world.namespace, "NAMESPACE");
        *which
            .entry(format!("{} {path}", request.method))
            .or_default() += 1;
    }
    handle.remove();
    // It was not waiting for nothing.
    scene.ended(QuarantinePhase::Complete).await;
    (rate, which)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_that_waits_asks_less_than_five_times_a_second() {
    let faults = [
        (
            "the pod can't be patched",
            Fault::answer(503).on("PATCH", "/pods/"),
        ),
        (
            "the policy is refused",
            Fault::answer(403).on("POST", "/networkpolicies"),
        ),
        (
            "a budget blocks the eviction",
            Fault::answer(429).on("POST", "/eviction"),
        ),
        (
            "the status is not taken",
            Fault::answer(500).on("PATCH", "/status"),
        ),
        ("pods can't be read", Fault::answer(503).on("GET", "/pods")),
    ];
    let rates = faults.map(|(what, fault)| async move { (what, rate(fault).await) });
    let rates = futures::future::join_all(rates).await;
    assert!(rates.iter().all(|(_, (rate, _))| *rate < 5.0), "{rates:#?}");
}

#[tokio::test]
async fn an_eviction_that_hangs_delays_no_containment() {
    let scene = Scene::new(Owner::Deployment).await;
    let memory = scene.world.memory.as_ref().unwrap();
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
