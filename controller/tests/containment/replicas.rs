//! Two controllers on one API: one works at a time, the other takes over, and one that slept through the
//! loss of its lease changes nothing any more.

use std::time::Duration;

use impound_controller::resources::{Collection, CollectionPhase, QuarantinePhase};
use kube::api::{Api, Patch, PatchParams};
use kube_memory::{Effect, Fault, RequestRecord};
use serde_json::json;

use super::blocked::Stage;
use super::outcome::{Owner, Scene};
use super::world::{CONTROLLER, World, eventually};

const OTHER: &str = "impound-other";

/// Writes of one replica other than to the lease; that it asks who it is changes nothing.
fn writes(world: &World, user: &str) -> Vec<RequestRecord> {
    let mut requests = world.requests();
    requests.retain(|request| {
        let own = ["/leases", "/selfsubjectreviews"];
        request.user == user
            && request.method != "GET"
            && !own.iter().any(|own| request.path.contains(own))
    });
    requests
}

async fn undisturbed() -> (serde_json::Value, Vec<String>) {
    let scene = Scene::new(Owner::Deployment).await;
    scene.ask().await;
    let done = scene.ended(QuarantinePhase::Complete).await;
    (scene.outcome(&done).await, scene.effects())
}

#[tokio::test]
async fn of_two_replicas_one_works() {
    let scene = Scene::new(Owner::Deployment).await;
    let _other = scene.world.other_replica(OTHER);
    eventually("the other one looks at the lease", || async {
        let requests = scene.world.requests();
        if requests.iter().any(|request| request.user == OTHER) {
            Ok(())
        } else {
            Err("not yet".to_owned())
        }
    })
    .await;
    scene.ask().await;
    scene.ended(QuarantinePhase::Complete).await;
    let other = writes(&scene.world, OTHER);
    assert!(other.is_empty(), "{other:#?}");
}

#[tokio::test]
async fn when_one_is_killed_the_other_goes_on_and_repeats_nothing() {
    let mut scene = Scene::new(Owner::Deployment).await;
    let other = scene.world.other_replica(OTHER);
    let memory = scene.world.api();
    let strip = Fault::new(Effect::HangAfter)
        .by(CONTROLLER)
        .on("PATCH", &format!("/pods/{}", scene.suspect));
    let hanging = memory.inject(strip);
    scene.ask().await;
    hanging.hung().await;
    scene.world.kill_controller();
    let killed = writes(&scene.world, CONTROLLER).len();
    let done = scene.ended(QuarantinePhase::Complete).await;
    assert_eq!(writes(&scene.world, CONTROLLER).len(), killed);
    let found = (scene.outcome(&done).await, scene.effects());
    drop((scene, other));
    assert_eq!(found, undisturbed().await);
}

#[tokio::test]
async fn one_that_slept_through_the_loss_of_its_lease_writes_nothing_over_the_work_of_the_other() {
    let mut scene = Scene::new(Owner::Deployment).await;
    let _other = scene.world.other_replica(OTHER);
    let memory = scene.world.api();
    // Its patch of the pod is on its way for so long that the other one has taken over.
    let late = Fault::new(Effect::Delay(Duration::from_secs(20)))
        .by(CONTROLLER)
        .on("PATCH", &format!("/pods/{}", scene.suspect))
        .nth(1);
    let late = memory.inject(late);
    scene.ask().await;
    eventually("the patch is sent", || async {
        if late.hits() > 0 {
            Ok(())
        } else {
            Err("not yet".to_owned())
        }
    })
    .await;
    scene.world.signal_controller("-STOP");
    let done = scene.ended(QuarantinePhase::Complete).await;
    let expected = (scene.outcome(&done).await, scene.effects());
    let version = done.metadata.resource_version.clone();

    scene.world.signal_controller("-CONT");
    let path = format!("/pods/{}", scene.suspect);
    eventually("the late patch is answered", || async {
        let writes = writes(&scene.world, CONTROLLER);
        let answered = writes.iter().find(|write| write.path.contains(&path));
        answered
            .map(|write| write.status)
            .ok_or_else(|| "not yet".to_owned())
    })
    .await;
    eventually("it ends, having lost the lease", || {
        let ended = scene.world.controller_has_ended();
        async move {
            if ended {
                Ok(())
            } else {
                Err("it still runs".to_owned())
            }
        }
    })
    .await;
    let patch = writes(&scene.world, CONTROLLER)
        .into_iter()
        .find(|write| write.path.contains(&path))
        .unwrap();
    assert_eq!(
        patch.status, 409,
        "a stale write is refused by its resourceVersion"
    );
    let now = scene.ended(QuarantinePhase::Complete).await;
    assert_eq!(now.metadata.resource_version, version);
    assert_eq!((scene.outcome(&now).await, scene.effects()), expected);
}

#[tokio::test]
async fn a_lease_that_is_held_but_can_not_be_renewed_is_given_up_before_another_may_take_it() {
    let mut world = World::start_in_memory().await;
    let memory = world.memory.as_ref().unwrap();
    // As if somebody else changed it just before each renewal.
    let renewal = Fault::answer(409).by(CONTROLLER).on("PUT", "/leases");
    let _refused = memory.inject(renewal);
    let refused = std::time::Instant::now();
    eventually("it ends", || {
        let ended = world.controller_has_ended();
        async move {
            if ended {
                Ok(())
            } else {
                Err("it still runs".to_owned())
            }
        }
    })
    .await;
    // Its lease holds for six seconds from the last renewal on.
    let took = refused.elapsed();
    assert!(took < Duration::from_secs(6), "it went on for {took:?}");
}

#[tokio::test]
async fn a_collection_that_another_has_sealed_is_not_written_over() {
    let stage = Stage::new().await;
    stage.agent.state.lock().unwrap().slow = true;
    let quarantine = stage.ask().await;
    let collections =
        Api::<Collection>::namespaced(stage.world.client.clone(), &stage.world.namespace);
    let status = || async {
        let collection = collections.get_opt(&quarantine).await.unwrap();
        collection.and_then(|collection| collection.status)
    };
    eventually("the export is waited for", || async {
        match status().await {
            Some(status) if status.quick_done => Ok(()),
            status => Err(format!("{status:?}")),
        }
    })
    .await;
    // As a successor does, of which this one knows nothing.
    let sealed = json!({ "status": { "phase": "Sealed", "message": "by another" } });
    collections
        .patch_status(&quarantine, &PatchParams::default(), &Patch::Merge(sealed))
        .await
        .unwrap();
    stage.agent.state.lock().unwrap().slow = false;
    let reports = || {
        let writes = writes(&stage.world, CONTROLLER).into_iter();
        let reports =
            writes.filter(|write| write.method == "PATCH" && write.path.contains("/collections/"));
        reports.map(|write| write.status).collect::<Vec<_>>()
    };
    eventually("its own end is refused", || async {
        let log = stage.world.log();
        let over = log.contains("reconciliation failed and is tried again")
            || log.contains("somebody else has written its status");
        match reports() {
            reports if over && reports.contains(&409) => Ok(()),
            reports => Err(format!("{reports:?}")),
        }
    })
    .await;
    let reports = reports();
    let refused = reports.iter().position(|status| *status == 409).unwrap();
    assert!(
        reports[refused..].iter().all(|status| *status == 409),
        "{reports:?}"
    );
    let status = status().await.unwrap();
    assert_eq!(status.phase, CollectionPhase::Sealed);
    assert_eq!(status.message, "by another");
}

#[tokio::test]
async fn a_lock_that_a_dead_replica_has_left_in_the_store_is_waited_out() {
    let mut stage = Stage::new().await;
    let quarantine = stage.ask_slowly().await;
    stage.world.kill_controller();
    // As an NFS server keeps it for a client that is gone.
    let case = stage.world.dir.path().join("store/INC-1");
    let lock = std::fs::File::options()
        .write(true)
        .open(case.join(format!(".lock-{quarantine}")))
        .unwrap();
    lock.lock().unwrap();
    stage.agent.state.lock().unwrap().slow = false;
    stage.world.expire_lease().await;
    stage.world.start_controller().await;
    let collections =
        Api::<Collection>::namespaced(stage.world.client.clone(), &stage.world.namespace);
    let status = || async {
        let collection = collections.get(&quarantine).await.unwrap();
        collection.status.unwrap()
    };
    eventually("the lock is met more often than attempts fail", || async {
        let log = stage.world.log();
        match log.matches("somebody else holds it in the store").count() {
            5.. => Ok(()),
            few => Err(format!("{few} times; {:?}", status().await)),
        }
    })
    .await;
    let now = status().await;
    assert_eq!(now.phase, CollectionPhase::Collecting, "{now:#?}");
    assert!(
        now.message.contains("another task or replica"),
        "{}",
        now.message
    );
    drop(lock);
    eventually("it is sealed", || async {
        let now = status().await;
        match now.phase {
            CollectionPhase::Sealed => Ok(()),
            _ => Err(format!("{now:?}")),
        }
    })
    .await;
}

#[tokio::test]
async fn a_collection_that_another_has_claimed_is_dropped_in_the_middle() {
    let stage = Stage::new().await;
    stage.agent.state.lock().unwrap().slow_inspect = true;
    stage.agent.state.lock().unwrap().slow = true;
    let quarantine = stage.ask().await;
    let collections =
        Api::<Collection>::namespaced(stage.world.client.clone(), &stage.world.namespace);
    let status = || async {
        let collection = collections.get_opt(&quarantine).await.unwrap();
        collection.and_then(|collection| collection.status)
    };
    eventually("it is at work", || async {
        match status().await {
            Some(status) if status.worker.is_some() => Ok(()),
            status => Err(format!("{status:?}")),
        }
    })
    .await;
    // As one does that takes this worker for dead, while its own lease is renewed all the same.
    let claimed = json!({ "status": { "worker": "impound-worker-9/another" } });
    collections
        .patch_status(&quarantine, &PatchParams::default(), &Patch::Merge(claimed))
        .await
        .unwrap();
    stage.agent.state.lock().unwrap().slow_inspect = false;
    // Its export would be waited for without end.
    eventually("it is dropped", || async {
        let log = stage.world.log();
        match log.contains("somebody else has written its status") {
            true => Ok(()),
            false => Err(log),
        }
    })
    .await;
    // The other one has no lease, so this one goes on in its place.
    stage.agent.state.lock().unwrap().slow = false;
    eventually("it is sealed", || async {
        match status().await {
            Some(status) if status.phase == CollectionPhase::Sealed => Ok(()),
            status => Err(format!("{status:?}")),
        }
    })
    .await;
}
