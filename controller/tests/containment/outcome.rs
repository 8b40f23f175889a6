//! What a run came to, without the names and times that differ between runs: two runs are compared by it.

use std::sync::OnceLock;
use std::time::Duration;

use futures::TryStreamExt;
use impound_controller::resources::{Quarantine, QuarantinePhase, QuarantineStatus};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{Api, ListParams, Patch, PatchParams, WatchEvent, WatchParams};
use serde_json::{Value, json};

use super::world::{World, container, eventually, is_running, name, node_of, prefers};

/// Where two outcomes differ, one line each.
pub(crate) fn differences(left: &Value, right: &Value) -> Vec<String> {
    fn walk(path: &str, left: &Value, right: &Value, found: &mut Vec<String>) {
        match (left, right) {
            (Value::Object(a), Value::Object(b)) => {
                let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
                for key in keys {
                    let of = |map: &serde_json::Map<String, Value>| {
                        map.get(key.as_str()).cloned().unwrap_or_default()
                    };
                    walk(&format!("{path}/{key}"), &of(a), &of(b), found);
                }
            }
            _ if left == right => {}
            _ => found.push(format!("{path}: {left} instead of {right}")),
        }
    }
    let mut found = Vec::new();
    walk("", left, right, &mut found);
    found
}

/// Whose pod is the suspect.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Owner {
    Deployment,
    StatefulSet,
}

/// A suspect with a neighbour on its node.
pub(crate) struct Scene {
    pub(crate) world: World,
    pub(crate) suspect: String,
    node: String,
    /// The suspect when its release was asked for.
    contained: OnceLock<Pod>,
}

impl Scene {
    pub(crate) async fn new(owner: Owner) -> Self {
        let world = World::start().await;
        let own = world.own_node().await;
        let pods = match owner {
            // One, since how many of several share the suspect's node, and are evicted, is the scheduler's choice.
            Owner::Deployment => world.deployment("web", 1, own.as_deref()).await,
            Owner::StatefulSet => {
                world
                    .create(json!({
                        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": { "name": "web" },
                        "spec": {
                            "replicas": 1, "serviceName": "web",
                            "selector": { "matchLabels": { "app": "web" } },
                            "template": {
                                "metadata": { "labels": { "app": "web" } },
                                "spec": {
                                    "terminationGracePeriodSeconds": 1, "containers": [container("web")],
                                    "affinity": prefers(own.as_deref()),
                                },
                            },
                        },
                    }))
                    .await;
                world.running("app=web", 1).await
            }
        };
        let here = |pod: &&Pod| own.as_ref().is_none_or(|own| node_of(pod) == *own);
        let suspect = pods
            .iter()
            .find(here)
            .expect("a pod on the test's own node");
        let (suspect, node) = (name(suspect), node_of(suspect));
        let neighbours = world.deployment("neighbour", 1, Some(&node)).await;
        assert_eq!(
            node_of(neighbours.first().unwrap()),
            node,
            "the scene needs a neighbour to evict"
        );
        Self {
            world,
            suspect,
            node,
            contained: OnceLock::new(),
        }
    }

    /// Asks for the quarantine as a person with kubectl does, who tries again until it is taken.
    pub(crate) async fn ask(&self) {
        self.world
            .create(json!({
                "apiVersion": "impound.dev/v1alpha1", "kind": "Quarantine", "metadata": { "name": "q" },
                "spec": { "pod": self.suspect, "case": "INC-1", "reason": "x", "skipCollection": true },
            }))
            .await;
    }

    pub(crate) async fn ask_for_release(&self) {
        let pod = self.world.pod(&self.suspect).await;
        self.contained.set(pod).unwrap();
        let patch = Patch::Merge(json!({ "spec": { "release": { "reason": "false alarm" } } }));
        self.quarantines()
            .patch("q", &PatchParams::default(), &patch)
            .await
            .unwrap();
    }

    /// Waits until nothing more is to be done.
    pub(crate) async fn ended(&self, phase: QuarantinePhase) -> Quarantine {
        eventually("the quarantine ends", || async {
            self.world.restart_if_ended();
            let now = self.quarantines().get("q").await.unwrap();
            let status = now.status.clone().unwrap_or_default();
            let held = now.metadata.finalizers.clone().unwrap_or_default();
            let over = phase == QuarantinePhase::Released;
            if status.phase == phase && held.is_empty() == over {
                Ok(now)
            } else {
                Err(format!("{:?}: {}; {held:?}", status.phase, status.message))
            }
        })
        .await
    }

    fn quarantines(&self) -> Api<Quarantine> {
        Api::namespaced(self.world.client.clone(), &self.world.namespace)
    }

    /// The controller's calls that changed something outside its own resources, sorted.
    pub(crate) fn effects(&self) -> Vec<String> {
        let mut effects: Vec<String> = self
            .world
            .effects()
            .iter()
            .map(|effect| match effect.split_once("/pods/neighbour-") {
                Some((start, _)) => format!("{}/pods/NEIGHBOUR/eviction", self.anonymous(start)),
                None => self.anonymous(effect),
            })
            .collect();
        effects.sort();
        effects
    }

    /// How many writes the controller has made, other than to lease and events.
    pub(crate) fn writes(&self) -> usize {
        let own = ["/leases", "/events", "/selfsubjectreviews"];
        let requests = self.world.requests();
        let writes = requests.iter().filter(|request| {
            request.method != "GET" && !own.iter().any(|own| request.path.contains(own))
        });
        writes.count()
    }

    /// Pod, node, policies, budgets and status once the cluster's own controllers are done.
    pub(crate) async fn outcome(&self, quarantine: &Quarantine) -> Value {
        let (client, namespace) = (&self.world.client, &self.world.namespace);
        eventually("the owners are done", || async {
            let pods = Api::<Pod>::namespaced(client.clone(), namespace);
            let pods = pods.list(&ListParams::default()).await.unwrap().items;
            if pods.iter().all(is_running) {
                Ok(())
            } else {
                Err(format!("{} pods, not all run", pods.len()))
            }
        })
        .await;
        // Endpoints and owners follow within milliseconds; what is compared below does not depend on them.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let pod = Api::<Pod>::namespaced(client.clone(), namespace);
        let pod = match (
            pod.get_opt(&self.suspect).await.unwrap(),
            self.contained.get(),
        ) {
            // Its owner has one too many after a release, and may delete either.
            (None, Some(contained)) => Some(last_seen(&self.world, contained).await),
            (pod, _) => pod,
        };
        let node = Api::<Node>::all(client.clone());
        let node = node.get(&self.node).await.unwrap();
        let policies = Api::<NetworkPolicy>::namespaced(client.clone(), namespace);
        let policies = policies.list(&ListParams::default()).await.unwrap();
        let budgets = Api::<PodDisruptionBudget>::namespaced(client.clone(), namespace);
        let budgets = budgets.list(&ListParams::default()).await.unwrap();
        let status = quarantine.status.clone().unwrap_or_default();
        let spec = node.spec.clone().unwrap_or_default();
        let mut taints: Vec<String> = spec
            .taints
            .into_iter()
            .flatten()
            .map(|taint| format!("{}:{}", taint.key, taint.effect))
            .collect();
        taints.sort();
        let steps = steps(&status);
        let facts: Vec<String> = status
            .facts
            .iter()
            .map(|fact| format!("{}: {:?}", fact.name, fact.state))
            .collect();
        let outcome = json!({
            "pod": pod.map(|pod| json!({
                "labels": pod.metadata.labels, "annotations": pod.metadata.annotations,
                "owned": pod.metadata.owner_references.is_some(),
            })),
            "node": {
                "labels": node.metadata.labels, "annotations": node.metadata.annotations,
                "unschedulable": spec.unschedulable, "taints": taints,
            },
            "policies": policies.items.iter().map(|policy| json!([policy.metadata.name, policy.spec])).collect::<Vec<_>>(),
            "budgets": budgets.items.iter().map(|budget| json!([budget.metadata.name, budget.spec])).collect::<Vec<_>>(),
            "phase": status.phase, "steps": steps, "facts": facts,
        });
        serde_json::from_str(&self.anonymous(&outcome.to_string())).unwrap()
    }

    fn anonymous(&self, text: &str) -> String {
        text.replace(&self.suspect, "SUSPECT")
            .replace(&self.world.namespace, "NAMESPACE")
            .replace(&self.node, "NODE")
    }
}

/// How each step ended, the same for a run that was disturbed.
pub(crate) fn steps(status: &QuarantineStatus) -> Vec<String> {
    let mut steps: Vec<String> = status
        .steps
        .iter()
        .map(|step| format!("{}: {:?}", step.name, step.state))
        .collect();
    steps.sort();
    steps
}

/// The pod as it was last seen since then: its owner may have deleted it, having one too many.
pub(crate) async fn last_seen(world: &World, since: &Pod) -> Pod {
    let api = Api::<Pod>::namespaced(world.client.clone(), &world.namespace);
    let version = since.metadata.resource_version.clone().unwrap();
    let field = format!("metadata.name={}", name(since));
    eventually("the pod is seen to be released", || async {
        let watch = WatchParams::default().fields(&field).timeout(1);
        let events = api.watch(&watch, &version).await.unwrap();
        let events: Vec<WatchEvent<Pod>> = events.try_collect().await.unwrap();
        let seen = events.into_iter().filter_map(|event| match event {
            WatchEvent::Added(pod) | WatchEvent::Modified(pod) | WatchEvent::Deleted(pod) => {
                Some(pod)
            }
            _ => None,
        });
        let mut seen = seen.filter(|pod| pod.metadata.uid == since.metadata.uid);
        let first = seen
            .next()
            .ok_or_else(|| "nothing has happened".to_owned())?;
        Ok(seen.next_back().unwrap_or(first))
    })
    .await
}
