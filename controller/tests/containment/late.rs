//! What comes late or can't be put back: a table that is set after the proof, a restart after the seal, a right
//! that is missing, a node that is gone.

use impound_proto::controller::v1::{CreateCollectionRequest, GetCollectionRequest};
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
async fn a_restart_after_the_seal_says_what_is_not_collected_and_the_command_that_collects_it() {
    let stage = Stage::new().await;
    let quarantine = stage.ask().await;
    let done = stage.world.settled(&quarantine).await;
    assert_eq!(done.phase, "Complete", "{done:#?}");
    let pods = Api::<Pod>::namespaced(stage.world.client.clone(), &stage.world.namespace);
    let suspect = pods.get(&name(&stage.suspect)).await.unwrap();
    let uid = suspect.metadata.uid.clone().unwrap();
    let pod = (stage.world.namespace.as_str(), &*name(&suspect), &*uid);
    let restarted = stage.agent.add(pod, "nginx", 1, 2_000);
    let mut statuses = json!(suspect.status.as_ref().unwrap().container_statuses);
    statuses[0]["restartCount"] = json!(1);
    statuses[0]["containerID"] = json!(format!("docker://{restarted}"));
    let patch = Patch::Merge(json!({ "status": { "containerStatuses": statuses } }));
    pods.patch_status(&name(&suspect), &PatchParams::default(), &patch)
        .await
        .unwrap();
    let now = stage
        .becomes(&quarantine, "the restart is noticed", |now| {
            now.drift.iter().any(|drift| drift.reason == "EvidenceLoss")
        })
        .await;
    let losses: Vec<_> = now
        .drift
        .iter()
        .filter(|drift| drift.reason == "EvidenceLoss")
        .collect();
    assert_eq!(losses.len(), 1, "{losses:#?}");
    let reason = "a container was restarted";
    let command = format!(
        "impound collect {} -n {} --case INC-1 --reason '{reason}'",
        name(&suspect),
        stage.world.namespace
    );
    let said = &losses[0].what;
    assert!(
        said.contains("the collection had ended by then (sealed at ") && said.ends_with(&command),
        "{said}"
    );

    let mut alice = stage.world.responder("alice").await;
    let asked = CreateCollectionRequest {
        namespace: stage.world.namespace.clone(),
        pod: name(&suspect),
        case_id: "INC-1".into(),
        reason: reason.into(),
        ..Default::default()
    };
    let collection = alice.create_collection(asked).await.unwrap().into_inner();
    let sealed = eventually("the second collection ends", || async {
        let asked = GetCollectionRequest {
            namespace: stage.world.namespace.clone(),
            name: collection.name.clone(),
        };
        let mut alice = stage.world.responder("alice").await;
        let now = alice.get_collection(asked).await.unwrap().into_inner();
        match now.phase.as_str() {
            "Sealed" | "Partial" | "Failed" => Ok(now),
            phase => Err(phase.to_owned()),
        }
    })
    .await;
    assert_eq!(sealed.phase, "Sealed", "{sealed:#?}");
    let calls = stage.agent.calls();
    assert!(calls.contains(&format!("export {restarted}")), "{calls:#?}");
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
