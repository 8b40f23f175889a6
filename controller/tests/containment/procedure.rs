//! The procedure on a Deployment's pod: what is in place afterwards, and in which order it came.

use std::time::Duration;

use impound_proto::controller::v1::{CreateQuarantineRequest, GetQuarantineRequest};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use kube_memory::{Effect, Fault};
use serde_json::{Value, json};

use super::blocked::Stage;
use super::world::{
    CONTROLLER, World, calls_planned, calls_sent, eventually, label, name, node_of, state,
};

#[tokio::test]
async fn a_deployments_pod_is_contained_and_its_neighbours_leave() {
    let world = World::start().await;
    let own = world.own_node().await;
    let pods = world.deployment("nginx", 2, own.as_deref()).await;
    let here = |pod: &&Pod| own.as_ref().is_none_or(|own| node_of(pod) == *own);
    let suspect = pods.iter().find(here).unwrap();
    let node = node_of(suspect);
    let tomcat = world.deployment("tomcat", 1, Some(&node)).await;
    let done = world.quarantine_and_evict(&name(suspect)).await;

    assert_eq!(done.phase, "Complete", "{done:#?}");
    assert_eq!(
        done.requested_by,
        "spiffe://impound.dev/responder/responder/alice"
    );
    let contained = world.pod(&name(suspect)).await;
    assert_eq!(contained.metadata.uid, suspect.metadata.uid);
    assert_eq!(label(&contained, "app"), None);
    assert_eq!(label(&contained, "status").as_deref(), Some("suspectpod"));
    assert_eq!(
        contained.metadata.owner_references, None,
        "the ReplicaSet has let go"
    );
    let replaced = world.running("app=nginx", 2).await;
    assert!(
        replaced
            .iter()
            .all(|pod| node_of(pod) != node || name(pod) == name(suspect))
    );
    let moved = world.running("app=tomcat", 1).await;
    if node_of(tomcat.first().unwrap()) == node {
        assert_ne!(
            node_of(moved.first().unwrap()),
            node,
            "tomcat went to another node"
        );
    }

    let node = world.node(&node).await;
    let spec = node.spec.unwrap();
    assert_eq!(spec.unschedulable, Some(true));
    assert!(
        spec.taints
            .unwrap()
            .iter()
            .any(|taint| taint.key == "impound.dev/suspect")
    );
    let labels = node.metadata.labels.unwrap();
    assert_eq!(
        labels.get("status").map(String::as_str),
        Some("suspectnode")
    );
    assert_eq!(
        labels
            .get("node-restriction.kubernetes.io/impound")
            .map(String::as_str),
        Some("suspect")
    );

    let policies = Api::<NetworkPolicy>::namespaced(world.client.clone(), &world.namespace);
    let policy = policies
        .get("deny-all-suspectpod")
        .await
        .unwrap()
        .spec
        .unwrap();
    assert_eq!(policy.policy_types.unwrap(), ["Ingress", "Egress"]);
    assert!(policy.ingress.is_none_or(|rules| rules.is_empty()));
    assert!(policy.egress.is_none_or(|rules| rules.is_empty()));
    let slices = Api::<EndpointSlice>::namespaced(world.client.clone(), &world.namespace);
    for slice in slices.list(&ListParams::default()).await.unwrap() {
        for endpoint in slice.endpoints.into_iter().flatten() {
            assert_ne!(
                endpoint.target_ref.and_then(|target| target.uid),
                suspect.metadata.uid
            );
        }
    }
}

#[tokio::test]
async fn the_calls_come_in_the_safe_order_and_each_once() {
    let world = World::start().await;
    let pods = world.deployment("nginx", 2, None).await;
    let suspect = pods.first().unwrap();
    let node = node_of(suspect);
    world.quarantine(&name(suspect)).await;
    let base = format!("/namespaces/{}", world.namespace);
    assert_eq!(
        world.effects(),
        [
            format!("PATCH /api/v1/nodes/{node}"),
            format!("POST /apis/policy/v1{base}/poddisruptionbudgets"),
            format!("POST /apis/networking.k8s.io/v1{base}/networkpolicies"),
            format!("PATCH /api/v1{base}/pods/{}", name(suspect)),
            format!("PATCH /api/v1/nodes/{node}"),
        ]
    );
}

#[tokio::test]
async fn a_dry_run_changes_nothing_and_says_what_the_real_run_sends() {
    let world = World::start().await;
    let pods = world.deployment("nginx", 2, None).await;
    let suspect = pods.first().unwrap();
    let node = node_of(suspect);
    world.deployment("tomcat", 1, Some(&node)).await;
    let mut alice = world.responder("alice").await;
    let request = CreateQuarantineRequest {
        dry_run: true,
        ..world.request(&name(suspect))
    };
    let answer = alice.create_quarantine(request).await.unwrap().into_inner();
    assert!(answer.quarantine.is_none());
    assert_eq!(world.effects(), Vec::<String>::new());
    let plan = answer.plan.unwrap();
    assert!(
        plan.warnings
            .iter()
            .any(|warning| warning.contains("Deployment nginx")),
        "{plan:#?}"
    );
    world.quarantine(&name(suspect)).await;
    let sent = world.changes();
    assert!(sent.len() >= 5, "{sent:#?}");
    assert_eq!(calls_sent(&sent), calls_planned(&plan.calls));
}

#[tokio::test]
async fn what_is_sent_is_the_plan_that_was_stored() {
    let world = World::start().await;
    let pods = world.deployment("nginx", 2, None).await;
    let suspect = pods.first().unwrap();
    world.deployment("tomcat", 1, Some(&node_of(suspect))).await;
    world.quarantine(&name(suspect)).await;
    let requests = world.requests();
    let stored = requests
        .iter()
        .filter_map(|request| request.body.as_ref()?["status"]["plan"].as_array())
        .find(|plan| !plan.is_empty())
        .unwrap();
    for call in stored {
        let body: Value = serde_json::from_str(call["body"].as_str().unwrap()).unwrap();
        let sent = requests.iter().filter(|request| {
            request.method == call["method"]
                && request.path == call["path"].as_str().unwrap()
                && request.body.as_ref() == Some(&body)
        });
        assert_eq!(sent.count(), 1, "{call:#}");
    }
    assert!(stored.len() >= 5, "{stored:#?}");
}

#[tokio::test]
async fn undo_data_and_untouched_objects_are_recorded_before_the_first_change() {
    let world = World::start().await;
    let pods = world.deployment("nginx", 1, None).await;
    world.quarantine(&name(pods.first().unwrap())).await;
    let requests = world.requests();
    let first_change = requests
        .iter()
        .position(|request| request.method == "PATCH" && request.path.starts_with("/api/v1/nodes/"))
        .unwrap();
    let recorded = requests.iter().position(|request| {
        let body = request.body.clone().unwrap_or_default();
        request.method == "PATCH"
            && request.path.contains("/status")
            && body["status"]["undo"]["pod"]["labels"]["app"] == "nginx"
            && body["status"]["before"]["pod"]["metadata"]["uid"].is_string()
            && body["status"]["plan"].is_array()
    });
    assert!(recorded.unwrap() < first_change);
}

#[tokio::test]
async fn an_exhausted_budget_blocks_an_eviction_visibly_and_nothing_else() {
    let world = World::start().await;
    let own = world.own_node().await;
    let pods = world.deployment("nginx", 1, own.as_deref()).await;
    let suspect = pods.first().unwrap();
    let tomcat = world.deployment("tomcat", 1, Some(&node_of(suspect))).await;
    if node_of(tomcat.first().unwrap()) != node_of(suspect) {
        panic!("the scheduler put tomcat on another node: this cluster can't show it");
    }
    world
        .create(json!({
            "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": { "name": "tomcat" },
            "spec": { "minAvailable": 1, "selector": { "matchLabels": { "app": "tomcat" } } },
        }))
        .await;
    let mut alice = world.responder("alice").await;
    let created = alice
        .create_quarantine(CreateQuarantineRequest {
            keep_neighbours: false,
            ..world.request(&name(suspect))
        })
        .await
        .unwrap()
        .into_inner();
    let quarantine = created.quarantine.unwrap().name;
    let waiting = eventually("the eviction is shown as blocked", || async {
        let now = world.current(&quarantine).await;
        let step = now.steps.iter().find(|step| step.name == "Evict").cloned();
        match step {
            Some(step)
                if step.state == "Waiting"
                    && step
                        .message
                        .contains("/tomcat allows 0 disruptions now: 1 of 1 pods are healthy") =>
            {
                Ok(now)
            }
            step => Err(format!("{step:?}")),
        }
    })
    .await;
    assert_eq!(
        waiting.phase, "Contained",
        "containment does not wait for an eviction"
    );
    let before = world.requests().len();
    tokio::time::sleep(std::time::Duration::from_secs(8)).await;
    let asked = world.requests().split_off(before);
    let work = asked
        .iter()
        .filter(|request| !request.path.contains("lease"))
        .count();
    assert!(
        work < 8 * 5,
        "{work} requests in 8 s while waiting: {asked:#?}"
    );
    let budgets: Api<k8s_openapi::api::policy::v1::PodDisruptionBudget> =
        Api::namespaced(world.client.clone(), &world.namespace);
    let allow = Patch::Merge(json!({ "spec": { "minAvailable": 0 } }));
    budgets
        .patch("tomcat", &PatchParams::default(), &allow)
        .await
        .unwrap();
    assert_eq!(world.settled(&quarantine).await.phase, "Complete");
}

#[tokio::test]
async fn a_pod_whose_traffic_another_policy_allows_is_never_called_contained() {
    let world = World::start().await;
    let pods = world.deployment("nginx", 1, None).await;
    world
        .create(json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": { "name": "allow-all" },
            "spec": { "podSelector": {}, "policyTypes": ["Egress"], "egress": [{}] },
        }))
        .await;
    let done = world.quarantine(&name(pods.first().unwrap())).await;
    assert_eq!(done.phase, "Failed", "{done:#?}");
    assert_eq!(state(&done, "Verify"), "Failed");
    assert!(
        done.message.starts_with("NOT contained"),
        "{}",
        done.message
    );
    assert!(
        done.message
            .contains("NetworkPolicy allow-all still allows egress"),
        "{}",
        done.message
    );
}

#[tokio::test]
async fn a_quarantine_made_with_kubectl_is_carried_out_the_same_way() {
    let world = World::start().await;
    let pods = world.deployment("nginx", 1, None).await;
    world
        .create(json!({
            "apiVersion": "impound.dev/v1alpha1", "kind": "Quarantine", "metadata": { "name": "by-hand" },
            "spec": { "pod": name(pods.first().unwrap()), "case": "INC-2", "reason": "seen in falco",
                "skipCollection": true },
        }))
        .await;
    assert_eq!(world.settled("by-hand").await.phase, "Complete");
}

#[tokio::test]
async fn a_node_without_an_agent_leaves_the_pod_contained_and_says_what_is_missing() {
    let world = World::start().await;
    let pods = world.deployment("nginx", 1, None).await;
    let mut alice = world.responder("alice").await;
    let suspect = name(pods.first().unwrap());
    let done = world.quarantine_and_collect(&suspect).await;
    assert_eq!(done.phase, "Incomplete", "{done:#?}");
    assert!(
        done.facts
            .iter()
            .any(|fact| fact.name == "OwnerReleased" && fact.state == "True")
    );
    assert!(done.message.contains("agent of node"), "{}", done.message);
    let request = GetQuarantineRequest {
        namespace: world.namespace.clone(),
        name: name(pods.first().unwrap()),
    };
    let by_pod = alice.get_quarantine(request).await.unwrap().into_inner();
    assert_eq!(
        by_pod.name, done.name,
        "a quarantine is also found by its pod's name"
    );
}

#[tokio::test]
async fn what_the_suspect_could_act_with_is_reported_and_not_revoked() {
    let world = World::start().await;
    let pods = world.deployment("nginx", 1, None).await;
    world
        .create(json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": { "name": "too-much" },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "admin" },
            "subjects": [{ "kind": "ServiceAccount", "name": "default", "namespace": world.namespace }],
        }))
        .await;
    let role = "arn:aws:iam::123456789012:role/shop";
    let annotated =
        json!({ "metadata": { "annotations": { "eks.amazonaws.com/role-arn": role } } });
    let accounts = Api::<ServiceAccount>::namespaced(world.client.clone(), &world.namespace);
    accounts
        .patch("default", &PatchParams::default(), &Patch::Merge(annotated))
        .await
        .unwrap();
    let done = world.quarantine(&name(pods.first().unwrap())).await;
    let named = |name: &str| {
        let mut all = done.credentials.iter();
        all.find(|credential| credential.name == name)
            .unwrap_or_else(|| panic!("{name}: {:#?}", done.credentials))
    };
    assert_eq!(named(role).kind, "CloudIdentity");
    let binding = named("too-much");
    assert_eq!(
        binding.grants,
        format!("ClusterRole admin in namespace {}", world.namespace)
    );
    assert_eq!(
        binding.revoke,
        format!("kubectl delete rolebinding too-much -n {}", world.namespace)
    );
    let path = format!(
        "/apis/rbac.authorization.k8s.io/v1/namespaces/{}/rolebindings/too-much",
        world.namespace
    );
    let request = http::Request::get(path).body(Vec::new()).unwrap();
    world.client.request::<Value>(request).await.unwrap();
}

#[tokio::test]
async fn a_list_of_rights_that_hangs_keeps_no_evidence_waiting() {
    let stage = Stage::new().await;
    let lists = Fault::new(Effect::Delay(Duration::from_secs(3))).on("GET", "/rolebindings");
    let _late = stage.world.api().inject(lists);
    let quarantine = stage.ask().await;
    stage
        .becomes(&quarantine, "the rights are reported", |now| {
            !now.credentials.is_empty()
        })
        .await;
    let requests = stage.world.requests();
    let first = |method: &str, path: &str| {
        let mut requests = requests.iter();
        requests.position(|request| request.method == method && request.path.contains(path))
    };
    let (made, listed) = (first("POST", "/collections"), first("GET", "/rolebindings"));
    assert!(
        made.is_some() && made < listed,
        "made as request {made:?}, listed as {listed:?}"
    );
}

#[tokio::test]
async fn what_was_taken_away_is_put_back_before_rights_that_could_not_be_read_are_asked_for_again()
{
    let world = World::start().await;
    let pods = world.deployment("nginx", 1, None).await;
    let refused = Fault::answer(403)
        .by(CONTROLLER)
        .on("GET", "/clusterrolebindings");
    let refused = world.api().inject(refused);
    world.quarantine(&name(pods.first().unwrap())).await;
    let asked_again = || async {
        let hits = refused.hits();
        (hits >= 2)
            .then_some(())
            .ok_or(format!("asked {hits} times"))
    };
    eventually("they are asked for again", asked_again).await;
    let policies = Api::<NetworkPolicy>::namespaced(world.client.clone(), &world.namespace);
    for _ in 0..3 {
        let there = policies.get("deny-all-suspectpod").await.unwrap();
        policies
            .delete("deny-all-suspectpod", &DeleteParams::default())
            .await
            .unwrap();
        eventually("it is put back", || async {
            let now = policies.get_opt("deny-all-suspectpod").await.unwrap();
            now.filter(|now| now.metadata.uid != there.metadata.uid)
                .ok_or("it is away".to_owned())
        })
        .await;
    }
    // A right that is never given costs no list at each look.
    assert_eq!(refused.hits(), 2);
}

#[tokio::test]
async fn rights_that_could_not_be_read_are_reported_as_soon_as_they_can_be() {
    let world = World::start().await;
    let pods = world.deployment("nginx", 1, None).await;
    let _once = world.api().inject(
        Fault::answer(500)
            .by(CONTROLLER)
            .on("GET", "/clusterrolebindings")
            .times(1),
    );
    let quarantine = world.quarantine(&name(pods.first().unwrap())).await.name;
    eventually("they are reported", || async {
        let now = world.current(&quarantine).await;
        let unread = |one: &impound_proto::controller::v1::Credential| one.kind == "Bindings";
        match now.credentials.is_empty() || now.credentials.iter().any(unread) {
            false => Ok(()),
            true => Err(format!("{:#?}", now.credentials)),
        }
    })
    .await;
}

#[tokio::test]
async fn a_right_in_another_namespace_is_reported_with_that_namespace() {
    let world = World::start().await;
    let pods = world.deployment("nginx", 1, None).await;
    let prod = format!("{}-prod", world.namespace);
    let post = async |path: &str, object: Value| {
        let request = http::Request::post(path).body(serde_json::to_vec(&object).unwrap());
        let created = world.client.request::<Value>(request.unwrap());
        created.await.unwrap();
    };
    let namespace =
        json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": prod } });
    post("/api/v1/namespaces", namespace).await;
    let bindings = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{prod}/rolebindings");
    post(
        &bindings,
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": { "name": "reaches-far", "namespace": prod },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit" },
            "subjects": [
                { "kind": "ServiceAccount", "name": "default", "namespace": world.namespace },
                { "kind": "ServiceAccount", "name": "deployer", "namespace": prod }],
        }),
    )
    .await;
    let done = world.quarantine(&name(pods.first().unwrap())).await;
    let delete = http::Request::delete(format!("/api/v1/namespaces/{prod}"));
    let deleted = world
        .client
        .request::<Value>(delete.body(Vec::new()).unwrap());
    deleted.await.unwrap();
    let mut credentials = done.credentials.iter();
    let binding = credentials.find(|credential| credential.name == "reaches-far");
    let binding = binding.unwrap_or_else(|| panic!("{:#?}", done.credentials));
    assert_eq!(
        binding.grants,
        format!("ClusterRole edit in namespace {prod}")
    );
    assert_eq!(
        binding.revoke,
        format!(
            "kubectl delete rolebinding reaches-far -n {prod}  # takes it from service account {prod}/deployer too"
        )
    );
}

#[tokio::test]
async fn a_quarantine_withdrawn_before_it_was_planned_changes_nothing() {
    let mut world = World::without_controller().await;
    let pods = world.deployment("nginx", 1, None).await;
    world
        .create(json!({
            "apiVersion": "impound.dev/v1alpha1", "kind": "Quarantine", "metadata": { "name": "too-late" },
            "spec": { "pod": name(pods.first().unwrap()), "case": "INC-3", "reason": "x",
                "release": { "reason": "false alarm" } },
        }))
        .await;
    world.start_controller().await;
    let done = world.settled("too-late").await;
    assert_eq!(done.phase, "Released", "{done:#?}");
    assert_eq!(
        label(&world.pod(&name(pods.first().unwrap())).await, "app").as_deref(),
        Some("nginx")
    );
}
