//! A controller that waits, whatever for, asks the Kubernetes API fewer than five times in any second: lease,
//! watches, events and all. And it comes again no sooner than it was asked to.

use std::collections::BTreeSet;
use std::time::Duration;

use impound_controller::resources::QuarantinePhase;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams};
use kube_memory::{Effect, Fault, RequestRecord};
use serde_json::json;

use super::outcome::{Owner, Scene};
use super::world::{CONTROLLER, eventually};

/// Scenes at a time: each has a cluster and a controller.
const AT_ONCE: usize = 6;

/// The third attempt at a step has been made within this time.
const THIRD_ATTEMPT: Duration = Duration::from_secs(8);

/// What was begun before the trouble ends within this time: a containment is sent at once.
const BURST: Duration = Duration::from_millis(1500);

const WATCHED: Duration = Duration::from_secs(9);

#[derive(Clone, Copy, Debug, PartialEq)]
enum During {
    Quarantine,
    Release,
}

/// What comes of the job while the faults last: what is asked for is noticed as long as watches come at all.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Meanwhile {
    Waits,
    Done,
    DoneAndShown,
}

/// When each request was answered, in microseconds.
fn times<'a>(requests: impl IntoIterator<Item = &'a RequestRecord>) -> Vec<i64> {
    let time = |request: &RequestRecord| request.time.parse::<Timestamp>().unwrap();
    let requests = requests.into_iter();
    requests
        .map(|request| time(request).as_microsecond())
        .collect()
}

/// The requests of the second that has most of them, sliding.
fn worst_second(requests: &[RequestRecord]) -> Vec<String> {
    let times = times(requests);
    let window = |first: &i64| {
        let within = times.iter().zip(requests);
        within
            .filter(|(time, _)| (*first..*first + 1_000_000).contains(*time))
            .map(|(time, request)| {
                let since = time - first;
                format!(
                    "+{since} us {} {}: {}",
                    request.method, request.path, request.status
                )
            })
            .collect::<Vec<_>>()
    };
    times
        .iter()
        .map(window)
        .max_by_key(Vec::len)
        .unwrap_or_default()
}

/// Every watch has been asked for again, so that what was changed so far has been shown and answered.
async fn shown(scene: &Scene) {
    let watch = |request: &RequestRecord| {
        let (path, query) = request.path.split_once('?')?;
        query.contains("watch=true").then(|| path.to_owned())
    };
    let before = scene.world.requests();
    let watched: BTreeSet<_> = before.iter().filter_map(watch).collect();
    eventually("what has changed is shown", || async {
        let since = scene.world.requests().split_off(before.len());
        let again: BTreeSet<_> = since.iter().filter_map(watch).collect();
        let missing: Vec<_> = watched.difference(&again).collect();
        if missing.is_empty() {
            Ok(())
        } else {
            Err(format!("not {missing:?}"))
        }
    })
    .await;
}

/// The worst second while faults last. What is done all the same is done before that second is looked for.
async fn waited(during: During, faults: Vec<Fault>, meanwhile: Meanwhile) -> Vec<String> {
    let scene = Scene::new(Owner::Deployment).await;
    let memory = scene.world.api();
    if during == During::Release {
        scene.ask().await;
        scene.ended(QuarantinePhase::Complete).await;
    }
    let faults = faults
        .into_iter()
        .map(|fault| memory.inject(fault.by(CONTROLLER)));
    let faults: Vec<_> = faults.collect();
    match during {
        During::Quarantine => scene.ask().await,
        During::Release => scene.ask_for_release().await,
    }
    eventually("the fault is met", || async {
        let hits: usize = faults.iter().map(kube_memory::FaultHandle::hits).sum();
        if hits > 1 {
            Ok(())
        } else {
            Err(format!("{hits} times"))
        }
    })
    .await;
    let phase = match during {
        During::Quarantine => QuarantinePhase::Complete,
        During::Release => QuarantinePhase::Released,
    };
    if meanwhile != Meanwhile::Waits {
        scene.ended(phase).await;
    }
    if meanwhile == Meanwhile::DoneAndShown {
        shown(&scene).await;
    }
    // After the third refusal of a policy or strip the rest goes on, once and at once: that is no waiting.
    if during == During::Quarantine {
        tokio::time::sleep(THIRD_ATTEMPT).await;
    }
    tokio::time::sleep(BURST).await;
    let before = scene.world.requests().len();
    tokio::time::sleep(WATCHED).await;
    let requests = scene.world.requests().split_off(before);
    for fault in faults {
        fault.remove();
    }
    scene.ended(phase).await;
    worst_second(&requests)
}

async fn each_waits_slowly(during: During, faults: Vec<(&str, Vec<Fault>)>) {
    let mut wrong = Vec::new();
    for some in faults.chunks(AT_ONCE) {
        let runs = some.iter().cloned().map(|(what, faults)| async move {
            let meanwhile = match during {
                _ if what.contains("every watch") => Meanwhile::DoneAndShown,
                // Lists take their place.
                During::Quarantine if what == "watches are refused with 410" => {
                    Meanwhile::DoneAndShown
                }
                During::Quarantine if what.contains("watches") => Meanwhile::Done,
                _ => Meanwhile::Waits,
            };
            (what, waited(during, faults, meanwhile).await)
        });
        for (what, worst) in futures::future::join_all(runs).await {
            if worst.len() >= 5 {
                wrong.push(format!(
                    "{during:?}, {what}: {} in a second: {worst:#?}",
                    worst.len()
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Trouble with everything, and with watches.
fn general() -> Vec<(&'static str, Vec<Fault>)> {
    let all = |fault: Fault| vec![fault.but("/leases")];
    let watches = |fault: Fault| {
        let cut = Fault::new(Effect::CutWatches)
            .on("GET", "/networkpolicies")
            .times(1);
        vec![cut, fault.on("GET", "watch=")]
    };
    vec![
        ("every call is refused with 409", all(Fault::answer(409))),
        ("every call is refused with 410", all(Fault::answer(410))),
        (
            "every call is refused with 429 and Retry-After in the header alone",
            all(Fault::answer(429).retry_after(1).plain()),
        ),
        ("every call fails", all(Fault::answer(503))),
        (
            "every connection is dropped",
            all(Fault::new(Effect::DropBefore)),
        ),
        ("watches are refused with 410", watches(Fault::answer(410))),
        ("watches are refused with 503", watches(Fault::answer(503))),
        (
            "every watch that is begun cuts all",
            watches(Fault::new(Effect::CutWatches)),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_general_trouble_it_asks_less_than_five_times_in_any_second() {
    each_waits_slowly(During::Quarantine, general()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_general_trouble_a_release_asks_less_than_five_times_in_any_second() {
    each_waits_slowly(During::Release, general()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_call_that_fails_is_tried_again_less_than_five_times_in_any_second() {
    let strip = |fault: Fault| vec![fault.on("PATCH", "/pods/")];
    each_waits_slowly(
        During::Quarantine,
        vec![
            ("the strip meets a conflict", strip(Fault::answer(409))),
            ("the strip is refused with 410", strip(Fault::answer(410))),
            (
                "the strip is refused with 429",
                strip(Fault::answer(429).retry_after(1)),
            ),
            (
                "the strip's connection is dropped",
                strip(Fault::new(Effect::DropBefore)),
            ),
            ("the pod can't be patched", strip(Fault::answer(503))),
            (
                "the policy is refused",
                vec![Fault::answer(403).on("POST", "/networkpolicies")],
            ),
            (
                "a budget blocks the eviction",
                vec![Fault::answer(429).on("POST", "/eviction")],
            ),
            (
                "the status meets a conflict",
                vec![Fault::answer(409).on("PATCH", "/status")],
            ),
            (
                "the status is not taken",
                vec![Fault::answer(500).on("PATCH", "/status")],
            ),
            (
                "pods can't be read",
                vec![Fault::answer(503).on("GET", "/pods")],
            ),
            (
                "endpoints can't be read",
                vec![Fault::answer(503).on("GET", "/endpointslices")],
            ),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_call_of_a_release_that_fails_is_tried_again_less_than_five_times_in_any_second() {
    let strip = |fault: Fault| vec![fault.on("PATCH", "/pods/")];
    each_waits_slowly(
        During::Release,
        vec![
            ("the pod meets a conflict", strip(Fault::answer(409))),
            ("the pod is refused with 410", strip(Fault::answer(410))),
            (
                "the pod is refused with 429",
                strip(Fault::answer(429).retry_after(1)),
            ),
            (
                "the pod's connection is dropped",
                strip(Fault::new(Effect::DropBefore)),
            ),
            (
                "the node meets a conflict",
                vec![Fault::answer(409).on("PATCH", "/nodes/")],
            ),
            (
                "the policy can't be deleted",
                vec![Fault::answer(500).on("DELETE", "/networkpolicies/")],
            ),
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_slice_that_is_late_is_waited_for_slowly() {
    let scene = Scene::new(Owner::Deployment).await;
    let suspect = scene.world.pod(&scene.suspect).await;
    let address = suspect.status.unwrap().pod_ip.unwrap();
    scene
        .world
        .create(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": { "name": "late" }, "endpoints": [{ "addresses": [address] }], "ports": [],
        }))
        .await;
    scene.ask().await;
    eventually("verification begins", || async {
        let requests = scene.world.requests();
        match requests
            .iter()
            .any(|request| request.path.ends_with("/endpointslices"))
        {
            true => Ok(()),
            false => Err("not yet".to_owned()),
        }
    })
    .await;
    tokio::time::sleep(BURST).await;
    let before = scene.world.requests().len();
    tokio::time::sleep(Duration::from_secs(7)).await;
    let requests = scene.world.requests().split_off(before);
    let looks = requests
        .iter()
        .filter(|request| request.path.ends_with("/endpointslices"));
    assert!(looks.count() > 1, "it was not waited for: {requests:#?}");
    let slices = Api::<k8s_openapi::api::discovery::v1::EndpointSlice>::namespaced(
        scene.world.client.clone(),
        &scene.world.namespace,
    );
    slices
        .delete("late", &DeleteParams::default())
        .await
        .unwrap();
    scene.ended(QuarantinePhase::Complete).await;
    let worst = worst_second(&requests);
    assert!(worst.len() < 5, "{worst:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_not_be_put_back_is_tried_again_less_than_five_times_in_any_second() {
    let scene = Scene::new(Owner::Deployment).await;
    scene.ask().await;
    scene.ended(QuarantinePhase::Complete).await;
    let memory = scene.world.api();
    let conflict = memory.inject(
        Fault::answer(409)
            .by(CONTROLLER)
            .on("POST", "/networkpolicies"),
    );
    let policies = Api::<k8s_openapi::api::networking::v1::NetworkPolicy>::namespaced(
        scene.world.client.clone(),
        &scene.world.namespace,
    );
    let policy = "deny-all-suspectpod";
    policies
        .delete(policy, &DeleteParams::default())
        .await
        .unwrap();
    eventually("it is tried", || async {
        if conflict.hits() > 1 {
            Ok(())
        } else {
            Err("not yet".to_owned())
        }
    })
    .await;
    tokio::time::sleep(BURST).await;
    let before = scene.world.requests().len();
    tokio::time::sleep(WATCHED).await;
    let requests = scene.world.requests().split_off(before);
    conflict.remove();
    eventually("it is put back", || async {
        let found = policies.get_opt(policy).await.unwrap();
        found.map(drop).ok_or_else(|| "not yet".to_owned())
    })
    .await;
    let worst = worst_second(&requests);
    assert!(worst.len() < 5, "{worst:#?}");
}

/// A refusal whose Retry-After is in the header alone, and the pause until the call comes again.
async fn pause_after(during: During, method: &str, path: &str) -> Duration {
    let scene = Scene::new(Owner::Deployment).await;
    let memory = scene.world.api();
    if during == During::Release {
        scene.ask().await;
        scene.ended(QuarantinePhase::Complete).await;
    }
    let before = scene.world.requests().len();
    let overloaded = Fault::answer(429).retry_after(3).plain();
    let fault = memory.inject(overloaded.by(CONTROLLER).on(method, path).times(1));
    let phase = match during {
        During::Quarantine => {
            scene.ask().await;
            QuarantinePhase::Complete
        }
        During::Release => {
            scene.ask_for_release().await;
            QuarantinePhase::Released
        }
    };
    scene.ended(phase).await;
    assert_eq!(fault.hits(), 1, "{method} {path}");
    let requests = scene.world.requests().split_off(before);
    let refused = requests
        .iter()
        .position(|request| request.status == 429)
        .unwrap();
    let call = requests.get(refused).unwrap();
    let again = requests
        .iter()
        .skip(refused + 1)
        .find(|request| request.method == call.method && request.path == call.path)
        .unwrap();
    let times = times([call, again]);
    Duration::from_micros((times[1] - times[0]).unsigned_abs())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_after_in_the_header_alone_is_kept() {
    use During::{Quarantine, Release};
    let calls = [
        (Quarantine, "PATCH", "/pods/"),
        (Quarantine, "GET", "/services"),
        (Quarantine, "PATCH", "/status"),
        (Release, "PATCH", "/pods/"),
        (Release, "PATCH", "/status"),
    ];
    let pauses = calls.map(|(during, method, path)| async move {
        (
            during,
            method,
            path,
            pause_after(during, method, path).await,
        )
    });
    let pauses = futures::future::join_all(pauses).await;
    let kept = |pause: &Duration| (2900..6000).contains(&pause.as_millis());
    assert!(pauses.iter().all(|(.., pause)| kept(pause)), "{pauses:?}");
}
