//! Statuses for containers in every state, without an engine.

use super::*;

const NOW: i64 = 1_000_000;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn pod() -> Pod {
    serde_json::from_value(json!({
        "metadata": { "name": "p", "namespace": "ns", "uid": "u", "generation": 1 },
        "spec": { "containers": [{ "name": "c", "image": "web:1" }] }
    }))
    .unwrap()
}

fn sandbox() -> Observed {
    Observed {
        id: "sb".into(),
        container: None,
        attempt: 0,
        image_id: "sha256:0".into(),
        address: "172.17.0.2".into(),
        state: State::Running { started: at(NOW) },
    }
}

fn attempt(attempt: u32, state: State) -> Observed {
    Observed {
        id: format!("id{attempt}"),
        container: Some("c".into()),
        attempt,
        image_id: "sha256:abc".into(),
        address: String::new(),
        state,
    }
}

fn killed(finished: i64) -> State {
    State::Exited {
        code: 137,
        reason: "Error",
        started: at(finished - 5),
        finished: at(finished),
    }
}

fn status_of(pod: &Pod, observed: &[Observed], problems: &HashMap<String, Problem>) -> Value {
    let facts = Facts {
        pod,
        observed,
        problems,
        health: &|_| Health {
            started: true,
            ready: true,
        },
        host_address: "127.0.0.12",
        terminating: false,
        now: at(NOW),
    };
    pod_status(&facts, &mut Conditions::default())
}

fn condition<'a>(status: &'a Value, kind: &str) -> &'a Value {
    status["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .find(|one| one["type"] == kind)
        .unwrap()
}

#[test]
fn a_running_pod_names_its_docker_container_and_addresses() {
    let observed = [sandbox(), attempt(0, State::Running { started: at(NOW) })];
    let status = status_of(&pod(), &observed, &HashMap::new());
    assert_eq!(status["phase"], "Running");
    assert_eq!(status["podIP"], "172.17.0.2");
    assert_eq!(status["hostIP"], "127.0.0.12");
    assert_eq!(status["startTime"], "1970-01-12T13:46:40Z");
    let container = &status["containerStatuses"][0];
    assert_eq!(container["containerID"], "docker://id0");
    assert_eq!(container["imageID"], "docker://sha256:abc");
    assert_eq!(container["image"], "web:1");
    assert_eq!(
        container["state"]["running"]["startedAt"],
        "1970-01-12T13:46:40Z"
    );
    assert_eq!(container["ready"], true);
    assert_eq!(container["lastState"], json!({}));
    assert_eq!(condition(&status, "Ready")["status"], "True");
}

#[test]
fn a_restarted_container_tells_how_the_one_before_ended() {
    let observed = [
        sandbox(),
        attempt(0, killed(NOW - 10)),
        attempt(
            1,
            State::Running {
                started: at(NOW - 9),
            },
        ),
    ];
    let status = status_of(&pod(), &observed, &HashMap::new());
    let container = &status["containerStatuses"][0];
    assert_eq!(container["restartCount"], 1);
    assert_eq!(container["containerID"], "docker://id1");
    assert_eq!(container["lastState"]["terminated"]["exitCode"], 137);
    assert_eq!(
        container["lastState"]["terminated"]["containerID"],
        "docker://id0"
    );
}

#[test]
fn a_container_in_back_off_is_waiting_and_names_the_ended_one() {
    let observed = [
        sandbox(),
        attempt(0, killed(NOW - 10)),
        attempt(1, killed(NOW - 2)),
    ];
    let status = status_of(&pod(), &observed, &HashMap::new());
    let container = &status["containerStatuses"][0];
    assert_eq!(container["state"]["waiting"]["reason"], "CrashLoopBackOff");
    assert_eq!(
        container["state"]["waiting"]["message"],
        "back-off 10s restarting failed container=c pod=p_ns(u)"
    );
    assert_eq!(
        container["lastState"]["terminated"]["containerID"],
        "docker://id1"
    );
    assert_eq!(container["containerID"], "docker://id1");
    assert_eq!(status["phase"], "Running");
    assert_eq!(
        condition(&status, "Ready")["message"],
        "containers with unready status: [c]"
    );
}

#[test]
fn a_container_that_cannot_be_made_says_why() {
    let problems = HashMap::from([(
        "c".to_owned(),
        Problem {
            reason: "ErrImageNeverPull",
            message: "image web:1 is not there".into(),
        },
    )]);
    let status = status_of(&pod(), &[sandbox()], &problems);
    assert_eq!(status["phase"], "Pending");
    let waiting = &status["containerStatuses"][0]["state"]["waiting"];
    assert_eq!(waiting["reason"], "ErrImageNeverPull");
    assert_eq!(waiting["message"], "image web:1 is not there");
}

#[test]
fn a_pod_that_ran_to_its_end_is_succeeded_or_failed() {
    let mut pod = pod();
    pod.spec.as_mut().unwrap().restart_policy = Some("Never".into());
    let ended = |code| {
        let state = State::Exited {
            code,
            reason: "Error",
            started: at(1),
            finished: at(2),
        };
        status_of(&pod, &[sandbox(), attempt(0, state)], &HashMap::new())["phase"].clone()
    };
    assert_eq!(ended(0), "Succeeded");
    assert_eq!(ended(3), "Failed");
}

#[test]
fn a_condition_keeps_the_time_of_its_last_change() {
    let (pod, problems) = (pod(), HashMap::new());
    let mut conditions = Conditions::default();
    let mut ready_at = |ready: bool, second| {
        let observed = [sandbox(), attempt(0, State::Running { started: at(NOW) })];
        let facts = Facts {
            pod: &pod,
            observed: &observed,
            problems: &problems,
            health: &|_| Health {
                started: true,
                ready,
            },
            host_address: "127.0.0.12",
            terminating: false,
            now: at(second),
        };
        let status = pod_status(&facts, &mut conditions);
        condition(&status, "Ready").clone()
    };
    let first = ready_at(false, NOW);
    assert_eq!(first["reason"], "ContainersNotReady");
    assert_eq!(
        ready_at(false, NOW + 7)["lastTransitionTime"],
        first["lastTransitionTime"]
    );
    let later = ready_at(true, NOW + 9);
    assert_eq!(later["lastTransitionTime"], "1970-01-12T13:46:49Z");
    assert_eq!(later["reason"], Value::Null);
}
