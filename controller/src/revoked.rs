//! Nodes that are not trusted any more: their agents get no certificates, are not connected to, and live
//! connections to them end at once.
//!
//! The list is a ConfigMap in the controller's namespace, `impound-revoked-nodes`: each key is the uid of
//! a Node object, its value the reason. Only who may write there can revoke or take it back: the node
//! itself can't, as it could with a mark on its own Node object. A node that is made anew has a new uid.

use std::collections::BTreeMap;

use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::Api;
use kube::runtime::{WatchStreamExt, watcher};
use tokio::sync::watch;

/// Name of the ConfigMap.
pub const CONFIG_MAP: &str = "impound-revoked-nodes";

/// uid of a Node object, and why it is revoked; `None` before it was read for the first time.
type Nodes = Option<BTreeMap<String, String>>;

/// The list as of now. Clones see the same list.
#[derive(Clone, Debug)]
pub struct Revoked {
    nodes: watch::Receiver<Nodes>,
}

/// Keeps the list up to date.
pub struct RevokedWatch {
    publish: watch::Sender<Nodes>,
}

/// A list that is not known yet, and what fills it.
#[must_use]
pub fn list() -> (Revoked, RevokedWatch) {
    let (publish, nodes) = watch::channel(None);
    (Revoked { nodes }, RevokedWatch { publish })
}

impl Revoked {
    /// Why the node with this uid is revoked; `None` if it is not known to be.
    #[must_use]
    pub fn reason(&self, node_uid: &str) -> Option<String> {
        self.nodes.borrow().as_ref()?.get(node_uid).cloned()
    }

    /// Whether the list was read. Before, nobody can be called trusted.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.nodes.borrow().is_some()
    }

    /// Waits until the list has changed since the last time that this clone waited.
    pub async fn changed(&mut self) {
        // The sender is gone only when the process ends.
        if self.nodes.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl RevokedWatch {
    /// Follows the ConfigMap for as long as the process lives. A list that can't be read stays as it was:
    /// nobody is trusted again because the API does not answer.
    pub async fn run(self, client: Client, namespace: &str) {
        let api = Api::<ConfigMap>::namespaced(client, namespace);
        let mut seen = watcher::watch_object(api, CONFIG_MAP)
            .default_backoff()
            .boxed();
        while let Some(seen) = seen.next().await {
            match seen {
                Ok(found) => {
                    let nodes = found.and_then(|found| found.data).unwrap_or_default();
                    self.publish.send_if_modified(|before| {
                        let changed = before.as_ref() != Some(&nodes);
                        if changed {
                            let uids: Vec<&String> = nodes.keys().collect();
                            tracing::info!(?uids, "revoked nodes");
                            *before = Some(nodes);
                        }
                        changed
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "the list of revoked nodes can't be watched; it stays as it was");
                }
            }
        }
    }
}
