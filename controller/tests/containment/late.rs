//! What comes late or can't be put back: a table that is set after the proof, a right that is missing, a node that is
//! gone.

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use kube_memory::Fault as ApiFault;
use serde_json::json;

use super::agent::Fault;
use super::blocked::Stage;
use super::world::{CONTROLLER, eventually, name, node_of, state};

#[tokio::test]
async fn a_table_that_is_set_only_later_is_proved_then() {
    let mut stage = Stage::new().await;
    // Three attempts of the step, and the first look at what is in force.
    for _ in 0..4 {
        let fault = Fault::Status(tonic::Code::Internal);
        stage.agent.fail("isolate", fault);
    }
    let quarantine = stage.ask().await;
    let now = stage.world.settled(&quarantine).await;
    assert_eq!(state(&now, "Isolate"), "Failed", "{now:#?}");
    // Also without a table the attempts tell something: the policy is not enforced here.
    assert_eq!(now.verdict, "NotContained", "{now:#?}");
    let unenforced = "the network plugin does not enforce the policy";
    assert!(now.message.contains(unenforced), "{}", now.message);
    // A controller that begins looks at once.
    stage.world.kill_controller();
    stage.world.expire_lease().await;
    stage.world.start_controller().await;
    let late = stage
        .becomes(&quarantine, "the table is set after all", |now| {
            state(now, "Isolate") == "Done" && now.phase == "Complete"
        })
        .await;
    let prove = late.steps.iter().find(|step| step.name == "Prove").unwrap();
    assert_eq!(
        prove.message, "what connected before does not any more, in either direction",
        "{late:#?}"
    );
    assert_eq!(late.verdict, "Isolated", "{late:#?}");
}

#[tokio::test]
async fn what_can_not_be_put_back_is_tried_more_and_more_slowly() {
    let stage = Stage::new().await;
    let quarantine = stage.ask().await;
    stage.world.settled(&quarantine).await;
    let memory = stage.world.memory.as_ref().unwrap();
    let forbidden = ApiFault::answer(403).by(CONTROLLER);
    let forbidden = memory.inject(forbidden.on("PATCH", "/nodes/"));
    let nodes = Api::<Node>::all(stage.world.client.clone());
    let uncordon = Patch::Merge(json!({ "spec": { "unschedulable": null } }));
    let node = node_of(&stage.suspect);
    nodes
        .patch(&node, &PatchParams::default(), &uncordon)
        .await
        .unwrap();
    eventually("it was tried three times", || async {
        match forbidden.hits() {
            hits if hits >= 3 => Ok(()),
            hits => Err(format!("{hits} times")),
        }
    })
    .await;
    let requests = stage.world.requests();
    let tried: Vec<Timestamp> = requests
        .iter()
        .filter(|request| request.status == 403 && request.path.contains("/nodes/"))
        .map(|request| request.time.parse().unwrap())
        .collect();
    let pauses: Vec<i64> = tried
        .windows(2)
        .map(|pair| pair[1].duration_since(pair[0]).as_secs())
        .collect();
    assert!(pauses[0] >= 4 && pauses[1] >= 9, "{pauses:?}");
}

#[tokio::test]
async fn a_release_ends_though_the_node_object_is_gone_and_says_what_is_left() {
    let stage = Stage::new().await;
    let quarantine = stage.ask().await;
    let done = stage.world.settled(&quarantine).await;
    assert_eq!(done.verdict, "Isolated", "{done:#?}");
    let nodes = Api::<Node>::all(stage.world.client.clone());
    let node = node_of(&stage.suspect);
    // The pod stays, as where a finalizer or the evidence guard keeps it.
    let pods = Api::<Pod>::namespaced(stage.world.client.clone(), &stage.world.namespace);
    let hold = Patch::Merge(json!({ "metadata": { "finalizers": ["impound.dev/test"] } }));
    pods.patch(&name(&stage.suspect), &PatchParams::default(), &hold)
        .await
        .unwrap();
    nodes.delete(&node, &DeleteParams::default()).await.unwrap();
    stage.world.release(&quarantine, false).await.unwrap();
    let released = stage
        .becomes(&quarantine, "the release ends", |now| {
            now.phase == "Released"
        })
        .await;
    for step in ["UndoLabelNode", "UndoCordon"] {
        assert_eq!(state(&released, step), "Skipped", "{released:#?}");
    }
    assert_eq!(state(&released, "UndoIsolate"), "Failed", "{released:#?}");
    let gone = format!("NOT lifted: node {node} does not exist any more");
    assert!(released.message.contains(&gone), "{}", released.message);
}

#[tokio::test]
async fn a_release_that_waits_says_for_what() {
    let stage = Stage::new().await;
    let quarantine = stage.ask_slowly().await;
    // With kubectl: over gRPC it would be refused.
    let release = Patch::Merge(json!({ "spec": { "release": { "reason": "false alarm" } } }));
    let quarantines = Api::<impound_controller::resources::Quarantine>::namespaced(
        stage.world.client.clone(),
        &stage.world.namespace,
    );
    quarantines
        .patch(&quarantine, &PatchParams::default(), &release)
        .await
        .unwrap();
    stage
        .becomes(&quarantine, "the wait is said", |now| {
            now.message
                .starts_with("the release waits until the evidence is sealed")
        })
        .await;
    for _ in 0..4 {
        let fault = Fault::Status(tonic::Code::Unavailable);
        stage.agent.fail("lift", fault);
    }
    stage.agent.state.lock().unwrap().slow = false;
    stage
        .becomes(&quarantine, "the agent is waited for", |now| {
            now.message
                .starts_with("the release waits: UndoIsolate: NOT undone")
        })
        .await;
    stage
        .becomes(&quarantine, "the release ends", |now| {
            now.phase == "Released"
        })
        .await;
}
