//! What is wished of a sweep that is under way, and by whom: in the custody log, with what can be known of it.

use impound_proto::controller::v1::ListEvidenceRequest;
use kube::api::PropagationPolicy;

use super::*;

impl Fleet {
    /// Writes the state as somebody does who has the right to write sweeps, under any program's name.
    async fn wish(&self, state: &str, program: &str) {
        let api = Api::<Object>::all(self.world.client.clone());
        let patch = Patch::Merge(json!({ "spec": { "state": state } }));
        let params = PatchParams {
            field_manager: Some(program.into()),
            ..PatchParams::default()
        };
        api.patch("hunt", &params, &patch).await.unwrap();
    }

    /// What the log says of a wish: who, whether it is only claimed, and why.
    async fn wished(&self, wish: &str, nth: usize) -> (String, bool, String) {
        eventually(wish, || async {
            let log = self.log();
            let of_wish = |entry: &&Value| {
                let what = entry["what"].as_str().unwrap();
                entry["event"] == "requested" && what.starts_with(&format!("{wish} sweep hunt "))
            };
            let entry = log.iter().filter(of_wish).nth(nth);
            let text = |entry: &Value, key: &str| entry[key].as_str().unwrap().to_owned();
            entry
                .map(|entry| {
                    let claimed = entry["claimed"] == true;
                    (text(entry, "who"), claimed, text(entry, "why"))
                })
                .ok_or_else(|| format!("{log:#?}"))
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_pauses_without_a_certificate_is_logged_as_claimed_also_in_the_controllers_own_name() {
    let fleet = Fleet::started(1).await;
    fleet.slow(true);
    fleet.start(fleet.request()).await;
    fleet
        .becomes("they are under way", |now| now.counts.unwrap().running == 3)
        .await;
    fleet.set("Paused").await;
    let (who, claimed, why) = fleet.wished("pause", 0).await;
    assert!(who.ends_with("/alice") && !claimed, "{who}");
    assert_eq!(why, "as the test wants");

    fleet.wish("Running", "kubectl-patch").await;
    let (who, claimed, why) = fleet.wished("resume", 0).await;
    assert_eq!(
        (who.as_str(), claimed),
        ("not known, with kubectl-patch", true)
    );
    assert!(why.contains("the API server's audit log says who"), "{why}");

    fleet.wish("Paused", "impound").await;
    let (who, claimed, _) = fleet.wished("pause", 1).await;
    assert!(claimed && !who.contains("alice"), "{who}");

    fleet.set("Cancelled").await;
    let (who, claimed, _) = fleet.wished("cancel", 0).await;
    assert!(who.ends_with("/alice") && !claimed, "{who}");
    fleet.slow(false);
    fleet.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_that_is_deleted_under_way_names_what_it_did_not_take_before_it_goes() {
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
    let api = Api::<Object>::all(fleet.world.client.clone());
    let params = DeleteParams {
        propagation_policy: Some(PropagationPolicy::Background),
        ..DeleteParams::default()
    };
    api.delete("hunt", &params).await.unwrap();
    let (who, claimed, _) = fleet.wished("delete", 0).await;
    assert_eq!((who.as_str(), claimed), ("not known", true));
    let there = api.get("hunt").await.unwrap();
    assert!(there.metadata.deletion_timestamp.is_some());
    fleet.slow(false);
    eventually("it is gone", || async {
        match api.get_opt("hunt").await.unwrap() {
            None => Ok(()),
            Some(sweep) => Err(format!("{sweep:#?}")),
        }
    })
    .await;
    let log = fleet.log();
    let of = |event: &str, what: &str| {
        let is = |entry: &&Value| {
            entry["event"] == event && entry["what"].as_str().unwrap().contains(what)
        };
        log.iter().filter(is).count()
    };
    assert_eq!(of("failed", "sweep hunt: pod"), 5, "{log:#?}");
    assert_eq!(
        of("sealed", ""),
        1,
        "what was under way came to its end: {log:#?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_that_has_ended_is_held_by_nothing_of_ours() {
    let fleet = Fleet::started(1).await;
    fleet.start(fleet.request()).await;
    let ended = fleet.ended().await;
    fleet.all_is_sealed(&ended).await;
    let api = Api::<Object>::all(fleet.world.client.clone());
    eventually("its finalizer is off", || async {
        let sweep = api.get("hunt").await.unwrap();
        match sweep.finalizers() {
            [] => Ok(()),
            left => Err(format!("{left:?}")),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_evidence_of_a_case_is_listed_with_that_of_the_further_cases_of_its_sweeps() {
    let fleet = Fleet::started(1).await;
    fleet.start(fleet.request()).await;
    let ended = fleet.ended().await;
    fleet.all_is_sealed(&ended).await;
    let api = Api::<Collection>::namespaced(fleet.world.client.clone(), &fleet.world.namespace);
    let pod = fleet.pods.keys().next().unwrap();
    // As the second thousand of a sweep, and as a case that only begins alike.
    for (name, case) in [("second", "INC-1.part-2"), ("other", "INC-10")] {
        let one: Collection = serde_json::from_value(json!({
            "apiVersion": "impound.dev/v1alpha1", "kind": "Collection", "metadata": { "name": name },
            "spec": { "pod": pod, "case": case, "reason": "x" },
        }))
        .unwrap();
        api.create(&PostParams::default(), &one).await.unwrap();
        eventually("it is sealed", || async {
            let status = api.get(name).await.unwrap().status.unwrap_or_default();
            assert!(status.phase != CollectionPhase::Failed, "{status:?}");
            match status.phase {
                CollectionPhase::Sealed => Ok(()),
                _ => Err(format!("{status:?}")),
            }
        })
        .await;
    }
    let mut custodian = fleet.world.responder("carol").await;
    let mut cases = async |collection: &str| -> Vec<String> {
        let request = ListEvidenceRequest {
            case_id: "INC-1".into(),
            collection: collection.into(),
        };
        let listed = custodian.list_evidence(request).await.unwrap().into_inner();
        let cases: BTreeSet<_> = listed.files.into_iter().map(|file| file.case_id).collect();
        cases.into_iter().collect()
    };
    assert_eq!(cases("").await, ["INC-1", "INC-1.part-2"]);
    let first = fleet.targets().await.remove(0).collection;
    assert_eq!(cases(&first).await, ["INC-1"]);
}
