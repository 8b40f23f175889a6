//! Collections that are not made, or given up: said where somebody looks, and nothing else is dropped for it.

use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{Api, DeleteParams};
use kube_memory::Fault;
use tonic::Code;

use super::agent;
use super::blocked::Stage;
use super::world::{CONTROLLER, state};

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
