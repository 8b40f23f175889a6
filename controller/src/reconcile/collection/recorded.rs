//! The status of one collection on its way to the API, written by one process alone.
//!
//! The patch carries the uid, so a collection re-created under the same name is never touched, and the
//! resourceVersion: a write of a replica that has lost its lease may arrive late, and must not make a
//! collection that its successor has sealed look unfinished.

use kube::ResourceExt;
use kube::api::{Api, Patch};
use serde_json::{Value, json};

use crate::describe::describe;
use crate::kubernetes::from_kube;
use crate::reconcile::containing::backoff;
use crate::reconcile::record::{manager, without_nulls};
use crate::reconcile::{Context, LONGEST_WAIT, ReconcileError};
use crate::resources::{Collection, CollectionStatus};

/// Writes of one status that meet a conflict though nobody else has written the status.
const TRIES: usize = 5;

/// Writes without an answer that are remembered. An API that is away takes none of them.
const UNANSWERED: usize = 16;

/// A collection as this process knows it in the API.
pub(super) struct Recorded {
    /// As read, with the version of the last write.
    pub(super) object: Collection,
    /// Statuses that may stand in the API by our own hand: the last one known, and those whose write was not
    /// answered.
    ours: Vec<Value>,
}

impl Recorded {
    pub(super) fn new(object: Collection) -> Self {
        let ours = vec![without_nulls(json!(object.status))];
        Self { object, ours }
    }

    /// Writes the status.
    ///
    /// # Errors
    /// If the API does not take it, or somebody else has written the status (409): the work is then begun again
    /// from what stands there.
    pub(super) async fn save(
        &mut self,
        context: &Context,
        status: &CollectionStatus,
    ) -> Result<(), ReconcileError> {
        let namespace = self.object.namespace().unwrap_or_default();
        let api = Api::<Collection>::namespaced(context.client.clone(), &namespace);
        let name = self.object.name_any();
        let path = format!("collections/{name}/status");
        if self.ours.len() > UNANSWERED {
            self.ours.remove(1);
        }
        self.ours.push(without_nulls(json!(status)));
        let mut tries = 1;
        loop {
            let metadata = &self.object.metadata;
            let patch = json!({
                "metadata": { "uid": metadata.uid, "resourceVersion": metadata.resource_version },
                "status": status,
            });
            let answer = api
                .patch_status(&name, &manager(), &Patch::Merge(patch))
                .await
                .map_err(|error| from_kube("PATCH", &path, error));
            match answer {
                Ok(object) => {
                    *self = Self::new(object);
                    return Ok(());
                }
                Err(error) if error.is_conflict() && tries < TRIES => {
                    tries += 1;
                    let now = api.get(&name).await;
                    let now = now.map_err(|error| from_kube("GET", &path, error))?;
                    if !self.ours.contains(&without_nulls(json!(now.status))) {
                        return Err(error.into());
                    }
                    // An answer of ours was lost, or somebody changed the metadata.
                    self.object.metadata.resource_version = now.metadata.resource_version;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The end of a collection is recorded however long the API is away: a restart would otherwise
    /// do the whole work again.
    ///
    /// # Errors
    /// As [`Recorded::save`], except that no answer, or one that asks for patience, is waited out.
    pub(super) async fn save_surely(
        &mut self,
        context: &Context,
        status: &CollectionStatus,
    ) -> Result<(), ReconcileError> {
        let mut attempts = 0;
        loop {
            match self.save(context, status).await {
                Err(ReconcileError::Api(error)) if error.is_transient() && !error.is_conflict() => {
                    attempts += 1;
                    tracing::warn!(case = self.object.spec.case, error = %describe(&error), "the collection's end is not recorded yet");
                    let asked = error.retry_after().min(LONGEST_WAIT);
                    tokio::time::sleep(backoff(attempts).max(asked)).await;
                }
                outcome => return outcome,
            }
        }
    }
}
