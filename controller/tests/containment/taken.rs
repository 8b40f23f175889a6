//! A Collection under the name that a quarantine's own is to have: what is sealed there is never taken for evidence of
//! this quarantine's suspect.

use impound_controller::reconcile::custody::REQUEST;
use impound_controller::resources::{Collection, CollectionPhase};
use impound_proto::controller::v1::Quarantine;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tonic::Code;

use super::blocked::Stage;
use super::world::{eventually, name, state};

/// In what the collection that is there differs from the quarantine's own.
#[derive(Clone, Copy, Debug)]
enum Differs {
    Case,
    Uid,
    Pod,
    Request,
    Age,
}

/// A collection named `called`, like that of a quarantine `q` but in one thing, and sealed.
async fn sealed(stage: &Stage, called: &str, differs: Differs) {
    let mut spec = json!({
        "pod": name(&stage.suspect), "podUid": stage.suspect.uid(), "case": "INC-1", "reason": "x", "quarantine": "q",
    });
    let mut metadata = json!({ "name": called });
    let (field, value) = match differs {
        Differs::Case => ("case", "INC-2"),
        Differs::Uid => ("podUid", "another"),
        Differs::Pod => ("pod", "another"),
        Differs::Request => {
            metadata["annotations"] = json!({ REQUEST: "67e55044-10b1-426f-9247-bb680e5fe0c8" });
            ("reason", "x")
        }
        Differs::Age => ("reason", "x"),
    };
    spec[field] = json!(value);
    let object: Value = json!({
        "apiVersion": "impound.dev/v1alpha1", "kind": "Collection", "metadata": metadata, "spec": spec,
    });
    let object: Collection = serde_json::from_value(object).unwrap();
    let api = collections(stage);
    let made = api.create(&PostParams::default(), &object).await.unwrap();
    eventually("the controller has nothing to do with it", || async {
        let there = api.get(called).await.unwrap();
        match there.status.map(|status| status.phase) {
            Some(CollectionPhase::Failed) => Ok(()),
            phase => Err(format!("{phase:?}")),
        }
    })
    .await;
    let status =
        json!({ "status": { "phase": "Sealed", "message": "of another", "quickDone": true } });
    let (params, patch) = (PatchParams::default(), Patch::Merge(status));
    api.patch_status(called, &params, &patch).await.unwrap();
    // The API server's clock has whole seconds.
    let second = SignedDuration::from_secs(1);
    let later = made.creation_timestamp().unwrap().0 + second;
    eventually("what is made now is younger", || async {
        (Timestamp::now() >= later)
            .then_some(())
            .ok_or_else(|| "not yet".to_owned())
    })
    .await;
}

fn collections(stage: &Stage) -> Api<Collection> {
    Api::namespaced(stage.world.client.clone(), &stage.world.namespace)
}

async fn quarantined(stage: &Stage) -> Quarantine {
    stage
        .world
        .create(json!({
            "apiVersion": "impound.dev/v1alpha1", "kind": "Quarantine", "metadata": { "name": "q" },
            "spec": { "pod": name(&stage.suspect), "case": "INC-1", "reason": "x" },
        }))
        .await;
    stage.world.settled("q").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_sealed_under_a_quarantines_name_is_not_taken_for_its_evidence() {
    for differs in [
        Differs::Case,
        Differs::Uid,
        Differs::Pod,
        Differs::Request,
        Differs::Age,
    ] {
        let stage = Stage::new().await;
        sealed(&stage, "q", differs).await;
        let done = quarantined(&stage).await;
        assert_eq!(done.phase, "Incomplete", "{differs:?}: {done:#?}");
        for step in ["Neighbours", "Collect"] {
            assert_eq!(state(&done, step), "Failed", "{differs:?}: {done:#?}");
        }
        assert!(
            done.message
                .contains("NOT collected: a collection named q exists")
                && done.message.contains("impound collect"),
            "{differs:?}: {}",
            done.message
        );
        // What holds the pod does not depend on it.
        assert_eq!(done.verdict, "Isolated", "{differs:?}: {done:#?}");
        let refused = stage.world.release("q", false).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{differs:?}");
        let release = json!({ "spec": { "release": { "reason": "false alarm" } } });
        let api = Api::<impound_controller::resources::Quarantine>::namespaced(
            stage.world.client.clone(),
            &stage.world.namespace,
        );
        api.patch("q", &PatchParams::default(), &Patch::Merge(release))
            .await
            .unwrap();
        let refused = stage
            .becomes("q", "its release is refused", |now| {
                now.message.starts_with("release refused")
            })
            .await;
        assert_eq!(
            state(&refused, "UndoStrip"),
            "",
            "{differs:?}: {refused:#?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_sealed_under_a_later_collections_name_is_not_taken_for_what_was_restarted() {
    let stage = Stage::new().await;
    let done = quarantined(&stage).await;
    assert_eq!(done.phase, "Complete", "{done:#?}");
    let uid = stage.suspect.uid().unwrap();
    let pod = (
        stage.world.namespace.as_str(),
        &*name(&stage.suspect),
        &*uid,
    );
    let id = stage.agent.add(pod, "nginx", 1, 2_000);
    sealed(&stage, &format!("q-{}", &id[..12]), Differs::Pod).await;
    let restarted = json!({ "status": { "containerStatuses": [{
        "name": "nginx", "image": "busybox:1", "imageID": "", "ready": true, "restartCount": 1,
        "containerID": format!("docker://{id}"),
    }] } });
    let pods = Api::<k8s_openapi::api::core::v1::Pod>::namespaced(
        stage.world.client.clone(),
        &stage.world.namespace,
    );
    let (params, patch) = (PatchParams::default(), Patch::Merge(restarted));
    pods.patch_status(&name(&stage.suspect), &params, &patch)
        .await
        .unwrap();
    let now = stage
        .becomes("q", "it is not collected", |now| now.phase == "Incomplete")
        .await;
    assert_eq!(state(&now, "CollectAgain"), "Failed", "{now:#?}");
    assert!(
        now.message.contains("is not this quarantine's"),
        "{}",
        now.message
    );
    let calls = stage.agent.calls();
    assert!(!calls.contains(&format!("export {id}")), "{calls:#?}");
}
