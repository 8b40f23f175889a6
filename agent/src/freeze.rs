//! Freezes: running containers of one pod are paused for a limited time, while they are read.
//!
//! A paused container answers no probe, and the kubelet restarts what does not answer, which destroys the
//! evidence. So a freeze ends at its time whatever becomes of the caller, of the connection or of this
//! process: a task of its own holds it, and a file says so before the first container is paused. An agent
//! that starts lets go whatever it finds such a file for. What nobody can let go in time is a container
//! whose agent ended and does not start again.

mod record;

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until};

use crate::runtime::{Container, ContainerId, ContainerRuntime, RuntimeError, State};
pub(crate) use record::Record;
use record::Records;

/// Pause before a container that could not be let go is tried again.
const AGAIN: Duration = Duration::from_millis(200);

/// How long a pause that was asked for may still happen after its answer did not come; the runtime's own
/// limit for an answer that needs no work is the same.
const LATE: Duration = Duration::from_secs(60);

/// How often it is looked for meanwhile.
const LOOK: Duration = Duration::from_secs(1);

/// Freezes that are remembered, so that a late thaw learns how one ended.
const REMEMBERED: usize = 64;

/// Freezes containers of one node.
pub(crate) struct Freezer {
    runtime: Arc<dyn ContainerRuntime>,
    records: Records,
    held: Mutex<HashMap<String, Held>>,
    number: AtomicU64,
}

/// A freeze, from the caller's side.
struct Held {
    /// Dropped or sent: let go now.
    release: Option<oneshot::Sender<()>>,
    ended: watch::Receiver<Option<Thawed>>,
}

/// A freeze that has begun.
#[derive(Clone, Debug)]
pub(crate) struct Frozen {
    pub(crate) id: String,
    pub(crate) since: SystemTime,
    pub(crate) until: SystemTime,
}

/// How a freeze ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Thawed {
    /// When the first container went on.
    pub(crate) at: SystemTime,
    pub(crate) by_deadline: bool,
}

impl Freezer {
    /// Keeps its files in `dir`, which is made when it is needed.
    pub(crate) fn new(runtime: Arc<dyn ContainerRuntime>, dir: PathBuf) -> Self {
        Self {
            runtime,
            records: Records::new(dir),
            held: Mutex::default(),
            number: AtomicU64::new(0),
        }
    }

    /// What an earlier process of this agent has left paused.
    pub(crate) fn left(&self) -> Result<Vec<(String, Record)>, FreezeError> {
        self.records.all()
    }

    /// Lets it go on. Ends when nothing of it is left.
    pub(crate) async fn let_go(self: Arc<Self>, left: Vec<(String, Record)>) {
        for (name, record) in left {
            tracing::warn!(
                freeze = name,
                containers = record.containers.len(),
                "an earlier process left containers paused: they go on"
            );
            thaw(&*self.runtime, &record.containers).await;
            // Its last request may still be with the engine.
            stay_thawed(&*self.runtime, &record.containers).await;
            self.forget(&name);
        }
    }

    /// Pauses running containers of one pod, all or none, for at most `limit` from now.
    pub(crate) async fn freeze(
        &self,
        ids: &[ContainerId],
        limit: Duration,
    ) -> Result<Frozen, FreezeError> {
        check(&self.runtime.containers().await?, ids)?;
        // Whoever ends that one would end this one.
        let others = self.records.all()?;
        if let Some(id) = ids.iter().find(|id| {
            let mut others = others.iter();
            others.any(|(_, other)| other.containers.contains(id))
        }) {
            return Err(FreezeError::Busy { id: id.clone() });
        }
        let (since, deadline) = (SystemTime::now(), Instant::now() + limit);
        let nanos = since
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
            .as_nanos();
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let id = format!("{nanos}-{number}");
        let record = Record {
            containers: ids.to_vec(),
        };
        self.records.write(&id, &record)?;
        let (release, released) = oneshot::channel();
        let (end, ended) = watch::channel(None);
        let (paused, answer) = oneshot::channel();
        let keeper = Keeper {
            runtime: Arc::clone(&self.runtime),
            records: self.records.clone(),
            id: id.clone(),
            containers: record.containers,
            deadline,
        };
        // In a task of its own: it ends when the time is over, not when the caller leaves.
        tokio::spawn(keeper.run(paused, released, end));
        self.remember(
            &id,
            Held {
                release: Some(release),
                ended,
            },
        );
        answer.await.map_err(|_| FreezeError::Ended)??;
        Ok(Frozen {
            id,
            since: SystemTime::now(),
            until: since + limit,
        })
    }

    /// Lets the containers of a freeze go on, and says how it ended. `None`: it is not known here.
    pub(crate) async fn thaw(&self, id: &str) -> Option<Thawed> {
        let (release, mut ended) = {
            let mut held = locked(&self.held);
            let held = held.get_mut(id)?;
            (held.release.take(), held.ended.clone())
        };
        if let Some(release) = release {
            // An error means that the time was over just now.
            let _ = release.send(());
        }
        let ended = ended.wait_for(Option::is_some).await;
        ended.ok().and_then(|ended| *ended)
    }

    /// Lets everything go on; for the agent's end.
    pub(crate) async fn thaw_all(&self) {
        let all: Vec<String> = locked(&self.held).keys().cloned().collect();
        for id in all {
            self.thaw(&id).await;
        }
    }

    fn forget(&self, name: &str) {
        if let Err(error) = self.records.remove(name) {
            // The next start finds it, and containers that run.
            tracing::warn!(freeze = name, %error, "the record of a freeze could not be removed");
        }
    }

    fn remember(&self, id: &str, freeze: Held) {
        let mut held = locked(&self.held);
        if held.len() >= REMEMBERED {
            held.retain(|_, held| held.ended.borrow().is_none());
        }
        held.insert(id.to_owned(), freeze);
    }
}

/// What holds a freeze.
struct Keeper {
    runtime: Arc<dyn ContainerRuntime>,
    records: Records,
    id: String,
    containers: Vec<ContainerId>,
    deadline: Instant,
}

impl Keeper {
    async fn run(
        self,
        paused: oneshot::Sender<Result<(), FreezeError>>,
        released: oneshot::Receiver<()>,
        ended: watch::Sender<Option<Thawed>>,
    ) {
        let mut stood = Ok(());
        for container in &self.containers {
            // The engine may be slow, the time is not: what is paused goes on at the deadline. But a request
            // is never dropped, for the engine may carry it out all the same, after everything was let go.
            let mut pause = std::pin::pin!(self.runtime.pause(container));
            stood = match tokio::time::timeout_at(self.deadline, &mut pause).await {
                Ok(done) => done.map_err(FreezeError::from),
                Err(_) => {
                    let late = pause.await;
                    tracing::warn!(freeze = self.id, %container, ?late, "the engine answered a pause after its time");
                    Err(FreezeError::TooSlow)
                }
            };
            if stood.is_err() {
                break;
            }
        }
        let failed = stood.is_err();
        // The caller may be gone; the freeze ends at its time nevertheless.
        let _ = paused.send(stood);
        let by_deadline = !failed
            && tokio::select! {
                () = sleep_until(self.deadline) => true,
                // Also when the freezer itself is dropped.
                _ = released => false,
            };
        let at = thaw(&*self.runtime, &self.containers).await;
        if failed {
            stay_thawed(&*self.runtime, &self.containers).await;
        }
        tracing::info!(
            freeze = self.id,
            by_deadline,
            failed,
            "the frozen containers go on"
        );
        if let Err(error) = self.records.remove(&self.id) {
            // The next start finds it, and containers that run.
            tracing::warn!(freeze = self.id, %error, "the record of a freeze could not be removed");
        }
        ended.send_replace(Some(Thawed { at, by_deadline }));
    }
}

/// All of one pod, running, none of them its sandbox.
fn check(all: &[Container], ids: &[ContainerId]) -> Result<(), FreezeError> {
    let mut pods = Vec::new();
    for id in ids {
        let container = all
            .iter()
            .find(|container| container.id == *id)
            .ok_or_else(|| FreezeError::Unknown { id: id.clone() })?;
        let label = |name: &str| container.labels.get(name).map_or("", String::as_str);
        let sandbox = label("io.kubernetes.docker.type") == "podsandbox";
        if container.state != State::Running || sandbox {
            return Err(FreezeError::NotRunning {
                container: container.name.clone(),
            });
        }
        let pod = label("io.kubernetes.pod.uid").to_owned();
        if !pods.contains(&pod) {
            pods.push(pod);
        }
    }
    match pods.as_slice() {
        [pod] if !pod.is_empty() => Ok(()),
        _ => Err(FreezeError::SeveralPods),
    }
}

/// Lets all of them go on, and again until it is so. Returns when the first one did.
async fn thaw(runtime: &dyn ContainerRuntime, containers: &[ContainerId]) -> SystemTime {
    let mut first = None;
    for container in containers {
        loop {
            match runtime.unpause(container).await {
                Ok(()) => {
                    first.get_or_insert_with(SystemTime::now);
                    break;
                }
                Err(RuntimeError::NotFound { .. }) => break,
                Err(error) => {
                    // The engine says nothing that tells "is not paused" from any other refusal.
                    if !is_paused(runtime, container).await.unwrap_or(true) {
                        break;
                    }
                    tracing::error!(%container, %error, "a frozen container does not go on: trying again");
                    sleep(AGAIN).await;
                }
            }
        }
    }
    first.unwrap_or_else(SystemTime::now)
}

/// Lets go what a request that was not answered pauses late, for as long as the engine may take for one.
async fn stay_thawed(runtime: &dyn ContainerRuntime, containers: &[ContainerId]) {
    let end = Instant::now() + LATE;
    while Instant::now() < end {
        sleep(LOOK).await;
        for container in containers {
            if is_paused(runtime, container).await.unwrap_or(false) {
                tracing::warn!(%container, "it was paused after its time: it goes on");
                thaw(runtime, std::slice::from_ref(container)).await;
            }
        }
    }
}

async fn is_paused(runtime: &dyn ContainerRuntime, id: &ContainerId) -> Result<bool, RuntimeError> {
    let all = runtime.containers().await?;
    let found = all.iter().find(|container| container.id == *id);
    Ok(found.is_some_and(|container| container.state == State::Paused))
}

/// The map is whole after every statement, so a panic elsewhere doesn't spoil it.
fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why nothing was frozen.
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    #[error("this node's runtime has no container {id}")]
    #[allow(missing_docs, reason = "the message says it")]
    Unknown { id: ContainerId },
    #[error(
        "container {container} does not run (or is a sandbox, or is paused by somebody else), so it can't be frozen"
    )]
    NotRunning { container: String },
    #[error("the containers are not of one pod that a kubelet runs: freeze each pod by itself")]
    SeveralPods,
    #[error("the runtime did not pause the containers within the limit; they go on")]
    TooSlow,
    #[error(
        "an earlier freeze of container {id} is not over yet: try again in {} s",
        LATE.as_secs()
    )]
    #[allow(missing_docs, reason = "the message says it")]
    Busy { id: ContainerId },
    #[error("the freeze ended before it began")]
    Ended,
    #[error("the record of the freeze can't be kept at {}, so nothing is frozen: {source}", path.display())]
    Record { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

#[cfg(test)]
mod tests;
