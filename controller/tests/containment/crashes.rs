//! The controller killed after each of its writes in turn, in the worst moment: the write has had its
//! effect and its answer never came. The next one ends in the same state, and no effect comes twice.
//!
//! Reads change nothing and the controller keeps nothing, so that a crash after a read is one after the
//! write before it.

use std::sync::Arc;

use impound_controller::resources::QuarantinePhase;
use serde_json::Value;
use tokio::sync::Semaphore;

use super::outcome::{Owner, Scene, differences};

/// Runs at a time: most of a run is waiting.
const AT_ONCE: usize = 5;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Job {
    Quarantine,
    Release,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployments_pod_is_contained_whichever_write_the_controller_dies_after() {
    at_every_write(Owner::Deployment, Job::Quarantine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployments_pod_is_released_whichever_write_the_controller_dies_after() {
    at_every_write(Owner::Deployment, Job::Release).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statefulsets_pod_is_contained_whichever_write_the_controller_dies_after() {
    at_every_write(Owner::StatefulSet, Job::Quarantine).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statefulsets_pod_is_released_whichever_write_the_controller_dies_after() {
    at_every_write(Owner::StatefulSet, Job::Release).await;
}

/// How a run ended.
struct End {
    outcome: Value,
    effects: Vec<String>,
    /// Writes of the job.
    writes: usize,
    killed: bool,
}

async fn at_every_write(owner: Owner, job: Job) {
    let undisturbed = run(owner, job, None).await;
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let runs = (1..=undisturbed.writes).map(|write| {
        let places = places.clone();
        tokio::spawn(async move {
            let _place = places.acquire().await.unwrap();
            run(owner, job, Some(write)).await
        })
    });
    let ends = futures::future::join_all(runs).await;
    let mut killed = 0;
    let mut wrong = Vec::new();
    for (end, write) in ends.into_iter().zip(1..) {
        let end = end.unwrap();
        killed += usize::from(end.killed);
        let differs = differences(&end.outcome, &undisturbed.outcome);
        if !differs.is_empty() {
            wrong.push(format!("killed after write {write}: {differs:#?}"));
        }
        if end.effects != undisturbed.effects {
            wrong.push(format!("killed after write {write}: {:#?}", end.effects));
        }
    }
    assert!(
        wrong.is_empty(),
        "{owner:?}, {job:?}: {}\nundisturbed: {:#?}",
        wrong.join("\n"),
        undisturbed.effects
    );
    // How often the waiting for terminating neighbours is recorded is not the same in every run.
    assert!(
        killed + 2 >= undisturbed.writes,
        "only {killed} of {} writes came in their run",
        undisturbed.writes
    );
}

async fn run(owner: Owner, job: Job, kill_after: Option<usize>) -> End {
    let mut scene = Scene::new(owner).await;
    let phase = match job {
        Job::Quarantine => QuarantinePhase::Complete,
        Job::Release => {
            scene.ask().await;
            scene.ended(QuarantinePhase::Complete).await;
            QuarantinePhase::Released
        }
    };
    let before = scene.writes();
    let fault = kill_after.map(|write| scene.world.hang_after(write));
    match job {
        Job::Quarantine => scene.ask().await,
        Job::Release => scene.ask_for_release().await,
    }
    let mut killed = false;
    if let Some(fault) = fault {
        killed = tokio::select! {
            () = fault.hung() => true,
            _ = scene.ended(phase) => false,
        };
        scene.world.kill_controller();
        fault.remove();
        scene.world.expire_lease().await;
        scene.world.start_controller().await;
    }
    let quarantine = scene.ended(phase).await;
    let outcome = scene.outcome(&quarantine).await;
    End {
        outcome,
        effects: scene.effects(),
        writes: scene.writes() - before,
        killed,
    }
}
