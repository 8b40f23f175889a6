//! Policies that would let traffic through: left by labels, narrowed on demand, or told; and the denial in
//! the kinds of network plugins.

use impound_proto::controller::v1::{CreateQuarantineRequest, Quarantine};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{Api, Patch, PatchParams};
use kube_memory::Fault;
use serde_json::{Value, json};

use super::world::{World, eventually, label, name, state};

impl World {
    async fn policy(&self, name: &str, spec: Value) {
        self.create(json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": { "name": name }, "spec": spec,
        }))
        .await;
    }

    async fn policy_selector(&self, name: &str) -> Value {
        let policies = Api::<NetworkPolicy>::namespaced(self.client.clone(), &self.namespace);
        let spec = policies.get(name).await.unwrap().spec.unwrap();
        json!(spec.pod_selector)
    }

    async fn quarantined(&self, request: CreateQuarantineRequest) -> Quarantine {
        let mut alice = self.responder("alice").await;
        let created = alice.create_quarantine(request).await.unwrap().into_inner();
        self.settled(&created.quarantine.unwrap().name).await
    }

    async fn excluded(&self, pod: &str) -> Quarantine {
        let request = CreateQuarantineRequest {
            exclude_from_policies: true,
            ..self.request(pod)
        };
        self.quarantined(request).await
    }

    /// A definition with the fields that the real one has, as far as they matter here.
    async fn serve(&self, group: &str, version: &str, kind: &str, scope: &str, fields: Value) {
        let plural = kind.to_lowercase().replace("policy", "policies");
        let definition = json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": { "name": format!("{plural}.{group}") },
            "spec": {
                "group": group, "scope": scope, "names": { "kind": kind, "plural": plural },
                "versions": [{ "name": version, "served": true, "storage": true, "schema": { "openAPIV3Schema": {
                    "type": "object", "properties": { "spec": { "type": "object", "properties": fields } },
                } } }],
            },
        });
        self.raw(
            "POST",
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
            &definition,
        )
        .await
        .unwrap();
        eventually("the kind is served", || async {
            let served = self
                .raw(
                    "GET",
                    &format!("/apis/{group}/{version}/{plural}"),
                    &Value::Null,
                )
                .await;
            served.map(drop).map_err(|error| error.to_string())
        })
        .await;
    }

    /// With the entities and the rule that the real definition has.
    pub(crate) async fn serve_cilium(&self) {
        let entity = json!({ "type": "string", "enum": [
            "all", "world", "cluster", "host", "init", "ingress", "unmanaged", "remote-node", "health", "none",
            "kube-apiserver"] });
        let rules = |entities: &str, endpoints: &str| {
            json!({ "type": "array", "items": { "type": "object", "properties": {
                entities: { "type": "array", "items": entity },
                endpoints: { "type": "array", "items": any_field() } } } })
        };
        let (from, to) = (
            rules("fromEntities", "fromEndpoints"),
            rules("toEntities", "toEndpoints"),
        );
        let fields = json!({
            "endpointSelector": any_field(),
            "ingress": from, "ingressDeny": from, "egress": to, "egressDeny": to,
        });
        self.serve(
            "cilium.io",
            "v2",
            "CiliumNetworkPolicy",
            "Namespaced",
            fields,
        )
        .await;
    }

    async fn raw(&self, method: &str, path: &str, body: &Value) -> Result<Value, kube::Error> {
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", "application/json");
        let body = if body.is_null() {
            Vec::new()
        } else {
            body.to_string().into_bytes()
        };
        self.client.request(request.body(body).unwrap()).await
    }

    /// The object with the patch, as the API answers.
    async fn merge(&self, path: &str, patch: &Value) -> Value {
        let request = http::Request::patch(path)
            .header("content-type", "application/merge-patch+json")
            .body(patch.to_string().into_bytes())
            .unwrap();
        self.client.request::<Value>(request).await.unwrap()
    }

    /// Changes what the controller watches, so that it looks again.
    async fn nudge(&self) {
        let policies = Api::<NetworkPolicy>::namespaced(self.client.clone(), &self.namespace);
        let value = policies.get("deny-all-suspectpod").await.unwrap();
        let version = value.metadata.resource_version;
        let nudge = Patch::Merge(json!({ "metadata": { "annotations": { "seen": version } } }));
        policies
            .patch("deny-all-suspectpod", &PatchParams::default(), &nudge)
            .await
            .unwrap();
    }

    async fn cilium_deny(&self) -> Option<Value> {
        let path = format!(
            "/apis/cilium.io/v2/namespaces/{}/ciliumnetworkpolicies/impound-deny-suspects",
            self.namespace
        );
        self.raw("GET", &path, &Value::Null).await.ok()
    }
}

fn fact<'q>(quarantine: &'q Quarantine, name: &str) -> (&'q str, &'q str) {
    let fact = quarantine.facts.iter().find(|fact| fact.name == name);
    fact.map_or(("", ""), |fact| {
        (fact.state.as_str(), fact.message.as_str())
    })
}

#[tokio::test]
async fn a_label_that_an_allowing_policy_selects_by_goes_too_and_comes_back() {
    let world = World::start().await;
    let pods = world.deployment("nginx", 1, None).await;
    let suspect = name(pods.first().unwrap());
    let api =
        Api::<k8s_openapi::api::core::v1::Pod>::namespaced(world.client.clone(), &world.namespace);
    let team = Patch::Merge(json!({ "metadata": { "labels": { "team": "blue" } } }));
    api.patch(&suspect, &PatchParams::default(), &team)
        .await
        .unwrap();
    world
        .policy(
            "blue",
            json!({ "podSelector": { "matchLabels": { "team": "blue" } }, "ingress": [{}] }),
        )
        .await;
    let done = world.quarantine(&suspect).await;
    assert_eq!(done.phase, "Complete", "{done:#?}");
    assert_eq!(fact(&done, "NoPolicyAllows").0, "True");
    assert!(
        done.warnings
            .iter()
            .any(|warning| warning.contains("label team is taken off too")
                && warning.contains("NetworkPolicy blue")),
        "{:#?}",
        done.warnings
    );
    assert_eq!(label(&world.pod(&suspect).await, "team"), None);
    assert_eq!(
        world.policy_selector("blue").await,
        json!({ "matchLabels": { "team": "blue" } })
    );
    world.release(&done.name, false).await.unwrap();
    assert_eq!(world.settled(&done.name).await.phase, "Released");
}

#[tokio::test]
async fn a_policy_that_allows_everybody_is_narrowed_on_demand_kept_so_and_put_back() {
    let world = World::start().await;
    let pods = world.deployment("nginx", 1, None).await;
    world
        .policy(
            "open",
            json!({ "podSelector": {}, "policyTypes": ["Egress"], "egress": [{}] }),
        )
        .await;
    let done = world.excluded(&name(pods.first().unwrap())).await;
    assert_eq!(done.phase, "Complete", "{done:#?}");
    assert_eq!(state(&done, "Exclude"), "Done");
    let narrowed = json!({ "matchExpressions": [
        { "key": "status", "operator": "NotIn", "values": ["suspectpod"] }] });
    assert_eq!(world.policy_selector("open").await, narrowed);

    // Whoever manages the policy puts it back: it is narrowed again, and that is written down.
    let policies = Api::<NetworkPolicy>::namespaced(world.client.clone(), &world.namespace);
    let reset = Patch::Merge(json!({ "spec": { "podSelector": { "matchExpressions": null } } }));
    policies
        .patch("open", &PatchParams::default(), &reset)
        .await
        .unwrap();
    eventually("it is narrowed again", || async {
        let now = world.policy_selector("open").await;
        if now == narrowed {
            Ok(())
        } else {
            Err(now.to_string())
        }
    })
    .await;

    world.release(&done.name, false).await.unwrap();
    let released = world.settled(&done.name).await;
    assert_eq!(released.phase, "Released", "{released:#?}");
    assert_eq!(world.policy_selector("open").await, json!({}));
}

#[tokio::test]
async fn a_policy_that_two_quarantines_narrow_is_put_back_by_the_last() {
    let world = World::start().await;
    let nginx = world.deployment("nginx", 1, None).await;
    let tomcat = world.deployment("tomcat", 1, None).await;
    world
        .policy("open", json!({ "podSelector": {}, "ingress": [{}] }))
        .await;
    let first = world.excluded(&name(nginx.first().unwrap())).await;
    let second = world.excluded(&name(tomcat.first().unwrap())).await;
    let narrowed = world.policy_selector("open").await;
    assert_ne!(narrowed, json!({}));
    world.release(&first.name, false).await.unwrap();
    let released = world.settled(&first.name).await;
    assert_eq!(released.phase, "Released");
    assert_eq!(state(&released, "UndoExclude"), "Skipped");
    assert_eq!(world.policy_selector("open").await, narrowed);
    world.release(&second.name, false).await.unwrap();
    assert_eq!(world.settled(&second.name).await.phase, "Released");
    assert_eq!(world.policy_selector("open").await, json!({}));
}

#[tokio::test]
async fn a_policy_that_was_changed_meanwhile_keeps_the_change() {
    let world = World::start().await;
    let pods = world.deployment("nginx", 1, None).await;
    world
        .policy("open", json!({ "podSelector": {}, "ingress": [{}] }))
        .await;
    let done = world.excluded(&name(pods.first().unwrap())).await;
    let policies = Api::<NetworkPolicy>::namespaced(world.client.clone(), &world.namespace);
    let change =
        Patch::Merge(json!({ "spec": { "podSelector": { "matchLabels": { "tier": "web" } } } }));
    policies
        .patch("open", &PatchParams::default(), &change)
        .await
        .unwrap();
    world.release(&done.name, false).await.unwrap();
    assert_eq!(world.settled(&done.name).await.phase, "Released");
    assert_eq!(
        world.policy_selector("open").await,
        json!({ "matchLabels": { "tier": "web" } })
    );
}

#[tokio::test]
async fn a_policy_that_may_not_be_changed_never_holds_containment_up() {
    let world = World::start_in_memory().await;
    let pods = world.deployment("nginx", 1, None).await;
    world
        .policy("open", json!({ "podSelector": {}, "ingress": [{}] }))
        .await;
    let memory = world.memory.as_ref().unwrap();
    let _refused = memory.inject(Fault::answer(403).on("PATCH", "/networkpolicies/open"));
    let done = world.excluded(&name(pods.first().unwrap())).await;
    assert_eq!(state(&done, "Exclude"), "Failed", "{done:#?}");
    assert_eq!(state(&done, "Strip"), "Done");
    assert_eq!(
        done.phase, "Failed",
        "the policy still allows: never called contained"
    );
    assert!(
        fact(&done, "NoPolicyAllows")
            .1
            .contains("from everywhere on every port"),
        "{done:#?}"
    );
}

#[tokio::test]
async fn where_only_networkpolicies_are_served_nothing_more_is_asked() {
    let world = World::start_in_memory().await;
    let pods = world.deployment("nginx", 2, None).await;
    world.quarantine(&name(pods.first().unwrap())).await;
    let asked = |path: &str| {
        let requests = world.requests();
        requests
            .iter()
            .filter(|request| request.path.contains(path))
            .count()
    };
    assert_eq!(
        asked("cilium") + asked("projectcalico") + asked("policy.networking"),
        0
    );
    let discovery = world
        .requests()
        .iter()
        .filter(|request| request.path == "/apis")
        .count();
    world.quarantine(&name(pods.last().unwrap())).await;
    let after = world
        .requests()
        .iter()
        .filter(|request| request.path == "/apis")
        .count();
    assert_eq!((discovery, after), (1, 1), "discovery is kept");
}

#[tokio::test]
async fn cilium_denies_too_where_it_is_served_and_lets_go_at_the_release() {
    let world = World::start_in_memory().await;
    world.serve_cilium().await;
    let pods = world.deployment("nginx", 1, None).await;
    world
        .create(json!({
            "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": { "name": "theirs" },
            "spec": { "endpointSelector": {}, "egress": [{ "toEntities": ["world"] }] },
        }))
        .await;
    let mut alice = world.responder("alice").await;
    let dry_run = CreateQuarantineRequest {
        dry_run: true,
        ..world.request(&name(pods.first().unwrap()))
    };
    let plan = alice.create_quarantine(dry_run).await.unwrap();
    let calls = plan.into_inner().plan.unwrap().calls;
    let planned: String = calls.into_iter().map(|call| call.purpose).collect();
    let done = world.quarantine(&name(pods.first().unwrap())).await;
    assert_eq!(done.phase, "Complete", "{done:#?}");
    assert_eq!(state(&done, "Deny"), "Done");
    assert_eq!(fact(&done, "PluginDenies").0, "True", "{:#?}", done.facts);
    assert_eq!(
        fact(&done, "NoPluginPolicyAllows").0,
        "True",
        "{:#?}",
        done.facts
    );
    let deny = world.cilium_deny().await.unwrap();
    let entities = deny["spec"]["ingressDeny"].to_string();
    assert!(
        entities.contains("\"remote-node\"") && !entities.contains("\"host\""),
        "the kubelet's probes come from the host: {entities}"
    );
    for said in [fact(&done, "PluginDenies").1, &planned] {
        assert!(
            said.contains("except what comes in from their own node"),
            "{said}"
        );
    }

    // Taken away, it comes back with the next look.
    let path = format!(
        "/apis/cilium.io/v2/namespaces/{}/ciliumnetworkpolicies/impound-deny-suspects",
        world.namespace
    );
    world.raw("DELETE", &path, &Value::Null).await.unwrap();
    world.nudge().await;
    eventually("it is made again", || async {
        world
            .cilium_deny()
            .await
            .map(drop)
            .ok_or_else(|| "it is gone".to_owned())
    })
    .await;

    world.release(&done.name, false).await.unwrap();
    assert_eq!(world.settled(&done.name).await.phase, "Released");
    assert_eq!(world.cilium_deny().await, None);
}

#[tokio::test]
async fn a_denial_that_may_not_be_made_never_holds_containment_up_and_theirs_is_then_told() {
    let world = World::start_in_memory().await;
    world.serve_cilium().await;
    let pods = world.deployment("nginx", 1, None).await;
    world
        .create(json!({
            "apiVersion": "cilium.io/v2", "kind": "CiliumNetworkPolicy", "metadata": { "name": "theirs" },
            "spec": { "endpointSelector": {}, "egress": [{ "toEntities": ["world"] }] },
        }))
        .await;
    let memory = world.memory.as_ref().unwrap();
    let _refused = memory.inject(Fault::answer(403).on("POST", "/ciliumnetworkpolicies"));
    let done = world.quarantine(&name(pods.first().unwrap())).await;
    assert_eq!(state(&done, "Deny"), "Failed", "{done:#?}");
    assert_eq!(state(&done, "LabelNode"), "Done");
    assert_eq!(fact(&done, "PluginDenies").0, "Unverified");
    assert_eq!(
        fact(&done, "NoPluginPolicyAllows"),
        (
            "False",
            "CiliumNetworkPolicy theirs still allows egress: change or delete that policy"
        )
    );
    assert_eq!(done.phase, "Failed", "{done:#?}");
}

/// Every field of a spec, as it is.
fn any_field() -> Value {
    json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true })
}

fn rules() -> Value {
    json!({ "type": "array", "items": any_field() })
}

impl World {
    async fn serve_calico(&self, group: &str, version: &str) {
        let fields = json!({
            "tier": { "type": "string" }, "order": { "type": "number" }, "selector": { "type": "string" },
            "types": { "type": "array", "items": { "type": "string" } }, "ingress": rules(), "egress": rules(),
        });
        for (kind, scope) in [
            ("NetworkPolicy", "Namespaced"),
            ("GlobalNetworkPolicy", "Cluster"),
        ] {
            self.serve(group, version, kind, scope, fields.clone())
                .await;
        }
    }

    async fn serve_cluster_policies(&self, version: &str, kind: &str) {
        let mut fields = json!({
            "priority": { "type": "integer", "minimum": 0, "maximum": 1000 },
            "subject": any_field(), "ingress": rules(), "egress": rules(),
        });
        if kind == "ClusterNetworkPolicy" {
            fields["tier"] = json!({ "type": "string", "enum": ["Admin", "Baseline"] });
        }
        self.serve("policy.networking.k8s.io", version, kind, "Cluster", fields)
            .await;
    }

    async fn at(&self, path: &str) -> Option<Value> {
        let path = path.replace("{ns}", &self.namespace);
        self.raw("GET", &path, &Value::Null).await.ok()
    }
}

/// Quarantines with these kinds served; each of the objects is there meanwhile and gone afterwards.
async fn denied_in(world: &World, objects: &[&str]) {
    let pods = world.deployment("nginx", 1, None).await;
    let done = world.quarantine(&name(pods.first().unwrap())).await;
    assert_eq!(done.phase, "Complete", "{done:#?}");
    assert_eq!(fact(&done, "PluginDenies").0, "True", "{:#?}", done.facts);
    assert_eq!(
        fact(&done, "NoPluginPolicyAllows").0,
        "True",
        "{:#?}",
        done.facts
    );
    for object in objects {
        let as_made = world.at(object).await.unwrap()["spec"].clone();
        let path = object.replace("{ns}", &world.namespace);
        // An exception that somebody adds is no part of the denial any more.
        let weaken =
            json!({ "spec": { "egress": [{ "action": "Allow", "toEntities": ["world"] }] } });
        let weakened = world.merge(&path, &weaken).await;
        assert_ne!(weakened["spec"], as_made, "{object}");
        world.nudge().await;
        eventually("it is put back as it was", || async {
            let now = world.at(object).await.unwrap()["spec"].clone();
            (now == as_made).then_some(()).ok_or(now.to_string())
        })
        .await;
    }
    let made = world.effects();
    let made = made
        .iter()
        .filter(|effect| effect.starts_with("POST"))
        .count();
    assert_eq!(
        made,
        objects.len() + 2,
        "and the budget and the NetworkPolicy"
    );
    world.release(&done.name, false).await.unwrap();
    assert_eq!(world.settled(&done.name).await.phase, "Released");
    for object in objects {
        assert_eq!(world.at(object).await, None);
    }
}

#[tokio::test]
async fn each_family_that_is_served_denies_in_its_strongest_kind() {
    let world = World::start_in_memory().await;
    world.serve_cilium().await;
    let clusterwide = json!({ "endpointSelector": any_field() });
    world
        .serve(
            "cilium.io",
            "v2",
            "CiliumClusterwideNetworkPolicy",
            "Cluster",
            clusterwide,
        )
        .await;
    world.serve_calico("projectcalico.org", "v3").await;
    world.serve_calico("crd.projectcalico.org", "v1").await;
    world
        .serve_cluster_policies("v1alpha2", "ClusterNetworkPolicy")
        .await;
    denied_in(
        &world,
        &[
            "/apis/cilium.io/v2/namespaces/{ns}/ciliumnetworkpolicies/impound-deny-suspects",
            "/apis/projectcalico.org/v3/namespaces/{ns}/networkpolicies/impound-deny-suspects",
            "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies/impound-deny-{ns}",
        ],
    )
    .await;
}

#[tokio::test]
async fn older_kinds_are_used_where_there_are_no_newer_ones() {
    let world = World::start_in_memory().await;
    world.serve_calico("crd.projectcalico.org", "v1").await;
    world
        .serve_cluster_policies("v1alpha1", "AdminNetworkPolicy")
        .await;
    denied_in(
        &world,
        &[
            "/apis/crd.projectcalico.org/v1/namespaces/{ns}/networkpolicies/default.impound-deny-suspects",
            "/apis/policy.networking.k8s.io/v1alpha1/adminnetworkpolicies/impound-deny-{ns}",
        ],
    )
    .await;
}
