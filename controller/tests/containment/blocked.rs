//! A policy or a strip that the API refuses: the suspect is isolated at its node and its evidence collected
//! all the same, it is never called contained, and containment goes on once it is let.

use impound_proto::controller::v1::{CreateQuarantineRequest, Quarantine};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use kube_memory::Fault;
use serde_json::json;

use super::agent::{FakeAgent, tar};
use super::world::{CONTROLLER, World, eventually, name, node_of, state};

/// A suspect with a neighbour, and the agent of their node, which isolates.
pub(crate) struct Stage {
    pub(crate) world: World,
    pub(crate) suspect: Pod,
    pub(crate) agent: FakeAgent,
    neighbour: Pod,
    /// Ids of their containers.
    containers: [String; 2],
}

impl Stage {
    pub(crate) async fn new() -> Self {
        let mut world = World::in_memory_without_controller().await;
        let suspect = world.deployment("nginx", 1, None).await.remove(0);
        let node = node_of(&suspect);
        let neighbour = world.deployment("tomcat", 1, Some(&node)).await.remove(0);
        assert_eq!(node_of(&neighbour), node, "two pods on one node are needed");
        let agent = FakeAgent::new(&node);
        let tls = world.dir.path().join("pki/agents").join(&node);
        let (port, _server) = agent.serve(&tls).await;
        let containers = [(&suspect, "nginx"), (&neighbour, "tomcat")].map(|(pod, container)| {
            let uid = pod.metadata.uid.clone().unwrap();
            let pod = (world.namespace.as_str(), &*name(pod), &*uid);
            agent.add(pod, container, 0, 3_000)
        });
        let layers = containers
            .iter()
            .map(|id| (id.clone(), tar(2_000, id.as_bytes())));
        agent.state.lock().unwrap().layers.extend(layers);
        world.about_agents = vec!["--agent-port".into(), port.to_string()];
        world.start_controller().await;
        Self {
            world,
            suspect,
            agent,
            neighbour,
            containers,
        }
    }

    /// Without the names that differ between runs.
    pub(crate) fn anonymous(&self, text: &str) -> String {
        let uid: String = self
            .suspect
            .metadata
            .uid
            .iter()
            .flat_map(|uid| uid.chars())
            .take(8)
            .collect();
        let [suspect, neighbour] = self.containers.each_ref().map(|id| id[..12].to_owned());
        text.replace(&name(&self.suspect), "SUSPECT")
            .replace(&name(&self.neighbour), "NEIGHBOUR")
            .replace(&suspect, "CONTAINER")
            .replace(&neighbour, "CONTAINER")
            .replace(&uid, "UID")
            .replace(&node_of(&self.suspect), "NODE")
            .replace(&self.world.namespace, "NAMESPACE")
    }

    /// Asks for a quarantine with a collection.
    /// Asks for a quarantine whose export is waited for until the agent is not slow any more.
    pub(crate) async fn ask_slowly(&self) -> String {
        self.agent.state.lock().unwrap().slow = true;
        let quarantine = self.ask().await;
        self.becomes(&quarantine, "the export is waited for", |now| {
            state(now, "Collect") == "Waiting"
        })
        .await;
        quarantine
    }

    pub(crate) async fn ask(&self) -> String {
        let mut alice = self.world.responder("alice").await;
        let request = CreateQuarantineRequest {
            skip_collection: false,
            ..self.world.request(&name(&self.suspect))
        };
        let created = alice.create_quarantine(request).await.unwrap().into_inner();
        created.quarantine.unwrap().name
    }

    /// Waits until the quarantine is as the test wants it.
    pub(crate) async fn becomes(
        &self,
        quarantine: &str,
        what: &str,
        is: impl Fn(&Quarantine) -> bool,
    ) -> Quarantine {
        eventually(what, || async {
            let now = self.world.current(quarantine).await;
            if is(&now) {
                Ok(now)
            } else {
                Err(format!("{now:#?}"))
            }
        })
        .await
    }
}

#[tokio::test]
async fn a_policy_of_our_name_that_is_somebody_elses_keeps_neither_isolation_nor_collection_waiting()
 {
    let stage = Stage::new().await;
    stage
        .world
        .create(json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": { "name": "deny-all-suspectpod" },
            "spec": { "podSelector": {}, "ingress": [{}], "egress": [{}], "policyTypes": ["Ingress", "Egress"] },
        }))
        .await;
    let quarantine = stage.ask().await;
    let begun = std::time::Instant::now();
    let verified = stage
        .becomes(&quarantine, "it is verified", |now| {
            state(now, "Verify") == "Failed"
        })
        .await;
    // What nobody will make is not waited for as for what the API server's own controllers do.
    assert!(
        begun.elapsed() < std::time::Duration::from_secs(10),
        "{verified:#?}"
    );
    let done = stage.world.settled(&quarantine).await;
    assert_eq!(state(&done, "Policy"), "Failed", "{done:#?}");
    for step in ["Strip", "Isolate", "Collect", "Evict"] {
        assert_eq!(state(&done, step), "Done", "{step}: {done:#?}");
    }
    assert_eq!(done.verdict, "NotContained", "{done:#?}");
    assert!(
        done.message.starts_with("NOT contained: ")
            && done.message.contains("it is not as Impound makes it"),
        "{}",
        done.message
    );
    stage.world.release(&quarantine, false).await.unwrap();
    let released = stage.world.settled(&quarantine).await;
    assert_eq!(released.phase, "Released", "{released:#?}");
    let policies =
        Api::<NetworkPolicy>::namespaced(stage.world.client.clone(), &stage.world.namespace);
    // It was never ours.
    policies.get("deny-all-suspectpod").await.unwrap();
}

async fn goes_on_without(refused: &str, method: &'static str, path: &'static str) {
    let stage = Stage::new().await;
    let memory = stage.world.memory.as_ref().unwrap();
    let fault = memory.inject(Fault::answer(403).by(CONTROLLER).on(method, path));
    let quarantine = stage.ask().await;
    let now = stage
        .becomes(&quarantine, "the evidence is sealed", |now| {
            state(now, "Collect") == "Done"
        })
        .await;
    assert_eq!(state(&now, refused), "Waiting", "{now:#?}");
    for step in ["Isolate", "Prove", "Neighbours"] {
        assert_eq!(state(&now, step), "Done", "{step}: {now:#?}");
    }
    assert!(stage.agent.state.lock().unwrap().isolated);
    assert_eq!(state(&now, "Verify"), "Failed", "{now:#?}");
    assert_eq!(now.verdict, "NotContained", "{now:#?}");
    assert!(
        now.message.starts_with("NOT contained: ") && now.message.contains(refused),
        "{}",
        now.message
    );
    assert_ne!(now.phase, "Contained");
    assert_eq!(state(&now, "Evict"), "", "{now:#?}");
    let evicted = stage.world.effects();
    let evicted = evicted.iter().any(|effect| effect.contains("/eviction"));
    assert!(!evicted);

    fault.remove();
    let done = stage
        .becomes(&quarantine, "containment goes on", |now| {
            now.phase == "Complete"
        })
        .await;
    for step in [refused, "Strip", "LabelNode", "Verify", "Evict", "Collect"] {
        assert_eq!(state(&done, step), "Done", "{step}: {done:#?}");
    }
    assert_eq!(done.verdict, "Isolated", "{done:#?}");
    let mut once = stage.world.effects();
    once.sort();
    let all = once.len();
    once.dedup();
    // The node is patched twice: cordoned and labelled.
    assert_eq!(once.len() + 1, all, "{:#?}", stage.world.effects());
}

#[tokio::test]
async fn a_refused_policy_keeps_neither_isolation_nor_collection_waiting() {
    goes_on_without("Policy", "POST", "/networkpolicies").await;
}

#[tokio::test]
async fn a_refused_strip_keeps_neither_isolation_nor_collection_waiting() {
    goes_on_without("Strip", "PATCH", "/pods/").await;
}

#[tokio::test]
async fn what_stays_refused_ends_as_failed_and_is_tried_on() {
    let world = World::start_in_memory().await;
    let suspect = world.deployment("nginx", 1, None).await.remove(0);
    let memory = world.memory.as_ref().unwrap();
    let refused = Fault::answer(403).by(CONTROLLER);
    let fault = memory.inject(refused.on("POST", "/networkpolicies"));
    let failed = world.quarantine(&name(&suspect)).await;
    assert_eq!(failed.phase, "Failed", "{failed:#?}");
    assert!(
        failed.message.starts_with("NOT contained: ")
            && failed.message.contains("Policy: NOT done"),
        "{}",
        failed.message
    );
    fault.remove();
    eventually("it is contained after all", || async {
        let now = world.current(&failed.name).await;
        match now.phase.as_str() {
            "Complete" => Ok(()),
            phase => Err(format!("{phase}: {}", now.message)),
        }
    })
    .await;
}

#[tokio::test]
async fn what_somebody_takes_away_while_evidence_is_collected_is_put_back() {
    let stage = Stage::new().await;
    let quarantine = stage.ask_slowly().await;
    take_away(&stage, &quarantine).await;
    stage.agent.state.lock().unwrap().slow = false;
    let done = stage.world.settled(&quarantine).await;
    assert_eq!(done.phase, "Complete", "{done:#?}");
}

#[tokio::test]
async fn what_somebody_takes_away_while_a_neighbour_terminates_is_put_back() {
    let stage = Stage::new().await;
    let pods = Api::<Pod>::namespaced(stage.world.client.clone(), &stage.world.namespace);
    let neighbour = name(stage.world.pods("app=tomcat").await.first().unwrap());
    let hold = |finalizers| Patch::Merge(json!({ "metadata": { "finalizers": finalizers } }));
    pods.patch(
        &neighbour,
        &PatchParams::default(),
        &hold(json!(["impound.dev/test"])),
    )
    .await
    .unwrap();
    let quarantine = stage.ask().await;
    stage
        .becomes(&quarantine, "a neighbour terminates", |now| {
            state(now, "Evict") == "Waiting" && state(now, "Collect") == "Done"
        })
        .await;
    take_away(&stage, &quarantine).await;
    pods.patch(&neighbour, &PatchParams::default(), &hold(json!(null)))
        .await
        .unwrap();
    let done = stage.world.settled(&quarantine).await;
    assert_eq!(done.phase, "Complete", "{done:#?}");
}

#[tokio::test]
async fn what_somebody_takes_away_while_the_neighbours_are_read_is_put_back() {
    let stage = Stage::new().await;
    stage.agent.state.lock().unwrap().slow_inspect = true;
    let quarantine = stage.ask().await;
    stage
        .becomes(&quarantine, "the quick part is waited for", |now| {
            state(now, "Neighbours") == "Waiting" && state(now, "Prove") == "Done"
        })
        .await;
    take_away(&stage, &quarantine).await;
    stage.agent.state.lock().unwrap().slow_inspect = false;
    let done = stage.world.settled(&quarantine).await;
    assert_eq!(done.phase, "Complete", "{done:#?}");
}

/// Undoes cordon, policy and strip by other hands, and waits until all of it is noticed and put back.
async fn take_away(stage: &Stage, quarantine: &str) {
    let (client, namespace) = (stage.world.client.clone(), &stage.world.namespace);
    let (suspect, node) = (name(&stage.suspect), node_of(&stage.suspect));
    let patch = PatchParams::default();
    let uncordon = Patch::Merge(json!({ "spec": { "unschedulable": null, "taints": null } }));
    let nodes = Api::<Node>::all(client.clone());
    nodes.patch(&node, &patch, &uncordon).await.unwrap();
    let policies = Api::<NetworkPolicy>::namespaced(client.clone(), namespace);
    policies
        .delete("deny-all-suspectpod", &DeleteParams::default())
        .await
        .unwrap();
    let relabel = Patch::Merge(json!({ "metadata": { "labels": { "status": null } } }));
    let pods = Api::<Pod>::namespaced(client, namespace);
    pods.patch(&suspect, &patch, &relabel).await.unwrap();
    stage
        .becomes(quarantine, "all of it is put back", |now| {
            let restored = |what: &str| {
                let mut drift = now.drift.iter();
                drift.any(|drift| drift.reason == "Restored" && drift.what.contains(what))
            };
            restored("no new pod is scheduled")
                && restored("denies all traffic")
                && restored("deny-all policy selects it")
        })
        .await;
    assert_eq!(
        policies
            .list(&ListParams::default())
            .await
            .unwrap()
            .items
            .len(),
        1
    );
    let node = stage.world.node(&node).await;
    assert_eq!(node.spec.unwrap().unschedulable, Some(true));
}
