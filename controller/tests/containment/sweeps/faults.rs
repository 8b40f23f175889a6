//! What comes in a sweep's way at the Kubernetes API, by chance or by somebody's will: nothing is counted that was not
//! taken, and nothing is given up that only had to wait.

use impound_controller::sweep::list::collection_name;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use super::*;

impl Fleet {
    /// A sweep that is listed, and begins nothing yet.
    async fn paused(&self) -> Object {
        let api = Api::<Object>::all(self.world.client.clone());
        let made = object(&self.world.namespace, SweepState::Paused);
        let made = api.create(&PostParams::default(), &made).await.unwrap();
        self.becomes("it is listed", |now| now.phase == "Paused")
            .await;
        made
    }

    async fn change(&self, spec: Value) {
        let api = Api::<Object>::all(self.world.client.clone());
        let patch = Patch::Merge(json!({ "spec": spec }));
        let patched = api.patch("hunt", &PatchParams::default(), &patch).await;
        patched.unwrap();
    }

    async fn rosters(&self) -> Vec<SweepRoster> {
        let rosters = Api::<SweepRoster>::all(self.world.client.clone());
        rosters.list(&ListParams::default()).await.unwrap().items
    }

    /// Entries of the log of this event about collections.
    fn said(&self, event: &str) -> usize {
        let about = |entry: &&Value| {
            let what = entry["what"].as_str().unwrap();
            entry["event"] == event && what.starts_with("collection ") && what.contains("request")
        };
        self.log().iter().filter(about).count()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collection_of_another_pod_under_a_targets_name_is_not_taken_for_it() {
    let fleet = Fleet::started(1).await;
    let sweep = fleet.paused().await;
    let uid = sweep.uid().unwrap();
    let roster = fleet.rosters().await.remove(0);
    let (victim, harmless) = (&roster.spec.targets[0], &roster.spec.targets[1]);
    let spoofed: Collection = serde_json::from_value(json!({
        "apiVersion": "impound.dev/v1alpha1", "kind": "Collection",
        "metadata": { "name": collection_name(&uid, victim, 1), "ownerReferences": [OwnerReference {
            api_version: "impound.dev/v1alpha1".into(),
            kind: "Sweep".into(),
            name: "hunt".into(),
            uid: uid.clone(),
            controller: Some(true),
            block_owner_deletion: None,
        }] },
        "spec": { "pod": harmless.pod, "podUid": harmless.uid, "node": harmless.node, "case": "INC-1", "reason": "x" },
    }))
    .unwrap();
    let api = Api::<Collection>::namespaced(fleet.world.client.clone(), &fleet.world.namespace);
    api.create(&PostParams::default(), &spoofed).await.unwrap();
    fleet.change(json!({ "state": "Running" })).await;
    let ended = fleet.ended().await;
    assert_eq!(ended.phase, "Partial", "{ended:#?}");
    let counts = ended.counts.unwrap();
    assert_eq!((counts.sealed, counts.failed), (2, 1), "{ended:#?}");
    let one = &ended.exceptions[0];
    assert_eq!(one.pod, victim.pod);
    assert!(one.message.contains("about another pod"), "{one:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn however_often_its_status_is_not_written_a_sweep_makes_one_list() {
    let fleet = Fleet::started(1).await;
    let refused = Fault::answer(503).on("PATCH", "/sweeps/hunt/status");
    let refused = fleet.world.api().inject(refused.by(CONTROLLER).times(3));
    fleet.start(fleet.request()).await;
    let ended = fleet.ended().await;
    assert_eq!(refused.hits(), 3);
    fleet.all_is_sealed(&ended).await;
    assert_eq!(fleet.rosters().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_that_passes_costs_no_pod_and_is_told_as_long_as_it_lasts() {
    let fleet = Fleet::started(1).await;
    let away = Fault::answer(500).on("POST", "/collections");
    let away = fleet.world.api().inject(away.by(CONTROLLER));
    fleet.start(fleet.request()).await;
    fleet
        .becomes("what is in the way is told", |now| {
            now.message
                .contains("3 can't be begun now: POST collections: 500")
        })
        .await;
    away.remove();
    let forbidden = Fault::answer(403).on("POST", "/collections");
    let forbidden = fleet.world.api().inject(forbidden.by(CONTROLLER).times(1));
    // So that its time is counted anew.
    fleet.set("Paused").await;
    fleet
        .becomes("it is paused", |now| now.phase == "Paused")
        .await;
    fleet.set("Running").await;
    let ended = fleet.ended().await;
    assert_eq!(forbidden.hits(), 1);
    fleet.all_is_sealed(&ended).await;
    assert_eq!(fleet.said("authorised"), 3, "once for each");
    assert_eq!(fleet.said("failed"), 0);
    for one in fleet.collections().await {
        assert_eq!(one.owner_references()[0].block_owner_deletion, None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_that_stays_is_the_end_of_its_pods_and_what_was_authorised_is_taken_back() {
    let fleet = Fleet::started(1).await;
    let forbidden = Fault::answer(403).on("POST", "/collections");
    fleet.world.api().inject(forbidden.by(CONTROLLER));
    fleet.start(fleet.request()).await;
    let ended = fleet.ended().await;
    assert_eq!(ended.phase, "Partial", "{ended:#?}");
    assert_eq!(ended.counts.unwrap().failed, 3, "{ended:#?}");
    let why = &ended.exceptions[0].message;
    assert!(why.contains("forbidden: injected"), "{why}");
    assert_eq!((fleet.said("authorised"), fleet.said("failed")), (3, 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collection_whose_creation_had_no_answer_is_not_said_to_be_cancelled() {
    let fleet = Fleet::started(1).await;
    fleet.slow(true);
    let lost = Fault::new(Effect::DropAfter).on("POST", "/collections");
    let lost = fleet.world.api().inject(lost.by(CONTROLLER).nth(1));
    let request = CreateSweepRequest {
        at_once: 1,
        ..fleet.request()
    };
    fleet.start(request).await;
    eventually("the answer is lost", || async {
        match lost.hits() {
            0 => Err("not yet".to_owned()),
            _ => Ok(()),
        }
    })
    .await;
    fleet.change(json!({ "state": "Cancelled" })).await;
    fleet
        .becomes("the rest is cancelled", |now| {
            now.counts.unwrap().cancelled > 0
        })
        .await;
    fleet.slow(false);
    let ended = fleet.ended().await;
    let counts = ended.counts.unwrap();
    assert_eq!((counts.sealed, counts.cancelled), (1, 2), "{ended:#?}");
    assert_eq!(fleet.collections().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_that_begins_asks_for_no_collection_that_has_ended() {
    let mut fleet = Fleet::started(1).await;
    fleet.start(fleet.request()).await;
    let ended = fleet.ended().await;
    fleet.all_is_sealed(&ended).await;
    let names: Vec<_> = fleet.collections().await;
    let names: Vec<_> = names.iter().map(ResourceExt::name_any).collect();
    fleet.world.kill_controller();
    let before = fleet.world.requests().len();
    fleet.world.expire_lease().await;
    fleet.world.start_controller().await;
    let pod = fleet.pods.keys().next().unwrap().clone();
    let new = json!({
        "apiVersion": "impound.dev/v1alpha1", "kind": "Collection", "metadata": { "name": "again" },
        "spec": { "pod": pod, "case": "INC-1", "reason": "x" },
    });
    let new: Collection = serde_json::from_value(new).unwrap();
    let api = Api::<Collection>::namespaced(fleet.world.client.clone(), &fleet.world.namespace);
    api.create(&PostParams::default(), &new).await.unwrap();
    // It is seen after those that were there.
    eventually("a new one ends", || async {
        let status = api.get("again").await.unwrap().status.unwrap_or_default();
        match status.phase.is_final() {
            true => Ok(()),
            false => Err(format!("{status:?}")),
        }
    })
    .await;
    let asked = |path: &str| names.iter().any(|name| path.ends_with(name.as_str()));
    let requests = fleet.world.requests();
    let asked: Vec<_> = requests
        .iter()
        .skip(before)
        .filter(|request| asked(&request.path))
        .collect();
    assert!(asked.is_empty(), "{asked:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn why_there_is_no_list_yet_is_told_and_what_was_authorised_of_one_that_never_comes_is_taken_back()
 {
    let fleet = Fleet::started(1).await;
    let unlisted = Fault::answer(500).on("GET", "/pods?");
    let unlisted = fleet.world.api().inject(unlisted.by(CONTROLLER));
    let request = "6f9619ff-8b86-4d01-b42d-00c04fc964ff";
    let mut made = object(&fleet.world.namespace, SweepState::Running);
    made.annotations_mut()
        .insert("impound.dev/request".into(), request.into());
    let api = Api::<Object>::all(fleet.world.client.clone());
    api.create(&PostParams::default(), &made).await.unwrap();
    fleet
        .becomes("it is told", |now| {
            now.phase == "Pending"
                && now
                    .message
                    .contains("its pods can't be listed now: GET pods")
        })
        .await;
    fleet.change(json!({ "state": "Cancelled" })).await;
    let ended = fleet.ended().await;
    unlisted.remove();
    assert_eq!(ended.phase, "Refused", "{ended:#?}");
    let log = fleet.log();
    let taken_back = log.iter().filter(|entry| {
        entry["event"] == "failed" && entry["what"].as_str().unwrap().ends_with(request)
    });
    assert_eq!(taken_back.count(), 1, "{log:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_got_its_node_after_the_list_is_said_to_be_there_and_not_collected() {
    let mut fleet = Fleet::new(1).await;
    fleet.world.api().hold_controllers(true);
    let mut late = pod("late", "");
    late["spec"]["nodeName"] = Value::Null;
    fleet.world.create(late).await;
    fleet.world.start_controller().await;
    fleet.paused().await;
    fleet.world.api().hold_controllers(false);
    eventually("it is on a node", || async {
        let now = fleet.world.pod("late").await;
        let node = now.spec.unwrap().node_name;
        node.ok_or("not yet".to_owned())
    })
    .await;
    fleet.change(json!({ "state": "Running" })).await;
    let ended = fleet.ended().await;
    let counts = ended.counts.unwrap();
    assert_eq!((counts.sealed, counts.absent), (3, 1), "{ended:#?}");
    let why = &ended.exceptions[0].message;
    assert!(why.contains("now: it was not collected"), "{why}");
}
