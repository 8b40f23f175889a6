//! Every kind of pod, as a table: what is said beforehand, which steps are done, what comes of the pod, and that a
//! release leaves everything as it was.

mod objects;
mod recreated;
mod restored;

use futures::StreamExt;
use impound_controller::reconcile::next_step::{CONTAINMENT, RELEASE};
use impound_controller::resources::StepName;
use impound_proto::controller::v1::Quarantine;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, DeleteParams, ListParams};
use kube_memory::ClusterConfig;
use serde_json::{Value, json};

pub(crate) use self::objects::allowing;
use self::objects::{
    LAST, bare, cron_job, foreign, grabber, job, job_of_cron_job, mirror, on_node_network, owner,
    selected_by, service, slow_to_end,
};
use self::restored::{Before, release};
use super::agent::{FakeAgent, Fault};
use super::outcome::last_seen;
use super::world::{World, container, eventually, is_running, label, name, state};

/// One kind of pod. Its labels are `app: s`, `tier: web` and `team: red`, and what its owner adds.
struct Row {
    pod: &'static str,
    made_of: fn() -> Vec<Value>,
    /// In the warnings of a dry run, or in the refusal.
    said: &'static [&'static str],
    phase: &'static str,
    /// D done, F failed, S skipped, - not there; of [`STEPS`].
    steps: &'static str,
    /// The same of [`RELEASE`].
    undone: &'static str,
    /// What it comes to where the node's agent isolates.
    at_node: AtNode,
    /// Asked for with `--exclude-from-policies`.
    exclude: bool,
    stripped: &'static [&'static str],
    kept: &'static [&'static str],
    successor: Successor,
    cluster: Needs,
}

/// A row's end with an agent on the suspect's node.
#[derive(Clone, Copy)]
struct AtNode {
    phase: &'static str,
    verdict: &'static str,
    steps: &'static str,
    undone: &'static str,
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
    /// Pods take their time to end.
    SlowEnd,
    /// The same, and the owner is deleted with all that it owns.
    OwnerGone,
    /// Pods are scheduled and don't start.
    NoKubelet,
    /// Policies in Cilium's own kind are served.
    Cilium,
}

use Needs::{Any, Cilium, Memory, NoKubelet, OwnerGone, SlowEnd};
use Successor::{Elsewhere, Nobody, NotHere};

/// The steps of a quarantine, in order: those that change the cluster, then isolation at the node and its proof
/// around the verification, then what comes after.
const STEPS: [StepName; 13] = {
    use StepName::{Collect, Evict, Isolate, Neighbours, Prove, Verify};
    let [cordon, protect, policy, exclude, strip, deny, label] = CONTAINMENT;
    [
        cordon, protect, policy, exclude, strip, deny, label, Isolate, Verify, Prove, Neighbours,
        Evict, Collect,
    ]
};

/// Where Isolate and Evict are.
const ISOLATE: usize = 7;
const EVICT: usize = 11;

const REFUSED: &str = "-------------";
const DONE: &str = "DDD-D-DSDSSDS";
const UNDONE: &str = "SD-D-DDD";
/// The pod stays as it is; without an agent nothing cuts it off.
const NODE_ONLY: &str = "D-----DSFSSDS";
const NODE_UNDONE: &str = "SD-----D";

const ISOLATED: AtNode = AtNode {
    phase: "Complete",
    verdict: "Isolated",
    steps: "DDD-D-DDDDSDS",
    undone: "DD-D-DDD",
};
/// The pod stays as it is, and its node's table is what holds it.
const ALONE: AtNode = AtNode {
    steps: "D-----DDDDSDS",
    undone: "DD-----D",
    ..ISOLATED
};
/// Its traffic is its node's: the agent is not asked.
const NOT_TO_BE_TOLD: AtNode = AtNode {
    phase: "Failed",
    verdict: "NotContained",
    steps: "DDD-D-DFFSSDS",
    undone: UNDONE,
};
/// The agent finds no network namespace to set a table in: it is asked again as long as the quarantine is in force.
const NO_SANDBOX: AtNode = AtNode {
    phase: "Incomplete",
    verdict: "Contained",
    steps: "DDD-D-DFDSSDS",
    undone: UNDONE,
};
const NOTHING: AtNode = AtNode {
    phase: "Refused",
    verdict: "",
    steps: REFUSED,
    undone: "",
};

/// What is said of a pod that stays as it is and that nothing holds, and what if its node's table does.
const NOT_CUT_OFF: &str = "it is NOT cut off";
const BY_TABLE: &str = "What holds it is its node's table alone.";

const NONE: &[&str] = &[];

/// The table.
#[rustfmt::skip]
const ROWS: &[Row] = &[
    Row { pod: "of a Deployment", made_of: || vec![owner("Deployment", json!({ "replicas": 1 }))],
        said: &["Deployment s (ReplicaSet s-", "replaces the pod with a new one from the same template"],
        phase: "Complete", steps: DONE, undone: UNDONE, at_node: ISOLATED, exclude: false, stripped: &["app"], kept: &["tier", "team"], successor: Elsewhere, cluster: Any },
    Row { pod: "of a ReplicaSet", made_of: || vec![owner("ReplicaSet", json!({ "replicas": 1 }))],
        said: &["ReplicaSet s replaces the pod"],
        phase: "Complete", steps: DONE, undone: UNDONE, at_node: ISOLATED, exclude: false, stripped: &["app"], kept: &["tier", "team"], successor: Elsewhere, cluster: Any },
    Row { pod: "of a StatefulSet", made_of: || vec![owner("StatefulSet", json!({ "replicas": 1, "serviceName": "s" }))],
        said: &["StatefulSet s starts no replacement as long as the suspect keeps its name"],
        phase: "Complete", steps: DONE, undone: UNDONE, at_node: ISOLATED, exclude: false, stripped: &["app"], kept: &["statefulset.kubernetes.io/pod-name", "team"],
        successor: Nobody, cluster: Any },
    Row { pod: "of a DaemonSet", made_of: || vec![owner("DaemonSet", json!({}))],
        said: &["DaemonSet s would start a new pod on the suspect node", "Impound's own taint keeps it away"],
        phase: "Complete", steps: DONE, undone: UNDONE, at_node: ISOLATED, exclude: false, stripped: &["app"], kept: &["tier", "team"], successor: NotHere, cluster: Any },
    Row { pod: "of a Job", made_of: || vec![job(json!({}))],
        said: &["Job s no longer counts the pod, neither as succeeded nor as failed", "job-tracking finalizer"],
        phase: "Complete", steps: DONE, undone: UNDONE, at_node: ISOLATED, exclude: false, stripped: &["batch.kubernetes.io/controller-uid"],
        kept: &["app", "batch.kubernetes.io/job-name"], successor: Elsewhere, cluster: Any },
    Row { pod: "of a Job with a deadline", made_of: || vec![job(json!({ "activeDeadlineSeconds": 3600 }))],
        said: &["activeDeadlineSeconds 3600", "not the released one"],
        phase: "Complete", steps: DONE, undone: UNDONE, at_node: ISOLATED, exclude: false, stripped: &["batch.kubernetes.io/controller-uid"], kept: &["app"],
        successor: Elsewhere, cluster: Any },
    Row { pod: "of a CronJob", made_of: || vec![cron_job(), job_of_cron_job()],
        said: &["CronJob nightly (Job s) no longer counts the pod"],
        phase: "Complete", steps: DONE, undone: UNDONE, at_node: ISOLATED, exclude: false, stripped: &["batch.kubernetes.io/controller-uid"], kept: &["app"],
        successor: Elsewhere, cluster: Any },
    Row { pod: "bare", made_of: || vec![bare(json!({}))],
        said: &["No controller owns the pod: nothing replaces it"],
        phase: "Complete", steps: DONE, undone: UNDONE, at_node: ISOLATED, exclude: false, stripped: NONE, kept: &["app", "tier", "team"], successor: Nobody, cluster: Any },
    Row { pod: "bare, behind two Services", made_of: || vec![
            bare(json!({})), service("one", json!({ "app": "s" })), service("two", json!({ "tier": "web", "app": "s" })) ],
        said: &["No controller owns the pod"],
        phase: "Complete", steps: DONE, undone: UNDONE, at_node: ISOLATED, exclude: false, stripped: &["app", "tier"], kept: &["team"], successor: Nobody, cluster: Any },
    Row { pod: "that a policy would allow traffic", made_of: || vec![bare(json!({})), allowing()],
        said: &["No controller owns the pod"],
        phase: "Complete", steps: "DDDDD-DSDSSDS", undone: "SD-DDDDD", at_node: AtNode { steps: "DDDDD-DDDDSDS", undone: "DD-DDDDD", ..ISOLATED }, exclude: true,
        stripped: NONE, kept: &["app", "tier", "team"], successor: Nobody, cluster: Any },
    Row { pod: "where Cilium's policies are served", made_of: || vec![owner("Deployment", json!({ "replicas": 1 }))],
        said: &["replaces the pod with a new one from the same template"],
        phase: "Complete", steps: "DDD-DDDSDSSDS", undone: "SDDD-DDD", at_node: AtNode { steps: "DDD-DDDDDDSDS", undone: "DDDD-DDD", ..ISOLATED }, exclude: false,
        stripped: &["app"], kept: &["tier", "team"], successor: Elsewhere, cluster: Cilium },
    Row { pod: "on its node's network", made_of: || vec![bare(json!({ "hostNetwork": true }))],
        said: &["hostNetwork", "it is NOT cut off"],
        phase: "Failed", steps: "DDD-D-DSFSSDS", undone: UNDONE, at_node: NOT_TO_BE_TOLD, exclude: false, stripped: NONE, kept: &["app"], successor: Nobody, cluster: Any },
    Row { pod: "of a DaemonSet, on its node's network", made_of: || vec![on_node_network("DaemonSet")],
        said: &["DaemonSet s would start a new pod on the suspect node", "hostNetwork", "it is NOT cut off"],
        phase: "Failed", steps: "DDD-D-DSFSSDS", undone: UNDONE, at_node: NOT_TO_BE_TOLD, exclude: false, stripped: &["app"], kept: &["tier", "team"], successor: NotHere, cluster: Any },
    Row { pod: "selected by Exists and In", made_of: || vec![selected_by(json!([
            { "key": "app", "operator": "Exists" }, { "key": "tier", "operator": "In", "values": ["web", "db"] } ]))],
        said: &["replaces the pod"],
        phase: "Complete", steps: DONE, undone: UNDONE, at_node: ISOLATED, exclude: false, stripped: &["app", "tier"], kept: &["team"], successor: Elsewhere, cluster: Any },
    Row { pod: "selected by NotIn too", made_of: || vec![selected_by(json!([
            { "key": "app", "operator": "In", "values": ["s"] }, { "key": "status", "operator": "NotIn", "values": ["done"] } ]))],
        said: &["replaces the pod"],
        phase: "Complete", steps: DONE, undone: UNDONE, at_node: ISOLATED, exclude: false, stripped: &["app"], kept: &["tier", "team"], successor: Elsewhere, cluster: Any },
    Row { pod: "that another owner would take once stripped", made_of: || vec![
            owner("Deployment", json!({ "replicas": 1 })), grabber() ],
        said: &["ReplicaSet grabber would select it without the labels app", "is not changed", "it is NOT cut off"],
        phase: "Failed", steps: NODE_ONLY, undone: NODE_UNDONE, at_node: ALONE, exclude: false, stripped: NONE, kept: &["app"], successor: Nobody, cluster: Any },
    Row { pod: "selected by NotIn alone", made_of: || vec![selected_by(json!([
            { "key": "app", "operator": "NotIn", "values": ["other"] } ]))],
        said: &["ReplicaSet s would select it whatever label is taken off", "is not changed", "it is NOT cut off"],
        phase: "Failed", steps: NODE_ONLY, undone: NODE_UNDONE, at_node: ALONE, exclude: false, stripped: NONE, kept: &["app"], successor: Nobody, cluster: Memory },
    Row { pod: "static", made_of: || vec![mirror("0")],
        said: &["it is a static pod", "its manifest is moved away on the node itself", "is not changed", "it is NOT cut off"],
        phase: "Failed", steps: NODE_ONLY, undone: NODE_UNDONE, at_node: ALONE, exclude: false, stripped: NONE, kept: &["app"], successor: Nobody, cluster: Memory },
    Row { pod: "of a foreign controller", made_of: || vec![foreign()],
        said: &["it belongs to Rollout s", "how that controller reacts", "is not known", "take its evidence at once"],
        phase: "Failed", steps: NODE_ONLY, undone: NODE_UNDONE, at_node: ALONE, exclude: false, stripped: NONE, kept: &["app"], successor: Nobody, cluster: Memory },
    Row { pod: "terminating", made_of: || vec![bare(json!({ "terminationGracePeriodSeconds": 60 }))],
        said: &["The pod is being deleted since", "nothing in the API stops that"],
        phase: "Complete", steps: DONE, undone: UNDONE, at_node: ISOLATED, exclude: false, stripped: NONE, kept: &["app"], successor: Nobody, cluster: SlowEnd },
    Row { pod: "terminating, of a ReplicaSet that is gone", made_of: || vec![slow_to_end("ReplicaSet")],
        said: &["The pod is being deleted since", "ReplicaSet s does not exist any more", "garbage collection deletes it"],
        phase: "Complete", steps: DONE, undone: UNDONE, at_node: ISOLATED, exclude: false, stripped: NONE, kept: &["app"], successor: Nobody, cluster: OwnerGone },
    Row { pod: "not yet running", made_of: || vec![bare(json!({}))],
        said: &["The pod does not run yet: there may be no container to collect from"],
        phase: "Complete", steps: DONE, undone: UNDONE, at_node: NO_SANDBOX, exclude: false, stripped: NONE, kept: &["app"], successor: Nobody, cluster: NoKubelet },
    Row { pod: "not yet scheduled", made_of: || vec![bare(json!({ "nodeSelector": { "no": "such-node" } }))],
        said: &["is not scheduled to a node yet (phase Pending)"],
        phase: "Refused", steps: REFUSED, undone: "", at_node: NOTHING, exclude: false, stripped: NONE, kept: &["app"], successor: Nobody, cluster: NoKubelet },
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_pod_is_warned_of_and_handled_as_the_table_says() {
    // Rows of a real cluster would disturb each other's nodes.
    let at_once = if std::env::var_os("KUBECONFIG").is_some() {
        1
    } else {
        3
    };
    check_all(Agent::None, at_once).await;
}

/// The agent is one that the test plays: what the real one does is shown on real containers (`isolation`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_pod_is_isolated_and_proved_to_be_by_its_nodes_agent_as_the_table_says() {
    check_all(Agent::Isolates, 3).await;
}

async fn check_all(agent: Agent, at_once: usize) {
    let checked: Vec<Vec<String>> = futures::stream::iter(ROWS)
        .map(|row| async move { (tokio::spawn(judged(row, agent)).await).unwrap() })
        .buffered(at_once)
        .collect()
        .await;
    let wrong: Vec<String> = checked.into_iter().flatten().collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What is not as the row says; it is run again where the machine was too slow for the connections before the
/// isolation, without which nothing is proved.
async fn judged(row: &'static Row, agent: Agent) -> Vec<String> {
    for _ in 0..5 {
        if let Ok(wrong) = check(row, agent).await {
            return wrong;
        }
    }
    vec![format!(
        "pod {}: no connection was tried in time before the isolation",
        row.pod
    )]
}

struct TooSlow;

/// Whether the suspect's node has an agent.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Agent {
    None,
    Isolates,
}

/// The row's cluster, without a controller.
async fn cluster(row: &Row, agent: Agent) -> World {
    let config = ClusterConfig::default();
    let world = match row.cluster {
        Any if agent == Agent::None => return World::without_controller().await,
        Any | Memory | Cilium => World::in_memory_of(config).await,
        SlowEnd | OwnerGone => {
            let termination = std::time::Duration::from_secs(40);
            World::in_memory_of(ClusterConfig {
                termination,
                ..config
            })
            .await
        }
        NoKubelet => {
            let instant_kubelet = false;
            World::in_memory_of(ClusterConfig {
                instant_kubelet,
                ..config
            })
            .await
        }
    };
    if row.cluster == Cilium {
        world.serve_cilium().await;
    }
    world
}

/// Starts the agent of a pod's node, and tells the controller to have it isolate.
async fn serve_agent(world: &mut World, row: &Row, suspect: &Pod) -> FakeAgent {
    let node = suspect
        .spec
        .as_ref()
        .and_then(|spec| spec.node_name.clone());
    let node = match node {
        Some(node) => node,
        None => {
            let nodes = Api::<Node>::all(world.client.clone());
            let nodes = nodes.list(&ListParams::default()).await.unwrap();
            nodes.items[0].metadata.name.clone().unwrap()
        }
    };
    let agent = FakeAgent::new(&node);
    if row.at_node.steps == NO_SANDBOX.steps {
        for _ in 0..100 {
            for call in ["isolate", "probe"] {
                agent.fail(call, Fault::Status(tonic::Code::NotFound));
            }
        }
    }
    let pki = world.dir.path().join("pki/agents").join(&node);
    let (port, _server) = agent.serve(&pki).await;
    world.about_agents = vec!["--agent-port".into(), port.to_string()];
    agent
}

/// What is not as the row says.
async fn check(row: &'static Row, agent: Agent) -> Result<Vec<String>, TooSlow> {
    let mut world = cluster(row, agent).await;
    let expected = match agent {
        Agent::Isolates => row.at_node,
        Agent::None => AtNode {
            phase: row.phase,
            verdict: match row.phase {
                "Refused" => "",
                "Failed" => "NotContained",
                _ => "Contained",
            },
            steps: row.steps,
            undone: row.undone,
        },
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
    let agent = match agent {
        Agent::None => None,
        Agent::Isolates => Some(serve_agent(&mut world, row, &suspect).await),
    };
    world.start_controller().await;
    if row.cluster == SlowEnd {
        let api = Api::<Pod>::namespaced(world.client.clone(), &world.namespace);
        api.delete(&name(&suspect), &DeleteParams::default())
            .await
            .unwrap();
    }
    if row.cluster == OwnerGone {
        let api = Api::<ReplicaSet>::namespaced(world.client.clone(), &world.namespace);
        let background = DeleteParams::background();
        api.delete("s", &background).await.unwrap();
        eventually("its pods go with it", || async {
            let pod = world.pod(&name(&suspect)).await;
            match pod.metadata.deletion_timestamp {
                Some(_) => Ok(()),
                None => Err("not yet".to_owned()),
            }
        })
        .await;
    }

    let before = Before::of(&world, &suspect).await;
    let mut request = world.request(&name(&suspect));
    request.dry_run = true;
    request.exclude_from_policies = row.exclude;
    let mut alice = world.responder("alice").await;
    let said = match alice.create_quarantine(request).await {
        Ok(answer) => answer.into_inner().plan.unwrap().warnings.join("\n"),
        Err(refusal) => refusal.message().to_owned(),
    };
    world
        .create(json!({
            "apiVersion": "impound.dev/v1alpha1", "kind": "Quarantine", "metadata": { "name": "q" },
            "spec": { "pod": name(&suspect), "case": "INC-1", "reason": "x", "skipCollection": true,
                "excludeFromPolicies": row.exclude, "keepNeighbours": world.is_real() },
        }))
        .await;
    let done = world.settled("q").await;
    let late = "nothing was tried before the isolation";
    if expected.verdict == "Isolated" && done.facts.iter().any(|fact| fact.message.contains(late)) {
        return Err(TooSlow);
    }

    let mut wrong = Vec::new();
    let mut expect = |holds: bool, what: String| {
        if !holds {
            wrong.push(format!("pod {}: {what}", row.pod));
        }
    };
    for words in row.said {
        let words = match *words {
            NOT_CUT_OFF if agent.is_some() && row.steps == NODE_ONLY => BY_TABLE,
            words => words,
        };
        expect(
            said.contains(words),
            format!("{words:?} is not said in\n{said}"),
        );
    }
    expect(
        (done.phase.as_str(), done.verdict.as_str()) == (expected.phase, expected.verdict),
        format!("{}, {}: {}", done.phase, done.verdict, done.message),
    );
    let steps = letters(&done, &STEPS);
    let mut wanted = expected.steps.to_owned();
    if world.is_real() && row.phase != "Refused" {
        // There the neighbours stay: they are others'.
        wanted.replace_range(EVICT..=EVICT, "S");
    }
    expect(steps == wanted, format!("steps {steps}: {:#?}", done.steps));
    if let Some(agent) = &agent {
        let isolated = agent.state.lock().unwrap().isolated;
        let is_done = expected.steps.as_bytes()[ISOLATE] == b'D';
        expect(
            isolated == is_done,
            format!("the table is there: {isolated}"),
        );
        let calls = agent.calls();
        let asked = calls.iter().any(|call| call.starts_with("isolate "));
        let may_ask = is_done || row.at_node.steps == NO_SANDBOX.steps;
        expect(asked == may_ask, format!("the agent was asked: {calls:?}"));
    }
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
        expect(world.effects().is_empty(), "something was changed".into());
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
        let begins = match agent {
            None => "NOT contained",
            Some(_) => "isolated at its node, and there alone",
        };
        expect(done.message.starts_with(begins), done.message.clone());
    } else {
        expect(
            label(&now, "status").as_deref() == Some("suspectpod"),
            "it is not labelled".into(),
        );
        // Nobody is there to take a reference off that leads nowhere.
        expect(
            now.metadata.owner_references.is_none() || row.cluster == OwnerGone,
            "it is owned".into(),
        );
    }
    // A replacement is there at once, and has a node a moment later.
    let others = eventually("the other pods have nodes", || async {
        let mut others = world.pods("team=red").await;
        others.retain(|pod| pod.metadata.uid != suspect.metadata.uid);
        let waiting = others.iter().filter(|pod| {
            let spec = pod.spec.as_ref();
            spec.is_none_or(|spec| spec.node_name.is_none())
        });
        match waiting.count() {
            0 => Ok(others),
            some => Err(format!("{some} of {} have none", others.len())),
        }
    })
    .await;
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
    let places: Vec<_> = others
        .iter()
        .map(|pod| pod.spec.as_ref()?.node_name.clone())
        .collect();
    expect(
        successor,
        format!(
            "expected successor {:?}, there are {places:?}",
            row.successor
        ),
    );
    if row.phase == "Refused" {
        for differs in before.compared(&world, &now).await {
            expect(false, differs);
        }
        return Ok(wrong);
    }
    let released = release(&world).await;
    expect(
        released.phase == "Released",
        format!("released: {}: {}", released.phase, released.message),
    );
    let undone = letters(&released, &RELEASE);
    expect(
        undone == expected.undone,
        format!("undone {undone}: {:#?}", released.steps),
    );
    if let Some(agent) = &agent {
        let isolated = agent.state.lock().unwrap().isolated;
        expect(!isolated, "the table is still there".into());
    }
    let restored = if row.steps == NODE_ONLY {
        expect(released.message == "released", released.message.clone());
        world.pod(&name(&suspect)).await
    } else {
        last_seen(&world, &now).await
    };
    for differs in before.compared(&world, &restored).await {
        expect(false, format!("after the release: {differs}"));
    }
    Ok(wrong)
}

/// The state of each step as one letter.
fn letters(quarantine: &Quarantine, steps: &[StepName]) -> String {
    let letter = |step: &StepName| {
        let state = state(quarantine, &step.to_string());
        state.chars().next().unwrap_or('-')
    };
    steps.iter().map(letter).collect()
}

#[tokio::test]
async fn a_replication_controllers_pod_is_planned_as_one_that_is_replaced() {
    let world = World::start().await;
    let template = json!({
        "metadata": { "labels": { "app": "old" } },
        "spec": { "terminationGracePeriodSeconds": 1, "containers": [container("c")] },
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
    if !world.runs_containers() {
        // Nobody plays its controller there, which makes the pod in a real cluster.
        let mut pod = json!({ "apiVersion": "v1", "kind": "Pod", "spec": template["spec"] });
        pod["metadata"] =
            json!({ "name": "old-1", "labels": { "app": "old" }, "ownerReferences": [reference] });
        world.create(pod).await;
    }
    let pods = world.running("app=old", 1).await;
    let mut request = world.request(&name(pods.first().unwrap()));
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
