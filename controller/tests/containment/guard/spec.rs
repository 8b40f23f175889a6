//! What a quarantined pod is made of stays as it is, and a guard that was made for another controller is
//! told before it is in the way.

use impound_controller::contain::guard;
use impound_controller::contain::settings::Settings;
use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use serde_json::{Value, json};

use super::super::health::page;
use super::super::world::{CONTROLLER, World, eventually, name};
use super::{Guarded, ask, controller, install};

#[tokio::test]
async fn nothing_that_a_quarantined_pod_is_made_of_is_changed_until_its_release() {
    let guarded = Guarded::start().await;
    let world = &guarded.world;
    let pods = world.deployment("nginx", 2, None).await;
    let suspect = name(pods.first().unwrap());
    let pod = guarded.path("v1", &format!("pods/{suspect}"));
    let container = |pod: &Pod| pod.spec.as_ref().unwrap().containers[0].clone();
    let changed = |pod: &Pod, change: Value| {
        let mut changed = serde_json::to_value(container(pod)).unwrap();
        for (field, value) in change.as_object().unwrap() {
            changed[field] = value.clone();
        }
        json!({ "spec": { "containers": [changed] } })
    };
    let debugger = json!({ "spec": { "ephemeralContainers": [{
        "name": "debugger", "image": "busybox:1", "targetContainerName": container(&pods[0]).name }] } });
    let more = json!({ "limits": { "memory": "64Mi" }, "requests": { "memory": "32Mi" } });
    let mut changes = vec![
        (
            "another image",
            pod.clone(),
            changed(&pods[0], json!({ "image": "busybox:2" })),
        ),
        (
            "a deadline",
            pod.clone(),
            json!({ "spec": { "activeDeadlineSeconds": 1 } }),
        ),
        (
            "a debug container",
            format!("{pod}/ephemeralcontainers"),
            debugger,
        ),
    ];
    // A real server lets no pod without requests have some: that it would be refused anyway shows nothing.
    if world.memory.is_some() {
        let resize = |pod: &Pod| {
            let path = guarded.path("v1", &format!("pods/{}/resize", name(pod)));
            (path, changed(pod, json!({ "resources": more })))
        };
        let (path, body) = resize(&pods[1]);
        let (code, message) = guarded.mallory("PATCH", &path, body).await;
        assert_eq!(code, 200, "without a quarantine it is possible: {message}");
        let (path, body) = resize(&pods[0]);
        changes.push(("a resize", path, body));
    }
    let quarantine = world.quarantine(&suspect).await;
    for (what, path, body) in &changes {
        guarded.refused(what, "PATCH", path, body.clone()).await;
    }
    world.release(&quarantine.name, false).await.unwrap();
    assert_eq!(world.settled(&quarantine.name).await.phase, "Released");
    // It is nobody's business any more; on a real cluster the pod's owner may have had it deleted.
    let deadline = json!({ "spec": { "activeDeadlineSeconds": 3600 } });
    let (code, message) = guarded.mallory("PATCH", &pod, deadline).await;
    assert!(matches!(code, 200 | 404), "{message}");
    guarded.end().await;
}

#[tokio::test]
async fn a_guard_that_lets_another_controller_through_is_said_at_start_and_as_a_fact() {
    let mut world = World::in_memory_without_controller().await;
    install(
        &world.client,
        guard::guard("system:serviceaccount:other:impound", &Settings::default()),
    )
    .await;
    world.start_controller().await;
    let said = eventually("it is said", || async {
        match page(&world, "/ready").await {
            (200, text) if text.contains("degraded") => Ok(text),
            answer => Err(format!("{answer:?}")),
        }
    })
    .await;
    for part in [
        "system:serviceaccount:other:impound",
        &format!("not {CONTROLLER}"),
        "impound-controller admission --user impound | kubectl apply",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let client = controller(&world).await;
    let fact = stands(&client).await;
    assert_eq!(fact.0, "False", "{fact:?}");
    assert!(fact.1.contains("the release among them"), "{fact:?}");

    for policy in guard::guard(CONTROLLER, &Settings::default()) {
        let plural = super::plural(&policy);
        let name = policy["metadata"]["name"].as_str().unwrap();
        let path = format!("{}/{plural}/{name}", super::POLICIES);
        ask(&world.client, "DELETE", &path, &Value::Null, "").await;
    }
    install(
        &world.client,
        guard::guard(CONTROLLER, &Settings::default()),
    )
    .await;
    assert_eq!(stands(&client).await.0, "True");
}

async fn stands(client: &Client) -> (String, String) {
    let known = guard::Known::default();
    let fact = known.standing(client, &Settings::default()).await.fact();
    (format!("{:?}", fact.state), fact.message)
}
