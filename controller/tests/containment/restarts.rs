//! Containers that are restarted once the evidence is sealed: what they are now is collected by itself, once for
//! each, whatever the controller dies of meanwhile; a crash loop ends that; a release waits for it.

use impound_controller::resources::{
    Collection, CollectionPhase, LaterCollection, Quarantine as Object,
};
use impound_proto::controller::v1::{GetCollectionRequest, Quarantine};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube_memory::Fault;
use serde_json::json;
use tonic::Code;

use super::agent::Fault as AgentFault;
use super::blocked::Stage;
use super::world::{CONTROLLER, eventually, name, node_of, state};

/// Later collections of one quarantine, as the schema says.
const LIMIT: usize = 5;

/// A quarantine whose evidence is sealed, and what somebody does to its containers.
struct Sealed {
    stage: Stage,
    quarantine: String,
}

impl Sealed {
    async fn new() -> Self {
        let stage = Stage::new().await;
        let quarantine = stage.ask().await;
        let done = stage.world.settled(&quarantine).await;
        assert_eq!(done.phase, "Complete", "{done:#?}");
        assert_eq!(done.later_collections, [], "{done:#?}");
        Self { stage, quarantine }
    }

    /// The kubelet restarts the suspect's container; the id of the new one.
    async fn restart(&self, times: u32) -> String {
        let suspect = &self.stage.suspect;
        let uid = suspect.metadata.uid.clone().unwrap();
        let namespace = self.stage.world.namespace.as_str();
        let pod = (namespace, &*name(suspect), &*uid);
        let id = self.stage.agent.add(pod, "nginx", times, 2_000);
        self.status(json!([{
            "name": "nginx", "image": "busybox:1", "imageID": "", "ready": true, "restartCount": times,
            "containerID": format!("docker://{id}"),
        }]))
        .await;
        id
    }

    async fn status(&self, containers: serde_json::Value) {
        let world = &self.stage.world;
        let pods = Api::<Pod>::namespaced(world.client.clone(), &world.namespace);
        let patch = Patch::Merge(json!({ "status": { "containerStatuses": containers } }));
        pods.patch_status(&name(&self.stage.suspect), &PatchParams::default(), &patch)
            .await
            .unwrap();
    }

    async fn becomes(&self, what: &str, is: impl Fn(&Quarantine) -> bool) -> Quarantine {
        self.stage.becomes(&self.quarantine, what, is).await
    }

    async fn later(&self) -> Vec<LaterCollection> {
        let world = &self.stage.world;
        let quarantines = Api::<Object>::namespaced(world.client.clone(), &world.namespace);
        let object = quarantines.get(&self.quarantine).await.unwrap();
        object.status.unwrap().later_collections
    }

    /// The Collection objects, without the first one.
    async fn collections(&self) -> Vec<Collection> {
        let world = &self.stage.world;
        let all = Api::<Collection>::namespaced(world.client.clone(), &world.namespace);
        let mut all = all.list(&ListParams::default()).await.unwrap().items;
        all.retain(|one| one.metadata.name.as_ref() != Some(&self.quarantine));
        all
    }

    /// How often this custody log of the case says this.
    fn logged(&self, log: &str, event: &str, what: &str) -> usize {
        let log = self.stage.world.dir.path().join("store/INC-1").join(log);
        let log = std::fs::read_to_string(log.join(impound_evidence::CUSTODY)).unwrap();
        let says = |line: &&str| line.contains(&format!("\"{event}\"")) && line.contains(what);
        log.lines().filter(says).count()
    }
}

fn losses(quarantine: &Quarantine) -> Vec<String> {
    let drift = quarantine.drift.iter();
    let losses = drift.filter(|drift| drift.reason == "EvidenceLoss");
    losses.map(|drift| drift.what.clone()).collect()
}

fn is_collected(now: &Quarantine, times: usize) -> bool {
    let mut later = now.later_collections.iter();
    now.phase == "Complete"
        && now.later_collections.len() == times
        && later.all(|later| later.phase == "Sealed")
}

#[tokio::test]
async fn restarts_after_the_seal_are_collected_by_themselves_until_there_were_too_many() {
    let sealed = Sealed::new().await;
    for times in 1..=LIMIT {
        let id = sealed.restart(u32::try_from(times).unwrap()).await;
        let now = sealed
            .becomes("what it is now is collected", |now| {
                is_collected(now, times)
            })
            .await;
        let later = now.later_collections.last().unwrap();
        let expected = format!("{}-{}", sealed.quarantine, &id[..12]);
        assert_eq!(later.name, expected);
        assert!(later.message.starts_with("sealed at "), "{later:#?}");
        assert_eq!(state(&now, "CollectAgain"), "Done", "{now:#?}");
        assert_eq!(now.verdict, "Isolated", "{now:#?}");
        let losses = losses(&now);
        assert_eq!(losses.len(), times, "{losses:#?}");
        let said = losses.last().unwrap();
        assert!(
            said.contains(&format!("restart {times}"))
                && said.contains("the collection had ended by then (sealed at ")
                && said.ends_with(&format!(
                    "Collection {expected} takes what there is of both now"
                )),
            "{said}"
        );
        // The one before it, which still exists, and the new one.
        let calls = sealed.stage.agent.calls();
        assert!(calls.contains(&format!("export {id}")), "{calls:#?}");
    }
    let collections = sealed.collections().await;
    assert_eq!(collections.len(), LIMIT);
    for collection in &collections {
        let collection_name = collection.metadata.name.as_deref().unwrap();
        assert_eq!(
            collection.spec.quarantine.as_ref(),
            Some(&sealed.quarantine)
        );
        let status = collection.status.as_ref().unwrap();
        let exports = status.artifacts.iter();
        let exports = exports.filter(|one| one.path.contains("/evidence-compromised-nginx-"));
        assert!(exports.count() >= 2, "{status:#?}");
        assert_eq!(sealed.logged("custody", "authorised", collection_name), 1);
        // The controller's own request is no claim of somebody who has made the object.
        let us = "spiffe://impound.dev/controller";
        assert!(sealed.logged(collection_name, "requested", us) >= 1);
        let claimed = "\"claimed\":true";
        assert_eq!(sealed.logged(collection_name, "requested", claimed), 0);
    }
    let more = sealed.restart(u32::try_from(LIMIT).unwrap() + 1).await;
    let now = sealed
        .becomes("it is said that no more is collected", |now| {
            now.phase == "Incomplete"
        })
        .await;
    assert_eq!(state(&now, "CollectAgain"), "Failed", "{now:#?}");
    let command = format!(
        "To collect what is there now: impound collect {} -n {} --case INC-1 --reason 'a container was restarted'",
        name(&sealed.stage.suspect),
        sealed.stage.world.namespace
    );
    for said in [&now.message, losses(&now).last().unwrap()] {
        assert!(said.contains(&command), "{said}");
    }
    assert!(
        now.message.contains("NOT collected: 5 later collections"),
        "{}",
        now.message
    );
    assert_eq!(sealed.collections().await.len(), LIMIT);
    let calls = sealed.stage.agent.calls();
    assert!(!calls.contains(&format!("export {more}")), "{calls:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_is_collected_once_whichever_write_the_controller_dies_after() {
    for write in 1..=4 {
        let mut sealed = Sealed::new().await;
        let fault = sealed.stage.world.hang_after(write);
        let id = sealed.restart(1).await;
        fault.hung().await;
        let other = sealed.stage.world.other_replica("impound-other");
        sealed.stage.world.kill_controller();
        fault.remove();
        sealed.stage.world.expire_lease().await;
        sealed.stage.world.start_controller().await;
        let now = sealed
            .becomes("what it is now is collected", |now| is_collected(now, 1))
            .await;
        drop(other);
        let expected = format!("{}-{}", sealed.quarantine, &id[..12]);
        let collections = sealed.collections().await;
        let names: Vec<_> = collections
            .iter()
            .filter_map(|one| one.metadata.name.as_deref())
            .collect();
        assert_eq!(names, [&*expected], "killed after write {write}");
        assert_eq!(
            sealed.logged("custody", "authorised", &expected),
            1,
            "{write}"
        );
        assert_eq!(losses(&now).len(), 1, "{write}: {:#?}", now.drift);
        let requests = sealed.stage.world.requests();
        let made = requests.iter().filter(|request| {
            request.method == "POST"
                && request.path.contains("/collections")
                && request.status == 201
        });
        // The first one and this one.
        assert_eq!(made.count(), 2, "killed after write {write}");
    }
}

#[tokio::test]
async fn what_is_restarted_while_a_later_collection_runs_is_collected_by_that_or_the_next() {
    let sealed = Sealed::new().await;
    sealed.stage.agent.state.lock().unwrap().slow = true;
    sealed.restart(1).await;
    let now = sealed
        .becomes("its export is waited for", |now| {
            let later = now.later_collections.first();
            later.is_some_and(|later| later.phase == "Collecting")
        })
        .await;
    assert_eq!(now.phase, "Contained", "{now:#?}");
    let second = sealed.restart(2).await;
    let now = sealed
        .becomes("the second restart is noticed", |now| {
            losses(now).len() == 2
        })
        .await;
    let said = losses(&now).pop().unwrap();
    let first = &now.later_collections[0].name;
    assert!(
        said.ends_with(&format!(
            "collection {first}, which has not ended, takes it if it still exists then"
        )),
        "{said}"
    );
    assert_eq!(now.later_collections.len(), 1, "{now:#?}");
    sealed.stage.agent.state.lock().unwrap().slow = false;
    let done = sealed.becomes("it ends", |now| is_collected(now, 1)).await;
    assert_eq!(state(&done, "CollectAgain"), "Done", "{done:#?}");
    let calls = sealed.stage.agent.calls();
    assert!(calls.contains(&format!("export {second}")), "{calls:#?}");
}

#[tokio::test]
async fn a_release_waits_for_a_later_collection_also_of_a_restart_that_nobody_has_noticed() {
    let mut sealed = Sealed::new().await;
    sealed.stage.world.kill_controller();
    sealed.stage.agent.state.lock().unwrap().slow = true;
    let id = sealed.restart(1).await;
    let release = Patch::Merge(json!({ "spec": { "release": { "reason": "false alarm" } } }));
    let world = &sealed.stage.world;
    let quarantines = Api::<Object>::namespaced(world.client.clone(), &world.namespace);
    quarantines
        .patch(&sealed.quarantine, &PatchParams::default(), &release)
        .await
        .unwrap();
    sealed.stage.world.expire_lease().await;
    sealed.stage.world.start_controller().await;
    let waits = sealed
        .becomes("the release waits", |now| {
            let later = now.later_collections.first();
            later.is_some_and(|later| later.phase == "Collecting")
                && now
                    .message
                    .starts_with("the release waits until the evidence is sealed")
        })
        .await;
    assert_eq!(state(&waits, "UndoStrip"), "", "{waits:#?}");
    let refused = sealed.stage.world.release(&sealed.quarantine, false).await;
    assert_eq!(refused.unwrap_err().code(), Code::FailedPrecondition);
    sealed.stage.agent.state.lock().unwrap().slow = false;
    let released = sealed
        .becomes("it is released", |now| now.phase == "Released")
        .await;
    assert_eq!(released.later_collections[0].phase, "Sealed");
    let calls = sealed.stage.agent.calls();
    assert!(calls.contains(&format!("export {id}")), "{calls:#?}");
}

#[tokio::test]
async fn a_forced_release_waits_for_no_later_collection() {
    let sealed = Sealed::new().await;
    sealed.stage.agent.state.lock().unwrap().slow = true;
    sealed.restart(1).await;
    sealed
        .becomes("its export is waited for", |now| {
            let later = now.later_collections.first();
            later.is_some_and(|later| later.phase == "Collecting")
        })
        .await;
    let forced = sealed.stage.world.release(&sealed.quarantine, true).await;
    forced.unwrap();
    sealed
        .becomes("it is released", |now| now.phase == "Released")
        .await;
    // What is under way goes on.
    sealed.stage.agent.state.lock().unwrap().slow = false;
    eventually("it is sealed all the same", || async {
        let collections = sealed.collections().await;
        let phase = collections[0].status.as_ref().map(|status| status.phase);
        match phase {
            Some(CollectionPhase::Sealed) => Ok(()),
            phase => Err(format!("{phase:?}")),
        }
    })
    .await;
}

#[tokio::test]
async fn a_later_collection_that_is_refused_keeps_nothing_waiting_and_is_made_once_it_may_be() {
    let sealed = Sealed::new().await;
    let memory = sealed.stage.world.memory.as_ref().unwrap();
    let refused = Fault::answer(403).by(CONTROLLER).on("POST", "/collections");
    let refused = memory.inject(refused);
    sealed.restart(1).await;
    let now = sealed
        .becomes("it is said that it is not made", |now| {
            now.phase == "Contained" && now.message.contains("it is NOT made yet, and tried again")
        })
        .await;
    assert_eq!(now.later_collections[0].phase, "", "{now:#?}");
    let nodes = Api::<Node>::all(sealed.stage.world.client.clone());
    let node = node_of(&sealed.stage.suspect);
    let uncordon = Patch::Merge(json!({ "spec": { "unschedulable": null } }));
    nodes
        .patch(&node, &PatchParams::default(), &uncordon)
        .await
        .unwrap();
    sealed
        .becomes("the cordon is put back meanwhile", |now| {
            now.drift.iter().any(|drift| drift.reason == "Restored")
        })
        .await;
    refused.remove();
    sealed
        .becomes("it is collected", |now| is_collected(now, 1))
        .await;
}

#[tokio::test]
async fn a_later_collection_that_lacks_something_says_so_and_a_release_is_refused() {
    let sealed = Sealed::new().await;
    for _ in 0..3 {
        let fault = AgentFault::Status(Code::NotFound);
        sealed.stage.agent.fail("export", fault);
    }
    sealed.restart(1).await;
    let now = sealed
        .becomes("it ends", |now| now.phase == "Incomplete")
        .await;
    assert_eq!(now.later_collections[0].phase, "Partial", "{now:#?}");
    assert_eq!(state(&now, "CollectAgain"), "Failed", "{now:#?}");
    assert!(now.message.contains("but not complete"), "{}", now.message);
    let refused = sealed.stage.world.release(&sealed.quarantine, false).await;
    assert_eq!(refused.unwrap_err().code(), Code::FailedPrecondition);
    let forced = sealed.stage.world.release(&sealed.quarantine, true).await;
    forced.unwrap();
}

#[tokio::test]
async fn a_container_that_starts_only_after_the_seal_is_collected_too() {
    let sealed = Sealed::new().await;
    let suspect = &sealed.stage.suspect;
    let uid = suspect.metadata.uid.clone().unwrap();
    let namespace = sealed.stage.world.namespace.as_str();
    let pod = (namespace, &*name(suspect), &*uid);
    let id = sealed.stage.agent.add(pod, "sidecar", 0, 2_000);
    let mut statuses = json!(suspect.status.as_ref().unwrap().container_statuses);
    statuses.as_array_mut().unwrap().push(json!({
        "name": "sidecar", "image": "busybox:1", "imageID": "", "ready": true, "restartCount": 0,
        "containerID": format!("docker://{id}"),
    }));
    sealed.status(statuses).await;
    let now = sealed
        .becomes("it is collected", |now| is_collected(now, 1))
        .await;
    assert!(
        now.later_collections[0]
            .reason
            .starts_with("container sidecar was started after"),
        "{now:#?}"
    );
    assert_eq!(losses(&now).len(), 0, "{now:#?}");
    let asked = GetCollectionRequest {
        namespace: sealed.stage.world.namespace.clone(),
        name: now.later_collections[0].name.clone(),
    };
    let mut alice = sealed.stage.world.responder("alice").await;
    let later = alice.get_collection(asked).await.unwrap().into_inner();
    assert_eq!(later.requested_by, "spiffe://impound.dev/controller");
}

#[tokio::test]
async fn where_nothing_is_to_be_collected_a_restart_is_only_reported() {
    let stage = Stage::new().await;
    let done = stage.world.quarantine(&name(&stage.suspect)).await;
    let sealed = Sealed {
        stage,
        quarantine: done.name,
    };
    sealed.restart(1).await;
    let now = sealed
        .becomes("the loss is noticed", |now| losses(now).len() == 1)
        .await;
    let said = losses(&now).pop().unwrap();
    assert!(said.contains("nothing was to be collected"), "{said}");
    assert_eq!(now.phase, "Complete", "{now:#?}");
    assert_eq!(sealed.later().await, []);
    assert_eq!(sealed.collections().await.len(), 0);
}
