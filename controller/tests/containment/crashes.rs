//! The controller killed after each of its writes in turn: the next one ends in the same state, and
//! no effect comes twice.

use std::time::Duration;

use super::world::{World, name};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_after_any_write_converges_without_a_repeated_effect() {
    let undisturbed = World::start_in_memory().await;
    let pods = undisturbed.deployment("nginx", 2, None).await;
    let done = undisturbed.quarantine(&name(pods.first().unwrap())).await;
    assert_eq!(done.phase, "Complete");
    let effects = undisturbed.effects().len();
    let writes = writes(&undisturbed);
    drop(undisturbed);

    let runs = (1..=writes).map(|after| tokio::spawn(killed_after(after, effects)));
    for run in futures::future::join_all(runs).await {
        run.unwrap();
    }
}

async fn killed_after(write: usize, expected_effects: usize) {
    let mut world = World::start_in_memory().await;
    let pods = world.deployment("nginx", 2, None).await;
    let suspect = name(pods.first().unwrap());
    let base = writes(&world);
    let mut alice = world.responder("alice").await;
    let request = world.request(&suspect);
    let asked = tokio::spawn(async move { alice.create_quarantine(request).await });
    let reached = async {
        while writes(&world) < base + write {
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), reached)
        .await
        .expect("the write comes");
    drop(asked);
    world.kill_controller();
    world.start_controller().await;
    let quarantine = world.current(&suspect).await.name;
    let done = world.settled(&quarantine).await;
    assert_eq!(
        done.phase, "Complete",
        "killed after write {write}: {done:#?}"
    );
    let effects = world.effects();
    assert_eq!(
        effects.len(),
        expected_effects,
        "killed after write {write}: {effects:#?}"
    );
}

/// Writes other than to lease and events: those that containment consists of.
fn writes(world: &World) -> usize {
    let own = ["/leases", "/events"];
    world
        .requests()
        .iter()
        .filter(|request| {
            request.method != "GET" && !own.iter().any(|own| request.path.contains(own))
        })
        .count()
}
