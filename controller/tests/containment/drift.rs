//! What somebody changes back is put back, at once, and written down.

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};

use super::world::{World, eventually, label, name, node_of};

async fn drift_of(world: &World, quarantine: &str) -> Vec<Value> {
    let status = status_of(world, quarantine).await;
    status["drift"].as_array().cloned().unwrap_or_default()
}

async fn status_of(world: &World, quarantine: &str) -> Value {
    let path = format!(
        "/apis/impound.dev/v1alpha1/namespaces/{}/quarantines/{quarantine}",
        world.namespace
    );
    let request = http::Request::get(path).body(Vec::new()).unwrap();
    let object: Value = world.client.request(request).await.unwrap();
    object["status"].clone()
}

async fn noted(world: &World, quarantine: &str, word: &str) {
    eventually("the drift is written down", || async {
        let drift = drift_of(world, quarantine).await;
        if drift.iter().any(|drift| drift.to_string().contains(word)) {
            Ok(())
        } else {
            Err(format!("{drift:?}"))
        }
    })
    .await;
}

#[tokio::test]
async fn an_uncordoned_node_is_cordoned_again() {
    let world = World::start().await;
    let pods = world.deployment("nginx", 1, None).await;
    let node = node_of(pods.first().unwrap());
    let quarantine = world.quarantine(&name(pods.first().unwrap())).await.name;
    let nodes = Api::<Node>::all(world.client.clone());
    let uncordon = Patch::Merge(json!({ "spec": { "unschedulable": null, "taints": null } }));
    nodes
        .patch(&node, &PatchParams::default(), &uncordon)
        .await
        .unwrap();
    noted(&world, &quarantine, "no new pod is scheduled").await;
    let spec = world.node(&node).await.spec.unwrap();
    assert_eq!(spec.unschedulable, Some(true));
    assert!(
        spec.taints
            .unwrap()
            .iter()
            .any(|taint| taint.key == "impound.dev/suspect")
    );
}

#[tokio::test]
async fn a_deleted_policy_and_a_deleted_budget_are_made_again() {
    let world = World::start().await;
    let pods = world.deployment("nginx", 1, None).await;
    let quarantine = world.quarantine(&name(pods.first().unwrap())).await.name;
    let policies = Api::<NetworkPolicy>::namespaced(world.client.clone(), &world.namespace);
    policies
        .delete("deny-all-suspectpod", &DeleteParams::default())
        .await
        .unwrap();
    noted(&world, &quarantine, "denies all traffic").await;
    policies.get("deny-all-suspectpod").await.unwrap();
    let budgets = Api::<PodDisruptionBudget>::namespaced(world.client.clone(), &world.namespace);
    let budget = format!("impound-{quarantine}");
    budgets
        .delete(&budget, &DeleteParams::default())
        .await
        .unwrap();
    noted(&world, &quarantine, "can't be evicted").await;
    budgets.get(&budget).await.unwrap();
}

#[tokio::test]
async fn a_relabelled_suspect_is_stripped_again() {
    let world = World::start().await;
    let pods = world.deployment("nginx", 1, None).await;
    let suspect = name(pods.first().unwrap());
    let quarantine = world.quarantine(&suspect).await.name;
    let api = Api::<Pod>::namespaced(world.client.clone(), &world.namespace);
    let relabel = Patch::Merge(
        json!({ "metadata": { "labels": { "status": null, "impound.dev/quarantine": null } } }),
    );
    api.patch(&suspect, &PatchParams::default(), &relabel)
        .await
        .unwrap();
    noted(&world, &quarantine, "deny-all policy selects it").await;
    assert_eq!(
        label(&world.pod(&suspect).await, "status").as_deref(),
        Some("suspectpod")
    );
}

#[tokio::test]
async fn a_restarted_container_is_reported_as_loss_of_evidence() {
    let world = World::start().await;
    if world.runs_containers() {
        // A kubelet writes the status there, and starts again what ends.
        let mut short = super::world::container("short");
        short["command"] = json!(["sleep", "30"]);
        world
            .create(json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": { "name": "short", "labels": { "app": "short" } }, "spec": { "containers": [short] },
            }))
            .await;
        world.running("app=short", 1).await;
        let quarantine = world.quarantine("short").await.name;
        noted(&world, &quarantine, "EvidenceLoss").await;
        return;
    }
    let pods = world.deployment("nginx", 1, None).await;
    let suspect = pods.first().unwrap();
    let quarantine = world.quarantine(&name(suspect)).await.name;
    let mut statuses = json!(suspect.status.as_ref().unwrap().container_statuses);
    statuses[0]["restartCount"] = json!(1);
    statuses[0]["containerID"] = json!(format!("docker://{}", "b".repeat(64)));
    let api = Api::<Pod>::namespaced(world.client.clone(), &world.namespace);
    let restarted = Patch::Merge(json!({ "status": { "containerStatuses": statuses } }));
    api.patch_status(&name(suspect), &PatchParams::default(), &restarted)
        .await
        .unwrap();
    noted(&world, &quarantine, "EvidenceLoss").await;
}

#[tokio::test]
async fn a_suspect_that_is_deleted_is_reported_and_not_called_contained_any_more() {
    let world = World::start().await;
    let pods = world.deployment("nginx", 1, None).await;
    let suspect = name(pods.first().unwrap());
    let quarantine = world.quarantine(&suspect).await.name;
    let api = Api::<Pod>::namespaced(world.client.clone(), &world.namespace);
    api.delete(&suspect, &DeleteParams::default())
        .await
        .unwrap();
    noted(&world, &quarantine, "PodGone").await;
    let status = status_of(&world, &quarantine).await;
    assert_eq!(status["phase"], "Incomplete", "{status}");
    assert_eq!(status["verdict"], Value::Null, "{status}");
    let message = status["message"].as_str().unwrap();
    assert!(message.starts_with("the suspect pod is gone"), "{message}");
}

#[tokio::test]
async fn a_policy_that_is_opened_up_is_noticed_and_the_pod_not_called_contained_any_more() {
    let world = World::start().await;
    let pods = world.deployment("nginx", 1, None).await;
    let quarantine = world.quarantine(&name(pods.first().unwrap())).await.name;
    let policies = Api::<NetworkPolicy>::namespaced(world.client.clone(), &world.namespace);
    let open = Patch::Merge(json!({ "spec": { "ingress": [{}] } }));
    policies
        .patch("deny-all-suspectpod", &PatchParams::default(), &open)
        .await
        .unwrap();
    noted(&world, &quarantine, "PolicyChanged").await;
    eventually("the phase follows", || async {
        let now = world.current(&quarantine).await;
        if now.phase == "Failed" {
            Ok(())
        } else {
            Err(format!("{} {}", now.phase, now.message))
        }
    })
    .await;
}
