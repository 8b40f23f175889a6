//! Two writers of one status: what one of them wrote is never overwritten by what the other knew before.

use std::time::Duration;

use kube_memory::{Effect, Fault};
use serde_json::{Value, json};

use super::world::{World, eventually, name};

impl World {
    async fn status_of(&self, quarantine: &str) -> Value {
        let path = self.quarantine_path(quarantine);
        let request = http::Request::get(path).body(Vec::new()).unwrap();
        let object: Value = self.client.request(request).await.unwrap();
        object["status"].clone()
    }

    fn quarantine_path(&self, quarantine: &str) -> String {
        format!(
            "/apis/impound.dev/v1alpha1/namespaces/{}/quarantines/{quarantine}",
            self.namespace
        )
    }

    async fn patch_quarantine(&self, path: &str, body: Value) {
        let request = http::Request::patch(path)
            .header("content-type", "application/merge-patch+json")
            .body(body.to_string().into_bytes())
            .unwrap();
        self.client.request::<Value>(request).await.unwrap();
    }
}

/// The controller's next status write is held back for this long; meanwhile somebody else writes.
const HELD: Duration = Duration::from_secs(2);

#[tokio::test]
async fn a_status_that_another_replica_wrote_meanwhile_is_read_again_and_not_overwritten() {
    let world = World::start().await;
    let pods = world.deployment("nginx", 1, None).await;
    let quarantine = world.quarantine(&name(pods.first().unwrap())).await.name;
    let memory = world.api();
    let held = memory.inject(
        Fault::new(Effect::Delay(HELD))
            .on("PATCH", "/status")
            .times(1),
    );
    // A drift makes the controller write.
    let pods = kube::Api::<k8s_openapi::api::core::v1::Pod>::namespaced(
        world.client.clone(),
        &world.namespace,
    );
    let relabel = kube::api::Patch::Merge(json!({ "metadata": { "labels": { "status": null } } }));
    let suspect = world.current(&quarantine).await.pod;
    pods.patch(&suspect, &Default::default(), &relabel)
        .await
        .unwrap();
    eventually("the controller's write is on its way", || async {
        if held.hits() > 0 {
            Ok(())
        } else {
            Err("not yet".to_owned())
        }
    })
    .await;
    let path = format!("{}/status", world.quarantine_path(&quarantine));
    let foreign = json!({ "time": "2026-01-01T00:00:00.000000Z", "reason": "Restored", "what": "by the other replica" });
    world
        .patch_quarantine(&path, json!({ "status": { "drift": [foreign] } }))
        .await;
    eventually(
        "the late write was refused and the work begun again",
        || async {
            let requests = world.requests();
            let refused = requests.iter().any(|request| {
                request.method == "PATCH"
                    && request.path.contains("/status")
                    && request.status == 409
            });
            let drift = world.status_of(&quarantine).await["drift"].to_string();
            match refused && drift.contains("by the other replica") {
                true => Ok(()),
                false => Err(format!("refused: {refused}, {drift}")),
            }
        },
    )
    .await;
}

#[tokio::test]
async fn a_wish_that_comes_while_the_status_is_written_costs_no_work() {
    let world = World::start().await;
    let pods = world.deployment("nginx", 1, None).await;
    let memory = world.api();
    let held = memory.inject(
        Fault::new(Effect::Delay(HELD))
            .on("PATCH", "/status")
            .nth(2),
    );
    let mut alice = world.responder("alice").await;
    let request = world.request(&name(pods.first().unwrap()));
    let created = alice.create_quarantine(request).await.unwrap().into_inner();
    let quarantine = created.quarantine.unwrap().name;
    eventually("a write is on its way", || async {
        if held.hits() > 0 {
            Ok(())
        } else {
            Err("not yet".to_owned())
        }
    })
    .await;
    let wish = json!({ "spec": { "release": { "reason": "false alarm" } } });
    world
        .patch_quarantine(&world.quarantine_path(&quarantine), wish)
        .await;
    let done = world.settled(&quarantine).await;
    assert_eq!(done.phase, "Released", "{done:#?}");
    let strips = world
        .effects()
        .iter()
        .filter(|effect| effect.contains("/pods/"))
        .count();
    assert_eq!(
        strips,
        2,
        "one strip and one way back: {:#?}",
        world.effects()
    );
}
