//! A pod that is re-created under the same name while a call is on its way, whichever: the new one is never
//! touched.

use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use kube_memory::{Effect, Fault};
use serde_json::json;

use super::super::world::{CONTROLLER, World, eventually, label, node_of, state};
use super::objects::{mirror, owner};
use super::restored::release;

/// The step whose call is late, that call (the n-th of its kind), and how the quarantine ends.
struct Late {
    step: &'static str,
    method: &'static str,
    path: &'static str,
    n: usize,
    phase: &'static str,
}

#[rustfmt::skip]
const LATE: &[Late] = &[
    Late { step: "Cordon", method: "PATCH", path: "/nodes/", n: 1, phase: "Failed" },
    Late { step: "Protect", method: "POST", path: "/poddisruptionbudgets", n: 1, phase: "Failed" },
    Late { step: "Policy", method: "POST", path: "/networkpolicies", n: 1, phase: "Failed" },
    Late { step: "Strip", method: "PATCH", path: "/pods/s-0", n: 1, phase: "Failed" },
    Late { step: "LabelNode", method: "PATCH", path: "/nodes/", n: 2, phase: "Incomplete" },
    Late { step: "Verify", method: "GET", path: "/endpointslices", n: 1, phase: "Incomplete" },
    Late { step: "UndoLabelNode", method: "PATCH", path: "/nodes/", n: 3, phase: "Released" },
    Late { step: "UndoStrip", method: "PATCH", path: "/pods/s-0", n: 2, phase: "Released" },
    Late { step: "UndoPolicy", method: "DELETE", path: "/networkpolicies/", n: 1, phase: "Released" },
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_re_created_under_the_same_name_while_any_step_is_under_way_is_never_touched() {
    let runs = futures::stream::iter(LATE).map(|late| tokio::spawn(re_created_during(late)));
    let ends: Vec<_> = runs.buffered(3).collect().await;
    for end in ends {
        end.unwrap();
    }
}

async fn re_created_during(late: &'static Late) {
    let step = late.step;
    let world = World::start().await;
    let stateful = json!({ "replicas": 1, "serviceName": "s" });
    world.create(owner("StatefulSet", stateful)).await;
    let suspect = world.running("team=red", 1).await.remove(0);
    let memory = world.api();
    let fault = Fault::new(Effect::Delay(Duration::from_secs(3)))
        .by(CONTROLLER)
        .on(late.method, late.path)
        .nth(late.n);
    let delay = memory.inject(fault);
    world
        .create(json!({
            "apiVersion": "impound.dev/v1alpha1", "kind": "Quarantine", "metadata": { "name": "q" },
            "spec": { "pod": "s-0", "case": "INC-1", "reason": "x", "skipCollection": true },
        }))
        .await;
    let undoing = step.starts_with("Undo");
    if undoing {
        let contained = world.settled("q").await;
        assert_eq!(contained.phase, "Complete", "{step}: {contained:#?}");
    }
    let recreated = async {
        eventually("the call is on its way", || async {
            if delay.hits() > 0 {
                Ok(())
            } else {
                Err(format!("{step}: not yet"))
            }
        })
        .await;
        let api = Api::<Pod>::namespaced(world.client.clone(), &world.namespace);
        let now = DeleteParams {
            grace_period_seconds: Some(0),
            ..DeleteParams::default()
        };
        api.delete("s-0", &now).await.unwrap();
        eventually("its owner makes it again", || async {
            let found = api.get_opt("s-0").await.unwrap();
            let other = found.filter(|pod| pod.metadata.uid != suspect.metadata.uid);
            other.ok_or_else(|| "not yet".to_owned())
        })
        .await
    };
    let (successor, done) = futures::join!(recreated, async {
        if undoing {
            release(&world).await
        } else {
            world.settled("q").await
        }
    });
    // A pod that goes while its facts are read is noticed a moment later.
    let done = eventually("it ends as the table says", || async {
        let now = world.current(&done.name).await;
        if now.phase == late.phase {
            Ok(now)
        } else {
            Err(format!("{step}: {now:#?}"))
        }
    })
    .await;
    if late.phase == "Failed" {
        assert_eq!(state(&done, "Strip"), "Failed", "{step}: {done:#?}");
        assert!(done.message.contains("re-created"), "{}", done.message);
    }
    let now = world.pod("s-0").await;
    assert_eq!(now.metadata.uid, successor.metadata.uid, "{step}");
    assert_eq!(label(&now, "status"), None, "{step}");
    assert_eq!(label(&now, "app").as_deref(), Some("s"), "{step}");
    let path = "/pods/s-0";
    let mut patches = world.requests();
    patches.retain(|request| request.method == "PATCH" && request.path.contains(path));
    let first = json!(suspect.metadata.uid);
    for patch in patches.iter().filter(|patch| patch.status == 200) {
        let body = patch.body.clone().unwrap_or_default();
        assert_eq!(body["metadata"]["uid"], first, "{step}: {patch:#?}");
    }
}

#[tokio::test]
async fn a_static_pods_mirror_that_is_made_anew_is_the_suspect_as_long_as_its_manifest_is_the_same()
{
    let world = World::start_in_memory().await;
    world.create(mirror("one")).await;
    let suspect = world.running("team=red", 1).await.remove(0);
    world
        .create(json!({
            "apiVersion": "impound.dev/v1alpha1", "kind": "Quarantine", "metadata": { "name": "q" },
            "spec": { "pod": "s", "case": "INC-1", "reason": "x", "skipCollection": true },
        }))
        .await;
    let done = world.settled("q").await;
    assert_eq!(done.verdict, "NotContained", "{done:#?}");
    let pods = Api::<Pod>::namespaced(world.client.clone(), &world.namespace);
    let node = node_of(&suspect);
    for (manifest, reason, verdict) in [
        ("one", "MirrorMadeAnew", "NotContained"),
        ("two", "PodGone", ""),
    ] {
        let now = DeleteParams::default().grace_period(0);
        pods.delete("s", &now).await.unwrap();
        // A kubelet asks no scheduler.
        let mut anew = mirror(manifest);
        anew["spec"]["nodeName"] = json!(node);
        world.create(anew).await;
        // Whoever looks between the two finds none, and says so as long as it is so.
        eventually("it is noted", || async {
            let now = world.current("q").await;
            let noted = now.drift.iter().any(|drift| drift.reason == reason);
            if noted && now.verdict == verdict {
                Ok(())
            } else {
                Err(format!("{}: {:?}", now.verdict, now.drift))
            }
        })
        .await;
    }
}

#[tokio::test]
async fn a_restart_of_a_pod_without_our_label_is_noticed_at_once() {
    let world = World::start_in_memory().await;
    world.create(mirror("one")).await;
    let suspect = world.running("team=red", 1).await.remove(0);
    world
        .create(json!({
            "apiVersion": "impound.dev/v1alpha1", "kind": "Quarantine", "metadata": { "name": "q" },
            "spec": { "pod": "s", "case": "INC-1", "reason": "x", "skipCollection": true },
        }))
        .await;
    world.settled("q").await;
    let mut statuses = json!(suspect.status.as_ref().unwrap().container_statuses);
    statuses[0]["restartCount"] = json!(1);
    statuses[0]["containerID"] = json!(format!("docker://{}", "b".repeat(64)));
    let pods = Api::<Pod>::namespaced(world.client.clone(), &world.namespace);
    let restarted = Patch::Merge(json!({ "status": { "containerStatuses": statuses } }));
    pods.patch_status("s", &PatchParams::default(), &restarted)
        .await
        .unwrap();
    // Without a watch of its own: two minutes.
    let noticed = async {
        loop {
            let now = world.current("q").await;
            if now.drift.iter().any(|drift| drift.reason == "EvidenceLoss") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let noticed = tokio::time::timeout(Duration::from_secs(10), noticed).await;
    assert!(noticed.is_ok(), "{:#?}", world.current("q").await);
}
