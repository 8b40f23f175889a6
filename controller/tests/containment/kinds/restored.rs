//! What a release has to leave as it was before.

use impound_proto::controller::v1::{Quarantine, ReleaseQuarantineRequest};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{Api, ListParams};
use serde_json::{Value, json};

use super::super::outcome::differences;
use super::super::world::World;

/// Pod, node, policies and budgets before a quarantine.
pub(super) struct Before {
    pod: Value,
    node: Option<String>,
    shared: Value,
}

impl Before {
    pub(super) async fn of(world: &World, suspect: &Pod) -> Self {
        let node = suspect.spec.as_ref().unwrap().node_name.clone();
        Self {
            pod: marks(suspect),
            shared: shared(world, node.as_deref()).await,
            node,
        }
    }

    /// Where it is not as before, with the pod as it was seen last.
    pub(super) async fn compared(&self, world: &World, pod: &Pod) -> Vec<String> {
        let mut wrong = differences(&marks(pod), &self.pod);
        // The cluster's own controllers follow what is written on a node, e.g. with taints of theirs.
        let mut last = Vec::new();
        for _ in 0..50 {
            last = differences(&shared(world, self.node.as_deref()).await, &self.shared);
            if last.is_empty() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        wrong.extend(last);
        wrong
    }
}

fn marks(pod: &Pod) -> Value {
    json!({ "labels": pod.metadata.labels, "annotations": pod.metadata.annotations.clone().unwrap_or_default() })
}

async fn shared(world: &World, node: Option<&str>) -> Value {
    let (client, namespace) = (&world.client, &world.namespace);
    let node: Option<Node> = match node {
        Some(node) => Some(world.node(node).await),
        None => None,
    };
    let node = node.map(|node| {
        let spec = node.spec.unwrap_or_default();
        let taints = spec.taints.unwrap_or_default();
        let mut taints: Vec<String> = taints
            .iter()
            .map(|taint| format!("{}={:?}:{}", taint.key, taint.value, taint.effect))
            .collect();
        taints.sort();
        json!({
            "labels": node.metadata.labels, "annotations": node.metadata.annotations.unwrap_or_default(),
            "unschedulable": spec.unschedulable.unwrap_or_default(), "taints": taints,
        })
    });
    let policies = Api::<NetworkPolicy>::namespaced(client.clone(), namespace);
    let policies = policies.list(&ListParams::default()).await.unwrap();
    let budgets = Api::<PodDisruptionBudget>::namespaced(client.clone(), namespace);
    let budgets = budgets.list(&ListParams::default()).await.unwrap();
    let policy = |policy: &NetworkPolicy| json!([policy.metadata.name, policy.spec]);
    let budget = |budget: &PodDisruptionBudget| json!([budget.metadata.name, budget.spec]);
    json!({
        "node": node,
        "policies": policies.iter().map(policy).collect::<Vec<_>>(),
        "budgets": budgets.iter().map(budget).collect::<Vec<_>>(),
    })
}

pub(super) async fn release(world: &World) -> Quarantine {
    let mut alice = world.responder("alice").await;
    let request = ReleaseQuarantineRequest {
        namespace: world.namespace.clone(),
        name: "q".into(),
        reason: "false alarm".into(),
        ..Default::default()
    };
    alice.release_quarantine(request).await.unwrap();
    world.settled("q").await
}
