//! What the canned controller tells: quarantines and collections, update by update.

use impound_proto::controller::v1::*;
use prost_types::Timestamp;

/// 2026-01-31T03:04:00Z and so many tenths of a second.
pub(crate) fn at(tenths: i64) -> Option<Timestamp> {
    Some(Timestamp {
        seconds: 1_769_828_640 + tenths / 10,
        nanos: (tenths % 10) as i32 * 100_000_000,
    })
}

const STEPS: [(&str, &str); 9] = [
    (
        "Cordon",
        "node worker2 takes no new pods (taint dev.impound/quarantine:NoSchedule)",
    ),
    (
        "Protect",
        "autoscalers leave node and pod alone; a budget of its own protects the pod",
    ),
    (
        "Policy",
        "NetworkPolicy deny-all-suspectpod in namespace default denies ingress and egress",
    ),
    (
        "Strip",
        "labels app, pod-template-hash removed; ReplicaSet web-5d4f released the pod",
    ),
    ("LabelNode", "node worker2 has the label status=suspectnode"),
    ("Verify", "3 checks: 2 true, 1 unverified"),
    (
        "Neighbours",
        "diff and inspect of 4 containers of 3 pods stored",
    ),
    (
        "Evict",
        "2 of 3 pods evicted, 1 left: DaemonSet pod kube-system/kube-proxy-8xk2p",
    ),
    ("Collect", "evidence is sealed"),
];

/// The updates of a quarantine of `pod`; the last one ends it.
pub(crate) fn quarantine(pod: &str) -> Vec<Quarantine> {
    let mut now = Quarantine {
        namespace: "default".to_owned(),
        name: pod.to_owned(),
        case_id: "INC-7".to_owned(),
        reason: "shell in container".to_owned(),
        requested_by: "spiffe://impound.dev/responder/responder/ada".to_owned(),
        pod: pod.to_owned(),
        pod_uid: "0b0c3c3e-5a0e-4b1e-9d5f-6a9f0d9a5a11".to_owned(),
        node: "worker2".to_owned(),
        phase: "Pending".to_owned(),
        created: at(0),
        steps: STEPS
            .map(|(name, _)| Step {
                name: name.to_owned(),
                state: "Pending".to_owned(),
                ..Step::default()
            })
            .into(),
        ..Quarantine::default()
    };
    let mut updates = vec![now.clone()];
    if pod == "refused-1" {
        now.case_id = "INC-8".to_owned();
        now.phase = "Refused".to_owned();
        now.message = "refused-1 is a static pod: the kubelet of worker2 runs it from a file, and the API can't change it; move the file away on the node".to_owned();
        now.steps.clear();
        updates.push(now);
        return updates;
    }
    now.phase = "Containing".to_owned();
    for (step, (name, message)) in STEPS.into_iter().enumerate() {
        let begin = 5 + 4 * step as i64;
        now.steps[step].state = "Running".to_owned();
        now.steps[step].started = at(begin);
        now.steps[step].attempts = 1;
        if name == "Collect" {
            now.collection = pod.to_owned();
            now.steps[step].message = "quick stage".to_owned();
        }
        updates.push(now.clone());
        if name == "Evict" {
            now.steps[step].state = "Waiting".to_owned();
            now.steps[step].message =
                "1 of 3 pods evicted; default/db-0 is held by PodDisruptionBudget db (0 disruptions allowed)".to_owned();
            updates.push(now.clone());
            now.steps[step].attempts = 3;
        }
        let took = if ["Evict", "Collect"].contains(&name) {
            620
        } else {
            3
        };
        now.steps[step].state = "Done".to_owned();
        now.steps[step].message = message.to_owned();
        now.steps[step].finished = at(begin + took);
        if name == "Verify" {
            now.phase = "Contained".to_owned();
            now.message =
                "no controller and no Service selects the pod; traffic is denied by policy"
                    .to_owned();
            now.facts = [
                ("OwnerReleased", "True", "no ReplicaSet selects the pod"),
                ("NoEndpoints", "True", "no EndpointSlice has 10.244.2.17"),
                (
                    "PolicySelectsPod",
                    "Unverified",
                    "the policy selects the pod; whether the CNI enforces it was not tested",
                ),
            ]
            .map(|(name, state, message)| Fact {
                name: name.to_owned(),
                state: state.to_owned(),
                message: message.to_owned(),
            })
            .into();
            now.warnings =
                vec!["traffic between the pod and its own node stays allowed".to_owned()];
        }
        updates.push(now.clone());
    }
    now.phase = "Complete".to_owned();
    updates.push(now);
    updates
}

/// The updates of a collection of `pod`; the last one ends it.
pub(crate) fn collection(pod: &str) -> Vec<Collection> {
    let base = format!("artifacts/worker2/default_{pod}/nginx");
    let tar = format!("{base}/evidence-compromised-nginx-0123456789ab.tar");
    let names = [
        ("before/pod.json".to_owned(), 4_812),
        (format!("{base}/inspect.json"), 12_600),
        (format!("{base}/diff.txt"), 1_204),
        (tar, 187_904_000),
        (
            format!("{base}/compromised-nginx-0123456789ab.tar"),
            193_112_064,
        ),
    ];
    let mut now = Collection {
        namespace: "default".to_owned(),
        name: pod.to_owned(),
        case_id: "INC-7".to_owned(),
        reason: "shell in container".to_owned(),
        requested_by: "spiffe://impound.dev/responder/responder/ada".to_owned(),
        pod: pod.to_owned(),
        pod_uid: "0b0c3c3e-5a0e-4b1e-9d5f-6a9f0d9a5a11".to_owned(),
        node: "worker2".to_owned(),
        phase: "Collecting".to_owned(),
        created: at(420),
        artifacts: names
            .iter()
            .map(|(path, _)| CollectedArtifact {
                path: path.clone(),
                state: "Pending".to_owned(),
                ..CollectedArtifact::default()
            })
            .collect(),
        ..Collection::default()
    };
    let mut updates = vec![now.clone()];
    let partial = pod == "partial-1";
    for (at_, (_, size)) in names.iter().enumerate() {
        let artifact = |now: &mut Collection, state: &str, bytes: u64| {
            let artifact = &mut now.artifacts[at_];
            artifact.state = state.to_owned();
            artifact.bytes = bytes;
            artifact.started = at(430 + 30 * at_ as i64);
        };
        for part in 0..4 {
            artifact(&mut now, "Running", size * part / 4);
            now.artifacts[at_].expected_bytes = if *size > 1_000_000 { *size } else { 0 };
            updates.push(now.clone());
        }
        match (partial, at_) {
            (true, 3) => {
                artifact(&mut now, "Incomplete", size / 2);
                now.artifacts[at_].message =
                    "the tar breaks off at byte 93952000, inside \"var/log/app.log\" (member 812): 512 of 4096 bytes came".to_owned();
            }
            (true, 4) => {
                artifact(&mut now, "Failed", 0);
                now.artifacts[at_].message =
                    "not enough disk on worker2 for a commit: 190 MB needed, 12 MB free".to_owned();
            }
            _ => artifact(&mut now, "Stored", *size),
        }
        now.artifacts[at_].finished = at(430 + 30 * at_ as i64 + 12);
        updates.push(now.clone());
    }
    now.finished = at(600);
    now.location = format!("file:///evidence/INC-7/{pod}");
    now.manifest_sha256 =
        "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08".to_owned();
    (now.phase, now.message) = match partial {
        true => (
            "Partial".to_owned(),
            "2 of 5 artifacts are missing or incomplete".to_owned(),
        ),
        false => (
            "Sealed".to_owned(),
            "5 artifacts stored, re-read and signed".to_owned(),
        ),
    };
    updates.push(now);
    updates
}

/// The updates of a release that was asked for; the first is not aware of it yet. Of `partial-1` one step is given up.
pub(crate) fn releasing(pod: &str) -> Vec<Quarantine> {
    let mut now = quarantine(pod).pop().unwrap();
    let mut updates = vec![now.clone()];
    now.phase = "Releasing".to_owned();
    now.message = "recorded changes are being undone, last first".to_owned();
    let steps = [
        ("UndoIsolate", "Skipped", "it was not isolated at its node"),
        (
            "UndoLabelNode",
            "Done",
            "node worker2 has lost the label status=suspectnode",
        ),
        ("UndoStrip", "Done", "the original labels are back"),
        (
            "UndoCordon",
            "Skipped",
            "left as it is: quarantine shop/db-0 still needs it",
        ),
    ];
    for (tenths, (name, state, message)) in (900..).step_by(5).zip(steps) {
        let mut step = Step {
            name: name.to_owned(),
            state: state.to_owned(),
            message: message.to_owned(),
            started: at(tenths),
            finished: at(tenths + 3),
            attempts: 1,
        };
        if pod == "partial-1" && name == "UndoIsolate" {
            step.state = "Failed".to_owned();
            step.message = "NOT lifted: node worker2 does not exist any more".to_owned();
        }
        now.steps.push(step);
        updates.push(now.clone());
    }
    now.phase = "Released".to_owned();
    now.message =
        "released; Deployment web adopts the pod again and removes one of its pods, which may be this one"
            .to_owned();
    updates.push(now);
    updates
}

/// The plan of a release.
pub(crate) fn release() -> Plan {
    Plan {
        calls: vec![ApiCall {
            step: "UndoStrip".to_owned(),
            method: "PATCH".to_owned(),
            path: "/api/v1/namespaces/default/pods/web-5d4f-x7".to_owned(),
            content_type: "application/merge-patch+json".to_owned(),
            body: r#"{"metadata":{"labels":{"app":"web","status":null}}}"#.to_owned(),
            purpose: "the original labels are back".to_owned(),
        }],
        warnings: vec![
            "Deployment web adopts the pod again and deletes one of its pods.".to_owned(),
        ],
    }
}

/// The plan of a quarantine.
pub(crate) fn plan() -> Plan {
    let call =
        |step: &str, method: &str, path: &str, content_type: &str, body: &str, purpose: &str| {
            ApiCall {
                step: step.to_owned(),
                method: method.to_owned(),
                path: path.to_owned(),
                content_type: content_type.to_owned(),
                body: body.to_owned(),
                purpose: purpose.to_owned(),
            }
        };
    Plan {
        calls: vec![
            call(
                "Cordon",
                "PATCH",
                "/api/v1/nodes/worker2",
                "application/json-patch+json",
                r#"[{"op":"add","path":"/spec/unschedulable","value":true}]"#,
                "keep new pods off the node",
            ),
            call(
                "Strip",
                "PATCH",
                "/api/v1/namespaces/default/pods/web-5d4f-x7",
                "application/merge-patch+json",
                r#"{"metadata":{"uid":"0b0c3c3e-5a0e-4b1e-9d5f-6a9f0d9a5a11","labels":{"app":null,"status":"suspectpod"}}}"#,
                "take the pod away from its owner and its Services, and label it",
            ),
            call(
                "Evict",
                "POST",
                "/api/v1/namespaces/default/pods/db-0/eviction",
                "",
                "",
                "move a neighbour away",
            ),
        ],
        warnings: vec![
            "ReplicaSet web-5d4f will start a replacement on another node".to_owned(),
            "default/cache-0 has emptyDir data and stays; --delete-emptydir-data evicts it"
                .to_owned(),
        ],
    }
}

pub(crate) fn containers() -> ListContainersResponse {
    let container =
        |container: &str, pod: &str, id: &str, sandbox: bool, known: bool| NodeContainer {
            id: id.repeat(16),
            name: format!("k8s_{container}_{pod}_default_0b0c3c3e_0"),
            image: "sha256:feed".to_owned(),
            state: "running".to_owned(),
            created: at(-36_000),
            pod_namespace: "default".to_owned(),
            pod_name: pod.to_owned(),
            container_name: container.to_owned(),
            attempt: 0,
            sandbox,
            known_to_kubernetes: known,
        };
    let mut stray = container("", "", "badc", false, false);
    stray.pod_namespace.clear();
    stray.name = "miner\u{1b}[2J".to_owned();
    ListContainersResponse {
        containers: vec![
            container("nginx", "web-5d4f-x7", "0123", false, true),
            container("POD", "web-5d4f-x7", "4567", true, true),
            stray,
        ],
        runtime: "docker".to_owned(),
        runtime_version: "20.10.24".to_owned(),
    }
}

/// A sweep of four pods, of which one fails and one is gone; of a `whole-` one every pod is sealed.
pub(crate) fn sweep(name: &str) -> Vec<Sweep> {
    let whole = name.starts_with("whole");
    let sweep = |phase: &str, message: &str, counts: SweepCounts| Sweep {
        name: name.to_owned(),
        case_id: "INC-7".to_owned(),
        reason: "same image as the suspect".to_owned(),
        requested_by: "spiffe://impound.dev/responder/responder/ada".to_owned(),
        select: Some(PodSelection {
            namespaces: vec!["shop".to_owned()],
            labels: "app=web".to_owned(),
            ..Default::default()
        }),
        at_once: 16,
        per_node: 1,
        state: "Running".to_owned(),
        phase: phase.to_owned(),
        message: message.to_owned(),
        counts: Some(counts),
        created: at(0),
        ..Default::default()
    };
    let exception = |pod: &str, state: &str, message: &str| SweepTarget {
        namespace: "shop".to_owned(),
        pod: pod.to_owned(),
        node: "worker2".to_owned(),
        state: state.to_owned(),
        message: message.to_owned(),
        ..Default::default()
    };
    let mut states = vec![sweep("Pending", "", SweepCounts::default())];
    let counts = |running, waiting, sealed, failed, absent| SweepCounts {
        running,
        waiting,
        sealed,
        failed,
        absent,
        ..Default::default()
    };
    states.push(sweep(
        "Running",
        "0 of 4 sealed, 2 under way, 2 waiting",
        counts(2, 2, 0, 0, 0),
    ));
    if whole {
        states.push(sweep(
            "Complete",
            "all 4 sealed and complete",
            counts(0, 0, 4, 0, 0),
        ));
    } else {
        let failed = exception(
            "web-3\u{1b}[2J",
            "Failed",
            "no agent answered on node worker2",
        );
        let absent = exception("web-4", "Absent", "the pod was gone before its turn");
        let mut half = sweep(
            "Running",
            "1 of 4 sealed, 1 under way, 1 waiting, 1 failed",
            counts(1, 1, 1, 1, 0),
        );
        half.exceptions = vec![failed.clone()];
        states.push(half);
        let mut over = sweep(
            "Partial",
            "Partial: 2 of 4 sealed, 1 failed, 1 gone before they could be collected",
            counts(0, 0, 2, 1, 1),
        );
        over.exceptions = vec![failed, absent];
        states.push(over);
    }
    for (tenths, state) in states.iter_mut().enumerate().skip(1) {
        state.targets = 4;
        state.nodes = 2;
        state.namespaces = 1;
        state.expanded = at(1);
        state.bytes = u64::from(state.counts.unwrap().sealed) << 20;
        if state.phase != "Running" {
            state.finished = at(tenths as i64 * 100);
        }
    }
    states
}

pub(crate) fn sweep_plan() -> SweepPlan {
    let share = |(name, targets): (&str, u32)| Share {
        name: name.to_owned(),
        targets,
    };
    SweepPlan {
        targets: 1403,
        nodes: [("worker1", 400), ("worker2", 1000), ("", 3)]
            .map(share)
            .into(),
        namespaces: [("shop", 1403)].map(share).into(),
        cases: vec!["INC-7".to_owned(), "INC-7.part-2".to_owned()],
        left_out: "2 of Impound's own pods".to_owned(),
    }
}

pub(crate) fn sweep_targets() -> Vec<SweepTarget> {
    let target = |pod: &str, state: &str, message: &str, bytes| SweepTarget {
        namespace: "shop".to_owned(),
        pod: pod.to_owned(),
        pod_uid: format!("uid-{pod}"),
        node: "worker2".to_owned(),
        state: state.to_owned(),
        message: message.to_owned(),
        bytes,
        case_id: "INC-7".to_owned(),
        collection: format!("{pod}-0a1b2c3d-1"),
    };
    vec![
        target("web-1", "Sealed", "", 1 << 20),
        target("web-3", "Failed", "no agent answered on node worker2", 0),
        target("web-4", "Absent", "the pod was gone before its turn", 0),
    ]
}
