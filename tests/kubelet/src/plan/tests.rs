//! The decisions, without an engine.

use serde_json::json;

use super::*;

const NOW: i64 = 1_000_000;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn pod(spec: serde_json::Value) -> Pod {
    serde_json::from_value(json!({ "metadata": { "name": "p" }, "spec": spec })).unwrap()
}

fn web() -> Pod {
    pod(json!({ "containers": [{ "name": "a" }, { "name": "b" }] }))
}

fn one(container: Option<&str>, attempt: u32, state: State) -> Observed {
    Observed {
        id: format!("{}-{attempt}", container.unwrap_or("POD")),
        container: container.map(Into::into),
        attempt,
        image_id: "sha256:1".into(),
        address: String::new(),
        state,
    }
}

fn running() -> State {
    State::Running {
        started: at(NOW - 5),
    }
}

fn exited(code: i64, finished: i64) -> State {
    State::Exited {
        code,
        reason: "Error",
        started: at(finished - 1),
        finished: at(finished),
    }
}

fn decide(pod: &Pod, observed: &[Observed]) -> Plan {
    plan(pod, observed, &HashSet::new(), |_| None, at(NOW))
}

fn run(container: &str, attempt: u32) -> Action {
    Action::Run {
        container: container.into(),
        attempt,
    }
}

#[test]
fn a_new_pod_gets_its_sandbox_first_and_then_all_containers_at_once() {
    assert_eq!(
        decide(&web(), &[]).actions,
        [Action::CreateSandbox { attempt: 0 }]
    );
    assert_eq!(
        decide(&web(), &[one(None, 0, running())]).actions,
        [run("a", 0), run("b", 0)]
    );
}

#[test]
fn a_running_pod_is_left_alone() {
    let observed = [
        one(None, 0, running()),
        one(Some("a"), 0, running()),
        one(Some("b"), 0, running()),
    ];
    assert_eq!(decide(&web(), &observed), Plan::default());
}

#[test]
fn a_container_left_between_create_and_start_is_started() {
    let observed = [
        one(None, 0, running()),
        one(Some("a"), 0, State::Created),
        one(Some("b"), 0, running()),
    ];
    assert_eq!(
        decide(&web(), &observed).actions,
        [Action::Start { id: "a-0".into() }]
    );
}

#[test]
fn the_first_restart_is_immediate_and_the_second_waits() {
    let first = [one(None, 0, running()), one(Some("a"), 0, exited(1, NOW))];
    assert_eq!(decide(&web(), &first).actions[0], run("a", 1));

    let second = [
        one(None, 0, running()),
        one(Some("a"), 0, exited(1, NOW - 20)),
        one(Some("a"), 1, exited(1, NOW - 4)),
        one(Some("b"), 0, running()),
    ];
    let waiting = decide(&web(), &second);
    assert_eq!(
        waiting,
        Plan {
            actions: vec![],
            again: Some(at(NOW + 6))
        }
    );
    let later = plan(&web(), &second, &HashSet::new(), |_| None, at(NOW + 6));
    assert_eq!(later.actions, [run("a", 2)]);
}

#[test]
fn back_off_doubles_up_to_five_minutes() {
    let seconds: Vec<u64> = (1..9).map(|attempt| back_off(attempt).as_secs()).collect();
    assert_eq!(seconds, [10, 20, 40, 80, 160, 300, 300, 300]);
}

#[test]
fn a_restart_policy_decides_what_ends_for_good() {
    let spec = |policy| pod(json!({ "restartPolicy": policy, "containers": [{ "name": "a" }] }));
    let ended = |code| {
        [
            one(None, 0, running()),
            one(Some("a"), 0, exited(code, NOW)),
        ]
    };
    assert!(decide(&spec("Never"), &ended(1)).actions.is_empty());
    assert!(decide(&spec("OnFailure"), &ended(0)).actions.is_empty());
    assert_eq!(decide(&spec("OnFailure"), &ended(1)).actions, [run("a", 1)]);
    assert_eq!(decide(&spec("Always"), &ended(0)).actions, [run("a", 1)]);
}

#[test]
fn init_containers_run_one_after_another_before_the_others() {
    let pod = pod(json!({
        "initContainers": [{ "name": "i1" }, { "name": "i2" }], "containers": [{ "name": "a" }]
    }));
    let mut observed = vec![one(None, 0, running())];
    assert_eq!(decide(&pod, &observed).actions, [run("i1", 0)]);
    observed.push(one(Some("i1"), 0, running()));
    assert!(decide(&pod, &observed).actions.is_empty());
    observed[1].state = exited(0, NOW);
    assert_eq!(decide(&pod, &observed).actions, [run("i2", 0)]);
    observed.push(one(Some("i2"), 0, exited(0, NOW)));
    assert_eq!(decide(&pod, &observed).actions, [run("a", 0)]);
}

#[test]
fn a_failed_init_container_of_a_pod_that_never_restarts_ends_the_pod() {
    let pod = pod(json!({
        "restartPolicy": "Never",
        "initContainers": [{ "name": "i" }], "containers": [{ "name": "a" }]
    }));
    let observed = [one(None, 0, running()), one(Some("i"), 0, exited(1, NOW))];
    assert!(decide(&pod, &observed).actions.is_empty());
    assert!(finished(pod.spec.as_ref().unwrap(), &observed, "Never"));
}

#[test]
fn containers_that_lost_their_sandbox_are_stopped_and_get_a_new_one() {
    let lost = [one(None, 0, exited(137, NOW)), one(Some("a"), 0, running())];
    assert_eq!(
        decide(&web(), &lost).actions,
        [Action::Stop { id: "a-0".into() }]
    );
    let stopped = [
        one(None, 0, exited(137, NOW)),
        one(Some("a"), 0, exited(137, NOW)),
    ];
    assert_eq!(
        decide(&web(), &stopped).actions,
        [Action::CreateSandbox { attempt: 1 }]
    );
}

#[test]
fn a_container_whose_probe_failed_is_stopped() {
    let observed = [
        one(None, 0, running()),
        one(Some("a"), 0, running()),
        one(Some("b"), 0, running()),
    ];
    let unhealthy = HashSet::from(["b-0".to_owned()]);
    let decided = plan(&web(), &observed, &unhealthy, |_| None, at(NOW));
    assert_eq!(decided.actions, [Action::Stop { id: "b-0".into() }]);
}

#[test]
fn attempts_count_on_when_the_old_ones_were_removed() {
    let observed = [one(None, 0, running()), one(Some("b"), 0, running())];
    let decided = plan(&web(), &observed, &HashSet::new(), |_| Some(4), at(NOW));
    assert_eq!(decided.actions, [run("a", 5)]);
}
