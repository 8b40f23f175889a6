//! What people see with `kubectl get events`: an Event for each step, each phase and each drift of a quarantine,
//! and for the end of a collection.

use std::collections::BTreeMap;

use impound_proto::controller::v1::ReleaseQuarantineRequest;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{Api, DeleteParams, ListParams};

use super::world::{World, eventually, name};

/// Type and note of each Event about an object, by reason.
async fn events(world: &World, kind: &str, name: &str) -> BTreeMap<String, (String, String)> {
    let api = Api::<Event>::namespaced(world.client.clone(), &world.namespace);
    let all = api.list(&ListParams::default()).await.unwrap();
    let about = all.into_iter().filter(|event| {
        let regarding = event.regarding.clone().unwrap_or_default();
        regarding.kind.as_deref() == Some(kind) && regarding.name.as_deref() == Some(name)
    });
    about
        .map(|event| {
            let note = event.note.unwrap_or_default();
            (event.reason.unwrap(), (event.type_.unwrap(), note))
        })
        .collect()
}

#[tokio::test]
async fn every_step_phase_and_drift_is_an_event_and_so_is_the_end_of_a_collection() {
    let world = World::start().await;
    let pods = world.deployment("nginx", 1, None).await;
    // No agent answers here: the collection ends without evidence.
    let suspect = name(pods.first().unwrap());
    let quarantine = world.quarantine_and_collect(&suspect).await;

    let policies = Api::<NetworkPolicy>::namespaced(world.client.clone(), &world.namespace);
    policies
        .delete("deny-all-suspectpod", &DeleteParams::default())
        .await
        .unwrap();
    eventually("the drift is put back", || async {
        let found = policies.get_opt("deny-all-suspectpod").await.unwrap();
        found.map(drop).ok_or_else(|| "not yet".to_owned())
    })
    .await;
    let release = ReleaseQuarantineRequest {
        namespace: world.namespace.clone(),
        name: quarantine.name.clone(),
        reason: "false alarm".into(),
        force: true,
    };
    let mut alice = world.responder("alice").await;
    alice.release_quarantine(release).await.unwrap();
    let released = world.settled(&quarantine.name).await;
    assert_eq!(released.phase, "Released", "{released:#?}");

    let mut expected: BTreeMap<String, &str> = released
        .steps
        .iter()
        .map(|step| {
            let kind = match step.state.as_str() {
                "Failed" => "Warning",
                _ => "Normal",
            };
            (step.name.clone(), kind)
        })
        .collect();
    assert!(expected.len() > 12, "{expected:?}");
    expected.extend([
        ("Containing".into(), "Normal"),
        ("Contained".into(), "Normal"),
        ("Incomplete".into(), "Warning"),
        ("Restored".into(), "Warning"),
        ("Releasing".into(), "Normal"),
        ("Released".into(), "Normal"),
    ]);
    eventually("every event is there", || async {
        let found = events(&world, "Quarantine", &quarantine.name).await;
        let kinds: BTreeMap<String, &str> = found
            .iter()
            .map(|(reason, (kind, _))| (reason.clone(), kind.as_str()))
            .collect();
        if kinds == expected {
            Ok(())
        } else {
            Err(format!("{kinds:#?} instead of {expected:#?}"))
        }
    })
    .await;
    let found = events(&world, "Quarantine", &quarantine.name).await;
    for step in &released.steps {
        let (_, note) = &found[&step.name];
        assert_eq!(*note, step.message, "{}", step.name);
    }
    assert!(found["Restored"].1.contains("put back"), "{found:#?}");

    let collection = &quarantine.collection;
    let ends = events(&world, "Collection", collection).await;
    let (reason, (kind, note)) = ends.first_key_value().unwrap();
    assert!(
        ["Partial", "Failed"].contains(&reason.as_str()) && kind == "Warning",
        "{ends:#?}"
    );
    assert!(note.contains("agent"), "{note}");
}
