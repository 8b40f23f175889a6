//! Release: everything that was recorded is undone, and nothing else.

use impound_proto::controller::v1::ReleaseQuarantineRequest;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use tonic::Code;

use super::world::{World, label, name, node_of};

impl World {
    pub(crate) async fn release(&self, quarantine: &str, force: bool) -> Result<(), tonic::Status> {
        let request = ReleaseQuarantineRequest {
            namespace: self.namespace.clone(),
            name: quarantine.into(),
            reason: "false alarm".into(),
            force,
        };
        self.responder("alice")
            .await
            .release_quarantine(request)
            .await
            .map(drop)
    }
}

#[tokio::test]
async fn release_puts_pod_and_node_back_as_they_were() {
    let world = World::start().await;
    let pods = world.deployment("nginx", 1, None).await;
    let suspect = pods.first().unwrap();
    let before = world.node(&node_of(suspect)).await;
    let done = world.quarantine(&name(suspect)).await;
    world.release(&done.name, false).await.unwrap();
    let released = world.settled(&done.name).await;
    assert_eq!(released.phase, "Released", "{released:#?}");
    // Adopted again: whether this pod or the replacement stays is the ReplicaSet's choice.
    let kept = world.running("app=nginx", 1).await;
    assert_eq!(label(kept.first().unwrap(), "status"), None);
    let after = world.node(&node_of(suspect)).await;
    assert!(
        !after
            .spec
            .as_ref()
            .unwrap()
            .unschedulable
            .unwrap_or_default()
    );
    let taints = |node: &Node| {
        node.spec
            .clone()
            .and_then(|spec| spec.taints)
            .unwrap_or_default()
            .len()
    };
    super::world::eventually("the taints are as before", || async {
        let now = world.node(&node_of(suspect)).await;
        if taints(&now) == taints(&before) {
            Ok(())
        } else {
            Err(format!("{:?}", now.spec))
        }
    })
    .await;
    assert_eq!(after.metadata.labels, before.metadata.labels);
    assert_eq!(
        after.metadata.annotations.unwrap_or_default(),
        before.metadata.annotations.unwrap_or_default()
    );
    let policies = Api::<NetworkPolicy>::namespaced(world.client.clone(), &world.namespace);
    assert!(
        policies
            .get_opt("deny-all-suspectpod")
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn a_node_that_was_cordoned_before_stays_cordoned() {
    let world = World::start().await;
    let pods = world.deployment("nginx", 1, None).await;
    let node = node_of(pods.first().unwrap());
    let nodes = Api::<Node>::all(world.client.clone());
    let cordon = |value| Patch::Merge(json!({ "spec": { "unschedulable": value } }));
    nodes
        .patch(&node, &PatchParams::default(), &cordon(Some(true)))
        .await
        .unwrap();
    let done = world.quarantine(&name(pods.first().unwrap())).await;
    world.release(&done.name, false).await.unwrap();
    assert_eq!(world.settled(&done.name).await.phase, "Released");
    let spec = world.node(&node).await.spec.unwrap();
    nodes
        .patch(&node, &PatchParams::default(), &cordon(None))
        .await
        .unwrap();
    assert_eq!(spec.unschedulable, Some(true));
    assert!(
        !spec
            .taints
            .unwrap_or_default()
            .iter()
            .any(|taint| taint.key == "impound.dev/suspect")
    );
}

#[tokio::test]
async fn two_quarantines_on_one_node_share_it_until_the_last_is_released() {
    let world = World::start().await;
    let pods = world.deployment("nginx", 1, None).await;
    let first_pod = pods.first().unwrap();
    let node = node_of(first_pod);
    let more = world.deployment("tomcat", 1, Some(&node)).await;
    let second_pod = more.first().unwrap();
    assert_eq!(
        node_of(second_pod),
        node,
        "this test needs two pods on one node"
    );
    let mut keep = world.request(&name(first_pod));
    keep.keep_neighbours = true;
    let mut alice = world.responder("alice").await;
    let first = alice
        .create_quarantine(keep)
        .await
        .unwrap()
        .into_inner()
        .quarantine
        .unwrap()
        .name;
    world.settled(&first).await;
    let second = world.quarantine(&name(second_pod)).await.name;

    world.release(&first, false).await.unwrap();
    assert_eq!(world.settled(&first).await.phase, "Released");
    let between = world.node(&node).await.spec.unwrap();
    assert_eq!(
        between.unschedulable,
        Some(true),
        "the second quarantine still needs the node"
    );
    let policies = Api::<NetworkPolicy>::namespaced(world.client.clone(), &world.namespace);
    assert!(
        policies
            .get_opt("deny-all-suspectpod")
            .await
            .unwrap()
            .is_some()
    );

    world.release(&second, false).await.unwrap();
    assert_eq!(world.settled(&second).await.phase, "Released");
    let spec = world.node(&node).await.spec.unwrap();
    assert!(!spec.unschedulable.unwrap_or_default());
    assert!(
        policies
            .get_opt("deny-all-suspectpod")
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn release_is_refused_without_sealed_evidence_unless_forced() {
    let world = World::start().await;
    let pods = world.deployment("nginx", 1, None).await;
    let mut request = world.request(&name(pods.first().unwrap()));
    request.skip_collection = false;
    let mut alice = world.responder("alice").await;
    let quarantine = alice
        .create_quarantine(request)
        .await
        .unwrap()
        .into_inner()
        .quarantine
        .unwrap()
        .name;
    world.settled(&quarantine).await;
    let refused = world.release(&quarantine, false).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("--force"), "{refused}");
    world.release(&quarantine, true).await.unwrap();
    assert_eq!(world.settled(&quarantine).await.phase, "Released");
}
