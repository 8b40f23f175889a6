//! Sweeps: the evidence of many pods, listed once, each collected once, within bounds, and nothing left unnamed.

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt as _;
use impound_controller::resources::Sweep as Object;
use impound_controller::resources::sweep::SWEEP_LABEL;
use impound_controller::resources::{
    Collection, CollectionPhase, Selection, SweepRoster, SweepSpec, SweepState,
};
use impound_proto::controller::v1::controller_client::ControllerClient;
use impound_proto::controller::v1::{
    CreateSweepRequest, GetSweepRequest, ListSweepTargetsRequest, PodSelection, SetSweepRequest,
    Sweep, SweepPlan, SweepTarget, WatchSweepRequest,
};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube_memory::{ClusterConfig, Effect, Fault};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::Code;
use tonic::transport::Channel;

use super::agent::FakeAgent;
use super::refusals::LOW_ORDER;
use super::world::{CONTROLLER, World, container, eventually, free_port};

mod faults;
mod shared;
mod silent;
mod wishes;

const NODES: [(&str, &str); 3] = [
    ("worker1", "127.0.0.1"),
    ("worker2", "127.0.0.2"),
    ("worker3", "127.0.0.3"),
];

/// Three nodes with their agents, and pods with the label `app=web` on each.
struct Fleet {
    world: World,
    agents: Vec<FakeAgent>,
    servers: Vec<JoinHandle<()>>,
    pods: BTreeMap<String, String>,
    alice: tokio::sync::OnceCell<ControllerClient<Channel>>,
}

impl Fleet {
    /// With so many pods on each node, and no controller yet.
    async fn new(pods: usize) -> Self {
        Self::beside(&[], free_port(), pods).await
    }

    /// The same with further nodes, `name=ip`, which have no agents at this port.
    async fn beside(further: &[String], port: u16, pods: usize) -> Self {
        let nodes = NODES.map(|(node, ip)| format!("{node}={ip}"));
        let mut world = World::in_memory_of(ClusterConfig {
            nodes: [&nodes, further].concat(),
            ..ClusterConfig::default()
        })
        .await;
        let (mut agents, mut servers) = (Vec::new(), Vec::new());
        for (node, ip) in NODES {
            let agent = FakeAgent::new(node);
            let tls = world.dir.path().join("pki/agents").join(node);
            let listener = TcpListener::bind((ip, port)).await.unwrap();
            servers.push(agent.serve_at(&tls, listener));
            agents.push(agent);
        }
        world.about_agents = ["--agent-port", &port.to_string(), "--agent-patience", "1"]
            .map(String::from)
            .to_vec();
        let mut fleet = Self {
            world,
            agents,
            servers,
            pods: BTreeMap::new(),
            alice: tokio::sync::OnceCell::new(),
        };
        for number in 1..=pods {
            for at in 0..NODES.len() {
                fleet.add(&format!("web-{}-{number}", at + 1), at).await;
            }
        }
        fleet
    }

    async fn started(pods: usize) -> Self {
        let mut fleet = Self::new(pods).await;
        fleet.world.start_controller().await;
        fleet
    }

    /// A pod on a node, with a container there.
    async fn add(&mut self, name: &str, at: usize) {
        let uid = self.world.create(pod(name, NODES[at].0)).await;
        let pod = (self.world.namespace.as_str(), name, uid.as_str());
        self.agents[at].add(pod, "c", 0, 3_000);
        self.pods.insert(name.to_owned(), uid);
    }

    fn slow(&self, slow: bool) {
        for agent in &self.agents {
            agent.state.lock().unwrap().slow = slow;
        }
    }

    fn request(&self) -> CreateSweepRequest {
        CreateSweepRequest {
            name: "hunt".into(),
            select: Some(PodSelection {
                namespaces: vec![self.world.namespace.clone()],
                labels: "app=web".into(),
                ..Default::default()
            }),
            case_id: "INC-1".into(),
            reason: "same image".into(),
            ..Default::default()
        }
    }

    /// One connection, which is opened again by itself when the controller is another one.
    async fn alice(&self) -> ControllerClient<Channel> {
        let connected = self.alice.get_or_init(|| self.world.responder("alice"));
        connected.await.clone()
    }

    async fn start(&self, request: CreateSweepRequest) -> Sweep {
        let mut alice = self.alice().await;
        let made = alice.create_sweep(request).await.unwrap();
        made.into_inner().sweep.unwrap()
    }

    async fn set(&self, state: &str) -> Sweep {
        let request = SetSweepRequest {
            name: "hunt".into(),
            state: state.into(),
            reason: "as the test wants".into(),
        };
        let mut alice = self.alice().await;
        alice.set_sweep(request).await.unwrap().into_inner()
    }

    async fn now(&self) -> Result<Sweep, tonic::Status> {
        let request = GetSweepRequest {
            name: "hunt".into(),
        };
        let mut alice = self.alice().await;
        Ok(alice.get_sweep(request).await?.into_inner())
    }

    async fn becomes(&self, what: &str, is: impl Fn(&Sweep) -> bool) -> Sweep {
        eventually(what, || async {
            let now = self.now().await.map_err(|status| status.to_string())?;
            if is(&now) {
                Ok(now)
            } else {
                Err(format!("{now:#?}"))
            }
        })
        .await
    }

    /// The last state that a watch shows.
    async fn ended(&self) -> Sweep {
        self.becomes("the sweep ends", |now| {
            ["Complete", "Partial", "Cancelled", "Refused"].contains(&&*now.phase)
        })
        .await;
        let mut alice = self.alice().await;
        let request = WatchSweepRequest {
            name: "hunt".into(),
        };
        let mut changes = alice.watch_sweep(request).await.unwrap().into_inner();
        let mut last = None;
        while let Some(change) = changes.message().await.unwrap() {
            last = Some(change);
        }
        last.unwrap()
    }

    async fn targets(&self) -> Vec<SweepTarget> {
        let mut alice = self.alice().await;
        let request = ListSweepTargetsRequest {
            name: "hunt".into(),
        };
        let mut answers = alice
            .list_sweep_targets(request)
            .await
            .unwrap()
            .into_inner();
        let mut all = Vec::new();
        while let Some(some) = answers.message().await.unwrap() {
            all.extend(some.targets);
        }
        all
    }

    async fn collections(&self) -> Vec<Collection> {
        let all = Api::<Collection>::all(self.world.client.clone());
        all.list(&ListParams::default()).await.unwrap().items
    }

    /// The case's custody log.
    fn log(&self) -> Vec<Value> {
        let log = self
            .world
            .dir
            .path()
            .join("store/INC-1/custody/custody.jsonl");
        let log = std::fs::read_to_string(log).unwrap();
        log.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// Every pod's collection is there once, sealed, and asked for by whom the sweep was.
    async fn all_is_sealed(&self, ended: &Sweep) {
        let all = u32::try_from(self.pods.len()).unwrap();
        assert_eq!(ended.phase, "Complete", "{ended:#?}");
        assert_eq!(ended.counts.unwrap().sealed, all, "{ended:#?}");
        assert_eq!(ended.message, format!("all {all} sealed and complete"));
        assert!(ended.bytes > 0 && ended.finished.is_some());
        let collections = self.collections().await;
        let pods: BTreeSet<_> = collections
            .iter()
            .map(|one| (one.spec.pod.clone(), one.spec.pod_uid.clone().unwrap()))
            .collect();
        assert_eq!(pods, self.pods.clone().into_iter().collect());
        assert_eq!(collections.len(), pods.len(), "one for each");
        for one in &collections {
            let status = one.status.as_ref().unwrap();
            assert_eq!(status.phase, CollectionPhase::Sealed, "{one:#?}");
            assert_eq!(one.labels()[SWEEP_LABEL], "hunt");
            assert_eq!(one.owner_references()[0].name, "hunt");
        }
        let requested = self.log();
        let begun = |entry: &&Value| {
            let what = entry["what"].as_str().unwrap();
            let wish = what.contains(" sweep hunt (uid ");
            entry["event"] == "requested" && !wish
        };
        let requested: Vec<_> = requested.iter().filter(begun).collect();
        assert_eq!(requested.len(), self.pods.len() + 1, "and of the sweep");
        for entry in requested {
            assert!(entry["claimed"] != true, "{entry:#}");
            assert!(entry["certificate_sha256"].is_string(), "{entry:#}");
        }
        for target in self.targets().await {
            assert_eq!(
                (target.state.as_str(), target.message.as_str()),
                ("Sealed", "")
            );
            let manifest = format!(
                "store/{}/{}/manifest.sigstore.json",
                target.case_id, target.collection
            );
            assert!(self.world.dir.path().join(&manifest).exists(), "{manifest}");
        }
    }
}

fn pod(name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "labels": { "app": "web" } },
        "spec": { "nodeName": node, "terminationGracePeriodSeconds": 0, "containers": [container("c")] },
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_pod_is_collected_once_within_the_bounds_and_one_that_is_added_later_is_not() {
    let fleet = Fleet::started(2).await;
    fleet.slow(true);
    fleet.start(fleet.request()).await;
    let busy = fleet
        .becomes("every node is at work", |now| {
            now.counts.unwrap().running == 3
        })
        .await;
    assert_eq!((busy.targets, busy.nodes, busy.namespaces), (6, 3, 1));
    let later = pod("web-later", NODES[0].0);
    fleet.world.create(later).await;
    let begun = fleet.collections().await;
    let nodes: BTreeSet<_> = begun.iter().map(|one| one.spec.node.clone()).collect();
    assert_eq!((begun.len(), nodes.len()), (3, 3), "one on each node");
    fleet.slow(false);
    let ended = fleet.ended().await;
    fleet.all_is_sealed(&ended).await;
    for agent in &fleet.agents {
        let most = &agent.state.lock().unwrap().sending;
        assert_eq!(most.most.load(std::sync::atomic::Ordering::SeqCst), 1);
    }
    // Nothing is contained.
    let changes = fleet.world.changes();
    assert!(changes.is_empty(), "{changes:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_collections_are_under_way_than_are_allowed() {
    let fleet = Fleet::started(3).await;
    fleet.slow(true);
    let request = CreateSweepRequest {
        at_once: 4,
        per_node: 2,
        ..fleet.request()
    };
    fleet.start(request).await;
    fleet
        .becomes("as many as allowed are at work", |now| {
            now.counts.unwrap().running == 4
        })
        .await;
    let begun = fleet.collections().await;
    let mut on_node = BTreeMap::<_, usize>::new();
    for one in &begun {
        *on_node.entry(one.spec.node.clone().unwrap()).or_default() += 1;
    }
    assert_eq!(begun.len(), 4);
    assert!(on_node.values().all(|count| *count <= 2), "{on_node:?}");
    fleet.slow(false);
    let ended = fleet.ended().await;
    fleet.all_is_sealed(&ended).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whenever_the_controller_dies_every_pod_of_the_first_list_is_collected_once() {
    for (method, path, nth) in [
        ("POST", "/sweeprosters", 1),
        ("PATCH", "/sweeps/hunt/status", 1),
        ("POST", "/collections", 1),
        ("POST", "/collections", 4),
        ("PATCH", "/sweeps/hunt/status", 2),
    ] {
        let mut fleet = Fleet::started(2).await;
        let fault = Fault::new(Effect::HangAfter)
            .by(CONTROLLER)
            .on(method, path);
        let hanging = fleet.world.api().inject(fault.nth(nth));
        fleet.start(fleet.request()).await;
        hanging.hung().await;
        fleet.world.kill_controller();
        if path != "/sweeprosters" {
            // The list was recorded, and this one is not on it.
            fleet.world.create(pod("web-later", NODES[0].0)).await;
        }
        fleet.world.expire_lease().await;
        fleet.world.start_controller().await;
        let ended = fleet.ended().await;
        fleet.all_is_sealed(&ended).await;
        let requests = fleet.world.requests();
        let made = requests.iter().filter(|request| {
            request.method == "POST"
                && request.path.contains("/collections")
                && request.status == 201
        });
        assert_eq!(made.count(), fleet.pods.len(), "{method} {path} {nth}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_sweep_begins_nothing_and_a_cancelled_one_names_what_it_did_not_take() {
    let fleet = Fleet::started(2).await;
    fleet.slow(true);
    let request = CreateSweepRequest {
        at_once: 1,
        ..fleet.request()
    };
    fleet.start(request).await;
    fleet
        .becomes("the first is under way", |now| {
            now.counts.unwrap().running == 1
        })
        .await;
    fleet.set("Paused").await;
    fleet
        .becomes("it is paused", |now| now.phase == "Paused")
        .await;
    fleet.slow(false);
    let paused = fleet
        .becomes("what was under way ends", |now| {
            now.counts.unwrap().sealed == 1
        })
        .await;
    assert_eq!(paused.counts.unwrap().waiting, 5);
    assert_eq!(fleet.collections().await.len(), 1, "nothing more is begun");

    fleet.slow(true);
    fleet.set("Running").await;
    fleet
        .becomes("the second is under way", |now| {
            now.counts.unwrap().running == 1
        })
        .await;
    fleet.set("Cancelled").await;
    fleet
        .becomes("the rest is named", |now| {
            now.counts.unwrap().cancelled == 4
        })
        .await;
    fleet.slow(false);
    let ended = fleet.ended().await;
    assert_eq!(ended.phase, "Cancelled", "{ended:#?}");
    assert_eq!(
        ended.message,
        "2 of 6 sealed, 4 not begun before it was cancelled"
    );
    assert_eq!(ended.exceptions.len(), 4);
    let states: Vec<_> = fleet
        .targets()
        .await
        .into_iter()
        .map(|one| one.state)
        .collect();
    assert_eq!(
        states.iter().filter(|state| *state == "Cancelled").count(),
        4,
        "{states:?}"
    );
    let log = fleet.log();
    let said = |event: &str, what: &str| {
        let is = |entry: &&Value| {
            entry["event"] == event && entry["what"].as_str().unwrap().contains(what)
        };
        log.iter().filter(is).count()
    };
    for wish in ["pause sweep hunt", "resume sweep hunt", "cancel sweep hunt"] {
        assert_eq!(said("authorised", wish), 1, "{wish}");
        assert_eq!(said("requested", wish), 1, "{wish}");
    }
    assert!(log.iter().all(|entry| entry["claimed"] != true), "{log:#?}");
    assert_eq!(said("failed", "sweep hunt: pod"), 4);
    let again = SetSweepRequest {
        name: "hunt".into(),
        state: "Running".into(),
        reason: "after all".into(),
    };
    let mut alice = fleet.world.responder("alice").await;
    let refused = alice.set_sweep(again).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_not_begun_when_a_sweep_expires_is_not_begun_and_named() {
    let fleet = Fleet::started(1).await;
    fleet.slow(true);
    let expires = std::time::SystemTime::now() + std::time::Duration::from_secs(8);
    let request = CreateSweepRequest {
        at_once: 1,
        expires: Some(expires.into()),
        ..fleet.request()
    };
    fleet.start(request).await;
    fleet
        .becomes("the first is under way", |now| {
            now.counts.unwrap().running == 1
        })
        .await;
    fleet
        .becomes("the rest expires", |now| now.counts.unwrap().expired == 2)
        .await;
    fleet.slow(false);
    let ended = fleet.ended().await;
    assert_eq!(ended.phase, "Partial", "{ended:#?}");
    assert_eq!(
        ended.message,
        "Partial: 1 of 3 sealed, 2 not begun before it expired"
    );
    assert_eq!(fleet.collections().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_away_keeps_nobody_waiting_and_its_pods_are_named() {
    let mut fleet = Fleet::started(2).await;
    let server = fleet.servers.remove(1);
    server.abort();
    let _ = server.await;
    let request = CreateSweepRequest {
        at_once: 1,
        ..fleet.request()
    };
    fleet.start(request).await;
    let ended = fleet.ended().await;
    assert_eq!(ended.phase, "Partial", "{ended:#?}");
    let counts = ended.counts.unwrap();
    assert_eq!((counts.sealed, counts.failed), (4, 2), "{ended:#?}");
    assert!(
        ended
            .message
            .starts_with("Partial: 4 of 6 sealed, 2 failed: "),
        "{}",
        ended.message
    );
    for one in &ended.exceptions {
        assert_eq!(
            (one.node.as_str(), one.state.as_str()),
            ("worker2", "Failed")
        );
        assert!(
            one.message.contains("no agent answered on node worker2"),
            "{one:?}"
        );
    }
    assert_eq!(fleet.collections().await.len(), 4, "none for those");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_is_gone_or_another_one_by_its_turn_is_named() {
    let mut fleet = Fleet::started(2).await;
    fleet.slow(true);
    let request = CreateSweepRequest {
        at_once: 1,
        ..fleet.request()
    };
    fleet.start(request).await;
    fleet
        .becomes("the first is under way", |now| {
            now.counts.unwrap().running == 1
        })
        .await;
    let pods = Api::<Pod>::namespaced(fleet.world.client.clone(), &fleet.world.namespace);
    for name in ["web-2-2", "web-3-2"] {
        pods.delete(name, &DeleteParams::default().grace_period(0))
            .await
            .unwrap();
        eventually("it is gone", || async {
            match pods.get_opt(name).await.unwrap() {
                None => Ok(()),
                Some(_) => Err("not yet".to_owned()),
            }
        })
        .await;
    }
    fleet.add("web-3-2", 2).await;
    fleet.slow(false);
    let ended = fleet.ended().await;
    assert_eq!(ended.phase, "Partial", "{ended:#?}");
    let counts = ended.counts.unwrap();
    assert_eq!((counts.sealed, counts.absent), (4, 2), "{ended:#?}");
    let said: BTreeMap<_, _> = ended
        .exceptions
        .iter()
        .map(|one| (one.pod.as_str(), one.message.as_str()))
        .collect();
    assert_eq!(said["web-2-2"], "the pod was gone before its turn");
    assert!(said["web-3-2"].contains("another has its name"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collection_that_somebody_deletes_is_named_and_not_made_again() {
    let fleet = Fleet::started(1).await;
    fleet.slow(true);
    fleet.start(fleet.request()).await;
    fleet
        .becomes("all are under way", |now| now.counts.unwrap().running == 3)
        .await;
    let one = fleet.collections().await.remove(0);
    let api = Api::<Collection>::namespaced(fleet.world.client.clone(), &fleet.world.namespace);
    api.delete(&one.name_any(), &DeleteParams::default())
        .await
        .unwrap();
    fleet
        .becomes("it is noticed", |now| now.counts.unwrap().failed == 1)
        .await;
    fleet.slow(false);
    let ended = fleet.ended().await;
    assert_eq!(ended.phase, "Partial", "{ended:#?}");
    assert!(
        ended.exceptions[0].message.contains("was deleted"),
        "{ended:#?}"
    );
    assert_eq!(fleet.collections().await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_are_selected_by_everything_that_is_given_and_a_plan_changes_nothing() {
    let fleet = Fleet::started(2).await;
    let world = &fleet.world;
    let owned = world.deployment("api", 2, None).await;
    let nodes = Api::<k8s_openapi::api::core::v1::Node>::all(world.client.clone());
    let zone = Patch::Merge(json!({ "metadata": { "labels": { "zone": "a" } } }));
    nodes
        .patch("worker2", &PatchParams::default(), &zone)
        .await
        .unwrap();
    let mut alice = world.responder("alice").await;
    let mut plan = async |select: PodSelection| -> Result<SweepPlan, tonic::Status> {
        let request = CreateSweepRequest {
            select: Some(select),
            dry_run: true,
            ..fleet.request()
        };
        let answer = alice.create_sweep(request).await?.into_inner();
        assert!(answer.sweep.is_none());
        Ok(answer.plan.unwrap())
    };
    let here = PodSelection {
        namespaces: vec![world.namespace.clone()],
        ..Default::default()
    };
    let all = plan(here.clone()).await.unwrap();
    assert_eq!(all.targets, 8);
    assert_eq!(all.cases, ["INC-1"]);
    assert_eq!(all.nodes.iter().map(|share| share.targets).sum::<u32>(), 8);
    let labels = PodSelection {
        labels: "app in (web),app!=x".into(),
        ..here.clone()
    };
    assert_eq!(plan(labels).await.unwrap().targets, 6);
    let node = PodSelection {
        labels: "app=web".into(),
        node_labels: "zone=a".into(),
        ..here.clone()
    };
    let found = plan(node).await.unwrap();
    assert_eq!(
        (found.targets, found.nodes[0].name.as_str()),
        (2, "worker2")
    );
    let owner = PodSelection {
        owner: "deployment/api".into(),
        ..here.clone()
    };
    assert_eq!(plan(owner).await.unwrap().targets as usize, owned.len());
    let image = container("c")["image"].as_str().unwrap().to_owned();
    let everywhere = PodSelection {
        all_namespaces: true,
        images: vec![image],
        ..Default::default()
    };
    assert_eq!(plan(everywhere).await.unwrap().targets, 8);
    for (wrong, code, says) in [
        (
            PodSelection {
                labels: "app=nothing".into(),
                ..here.clone()
            },
            Code::FailedPrecondition,
            "no pod is selected",
        ),
        (
            PodSelection {
                labels: "=".into(),
                ..here.clone()
            },
            Code::FailedPrecondition,
            "selector \"=\"",
        ),
        (
            PodSelection {
                namespaces: vec!["nowhere".into()],
                ..Default::default()
            },
            Code::FailedPrecondition,
            "namespace nowhere does not exist",
        ),
        (
            PodSelection {
                owner: "CronJob/none".into(),
                ..here.clone()
            },
            Code::FailedPrecondition,
            "no pod is selected",
        ),
        (
            PodSelection {
                images: vec!["sha256:1".into()],
                ..here.clone()
            },
            Code::FailedPrecondition,
            "64 hexadecimal",
        ),
        (
            PodSelection::default(),
            Code::InvalidArgument,
            "name the namespaces",
        ),
    ] {
        let refused = plan(wrong).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
        assert!(refused.message().contains(says), "{refused}");
    }
    let sweeps = Api::<Object>::all(world.client.clone());
    assert!(
        sweeps
            .list(&ListParams::default())
            .await
            .unwrap()
            .items
            .is_empty()
    );
    let mut eve = world.responder("eve").await;
    let refused = eve.create_sweep(fleet.request()).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
}

fn object(namespace: &str, state: SweepState) -> Object {
    Object::new(
        "hunt",
        SweepSpec {
            select: Selection {
                namespaces: vec![namespace.to_owned()],
                ..Selection::default()
            },
            case: "INC-1".into(),
            reason: "same image".into(),
            at_once: 16,
            per_node: 1,
            state,
            ..SweepSpec::default()
        },
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_that_is_made_with_kubectl_is_checked_and_its_requester_only_claimed() {
    let fleet = Fleet::started(1).await;
    let api = Api::<Object>::all(fleet.world.client.clone());
    let refused = async |change: Value| {
        let mut object = json!(object(&fleet.world.namespace, SweepState::Running));
        let (path, value) = change.as_object().unwrap().iter().next().unwrap();
        let (parent, field) = path.rsplit_once('/').unwrap();
        object.pointer_mut(parent).unwrap()[field] = value.clone();
        let object: kube::api::DynamicObject = serde_json::from_value(object).unwrap();
        let resource = kube::core::ApiResource::erase::<Object>(&());
        let api = Api::<kube::api::DynamicObject>::all_with(fleet.world.client.clone(), &resource);
        api.create(&PostParams::default(), &object)
            .await
            .unwrap_err()
            .to_string()
    };
    for (change, says) in [
        (
            json!({ "/spec/select/allNamespaces": true }),
            "name the namespaces, or set allNamespaces, and not both",
        ),
        (
            json!({ "/spec/select": {} }),
            "name the namespaces, or set allNamespaces, and not both",
        ),
        (json!({ "/spec/atOnce": 0 }), "spec.atOnce"),
        (json!({ "/spec/case": "c".repeat(60) }), "spec.case"),
        (json!({ "/spec/select/owner": "web" }), "spec.select.owner"),
    ] {
        let refusal = refused(change.clone()).await;
        assert!(refusal.contains(says), "{change}: {refusal}");
    }
    let made = object(&fleet.world.namespace, SweepState::Paused);
    api.create(&PostParams::default(), &made).await.unwrap();
    fleet
        .becomes("it is listed", |now| now.phase == "Paused")
        .await;
    let patch = async |spec: Value| {
        let patch = Patch::Merge(json!({ "spec": spec }));
        api.patch("hunt", &PatchParams::default(), &patch).await
    };
    for wrong in [
        json!({ "select": { "labels": "app=web" } }),
        json!({ "case": "INC-2" }),
        json!({ "requestedBy": "somebody" }),
    ] {
        let refusal = patch(wrong).await.unwrap_err().to_string();
        assert!(
            refusal.contains("only state, atOnce, perNode and expires"),
            "{refusal}"
        );
    }
    patch(json!({ "atOnce": 2, "state": "Running" }))
        .await
        .unwrap();
    let ended = fleet.ended().await;
    assert_eq!(ended.phase, "Complete", "{ended:#?}");
    let log = fleet.log();
    let requested: Vec<_> = log
        .iter()
        .filter(|entry| entry["event"] == "requested")
        .collect();
    // Of the sweep, that it begins paused, that it goes on, and of each pod.
    assert_eq!(requested.len(), 6, "{requested:#?}");
    assert!(
        requested.iter().all(|entry| entry["claimed"] == true),
        "{requested:#?}"
    );
    let rosters = Api::<SweepRoster>::all(fleet.world.client.clone());
    let roster = rosters
        .list(&ListParams::default())
        .await
        .unwrap()
        .items
        .remove(0);
    let change = Patch::Merge(json!({ "spec": { "targets": [] } }));
    let refusal = rosters
        .patch(&roster.name_any(), &PatchParams::default(), &change)
        .await;
    let refusal = refusal.unwrap_err().to_string();
    assert!(
        refusal.contains("the list of a sweep can't be changed"),
        "{refusal}"
    );
    api.delete("hunt", &DeleteParams::default()).await.unwrap();
    eventually("its list goes with it", || async {
        match rosters
            .list(&ListParams::default())
            .await
            .unwrap()
            .items
            .len()
        {
            0 => Ok(()),
            left => Err(format!("{left} are left")),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_somebody_deletes_ends_the_sweep_which_says_so() {
    let fleet = Fleet::started(1).await;
    let api = Api::<Object>::all(fleet.world.client.clone());
    let made = object(&fleet.world.namespace, SweepState::Paused);
    api.create(&PostParams::default(), &made).await.unwrap();
    fleet
        .becomes("it is listed", |now| now.phase == "Paused")
        .await;
    let rosters = Api::<SweepRoster>::all(fleet.world.client.clone());
    let all = rosters.list(&ListParams::default()).await.unwrap().items;
    let roster = all[0].name_any();
    let gone = DeleteParams::default();
    rosters.delete(&roster, &gone).await.unwrap();
    let go_on = Patch::Merge(json!({ "spec": { "state": "Running" } }));
    let patched = api.patch("hunt", &PatchParams::default(), &go_on).await;
    patched.unwrap();
    let ended = fleet.ended().await;
    assert_eq!(ended.phase, "Partial", "{ended:#?}");
    assert!(
        ended.message.contains("its list was deleted in part"),
        "{ended:#?}"
    );
    assert!(ended.message.contains(&roster), "{ended:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_that_nobody_could_decrypt_is_refused_as_a_whole() {
    let mut fleet = Fleet::new(1).await;
    let api = Api::<Object>::all(fleet.world.client.clone());
    let mut wrong = object(&fleet.world.namespace, SweepState::Running);
    wrong.spec.encrypt_to = vec![LOW_ORDER.into()];
    api.create(&PostParams::default(), &wrong).await.unwrap();
    fleet.world.start_controller().await;
    let ended = fleet.ended().await;
    assert_eq!(ended.phase, "Refused", "{ended:#?}");
    let says = "encryptTo: expected the public key";
    assert!(ended.message.contains(says), "{}", ended.message);
    assert!(
        ended.message.contains("it is of low order"),
        "{}",
        ended.message
    );
    assert!(fleet.collections().await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_sweep_stays_cancelled_and_one_that_expired_before_it_was_seen_collects_nothing()
 {
    let mut fleet = Fleet::new(1).await;
    let api = Api::<Object>::all(fleet.world.client.clone());
    let mut late = object(&fleet.world.namespace, SweepState::Running);
    late.spec.expires = Some(Time(Timestamp::now() - SignedDuration::from_secs(60)));
    late.metadata.name = Some("late".into());
    api.create(&PostParams::default(), &late).await.unwrap();
    let cancelled = object(&fleet.world.namespace, SweepState::Cancelled);
    api.create(&PostParams::default(), &cancelled)
        .await
        .unwrap();
    let back = Patch::Merge(json!({ "spec": { "state": "Running" } }));
    let refusal = api
        .patch("hunt", &PatchParams::default(), &back)
        .await
        .unwrap_err();
    assert!(refusal.to_string().contains("stays cancelled"), "{refusal}");
    fleet.world.start_controller().await;
    let ended = fleet.ended().await;
    assert_eq!(ended.phase, "Refused");
    assert!(
        ended
            .message
            .contains("cancelled before its pods were listed"),
        "{}",
        ended.message
    );
    eventually("the other one ends, too", || async {
        let status = api.get("late").await.unwrap().status.unwrap_or_default();
        match status
            .message
            .contains("expired before its pods were listed")
        {
            true => Ok(()),
            false => Err(format!("{status:?}")),
        }
    })
    .await;
    assert!(fleet.collections().await.is_empty());
}

/// As many pods as a sweep may have.
const MANY: usize = 10_000;
/// Far below the 1.5 MiB that etcd takes.
const OBJECT: usize = 1 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_pods_are_listed_in_small_objects_with_few_requests() {
    let mut world = World::in_memory_of(ClusterConfig {
        instant_kubelet: false,
        ..ClusterConfig::default()
    })
    .await;
    world.about_agents = ["--agent-port", "1", "--agent-patience", "1"]
        .map(String::from)
        .to_vec();
    // Its scheduler and the like would look at every pod after each.
    world.api().hold_controllers(true);
    let create = |number: usize| {
        let name = format!("a-pod-with-a-name-as-deployments-give-it-{number}");
        world.create(pod(&name, &format!("k8s-worker{}", number % 3 + 1)))
    };
    futures::stream::iter((0..MANY).map(create))
        .buffer_unordered(32)
        .for_each(|_| async {})
        .await;
    let api = Api::<Object>::all(world.client.clone());
    let made = object(&world.namespace, SweepState::Paused);
    api.create(&PostParams::default(), &made).await.unwrap();
    world.start_controller().await;
    let phase = async |wanted: &'static str| {
        eventually(wanted, || async {
            let sweep = api.get("hunt").await.unwrap();
            let status = sweep.status.clone().unwrap_or_default();
            match format!("{:?}", status.phase) == wanted {
                true => Ok(sweep),
                false => Err(format!("{:?}: {}", status.phase, status.message)),
            }
        })
        .await
    };
    let rosters = Api::<SweepRoster>::all(world.client.clone());
    let small = async |sweep: &Object| {
        let all = rosters.list(&ListParams::default()).await.unwrap().items;
        assert_eq!(all.len(), MANY / 500);
        let largest = all
            .iter()
            .map(|one| json!(one).to_string().len())
            .max()
            .unwrap();
        assert!(largest < OBJECT / 4, "{largest} bytes in a roster");
        let own = json!(sweep).to_string().len();
        assert!(own < OBJECT / 16, "{own} bytes in the sweep");
        all
    };
    let sweep = phase("Paused").await;
    let all = small(&sweep).await;
    let pods: BTreeSet<_> = all
        .iter()
        .flat_map(|one| &one.spec.targets)
        .map(|one| &one.pod)
        .collect();
    assert_eq!(pods.len(), MANY, "each once");
    let cases: BTreeSet<_> = all.iter().map(|one| &one.spec.case).collect();
    assert_eq!(cases.len(), 10, "{cases:?}");
    let of_sweep = |path: &str| path.contains("/pods") || path.contains("/sweep");
    let requests = || {
        world
            .requests()
            .iter()
            .filter(|one| of_sweep(&one.path))
            .count()
    };
    let listing = requests();
    assert!(listing < 100, "{listing} requests for the list");
    let cancel = Patch::Merge(json!({ "spec": { "state": "Cancelled" } }));
    api.patch("hunt", &PatchParams::default(), &cancel)
        .await
        .unwrap();
    let sweep = phase("Cancelled").await;
    small(&sweep).await;
    let status = sweep.status.unwrap();
    assert_eq!(status.counts.cancelled as usize, MANY);
    assert_eq!(
        status.exceptions.len() + status.more_exceptions as usize,
        MANY
    );
    let ending = requests() - listing;
    assert!(ending < 100, "{ending} requests for the end");
}
