//! Sweeps: what is asked for, what is shown, and what a script sees.

use crate::fake::Fake;
use crate::snapshot::compare;

const START: [&str; 10] = [
    "sweep",
    "start",
    "-n",
    "shop",
    "-l",
    "app=web",
    "--case",
    "INC-7",
    "--reason",
    "same image as the suspect",
];

#[test]
fn a_dry_run_says_how_many_pods_are_where_and_changes_nothing() {
    let fake = Fake::start();
    let ran = fake.run(&[&START[..], &["--dry-run"]].concat());
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    compare("sweep-dry-run.txt", &ran.out);
    assert!(fake.state.sweeps.lock().unwrap()[0].dry_run);
}

#[test]
fn waiting_names_each_pod_that_is_not_sealed_and_exits_with_3() {
    let ran = Fake::start().run(&[&START[..], &["--wait"]].concat());
    assert_eq!((ran.code, ran.err.as_str()), (3, ""), "{ran:?}");
    compare("sweep-wait.txt", &ran.out);
}

#[test]
fn a_whole_sweep_exits_with_0_also_through_a_lost_connection() {
    let fake = Fake::start();
    let ran = fake.run(&["sweep", "watch", "whole-flaky-1", "-o", "json"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let document: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(document["phase"], "Complete");
    assert_eq!(document["counts"]["sealed"], 4);
}

#[test]
fn everything_that_selects_is_asked_for_as_it_was_given() {
    let fake = Fake::start();
    let more = [
        "-n",
        "pay",
        "--node-selector",
        "zone=a",
        "--image",
        "sha256:1",
        "--image",
        "web:1",
        "--owner",
        "Deployment/web",
        "--at-once",
        "40",
        "--per-node",
        "2",
        "--expires",
        "8h",
        "--freeze",
        "--name",
        "mine",
    ];
    let ran = fake.run(&[&START[..], &more].concat());
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    assert!(ran.out.contains("sweep watch sweep-1"), "{}", ran.out);
    let asked = fake.state.sweeps.lock().unwrap()[0].clone();
    let select = asked.select.unwrap();
    assert_eq!(select.namespaces, ["shop", "pay"]);
    assert_eq!(
        (select.labels, select.node_labels),
        ("app=web".into(), "zone=a".into())
    );
    assert_eq!(select.images, ["sha256:1", "web:1"]);
    assert_eq!(select.owner, "Deployment/web");
    assert_eq!((asked.at_once, asked.per_node, asked.freeze), (40, 2, true));
    assert_eq!(asked.name, "mine");
    let now = std::time::SystemTime::now();
    let expires = std::time::SystemTime::try_from(asked.expires.unwrap()).unwrap();
    let left = expires.duration_since(now).unwrap().as_secs();
    assert!((8 * 3600 - 120..=8 * 3600).contains(&left), "{left}");
}

#[test]
fn nobody_sweeps_everything_without_saying_so() {
    let without = ["sweep", "start", "--case", "INC-7", "--reason", "x"];
    let ran = Fake::start().run(&without);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.err.contains("--namespace"), "{}", ran.err);
    let ran = Fake::start().run(&[&without[..], &["-A", "-n", "shop"]].concat());
    assert_eq!(ran.code, 2, "{ran:?}");
}

#[test]
fn a_selection_of_nothing_is_refused() {
    let ran = Fake::start().run(&[
        "sweep",
        "start",
        "-n",
        "shop",
        "-l",
        "app=nothing",
        "--case",
        "INC-7",
        "--reason",
        "x",
    ]);
    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(ran.err.contains("no pod is selected"), "{}", ran.err);
}

#[test]
fn status_and_list_say_how_far_sweeps_are() {
    let fake = Fake::start();
    let ran = fake.run(&["sweep", "status", "sweep-1"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    compare("sweep-status.txt", &ran.out);
    let ran = fake.run(&["sweep", "list"]);
    compare("sweep-list.txt", &ran.out);
}

#[test]
fn targets_are_listed_by_state_with_where_their_evidence_is() {
    let fake = Fake::start();
    let ran = fake.run(&["sweep", "targets", "sweep-1"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    compare("sweep-targets.txt", &ran.out);
    let ran = fake.run(&["sweep", "targets", "sweep-1", "-o", "wide"]);
    compare("sweep-targets-wide.txt", &ran.out);
    let ran = fake.run(&[
        "sweep", "targets", "sweep-1", "--state", "failed", "--state", "Absent", "-o", "json",
    ]);
    let document: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    let pods: Vec<_> = document["targets"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["pod"])
        .collect();
    assert_eq!(pods, ["web-3", "web-4"]);
}

#[test]
fn a_sweep_is_paused_resumed_and_cancelled_with_a_reason() {
    let fake = Fake::start();
    for (verb, state, says) in [
        ("pause", "Paused", "is paused: 2 wait, 2 that are under way"),
        ("resume", "Running", "goes on: 2 wait"),
        (
            "cancel",
            "Cancelled",
            "is cancelled: 2 are not collected, 2 that are under way",
        ),
    ] {
        let ran = fake.run(&["sweep", verb, "sweep-1", "--reason", "peak hours"]);
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
        assert!(ran.out.contains(says), "{}", ran.out);
        let asked = fake.state.changes.lock().unwrap().pop().unwrap();
        assert_eq!(
            (asked.state.as_str(), asked.reason.as_str()),
            (state, "peak hours")
        );
        let ran = fake.run(&["sweep", verb, "sweep-1"]);
        assert_eq!(ran.code, 2, "a reason is needed: {ran:?}");
    }
}
