//! Last hop of the data path: the custody log grows here, and a collection is signed here.
//!
//! Order of a seal: every artifact has its receipt (it was re-read from the store and matched);
//! then the custody log says `Sealed`; then `manifest.json`, which names the log's head; then, last,
//! `manifest.sigstore.json`. Only with that file a collection is sealed, so a crash at any point
//! before it leaves a collection that is visibly not.

use std::collections::HashMap;
use std::io::{self, BufReader};
use std::sync::Arc;

use futures::TryStreamExt;
use impound_evidence::{
    BUNDLE, CHECKPOINT, CHECKPOINT_LIMIT, CUSTODY, Checkpoint, CheckpointError, CustodyError, CustodyLog,
    Entry, Event, EvidencePath, LogHead, MANIFEST, MANIFEST_LIMIT, Manifest, ManifestError, NameError,
    Sha256, SigningKey, origin, sign_manifest,
};
use thiserror::Error;
use tokio::sync::Mutex;
use tokio_util::io::{StreamReader, SyncIoBridge};

use crate::store::{CollectionId, CollectionLock, Content, Store, StoreError};

/// Tries when another replica appends to the same log at the same time.
const TRIES: usize = 5;

/// Writes to the custody logs: one entry after the other per collection, each durable and covered
/// by a signed checkpoint before the call returns.
pub struct CustodyAppender {
    store: Arc<dyn Store>,
    key: Arc<SigningKey>,
    open: Mutex<HashMap<CollectionId, Arc<Mutex<Option<OpenLog>>>>>,
}

/// A log as it is in the store.
struct OpenLog {
    log: CustodyLog,
    /// Length of `custody.jsonl` in bytes.
    bytes: u64,
}

/// What a sealed collection is known by.
#[derive(Clone, Debug)]
pub struct Seal {
    /// SHA-256 of manifest.json.
    pub manifest_sha256: Sha256,
    /// The manifest as signed.
    pub manifest: Manifest,
}

/// Why a log was not written or a collection not sealed.
#[derive(Debug, Error)]
pub enum SealError {
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The log in the store is not one that may be continued.
    #[error("the custody log of {at} can't be continued: somebody has changed it")]
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
    #[error("the manifest of {at} was left by an earlier attempt and can't be signed")]
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
    /// A name of ours is none. Never happens.
    #[error("a file of the format has no valid name")]
    Name(#[from] NameError),
    /// Reading the log was cut off.
    #[error("the task that read the custody log ended early")]
    Interrupted(#[from] tokio::task::JoinError),
}

impl CustodyAppender {
    /// `key` signs the checkpoints, as it signs the manifests.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, key: Arc<SigningKey>) -> Self {
        Self { store, key, open: Mutex::default() }
    }

    /// Appends an entry and signs the new head.
    ///
    /// # Errors
    /// If the log was tampered with or the store does not take it. The entry is then not in the
    /// log, except when only the checkpoint could not be written: the next append signs it too.
    pub async fn append(&self, at: &CollectionId, entry: Entry) -> Result<LogHead, SealError> {
        let slot = self.slot(at).await;
        let mut open = slot.lock().await;
        for _ in 0..TRIES {
            let current = match open.take() {
                Some(current) => current,
                None => self.read(at, |_| {}).await?,
            };
            let OpenLog { mut log, bytes } = current;
            let line = log
                .append(entry.clone())
                .map_err(|source| SealError::Log { at: at.clone(), source })?;
            match self.store.append_log(at, bytes, line).await {
                Ok(bytes) => {
                    let head = log.head();
                    let checkpoint = log.checkpoint(&self.key);
                    self.store.replace_checkpoint(at, checkpoint).await?;
                    *open = Some(OpenLog { log, bytes });
                    return Ok(head);
                }
                // Another replica was first: read what it wrote.
                Err(StoreError::LogMoved { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(SealError::Contended { at: at.clone() })
    }

    /// Every entry of a collection's log, oldest first.
    ///
    /// # Errors
    /// If the log was tampered with or can't be read.
    pub async fn entries(&self, at: &CollectionId) -> Result<Vec<Entry>, SealError> {
        let (send, received) = std::sync::mpsc::channel();
        let slot = self.slot(at).await;
        let mut open = slot.lock().await;
        *open = Some(self.read(at, move |entry| drop(send.send(entry))).await?);
        Ok(received.try_iter().collect())
    }

    async fn slot(&self, at: &CollectionId) -> Arc<Mutex<Option<OpenLog>>> {
        self.open.lock().await.entry(at.clone()).or_default().clone()
    }

    /// Reads a log from the store and checks it against its checkpoint. Entries behind the
    /// checkpoint were written by a process that crashed before it could sign them.
    async fn read(
        &self,
        at: &CollectionId,
        each: impl FnMut(Entry) + Send + 'static,
    ) -> Result<OpenLog, SealError> {
        let origin = origin(&at.case, &at.name);
        let path: EvidencePath = CUSTODY.parse()?;
        if self.store.size(at, &path).await?.is_none() {
            return Ok(OpenLog { log: CustodyLog::new(origin), bytes: 0 });
        }
        let reader = self.store.read(at, &path, 0).await?;
        let bytes = reader.size;
        let lines = StreamReader::new(reader.chunks.map_err(io::Error::other));
        let lines = BufReader::new(SyncIoBridge::new(lines));
        let log = tokio::task::spawn_blocking(move || CustodyLog::read(origin, lines, each))
            .await?
            .map_err(|source| SealError::Log { at: at.clone(), source })?;
        let path: EvidencePath = CHECKPOINT.parse()?;
        if let Some(signed) = self.store.read_small(at, &path, CHECKPOINT_LIMIT).await? {
            let checkpoint = Checkpoint::open(&signed, std::slice::from_ref(self.key.verifying_key()))
                .map_err(|source| SealError::Checkpoint { at: at.clone(), source })?;
            log.check(&checkpoint)
                .map_err(|source| SealError::Log { at: at.clone(), source })?;
        }
        Ok(OpenLog { log, bytes })
    }
}

/// Seals a collection whose artifacts all have their receipts: `manifest` makes the manifest for the
/// custody log's head, which is signed and written last.
///
/// A manifest that an earlier attempt has written but not signed is signed as it is: names are never
/// written twice.
///
/// # Errors
/// If the store does not take it; the collection is then visibly not sealed, and sealing can be
/// tried again.
pub async fn seal(
    store: &Arc<dyn Store>,
    custody: &CustodyAppender,
    lock: &CollectionLock,
    who: &str,
    manifest: impl FnOnce(LogHead) -> Manifest,
) -> Result<Seal, SealError> {
    let at = lock.collection();
    let manifest_path: EvidencePath = MANIFEST.parse()?;
    let (manifest, bytes) = match store.read_small(at, &manifest_path, MANIFEST_LIMIT).await? {
        Some(bytes) => {
            let manifest = Manifest::decode(&bytes)
                .map_err(|source| SealError::Manifest { at: at.clone(), source })?;
            (manifest, bytes)
        }
        None => {
            let entry = Entry::new(Event::Sealed, who, "every artifact re-read and matched; manifest follows");
            let manifest = manifest(custody.append(at, entry).await?);
            let bytes = manifest.encode();
            write(store, lock, &manifest_path, &bytes).await?;
            (manifest, bytes)
        }
    };
    let bundle_path: EvidencePath = BUNDLE.parse()?;
    if store.size(at, &bundle_path).await?.is_none() {
        write(store, lock, &bundle_path, &sign_manifest(&bytes, &custody.key)).await?;
    }
    Ok(Seal { manifest_sha256: Sha256::of(&bytes), manifest })
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
