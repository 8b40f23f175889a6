//! A Collection under the name that a quarantine's own is to have: what is sealed there is never taken for evidence of
//! this quarantine's suspect, which is collected under another name.

use impound_controller::reconcile::custody::REQUEST;
use impound_controller::resources::{Collection, CollectionPhase, definitions};
use impound_proto::controller::v1::Quarantine;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
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

async fn ask(stage: &Stage) {
    stage
        .world
        .create(json!({
            "apiVersion": "impound.dev/v1alpha1", "kind": "Quarantine", "metadata": { "name": "q" },
            "spec": { "pod": name(&stage.suspect), "case": "INC-1", "reason": "x" },
        }))
        .await;
}

async fn quarantined(stage: &Stage) -> Quarantine {
    ask(stage).await;
    stage.world.settled("q").await
}

/// Whether the quarantine has written down that a name is somebody else's, and has collected under another.
fn collected_as(done: &Quarantine, taken: &str, collection: &str) {
    assert!(
        collection != taken && collection.starts_with("q-"),
        "{collection}: {done:#?}"
    );
    let mut drift = done.drift.iter();
    let noted = drift.any(|drift| {
        drift.reason == "NameTaken"
            && drift.what.contains(&format!("a collection named {taken} "))
            && drift.what.ends_with(&format!("collected as {collection}"))
    });
    assert!(noted, "{done:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_sealed_under_a_quarantines_name_is_left_alone_and_its_evidence_collected_under_another()
 {
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
        assert_eq!(done.phase, "Complete", "{differs:?}: {done:#?}");
        for step in ["Neighbours", "Evict", "Collect"] {
            assert_eq!(state(&done, step), "Done", "{differs:?}: {done:#?}");
        }
        assert_eq!(done.verdict, "Isolated", "{differs:?}: {done:#?}");
        collected_as(&done, "q", &done.collection);
        let api = collections(&stage);
        let theirs = api.get("q").await.unwrap().status.unwrap();
        assert_eq!(theirs.message, "of another", "{differs:?}: {theirs:#?}");
        // The first one of a quarantine: with the objects as they were, and the neighbours.
        let ours = api.get(&done.collection).await.unwrap();
        let paths: Vec<&str> = ours
            .status
            .iter()
            .flat_map(|status| &status.artifacts)
            .map(|one| one.path.as_str())
            .collect();
        for word in [
            "pod.json",
            "tomcat/diff.txt",
            "nginx/evidence-compromised-nginx-",
        ] {
            assert!(
                paths.iter().any(|path| path.contains(word)),
                "{differs:?}: {word}: {paths:#?}"
            );
        }
        stage.world.release("q", false).await.unwrap();
        let released = stage.world.settled("q").await;
        assert_eq!(released.phase, "Released", "{differs:?}: {released:#?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_store_has_under_a_quarantines_name_is_not_gone_on_with() {
    let stage = Stage::new().await;
    // Of a quarantine that was released and deleted with its collection.
    let stored = stage.world.dir.path().join("store/INC-1/q");
    std::fs::create_dir_all(&stored).unwrap();
    std::fs::write(stored.join("theirs"), "evidence").unwrap();
    let done = quarantined(&stage).await;
    assert_eq!(done.phase, "Complete", "{done:#?}");
    collected_as(&done, "q", &done.collection);
    let there: Vec<_> = std::fs::read_dir(&stored)
        .unwrap()
        .map(|file| file.unwrap().file_name())
        .collect();
    assert_eq!(there, ["theirs"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_store_does_not_say_what_it_has_nothing_is_collected_under_a_name_that_may_be_taken()
 {
    let stage = Stage::new().await;
    // No collection is called so: the store names none of the case's.
    let case = stage.world.dir.path().join("store/INC-1");
    std::fs::create_dir_all(case.join("no name of ours")).unwrap();
    let done = quarantined(&stage).await;
    assert_eq!(done.phase, "Complete", "{done:#?}");
    collected_as(&done, "q", &done.collection);
    assert_eq!(done.drift.len(), 1, "one name is enough: {done:#?}");
    assert!(!case.join("q").exists());
    assert!(case.join(&done.collection).join("manifest.json").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_older_definitions_do_not_keep_is_not_collected_under_until_they_are_brought_up_to_date()
 {
    let stage = Stage::new().await;
    let all = Api::<CustomResourceDefinition>::all(stage.world.client.clone());
    let newest = definitions();
    let of_quarantines = newest
        .iter()
        .find(|one| one.spec.names.kind == "Quarantine");
    let of_quarantines = of_quarantines.unwrap();
    let definition = of_quarantines.name_any();
    let mut older = json!(of_quarantines);
    let status = "/spec/versions/0/schema/openAPIV3Schema/properties/status/properties";
    for (of, field) in [("", "collectionName"), ("/undo/properties", "names")] {
        let fields = older.pointer_mut(&format!("{status}{of}")).unwrap();
        fields.as_object_mut().unwrap().remove(field).unwrap();
    }
    let apply = PatchParams::apply("impound-test").force();
    all.patch(&definition, &apply, &Patch::Apply(older))
        .await
        .unwrap();
    let stored = stage.world.dir.path().join("store/INC-1/q");
    std::fs::create_dir_all(&stored).unwrap();
    std::fs::write(stored.join("theirs"), "evidence").unwrap();
    ask(&stage).await;
    let waiting = stage
        .becomes("q", "it is tried again", |now| {
            let mut steps = now.steps.iter();
            let step = steps.find(|step| step.name == "Neighbours");
            step.is_some_and(|step| step.state == "Waiting" && step.attempts > 1)
        })
        .await;
    let remedy = "kubectl apply --server-side --force-conflicts -f deploy/crds";
    let said = |field: &str| {
        let mut warnings = waiting.warnings.iter();
        warnings.any(|warning| warning.contains(field) && warning.contains(remedy))
    };
    assert!(
        said("status.collectionName") && said("status.undo.names"),
        "{waiting:#?}"
    );
    let mut steps = waiting.steps.iter();
    let step = steps.find(|step| step.name == "Neighbours").unwrap();
    assert!(
        step.message.contains("NOT made") && step.message.contains(remedy),
        "{step:#?}"
    );
    // What holds the pod does not depend on it.
    assert_eq!(waiting.verdict, "Isolated", "{waiting:#?}");
    let api = collections(&stage);
    let made = api.list(&ListParams::default()).await.unwrap();
    assert_eq!(made.items.len(), 0, "{made:#?}");

    let newer = Patch::Apply(of_quarantines);
    all.patch(&definition, &apply, &newer).await.unwrap();
    let done = stage.world.settled("q").await;
    assert_eq!(done.phase, "Complete", "{done:#?}");
    collected_as(&done, "q", &done.collection);
    let made = api.list(&ListParams::default()).await.unwrap();
    assert_eq!(made.items.len(), 1, "{made:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_are_taken_again_and_again_end_visibly_and_keep_an_unforced_release_waiting() {
    let mut stage = Stage::new().await;
    sealed(&stage, "q", Differs::Age).await;
    stage.world.kill_controller();
    let quarantine = json!({
        "apiVersion": "impound.dev/v1alpha1", "kind": "Quarantine", "metadata": { "name": "q" },
        "spec": { "pod": name(&stage.suspect), "case": "INC-1", "reason": "x" },
    });
    stage.world.create(quarantine).await;
    let taken = |n: usize| json!({ "time": Timestamp::now().to_string(), "reason": "NameTaken", "what": n.to_string() });
    let drift: Vec<Value> = (0..5).map(taken).collect();
    let api = Api::<impound_controller::resources::Quarantine>::namespaced(
        stage.world.client.clone(),
        &stage.world.namespace,
    );
    let before = Patch::Merge(json!({ "status": { "drift": drift } }));
    let params = PatchParams::default();
    api.patch_status("q", &params, &before).await.unwrap();
    stage.world.expire_lease().await;
    stage.world.start_controller().await;
    let done = stage
        .becomes("q", "it ends", |now| now.phase == "Incomplete")
        .await;
    for step in ["Neighbours", "Collect"] {
        assert_eq!(state(&done, step), "Failed", "{done:#?}");
    }
    assert!(
        done.message.contains("NOT collected") && done.message.contains("impound collect"),
        "{}",
        done.message
    );
    // What holds the pod does not depend on it.
    assert_eq!(done.verdict, "Isolated", "{done:#?}");
    let refused = stage.world.release("q", false).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let release = json!({ "spec": { "release": { "reason": "false alarm" } } });
    api.patch("q", &params, &Patch::Merge(release))
        .await
        .unwrap();
    let refused = stage
        .becomes("q", "its release is refused", |now| {
            now.message.starts_with("release refused")
        })
        .await;
    assert_eq!(state(&refused, "UndoStrip"), "", "{refused:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_sealed_under_a_later_collections_name_is_left_alone_and_what_was_restarted_collected()
 {
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
    let taken = format!("q-{}", &id[..12]);
    sealed(&stage, &taken, Differs::Pod).await;
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
        .becomes("q", "it is collected", |now| {
            now.phase == "Complete" && state(now, "CollectAgain") == "Done"
        })
        .await;
    collected_as(&now, &taken, &now.later_collections[0].name);
    let calls = stage.agent.calls();
    assert!(calls.contains(&format!("export {id}")), "{calls:#?}");
    let theirs = collections(&stage).get(&taken).await.unwrap();
    assert_eq!(theirs.status.unwrap().message, "of another");
}
