//! What is left of an object that was not finished: after a broken attempt, or after a crash.

use std::collections::BTreeMap;

use impound_evidence::{
    ArtifactRecord, BUNDLE, CHECKPOINT_STAMP, Completeness, Consistency, Encoder, EvidencePath,
    MANIFEST, Method, SCRIPT, Timestamp, without_suffixes,
};

use super::CollectError;
use super::encrypted::Left;
use super::note::Begun;
use super::session::{Session, in_store};
use crate::store::partial_path;

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
        // Of what was to be encrypted, the artifact.
        let whole = self.path(without_suffixes(path.as_str()), "the name of an artifact")?;
        // The crash came after `Read`: these are all its bytes, whole or a partial one's.
        let as_read = read.values().find(|record| {
            let partial = |of: &EvidencePath| format!("{of}.partial-");
            let name = record.path.as_str();
            let for_this = record.stored_path() == path
                || name.starts_with(&partial(path))
                || name.starts_with(&partial(&whole));
            for_this && in_store(record) == left.content() && self.stored(&record.path).is_none()
        });
        if let Some(record) = as_read {
            let named = left
                .keep_as(record.stored_path())
                .await
                .map_err(|error| self.store_error(error))?;
            let taken_over = self.take_over(record).await;
            taken_over.map_err(|error| self.store_error(error))?;
            return self.record_stored(vec![(record.clone(), named)]).await;
        }
        let begun = self.noted(|note| note.begun.get(&whole).cloned()).await;
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
                self.keep(Left::cut_off(left), &begun, vec![why], None)
                    .await
                    .map(drop)
            }
        }
    }

    /// Keeps what came under a name of its own, marked incomplete; nothing if nothing came.
    pub(super) async fn keep(
        &self,
        left: Left,
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
        left: Left,
        begun: &Begun,
        reasons: Vec<String>,
        finished: Option<Timestamp>,
    ) -> Result<Option<EvidencePath>, CollectError> {
        let intended = left.unfinished.intended().clone();
        let sized = left
            .content(&intended)
            .map_err(|error| self.too_long(error))?;
        if worthless || sized.0.size == 0 {
            left.unfinished
                .discard()
                .await
                .map_err(|error| self.store_error(error))?;
            return Ok(None);
        }
        // What was cut off while it was encrypted is kept as that: `age` decrypts what came until then.
        let of = match &sized.1 {
            Some(_) => self.path(
                without_suffixes(intended.as_str()),
                "the name of an artifact",
            )?,
            None => intended,
        };
        let path = self.free_partial(&of).await?;
        let (content, stored) = left.content(&path).map_err(|error| self.too_long(error))?;
        let completeness = Completeness::Incomplete { reasons };
        let mut record = begun.record(&path, content, completeness, finished);
        record.stored = stored;
        if without_suffixes(of.as_str()) != of.as_str() {
            record.media_type = "application/octet-stream".to_owned();
        }
        self.record_read(&[&record]).await?;
        let receipt = left
            .unfinished
            .keep_as(record.stored_path())
            .await
            .map_err(|error| self.store_error(error))?;
        self.record_stored(vec![(record, receipt)]).await?;
        Ok(Some(path))
    }

    /// A name for a part of `of` that is free, plain and in whatever form: no two artifacts have the same path.
    async fn free_partial(&self, of: &EvidencePath) -> Result<EvidencePath, CollectError> {
        let mut n = 1;
        loop {
            let path = partial_path(of, n).map_err(|error| self.store_error(error))?;
            let stored = Encoder::stored_path(&path).map_err(|source| CollectError::Name {
                at: self.at.to_string(),
                what: "the name of an artifact",
                source,
            })?;
            let mut free = self.stored(&path).is_none();
            for name in [&path, &stored] {
                let size = self.collector.store.size(&self.at, name).await;
                free &= size.map_err(|error| self.store_error(error))?.is_none();
            }
            if free {
                return Ok(path);
            }
            n += 1;
        }
    }
}
