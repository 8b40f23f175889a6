//! Several replicas share the collections: each is worked on by one of them, and one that is killed, or can't renew its
//! lease, has its own taken over.

use std::collections::{BTreeMap, BTreeSet};

use impound_controller::claims::LEASES;
use impound_controller::resources::{Collection, CollectionPhase, SweepPhase};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams};
use kube_memory::{Fault, RequestRecord};
use serde_json::json;

use super::{CreateSweepRequest, Fleet, Object};
use crate::world::{CONTROLLER, Replica, eventually};

const OTHER: &str = "impound-other";

impl Fleet {
    /// A second replica, once it sees the collections.
    async fn joined(&self) -> Replica {
        let other = self.world.other_replica(OTHER);
        self.asks("it watches the collections", |request| {
            request.user == OTHER
                && request.path.contains("/collections?")
                && request.path.contains("watch=")
        })
        .await;
        other
    }

    async fn asks(&self, what: &str, is: impl Fn(&RequestRecord) -> bool) {
        eventually(what, || async {
            let requests = self.world.requests();
            let made = requests.iter().any(&is);
            made.then_some(()).ok_or_else(|| "not yet".to_owned())
        })
        .await;
    }

    /// Who has written the status of each collection, in order.
    fn writers(&self) -> BTreeMap<String, Vec<String>> {
        let mut writers = BTreeMap::<String, Vec<String>>::new();
        for request in self.world.requests() {
            let of = request.path.split_once("/collections/");
            let name = of.and_then(|(_, rest)| rest.split_once("/status"));
            if let Some((name, _)) =
                name.filter(|_| request.method == "PATCH" && request.status == 200)
            {
                let of = writers.entry(name.to_owned()).or_default();
                if of.last() != Some(&request.user) {
                    of.push(request.user);
                }
            }
        }
        writers
    }

    /// How the collections end, whichever replica answers.
    async fn all_sealed(&self) -> Vec<Collection> {
        let sweeps = Api::<Object>::all(self.world.client.clone());
        eventually("the sweep ends", || async {
            let sweep = sweeps.get("hunt").await.unwrap();
            match sweep.status.map(|status| status.phase) {
                Some(SweepPhase::Complete) => Ok(()),
                phase => Err(format!("{phase:?}")),
            }
        })
        .await;
        let collections = self.collections().await;
        assert_eq!(collections.len(), self.pods.len(), "one for each");
        for one in &collections {
            let phase = one.status.as_ref().map(|status| status.phase);
            assert_eq!(phase, Some(CollectionPhase::Sealed), "{one:#?}");
        }
        collections
    }
}

fn worker(collection: &Collection) -> String {
    let status = collection.status.as_ref();
    status.and_then(|status| status.worker.clone()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_share_the_collections_and_none_touches_the_other_ones() {
    let fleet = Fleet::started(2).await;
    let _other = fleet.joined().await;
    fleet.slow(true);
    let request = CreateSweepRequest {
        at_once: 6,
        per_node: 2,
        ..fleet.request()
    };
    fleet.start(request).await;
    fleet
        .becomes("all are at work", |now| now.counts.unwrap().running == 6)
        .await;
    fleet.slow(false);
    let ended = fleet.ended().await;
    fleet.all_is_sealed(&ended).await;
    let writers = fleet.writers();
    assert_eq!(writers.len(), 6);
    for (collection, by) in &writers {
        assert_eq!(by.len(), 1, "{collection}: {by:?}");
    }
    for user in [CONTROLLER, OTHER] {
        let of_user = writers.values().filter(|by| *by == &[user]);
        assert!(of_user.count() >= 2, "{user} has too few: {writers:#?}");
    }
    let workers: BTreeSet<String> = fleet.collections().await.iter().map(worker).collect();
    assert_eq!(workers.len(), 2, "{workers:#?}");
    for agent in &fleet.agents {
        let mut exports = agent.calls();
        exports.retain(|call| call.starts_with("export "));
        let once: BTreeSet<_> = exports.iter().collect();
        assert_eq!(once.len(), exports.len(), "{exports:#?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_replica_worked_on_is_taken_over_and_not_before() {
    let mut fleet = Fleet::started(1).await;
    fleet.slow(true);
    fleet.start(fleet.request()).await;
    fleet
        .becomes("all are at work", |now| now.counts.unwrap().running == 3)
        .await;
    // What is made may not be claimed yet.
    let before = eventually("all are claimed", || async {
        let collections = fleet.collections().await;
        let claimed = collections
            .iter()
            .filter_map(|one| one.status.as_ref()?.worker.clone());
        let claimed: Vec<String> = claimed.collect();
        match claimed.len() {
            3 => Ok(BTreeSet::from_iter(claimed)),
            few => Err(format!("{few} of 3")),
        }
    })
    .await;
    assert_eq!(before.len(), 1, "{before:#?}");
    let _other = fleet.joined().await;
    let looks = |fleet: &Fleet| {
        let requests = fleet.world.requests();
        let looks = requests.iter().filter(|request| {
            request.user == OTHER && request.method == "GET" && request.path.contains(LEASES[0])
        });
        looks.count()
    };
    // For longer than a lease holds that is not renewed.
    eventually("the other one looks whether the worker lives", || async {
        match looks(&fleet) {
            4.. => Ok(()),
            few => Err(format!("{few} times")),
        }
    })
    .await;
    for (collection, by) in fleet.writers() {
        assert_eq!(by, [CONTROLLER], "{collection}");
    }
    fleet.world.kill_controller();
    fleet.slow(false);
    let sealed = fleet.all_sealed().await;
    for one in &sealed {
        assert!(!before.contains(&worker(one)), "{one:#?}");
        let by = &fleet.writers()[&one.name_any()];
        assert_eq!(by, &[CONTROLLER, OTHER], "{}", one.name_any());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_can_not_renew_its_lease_drops_its_collections_before_another_takes_them() {
    let fleet = Fleet::started(1).await;
    fleet.slow(true);
    fleet.start(fleet.request()).await;
    fleet
        .becomes("all are at work", |now| now.counts.unwrap().running == 3)
        .await;
    eventually("all are claimed", || async {
        match fleet.writers().len() {
            3 => Ok(()),
            few => Err(format!("{few} of 3")),
        }
    })
    .await;
    let _other = fleet.joined().await;
    let renewal = Fault::answer(409)
        .by(CONTROLLER)
        .on("PUT", "/leases/impound-worker");
    let _refused = fleet.world.api().inject(renewal);
    eventually("they are another's", || async {
        let writers = fleet.writers();
        let taken = writers.values().all(|by| by.last().unwrap() == OTHER);
        taken.then_some(()).ok_or_else(|| format!("{writers:#?}"))
    })
    .await;
    let log = fleet.world.log();
    assert!(log.contains("this worker's lease is lost"), "{log}");
    fleet.slow(false);
    // The first one still leads.
    let ended = fleet.ended().await;
    fleet.all_is_sealed(&ended).await;
    for (collection, by) in fleet.writers() {
        assert_eq!(by, [CONTROLLER, OTHER], "{collection}");
    }
}

impl Fleet {
    /// Asks for the evidence of the pod on the first node, as `one`.
    async fn collect_one(&self) -> Api<Collection> {
        let pod = self.pods.keys().next().unwrap();
        let collection = json!({
            "apiVersion": "impound.dev/v1alpha1", "kind": "Collection", "metadata": { "name": "one" },
            "spec": { "pod": pod, "case": "INC-1", "reason": "odd" },
        });
        self.world.create(collection).await;
        Api::namespaced(self.world.client.clone(), &self.world.namespace)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collection_that_is_deleted_under_work_is_collected_to_its_end() {
    let fleet = Fleet::started(1).await;
    fleet.slow(true);
    let collections = fleet.collect_one().await;
    eventually("it is at work", || async {
        let status = collections.get("one").await.unwrap().status;
        match status {
            Some(status) if !status.artifacts.is_empty() => Ok(()),
            status => Err(format!("{status:?}")),
        }
    })
    .await;
    let deletion = DeleteParams::default();
    collections.delete("one", &deletion).await.unwrap();
    let renewals = || {
        let requests = fleet.world.requests().into_iter();
        let renewals =
            requests.filter(|request| request.method == "PUT" && request.path.contains(LEASES[0]));
        renewals.count()
    };
    let before = renewals();
    // For longer than a lease is kept that nothing is claimed with.
    eventually("its worker keeps its lease", || async {
        match renewals() {
            now if now > before + 7 => Ok(()),
            now => Err(format!("{now} renewals, {before} before the deletion")),
        }
    })
    .await;
    fleet.slow(false);
    let seal = "store/INC-1/one/manifest.sigstore.json";
    let seal = fleet.world.dir.path().join(seal);
    eventually("it is sealed", || async {
        seal.exists().then_some(()).ok_or_else(|| fleet.world.log())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_replica_can_not_reach_another_collects() {
    let mut fleet = Fleet::new(1).await;
    let reachable = fleet.world.about_agents.clone();
    // Nobody is at that port, and it would wait for the agent for longer than this test.
    let nowhere = ["--agent-port", "1", "--agent-patience", "3600"];
    fleet.world.about_agents = nowhere.map(String::from).to_vec();
    fleet.world.start_controller().await;
    let collections = fleet.collect_one().await;
    let status = || async {
        let one = collections.get("one").await.unwrap();
        one.status.unwrap_or_default()
    };
    eventually("the first one has tried", || async {
        let now = status().await;
        let tried = now.message.starts_with("tried again");
        tried.then_some(()).ok_or_else(|| format!("{now:?}"))
    })
    .await;
    fleet.world.about_agents = reachable;
    let _other = fleet.joined().await;
    eventually("the other one seals it", || async {
        let now = status().await;
        match now.phase {
            CollectionPhase::Sealed => Ok(()),
            _ => Err(format!("{now:?}")),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_replica_can_not_write_another_collects() {
    let mut fleet = Fleet::new(1).await;
    // A store of its own, in which the collection is locked.
    let broken = fleet.world.dir.path().join("broken");
    let case = broken.join("INC-1");
    std::fs::create_dir_all(&case).unwrap();
    let lock = std::fs::File::create(case.join(".lock-one")).unwrap();
    lock.lock().unwrap();
    fleet.world.store = Some(broken.to_str().unwrap().into());
    fleet.world.start_controller().await;
    let collections = fleet.collect_one().await;
    fleet.world.store = None;
    let _other = fleet.joined().await;
    eventually("the other one seals it", || async {
        let now = collections.get("one").await.unwrap().status;
        match now {
            Some(now) if now.phase == CollectionPhase::Sealed => Ok(()),
            now => Err(format!("{now:?}")),
        }
    })
    .await;
    let log = fleet.world.log();
    assert!(log.contains("somebody else holds it in the store"), "{log}");
}
