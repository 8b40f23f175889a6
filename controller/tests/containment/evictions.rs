//! The neighbours leave: not before their quick diff is stored, past no budget, and not without a word.

use std::time::{Duration, Instant};

use impound_proto::controller::v1::{CreateQuarantineRequest, Quarantine};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use kube_memory::Fault;
use serde_json::{Value, json};

use super::agent::FakeAgent;
use super::world::{World, container, eventually, name, node_of, state};

impl World {
    /// A suspect and one neighbour on its node.
    async fn neighbours(&self) -> (Pod, Pod) {
        let own = self.own_node().await;
        let suspect = self.deployment("nginx", 1, own.as_deref()).await.remove(0);
        let node = node_of(&suspect);
        assert!(
            own.is_none_or(|own| own == node),
            "{node} is not the test's own"
        );
        let neighbour = self.deployment("tomcat", 1, Some(&node)).await.remove(0);
        assert_eq!(
            node_of(&neighbour),
            node,
            "this test needs two pods on one node"
        );
        (suspect, neighbour)
    }

    async fn budget(&self, budget: &str, app: &str) {
        self.create(json!({
            "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": { "name": budget },
            "spec": { "minAvailable": 1, "selector": { "matchLabels": { "app": app } } },
        }))
        .await;
    }

    fn budgets(&self) -> Api<PodDisruptionBudget> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    async fn asked_for(&self, pod: &str) -> String {
        let mut alice = self.responder("alice").await;
        let request = CreateQuarantineRequest {
            keep_neighbours: false,
            ..self.request(pod)
        };
        let created = alice.create_quarantine(request).await.unwrap().into_inner();
        created.quarantine.unwrap().name
    }

    async fn evict_says(&self, quarantine: &str, words: &str) -> Quarantine {
        eventually("the step says it", || async {
            let now = self.current(quarantine).await;
            let step = now.steps.iter().find(|step| step.name == "Evict");
            match step {
                Some(step) if step.message.contains(words) => Ok(now),
                step => Err(format!("{step:?}")),
            }
        })
        .await
    }

    /// Keeps a pod that is deleted in Terminating, or lets it go.
    async fn hold(&self, pod: &str, finalizers: Value) {
        let held = Patch::Merge(json!({ "metadata": { "finalizers": finalizers } }));
        Api::<Pod>::namespaced(self.client.clone(), &self.namespace)
            .patch(pod, &PatchParams::default(), &held)
            .await
            .unwrap();
    }

    /// Requests of the controller a second, lease and events included, over some seconds from now.
    async fn rate(&self, seconds: u8) -> f64 {
        let before = self.requests().len();
        tokio::time::sleep(Duration::from_secs(seconds.into())).await;
        let requests = self.requests().split_off(before);
        f64::from(u32::try_from(requests.len()).unwrap()) / f64::from(seconds)
    }

    /// Requests for evictions: when each was answered, and how.
    fn evictions(&self) -> Vec<(Timestamp, u16)> {
        let requests = self.requests().into_iter();
        requests
            .filter(|request| request.path.ends_with("/eviction"))
            .map(|request| (request.time.parse().unwrap(), request.status))
            .collect()
    }
}

fn uid(pod: &Pod) -> String {
    pod.metadata.uid.clone().unwrap()
}

#[tokio::test]
async fn no_neighbour_is_evicted_before_its_quick_diff_is_stored() {
    let mut world = World::in_memory_without_controller().await;
    let (suspect, neighbour) = world.neighbours().await;
    let node = node_of(&suspect);
    let agent = FakeAgent::new(&node);
    let tls = world.dir.path().join("pki/agents").join(&node);
    let (port, _server) = agent.serve(&tls).await;
    for (pod, container) in [(&suspect, "nginx"), (&neighbour, "tomcat")] {
        agent.add(
            (&world.namespace, &name(pod), &uid(pod)),
            container,
            0,
            3_000,
        );
    }
    world.about_agents = vec![
        "--agent-port".into(),
        port.to_string(),
        "--no-node-isolation".into(),
    ];
    world.start_controller().await;
    let done = world.quarantine_and_collect(&name(&suspect)).await;
    assert_eq!(state(&done, "Evict"), "Done", "{done:#?}");

    let requests = world.requests();
    let evicted = requests
        .iter()
        .position(|request| {
            request
                .path
                .ends_with(&format!("{}/eviction", name(&neighbour)))
        })
        .expect("the neighbour is evicted");
    let told = requests
        .iter()
        .position(|request| {
            let body = request.body.clone().unwrap_or_default();
            request.path.contains("/collections/") && body["status"]["quickDone"] == true
        })
        .expect("the quick part ends");
    assert!(told < evicted, "told at {told}, evicted at {evicted}");
    let status = &requests[told].body.as_ref().unwrap()["status"];
    let stored: Vec<&str> = status["artifacts"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|artifact| artifact["state"] == "Stored")
        .filter_map(|artifact| artifact["path"].as_str())
        .collect();
    for file in ["inspect.json", "diff.txt"] {
        assert!(
            stored
                .iter()
                .any(|path| path.contains(&name(&neighbour)) && path.ends_with(file)),
            "{file}: {stored:#?}"
        );
    }
}

#[tokio::test]
async fn two_budgets_on_one_pod_are_named_and_one_of_them_is_enough_to_go() {
    let world = World::start().await;
    let (suspect, _) = world.neighbours().await;
    world.budget("one", "tomcat").await;
    world.budget("two", "tomcat").await;
    let quarantine = world.asked_for(&name(&suspect)).await;
    world.evict_says(&quarantine, "select it at once").await;
    assert!(world.evictions().iter().all(|(_, status)| *status == 500));
    for budget in ["one", "two"] {
        world
            .budgets()
            .delete(budget, &DeleteParams::default())
            .await
            .unwrap();
    }
    assert_eq!(world.settled(&quarantine).await.phase, "Complete");
}

#[tokio::test]
async fn what_is_given_up_says_what_to_do_and_is_asked_for_again() {
    let world = World::start_with(&["--eviction-patience", "2"]).await;
    let (suspect, neighbour) = world.neighbours().await;
    world.budget("tight", "tomcat").await;
    let quarantine = world.asked_for(&name(&suspect)).await;
    let ended = world.settled(&quarantine).await;
    assert_eq!(ended.phase, "Incomplete", "{ended:#?}");
    assert_eq!(state(&ended, "Evict"), "Failed");
    let pod = ended
        .evictions
        .iter()
        .find(|one| one.pod == name(&neighbour))
        .unwrap();
    assert_eq!(pod.state, "Failed");
    let command = format!(
        "kubectl delete pod {} -n {}",
        name(&neighbour),
        world.namespace
    );
    assert!(
        pod.message
            .starts_with("given up after 2 s: disruption budget")
            && pod.message.ends_with(&command),
        "{}",
        pod.message
    );
    let allow = Patch::Merge(json!({ "spec": { "minAvailable": 0 } }));
    world
        .budgets()
        .patch("tight", &PatchParams::default(), &allow)
        .await
        .unwrap();
    eventually("the quarantine becomes complete", || async {
        let now = world.current(&quarantine).await;
        if now.phase == "Complete" && state(&now, "Evict") == "Done" {
            Ok(())
        } else {
            Err(format!("{now:#?}"))
        }
    })
    .await;
}

#[tokio::test]
async fn the_api_servers_retry_after_is_kept() {
    let world = World::start().await;
    let (suspect, _) = world.neighbours().await;
    let memory = world.api();
    let fault = Fault::answer(429)
        .retry_after(8)
        .on("POST", "/eviction")
        .times(1);
    let _busy = memory.inject(fault);
    let done = world.quarantine_and_evict(&name(&suspect)).await;
    assert_eq!(done.phase, "Complete");
    let asked = world.evictions();
    assert_eq!(asked.len(), 2, "{asked:?}");
    let waited = asked[1].0.duration_since(asked[0].0).as_secs();
    assert!((7..20).contains(&waited), "{waited} s");
}

#[tokio::test]
async fn answers_that_mean_gone_or_another_pod_end_by_what_is_on_the_node() {
    for status in [404, 409, 500, 503] {
        let world = World::start().await;
        let (suspect, neighbour) = world.neighbours().await;
        let memory = world.api();
        let handle = memory.inject(Fault::answer(status).on("POST", "/eviction").times(1));
        let quarantine = world.asked_for(&name(&suspect)).await;
        if matches!(status, 404 | 409) {
            // The answer says that it goes; here it goes by other hands.
            world.evict_says(&quarantine, "terminating").await;
            let pods = Api::<Pod>::namespaced(world.client.clone(), &world.namespace);
            pods.delete(&name(&neighbour), &DeleteParams::default())
                .await
                .unwrap();
        }
        let done = world.settled(&quarantine).await;
        assert_eq!(done.phase, "Complete", "{status}: {done:#?}");
        assert_eq!(handle.hits(), 1);
    }
}

#[tokio::test]
async fn those_who_stay_are_named_with_the_reason() {
    let world = World::start().await;
    let own = world.own_node().await;
    let suspect = world.deployment("nginx", 1, own.as_deref()).await.remove(0);
    let node = node_of(&suspect);
    assert!(
        own.is_none_or(|own| own == node),
        "{node} is not the test's own"
    );
    let pod = |pod: &str, more: Value| {
        let mut spec = json!({
            "nodeName": node, "terminationGracePeriodSeconds": 1,
            "containers": [container("c")],
        });
        spec.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": pod, "labels": { "app": pod } }, "spec": spec })
    };
    world.create(pod("bare", json!({}))).await;
    world
        .create(json!({
            "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": { "name": "logs" },
            "spec": { "selector": { "matchLabels": { "app": "logs" } }, "template": {
                "metadata": { "labels": { "app": "logs" } },
                "spec": { "terminationGracePeriodSeconds": 1, "containers": [container("c")] } } },
        }))
        .await;
    eventually("a daemon pod is on the node", || async {
        let there = world
            .pods("app=logs")
            .await
            .iter()
            .any(|pod| super::world::is_running(pod) && node_of(pod) == node);
        if there {
            Ok(())
        } else {
            Err("none".to_owned())
        }
    })
    .await;
    let done = world.quarantine_and_evict(&name(&suspect)).await;
    let evict = done.steps.iter().find(|step| step.name == "Evict").unwrap();
    for words in [
        "/bare stays: no controller would recreate it; --evict-unmanaged evicts it",
        "stays: its DaemonSet would start it again on the same node",
    ] {
        assert!(evict.message.contains(words), "{}", evict.message);
    }
    assert_eq!(
        done.evictions
            .iter()
            .filter(|one| one.state == "Kept" && one.namespace == world.namespace)
            .count(),
        2,
        "{:#?}",
        done.evictions
    );
}

#[tokio::test]
async fn a_neighbour_that_terminates_for_long_costs_few_requests_and_its_end_is_noticed_at_once() {
    let world = World::start_in_memory().await;
    let (suspect, neighbour) = world.neighbours().await;
    let stuck = name(&neighbour);
    world.hold(&stuck, json!(["impound.dev/test"])).await;
    let quarantine = world.asked_for(&name(&suspect)).await;
    world.evict_says(&quarantine, "1 terminating").await;
    let rate = world.rate(8).await;
    assert!(rate < 5.0, "{rate} requests a second");
    world.hold(&stuck, Value::Null).await;
    let let_go = Instant::now();
    assert_eq!(world.settled(&quarantine).await.phase, "Complete");
    let took = let_go.elapsed();
    assert!(took < Duration::from_secs(4), "noticed after {took:?}");
    assert_eq!(world.evictions().len(), 1, "{:?}", world.evictions());
}

#[tokio::test]
async fn a_neighbour_that_does_not_end_is_given_up_and_not_asked_for_again() {
    let world = World::start_with(&["--eviction-patience", "3"]).await;
    let (suspect, neighbour) = world.neighbours().await;
    let stuck = name(&neighbour);
    world.hold(&stuck, json!(["impound.dev/test"])).await;
    let quarantine = world.asked_for(&name(&suspect)).await;
    let ended = world.settled(&quarantine).await;
    assert_eq!(ended.phase, "Incomplete", "{ended:#?}");
    let eviction = ended.evictions.iter().find(|one| one.pod == stuck).unwrap();
    assert_eq!(eviction.state, "Failed");
    assert!(
        eviction
            .message
            .starts_with("given up after 3 s: the pod is still terminating"),
        "{}",
        eviction.message
    );
    let rate = world.rate(8).await;
    assert!(rate < 5.0, "{rate} requests a second");
    assert_eq!(world.evictions().len(), 1, "{:?}", world.evictions());
    world.hold(&stuck, Value::Null).await;
    eventually("its end is noticed", || async {
        let now = world.current(&quarantine).await;
        match now.phase.as_str() {
            "Complete" => Ok(()),
            phase => Err(format!("{phase}: {}", now.message)),
        }
    })
    .await;
}
