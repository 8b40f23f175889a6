//! What policies allow, in words; which labels let go of them; and how they are narrowed and put back.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::exclude::{exclude, include_again, left_alone, undo};
use super::leave::leave;
use super::*;

fn policy(name: &str, spec: Value) -> NetworkPolicy {
    serde_json::from_value(json!({
        "metadata": { "name": name, "uid": format!("uid-{name}"), "resourceVersion": "7" }, "spec": spec,
    }))
    .expect("a policy")
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

fn suspect(more: &[(&str, &str)]) -> Labels {
    let mut all = labels(more);
    all.insert("status".into(), "suspectpod".into());
    all
}

fn ours() -> BTreeMap<String, String> {
    labels(&[("status", "suspectpod")])
}

fn body(call: &ApiCall) -> Value {
    serde_json::from_str(&call.body).expect("a body is JSON")
}

/// The policy after a call, as the API server would have it.
fn patched(policy: &NetworkPolicy, call: &ApiCall) -> NetworkPolicy {
    let mut policy = policy.clone();
    let expressions = body(call)["spec"]["podSelector"]["matchExpressions"].clone();
    let selector = policy
        .spec
        .as_mut()
        .unwrap()
        .pod_selector
        .get_or_insert_default();
    selector.match_expressions = serde_json::from_value(expressions).unwrap();
    policy
}

#[test]
fn what_a_policy_allows_is_said_by_peers_and_ports() {
    let allows = |spec: Value| still_allowing(&[policy("p", spec)], &suspect(&[])).join(" | ");
    let cases = [
        (
            json!({ "podSelector": {}, "ingress": [{}] }),
            "NetworkPolicy p still allows ingress from everywhere on every port",
        ),
        (
            json!({ "podSelector": {}, "policyTypes": ["Egress"], "egress": [{
                "to": [{ "namespaceSelector": { "matchLabels": { "name": "dns" } },
                         "podSelector": { "matchLabels": { "k8s-app": "dns" } } }],
                "ports": [{ "protocol": "UDP", "port": 53 }, { "port": 8000, "endPort": 9000 }] }] }),
            "NetworkPolicy p still allows egress to pods with k8s-app=dns of namespaces with name=dns on UDP 53, \
             TCP 8000-9000",
        ),
        (
            json!({ "podSelector": {}, "policyTypes": ["Ingress"], "ingress": [
                { "from": [{ "ipBlock": { "cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"] } },
                           { "podSelector": { "matchExpressions": [
                               { "key": "tier", "operator": "In", "values": ["a", "b"] }] } }] },
                { "from": [{ "namespaceSelector": {} }], "ports": [{ "protocol": "SCTP", "port": "sig" }, {}] }] }),
            "NetworkPolicy p still allows ingress from 10.0.0.0/8 without 10.1.0.0/16 or pods with tier in (a, b) of \
             this namespace on every port; from every pod of every namespace on SCTP sig, every TCP port",
        ),
        (
            json!({ "podSelector": {}, "policyTypes": ["Ingress", "Egress"] }),
            "",
        ),
        (
            json!({ "podSelector": { "matchLabels": { "app": "x" } }, "ingress": [{}] }),
            "",
        ),
        (
            json!({ "podSelector": {}, "policyTypes": ["Egress"], "ingress": [{}] }),
            "",
        ),
    ];
    for (spec, expected) in cases {
        assert_eq!(allows(spec), expected);
    }
}

#[test]
fn a_policy_with_very_many_rules_is_not_spelled_out_whole() {
    let rules: Vec<Value> = (0..300)
        .map(|port| json!({ "ports": [{ "port": port + 1 }] }))
        .collect();
    let said = still_allowing(
        &[policy("p", json!({ "podSelector": {}, "ingress": rules }))],
        &suspect(&[]),
    );
    let said = said.first().unwrap();
    assert!(said.ends_with("; 294 more") && said.len() < 500, "{said}");
}

#[test]
fn labels_without_which_an_allowing_policy_lets_go_are_found_and_no_others() {
    let policies = [
        policy(
            "blue",
            json!({ "podSelector": { "matchLabels": { "team": "blue" } }, "ingress": [{}] }),
        ),
        policy(
            "zone",
            json!({ "podSelector": { "matchExpressions": [{ "key": "zone", "operator": "Exists" }] },
            "policyTypes": ["Egress"], "egress": [{}] }),
        ),
        policy(
            "denies",
            json!({ "podSelector": { "matchLabels": { "tier": "1" } } }),
        ),
        policy("all", json!({ "podSelector": {}, "ingress": [{}] })),
    ];
    let pod = suspect(&[("team", "blue"), ("zone", "a"), ("tier", "1"), ("x", "y")]);
    let gone = leave(&policies, &pod, &ours(), |_| false);
    assert_eq!(gone, labels(&[("team", "blue"), ("zone", "zone")]));
}

#[test]
fn one_label_is_enough_for_a_policy_that_demands_two() {
    let both = policy(
        "both",
        json!({ "podSelector": { "matchLabels": { "a": "1", "b": "2" } }, "ingress": [{}] }),
    );
    let gone = leave(
        &[both],
        &suspect(&[("a", "1"), ("b", "2")]),
        &ours(),
        |_| false,
    );
    assert_eq!(gone, labels(&[("a", "both")]));
}

#[test]
fn a_label_stays_if_an_owner_or_another_policy_minds_its_absence() {
    let blue = policy(
        "blue",
        json!({ "podSelector": { "matchLabels": { "team": "blue" } }, "ingress": [{}] }),
    );
    let pod = suspect(&[("team", "blue")]);
    let minds = |labels: &Labels| !labels.contains_key("team");
    assert_eq!(
        leave(std::slice::from_ref(&blue), &pod, &ours(), minds),
        labels(&[])
    );
    // This one begins to select what has no team: nothing would be won.
    let teamless = policy(
        "teamless",
        json!({ "podSelector": { "matchExpressions": [
        { "key": "team", "operator": "DoesNotExist" }] }, "ingress": [{}] }),
    );
    assert_eq!(
        leave(&[blue, teamless], &pod, &ours(), |_| false),
        labels(&[])
    );
}

#[test]
fn our_own_labels_are_never_taken_off_to_leave_a_policy() {
    let status = policy(
        "status",
        json!({ "podSelector": { "matchLabels": { "status": "suspectpod" } },
        "ingress": [{}] }),
    );
    assert_eq!(
        leave(&[status], &suspect(&[]), &ours(), |_| false),
        labels(&[])
    );
}

#[test]
fn a_narrowed_policy_selects_every_other_pod_as_before_and_no_suspect() {
    let all = policy(
        "all",
        json!({ "podSelector": { "matchExpressions": [
        { "key": "app", "operator": "Exists" }] }, "ingress": [{}] }),
    );
    let names = Names::default();
    let pod = suspect(&[("app", "web")]);
    let recorded = undo(std::slice::from_ref(&all), &pod, &names);
    let calls = exclude("shop", std::slice::from_ref(&all), &recorded, &names);
    let call = calls.first().unwrap();
    assert_eq!(
        body(call)["metadata"],
        json!({ "uid": "uid-all", "resourceVersion": "7" })
    );
    let narrowed = patched(&all, call);
    let selector = pod_selector(narrowed.spec.as_ref().unwrap());
    assert!(!selects(&selector, &pod));
    for other in [
        labels(&[("app", "web")]),
        labels(&[("app", "x"), ("status", "green")]),
    ] {
        assert!(selects(&selector, &other), "{other:?}");
    }
    assert!(
        !selects(&selector, &labels(&[])),
        "what it did not select before"
    );
    assert_eq!(
        exclude("shop", std::slice::from_ref(&narrowed), &recorded, &names),
        []
    );
    let back = include_again("shop", std::slice::from_ref(&narrowed), &recorded, &names);
    assert_eq!(patched(&narrowed, back.first().unwrap()).spec, all.spec);
}

#[test]
fn what_others_changed_in_a_narrowed_policy_stays_and_is_told() {
    let all = policy("all", json!({ "podSelector": {}, "ingress": [{}] }));
    let names = Names::default();
    let recorded = undo(std::slice::from_ref(&all), &suspect(&[]), &names);
    let call = exclude("shop", std::slice::from_ref(&all), &recorded, &names).remove(0);
    // Somebody adds an expression of their own: ours goes, theirs stays.
    let mut changed = patched(&all, &call);
    let theirs: k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement =
        serde_json::from_value(json!({ "key": "x", "operator": "Exists" })).unwrap();
    let selector = changed
        .spec
        .as_mut()
        .unwrap()
        .pod_selector
        .as_mut()
        .unwrap();
    selector.match_expressions.as_mut().unwrap().push(theirs);
    let back = include_again("shop", std::slice::from_ref(&changed), &recorded, &names);
    assert_eq!(
        body(back.first().unwrap())["spec"]["podSelector"]["matchExpressions"],
        json!([{ "key": "x", "operator": "Exists" }])
    );
    // Ours was taken out, the policy was made again, or is gone: nothing to do, and it is said.
    let mut again = patched(&all, &call);
    again.metadata.uid = Some("another".into());
    for (present, word) in [
        (vec![all.clone()], "was changed by somebody"),
        (vec![again], "was made again"),
        (vec![], "is gone"),
    ] {
        assert_eq!(include_again("shop", &present, &recorded, &names), []);
        let told = left_alone(&present, &recorded, &names);
        assert!(told.first().unwrap().contains(word), "{told:?}");
    }
}

#[test]
fn a_deny_all_policy_of_ours_without_its_label_gets_it_once_and_what_others_made_never_does() {
    let names = Names::default();
    let made = body(&create("shop", &names));
    let made: NetworkPolicy = serde_json::from_value(made).unwrap();
    assert_eq!(mark("shop", std::slice::from_ref(&made), &names), None);
    let mut former = made.clone();
    let labels = former.metadata.labels.as_mut().unwrap();
    labels.remove(DENY_ALL_LABEL.0).expect("it is made with it");
    let marked = mark("shop", std::slice::from_ref(&former), &names).unwrap();
    let labels = &body(&marked)["metadata"]["labels"];
    assert_eq!(*labels, json!({ DENY_ALL_LABEL.0: DENY_ALL_LABEL.1 }));
    let mut theirs = former.clone();
    theirs.metadata.labels = None;
    assert_eq!(mark("shop", &[theirs], &names), None);
    let mut opened = former;
    opened.spec.as_mut().unwrap().egress = Some(vec![Default::default()]);
    assert_eq!(mark("shop", &[opened], &names), None);
}
