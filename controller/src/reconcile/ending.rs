//! Notices at once that neighbours which terminate have ended: one watch over their node's pods as long as
//! one of them is there, instead of asking the API again and again. And what happens to a suspect that carries no
//! label of ours (a static pod, one of a foreign controller), which the watch over quarantined pods does not show: one
//! watch over that pod, as long as the quarantine is in force.
//!
//! It only wakes the reconciler, which looks for itself. A watch that fails costs time: the reconciler looks
//! now and then without being woken.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Mutex;

use futures::{Stream, StreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::record::Record;
use super::restarts::container_ids;
use crate::describe::describe;
use crate::locked::locked;
use crate::resources::Quarantine;

/// The watches of this process: one for each quarantine whose neighbours terminate, one for each whose suspect
/// carries no label.
pub struct Endings {
    client: Client,
    wake: mpsc::UnboundedSender<ObjectRef<Quarantine>>,
    watched: Mutex<HashMap<String, Watched>>,
    attended: Mutex<HashMap<String, AbortOnDropHandle<()>>>,
}

struct Watched {
    /// uids of the pods whose end is waited for.
    pods: BTreeSet<String>,
    task: AbortOnDropHandle<()>,
}

/// Quarantines whose neighbours have ended, as [`Endings`] tells them.
pub type Ended = mpsc::UnboundedReceiver<ObjectRef<Quarantine>>;

impl Endings {
    /// `client` must allow watches to be silent for minutes.
    #[must_use]
    pub fn new(client: Client) -> (Self, Ended) {
        let (wake, ended) = mpsc::unbounded_channel();
        let endings = Self {
            client,
            wake,
            watched: Mutex::default(),
            attended: Mutex::default(),
        };
        (endings, ended)
    }

    /// What wakes this quarantine once.
    pub fn waker(&self, record: &Record) -> impl FnOnce() + Send + 'static {
        let (wake, quarantine) = (self.wake.clone(), ObjectRef::from_obj(&record.object));
        move || {
            // Nobody listens once the reconcilers were dropped, as by a lost lease.
            let _ = wake.send(quarantine);
        }
    }

    /// Wakes the quarantine once when none of the pods with these uids is on its node any more. Replaces what
    /// was watched for it before; without pods nothing is.
    pub fn watch(&self, record: &Record, pods: BTreeSet<String>) {
        let uid = record.uid();
        let mut watched = locked(&self.watched);
        if pods.is_empty() {
            watched.remove(&uid);
            return;
        }
        let same = |known: &Watched| known.pods == pods && !known.task.is_finished();
        if watched.get(&uid).is_some_and(same) {
            return;
        }
        let node = record.status.node.clone().unwrap_or_default();
        let (client, wake, left) = (self.client.clone(), self.waker(record), pods.clone());
        let task = tokio::spawn(async move {
            until_gone(client, &node, left).await;
            wake();
        });
        let task = AbortOnDropHandle::new(task);
        watched.insert(uid, Watched { pods, task });
    }

    /// Wakes the quarantine whenever its suspect's containers are others than before, or the pod is gone or another
    /// one. `seen` is what has been looked at. What is watched already goes on being so.
    pub fn attend(&self, record: &Record, seen: &Pod) {
        let mut attended = locked(&self.attended);
        let watched = attended.get(&record.uid());
        if watched.is_some_and(|task| !task.is_finished()) {
            return;
        }
        let pods = Api::<Pod>::namespaced(self.client.clone(), &record.namespace());
        let (wake, quarantine) = (self.wake.clone(), ObjectRef::from_obj(&record.object));
        let (name, seen) = (seen.name_any(), marks(Some(seen)));
        let task = tokio::spawn(async move {
            each_change(pods, &name, seen, || {
                // As above.
                let _ = wake.send(quarantine.clone());
            })
            .await;
        });
        attended.insert(record.uid(), AbortOnDropHandle::new(task));
    }

    /// Ends what is watched for the quarantine with this uid.
    pub fn forget(&self, uid: &str) {
        let mut attended = locked(&self.attended);
        attended.remove(uid);
        let mut watched = locked(&self.watched);
        watched.remove(uid);
    }
}

/// The quarantines to look at, for the controller.
pub fn woken(ended: Ended) -> impl Stream<Item = ObjectRef<Quarantine>> + Send + 'static {
    stream::unfold(ended, |mut ended| async {
        let quarantine = ended.recv().await?;
        Some((quarantine, ended))
    })
}

async fn until_gone(client: Client, node: &str, mut left: BTreeSet<String>) {
    let on_node = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
    let events = watcher(Api::<Pod>::all(client), on_node).default_backoff();
    let mut events = std::pin::pin!(events);
    let mut listed = BTreeSet::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Init) => listed.clear(),
            Ok(watcher::Event::InitApply(pod)) => listed.extend(pod.uid()),
            Ok(watcher::Event::InitDone) => left.retain(|uid| listed.contains(uid)),
            Ok(watcher::Event::Apply(_)) => {}
            Ok(watcher::Event::Delete(pod)) => {
                let _ = pod.uid().is_some_and(|uid| left.remove(&uid));
            }
            Err(error) => {
                tracing::warn!(node, error = %describe(&error), "the node's pods can't be watched");
            }
        }
        if left.is_empty() {
            return;
        }
    }
}

/// What of a pod is looked at again when it is another.
type Marks = Option<(Option<String>, BTreeMap<String, (String, i32)>)>;

fn marks(pod: Option<&Pod>) -> Marks {
    pod.map(|pod| (pod.uid(), container_ids(pod)))
}

async fn each_change(pods: Api<Pod>, name: &str, mut seen: Marks, wake: impl Fn()) {
    let changes = watcher::watch_object(pods, name).default_backoff();
    let mut changes = std::pin::pin!(changes);
    while let Some(change) = changes.next().await {
        match change {
            Ok(pod) => {
                let now = marks(pod.as_ref());
                if now != seen {
                    wake();
                }
                seen = now;
            }
            Err(error) => {
                tracing::warn!(pod = name, error = %describe(&error), "the suspect can't be watched");
            }
        }
    }
}
