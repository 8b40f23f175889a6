//! What is left of an object that was not finished: after a broken attempt, or after a crash.

use std::collections::BTreeMap;

use impound_evidence::{
    ArtifactRecord, BUNDLE, CHECKPOINT_STAMP, Completeness, Consistency, EvidencePath, MANIFEST,
    Method, SCRIPT, Timestamp,
};

use super::CollectError;
use super::note::Begun;
use super::session::{Session, content};
use crate::store::{Unfinished, partial_path};

impl Session<'_> {
    /// Settles a leftover of an earlier run. `read`: what the custody log says was read.
    pub(super) async fn settle(
        &self,
        path: &EvidencePath,
        read: &BTreeMap<EvidencePath, ArtifactRecord>,
    ) -> Result<(), CollectError> {
        let left = self
            .collector
            .store
            .leftover(&self.lock, path)
            .await
            .map_err(|error| self.store_error(error))?;
        let Some(left) = left else { return Ok(()) };
        // The crash came after `Read`: these are all its bytes, whole or a partial one's.
        let as_read = read.values().find(|record| {
            let for_this = record.path == *path
                || record
                    .path
                    .as_str()
                    .starts_with(&format!("{path}.partial-"));
            for_this && content(record) == left.content() && self.stored(&record.path).is_none()
        });
        if let Some(record) = as_read {
            let named = left
                .keep_as(&record.path)
                .await
                .map_err(|error| self.store_error(error))?;
            return self.record_stored(vec![(record.clone(), named)]).await;
        }
        let begun = self.noted(|note| note.begun.get(path).cloned()).await;
        let ours = path.as_str().starts_with("before/")
            || [MANIFEST, BUNDLE, CHECKPOINT_STAMP, SCRIPT].contains(&path.as_str());
        match begun {
            // Made here, and made again from the same source.
            _ if ours => left
                .discard()
                .await
                .map_err(|error| self.store_error(error)),
            // The image is still on the node and is saved again; listings are made again.
            Some(begun) if matches!(begun.method, Method::Commit | Method::Derived) => left
                .discard()
                .await
                .map_err(|error| self.store_error(error)),
            begun => {
                let why = "the controller stopped while the artifact was arriving".to_owned();
                let begun = begun.unwrap_or_else(|| Begun {
                    media_type: "application/octet-stream".to_owned(),
                    method: Method::Export,
                    api_call: String::new(),
                    source_id: String::new(),
                    consistency: Consistency::Live,
                    derived_from: Vec::new(),
                    started: None,
                    clock_offset_ms: None,
                    received_started: Timestamp::now(),
                });
                self.keep(left, &begun, vec![why], None).await.map(drop)
            }
        }
    }

    /// Keeps what came under a name of its own, marked incomplete; nothing if nothing came.
    pub(super) async fn keep(
        &self,
        left: Box<dyn Unfinished>,
        begun: &Begun,
        reasons: Vec<String>,
        finished: Option<Timestamp>,
    ) -> Result<Option<EvidencePath>, CollectError> {
        self.keep_unless(false, left, begun, reasons, finished)
            .await
    }

    /// The same, but nothing either of what is `worthless`.
    pub(super) async fn keep_unless(
        &self,
        worthless: bool,
        left: Box<dyn Unfinished>,
        begun: &Begun,
        reasons: Vec<String>,
        finished: Option<Timestamp>,
    ) -> Result<Option<EvidencePath>, CollectError> {
        if worthless || left.content().size == 0 {
            left.discard()
                .await
                .map_err(|error| self.store_error(error))?;
            return Ok(None);
        }
        let path = self.free_partial(left.intended()).await?;
        let completeness = Completeness::Incomplete { reasons };
        let record = begun.record(&path, left.content(), completeness, finished);
        self.record_read(&[&record]).await?;
        let receipt = left
            .keep_as(&path)
            .await
            .map_err(|error| self.store_error(error))?;
        self.record_stored(vec![(record, receipt)]).await?;
        Ok(Some(path))
    }

    async fn free_partial(&self, of: &EvidencePath) -> Result<EvidencePath, CollectError> {
        let mut n = 1;
        loop {
            let path = partial_path(of, n).map_err(|error| self.store_error(error))?;
            let size = self
                .collector
                .store
                .size(&self.at, &path)
                .await
                .map_err(|error| self.store_error(error))?;
            if size.is_none() {
                return Ok(path);
            }
            n += 1;
        }
    }
}
