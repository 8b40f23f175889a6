//! The controller killed after each of its calls to an agent in turn, in the worst moment: the call has had its
//! effect (a table is set, an image is made) and its answer never came. The next one ends in the same state, with
//! the same evidence, and leaves nothing on the node.

use std::sync::Arc;

use impound_controller::resources::{Collection, Quarantine};
use kube::api::Api;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::blocked::Stage;
use super::outcome::steps;
use super::world::eventually;

/// Runs at a time: each has a cluster, an agent and a controller, whose lease must be renewed in time.
const AT_ONCE: usize = 2;

/// How a run ended.
struct End {
    outcome: Value,
    effects: Vec<String>,
    /// Calls to the agent.
    calls: usize,
    killed: bool,
    verdict: String,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployments_pod_is_contained_and_collected_whichever_agent_call_the_controller_dies_after()
 {
    at_every_call(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployments_pod_is_released_whichever_agent_call_the_controller_dies_after() {
    at_every_call(true).await;
}

async fn at_every_call(release: bool) {
    let undisturbed = run(release, None).await;
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let runs = (1..=undisturbed.calls).map(|call| {
        let places = places.clone();
        tokio::spawn(async move {
            let _place = places.acquire().await.unwrap();
            run(release, Some(call)).await
        })
    });
    let ends = futures::future::join_all(runs).await;
    let mut killed = 0;
    let mut wrong = Vec::new();
    for (end, call) in ends.into_iter().zip(1..) {
        let end = end.unwrap();
        killed += usize::from(end.killed);
        if end.outcome != undisturbed.outcome || end.effects != undisturbed.effects {
            wrong.push(format!(
                "killed after call {call}: {:#} {:#?}",
                end.outcome, end.effects
            ));
        }
        // What answered before the isolation may be forgotten with the process: then nothing is proved.
        let verdicts = ["Isolated", "Contained"];
        if !release && !verdicts.contains(&&*end.verdict) {
            wrong.push(format!("killed after call {call}: {}", end.verdict));
        }
    }
    assert!(
        wrong.is_empty(),
        "{}\nundisturbed: {:#} {:#?}",
        wrong.join("\n"),
        undisturbed.outcome,
        undisturbed.effects
    );
    // How often an agent is asked for its table is not the same in every run.
    assert!(
        killed + 2 >= undisturbed.calls,
        "only {killed} of {} calls came in their run",
        undisturbed.calls
    );
}

async fn run(release: bool, kill_after: Option<usize>) -> End {
    let mut stage = Stage::new().await;
    let mut quarantine = String::new();
    if release {
        quarantine = stage.ask().await;
        stage.world.settled(&quarantine).await;
    }
    let before = {
        let mut state = stage.agent.state.lock().unwrap();
        state.hang_at = kill_after.map(|call| state.begun + call);
        state.begun
    };
    if release {
        stage.world.release(&quarantine, false).await.unwrap();
    } else {
        quarantine = stage.ask().await;
    }
    let phase = if release { "Released" } else { "Complete" };
    let mut killed = false;
    if kill_after.is_some() {
        killed = eventually("the call hangs, or the job ends", || async {
            let hung = stage.agent.state.lock().unwrap().hung;
            match stage.world.current(&quarantine).await.phase {
                _ if hung => Ok(true),
                now if now == phase => Ok(false),
                now => Err(now),
            }
        })
        .await;
        stage.world.kill_controller();
        stage.agent.state.lock().unwrap().hang_at = None;
        stage.world.expire_lease().await;
        stage.world.start_controller().await;
    }
    let done = stage
        .becomes(&quarantine, "the job ends", |now| now.phase == phase)
        .await;
    let calls = stage.agent.state.lock().unwrap().begun - before;
    End {
        outcome: outcome(&stage, &quarantine).await,
        effects: effects(&stage),
        calls,
        killed,
        verdict: done.verdict,
    }
}

/// What must be the same however the run went.
async fn outcome(stage: &Stage, quarantine: &str) -> Value {
    let (client, namespace) = (stage.world.client.clone(), &stage.world.namespace);
    let quarantines = Api::<Quarantine>::namespaced(client.clone(), namespace);
    let collections = Api::<Collection>::namespaced(client, namespace);
    let status = quarantines.get(quarantine).await.unwrap().status.unwrap();
    let collection = collections.get(quarantine).await.unwrap().status.unwrap();
    let steps = steps(&status);
    // What was on its way when the controller died is kept beside what was taken anew.
    let mut artifacts: Vec<String> = collection
        .artifacts
        .iter()
        .filter(|artifact| !artifact.path.contains(".partial-"))
        .map(|artifact| format!("{} {:?}", artifact.path, artifact.state))
        .collect();
    artifacts.sort();
    let state = stage.agent.state.lock().unwrap();
    let outcome = json!({
        "phase": status.phase, "steps": steps, "collection": collection.phase, "artifacts": artifacts,
        "isolated": state.isolated, "images": state.images.keys().collect::<Vec<_>>(),
    });
    serde_json::from_str(&stage.anonymous(&outcome.to_string())).unwrap()
}

fn effects(stage: &Stage) -> Vec<String> {
    let mut effects: Vec<String> = stage
        .world
        .effects()
        .iter()
        .map(|effect| stage.anonymous(effect))
        .collect();
    effects.sort();
    effects
}
