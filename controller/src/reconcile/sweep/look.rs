//! Looks at targets before their collections are made: whether the pod is there, and its node's agent answers.
//!
//! A look that takes long is passed over: it goes on beside the others, takes up nobody's place, and what it shows is
//! taken in by a later round. So agents that are dead, however many and wherever in the list, cost the living ones a
//! fraction of a second and no more.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use kube::Client;
use tokio::task::{Id, JoinSet};
use tokio::time::{Instant, timeout_at};

use super::memory::{Place, Target};
use crate::agents::AgentConnector;
use crate::describe::describe;
use crate::kubernetes::{ApiError, pace, read};
use crate::reconcile::Context;

/// Looks that are under way at the same time.
pub(super) const MOST: usize = 256;

/// How long a round waits for the looks that it has begun. An agent that is there answers within milliseconds.
const IN_TIME: Duration = Duration::from_millis(500);

/// How long an agent's answer is waited for. One that takes longer is asked again later.
const ANSWER: Duration = Duration::from_secs(3);

/// What a look at a target shows.
pub(super) enum Seen {
    Ready,
    /// There is nothing to collect.
    Absent(String),
    /// Its node's agent does not answer now.
    Silent(String),
    /// It never will.
    NoAgent(String),
    /// The Kubernetes API does not say.
    Unknown(ApiError),
}

/// A look that has ended.
pub(super) struct Looked {
    pub(super) target: Target,
    pub(super) seen: Seen,
    /// It took up no place.
    pub(super) late: bool,
}

/// Looks that are under way. They end with it.
#[derive(Default)]
pub(super) struct Looks {
    tasks: JoinSet<(Target, Seen)>,
    under_way: HashMap<Id, UnderWay>,
}

struct UnderWay {
    place: Place,
    node: String,
    late: bool,
}

impl Looks {
    /// Begins a look at each. Those that are `late` from the beginning are waited for by no round.
    pub(super) fn begin(&mut self, targets: Vec<Target>, late: bool, context: &Context) {
        for target in targets {
            let (place, node) = (target.place, target.pod.node.clone());
            let look = look(target, context.client.clone(), context.agents.clone());
            let task = self.tasks.spawn(pace::of_this_work(look));
            let under_way = UnderWay { place, node, late };
            self.under_way.insert(task.id(), under_way);
        }
    }

    /// Those that have ended, and those that do so soon.
    pub(super) async fn ended(&mut self) -> Vec<Looked> {
        let until = Instant::now() + IN_TIME;
        let mut all = Vec::new();
        loop {
            let ended = match self.under_way.values().any(|one| !one.late) {
                true => timeout_at(until, self.tasks.join_next_with_id()).await,
                false => Ok(self.tasks.try_join_next_with_id()),
            };
            match ended {
                Ok(Some(Ok((id, (target, seen))))) => {
                    let known = self.under_way.remove(&id);
                    let late = known.is_some_and(|known| known.late);
                    all.push(Looked { target, seen, late });
                }
                // It is looked at again.
                Ok(Some(Err(error))) => {
                    self.under_way.remove(&error.id());
                    tracing::error!(error = %describe(&error), "a look at a target failed");
                }
                Ok(None) | Err(_) => return all,
            }
        }
    }

    /// Nobody waits for those any more that have not ended; says how many they are.
    pub(super) fn pass_over(&mut self) -> usize {
        let in_time = self.under_way.values_mut().filter(|one| !one.late);
        in_time.map(|one| one.late = true).count()
    }

    /// The targets that are looked at, and their nodes: who answers late is not asked by others meanwhile.
    pub(super) fn held(&self) -> (HashSet<Place>, HashSet<&str>) {
        let all = self.under_way.values();
        let nodes = all.clone().map(|one| one.node.as_str());
        (
            all.map(|one| one.place).collect(),
            nodes.filter(|node| !node.is_empty()).collect(),
        )
    }

    pub(super) fn len(&self) -> usize {
        self.under_way.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }
}

async fn look(target: Target, client: Client, agents: AgentConnector) -> (Target, Seen) {
    let pod = &target.pod;
    let path = format!("/api/v1/namespaces/{}/pods/{}", pod.namespace, pod.pod);
    let now = match read(&client, &path).await {
        Ok(now) => now,
        Err(error) => return (target, Seen::Unknown(error)),
    };
    let text = |at: &str| now.as_ref().and_then(|now| now.pointer(at)?.as_str());
    let seen = match text("/metadata/uid") {
        None => Seen::Absent("the pod was gone before its turn".into()),
        Some(uid) if uid != pod.uid => Seen::Absent(format!(
            "the pod was gone before its turn, and another has its name (uid {uid}, expected {})",
            pod.uid
        )),
        Some(_) if pod.node.is_empty() => {
            let since = text("/spec/nodeName").map_or_else(String::new, |node| {
                format!(", and is on node {node} now: it was not collected")
            });
            Seen::Absent(format!(
                "it was on no node when the pods were listed{since}"
            ))
        }
        Some(_) => match agents.connect_within(&pod.node, ANSWER).await {
            Ok(_) => Seen::Ready,
            Err(error) if error.is_transient() => Seen::Silent(describe(&error)),
            Err(error) => Seen::NoAgent(describe(&error)),
        },
    };
    (target, seen)
}
