//! The end of a collection: its manifest, made so that a second attempt makes the same bytes, and
//! its seal.

use std::collections::BTreeMap;

use impound_evidence::{
    ArtifactRecord, BUNDLE, Completeness, Entry, Event, EvidencePath, Manifest, Method, Missing,
    Node, OMISSIONS, Outcome, Pod, Sha256, Timestamp, superseded,
};

use super::note::{Note, Sealing, Settled};
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
        let trusted = self.collector.custody.trusted();
        let seal = seal::read(&self.collector.store, trusted, &self.at).await;
        let seal = seal.map_err(|error| self.seal_error(error))?;
        Ok(Some(self.described(seal).await))
    }

    pub(super) async fn is_sealing(&self) -> bool {
        self.noted(|note| note.sealing.is_some()).await
    }

    /// Ends collecting, for later runs too: what was restarted meanwhile would be in no timeline. The log says
    /// what was given up, as the note lies unsigned in the store while a controller is away.
    pub(super) async fn close(&self) -> Result<(), CollectError> {
        self.settle_rest().await?;
        let missing = self.given_up();
        let what = format!("collecting is over; {}", giving_up(&missing));
        let entry = Entry::new(Event::Verified, Collector::who(), what);
        self.append(vec![entry]).await?;
        self.note(|note| note.closed = Some(missing)).await
    }

    /// Whether an earlier run has ended collecting; takes over what it had given up.
    pub(super) async fn is_closed(&self) -> Result<bool, CollectError> {
        let Some(missing) = self.noted(|note| note.closed.clone()).await else {
            return Ok(false);
        };
        let ending = giving_up(&missing);
        if !self.has_said(&ending, |_| true) {
            return Err(self.changed_note());
        }
        for Missing { path, reason } in missing {
            self.miss(&path, false, reason);
        }
        self.quick_done();
        Ok(true)
    }

    fn given_up(&self) -> Vec<Missing> {
        self.all_missing()
            .into_iter()
            .map(|(path, reason)| Missing { path, reason })
            .collect()
    }

    /// No writer is at work any more: what has no name is of an attempt that failed.
    async fn settle_rest(&self) -> Result<(), CollectError> {
        let left = self.collector.store.leftovers(&self.lock).await;
        for path in left.map_err(|error| self.store_error(error))? {
            self.settle(&path, &BTreeMap::new()).await?;
        }
        Ok(())
    }

    /// Everything is stored: from here on the manifest is settled.
    pub(super) async fn begin_sealing(&self) -> Result<(), CollectError> {
        self.settle_rest().await?;
        let pruned = self.collector.store.prune(&self.lock).await;
        pruned.map_err(|error| self.store_error(error))?;
        let settled = Settled {
            created: Timestamp::now(),
            claimed: self.requester.claimed,
            certificate: self.requester.certificate,
            missing: self.given_up(),
            mounts: self.uncollected_mounts().await,
            storage: Some(self.collector.store.write_once().into()),
            encrypted_to: self
                .encryption
                .as_ref()
                .map(|encryption| encryption.shown.clone())
                .unwrap_or_default(),
            authority: self
                .collector
                .timestamps
                .as_ref()
                .map(|authority| authority.url().to_owned()),
            controller: self.collector.build.clone(),
        };
        let stored = self.all_stored();
        let bytes: u64 = stored.iter().map(|record| record.size).sum();
        let what = format!(
            "{} files, {bytes} bytes: each re-read from the store and equal to what arrived{}",
            stored.len(),
            naming(self.noted(|note| note.settled(&settled)).await)
        );
        let mut entries = Vec::new();
        if self.collector.store.holds_all() {
            let what = format!(
                "legal hold on {} objects, and on each that is written after them",
                stored.len()
            );
            entries.push(Entry::new(Event::Hold, Collector::who(), what));
        }
        let mut entry = Entry::new(Event::Verified, Collector::who(), what);
        entry.time = settled.created;
        entries.push(entry);
        let custody = self
            .collector
            .custody
            .append_all(&self.at, entries)
            .await
            .map_err(|error| self.seal_error(error))?;
        let sealing = Sealing { settled, custody };
        self.note(|note| note.sealing = Some(sealing)).await
    }

    /// Whether what an earlier run settled is what the log says it was: whoever can write the store
    /// could change the note, and would have it signed.
    pub(super) async fn check_sealing(&self) -> Result<(), CollectError> {
        let noted = self.noted(|note| {
            let sealing = note.sealing.as_ref()?;
            Some((note.settled(&sealing.settled), sealing.custody))
        });
        let Some((settled, head)) = noted.await else {
            return Ok(());
        };
        let is_head = |entry: &Entry| head.size.checked_sub(1) == Some(entry.seq);
        match self.has_said(&naming(settled), is_head) {
            true => Ok(()),
            false => Err(self.changed_note()),
        }
    }

    /// Whether the log has an entry of a controller that ends so.
    fn has_said(&self, ending: &str, which: impl Fn(&Entry) -> bool) -> bool {
        self.entries.iter().any(|entry| {
            entry.event == Event::Verified
                && entry.who == Collector::who()
                && entry.what.ends_with(ending)
                && which(entry)
        })
    }

    fn changed_note(&self) -> CollectError {
        CollectError::Note {
            at: self.at.to_string(),
            reason:
                "it is not the one that the custody log has the SHA-256 of: somebody has changed it"
                    .to_owned(),
        }
    }

    /// Log, timestamp, manifest, signature, `Sealed`: each step once, also over several runs.
    pub(super) async fn seal(&self) -> Result<SealedCollection, CollectError> {
        let Some(mut manifest) = self.noted(|note| self.manifest(note)).await else {
            return Err(self.seal_error(SealError::NotBegun {
                at: self.at.clone(),
            }));
        };
        let (store, custody) = (&self.collector.store, &self.collector.custody);
        let head = manifest.custody;
        let checkpoint = seal::copy_log(store, custody, &self.lock, head).await;
        let checkpoint = checkpoint.map_err(|error| self.not_ours(error))?;
        let authority = self.noted(|note| note.sealing.as_ref()?.settled.authority.clone());
        manifest.timestamp = self.stamp(authority.await, &checkpoint).await?;
        let sealed = seal::seal(
            &self.collector.store,
            &self.collector.custody,
            &self.lock,
            &Collector::who(),
            manifest,
        )
        .await;
        let seal = sealed.map_err(|error| self.not_ours(error))?;
        let sealed = self.described(seal).await;
        let forgotten = self.collector.store.save_note(&self.lock, Vec::new());
        forgotten.await.map_err(|error| self.store_error(error))?;
        Ok(sealed)
    }

    fn not_ours(&self, error: SealError) -> CollectError {
        match error {
            SealError::Differs { file, .. } => CollectError::NotOurs {
                at: self.at.to_string(),
                file,
            },
            error => self.seal_error(error),
        }
    }

    /// The manifest but for its timestamp, which comes after what the manifest is made of was settled.
    fn manifest(&self, note: &Note) -> Option<Manifest> {
        let Sealing { settled, custody } = note.sealing.as_ref()?;
        let artifacts = self.all_stored();
        let find = |path: &EvidencePath| artifacts.iter().find(|record| record.path == *path);
        let whole = artifacts
            .iter()
            .all(|record| record.completeness.is_complete() || superseded(record, find));
        let target = &self.job.target;
        let node_object = self.job.before.iter().find(|(name, _)| name == "node.json");
        Some(Manifest {
            case: self.at.case.clone(),
            collection: self.at.name.clone(),
            outcome: if whole && settled.missing.is_empty() {
                Outcome::Complete
            } else {
                Outcome::Partial
            },
            requested_by: self.job.requested_by.clone(),
            claimed: settled.claimed,
            requester_certificate_sha256: settled.certificate,
            reason: self.job.reason.clone(),
            created: settled.created,
            controller: settled.controller.clone(),
            cluster: self.job.cluster.clone(),
            node: Node {
                name: target.node.clone(),
                uid: note
                    .node_uid
                    .clone()
                    .or_else(|| node_object.and_then(|(_, bytes)| before::uid(bytes))),
                boot_id: note
                    .node_boot_id
                    .clone()
                    .or_else(|| node_object.and_then(|(_, bytes)| before::boot_id(bytes))),
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
            missing: settled.missing.clone(),
            alterations: note.alterations.clone(),
            omissions: OMISSIONS
                .iter()
                .map(|text| (*text).to_owned())
                .chain(settled.mounts.iter().cloned())
                .chain(
                    note.forgone
                        .iter()
                        .map(|(path, why)| format!("{path} was left out: {why}")),
                )
                .collect(),
            storage: settled.storage.clone(),
            encrypted_to: settled.encrypted_to.iter().cloned().collect(),
            custody: *custody,
            timestamp: None,
        })
    }

    async fn described(&self, seal: Seal) -> SealedCollection {
        let manifest = &seal.manifest;
        let missing = manifest
            .missing
            .iter()
            .map(|missing| format!("{}: {}", missing.path, missing.reason));
        let incomplete =
            |record: &ArtifactRecord| match &record.completeness {
                // The tar that a listing was made from is in the list already.
                _ if record.method == Method::Derived => None,
                Completeness::Incomplete { reasons } if !manifest.superseded(record) => Some(
                    format!("{}: incomplete: {}", record.path, reasons.join("; ")),
                ),
                _ => None,
            };
        let mut warnings = self.noted(|note| note.warnings.clone()).await;
        warnings.extend(seal.warning.clone());
        SealedCollection {
            outcome: manifest.outcome,
            manifest_sha256: seal.manifest_sha256,
            location: self.collector.store.location(&self.at),
            storage: self.collector.store.write_once().to_string(),
            missing: missing
                .chain(manifest.artifacts.iter().filter_map(incomplete))
                .collect(),
            warnings,
        }
    }
}

/// How the entry ends that names what was given up until collecting ended.
fn giving_up(missing: &[Missing]) -> String {
    // Serialising to memory fails only for maps with keys that are no strings; there are none.
    let sha256 = Sha256::of(&serde_json::to_vec(missing).unwrap_or_default());
    let count = missing.len();
    format!("{count} were given up, and the list of them has SHA-256 {sha256}")
}

/// How the entry ends that names what was settled.
fn naming(settled: Sha256) -> String {
    format!("; what else the manifest says has SHA-256 {settled}")
}
