//! Last hop of the data path: the custody log grows here, and a collection is signed here.
//!
//! A case has one log, `<case>/custody/custody.jsonl`; a collection gets a copy of it as it is when the
//! collection is sealed, and does not change any more after that.
//!
//! Order of a seal: every artifact has its receipt (it was re-read from the store and matched) and
//! the log says `Verified`; then the copy of the log and its checkpoint, and an authority's timestamp of
//! that if one is asked; then `manifest.json`, which names that head; then `manifest.sigstore.json`, and only with that file a collection is sealed; then
//! the log says `Sealed`. A crash at any point before the signature leaves a collection that is visibly
//! not.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use impound_evidence::{
    BUNDLE, BUNDLE_LIMIT, BundleError, CHECKPOINT, CHECKPOINT_LIMIT, CUSTODY, CaseId, Checkpoint,
    CheckpointError, CustodyError, CustodyLog, Entry, Event, EvidencePath, KeyError, LogHead,
    MANIFEST, MANIFEST_LIMIT, Manifest, ManifestError, NameError, OpenBundle, Sha256, Signer,
    Timestamp, VerifyingKey, case_log, origin, sign_manifest,
};
use thiserror::Error;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::store::{CollectionId, CollectionLock, Content, Store, StoreError};

/// Longest log that is continued, in bytes: some hundred thousand entries, while a large collection
/// has a few thousand.
const LOG_LIMIT: u64 = 256 << 20;
/// How long an append is tried when other replicas append to the same log at the same time. One of them
/// gets further with every try, so this ends long before; what waits for it may be a finished export.
const CONTENTION: Duration = Duration::from_secs(60);
/// Longest pause between two of these tries; they are random, or two replicas would meet again.
const PAUSE: Duration = Duration::from_millis(500);

/// Writes to the custody logs: one entry after the other per case, each durable and covered by a signed
/// checkpoint before the call returns.
pub struct CustodyAppender {
    store: Arc<dyn Store>,
    key: Arc<dyn Signer>,
    trusted: Vec<VerifyingKey>,
    open: Mutex<HashMap<CaseId, Arc<Mutex<Option<OpenLog>>>>>,
}

/// A log as it is in the store.
struct OpenLog {
    log: CustodyLog,
    /// Length of `custody.jsonl` in bytes.
    bytes: u64,
}

/// The lines of a log up to some head, and that head signed.
#[derive(Clone, Debug)]
pub struct LogCopy {
    /// Whole lines.
    pub lines: Vec<u8>,
    /// The checkpoint over them.
    pub checkpoint: Vec<u8>,
}

/// What a sealed collection is known by.
#[derive(Clone, Debug)]
pub struct Seal {
    /// SHA-256 of manifest.json.
    pub manifest_sha256: Sha256,
    /// The manifest as signed.
    pub manifest: Manifest,
    /// What a check of the signature will find odd.
    pub warning: Option<String>,
}

/// Why a log was not written or a collection not sealed.
#[derive(Debug, Error)]
pub enum SealError {
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The log in the store is not one that may be continued.
    #[error("the custody log {at} can't be continued: somebody has changed it")]
    Log {
        /// `<case>/<collection>`
        at: CollectionId,
        /// What is wrong with it.
        #[source]
        source: CustodyError,
    },
    /// The checkpoint in the store is none of ours.
    #[error("the checkpoint of {at} can't be continued: somebody has changed it")]
    Checkpoint {
        /// `<case>/<collection>`
        at: CollectionId,
        /// What is wrong with it.
        #[source]
        source: CheckpointError,
    },
    /// The manifest in the store is none of ours.
    #[error("the manifest of {at} is signed, and yet can't be read")]
    Manifest {
        /// `<case>/<collection>`
        at: CollectionId,
        /// What is wrong with it.
        #[source]
        source: ManifestError,
    },
    /// Two replicas appended at the same time, again and again.
    #[error("the custody log of {at} is being written by another replica; try again")]
    Contended {
        /// `<case>/<collection>`
        at: CollectionId,
    },
    /// The key did not sign.
    #[error("nothing could be signed")]
    Key(#[from] KeyError),
    /// A name of ours is none. Never happens.
    #[error("a file of the format has no valid name")]
    Name(#[from] NameError),
    /// The signature in the store is none of ours.
    #[error("the signature of {at} is not one over its manifest by this controller's key")]
    Bundle {
        /// `<case>/<collection>`
        at: CollectionId,
        /// What is wrong with it.
        #[source]
        source: BundleError,
    },
    /// A file of the seal is not what belongs there.
    #[error("{file} of {at} is not what this controller would write; somebody else has written it")]
    Differs {
        /// `<case>/<collection>`
        at: CollectionId,
        /// `manifest.json` or `manifest.sigstore.json`
        file: &'static str,
    },
    /// A seal before its time. Never happens.
    #[error("collection {at} is not ready to be sealed")]
    NotBegun {
        /// `<case>/<collection>`
        at: CollectionId,
    },
    /// A file of the seal is gone.
    #[error("{file} of {at} is not there")]
    Missing {
        /// `<case>/<collection>`
        at: CollectionId,
        /// `manifest.json` or `manifest.sigstore.json`
        file: &'static str,
    },
}

impl CustodyAppender {
    /// `key` signs the checkpoints, as it signs the manifests; `former` are the keys that did before.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, key: Arc<dyn Signer>, former: Vec<VerifyingKey>) -> Self {
        let mut trusted = vec![key.verifying_key().clone()];
        trusted.extend(former);
        Self {
            store,
            key,
            trusted,
            open: Mutex::default(),
        }
    }

    /// The keys whose signatures are taken, the present one first.
    #[must_use]
    pub fn trusted(&self) -> &[VerifyingKey] {
        &self.trusted
    }

    /// What speaks against dating something that our key signs at `time`, by the list of keys.
    fn objection(&self, time: Timestamp) -> Option<String> {
        let own = self.key.verifying_key().key_id();
        let listed = self.trusted.iter().filter(|key| key.key_id() == own);
        listed.filter_map(|key| key.objection(time)).next_back()
    }

    /// Appends an entry about a collection to its case's log and signs the new head.
    ///
    /// # Errors
    /// If the log was tampered with or the store does not take it. The entry is then not in the
    /// log, except when only the checkpoint could not be written: the next append signs it too.
    pub async fn append(&self, at: &CollectionId, entry: Entry) -> Result<LogHead, SealError> {
        self.append_all(at, vec![entry]).await
    }

    /// Appends entries about a collection, all or none of them, and signs the new head; returns it.
    ///
    /// # Errors
    /// As [`CustodyAppender::append`].
    pub async fn append_all(
        &self,
        at: &CollectionId,
        entries: Vec<Entry>,
    ) -> Result<LogHead, SealError> {
        let entries = entries.into_iter().map(|entry| entry.of(&at.name));
        self.append_to_case(&at.case, entries.collect()).await
    }

    /// Appends entries as they are.
    ///
    /// # Errors
    /// As [`CustodyAppender::append`].
    pub async fn append_to_case(
        &self,
        case: &CaseId,
        entries: Vec<Entry>,
    ) -> Result<LogHead, SealError> {
        let at = log_of(case)?;
        let slot = self.slot(case).await;
        let mut open = slot.lock().await;
        let until = Instant::now() + CONTENTION;
        let mut pause = Duration::from_millis(10);
        while Instant::now() < until {
            // Taken out: whatever fails from here on, the next append reads the log again.
            let current = match open.take() {
                Some(current) => current,
                None => self.read(&at, |_| {}).await?,
            };
            let OpenLog { mut log, bytes } = current;
            let mut lines = Vec::new();
            for entry in &entries {
                let line = log.append(entry.clone());
                lines.extend(line.map_err(|source| SealError::Log {
                    at: at.clone(),
                    source,
                })?);
            }
            if lines.is_empty() {
                let head = log.head();
                *open = Some(OpenLog { log, bytes });
                return Ok(head);
            }
            match self.extend(&at, bytes, lines).await {
                Ok(bytes) => {
                    let head = log.head();
                    let checkpoint = log.checkpoint(self.key.as_ref())?;
                    self.sign(&at, checkpoint).await?;
                    *open = Some(OpenLog { log, bytes });
                    return Ok(head);
                }
                // Another replica was first: read what it wrote.
                Err(StoreError::LogMoved { .. }) => {
                    tokio::time::sleep(pause.mul_f64(fastrand::f64())).await;
                    pause = (pause * 2).min(PAUSE);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(SealError::Contended { at })
    }

    /// Every entry about a collection, oldest first.
    ///
    /// # Errors
    /// If the log was tampered with or can't be read.
    pub async fn entries(&self, at: &CollectionId) -> Result<Vec<Entry>, SealError> {
        let mut entries = self.case_entries(&at.case).await?;
        entries.retain(|entry| entry.collection.as_ref() == Some(&at.name));
        Ok(entries)
    }

    /// Every entry of a case, oldest first; none for a case that nobody has heard of.
    ///
    /// # Errors
    /// As [`CustodyAppender::entries`].
    pub async fn case_entries(&self, case: &CaseId) -> Result<Vec<Entry>, SealError> {
        let slot = self.slot(case).await;
        let mut open = slot.lock().await;
        let mut entries = Vec::new();
        *open = Some(
            self.read(&log_of(case)?, |entry| entries.push(entry))
                .await?,
        );
        Ok(entries)
    }

    /// Signs a case's log as it is, if a crash came between an entry and its checkpoint.
    ///
    /// # Errors
    /// As [`CustodyAppender::append`].
    pub async fn settle(&self, case: &CaseId) -> Result<LogHead, SealError> {
        let at = log_of(case)?;
        let slot = self.slot(case).await;
        let mut open = slot.lock().await;
        let current = self.read(&at, |_| {}).await?;
        let head = current.log.head();
        if head.size > 0 {
            let checkpoint = current.log.checkpoint(self.key.as_ref())?;
            self.sign(&at, checkpoint).await?;
        }
        *open = Some(current);
        Ok(head)
    }

    /// The log as it was at `head`, which it must have had.
    ///
    /// # Errors
    /// If it never had that head, was tampered with or can't be read.
    pub async fn copy(&self, case: &CaseId, head: LogHead) -> Result<LogCopy, SealError> {
        let at = log_of(case)?;
        let (log, mut lines) = self.checked(&at, |_| {}).await?;
        let ends = lines.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
        let end = ends
            .map(|(end, _)| end + 1)
            .take(usize::try_from(head.size).unwrap_or(0));
        lines.truncate(end.last().unwrap_or(0));
        let wrong = |source| SealError::Log {
            at: at.clone(),
            source,
        };
        let expected = Checkpoint {
            origin: origin(case),
            head,
        };
        log.check(&expected).map_err(wrong)?;
        let checkpoint = log.checkpoint_of(head, self.key.as_ref())?;
        Ok(LogCopy { lines, checkpoint })
    }

    /// Extends the log in the store; the first entry makes its directory.
    async fn extend(
        &self,
        at: &CollectionId,
        bytes: u64,
        lines: Vec<u8>,
    ) -> Result<u64, StoreError> {
        match self.store.append_log(at, bytes, lines.clone()).await {
            Err(StoreError::NoCollection { .. }) if bytes == 0 => {}
            other => return other,
        }
        match self.store.create_collection(at).await {
            Ok(()) | Err(StoreError::CollectionExists { .. }) => {}
            Err(error) => return Err(error),
        }
        self.store.append_log(at, bytes, lines).await
    }

    /// Puts a newer checkpoint in place, unless another replica's, over more entries, is there: the
    /// log only grows, so that one covers ours.
    async fn sign(&self, at: &CollectionId, checkpoint: Vec<u8>) -> Result<(), StoreError> {
        match self.store.replace_checkpoint(at, checkpoint).await {
            Ok(()) | Err(StoreError::CheckpointBackwards { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn slot(&self, case: &CaseId) -> Arc<Mutex<Option<OpenLog>>> {
        self.open
            .lock()
            .await
            .entry(case.clone())
            .or_default()
            .clone()
    }

    /// Reads a log from the store and checks it against its checkpoint. Entries behind the
    /// checkpoint were written by a process that crashed before it could sign them.
    async fn read(&self, at: &CollectionId, each: impl FnMut(Entry)) -> Result<OpenLog, SealError> {
        let (log, lines) = self.checked(at, each).await?;
        Ok(OpenLog {
            log,
            bytes: lines.len() as u64,
        })
    }

    /// As [`CustodyAppender::read`], with the lines.
    async fn checked(
        &self,
        at: &CollectionId,
        each: impl FnMut(Entry),
    ) -> Result<(CustodyLog, Vec<u8>), SealError> {
        // The checkpoint first: another replica extends the log before it signs it.
        let signed = small(&self.store, at, CHECKPOINT, CHECKPOINT_LIMIT).await?;
        let lines = self.lines(at).await?;
        let wrong = |source| SealError::Log {
            at: at.clone(),
            source,
        };
        let log = CustodyLog::read(origin(&at.case), lines.as_slice(), each).map_err(wrong)?;
        if let Some(signed) = signed {
            let opened = Checkpoint::open(&signed, &self.trusted);
            let checkpoint = opened.map_err(|source| SealError::Checkpoint {
                at: at.clone(),
                source,
            })?;
            log.check(&checkpoint).map_err(wrong)?;
        }
        Ok((log, lines))
    }

    /// The whole lines of a log. An unfinished last line was never acknowledged, and the next append
    /// cuts it off.
    async fn lines(&self, at: &CollectionId) -> Result<Vec<u8>, SealError> {
        let mut lines = small(&self.store, at, CUSTODY, LOG_LIMIT)
            .await?
            .unwrap_or_default();
        let end = lines
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |last| last + 1);
        lines.truncate(end);
        Ok(lines)
    }
}

/// Where a case's log is.
///
/// # Errors
/// Never: the name is ours.
pub fn log_of(case: &CaseId) -> Result<CollectionId, NameError> {
    Ok(CollectionId {
        case: case.clone(),
        name: case_log()?,
    })
}

/// A small file, or nothing if neither it nor its collection is there.
async fn small(
    store: &Arc<dyn Store>,
    at: &CollectionId,
    file: &str,
    limit: u64,
) -> Result<Option<Vec<u8>>, SealError> {
    match store.read_small(at, &file.parse()?, limit).await {
        Err(StoreError::NoCollection { .. }) => Ok(None),
        other => Ok(other?),
    }
}

/// Seals a collection whose artifacts all have their receipts, and whose log is there ([`copy_log`]). What an earlier attempt has written
/// must be exactly what this one would write: a manifest that somebody else put there is never
/// signed, and no name is written twice.
///
/// # Errors
/// If the store does not take it; the collection is then visibly not sealed, and sealing can be
/// tried again with the same manifest.
pub async fn seal(
    store: &Arc<dyn Store>,
    custody: &CustodyAppender,
    lock: &CollectionLock,
    who: &str,
    manifest: Manifest,
) -> Result<Seal, SealError> {
    let at = lock.collection();
    let bytes = manifest.encode();
    write_once(store, lock, MANIFEST, &bytes).await?;
    let bundle = small(store, at, BUNDLE, BUNDLE_LIMIT).await?;
    // Signed already, perhaps by a key that was replaced meanwhile.
    let signed = bundle.is_some_and(|bundle| {
        let open = OpenBundle::decode(&bundle).ok();
        open.is_some_and(|open| open.payload == bytes && open.verify(&custody.trusted).is_ok())
    });
    let warning = custody.objection(manifest.created);
    if !signed {
        if let Some(warning) = &warning {
            // Sealed all the same: a warning that a person reads is better than no seal.
            tracing::warn!(case = %at.case, collection = %at.name, warning, "signs with a key that is not in use");
        }
        let bundle = sign_manifest(&bytes, custody.key.as_ref())?;
        write_once(store, lock, BUNDLE, &bundle).await?;
    }
    let manifest_sha256 = Sha256::of(&bytes);
    let logged = custody
        .entries(at)
        .await?
        .iter()
        .any(|entry| entry.event == Event::Sealed);
    if !logged {
        let what = format!("{MANIFEST} with SHA-256 {manifest_sha256}, signed");
        custody
            .append(at, Entry::new(Event::Sealed, who, what))
            .await?;
    }
    custody.settle(&at.case).await?;
    Ok(Seal {
        manifest_sha256,
        manifest,
        warning: warning.filter(|_| !signed),
    })
}

/// Puts the case's log as it was at `head` into the collection, or finds exactly it there. Returns the bytes of
/// its checkpoint.
///
/// # Errors
/// If the store does not take it, or something else is there.
pub async fn copy_log(
    store: &Arc<dyn Store>,
    custody: &CustodyAppender,
    lock: &CollectionLock,
    head: LogHead,
) -> Result<Vec<u8>, SealError> {
    let at = lock.collection();
    let copy = custody.copy(&at.case, head).await?;
    let differs = |file| SealError::Differs {
        at: at.clone(),
        file,
    };
    let there = custody.lines(at).await?;
    let Some(rest) = copy.lines.strip_prefix(there.as_slice()) else {
        return Err(differs(CUSTODY));
    };
    if !rest.is_empty() {
        store
            .append_log(at, there.len() as u64, rest.to_vec())
            .await?;
    }
    match small(store, at, CHECKPOINT, CHECKPOINT_LIMIT).await? {
        None => {
            let checkpoint = copy.checkpoint;
            store.replace_checkpoint(at, checkpoint.clone()).await?;
            Ok(checkpoint)
        }
        // Perhaps by a key that was replaced meanwhile.
        Some(signed) => match Checkpoint::open(&signed, &custody.trusted) {
            Ok(checkpoint) if checkpoint.head == head => Ok(signed),
            _ => Err(differs(CHECKPOINT)),
        },
    }
}

/// The seal of a sealed collection, its signature checked. Its artifacts are not.
///
/// # Errors
/// If it is not sealed, or by none of `keys`.
pub async fn read(
    store: &Arc<dyn Store>,
    keys: &[VerifyingKey],
    at: &CollectionId,
) -> Result<Seal, SealError> {
    let missing = |file| SealError::Missing {
        at: at.clone(),
        file,
    };
    let bytes = store
        .read_small(at, &MANIFEST.parse()?, MANIFEST_LIMIT)
        .await?
        .ok_or_else(|| missing(MANIFEST))?;
    let bundle = store
        .read_small(at, &BUNDLE.parse()?, BUNDLE_LIMIT)
        .await?
        .ok_or_else(|| missing(BUNDLE))?;
    let signed = |source| SealError::Bundle {
        at: at.clone(),
        source,
    };
    let bundle = OpenBundle::decode(&bundle).map_err(signed)?;
    let signer = bundle.verify(keys).map_err(signed)?.key_id();
    if bundle.payload != bytes {
        return Err(SealError::Differs {
            at: at.clone(),
            file: MANIFEST,
        });
    }
    let manifest = Manifest::decode(&bytes).map_err(|source| SealError::Manifest {
        at: at.clone(),
        source,
    })?;
    let signers = keys.iter().filter(|key| key.key_id() == signer);
    let mut warning = signers.filter_map(|key| key.objection(manifest.created));
    Ok(Seal {
        manifest_sha256: Sha256::of(&bytes),
        warning: warning.next_back(),
        manifest,
    })
}

/// Stores one file of the seal, or finds exactly it there.
async fn write_once(
    store: &Arc<dyn Store>,
    lock: &CollectionLock,
    file: &'static str,
    bytes: &[u8],
) -> Result<(), SealError> {
    let at = lock.collection();
    let path: EvidencePath = file.parse()?;
    match store.size(at, &path).await? {
        None => write(store, lock, &path, bytes)
            .await
            .map(drop)
            .map_err(SealError::from),
        Some(_) => match store.recheck(lock, &path, Content::of(bytes)).await {
            Ok(_) => Ok(()),
            Err(StoreError::Mismatch { .. }) => Err(SealError::Differs {
                at: at.clone(),
                file,
            }),
            Err(error) => Err(error.into()),
        },
    }
}

/// Stores a small object in one go.
///
/// # Errors
/// If the name is taken or the store does not take it.
pub async fn write(
    store: &Arc<dyn Store>,
    lock: &CollectionLock,
    path: &EvidencePath,
    bytes: &[u8],
) -> Result<crate::store::Receipt, StoreError> {
    const PIECE: usize = 1 << 20;
    let mut writer = store.writer(lock, path).await?;
    for piece in bytes.chunks(PIECE) {
        writer.write(bytes::Bytes::copy_from_slice(piece)).await?;
    }
    writer.finish(Content::of(bytes)).await
}
