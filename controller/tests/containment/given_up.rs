//! Collections that are not made, or given up: said where somebody looks, and nothing else is dropped for it.

use impound_controller::resources::{Collection, CollectionPhase};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams};
use kube_memory::Fault;
use serde_json::json;
use tonic::Code;

use super::agent;
use super::blocked::Stage;
use super::world::{CONTROLLER, eventually, name, node_of, state};

#[tokio::test]
async fn a_collection_that_the_api_refuses_is_said_and_tried_on_while_what_is_in_force_is_watched()
{
    let stage = Stage::new().await;
    let memory = stage.world.memory.as_ref().unwrap();
    let refused = Fault::answer(403).by(CONTROLLER);
    let fault = memory.inject(refused.on("POST", "/collections"));
    let quarantine = stage.ask().await;
    let now = stage
        .becomes(&quarantine, "it is said", |now| {
            let mut steps = now.steps.iter();
            steps.any(|step| step.name == "Neighbours" && step.message.contains("is NOT made yet"))
                && state(now, "Prove") == "Done"
        })
        .await;
    assert_eq!(state(&now, "Neighbours"), "Waiting", "{now:#?}");
    assert_eq!(now.verdict, "Isolated", "{now:#?}");
    let policies =
        Api::<NetworkPolicy>::namespaced(stage.world.client.clone(), &stage.world.namespace);
    let gone = DeleteParams::default();
    policies.delete("deny-all-suspectpod", &gone).await.unwrap();
    let now = stage
        .becomes(&quarantine, "the policy is put back", |now| {
            let mut drift = now.drift.iter();
            drift.any(|drift| {
                drift.reason == "Restored" && drift.what.contains("denies all traffic")
            })
        })
        .await;
    // Their containers were not read.
    assert_eq!(state(&now, "Evict"), "", "{now:#?}");
    fault.remove();
    let done = stage.world.settled(&quarantine).await;
    assert_eq!(done.phase, "Complete", "{done:#?}");
    for step in ["Neighbours", "Evict", "Collect"] {
        assert_eq!(state(&done, step), "Done", "{done:#?}");
    }
}

#[tokio::test]
async fn an_image_that_a_collection_leaves_on_its_node_when_it_is_given_up_is_named_in_status_and_log()
 {
    let stage = Stage::new().await;
    let quarantine = stage.ask_slowly().await;
    let collection = stage.world.current(&quarantine).await.collection;
    let directory = stage.world.dir.path().join("store/INC-1").join(&collection);
    // Of somebody else's making: it can't be sealed, now or later.
    std::fs::write(directory.join("manifest.json"), "{}").unwrap();
    for _ in 0..3 {
        stage
            .agent
            .fail("save", agent::Fault::Status(Code::Internal));
    }
    stage.agent.state.lock().unwrap().slow = false;
    let done = stage
        .becomes(&quarantine, "it is given up", |now| {
            state(now, "Collect") == "Failed"
        })
        .await;
    let images: Vec<String> = {
        let state = stage.agent.state.lock().unwrap();
        state.images.keys().cloned().collect()
    };
    let [image] = images.as_slice() else {
        panic!("one image is left: {images:?}");
    };
    let step = done
        .steps
        .iter()
        .find(|step| step.name == "Collect")
        .unwrap();
    assert!(
        step.message.contains("manifest.json")
            && step.message.contains(&format!("docker image rm {image}")),
        "{}",
        step.message
    );
    let log = stage.world.dir.path().join("store/INC-1/custody");
    let log = std::fs::read_to_string(log.join(impound_evidence::CUSTODY)).unwrap();
    let failed = |what: &str| {
        let mut lines = log.lines();
        lines.any(|line| line.contains("\"failed\"") && line.contains(what))
    };
    assert!(failed(&format!("image {image} on node ")), "{log}");
    assert!(failed("given up after 1 attempts"), "{log}");
}

#[tokio::test]
async fn the_log_says_nothing_of_the_end_of_a_collection_before_its_claim_is_saved() {
    let mut stage = Stage::new().await;
    stage.agent.state.lock().unwrap().slow = true;
    let suspect = name(&stage.suspect);
    let collection = json!({
        "apiVersion": "impound.dev/v1alpha1", "kind": "Collection", "metadata": { "name": "c" },
        "spec": { "pod": suspect, "podUid": stage.suspect.uid(), "case": "INC-1", "reason": "x" },
    });
    stage.world.create(collection).await;
    eventually("its export is waited for", || async {
        let calls = stage.agent.calls();
        let mut exports = calls.iter().filter(|call| call.starts_with("export "));
        exports.next().map(drop).ok_or(format!("{calls:#?}"))
    })
    .await;
    stage.world.kill_controller();
    // Another pod of its name: it never can be collected.
    let (client, namespace) = (stage.world.client.clone(), stage.world.namespace.clone());
    let pods = Api::<Pod>::namespaced(client.clone(), &namespace);
    let now = DeleteParams::default().grace_period(0);
    pods.delete(&suspect, &now).await.unwrap();
    eventually("it is gone", || async {
        let there = pods.get_opt(&suspect).await.unwrap();
        there
            .is_none()
            .then_some(())
            .ok_or("it is there".to_owned())
    })
    .await;
    let another = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": suspect },
        "spec": { "nodeName": node_of(&stage.suspect), "containers": [{ "name": "nginx", "image": "busybox:1" }] },
    });
    stage.world.create(another).await;
    let others = Fault::answer(409)
        .by(CONTROLLER)
        .on("PATCH", "/collections/c/status");
    let others = stage.world.api().inject(others);
    stage.world.expire_lease().await;
    stage.world.start_controller().await;
    eventually("its claim was refused", || async {
        let hits = others.hits();
        (hits > 5).then_some(()).ok_or(format!("{hits} times"))
    })
    .await;
    let log = stage.world.dir.path().join("store/INC-1/custody");
    let ends = || {
        let log = std::fs::read_to_string(log.join(impound_evidence::CUSTODY)).unwrap();
        log.lines()
            .filter(|line| line.contains("it was re-created"))
            .count()
    };
    assert_eq!(ends(), 0);
    others.remove();
    let collections = Api::<Collection>::namespaced(client, &namespace);
    eventually("it has failed", || async {
        let status = collections.get("c").await.unwrap().status.unwrap();
        let failed = status.phase == CollectionPhase::Failed;
        failed.then_some(()).ok_or(format!("{status:#?}"))
    })
    .await;
    assert_eq!(ends(), 1);
}
