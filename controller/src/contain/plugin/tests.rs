//! What is denied and what is judged, with the field names of the real definitions.

use serde_json::{Value, json};

use super::deny::{State, in_force, mend, remove, state, wanted};
use super::foreign::{Findings, judge};
use super::*;
use crate::resources::{DenyUndo, Fact, FactState, Names};

fn kind_of(group: &str, name: &str) -> &'static Kind {
    KINDS
        .iter()
        .find(|kind| kind.group == group && kind.name == name)
        .expect("a known kind")
}

fn served(kinds: Vec<(&'static Kind, Vec<Value>)>) -> Plugin {
    Plugin {
        kinds,
        namespace_labels: [("kubernetes.io/metadata.name", "shop"), ("team", "blue")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        unread: Vec::new(),
    }
}

fn labels() -> Labels {
    [("status", "suspectpod"), ("tier", "web")]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
}

fn judged(kind: &'static Kind, object: Value) -> Findings {
    let plugin = served(vec![(kind, vec![object])]);
    judged_all(&plugin)
}

fn judged_all(plugin: &Plugin) -> Findings {
    let ours = in_force(plugin, "shop", &Names::default());
    judge(plugin, "shop", &labels(), &ours)
}

/// Paths of all our denials, as if they were about to be made.
fn planned(plugin: &Plugin) -> Vec<String> {
    let (denies, _) = wanted(plugin, "shop", &Names::default());
    denies.into_iter().map(|deny| deny.path).collect()
}

/// What our denial of a kind is, as the server has it.
fn ours(kind: &'static Kind) -> (DenyUndo, Value) {
    let (mut denies, _) = wanted(&served(vec![(kind, vec![])]), "shop", &Names::default());
    let deny = denies.remove(0);
    let mut object: Value = serde_json::from_str(&deny.body).unwrap();
    object["metadata"]["uid"] = json!("u");
    (deny, object)
}

fn stands(kind: &'static Kind, object: &Value) -> State {
    let plugin = served(vec![(kind, vec![object.clone()])]);
    state(&plugin, kind, "shop", &Names::default())
}

fn named(spec: Value) -> Value {
    json!({ "metadata": { "name": "p", "uid": "u" }, "spec": spec })
}

fn bodies(plugin: &Plugin) -> Vec<(String, Value)> {
    let (denies, warnings) = wanted(plugin, "shop", &Names::default());
    assert_eq!(warnings, Vec::<String>::new());
    let names = Names::default();
    let calls: Vec<_> = denies
        .iter()
        .filter_map(|deny| mend(deny, None, "shop", &names))
        .collect();
    let body = |body: &str| serde_json::from_str(body).expect("a body is JSON");
    calls
        .iter()
        .map(|call| (call.path.clone(), body(&call.body)))
        .collect()
}

#[test]
fn each_family_is_denied_in_its_strongest_kind() {
    let all: Vec<_> = KINDS
        .iter()
        .filter(|kind| kind.group != "crd.projectcalico.org")
        .map(|kind| (kind, Vec::new()))
        .collect();
    let paths: Vec<String> = bodies(&served(all))
        .into_iter()
        .map(|(path, _)| path)
        .collect();
    assert_eq!(
        paths,
        [
            "/apis/cilium.io/v2/namespaces/shop/ciliumnetworkpolicies?fieldManager=impound",
            "/apis/projectcalico.org/v3/namespaces/shop/networkpolicies?fieldManager=impound",
            "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies?fieldManager=impound",
        ]
    );
}

#[test]
fn what_is_made_denies_everything_of_the_suspects_of_one_namespace() {
    let cilium = bodies(&served(vec![(
        kind_of("cilium.io", "CiliumNetworkPolicy"),
        vec![],
    )]));
    let cilium = &cilium.first().unwrap().1;
    assert_eq!(cilium["metadata"]["namespace"], "shop");
    assert_eq!(
        cilium["spec"]["endpointSelector"],
        json!({ "matchLabels": { "status": "suspectpod" } })
    );
    assert_eq!(
        cilium["spec"]["egressDeny"],
        json!([{ "toEntities": ["all"] }])
    );
    let admin = kind_of("policy.networking.k8s.io", "AdminNetworkPolicy");
    let admin = bodies(&served(vec![(admin, vec![])])).remove(0).1;
    assert_eq!(admin["metadata"]["name"], "impound-deny-shop");
    assert_eq!(admin["spec"]["priority"], 0);
    assert_eq!(admin["spec"].get("tier"), None);
    assert_eq!(
        admin["spec"]["subject"]["pods"]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"],
        "shop"
    );
    let cluster = kind_of("policy.networking.k8s.io", "ClusterNetworkPolicy");
    let cluster = bodies(&served(vec![(cluster, vec![])])).remove(0).1;
    assert_eq!(cluster["spec"]["tier"], "Admin");
    let stored = kind_of("crd.projectcalico.org", "NetworkPolicy");
    let stored = bodies(&served(vec![(stored, vec![])])).remove(0).1;
    assert_eq!(stored["metadata"]["name"], "default.impound-deny-suspects");
    assert_eq!(stored["spec"]["selector"], "status == 'suspectpod'");
}

#[test]
fn cilium_denies_everybody_the_way_in_but_the_kubelet_of_the_pod_s_own_node() {
    let kind = kind_of("cilium.io", "CiliumNetworkPolicy");
    let (_, object) = ours(kind);
    let rules = object["spec"]["ingressDeny"].as_array().unwrap();
    let entities = |rule: &Value| rule["fromEntities"].as_array().cloned().unwrap_or_default();
    let all: Vec<Value> = rules.iter().flat_map(entities).collect();
    // Each of these has the identity of the local host among its own, so that probes would be denied.
    for hosts in ["all", "cluster", "host", "kube-apiserver"] {
        assert!(!all.contains(&json!(hosts)), "{hosts}");
    }
    for others in [
        "world",
        "remote-node",
        "unmanaged",
        "init",
        "health",
        "ingress",
    ] {
        assert!(all.contains(&json!(others)), "{others}");
    }
    let pods = rules.iter().find_map(|rule| rule.get("fromEndpoints"));
    assert_eq!(
        pods.unwrap()[0],
        json!({ "matchExpressions": [{ "key": "k8s:io.kubernetes.pod.namespace", "operator": "Exists" }] })
    );
    // "Combining FromEntities and FromEndpoints is not supported yet": the whole policy would be ignored.
    assert!(
        rules
            .iter()
            .all(|rule| rule.as_object().unwrap().len() == 1),
        "{rules:?}"
    );
    let names = Names::default();
    let call = mend(&ours(kind).0, None, "shop", &names).unwrap();
    assert!(
        call.purpose
            .contains("except what comes in from their own node"),
        "{}",
        call.purpose
    );
}

#[test]
fn what_is_there_is_not_made_again_and_a_foreign_one_is_left_alone() {
    let kind = kind_of("cilium.io", "CiliumNetworkPolicy");
    let names = Names::default();
    let (deny, mut ours) = ours(kind);
    // A server may add defaults.
    ours["spec"]["enableDefaultDeny"] = json!({ "ingress": true });
    assert_eq!(stands(kind, &ours), State::InForce);
    assert_eq!(mend(&deny, Some(&ours), "shop", &names), None);
    let plugin = served(vec![(kind, vec![ours.clone()])]);
    assert!(plugin.at("shop", &deny.path).is_some());
    let delete = remove(&deny, Some(&ours)).unwrap().unwrap();
    assert!(delete.body.contains(r#""uid":"u""#), "{}", delete.body);
    // Without its label it still denies, and still goes with the release.
    ours["metadata"]["labels"] = json!({});
    assert_eq!(stands(kind, &ours), State::InForce);
    assert!(remove(&deny, Some(&ours)).unwrap().is_some());
    // Another one of that name is somebody else's.
    ours["spec"]["egressDeny"] = json!([]);
    let foreign = served(vec![(kind, vec![ours.clone()])]);
    let (denies, warnings) = wanted(&foreign, "shop", &names);
    assert!(denies.is_empty() && warnings.first().unwrap().contains("not made by Impound"));
    assert!(remove(&deny, Some(&ours)).is_err());
    assert_eq!(mend(&deny, Some(&ours), "shop", &names), None);
    assert_eq!(remove(&deny, None), Ok(None));
}

#[test]
fn a_denial_that_somebody_weakened_is_none_and_is_put_back_whole() {
    let cilium = kind_of("cilium.io", "CiliumNetworkPolicy");
    let calico = kind_of("projectcalico.org", "NetworkPolicy");
    let cluster = kind_of("policy.networking.k8s.io", "ClusterNetworkPolicy");
    let expression = json!([{ "key": "a", "operator": "Exists" }]);
    for (kind, at, value) in [
        (cilium, "/spec/egressDeny", json!([])),
        (
            cilium,
            "/spec/endpointSelector/matchExpressions",
            expression.clone(),
        ),
        (cilium, "/spec/endpointSelector/matchLabels/a", json!("b")),
        (
            cilium,
            "/spec/nodeSelector",
            json!({ "matchLabels": { "a": "b" } }),
        ),
        (
            cilium,
            "/spec/egressDeny/0/toPorts",
            json!([{ "ports": [{ "port": "1" }] }]),
        ),
        (
            cilium,
            "/spec/ingress",
            json!([{ "fromEntities": ["world"] }]),
        ),
        (calico, "/spec/serviceAccountSelector", json!("a == 'b'")),
        (
            calico,
            "/spec/ingress/0/source",
            json!({ "nets": ["192.0.2.0/24"] }),
        ),
        (calico, "/spec/egress/0/protocol", json!("TCP")),
        (
            cluster,
            "/spec/subject/pods/podSelector/matchExpressions",
            expression,
        ),
        (cluster, "/spec/egress/0/protocols", json!([{ "tcp": {} }])),
    ] {
        let (deny, object) = ours(kind);
        assert_eq!(stands(kind, &object), State::InForce);
        let mut weak = object.clone();
        let (parent, field) = at.rsplit_once('/').unwrap();
        let parent = weak.pointer_mut(parent).unwrap();
        parent[field] = value;
        assert_eq!(stands(kind, &weak), State::Altered, "{at}");
        let call = mend(&deny, Some(&weak), "shop", &Names::default()).unwrap();
        assert_eq!(call.method, "PATCH", "{at}");
        let patch: Value = serde_json::from_str(&call.body).unwrap();
        assert_eq!(patch[0]["value"], "u", "{at}");
        assert_eq!(patch[1]["value"], object["spec"], "{at}");
    }
    // What Calico's API server writes into every rule takes nothing away.
    let (_, mut written) = ours(calico);
    written["spec"]["egress"][0]["source"] = json!({});
    written["spec"]["egress"][0]["destination"] = json!({ "selector": "", "nets": [] });
    written["metadata"]["name"] = json!("default.impound-deny-suspects");
    assert_eq!(stands(calico, &written), State::InForce);
}

#[test]
fn a_policy_with_our_label_is_judged_as_any_other() {
    let kind = kind_of("cilium.io", "CiliumNetworkPolicy");
    let allow = json!({ "endpointSelector": {}, "ingress": [{ "fromEntities": ["all"] }] });
    let mut forged = named(allow.clone());
    forged["metadata"]["labels"] = json!({ "app.kubernetes.io/part-of": "impound" });
    assert_eq!(
        judged(kind, forged.clone()).allowing,
        ["CiliumNetworkPolicy p still allows ingress"]
    );
    // Under our denial's own name, too.
    forged["metadata"]["name"] = json!("impound-deny-suspects");
    assert_eq!(
        judged(kind, forged).allowing,
        ["CiliumNetworkPolicy impound-deny-suspects still allows ingress"]
    );
}

#[test]
fn a_cilium_policy_that_selects_the_pod_and_allows_is_reported() {
    let kind = kind_of("cilium.io", "CiliumNetworkPolicy");
    let allow = json!([{ "toEntities": ["world"] }]);
    for selector in [
        json!({}),
        json!({ "matchLabels": { "k8s:tier": "web", "k8s:io.kubernetes.pod.namespace": "shop" } }),
        json!({ "matchLabels": { "any:io.cilium.k8s.namespace.labels.team": "blue" } }),
        json!({ "matchLabels": { "k8s:io.cilium.k8s.policy.serviceaccount": "unknown here" } }),
    ] {
        let found = judged(
            kind,
            named(json!({ "endpointSelector": selector, "egress": allow })),
        );
        assert_eq!(
            found.allowing,
            ["CiliumNetworkPolicy p still allows egress"],
            "{selector}"
        );
    }
    for spec in [
        json!({ "endpointSelector": { "matchLabels": { "tier": "db" } }, "egress": allow }),
        json!({ "endpointSelector": {}, "ingress": [{}] }),
        json!({ "endpointSelector": {}, "ingress": [{ "fromRequires": [{}] }] }),
        json!({ "nodeSelector": {}, "egress": allow }),
    ] {
        assert_eq!(
            judged(kind, named(spec.clone())),
            Findings::default(),
            "{spec}"
        );
    }
    let many = json!({ "metadata": { "name": "p" }, "specs": [
        { "endpointSelector": {}, "ingress": [{ "fromEndpoints": [{}] }] },
        { "endpointSelector": {}, "egress": allow } ] });
    assert_eq!(
        judged(kind, many).allowing,
        ["CiliumNetworkPolicy p still allows ingress and egress"]
    );
}

#[test]
fn a_denial_of_cilium_settles_every_cilium_policy() {
    let kind = kind_of("cilium.io", "CiliumNetworkPolicy");
    let (_, ours) = ours(kind);
    let allows = named(json!({ "endpointSelector": {}, "egress": [{ "toEntities": ["all"] }] }));
    let found = judged_all(&served(vec![(kind, vec![ours, allows])]));
    assert_eq!(found, Findings::default());
}

#[test]
fn a_calico_policy_is_judged_by_its_selector_or_said_to_be_open() {
    let kind = kind_of("projectcalico.org", "GlobalNetworkPolicy");
    let policy =
        |selector: &str| named(json!({ "selector": selector, "ingress": [{ "action": "Allow" }] }));
    for selects in [
        "",
        "all()",
        "tier == 'web'",
        "has(tier) && status != \"x\"",
        "projectcalico.org/namespace == 'shop'",
    ] {
        assert_eq!(
            judged(kind, policy(selects)).allowing,
            ["Calico GlobalNetworkPolicy p still allows ingress"],
            "{selects}"
        );
    }
    for not in [
        "tier == 'db'",
        "!has(tier)",
        "has(x)",
        "tier == 'web' && x == 'y'",
    ] {
        assert_eq!(judged(kind, policy(not)), Findings::default(), "{not}");
    }
    for open in [
        "tier in {'web'}",
        "has(x) || has(tier)",
        "(has(tier))",
        "tier contains 'w'",
        "a == 'b' || tier == 'web'",
    ] {
        let found = judged(kind, policy(open));
        assert!(
            found.allowing.is_empty() && found.open.len() == 1,
            "{open}: {found:?}"
        );
    }
    let denies = named(json!({ "selector": "all()", "egress": [{ "action": "Deny" }] }));
    assert_eq!(judged(kind, denies), Findings::default());
}

#[test]
fn behind_our_order_0_only_what_comes_before_it_counts() {
    let kind = kind_of("projectcalico.org", "NetworkPolicy");
    let allow = |more: Value| {
        let mut spec = json!({ "selector": "all()", "egress": [{ "action": "Allow" }] });
        spec.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        served(vec![(kind, vec![named(spec)])])
    };
    let settled = |plugin: &Plugin| {
        let ours = planned(plugin);
        judge(plugin, "shop", &labels(), &ours).allowing.len()
    };
    assert_eq!(settled(&allow(json!({ "order": 10 }))), 0);
    assert_eq!(settled(&allow(json!({}))), 0);
    assert_eq!(settled(&allow(json!({ "order": -1.5 }))), 1);
    assert_eq!(
        settled(&allow(json!({ "tier": "security", "order": 10 }))),
        1
    );
}

#[test]
fn an_admin_policy_counts_by_tier_priority_and_subject() {
    let cluster = kind_of("policy.networking.k8s.io", "ClusterNetworkPolicy");
    let spec = |tier: &str, priority: i64, subject: Value| {
        named(
            json!({ "tier": tier, "priority": priority, "subject": subject,
            "egress": [{ "action": "Accept", "to": [{ "networks": ["0.0.0.0/0"] }] }] }),
        )
    };
    let everybody = json!({ "namespaces": {} });
    let found = judged(cluster, spec("Admin", 7, everybody.clone()));
    assert_eq!(
        found.allowing,
        ["ClusterNetworkPolicy p still allows egress (priority 7, before any NetworkPolicy)"]
    );
    for silent in [
        spec("Baseline", 7, everybody.clone()),
        spec(
            "Admin",
            7,
            json!({ "namespaces": { "matchLabels": { "team": "red" } } }),
        ),
        spec(
            "Admin",
            7,
            json!({ "pods": { "namespaceSelector": {}, "podSelector": { "matchLabels": { "a": "b" } } } }),
        ),
    ] {
        assert_eq!(
            judged(cluster, silent.clone()),
            Findings::default(),
            "{silent}"
        );
    }
    let admin = kind_of("policy.networking.k8s.io", "AdminNetworkPolicy");
    let allow = named(
        json!({ "priority": 0, "subject": { "pods": { "namespaceSelector": {}, "podSelector": {} } },
        "ingress": [{ "action": "Allow", "from": [{ "namespaces": {} }] }] }),
    );
    let plugin = served(vec![(admin, vec![allow])]);
    let settled = judge(&plugin, "shop", &labels(), &planned(&plugin));
    assert_eq!(
        settled.allowing.len(),
        1,
        "the same priority: nobody promises which one wins"
    );
}

#[test]
fn what_could_not_be_read_is_said() {
    let plugin = Plugin {
        unread: vec!["CiliumNetworkPolicy objects could not be read: 403.".into()],
        ..Plugin::default()
    };
    let found = judge(&plugin, "shop", &labels(), &[]);
    assert_eq!(found.open, plugin.unread);
}

#[test]
fn a_denial_in_cilium_s_kind_excuses_an_allowing_policy_only_where_the_node_drops_it() {
    let kind = kind_of("cilium.io", "CiliumNetworkPolicy");
    let (_, ours) = ours(kind);
    let plugin = served(vec![(kind, vec![ours])]);
    let fact = |name: &str, state| Fact {
        name: name.into(),
        state,
        message: String::new(),
    };
    for (node, expected) in [
        (FactState::True, FactState::Unverified),
        (FactState::Unverified, FactState::False),
        (FactState::False, FactState::False),
    ] {
        let mut all = vec![
            fact("NoPolicyAllows", FactState::False),
            fact("NodeIsolated", node),
        ];
        facts::add(&mut all, &plugin, "shop", &labels(), &Names::default());
        assert_eq!(all[0].state, expected, "{all:?}");
        assert!(all[0].message.contains("only if Cilium"), "{all:?}");
    }
}

#[test]
fn fuzz_policy_any_object_is_judged_and_selectors_that_are_not_understood_select() {
    let seeds = [
        r#"{"metadata":{"name":"p"},"spec":{"endpointSelector":{"matchLabels":{"any:tier":"web"}},"ingress":[{"fromEntities":["all"]}]},"specs":[{"endpointSelector":{},"egress":[{}]}]}"#,
        r#"{"metadata":{"name":"p"},"spec":{"selector":"tier == 'web' && has(status) || !(team in {'blue', 'red'})","order":100,"types":["Ingress"],"ingress":[{"action":"Allow"}]}}"#,
        r#"{"metadata":{"name":"p"},"spec":{"tier":"Admin","priority":5,"subject":{"pods":{"namespaceSelector":{},"podSelector":{"matchExpressions":[{"key":"tier","operator":"In","values":["web"]}]}}},"ingress":[{"action":"Accept"}]}}"#,
    ];
    impound_fuzz::run("policy", &seeds.map(|text| text.into()), |_, bytes| {
        let Ok(object) = serde_json::from_slice::<Value>(&bytes) else {
            return;
        };
        for kind in &KINDS {
            let found = judged(kind, object.clone());
            assert!(found.allowing.len() + found.open.len() <= 1);
            let _ = stands(kind, &object);
        }
    });
}
