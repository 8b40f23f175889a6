//! A sweep that is under way stays, and so does its list, which nobody but the garbage collector takes from it.

use serde_json::{Value, json};

use super::super::world::eventually;
use super::{Guarded, MALLORY, ask};

const COLLECTOR: &str = "system:serviceaccount:kube-system:generic-garbage-collector";

#[tokio::test]
async fn a_sweep_is_deleted_once_it_has_ended_and_its_list_goes_with_it() {
    let guarded = Guarded::start().await;
    let world = &guarded.world;
    let namespace = world.namespace.clone();
    world.deployment("nginx", 1, None).await;
    let sweeps = "/apis/impound.dev/v1alpha1/sweeps";
    let sweep = json!({
        "apiVersion": "impound.dev/v1alpha1", "kind": "Sweep", "metadata": { "name": namespace },
        "spec": { "select": { "namespaces": [namespace] }, "case": "INC-1", "reason": "x", "requestedBy": MALLORY,
            "state": "Paused" },
    });
    assert_eq!(guarded.mallory("POST", sweeps, sweep).await.0, 201);
    let own = format!("{sweeps}/{namespace}");
    world.made(own.clone());
    let becomes = async |phases: &[&str]| -> Value {
        eventually("the sweep comes on", || async {
            let (_, text) = ask(&world.client, "GET", &own, &Value::Null, "").await;
            let now: Value = serde_json::from_str(&text).unwrap();
            match now["status"]["phase"].as_str() {
                Some(phase) if phases.contains(&phase) => Ok(now),
                _ => Err(text),
            }
        })
        .await
    };
    let listed = becomes(&["Paused"]).await;
    let roster = listed["status"]["rosters"][0].as_str().unwrap();
    let roster = format!("/apis/impound.dev/v1alpha1/sweeprosters/{roster}");
    guarded
        .refused("a sweep under way", "DELETE", &own, Value::Null)
        .await;
    guarded
        .refused("its list", "DELETE", &roster, Value::Null)
        .await;
    let adrift = json!({ "metadata": { "ownerReferences": null } });
    guarded
        .refused("its list", "PATCH", &roster, adrift.clone())
        .await;
    let marked = json!({ "metadata": { "labels": { "x": "y" } } });
    assert_eq!(guarded.mallory("PATCH", &roster, marked).await.0, 200);
    let let_go = ask(&world.client, "PATCH", &roster, &adrift, COLLECTOR).await;
    assert_eq!(let_go.0, 200, "{let_go:?}");
    let cancel = json!({ "spec": { "state": "Cancelled" } });
    assert_eq!(guarded.mallory("PATCH", &own, cancel).await.0, 200);
    becomes(&["Cancelled"]).await;
    for path in [&own, &roster] {
        let gone = guarded.mallory("DELETE", path, Value::Null).await;
        assert_eq!(gone.0, 200, "{gone:?}");
    }
    guarded.end().await;
}
