//! Every kind of pod, as a table: what is said beforehand, which steps are done, what comes of the pod.

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams};
use kube_memory::{ClusterConfig, Effect, Fault};
use serde_json::{Value, json};

use super::world::{World, container, eventually, is_running, label, name, node_of, state};

/// One kind of pod. Its labels are `app: s`, `tier: web` and `team: red`, and what its owner adds.
struct Row {
    pod: &'static str,
    made_of: fn() -> Vec<Value>,
    /// In the warnings of a dry run, or in the refusal.
    said: &'static [&'static str],
    phase: &'static str,
    /// D done, F failed, - not begun; of Cordon, Protect, Policy, Strip, LabelNode, Verify.
    steps: &'static str,
    stripped: &'static [&'static str],
    kept: &'static [&'static str],
    successor: Successor,
    cluster: Needs,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Successor {
    /// On another node.
    Elsewhere,
    /// None on the suspect's node; the owner has pods of its own on the others.
    NotHere,
    Nobody,
}

/// What a row needs of the cluster.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Needs {
    Any,
    /// A mirror pod that no kubelet deletes.
    Memory,
    /// Pods take ten seconds to end.
    SlowEnd,
    /// Pods are scheduled and don't start.
    NoKubelet,
}

use Needs::{Any, Memory, NoKubelet, SlowEnd};
use Successor::{Elsewhere, Nobody, NotHere};

/// Stands for the uid of the object made before.
const LAST: &str = "last";

const REFUSED: &str = "------";
const DONE: &str = "DDDDDD";
/// The pod stays as it is; without an agent nothing cuts it off.
const NODE_ONLY: &str = "D---DF";
const NONE: &[&str] = &[];

/// The table.
#[rustfmt::skip]
const ROWS: &[Row] = &[
    Row { pod: "of a Deployment", made_of: || vec![owner("Deployment", json!({ "replicas": 1 }))],
        said: &["Deployment s (ReplicaSet s-", "replaces the pod with a new one from the same template"],
        phase: "Complete", steps: DONE, stripped: &["app"], kept: &["tier", "team"], successor: Elsewhere, cluster: Any },
    Row { pod: "of a ReplicaSet", made_of: || vec![owner("ReplicaSet", json!({ "replicas": 1 }))],
        said: &["ReplicaSet s replaces the pod"],
        phase: "Complete", steps: DONE, stripped: &["app"], kept: &["tier", "team"], successor: Elsewhere, cluster: Any },
    Row { pod: "of a StatefulSet", made_of: || vec![owner("StatefulSet", json!({ "replicas": 1, "serviceName": "s" }))],
        said: &["StatefulSet s starts no replacement as long as the suspect keeps its name"],
        phase: "Complete", steps: DONE, stripped: &["app"], kept: &["statefulset.kubernetes.io/pod-name", "team"],
        successor: Nobody, cluster: Any },
    Row { pod: "of a DaemonSet", made_of: || vec![owner("DaemonSet", json!({}))],
        said: &["DaemonSet s would start a new pod on the suspect node", "Impound's own taint keeps it away"],
        phase: "Complete", steps: DONE, stripped: &["app"], kept: &["tier", "team"], successor: NotHere, cluster: Any },
    Row { pod: "of a Job", made_of: || vec![job(json!({}))],
        said: &["Job s no longer counts the pod, neither as succeeded nor as failed", "job-tracking finalizer"],
        phase: "Complete", steps: DONE, stripped: &["batch.kubernetes.io/controller-uid"],
        kept: &["app", "batch.kubernetes.io/job-name"], successor: Elsewhere, cluster: Any },
    Row { pod: "of a Job with a deadline", made_of: || vec![job(json!({ "activeDeadlineSeconds": 3600 }))],
        said: &["activeDeadlineSeconds 3600", "not the released one"],
        phase: "Complete", steps: DONE, stripped: &["batch.kubernetes.io/controller-uid"], kept: &["app"],
        successor: Elsewhere, cluster: Any },
    Row { pod: "of a CronJob", made_of: || vec![cron_job(), job_of_cron_job()],
        said: &["CronJob nightly (Job s) no longer counts the pod"],
        phase: "Complete", steps: DONE, stripped: &["batch.kubernetes.io/controller-uid"], kept: &["app"],
        successor: Elsewhere, cluster: Any },
    Row { pod: "bare", made_of: || vec![bare(json!({}))],
        said: &["No controller owns the pod: nothing replaces it"],
        phase: "Complete", steps: DONE, stripped: NONE, kept: &["app", "tier", "team"], successor: Nobody, cluster: Any },
    Row { pod: "bare, behind two Services", made_of: || vec![
            bare(json!({})), service("one", json!({ "app": "s" })), service("two", json!({ "tier": "web", "app": "s" })) ],
        said: &["No controller owns the pod"],
        phase: "Complete", steps: DONE, stripped: &["app", "tier"], kept: &["team"], successor: Nobody, cluster: Any },
    Row { pod: "on its node's network", made_of: || vec![bare(json!({ "hostNetwork": true }))],
        said: &["hostNetwork", "it is NOT cut off"],
        phase: "Failed", steps: "DDDDDF", stripped: NONE, kept: &["app"], successor: Nobody, cluster: Any },
    Row { pod: "selected by Exists and In", made_of: || vec![selected_by(json!([
            { "key": "app", "operator": "Exists" }, { "key": "tier", "operator": "In", "values": ["web", "db"] } ]))],
        said: &["replaces the pod"],
        phase: "Complete", steps: DONE, stripped: &["app", "tier"], kept: &["team"], successor: Elsewhere, cluster: Any },
    Row { pod: "selected by NotIn too", made_of: || vec![selected_by(json!([
            { "key": "app", "operator": "In", "values": ["s"] }, { "key": "status", "operator": "NotIn", "values": ["done"] } ]))],
        said: &["replaces the pod"],
        phase: "Complete", steps: DONE, stripped: &["app"], kept: &["tier", "team"], successor: Elsewhere, cluster: Any },
    Row { pod: "that another owner would take once stripped", made_of: || vec![
            owner("Deployment", json!({ "replicas": 1 })), grabber() ],
        said: &["ReplicaSet grabber would select pod", "change that selector first"],
        phase: "Refused", steps: REFUSED, stripped: NONE, kept: &["app"], successor: NotHere, cluster: Any },
    Row { pod: "selected by NotIn alone", made_of: || vec![selected_by(json!([
            { "key": "app", "operator": "NotIn", "values": ["other"] } ]))],
        said: &["would select pod"],
        phase: "Refused", steps: REFUSED, stripped: NONE, kept: &["app"], successor: NotHere, cluster: Memory },
    Row { pod: "static", made_of: || vec![mirror()],
        said: &["it is a static pod", "its manifest is moved away on the node itself", "is not changed", "it is NOT cut off"],
        phase: "Failed", steps: NODE_ONLY, stripped: NONE, kept: &["app"], successor: Nobody, cluster: Memory },
    Row { pod: "of a foreign controller", made_of: || vec![foreign()],
        said: &["it belongs to Rollout s", "how that controller reacts", "is not known", "take its evidence at once"],
        phase: "Failed", steps: NODE_ONLY, stripped: NONE, kept: &["app"], successor: Nobody, cluster: Memory },
    Row { pod: "terminating", made_of: || vec![bare(json!({ "terminationGracePeriodSeconds": 60 }))],
        said: &["The pod is being deleted since", "nothing in the API stops that"],
        phase: "Complete", steps: DONE, stripped: NONE, kept: &["app"], successor: Nobody, cluster: SlowEnd },
    Row { pod: "not yet running", made_of: || vec![bare(json!({}))],
        said: &["The pod does not run yet: there may be no container to collect from"],
        phase: "Complete", steps: DONE, stripped: NONE, kept: &["app"], successor: Nobody, cluster: NoKubelet },
    Row { pod: "not yet scheduled", made_of: || vec![bare(json!({ "nodeSelector": { "no": "such-node" } }))],
        said: &["is not scheduled to a node yet (phase Pending)"],
        phase: "Refused", steps: REFUSED, stripped: NONE, kept: &["app"], successor: Nobody, cluster: NoKubelet },
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_pod_is_warned_of_and_handled_as_the_table_says() {
    // Rows of a real cluster would disturb each other's nodes.
    let at_once = if std::env::var_os("KUBECONFIG").is_some() {
        1
    } else {
        3
    };
    let checked: Vec<Vec<String>> = futures::stream::iter(ROWS)
        .map(|row| async move { (tokio::spawn(check(row)).await).unwrap() })
        .buffered(at_once)
        .collect()
        .await;
    let wrong: Vec<String> = checked.into_iter().flatten().collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What is not as the row says.
async fn check(row: &'static Row) -> Vec<String> {
    let world = match row.cluster {
        Any => World::start().await,
        Memory => World::start_in_memory().await,
        SlowEnd => {
            World::start_in(ClusterConfig {
                termination: std::time::Duration::from_secs(10),
                ..ClusterConfig::default()
            })
            .await
        }
        NoKubelet => {
            World::start_in(ClusterConfig {
                instant_kubelet: false,
                ..ClusterConfig::default()
            })
            .await
        }
    };
    let mut last = String::new();
    for mut object in (row.made_of)() {
        if let Some(owner) = object.pointer_mut("/metadata/ownerReferences/0/uid")
            && owner == LAST
        {
            *owner = json!(last);
        }
        last = world.create(object).await;
    }
    let suspect = eventually("the suspect is there", || async {
        let pods = world.pods("team=red").await;
        let scheduled = |pod: &Pod| {
            pod.spec
                .as_ref()
                .is_some_and(|spec| spec.node_name.is_some())
        };
        let ready = |pod: &Pod| match row.cluster {
            NoKubelet => scheduled(pod) || row.phase == "Refused",
            _ => is_running(pod),
        };
        pods.into_iter()
            .find(ready)
            .ok_or_else(|| "not yet".to_owned())
    })
    .await;
    if row.cluster == SlowEnd {
        let api = Api::<Pod>::namespaced(world.client.clone(), &world.namespace);
        api.delete(&name(&suspect), &DeleteParams::default())
            .await
            .unwrap();
    }

    let mut request = world.request(&name(&suspect));
    request.dry_run = true;
    let mut alice = world.responder("alice").await;
    let said = match alice.create_quarantine(request).await {
        Ok(answer) => answer.into_inner().plan.unwrap().warnings.join("\n"),
        Err(refusal) => refusal.message().to_owned(),
    };
    world
        .create(json!({
            "apiVersion": "impound.dev/v1alpha1", "kind": "Quarantine", "metadata": { "name": "q" },
            "spec": { "pod": name(&suspect), "case": "INC-1", "reason": "x", "skipCollection": true },
        }))
        .await;
    let done = world.settled("q").await;

    let mut wrong = Vec::new();
    let mut expect = |holds: bool, what: String| {
        if !holds {
            wrong.push(format!("pod {}: {what}", row.pod));
        }
    };
    for words in row.said {
        expect(
            said.contains(words),
            format!("{words:?} is not said in\n{said}"),
        );
    }
    expect(
        done.phase == row.phase,
        format!("phase {}: {}", done.phase, done.message),
    );
    let steps: String = [
        "Cordon",
        "Protect",
        "Policy",
        "Strip",
        "LabelNode",
        "Verify",
    ]
    .iter()
    .map(|step| match state(&done, step).as_str() {
        "" => '-',
        state => state.chars().next().unwrap(),
    })
    .collect();
    expect(
        steps == row.steps,
        format!("steps {steps}: {:#?}", done.steps),
    );
    let now = world.pod(&name(&suspect)).await;
    expect(
        now.metadata.uid == suspect.metadata.uid,
        "it is another pod".into(),
    );
    for key in row.stripped {
        expect(
            label(&now, key).is_none(),
            format!("label {key} is still there"),
        );
    }
    for key in row.kept {
        expect(label(&now, key).is_some(), format!("label {key} is gone"));
    }
    if row.phase == "Refused" {
        expect(label(&now, "status").is_none(), "it is labelled".into());
        expect(
            world.memory.is_none() || world.effects().is_empty(),
            "something was changed".into(),
        );
    } else if row.steps == NODE_ONLY {
        expect(
            now.metadata.labels == suspect.metadata.labels
                && now.metadata.owner_references == suspect.metadata.owner_references,
            "the pod was changed".into(),
        );
        let of_node = |effect: &String| effect.contains("/nodes/");
        let effects = world.effects();
        expect(
            effects.iter().all(of_node),
            format!("more than the node was changed: {effects:#?}"),
        );
        expect(
            done.verdict == "NotContained" && done.message.starts_with("NOT contained"),
            format!("verdict {}: {}", done.verdict, done.message),
        );
        world.release("q", true).await.unwrap();
        let released = world.settled("q").await;
        expect(
            released.phase == "Released" && released.message == "released",
            format!("{}: {}", released.phase, released.message),
        );
    } else {
        expect(
            label(&now, "status").as_deref() == Some("suspectpod"),
            "it is not labelled".into(),
        );
        expect(
            now.metadata.owner_references.is_none(),
            "it is owned".into(),
        );
    }
    let mut others = world.pods("team=red").await;
    others.retain(|pod| pod.metadata.uid != suspect.metadata.uid);
    let here = |pod: &Pod| {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
        node == suspect
            .spec
            .as_ref()
            .and_then(|spec| spec.node_name.clone())
    };
    let successor = match row.successor {
        Elsewhere => others.iter().any(|pod| !here(pod)) && !others.iter().any(here),
        NotHere => !others.iter().any(here),
        Nobody => others.is_empty(),
    };
    let places: Vec<String> = others.iter().map(node_of).collect();
    expect(
        successor,
        format!(
            "expected successor {:?}, there are {places:?}",
            row.successor
        ),
    );
    wrong
}

#[tokio::test]
async fn a_pod_re_created_under_the_same_name_mid_way_is_never_touched() {
    let world = World::start_in_memory().await;
    world
        .create(owner(
            "StatefulSet",
            json!({ "replicas": 1, "serviceName": "s" }),
        ))
        .await;
    let suspect = world.running("team=red", 1).await.remove(0);
    let memory = world.memory.as_ref().unwrap();
    let late = memory.inject(
        Fault::new(Effect::Delay(std::time::Duration::from_secs(3)))
            .on("PATCH", "/pods/s-0")
            .nth(1),
    );
    world
        .create(json!({
            "apiVersion": "impound.dev/v1alpha1", "kind": "Quarantine", "metadata": { "name": "q" },
            "spec": { "pod": "s-0", "case": "INC-1", "reason": "x", "skipCollection": true },
        }))
        .await;
    eventually("the strip is on its way", || async {
        if late.hits() > 0 {
            Ok(())
        } else {
            Err("not yet".to_owned())
        }
    })
    .await;
    let api = Api::<Pod>::namespaced(world.client.clone(), &world.namespace);
    let now = DeleteParams {
        grace_period_seconds: Some(0),
        ..DeleteParams::default()
    };
    api.delete("s-0", &now).await.unwrap();
    let successor = eventually("its owner makes it again", || async {
        let pods = world.pods("team=red").await;
        let other = pods
            .into_iter()
            .find(|pod| pod.metadata.uid != suspect.metadata.uid);
        other.ok_or_else(|| "not yet".to_owned())
    })
    .await;
    let done = world.settled("q").await;
    assert_eq!(
        (done.phase.as_str(), state(&done, "Strip").as_str()),
        ("Failed", "Failed"),
        "{done:#?}"
    );
    assert!(done.message.contains("re-created"), "{}", done.message);
    let now = world.pod("s-0").await;
    assert_eq!(now.metadata.uid, successor.metadata.uid);
    assert_eq!(label(&now, "status"), None);
    assert_eq!(label(&now, "app").as_deref(), Some("s"));
}

fn labels() -> Value {
    json!({ "app": "s", "tier": "web", "team": "red" })
}

fn pod_spec(more: Value) -> Value {
    let mut spec = json!({ "terminationGracePeriodSeconds": 1, "containers": [container("c")] });
    spec.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    spec
}

fn bare(spec: Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "s", "labels": labels() }, "spec": pod_spec(spec) })
}

fn owner(kind: &str, spec: Value) -> Value {
    let mut all = json!({
        "selector": { "matchLabels": { "app": "s" } },
        "template": { "metadata": { "labels": labels() }, "spec": pod_spec(json!({})) },
    });
    all.as_object_mut()
        .unwrap()
        .extend(spec.as_object().unwrap().clone());
    json!({ "apiVersion": "apps/v1", "kind": kind, "metadata": { "name": "s" }, "spec": all })
}

fn selected_by(expressions: Value) -> Value {
    owner(
        "ReplicaSet",
        json!({ "replicas": 1, "selector": { "matchExpressions": expressions } }),
    )
}

/// It wants whatever has no label `app`.
fn grabber() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": { "name": "grabber" },
        "spec": {
            "replicas": 0, "selector": { "matchExpressions": [{ "key": "app", "operator": "DoesNotExist" }] },
            "template": { "metadata": { "labels": { "of": "grabber" } }, "spec": pod_spec(json!({})) },
        },
    })
}

fn job(spec: Value) -> Value {
    let template = json!({ "metadata": { "labels": labels() }, "spec": pod_spec(json!({ "restartPolicy": "Never" })) });
    let mut all = json!({ "backoffLimit": 3, "template": template });
    all.as_object_mut()
        .unwrap()
        .extend(spec.as_object().unwrap().clone());
    json!({ "apiVersion": "batch/v1", "kind": "Job", "metadata": { "name": "s" }, "spec": all })
}

fn cron_job() -> Value {
    json!({
        "apiVersion": "batch/v1", "kind": "CronJob", "metadata": { "name": "nightly" },
        "spec": { "schedule": "0 0 1 1 *", "suspend": true, "jobTemplate": job(json!({})) },
    })
}

/// As the CronJob, or `kubectl create job --from`, makes it.
fn job_of_cron_job() -> Value {
    let mut job = job(json!({}));
    job["metadata"]["ownerReferences"] = json!([{ "apiVersion": "batch/v1", "kind": "CronJob", "name": "nightly", "uid": LAST, "controller": true }]);
    job
}

fn service(name: &str, selector: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": name },
        "spec": { "selector": selector, "ports": [{ "port": 80 }] },
    })
}

fn mirror() -> Value {
    let mut pod = bare(json!({}));
    pod["metadata"]["annotations"] = json!({ "kubernetes.io/config.mirror": "0" });
    pod["metadata"]["ownerReferences"] = json!([{ "apiVersion": "v1", "kind": "Node", "name": "n", "uid": "0", "controller": true }]);
    pod
}

fn foreign() -> Value {
    let mut pod = bare(json!({}));
    pod["metadata"]["ownerReferences"] = json!([{ "apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout", "name": "s", "uid": "1", "controller": true }]);
    pod
}

#[tokio::test]
async fn a_replication_controllers_pod_is_planned_as_one_that_is_replaced() {
    // Nobody plays its controller here, which would delete a pod that it did not make.
    let world = World::start_in_memory().await;
    let template = json!({
        "metadata": { "labels": { "app": "old" } },
        "spec": { "containers": [{ "name": "c", "image": "busybox:1" }] },
    });
    let owner = world
        .create(json!({
            "apiVersion": "v1", "kind": "ReplicationController", "metadata": { "name": "old" },
            "spec": { "replicas": 1, "selector": { "app": "old" }, "template": template.clone() },
        }))
        .await;
    let reference = json!({
        "apiVersion": "v1", "kind": "ReplicationController", "name": "old", "uid": owner, "controller": true,
    });
    let mut pod = json!({ "apiVersion": "v1", "kind": "Pod", "spec": template["spec"] });
    pod["metadata"] =
        json!({ "name": "old-1", "labels": { "app": "old" }, "ownerReferences": [reference] });
    world.create(pod).await;
    world.running("app=old", 1).await;
    let mut request = world.request("old-1");
    request.dry_run = true;
    let mut alice = world.responder("alice").await;
    let answer = alice.create_quarantine(request).await.unwrap().into_inner();
    let warnings = answer.plan.unwrap().warnings;
    assert!(
        warnings
            .iter()
            .any(|one| one.starts_with("ReplicationController old replaces the pod")),
        "{warnings:#?}"
    );
}
