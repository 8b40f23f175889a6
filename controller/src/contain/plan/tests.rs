//! What is planned for a pod, by what was observed of it.

mod shared;

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;
use crate::contain::observe::{Adopter, Owner};
use crate::contain::plugin::Plugin;
use crate::contain::settings::StorePods;
use crate::resources::{NodeUndo, QuarantinePhase, QuarantineStatus};

const POD_UID: &str = "f70964d0-fd3f-4ec8-b288-6e53f78a34bb";

fn from<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("the fixture has the type's shape")
}

fn selector(value: Value) -> LabelSelector {
    from(value)
}

fn deployment_pod() -> Observed {
    let pod = json!({
        "metadata": {
            "name": "web-1", "namespace": "shop", "uid": POD_UID, "resourceVersion": "2083",
            "labels": { "app": "nginx", "pod-template-hash": "65f", "team": "blue" },
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "rs", "controller": true
            }],
        },
        "spec": { "nodeName": "k8s-worker2", "containers": [{ "name": "nginx" }] },
        "status": { "phase": "Running", "podIP": "10.0.0.7" },
    });
    let node = json!({
        "metadata": { "name": "k8s-worker2", "uid": "node-uid", "resourceVersion": "77", "labels": {} },
        "spec": { "taints": [{ "key": "gpu", "value": "yes", "effect": "NoSchedule" }] },
    });
    let web = selector(json!({ "matchLabels": { "app": "nginx", "pod-template-hash": "65f" } }));
    let pod_typed: Pod = from(pod.clone());
    Observed {
        pods_on_node: vec![pod_typed.clone()],
        owner: Some(Owner {
            reference: pod_typed
                .metadata
                .owner_references
                .clone()
                .unwrap()
                .remove(0),
            raw: Some(json!({})),
            parent: Some(from(json!({
                "apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "d", "controller": true
            }))),
        }),
        adopters: vec![Adopter {
            kind: "ReplicaSet",
            name: "web".into(),
            uid: "rs".into(),
            selector: web,
        }],
        services: vec![from(
            json!({ "metadata": { "name": "web" }, "spec": { "selector": { "app": "nginx" } } }),
        )],
        policies: vec![],
        plugin: Plugin::default(),
        daemon_sets: Some(BTreeSet::from(["o".to_owned()])),
        node: from(node.clone()),
        node_raw: node,
        pod_raw: pod,
        pod: pod_typed,
    }
}

fn spec() -> QuarantineSpec {
    QuarantineSpec {
        pod: "web-1".into(),
        case: "INC-1".into(),
        reason: "beaconing".into(),
        ..Default::default()
    }
}

fn planned(observed: &Observed) -> Result<Plan, Refusal> {
    plan(
        observed,
        "web-1-f70964d0",
        &spec(),
        &[],
        &Settings::default(),
    )
}

fn body(plan: &Plan, step: StepName) -> Value {
    let call = plan
        .calls
        .iter()
        .find(|call| call.step == step)
        .expect("the step has a call");
    serde_json::from_str(&call.body).expect("a body is JSON")
}

#[test]
fn a_deployments_pod_is_planned_in_the_safe_order() {
    let plan = planned(&deployment_pod()).unwrap();
    let steps: Vec<StepName> = plan.calls.iter().map(|call| call.step).collect();
    assert_eq!(
        steps,
        [
            StepName::Cordon,
            StepName::Protect,
            StepName::Policy,
            StepName::Strip,
            StepName::LabelNode,
            StepName::Isolate
        ]
    );
    assert_eq!(plan.owner, "Deployment web (ReplicaSet web)");
}

#[test]
fn strip_and_label_are_one_guarded_patch_of_exactly_the_selected_labels() {
    let plan = planned(&deployment_pod()).unwrap();
    let patch = body(&plan, StepName::Strip);
    assert_eq!(patch["metadata"]["uid"], POD_UID);
    assert_eq!(patch["metadata"]["resourceVersion"], "2083");
    assert_eq!(
        patch["metadata"]["labels"],
        json!({
            "app": null, "pod-template-hash": null,
            "status": "suspectpod", "impound.dev/quarantine": "web-1-f70964d0",
        })
    );
}

#[test]
fn the_cordon_keeps_the_nodes_own_taints() {
    let patch = body(&planned(&deployment_pod()).unwrap(), StepName::Cordon);
    let keys: Vec<&str> = patch["spec"]["taints"]
        .as_array()
        .unwrap()
        .iter()
        .map(|taint| taint["key"].as_str().unwrap())
        .collect();
    assert_eq!(keys, ["gpu", "impound.dev/suspect"]);
    assert_eq!(patch["metadata"]["resourceVersion"], "77");
    assert_eq!(patch["spec"]["unschedulable"], true);
}

#[test]
fn what_another_policy_still_allows_is_said_before_anything_is_done() {
    let mut observed = deployment_pod();
    observed.policies = vec![from::<NetworkPolicy>(json!({
        "metadata": { "name": "allow-blue" },
        "spec": { "podSelector": {}, "ingress": [{}] },
    }))];
    let plan = planned(&observed).unwrap();
    assert!(
        plan.warnings.iter().any(|warning| warning
            .starts_with("NetworkPolicy allow-blue still allows ingress")
            && warning.contains("--exclude-from-policies")),
        "{:?}",
        plan.warnings
    );
    assert!(plan.undo.policies.is_empty(), "only on demand");
}

#[test]
fn a_label_that_only_a_policy_selects_by_is_stripped_with_the_reason() {
    let mut observed = deployment_pod();
    observed.policies = vec![from::<NetworkPolicy>(json!({
        "metadata": { "name": "allow-blue" },
        "spec": { "podSelector": { "matchLabels": { "team": "blue" } }, "ingress": [{}] },
    }))];
    let plan = planned(&observed).unwrap();
    assert_eq!(
        body(&plan, StepName::Strip)["metadata"]["labels"]["team"],
        Value::Null
    );
    assert_eq!(plan.undo.pod.for_policies["team"], "allow-blue");
    let said = |word: &str| plan.warnings.iter().any(|warning| warning.contains(word));
    assert!(
        said("label team is taken off too") && !said("still allows"),
        "{:?}",
        plan.warnings
    );
}

#[test]
fn a_label_whose_absence_an_owner_selects_by_stays_and_the_policy_is_told() {
    let mut observed = deployment_pod();
    observed.policies = vec![from::<NetworkPolicy>(json!({
        "metadata": { "name": "allow-blue" },
        "spec": { "podSelector": { "matchLabels": { "team": "blue" } }, "ingress": [{}] },
    }))];
    observed.adopters.push(Adopter {
        kind: "ReplicaSet",
        name: "teamless".into(),
        uid: "other".into(),
        selector: selector(
            json!({ "matchExpressions": [{ "key": "team", "operator": "DoesNotExist" }] }),
        ),
    });
    let plan = planned(&observed).unwrap();
    assert!(!plan.undo.pod.removed.contains(&"team".to_owned()));
    assert!(
        plan.warnings
            .iter()
            .any(|warning| warning.contains("allow-blue still allows ingress"))
    );
}

#[test]
fn a_policy_is_narrowed_between_the_denial_and_the_strip() {
    let mut observed = deployment_pod();
    observed.policies = vec![from::<NetworkPolicy>(json!({
        "metadata": { "name": "open", "uid": "p", "resourceVersion": "3" },
        "spec": { "podSelector": {}, "ingress": [{}] },
    }))];
    let spec = QuarantineSpec {
        exclude_from_policies: true,
        ..spec()
    };
    let plan = plan(&observed, "q", &spec, &[], &Settings::default()).unwrap();
    let steps: Vec<StepName> = plan.calls.iter().map(|call| call.step).collect();
    assert_eq!(
        steps,
        [
            StepName::Cordon,
            StepName::Protect,
            StepName::Policy,
            StepName::Exclude,
            StepName::Strip,
            StepName::LabelNode,
            StepName::Isolate
        ]
    );
    assert!(
        !plan
            .warnings
            .iter()
            .any(|warning| warning.contains("still allows"))
    );
    assert!(
        plan.warnings
            .iter()
            .any(|warning| warning.contains("NetworkPolicy open is changed"))
    );
}

#[test]
fn finished_pods_and_orphans_of_a_daemonset_are_told_apart_from_its_pods() {
    let daemon = |name: &str, owner: &str, phase: &str| -> Pod {
        from(json!({
            "metadata": { "name": name, "namespace": "shop", "uid": name, "ownerReferences": [
                { "apiVersion": "apps/v1", "kind": "DaemonSet", "name": "o", "uid": owner, "controller": true }] },
            "spec": { "containers": [] }, "status": { "phase": phase },
        }))
    };
    let mut observed = deployment_pod();
    observed.pods_on_node.extend([
        daemon("runs", "o", "Running"),
        daemon("finished", "o", "Failed"),
        daemon("orphan", "gone", "Running"),
    ]);
    let state = |plan: &Plan, pod: &str| {
        let mut found = plan.evictions.iter().filter(|eviction| eviction.pod == pod);
        found
            .next()
            .map(|eviction| (eviction.state, eviction.message.clone()))
            .unwrap()
    };
    let careful = planned(&observed).unwrap();
    assert_eq!(state(&careful, "runs").0, EvictionState::Kept);
    assert_eq!(state(&careful, "finished").0, EvictionState::Pending);
    let (kept, why) = state(&careful, "orphan");
    assert!(
        kept == EvictionState::Kept && why.contains("is gone") && why.contains("--evict-unmanaged"),
        "{why}"
    );
    let spec = QuarantineSpec {
        evict_unmanaged: true,
        ..spec()
    };
    let forced = plan(&observed, "q", &spec, &[], &Settings::default()).unwrap();
    assert_eq!(state(&forced, "orphan").0, EvictionState::Pending);
    assert_eq!(
        state(&forced, "runs").0,
        EvictionState::Kept,
        "it would come back at once"
    );
    // Which DaemonSets there are could not be read: none is taken for an orphan.
    observed.daemon_sets = None;
    let unknown = plan(&observed, "q", &spec, &[], &Settings::default()).unwrap();
    assert_eq!(state(&unknown, "orphan").0, EvictionState::Kept);
}

#[test]
fn impounds_own_pods_stay_and_strangers_with_its_label_do_not() {
    let pod = |namespace: &str, name: &str, labels: Value| -> Pod {
        from(json!({
            "metadata": { "name": name, "namespace": namespace, "uid": name, "labels": labels, "ownerReferences": [
                { "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "o", "uid": "o", "controller": true }] },
            "spec": { "containers": [] }, "status": { "phase": "Running" },
        }))
    };
    let part = json!({ "app.kubernetes.io/part-of": "impound" });
    let mut observed = deployment_pod();
    observed.pods_on_node.extend([
        pod("impound", "agent", part.clone()),
        pod("impound", "controller-1", json!({})),
        pod("storage", "weed-0", json!({ "app": "weed" })),
        pod("shop", "in-disguise", part),
        pod("shop", "no-store", json!({ "app": "weed" })),
    ]);
    let settings = Settings {
        own_namespace: Some("impound".into()),
        own_pod: Some("controller-1".into()),
        store_pods: Some(StorePods {
            namespace: "storage".into(),
            labels: [("app".to_owned(), "weed".to_owned())].into(),
        }),
        ..Settings::default()
    };
    let plan = plan(&observed, "q", &spec(), &[], &settings).unwrap();
    let stay: Vec<&str> = plan
        .evictions
        .iter()
        .filter(|eviction| eviction.state == EvictionState::Kept)
        .map(|eviction| eviction.pod.as_str())
        .collect();
    assert_eq!(stay, ["agent", "controller-1", "weed-0"]);
}

#[test]
fn a_policy_of_our_name_that_does_something_else_keeps_nothing_else_from_being_done() {
    let mut observed = deployment_pod();
    observed.policies = vec![from(json!({
        "metadata": { "name": "deny-all-suspectpod" },
        "spec": { "podSelector": { "matchLabels": { "app": "nginx" } }, "policyTypes": ["Ingress"] },
    }))];
    let plan = planned(&observed).unwrap();
    let steps =
        |plan: &Plan| -> Vec<StepName> { plan.calls.iter().map(|call| call.step).collect() };
    assert_eq!(steps(&plan), steps(&planned(&deployment_pod()).unwrap()));
    let said = plan.warnings.join("\n");
    assert!(
        said.contains("NetworkPolicy shop/deny-all-suspectpod exists that does not deny all")
            && said.contains("the pod is NOT contained"),
        "{said}"
    );
}

#[test]
fn a_pod_that_has_ended_is_refused_with_the_reason() {
    let mut observed = deployment_pod();
    observed.pod.status.as_mut().unwrap().phase = Some("Succeeded".into());
    let refusal = planned(&observed).unwrap_err().to_string();
    for words in ["has ended (phase Succeeded)", "shop/web-1"] {
        assert!(refusal.contains(words), "{refusal}");
    }
}

#[test]
fn a_pod_whose_owner_is_gone_is_contained_and_who_deletes_it_is_said() {
    let mut observed = deployment_pod();
    observed.owner.as_mut().unwrap().raw = None;
    observed.adopters.clear();
    let plan = planned(&observed).unwrap();
    assert_eq!(plan.owner, "ReplicaSet web, which is gone");
    let said = plan.warnings.join("\n");
    assert!(said.contains("garbage collection deletes it"), "{said}");
    // Its Service lets go of it all the same.
    let labels = &body(&plan, StepName::Strip)["metadata"]["labels"];
    assert_eq!(labels["app"], Value::Null, "{labels}");
    assert_eq!(labels["status"], "suspectpod", "{labels}");
}

#[test]
fn an_owner_that_is_no_controller_is_named_with_what_its_end_means() {
    let mut observed = deployment_pod();
    let owners = observed.pod.metadata.owner_references.as_mut().unwrap();
    owners.push(from(
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "name": "batch", "uid": "c" }),
    ));
    let said = planned(&observed).unwrap().warnings.join("\n");
    assert!(said.contains("once ConfigMap batch"), "{said}");
}

#[test]
fn a_pod_that_can_t_be_changed_is_held_at_its_node_alone_and_that_is_said() {
    type Change = fn(&mut Observed);
    let cases: [(&str, Change); 3] = [
        (
            "ReplicaSet catch-all would select it without the labels app, pod-template-hash",
            |observed| {
                observed.adopters.push(Adopter {
                    kind: "ReplicaSet",
                    name: "catch-all".into(),
                    uid: "other".into(),
                    selector: selector(json!({ "matchExpressions": [{ "key": "app", "operator": "DoesNotExist" }] })),
                });
            },
        ),
        ("it is a static pod", |observed| {
            observed.pod.metadata.annotations = from(json!({
                "kubernetes.io/config.mirror": "x", "kubernetes.io/config.hash": "x" }));
        }),
        ("how that controller reacts", |observed| {
            owner_kind(observed, "CloneSet")
        }),
    ];
    for (expected, change) in cases {
        let mut observed = deployment_pod();
        change(&mut observed);
        let mut spec = QuarantineSpec {
            case: "INC-1".into(),
            ..QuarantineSpec::default()
        };
        for (isolated, held) in [
            (true, "What holds it is its node's table alone"),
            (false, "it is NOT cut off"),
        ] {
            spec.isolation.enabled = Some(isolated);
            let plan = plan(&observed, "q", &spec, &[], &Settings::default()).unwrap();
            let said = plan.warnings.join("\n");
            for words in [expected, held, "is not changed"] {
                assert!(said.contains(words), "{words}: {said}");
            }
            // What would hold a changed pod is neither made nor spoken of.
            assert!(!said.contains("A NetworkPolicy holds"), "{said}");
            let steps: Vec<StepName> = plan.calls.iter().map(|call| call.step).collect();
            let at_the_pod = [StepName::Protect, StepName::Policy, StepName::Strip];
            assert!(
                !at_the_pod.iter().any(|step| steps.contains(step)),
                "{steps:?}"
            );
            assert!(steps.contains(&StepName::Cordon) && steps.contains(&StepName::LabelNode));
            assert_eq!(steps.contains(&StepName::Isolate), isolated);
            assert_eq!(plan.undo.pod.removed, Vec::<String>::new());
        }
    }
}

#[test]
fn a_static_pod_is_asked_for_by_the_uid_that_its_kubelet_knows() {
    let mut observed = deployment_pod();
    let selected = |observed: &Observed| super::isolation::selector(&observed.pod).uid;
    let api = observed.pod.metadata.uid.clone().unwrap();
    assert_eq!(selected(&observed), api);
    // Anybody may write this one.
    observed.pod.metadata.annotations = from(json!({ "kubernetes.io/config.hash": "abc" }));
    assert_eq!(selected(&observed), api);
    observed.pod.metadata.annotations =
        from(json!({ "kubernetes.io/config.hash": "abc", "kubernetes.io/config.mirror": "abc" }));
    assert_eq!(selected(&observed), "abc");
}

#[test]
fn the_consequences_of_each_kind_of_pod_are_said_beforehand() {
    type Change = fn(&mut Observed);
    let cases: [(&str, Change); 8] = [
        ("replaces the pod with a new one", |_| {}),
        ("starts no replacement as long as", |observed| {
            owner_kind(observed, "StatefulSet")
        }),
        ("would start a new pod on the suspect node", |observed| {
            owner_kind(observed, "DaemonSet")
        }),
        ("no longer counts the pod", |observed| {
            owner_kind(observed, "Job")
        }),
        ("No controller owns the pod", |observed| {
            observed.owner = None;
            observed.adopters.clear();
        }),
        ("is being deleted since", |observed| {
            observed.pod.metadata.deletion_timestamp = from(json!("2026-11-23T05:48:37Z"));
        }),
        ("it is NOT cut off", |observed| {
            observed.pod.spec.as_mut().unwrap().host_network = Some(true);
        }),
        ("does not run yet", |observed| {
            observed.pod.status.as_mut().unwrap().phase = Some("Pending".into());
        }),
    ];
    for (expected, change) in cases {
        let mut observed = deployment_pod();
        change(&mut observed);
        let plan = planned(&observed).expect(expected);
        assert!(
            plan.warnings
                .iter()
                .any(|warning| warning.contains(expected)),
            "{:#?}",
            plan.warnings
        );
    }
}

fn owner_kind(observed: &mut Observed, kind: &str) {
    observed.owner.as_mut().unwrap().reference.kind = kind.into();
}

#[test]
fn a_bare_pod_loses_only_what_services_select_by() {
    let mut observed = deployment_pod();
    observed.owner = None;
    observed.adopters.clear();
    let patch = body(&planned(&observed).unwrap(), StepName::Strip);
    assert_eq!(patch["metadata"]["labels"]["app"], Value::Null);
    assert_eq!(patch["metadata"]["labels"].get("pod-template-hash"), None);
}

#[test]
fn a_job_lets_go_by_its_controller_uid_alone() {
    let mut observed = deployment_pod();
    owner_kind(&mut observed, "Job");
    observed.services.clear();
    observed.pod.metadata.labels = from(json!({
        "batch.kubernetes.io/controller-uid": "j", "batch.kubernetes.io/job-name": "scan", "job-name": "scan",
    }));
    observed.adopters = vec![Adopter {
        kind: "Job",
        name: "scan".into(),
        uid: "j".into(),
        selector: selector(json!({ "matchLabels": { "batch.kubernetes.io/controller-uid": "j" } })),
    }];
    let plan = planned(&observed).unwrap();
    assert_eq!(
        plan.undo.pod.removed,
        ["batch.kubernetes.io/controller-uid"]
    );
}

#[test]
fn another_uid_under_the_same_name_is_refused() {
    let spec = QuarantineSpec {
        pod_uid: Some("other".into()),
        ..spec()
    };
    let refusal = plan(&deployment_pod(), "q", &spec, &[], &Settings::default()).unwrap_err();
    assert!(matches!(refusal, Refusal::OtherUid { .. }));
}

#[test]
fn a_second_quarantine_of_the_pod_is_refused_and_names_the_first() {
    let first = quarantine("first", Some(POD_UID), None);
    let refusal = plan(
        &deployment_pod(),
        "second",
        &spec(),
        &[first],
        &Settings::default(),
    )
    .unwrap_err();
    assert_eq!(
        refusal,
        Refusal::AlreadyQuarantined {
            pod: "shop/web-1".into(),
            by: "first".into()
        }
    );
}

#[test]
fn a_node_that_is_quarantined_already_is_undone_to_the_state_before_the_first() {
    let before = NodeUndo {
        unschedulable: false,
        ..NodeUndo::default()
    };
    let first = quarantine("first", Some("another-pod"), Some(before));
    let mut observed = deployment_pod();
    observed.node.spec.as_mut().unwrap().unschedulable = Some(true);
    let plan = plan(&observed, "second", &spec(), &[first], &Settings::default()).unwrap();
    assert!(!plan.undo.node.unschedulable);
}

fn quarantine(name: &str, pod_uid: Option<&str>, node_undo: Option<NodeUndo>) -> Quarantine {
    let mut quarantine = Quarantine::new(name, QuarantineSpec::default());
    quarantine.metadata.namespace = Some("shop".into());
    quarantine.status = Some(QuarantineStatus {
        phase: QuarantinePhase::Contained,
        pod_uid: pod_uid.map(Into::into),
        node: Some("k8s-worker2".into()),
        undo: node_undo.map(|node| Undo {
            node,
            ..Undo::default()
        }),
        ..QuarantineStatus::default()
    });
    quarantine
}

#[test]
fn a_neighbour_is_evicted_or_its_reason_to_stay_is_said() {
    let neighbour = |name: &str, owner: Option<&str>, more: Value| -> Pod {
        let owners = owner.map(|kind| {
            json!([{ "apiVersion": "apps/v1", "kind": kind, "name": "o", "uid": "o", "controller": true }])
        });
        let mut pod = json!({
            "metadata": { "name": name, "namespace": "shop", "uid": name, "ownerReferences": owners },
            "spec": { "containers": [] }, "status": { "phase": "Running" },
        });
        for (key, value) in more.as_object().unwrap() {
            *pod.pointer_mut(key).unwrap() = value.clone();
        }
        from(pod)
    };
    let mut observed = deployment_pod();
    observed.pods_on_node.extend([
        neighbour("tomcat", Some("ReplicaSet"), json!({})),
        neighbour("logs", Some("DaemonSet"), json!({})),
        neighbour("bare", None, json!({})),
        neighbour(
            "cache",
            Some("ReplicaSet"),
            json!({ "/spec": {
            "containers": [], "volumes": [{ "name": "v", "emptyDir": {} }] } }),
        ),
        neighbour(
            "agent",
            Some("ReplicaSet"),
            json!({ "/metadata": {
            "name": "agent", "namespace": "shop", "uid": "agent",
            "labels": { "app.kubernetes.io/part-of": "impound" } } }),
        ),
    ]);
    let plan = planned(&observed).unwrap();
    let said: Vec<(String, EvictionState, String)> = plan
        .evictions
        .iter()
        .map(|eviction| {
            (
                eviction.pod.clone(),
                eviction.state,
                eviction.message.clone(),
            )
        })
        .collect();
    let expect = |pod: &str, word: &str| {
        assert!(
            said.iter().any(|(name, state, message)| name == pod
                && *state == EvictionState::Kept
                && message.contains(word)),
            "{pod}: {said:?}"
        );
    };
    assert!(
        said.iter()
            .any(|(name, state, _)| name == "tomcat" && *state == EvictionState::Pending)
    );
    expect("logs", "DaemonSet");
    expect("bare", "--evict-unmanaged");
    expect("cache", "--delete-emptydir-data");
    expect("agent", "part of Impound");
    assert!(
        said.iter().all(|(name, ..)| name != "web-1"),
        "the suspect is never evicted"
    );
    let evictions = plan
        .calls
        .iter()
        .filter(|call| call.step == StepName::Evict)
        .count();
    assert_eq!(evictions, 1);
}

#[test]
fn release_puts_back_only_what_nobody_changed_since() {
    let observed = deployment_pod();
    let undo = planned(&observed).unwrap().undo.pod;
    let mut pod = observed.pod.clone();
    pod.metadata.labels = Some(from(json!({
        "team": "blue", "status": "under-review", "impound.dev/quarantine": "web-1-f70964d0", "app": "other",
    })));
    let call = crate::contain::pod::restore(&pod, &undo).expect("there is something to restore");
    let patch: Value = serde_json::from_str(&call.body).unwrap();
    assert_eq!(
        patch["metadata"]["labels"],
        json!({ "impound.dev/quarantine": null, "pod-template-hash": "65f" })
    );
}

#[test]
fn a_step_whose_effect_is_there_needs_no_call() {
    let mut observed = deployment_pod();
    let plan = planned(&observed).unwrap();
    let undo = plan.undo.pod.clone();
    observed.pod.metadata.labels = Some(crate::contain::pod::labels_after(&undo));
    observed.pod.metadata.annotations = Some(
        crate::contain::settings::POD_ANNOTATIONS
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
    );
    assert_eq!(crate::contain::pod::strip(&observed.pod, &undo), None);
    let patch: Value = body(&plan, StepName::Cordon);
    let mut node: Node = observed.node.clone();
    node.metadata.annotations = from(patch["metadata"]["annotations"].clone());
    node.spec = from(patch["spec"].clone());
    assert_eq!(crate::contain::node::cordon(&node), None);
}
