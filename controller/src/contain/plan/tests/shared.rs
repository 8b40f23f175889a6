//! What quarantines share: a node, and in a namespace the policy with its label. What the first one called it, the
//! others call it too, whatever the controller has been told since.

use super::*;
use crate::resources::{Label, Names};

fn label(key: &str, value: &str) -> Label {
    Label {
        key: key.into(),
        value: value.into(),
    }
}

/// Names that the controller used before it was configured anew.
fn former() -> Names {
    Names {
        pod_label: label("state", "evil"),
        node_label: label("state", "bad"),
        policy: "deny-evil".into(),
    }
}

/// A quarantine in force that was planned with these names.
fn of(namespace: &str, node: &str, names: Names) -> Quarantine {
    let mut quarantine = quarantine("first", Some("another-pod"), Some(NodeUndo::default()));
    quarantine.metadata.namespace = Some(namespace.into());
    let status = quarantine.status.as_mut().unwrap();
    status.node = Some(node.into());
    status.undo.as_mut().unwrap().names = Some(names);
    quarantine
}

fn beside(other: Quarantine) -> Plan {
    let settings = Settings::default();
    plan(&deployment_pod(), "second", &spec(), &[other], &settings).unwrap()
}

fn names(plan: &Plan) -> Names {
    plan.undo.names.clone().expect("a plan records its names")
}

#[test]
fn a_plan_records_what_it_calls_things() {
    let plan = planned(&deployment_pod()).unwrap();
    assert_eq!(names(&plan), Names::default());
    let mut observed = deployment_pod();
    observed.pod.metadata.annotations = Some(from(
        json!({ "kubernetes.io/config.mirror": "0", "kubernetes.io/config.hash": "0" }),
    ));
    let untouched = planned(&observed).unwrap();
    assert!(untouched.undo.untouched.is_some());
    assert_eq!(names(&untouched), Names::default());
}

#[test]
fn what_the_namespace_shares_keeps_the_names_that_the_quarantine_in_force_has_recorded() {
    let plan = beside(of("shop", "another-node", former()));
    let expected = Names {
        node_label: Names::default().node_label,
        ..former()
    };
    assert_eq!(names(&plan), expected);
    let patch = body(&plan, StepName::Strip);
    assert_eq!(patch["metadata"]["labels"]["state"], "evil");
    assert_eq!(patch["metadata"]["labels"].get("status"), None);
    assert_eq!(
        body(&plan, StepName::Policy)["metadata"]["name"],
        "deny-evil"
    );
    let said = |word: &str| plan.warnings.iter().any(|warning| warning.contains(word));
    assert!(
        said("state=evil") && said("quarantine shop/first"),
        "{:?}",
        plan.warnings
    );
}

#[test]
fn what_is_shared_with_a_quarantine_of_a_version_that_recorded_no_names_is_called_as_it_did() {
    let mut other = of("shop", "another-node", former());
    let undo = other.status.as_mut().unwrap().undo.as_mut().unwrap();
    undo.names = None;
    undo.pod.added = [former().pod_label.pair()].into();
    // It found the policy there, which the first one of them had made.
    let mut first = other.clone();
    first.metadata.name = Some("before-the-first".into());
    let status = first.status.as_mut().unwrap();
    status.plan = vec![policy::create("shop", &former())];
    let settings = Settings::default();
    let others = [other, first];
    let plan = plan(&deployment_pod(), "second", &spec(), &others, &settings).unwrap();
    let expected = Names {
        node_label: Names::default().node_label,
        ..former()
    };
    assert_eq!(names(&plan), expected);
}

#[test]
fn what_the_node_shares_keeps_the_name_that_the_quarantine_in_force_has_recorded() {
    let plan = beside(of("another", "k8s-worker2", former()));
    let expected = Names {
        node_label: former().node_label,
        ..Names::default()
    };
    assert_eq!(names(&plan), expected);
    let patch = body(&plan, StepName::LabelNode);
    assert_eq!(patch["metadata"]["labels"]["state"], "bad");
}

#[test]
fn what_is_not_shared_has_the_present_names_and_needs_no_word() {
    let plan = beside(of("another", "another-node", former()));
    assert_eq!(names(&plan), Names::default());
    let alike = beside(of("shop", "k8s-worker2", Names::default()));
    for plan in [plan, alike] {
        let mut warnings = plan.warnings.iter();
        assert!(
            !warnings.any(|warning| warning.contains("configured")),
            "{:?}",
            plan.warnings
        );
    }
}

#[test]
fn a_quarantine_of_the_same_name_in_another_namespace_shares_the_node_as_any_other_does() {
    let mut other = of("another", "k8s-worker2", Names::default());
    other.metadata.name = Some("second".into());
    let mut observed = deployment_pod();
    observed.node.spec.as_mut().unwrap().unschedulable = Some(true);
    let plan = plan(&observed, "second", &spec(), &[other], &Settings::default()).unwrap();
    assert!(
        !plan.undo.node.unschedulable,
        "it was cordoned by us, and goes back to what it was before"
    );
}

#[test]
fn a_service_that_is_an_alias_of_a_name_elsewhere_selects_nobody_and_costs_no_label() {
    let mut observed = deployment_pod();
    let alias = json!({ "type": "ExternalName", "externalName": "db.example.org", "selector": { "team": "blue" } });
    observed.services.push(from(
        json!({ "metadata": { "name": "alias" }, "spec": alias }),
    ));
    let plan = planned(&observed).unwrap();
    assert_eq!(
        body(&plan, StepName::Strip)["metadata"]["labels"].get("team"),
        None
    );
    observed.services[1].spec.as_mut().unwrap().type_ = Some("ClusterIP".into());
    let plan = planned(&observed).unwrap();
    assert_eq!(
        body(&plan, StepName::Strip)["metadata"]["labels"].get("team"),
        Some(&Value::Null)
    );
}
