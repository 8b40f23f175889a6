//! The evidence store: where collected bytes come to rest, between the agent's stream
//! (`collect`) and the signed manifest (`seal`).
//!
//! Write-once: a name maps to one byte string for ever. An object gets its name only after its
//! bytes were written, made durable, read back and found equal to what arrived; the [`Receipt`]
//! that says so comes out of nothing else, so an unfinished object can't enter a manifest. The
//! custody log and its checkpoint are the only names that grow, and only forwards.
//!
//! Two implementations: [`directory`], a directory on a volume, and [`s3`], a bucket of an object
//! store.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use impound_evidence::{
    CaseId, CollectionName, Digests, Encoded, EvidencePath, EvidenceSource, Listing, OpenFile,
    Sha256, StorageClaim, StorageReceipt,
};

pub mod directory;
pub mod encoded;
mod error;
pub mod s3;

pub use error::StoreError;

/// A write-once store of collections. All methods may be called at the same time from many tasks;
/// none blocks the runtime.
#[async_trait]
pub trait Store: Send + Sync {
    /// Whether what is stored can be read again without crossing a network.
    fn is_local(&self) -> bool;

    /// Makes an empty collection. Fails with [`StoreError::CollectionExists`] if there is one.
    async fn create_collection(&self, at: &CollectionId) -> Result<(), StoreError>;

    /// The collections of a case, by name. None for an unknown case.
    async fn collections(&self, case: &CaseId) -> Result<Vec<CollectionName>, StoreError>;

    /// Takes the collection for writing. Fails with [`StoreError::Busy`] while another process or
    /// task, or a writer that one has left behind, holds it; ends with its last clone.
    async fn lock(&self, at: &CollectionId) -> Result<CollectionLock, StoreError>;

    /// Starts a new object. Fails with [`StoreError::ObjectExists`] if the name is taken and with
    /// [`StoreError::Leftover`] if an earlier writer of it was cut off.
    async fn writer(
        &self,
        lock: &CollectionLock,
        at: &EvidencePath,
    ) -> Result<Box<dyn ObjectWriter>, StoreError>;

    /// The names that unfinished objects were meant for, ordered: those of writers that were cut
    /// off, and of those at work.
    async fn leftovers(&self, lock: &CollectionLock) -> Result<Vec<EvidencePath>, StoreError>;

    /// What a writer that was cut off has left of an object, made durable, read and hashed; nothing
    /// if there is nothing, or it has its name after all. Not for an object whose writer is at work.
    async fn leftover(
        &self,
        lock: &CollectionLock,
        at: &EvidencePath,
    ) -> Result<Option<Box<dyn Unfinished>>, StoreError>;

    /// Re-reads a stored object and compares it with what was recorded of it.
    async fn recheck(
        &self,
        lock: &CollectionLock,
        at: &EvidencePath,
        expected: Content,
    ) -> Result<Receipt, StoreError>;

    /// Removes the directories in which nothing is: those of objects that were begun and left nothing. A verifier
    /// takes an empty one for added. Nothing may be written to the collection meanwhile.
    async fn prune(&self, lock: &CollectionLock) -> Result<(), StoreError>;

    /// The files of a collection with their sizes in bytes, ordered by path; unfinished ones are
    /// not among them.
    async fn list(&self, at: &CollectionId) -> Result<Vec<StoredFile>, StoreError>;

    /// Size of a file in bytes, or nothing if there is none of that name.
    async fn size(&self, at: &CollectionId, path: &EvidencePath)
    -> Result<Option<u64>, StoreError>;

    /// Reads a file from `offset` (bytes) to its end, in pieces of at most 1 MiB.
    async fn read(
        &self,
        at: &CollectionId,
        path: &EvidencePath,
        offset: u64,
    ) -> Result<ObjectReader, StoreError>;

    /// A whole small file, or nothing if there is none of that name. Fails with
    /// [`StoreError::TooLarge`] above `limit` bytes.
    async fn read_small(
        &self,
        at: &CollectionId,
        path: &EvidencePath,
        limit: u64,
    ) -> Result<Option<Vec<u8>>, StoreError>;

    /// Adds whole lines to the custody log, which must have exactly `size` bytes now, and returns
    /// its new size. An unfinished last line, which only a crash leaves and nobody was told of, is
    /// cut off first; anything else there fails with [`StoreError::LogMoved`]. Durable on return.
    async fn append_log(
        &self,
        at: &CollectionId,
        size: u64,
        lines: Vec<u8>,
    ) -> Result<u64, StoreError>;

    /// Puts a newer checkpoint in the place of the old one, atomically and durably. Fails with
    /// [`StoreError::CheckpointBackwards`] if it covers fewer entries.
    async fn replace_checkpoint(
        &self,
        at: &CollectionId,
        checkpoint: Vec<u8>,
    ) -> Result<(), StoreError>;

    /// The collection as the verifier reads it. Its methods block.
    fn evidence(&self, at: &CollectionId) -> StoredEvidence;

    /// What the collector noted for itself with [`Store::save_note`].
    async fn note(&self, at: &CollectionId) -> Result<Option<Vec<u8>>, StoreError>;

    /// Keeps a note beside the collection, not in it, replacing the former one atomically and
    /// durably. It is no evidence: it lets an interrupted collection go on. Empty: removes it.
    async fn save_note(&self, lock: &CollectionLock, note: Vec<u8>) -> Result<(), StoreError>;

    /// Where the collection is, as a URL for people.
    fn location(&self, at: &CollectionId) -> String;

    /// Bytes that can still be written; the largest number if the store has no such limit.
    async fn free_bytes(&self) -> Result<u64, StoreError>;

    /// Writes something that is no evidence and takes it away again: fails as evidence would now.
    async fn try_writing(&self) -> Result<(), StoreError>;

    /// Whether each object of evidence is under a legal hold from its writing on.
    fn holds_all(&self) -> bool {
        false
    }

    /// What of a collection can be put under a legal hold: every version of every object, the seal and the
    /// custody log's copy among them. Fails with [`StoreError::NoHolds`] if the store has none.
    async fn holdable(&self, at: &CollectionId) -> Result<Vec<Holdable>, StoreError> {
        Err(StoreError::NoHolds {
            place: self.location(at),
            reason: "a directory has no legal holds; they are for object stores with --store-lock",
        })
    }

    /// Puts one of them under a legal hold, or lifts that.
    async fn hold(&self, object: &Holdable, on: bool) -> Result<(), StoreError> {
        let _ = on;
        Err(StoreError::NoHolds {
            place: object.key.clone(),
            reason: "a directory has no legal holds; they are for object stores with --store-lock",
        })
    }

    /// Whether stored objects can be changed or removed behind our back, as it was found at start.
    fn write_once(&self) -> WriteOnce;
}

/// Whether a store keeps what it has whoever asks it not to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriteOnce {
    /// An object was written under lock; deleting it, replacing it and shortening its lock were all
    /// tried, with these credentials, and refused.
    Proven,
    /// It may well be, but that was not seen; why, for people.
    NotProven(String),
}

impl From<WriteOnce> for StorageClaim {
    fn from(found: WriteOnce) -> Self {
        match found {
            WriteOnce::Proven => Self {
                write_once: impound_evidence::WriteOnce::Proven,
                reason: None,
            },
            WriteOnce::NotProven(why) => Self {
                write_once: impound_evidence::WriteOnce::NotProven,
                reason: Some(why),
            },
        }
    }
}

impl fmt::Display for WriteOnce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Proven => f.write_str("write-once: tried at start, and refused"),
            Self::NotProven(why) => write!(f, "not proven to be write-once: {why}"),
        }
    }
}

/// A new object on its way. Dropping it leaves behind what a crash would, all but the last MiB or so: see
/// [`Store::leftover`].
#[async_trait]
pub trait ObjectWriter: Send {
    /// Takes the next bytes, at most 1 MiB; waits when the disk is behind by some MiB.
    async fn write(&mut self, data: Bytes) -> Result<(), StoreError>;

    /// Ends the encoding, if the bytes are stored in another form than they come in: nothing is written after it.
    /// What went in and what came out; none if they are stored as they come.
    async fn end(&mut self) -> Result<Option<Encoded>, StoreError> {
        Ok(None)
    }

    /// Makes the bytes durable, reads them back, compares them with `expected` and only then gives
    /// them their name. If anything fails, the bytes are left behind without it: see [`Store::leftover`].
    async fn finish(self: Box<Self>, expected: Content) -> Result<Receipt, StoreError>;

    /// Ends early but keeps the bytes that came, durable and re-read, for a name of their own.
    async fn keep(self: Box<Self>) -> Result<Box<dyn Unfinished>, StoreError>;

    /// Ends early and leaves nothing.
    async fn abort(self: Box<Self>) -> Result<(), StoreError>;
}

/// Bytes of an object that was not finished, durable and re-read, still without a name.
#[async_trait]
pub trait Unfinished: Send {
    /// The name that the writer was for.
    fn intended(&self) -> &EvidencePath;

    /// What was re-read.
    fn content(&self) -> Content;

    /// Why its writer had stopped, if it had failed; once.
    fn take_failure(&mut self) -> Option<StoreError>;

    /// Gives it a name in the directory of the intended one: a free `<name>.partial-<n>` of
    /// [`partial_path`], or the intended one if the bytes turn out to be all of it. On failure
    /// the bytes stay behind.
    async fn keep_as(self: Box<Self>, at: &EvidencePath) -> Result<Receipt, StoreError>;

    /// Removes it.
    async fn discard(self: Box<Self>) -> Result<(), StoreError>;
}

/// A case's collection.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CollectionId {
    /// The case it belongs to.
    pub case: CaseId,
    /// Its name within the case.
    pub name: CollectionName,
}

impl fmt::Display for CollectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.case, self.name)
    }
}

/// Size and digest: what makes two byte strings the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    /// Bytes.
    pub size: u64,
    /// Digest of all of them.
    pub sha256: Sha256,
}

impl Content {
    /// The content of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self {
            size: bytes.len() as u64,
            sha256: Sha256::of(bytes),
        }
    }
}

impl From<Digests> for Content {
    fn from(digests: Digests) -> Self {
        Self {
            size: digests.size,
            sha256: digests.sha256,
        }
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes with SHA-256 {}", self.size, self.sha256)
    }
}

/// Proof that an object has its name and that its bytes, read back from the store, are these.
/// Only a store makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    at: EvidencePath,
    digests: Digests,
    storage: StorageReceipt,
}

impl Receipt {
    /// Only for implementations of [`Store`], after re-reading.
    pub(in crate::store) fn new(
        at: EvidencePath,
        digests: Digests,
        storage: StorageReceipt,
    ) -> Self {
        Self {
            at,
            digests,
            storage,
        }
    }

    /// The object's name.
    #[must_use]
    pub fn at(&self) -> &EvidencePath {
        &self.at
    }

    /// What was re-read.
    #[must_use]
    pub fn content(&self) -> Content {
        self.digests.into()
    }

    /// Root of the chunk tree over what was re-read.
    #[must_use]
    pub fn chunk_root(&self) -> Sha256 {
        self.digests.chunk_root
    }

    /// Where it is and what keeps it there, for the manifest.
    #[must_use]
    pub fn storage(&self) -> &StorageReceipt {
        &self.storage
    }
}

/// The right to write to one collection; see [`Store::lock`].
#[derive(Clone)]
pub struct CollectionLock {
    at: CollectionId,
    _held: Arc<dyn Any + Send + Sync>,
}

impl CollectionLock {
    /// `held` releases the lock when dropped.
    pub(in crate::store) fn new(at: CollectionId, held: Arc<dyn Any + Send + Sync>) -> Self {
        Self { at, _held: held }
    }

    /// The collection that is locked.
    #[must_use]
    pub fn collection(&self) -> &CollectionId {
        &self.at
    }
}

/// A file of a collection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredFile {
    /// Its name below the collection.
    pub path: EvidencePath,
    /// Bytes.
    pub size: u64,
}

/// A version of an object that can be put under a legal hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holdable {
    /// Its whole name in the store.
    pub key: String,
    /// The version, if the store keeps versions.
    pub version: Option<String>,
}

/// A file being read.
pub struct ObjectReader {
    /// Size of the whole file in bytes, wherever the read began.
    pub size: u64,
    /// The bytes in order.
    pub chunks: BoxStream<'static, Result<Bytes, StoreError>>,
}

/// A collection as `impound_evidence::verify` reads it. Blocks.
pub struct StoredEvidence(Box<dyn EvidenceSource + Send>);

impl StoredEvidence {
    /// Only for implementations of [`Store`].
    pub(in crate::store) fn new(source: impl EvidenceSource + Send + 'static) -> Self {
        Self(Box::new(source))
    }
}

impl EvidenceSource for StoredEvidence {
    fn list(&self) -> std::io::Result<Listing> {
        self.0.list()
    }

    fn open(&self, path: &EvidencePath) -> std::io::Result<OpenFile> {
        self.0.open(path)
    }
}

/// The name under which the `n`th broken attempt at an object is kept.
///
/// # Errors
/// If the name would be too long.
pub fn partial_path(of: &EvidencePath, n: u32) -> Result<EvidencePath, StoreError> {
    format!("{of}.partial-{n}")
        .parse()
        .map_err(|source| StoreError::Name {
            at: of.to_string(),
            source: Box::new(source),
        })
}

/// The number of entries in a checkpoint: its second line.
fn checkpoint_entries(checkpoint: &[u8]) -> Option<u64> {
    std::str::from_utf8(checkpoint)
        .ok()?
        .lines()
        .nth(1)?
        .parse()
        .ok()
}
