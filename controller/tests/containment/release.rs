//! Release: everything that was recorded is undone, and nothing else.

use impound_proto::controller::v1::ReleaseQuarantineRequest;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use tonic::Code;

use super::world::{World, calls_planned, calls_sent, label, name, node_of};

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

impl World {
    async fn patch_pod(&self, pod: &str, patch: serde_json::Value) {
        let pods = Api::<k8s_openapi::api::core::v1::Pod>::namespaced(
            self.client.clone(),
            &self.namespace,
        );
        pods.patch(pod, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .unwrap();
    }

    /// Asks for the release with kubectl, as one does while no controller answers.
    async fn ask_for_release(&self, quarantine: &str) {
        let path = format!(
            "/apis/impound.dev/v1alpha1/namespaces/{}/quarantines/{quarantine}",
            self.namespace
        );
        let request = http::Request::patch(path)
            .header("content-type", "application/merge-patch+json")
            .body(br#"{"spec":{"release":{"reason":"false alarm"}}}"#.to_vec())
            .unwrap();
        self.client
            .request::<serde_json::Value>(request)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn what_others_changed_meanwhile_is_left_and_told() {
    let mut world = World::start().await;
    let pods = world.deployment("nginx", 1, None).await;
    let suspect = name(pods.first().unwrap());
    let node = node_of(pods.first().unwrap());
    let done = world.quarantine(&suspect).await;
    // While nobody watches: a label, an annotation and a taint that are others' by now.
    world.kill_controller();
    world
        .patch_pod(
            &suspect,
            json!({ "metadata": {
            "labels": { "status": "under-review", "app": "another", "seen": "yes" },
            "annotations": { "cluster-autoscaler.kubernetes.io/safe-to-evict": "true" },
        } }),
        )
        .await;
    let nodes = Api::<Node>::all(world.client.clone());
    let mut spec = json!(nodes.get(&node).await.unwrap().spec.unwrap());
    spec["taints"]
        .as_array_mut()
        .unwrap()
        .push(json!({ "key": "gpu", "value": "yes", "effect": "NoSchedule" }));
    let change = json!({ "spec": { "taints": spec["taints"] }, "metadata": {
        "labels": { "status": "broken" },
        "annotations": { "karpenter.sh/do-not-disrupt": "false" } } });
    nodes
        .patch(&node, &PatchParams::default(), &Patch::Merge(change))
        .await
        .unwrap();
    world.ask_for_release(&done.name).await;
    world.start_controller().await;
    let released = world.settled(&done.name).await;
    assert_eq!(released.phase, "Released", "{released:#?}");

    let pod = world.pod(&suspect).await;
    assert_eq!(label(&pod, "status").as_deref(), Some("under-review"));
    assert_eq!(label(&pod, "app").as_deref(), Some("another"));
    assert_eq!(label(&pod, "seen").as_deref(), Some("yes"));
    assert!(
        label(&pod, "pod-template-hash").is_some(),
        "what nobody changed is back"
    );
    assert_eq!(label(&pod, "impound.dev/quarantine"), None);
    let annotations = pod.metadata.annotations.unwrap_or_default();
    assert_eq!(
        annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"],
        "true"
    );
    assert_eq!(annotations.get("karpenter.sh/do-not-disrupt"), None);
    let strip = released
        .steps
        .iter()
        .find(|step| step.name == "UndoStrip")
        .unwrap();
    for words in [
        "label status was set to under-review",
        "label app was set to another",
        "safe-to-evict was set to true",
    ] {
        assert!(strip.message.contains(words), "{}", strip.message);
    }
    let node = nodes.get(&node).await.unwrap();
    assert_eq!(node.metadata.labels.unwrap()["status"], "broken");
    assert_eq!(
        node.metadata.annotations.unwrap()["karpenter.sh/do-not-disrupt"],
        "false"
    );
    let spec = node.spec.unwrap();
    let keys: Vec<String> = spec
        .taints
        .unwrap_or_default()
        .into_iter()
        .map(|taint| taint.key)
        .collect();
    assert!(
        keys.contains(&"gpu".to_owned()) && !keys.contains(&"impound.dev/suspect".to_owned()),
        "{keys:?}"
    );
    assert!(!spec.unschedulable.unwrap_or_default());
}

#[tokio::test]
async fn a_release_that_fails_half_way_goes_on_where_it_was() {
    let mut world = World::start().await;
    let pods = world.deployment("nginx", 1, None).await;
    let done = world.quarantine(&name(pods.first().unwrap())).await;
    let before = world.effects().len();
    let refuse = kube_memory::Fault::answer(403).on("DELETE", "/networkpolicies/");
    let fault = world.api().inject(refuse);
    world.release(&done.name, false).await.unwrap();
    let waiting = super::world::eventually("the step waits", || async {
        let now = world.current(&done.name).await;
        match super::world::state(&now, "UndoPolicy").as_str() {
            "Waiting" => Ok(now),
            other => Err(other.to_owned()),
        }
    })
    .await;
    assert_eq!(waiting.phase, "Releasing");
    let step = waiting
        .steps
        .iter()
        .find(|step| step.name == "UndoPolicy")
        .unwrap();
    assert!(
        step.message.starts_with("NOT undone, tried again"),
        "{}",
        step.message
    );
    assert_eq!(super::world::state(&waiting, "UndoStrip"), "Done");
    world.kill_controller();
    fault.remove();
    world.start_controller().await;
    assert_eq!(world.settled(&done.name).await.phase, "Released");
    let undone = world.effects().split_off(before);
    let mut once = undone.clone();
    once.sort();
    once.dedup();
    // The node is changed twice (labels, then cordon), everything else once.
    assert_eq!(undone.len(), once.len() + 1, "{undone:#?}");
}

#[tokio::test]
async fn a_dry_run_of_a_release_says_what_it_sends_and_leads_to_and_changes_nothing() {
    let world = World::start().await;
    let pods = world.deployment("nginx", 1, None).await;
    let done = world.quarantine(&name(pods.first().unwrap())).await;
    let before = world.effects();
    let request = ReleaseQuarantineRequest {
        namespace: world.namespace.clone(),
        name: done.name.clone(),
        ..Default::default()
    };
    let mut alice = world.responder("alice").await;
    let plan = alice
        .plan_release(request.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(world.effects(), before);
    assert!(
        plan.warnings
            .iter()
            .any(|warning| warning.contains("Deployment nginx")
                && warning.contains("deletes one of its pods")),
        "{:#?}",
        plan.warnings
    );
    world.release(&done.name, false).await.unwrap();
    assert_eq!(world.settled(&done.name).await.phase, "Released");
    let sent = calls_sent(&world.changes()[before.len()..]);
    assert_eq!(sent, calls_planned(&plan.calls));
    let again = alice.plan_release(request).await.unwrap_err();
    assert_eq!(again.code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn what_is_over_is_marked_and_no_longer_read_when_something_is_planned() {
    let world = World::start().await;
    let nginx = world.deployment("nginx", 1, None).await;
    let done = world.quarantine(&name(nginx.first().unwrap())).await;
    world.release(&done.name, false).await.unwrap();
    world.settled(&done.name).await;
    let marked = || async {
        let path = "/apis/impound.dev/v1alpha1/quarantines?labelSelector=%21impound.dev%2Fover";
        let request = http::Request::get(path).body(Vec::new()).unwrap();
        let list: serde_json::Value = world.client.request(request).await.unwrap();
        match list["items"].as_array().unwrap().len() {
            0 => Ok(()),
            open => Err(format!("{open} are read")),
        }
    };
    super::world::eventually("it is marked", marked).await;
    let tomcat = world.deployment("tomcat", 1, None).await;
    assert_eq!(
        world.quarantine(&name(tomcat.first().unwrap())).await.phase,
        "Complete"
    );
    assert!(
        world
            .requests()
            .iter()
            .filter(|request| request.method == "GET"
                && request
                    .path
                    .starts_with("/apis/impound.dev/v1alpha1/quarantines"))
            .filter(|request| !request.path.contains("watch"))
            // A watch begins with a list in pages.
            .filter(|request| !request.path.contains("limit="))
            .all(|request| request.path.contains("labelSelector"))
    );
}
