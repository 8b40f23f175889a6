//! The end of a collection: its manifest, made so that a second attempt makes the same bytes, and
//! its seal.

use impound_evidence::{
    BUNDLE, Completeness, Entry, Event, Manifest, Missing, Node, OMISSIONS, Outcome, Pod, Timestamp,
};

use super::note::{Note, Sealing};
use super::session::Session;
use super::{CollectError, Collector, SealedCollection, before};
use crate::seal::{self, Seal, SealError};

impl Session<'_> {
    /// Describes the collection if it is sealed already; completes the log if only that is missing.
    pub(super) async fn sealed(&self) -> Result<Option<SealedCollection>, CollectError> {
        let bundle = self.path(BUNDLE, "the bundle")?;
        let size = self
            .collector
            .store
            .size(&self.at, &bundle)
            .await
            .map_err(|error| self.store_error(error))?;
        if size.is_none() || self.is_sealing().await {
            return Ok(None);
        }
        let seal = seal::read(&self.collector.store, &self.collector.signer, &self.at).await;
        seal.map(|seal| Some(self.described(seal)))
            .map_err(|error| self.seal_error(error))
    }

    pub(super) async fn is_sealing(&self) -> bool {
        self.noted(|note| note.sealing.is_some()).await
    }

    /// Ends collecting: from here on the manifest is settled.
    pub(super) async fn begin_sealing(&self) -> Result<(), CollectError> {
        let stored = self.all_stored();
        let bytes: u64 = stored.iter().map(|record| record.size).sum();
        let what = format!(
            "{} files, {bytes} bytes: each re-read from the store and equal to what arrived",
            stored.len()
        );
        let entry = Entry::new(Event::Verified, Collector::who(), what);
        let custody = self
            .collector
            .custody
            .append_all(&self.at, vec![entry])
            .await
            .map_err(|error| self.seal_error(error))?;
        let missing = self
            .all_missing()
            .into_iter()
            .map(|(path, reason)| Missing { path, reason })
            .collect();
        let sealing = Sealing {
            created: Timestamp::now(),
            custody,
            missing,
            controller: self.collector.build.clone(),
        };
        self.note(|note| note.sealing = Some(sealing)).await
    }

    /// Manifest, signature, `Sealed`: each step once, also over several runs.
    pub(super) async fn seal(&self) -> Result<SealedCollection, CollectError> {
        let Some(manifest) = self.noted(|note| self.manifest(note)).await else {
            return Err(self.seal_error(SealError::NotBegun {
                at: self.at.clone(),
            }));
        };
        let sealed = seal::seal(
            &self.collector.store,
            &self.collector.custody,
            &self.lock,
            &Collector::who(),
            manifest,
        )
        .await;
        let seal = sealed.map_err(|error| match error {
            SealError::Differs { file, .. } => CollectError::NotOurs {
                at: self.at.to_string(),
                file,
            },
            error => self.seal_error(error),
        })?;
        self.collector
            .store
            .save_note(&self.lock, Vec::new())
            .await
            .map_err(|error| self.store_error(error))?;
        Ok(self.described(seal))
    }

    fn manifest(&self, note: &Note) -> Option<Manifest> {
        let sealing = note.sealing.as_ref()?;
        let artifacts = self.all_stored();
        let whole = artifacts
            .iter()
            .all(|record| record.completeness == Completeness::Complete);
        let target = &self.job.target;
        let node_object = self.job.before.iter().find(|(name, _)| name == "node.json");
        Some(Manifest {
            case: self.at.case.clone(),
            collection: self.at.name.clone(),
            outcome: if whole && sealing.missing.is_empty() {
                Outcome::Complete
            } else {
                Outcome::Partial
            },
            requested_by: self.job.requested_by.clone(),
            reason: self.job.reason.clone(),
            created: sealing.created,
            controller: sealing.controller.clone(),
            cluster: self.job.cluster.clone(),
            node: Node {
                name: target.node.clone(),
                uid: note
                    .node_uid
                    .clone()
                    .or_else(|| node_object.and_then(|(_, bytes)| before::uid(bytes))),
            },
            pod: Pod {
                namespace: target.namespace.clone(),
                name: target.name.clone(),
                uid: target.uid.clone(),
            },
            quarantine: self.job.quarantine.clone(),
            agents: note.agents.clone(),
            containers: note
                .containers
                .iter()
                .map(|known| known.container.clone())
                .collect(),
            artifacts,
            missing: sealing.missing.clone(),
            alterations: note.alterations.clone(),
            omissions: OMISSIONS.iter().map(|text| (*text).to_owned()).collect(),
            custody: sealing.custody,
        })
    }

    fn described(&self, seal: Seal) -> SealedCollection {
        let missing = seal
            .manifest
            .missing
            .iter()
            .map(|missing| format!("{}: {}", missing.path, missing.reason));
        let incomplete =
            seal.manifest
                .artifacts
                .iter()
                .filter_map(|record| match &record.completeness {
                    Completeness::Incomplete { reasons } => Some(format!(
                        "{}: incomplete: {}",
                        record.path,
                        reasons.join("; ")
                    )),
                    Completeness::Complete => None,
                });
        SealedCollection {
            outcome: seal.manifest.outcome,
            manifest_sha256: seal.manifest_sha256,
            location: self.collector.store.location(&self.at),
            missing: missing.chain(incomplete).collect(),
            warnings: self.warnings(),
        }
    }
}
