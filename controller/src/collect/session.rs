//! One run of a collection: its lock, its custody log, its note, and what is stored already.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use impound_evidence::age::Identity;
use impound_evidence::{ArtifactRecord, Entry, Event, EvidencePath, Method, NameError, Sha256};
use tokio::sync::{Mutex as AsyncMutex, mpsc};
use tokio::time::Instant;

use super::derive::{Arrivals, Tars};
use super::encrypted::{ENCRYPTED, Encryption, encrypted_to};
use super::image::ImagePaths;
use super::note::Note;
use super::standstill::Standstill;
use super::{CollectError, CollectionJob, Collector, TargetPod};
use crate::agents::AgentConnection;
use crate::describe::describe;
use crate::locked::locked;
use crate::progress::Board;
use crate::reconcile::custody::authorisation;
use crate::seal::SealError;
use crate::store::{CollectionId, CollectionLock, Content, Receipt, StoreError};

/// How long a finished export is held while the custody log can't be written: to ask for it again would cost
/// another full read of the container, which may be another one by then.
const PATIENCE: Duration = Duration::from_secs(600);

pub(super) struct Session<'a> {
    pub(super) collector: &'a Collector,
    pub(super) job: &'a CollectionJob,
    pub(super) at: CollectionId,
    pub(super) lock: CollectionLock,
    pub(super) board: Board<'a>,
    /// What the custody log said of the collection when the session began.
    pub(super) entries: Vec<Entry>,
    pub(super) requester: Requester,
    /// To whom artifacts are encrypted, if they are.
    pub(super) encryption: Option<Encryption>,
    note: AsyncMutex<Note>,
    stored: Mutex<BTreeMap<EvidencePath, Kept>>,
    /// What earlier runs have encrypted, with keys that are gone.
    sealed_off: Mutex<BTreeSet<EvidencePath>>,
    missing: Mutex<BTreeMap<EvidencePath, String>>,
    pub(super) connections: AsyncMutex<HashMap<String, Arc<AgentConnection>>>,
    /// To where tars are listed, beside everything else.
    pub(super) tars: Tars,
    pub(super) arrivals: Arrivals,
    /// To where stored images are removed from their node, beside everything else.
    pub(super) saved: mpsc::UnboundedSender<Option<ImagePaths>>,
    /// The container that is being exported, if it does not change meanwhile.
    pub(super) standstill: Mutex<Option<Standstill>>,
}

/// What the log says of who asked.
#[derive(Clone, Copy, Default)]
pub(super) struct Requester {
    /// Whether the name is only claimed.
    pub(super) claimed: bool,
    /// SHA-256 of the certificate, if one was shown.
    pub(super) certificate: Option<Sha256>,
}

/// An artifact that may enter the manifest: its record, and the store's receipt for exactly that.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    record: ArtifactRecord,
}

impl Kept {
    /// None if the receipt is not for what the record says, which no path of this program does.
    fn new(record: ArtifactRecord, receipt: &Receipt) -> Option<Self> {
        let same = record.stored_path() == receipt.at() && in_store(&record) == receipt.content();
        same.then_some(Self { record })
    }
}

/// What the log says first of the collection of a pod, but for to whom it is encrypted.
pub(super) fn collection_of(pod: &TargetPod) -> String {
    format!(
        "collection of pod {}/{} (uid {}) on node {}",
        pod.namespace, pod.name, pod.uid, pod.node
    )
}

/// Whether what the log says first of a collection is that one of this pod, which this one wants for this reason.
pub(super) fn is_of(first: &Entry, pod: &TargetPod, (who, reason): (&str, &str)) -> bool {
    first.who == who
        && first.what.split(ENCRYPTED).next() == Some(&*collection_of(pod))
        && first.why.as_deref() == Some(reason)
}

pub(super) fn is_request(entry: &&Entry) -> bool {
    entry.event == Event::Requested
}

impl<'a> Session<'a> {
    /// Creates the collection, or opens the one that this job has begun. `key`: of this process's last run, and then of
    /// this one, if anything is encrypted.
    pub(super) async fn open(
        collector: &'a Collector,
        job: &'a CollectionJob,
        board: Board<'a>,
        tars: Tars,
        saved: mpsc::UnboundedSender<Option<ImagePaths>>,
        key: &mut Option<Identity>,
    ) -> Result<Self, CollectError> {
        let at = job.at();
        let store = |source| CollectError::Store {
            at: at.to_string(),
            source,
        };
        match collector.store.create_collection(&at).await {
            Ok(()) | Err(StoreError::CollectionExists { .. }) => {}
            Err(error) => return Err(store(error)),
        }
        let lock = collector.store.lock(&at).await.map_err(store)?;
        let entries = collector.custody.entries(&at).await;
        let entries = entries.map_err(|source| CollectError::Seal {
            at: at.to_string(),
            source: Box::new(source),
        })?;
        let note = match collector.store.note(&at).await.map_err(store)? {
            None => Note::default(),
            Some(bytes) => serde_json::from_slice(&bytes).map_err(|error| CollectError::Note {
                at: at.to_string(),
                reason: error.to_string(),
            })?,
        };
        // What the log says first stays true of all runs: it is signed, unlike the note.
        let recipients = match entries.iter().find(is_request) {
            Some(first) => encrypted_to(&first.what),
            None => {
                let asked = collector.recipients.iter().chain(&job.encrypt_to);
                Ok(asked.cloned().collect())
            }
        };
        let encryption =
            recipients.and_then(|recipients| Encryption::new(recipients, key.as_ref()));
        let encryption = encryption.map_err(|source| CollectError::Encryption {
            at: at.to_string(),
            source,
        })?;
        *key = encryption.as_ref().map(Encryption::key);
        let mut session = Self {
            encryption,
            collector,
            job,
            at,
            lock,
            board,
            entries,
            requester: Requester::default(),
            note: AsyncMutex::new(note),
            stored: Mutex::default(),
            sealed_off: Mutex::default(),
            missing: Mutex::default(),
            connections: AsyncMutex::default(),
            tars,
            arrivals: Arrivals::default(),
            saved,
            standstill: Mutex::default(),
        };
        session.requester = session.begin().await?;
        Ok(session)
    }

    /// Records an artifact as read, has it stored, records that: whatever is in the store has its
    /// record in the log, before it has its name.
    pub(super) async fn record_read(
        &self,
        records: &[&ArtifactRecord],
    ) -> Result<(), CollectError> {
        self.record(Event::Read, records).await
    }

    /// As [`Session::record_read`], for what must not be asked for again: tried until [`PATIENCE`] is over
    /// while the log can't be written.
    pub(super) async fn record_read_surely(
        &self,
        record: &ArtifactRecord,
    ) -> Result<(), CollectError> {
        let until = Instant::now() + PATIENCE;
        let mut pause = Duration::from_millis(50);
        let mut written = self.record_read(&[record]).await;
        loop {
            match written {
                Err(error) if error.is_transient() && Instant::now() < until => {
                    tracing::warn!(case = %self.at.case, collection = %self.at.name, path = %record.path, error = describe(&error), "the custody log is tried again");
                    tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
                    pause = (pause * 2).min(Duration::from_secs(15));
                }
                written => return written,
            }
            // Of a try that failed the entry may be there, and only its signature not.
            let is_it = |entry: &Entry| {
                entry.event == Event::Read && entry.artifact.as_ref() == Some(record)
            };
            written = match self.collector.custody.entries(&self.at).await {
                Ok(entries) if entries.iter().any(is_it) => {
                    let settled = self.collector.custody.settle(&self.at.case).await;
                    settled.map(drop).map_err(|error| self.seal_error(error))
                }
                Ok(_) => self.record_read(&[record]).await,
                Err(error) => Err(self.seal_error(error)),
            };
        }
    }

    /// Records what was stored; only then it counts.
    pub(super) async fn record_stored(
        &self,
        mut kept: Vec<(ArtifactRecord, Receipt)>,
    ) -> Result<(), CollectError> {
        for (record, receipt) in &mut kept {
            record.chunk_root = Some(receipt.chunk_root());
            record.receipt = Some(receipt.storage().clone());
        }
        let records: Vec<&ArtifactRecord> = kept.iter().map(|(record, _)| record).collect();
        self.record(Event::Stored, &records).await?;
        for (record, receipt) in kept {
            self.shown(&record);
            self.count(record, &receipt)?;
        }
        Ok(())
    }

    /// Records that something went wrong, for the log's readers.
    pub(super) async fn record_failed(&self, what: &str, why: &str) -> Result<(), CollectError> {
        let mut entry = Entry::new(Event::Failed, Collector::who(), what);
        entry.why = Some(why.to_owned());
        tracing::warn!(case = %self.at.case, collection = %self.at.name, step = what, reason = why, "failed");
        self.append(vec![entry]).await
    }

    pub(super) async fn append(&self, entries: Vec<Entry>) -> Result<(), CollectError> {
        let appended = self.collector.custody.append_all(&self.at, entries).await;
        appended.map(drop).map_err(|error| self.seal_error(error))
    }

    /// Changes the note and saves it.
    pub(super) async fn note<T>(
        &self,
        change: impl FnOnce(&mut Note) -> T,
    ) -> Result<T, CollectError> {
        let mut note = self.note.lock().await;
        let result = change(&mut note);
        let bytes = serde_json::to_vec(&*note).map_err(|error| CollectError::Note {
            at: self.at.to_string(),
            reason: error.to_string(),
        })?;
        self.collector
            .store
            .save_note(&self.lock, bytes)
            .await
            .map_err(|error| self.store_error(error))?;
        Ok(result)
    }

    /// Looks at the note.
    pub(super) async fn noted<T>(&self, look: impl FnOnce(&Note) -> T) -> T {
        look(&*self.note.lock().await)
    }

    /// The record of an artifact that is stored.
    pub(super) fn stored(&self, path: &EvidencePath) -> Option<ArtifactRecord> {
        locked(&self.stored)
            .get(path)
            .map(|kept| kept.record.clone())
    }

    /// What earlier runs have encrypted, with keys that are gone.
    pub(super) fn sealed_off(&self) -> std::sync::MutexGuard<'_, BTreeSet<EvidencePath>> {
        locked(&self.sealed_off)
    }

    /// Everything that is stored, ordered by path.
    pub(super) fn all_stored(&self) -> Vec<ArtifactRecord> {
        locked(&self.stored)
            .values()
            .map(|kept| kept.record.clone())
            .collect()
    }

    /// Gives an artifact up for this run.
    pub(super) fn miss(&self, path: &EvidencePath, kept: bool, why: String) {
        self.board.given_up(path, kept, &why);
        locked(&self.missing).insert(path.clone(), why);
    }

    /// What was given up could be had after all.
    pub(super) fn had(&self, path: &EvidencePath) {
        locked(&self.missing).remove(path);
    }

    /// What was given up, ordered by path.
    pub(super) fn all_missing(&self) -> BTreeMap<EvidencePath, String> {
        let stored = locked(&self.stored);
        let missing = locked(&self.missing);
        missing
            .iter()
            .filter(|(path, _)| !stored.contains_key(path))
            .map(|(p, why)| (p.clone(), why.clone()))
            .collect()
    }

    /// Tells whoever looks after the node; also in the custody log.
    pub(super) async fn warn(&self, what: &str, warning: String) -> Result<(), CollectError> {
        self.record_failed(what, &warning).await?;
        self.note(|note| {
            if !note.warnings.contains(&warning) {
                note.warnings.push(warning);
            }
        })
        .await
    }

    /// A path of ours below the collection.
    pub(super) fn path(
        &self,
        text: &str,
        what: &'static str,
    ) -> Result<EvidencePath, CollectError> {
        text.parse().map_err(|source| CollectError::Name {
            at: self.at.to_string(),
            what,
            source,
        })
    }

    /// A name that has no room for what is put behind it.
    pub(super) fn too_long(&self, source: NameError) -> CollectError {
        CollectError::Name {
            at: self.at.to_string(),
            what: "the name of an artifact",
            source,
        }
    }

    pub(super) fn store_error(&self, source: StoreError) -> CollectError {
        CollectError::Store {
            at: self.at.to_string(),
            source,
        }
    }

    pub(super) fn seal_error(&self, source: SealError) -> CollectError {
        CollectError::Seal {
            at: self.at.to_string(),
            source: Box::new(source),
        }
    }

    /// The first entry of the log says whose collection this is. What is known of the requester.
    async fn begin(&self) -> Result<Requester, CollectError> {
        let pod = &self.job.target;
        let Some(first) = self.entries.iter().find(is_request) else {
            let case = self.collector.custody.of_case(&self.at.case).await;
            let case = case.map_err(|error| self.seal_error(error))?;
            let encrypted = self.encryption.as_ref().map(Encryption::in_words);
            let what = collection_of(pod) + &encrypted.unwrap_or_default();
            let mut entry = Entry::new(Event::Requested, self.job.requested_by.clone(), what)
                .because(self.job.reason.clone());
            let (who, reason) = (&self.job.requested_by, &self.job.reason);
            let request = self.job.request.as_ref();
            let authorised = request.and_then(|request| authorisation(&case, who, request, reason));
            let certificate = authorised.and_then(|entry| entry.certificate_sha256);
            let requester = Requester {
                claimed: authorised.is_none(),
                certificate,
            };
            (entry.claimed, entry.certificate_sha256) = (requester.claimed, certificate);
            self.append(vec![entry]).await?;
            return Ok(requester);
        };
        if !is_of(first, pod, (&self.job.requested_by, &self.job.reason)) {
            let found = format!("{} by {}", first.what, first.who);
            return Err(CollectError::OtherRequest {
                at: self.at.to_string(),
                found,
            });
        }
        if self
            .entries
            .iter()
            .all(|entry| entry.event != Event::Sealed)
        {
            self.record_failed(
                "the collection",
                "the controller that collected has stopped; another run goes on",
            )
            .await?;
        }
        let mut requests = self.entries.iter().filter(is_request);
        Ok(Requester {
            claimed: requests.clone().any(|entry| entry.claimed),
            certificate: requests.find_map(|entry| entry.certificate_sha256),
        })
    }

    async fn record(&self, event: Event, records: &[&ArtifactRecord]) -> Result<(), CollectError> {
        let entry = |record: &&ArtifactRecord| {
            let mut entry = Entry::new(event, Collector::who(), record.path.to_string());
            entry.clock_offset_ms = record.clock_offset_ms;
            entry.artifact = Some((*record).clone());
            entry
        };
        self.append(records.iter().map(entry).collect()).await
    }

    /// What was made here was not asked for, so nobody waits for it.
    pub(super) fn shown(&self, record: &ArtifactRecord) {
        if record.method != Method::Derived {
            self.board.stored(record);
        }
    }

    pub(super) fn count(
        &self,
        record: ArtifactRecord,
        receipt: &Receipt,
    ) -> Result<(), CollectError> {
        let path = record.path.clone();
        let expected = in_store(&record);
        let kept = Kept::new(record, receipt).ok_or_else(|| {
            self.store_error(StoreError::Mismatch {
                at: path.to_string(),
                expected: expected.into(),
                found: receipt.content().into(),
            })
        })?;
        locked(&self.stored).insert(path, kept);
        Ok(())
    }
}

/// What a record says of the stored bytes.
pub(super) fn in_store(record: &ArtifactRecord) -> Content {
    Content {
        size: record.stored_size(),
        sha256: record.stored_sha256(),
    }
}

/// What a record says of the artifact's own bytes.
pub(super) fn content(record: &ArtifactRecord) -> Content {
    Content {
        size: record.size,
        sha256: record.sha256,
    }
}
