//! What is denied and what is judged, with the field names of the real definitions.

use serde_json::{Value, json};

use super::deny::{create, is_in_force, remove, wanted};
use super::foreign::{Findings, in_force, judge};
use super::*;
use crate::contain::settings::Settings;
use crate::resources::{Fact, FactState};

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
    let settings = Settings::default();
    judge(
        &plugin,
        "shop",
        &labels(),
        in_force(&plugin, "shop", &settings),
    )
}

fn named(spec: Value) -> Value {
    json!({ "metadata": { "name": "p", "uid": "u" }, "spec": spec })
}

fn bodies(plugin: &Plugin) -> Vec<(String, Value)> {
    let (denies, warnings) = wanted(plugin, "shop", &Settings::default());
    assert_eq!(warnings, Vec::<String>::new());
    let calls = create(&denies, |_| false);
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
        cilium["spec"],
        json!({ "endpointSelector": { "matchLabels": { "status": "suspectpod" } },
                "ingressDeny": [{ "fromEntities": ["all"] }], "egressDeny": [{ "toEntities": ["all"] }] })
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
fn what_is_there_is_not_made_again_and_a_foreign_one_is_left_alone() {
    let kind = kind_of("cilium.io", "CiliumNetworkPolicy");
    let settings = Settings::default();
    let (denies, _) = wanted(&served(vec![(kind, vec![])]), "shop", &settings);
    let deny = denies.first().unwrap();
    let mut ours: Value = serde_json::from_str(&deny.body).unwrap();
    // A server may add defaults.
    ours["spec"]["enableDefaultDeny"] = json!({ "ingress": true });
    ours["metadata"]["uid"] = json!("u");
    let plugin = served(vec![(kind, vec![ours.clone()])]);
    assert!(is_in_force(&plugin, Family::Cilium, "shop", &settings));
    assert!(plugin.at("shop", &deny.path).is_some());
    let delete = remove(deny, Some(&ours)).unwrap().unwrap();
    assert!(delete.body.contains(r#""uid":"u""#), "{}", delete.body);
    // Opened up by somebody: still ours to remove, and no denial any more.
    ours["spec"]["egressDeny"] = json!([]);
    let opened = served(vec![(kind, vec![ours.clone()])]);
    assert!(!is_in_force(&opened, Family::Cilium, "shop", &settings));
    ours["metadata"]["labels"] = json!({});
    let foreign = served(vec![(kind, vec![ours.clone()])]);
    let (denies, warnings) = wanted(&foreign, "shop", &settings);
    assert!(denies.is_empty() && warnings.first().unwrap().contains("not made by Impound"));
    assert!(remove(deny, Some(&ours)).is_err());
    assert_eq!(remove(deny, None), Ok(None));
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
    let settings = Settings::default();
    let (denies, _) = wanted(&served(vec![(kind, vec![])]), "shop", &settings);
    let ours: Value = serde_json::from_str(&denies.first().unwrap().body).unwrap();
    let allows = named(json!({ "endpointSelector": {}, "egress": [{ "toEntities": ["all"] }] }));
    let plugin = served(vec![(kind, vec![ours, allows])]);
    let found = judge(
        &plugin,
        "shop",
        &labels(),
        in_force(&plugin, "shop", &settings),
    );
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
    let settled = |plugin: &Plugin| judge(plugin, "shop", &labels(), |_| true).allowing.len();
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
    let settled = judge(&plugin, "shop", &labels(), |_| true);
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
    let found = judge(&plugin, "shop", &labels(), |_| false);
    assert_eq!(found.open, plugin.unread);
}

#[test]
fn a_denial_in_cilium_s_kind_excuses_an_allowing_policy_only_where_the_node_drops_it() {
    let kind = kind_of("cilium.io", "CiliumNetworkPolicy");
    let ours = bodies(&served(vec![(kind, vec![])])).remove(0).1;
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
        facts::add(&mut all, &plugin, "shop", &labels(), &Settings::default());
        assert_eq!(all[0].state, expected, "{all:?}");
        assert!(all[0].message.contains("only if Cilium"), "{all:?}");
    }
}
