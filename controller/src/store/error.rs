//! What can go wrong in a store. Every message names the object and says what to do about it.

use std::io;

use impound_evidence::NameError;

use super::Content;
use super::s3::S3Error;

/// A store's refusal or failure.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store's root can't be used.
    #[error(
        "the evidence store {path} can't be opened; it must be a directory on a volume that this process may write to"
    )]
    Open {
        /// The path that was given.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// `create_collection` of an existing one.
    #[error(
        "collection {at} exists in the store; collections are never overwritten, choose another name"
    )]
    CollectionExists {
        /// `<case>/<collection>`
        at: String,
    },
    /// No such collection.
    #[error("there is no collection {at} in the store")]
    NoCollection {
        /// `<case>/<collection>`
        at: String,
    },
    /// Somebody else writes to the collection.
    #[error(
        "collection {at} is being written by another task or replica; try again when it has ended"
    )]
    Busy {
        /// `<case>/<collection>`
        at: String,
    },
    /// The name is taken.
    #[error("{at} exists in the store and is never overwritten")]
    ObjectExists {
        /// `<case>/<collection>/<path>`
        at: String,
    },
    /// The name is taken by an unfinished object.
    #[error(
        "an earlier attempt at {at} was cut off and its bytes are still there; settle it first"
    )]
    Leftover {
        /// `<case>/<collection>/<path>`
        at: String,
    },
    /// No such object.
    #[error("there is no {at} in the store")]
    NotFound {
        /// `<case>/<collection>/<path>`
        at: String,
    },
    /// A name that the store keeps for itself, or that doesn't fit.
    #[error("{at} can't be the name of an object: {reason}")]
    Reserved {
        /// `<case>/<collection>/<path>`
        at: String,
        /// Why not.
        reason: &'static str,
    },
    /// A name that was derived from another and is none.
    #[error("no name can be derived from {at}")]
    Name {
        /// The name it was derived from.
        at: String,
        /// Why not.
        source: Box<NameError>,
    },
    /// The volume is full.
    #[error(
        "the store has no room for {at}: {free} bytes are free in {root}, of which {reserve} are kept for records and seals; free some or enlarge the volume, then collect again"
    )]
    Full {
        /// `<case>/<collection>/<path>`
        at: String,
        /// Bytes free at that moment.
        free: u64,
        /// The store's root.
        root: String,
        /// Bytes that large objects leave free.
        reserve: u64,
    },
    /// What was re-read is not what arrived.
    #[error(
        "{at} was read back from the store as {found}, but {expected} had been written; the volume is not to be trusted, check it and collect again elsewhere"
    )]
    Mismatch {
        /// `<case>/<collection>/<path>`
        at: String,
        /// What arrived, or what was recorded earlier.
        expected: Box<Content>,
        /// What the store gave back.
        found: Box<Content>,
    },
    /// A symlink, device, socket or the like where a file or directory belongs.
    #[error(
        "{at} is no {expected}; somebody has put something else there, so the store refuses to follow it"
    )]
    Planted {
        /// `<case>/<collection>/<path>`
        at: String,
        /// "regular file" or "directory"
        expected: &'static str,
    },
    /// A name on the volume that no evidence can have.
    #[error("{at} holds a name that is no evidence path; somebody else has written there")]
    ForeignName {
        /// `<case>/<collection>/<path>` of the directory
        at: String,
        /// What is wrong with it.
        source: Box<NameError>,
    },
    /// Larger than a small file may be.
    #[error("{at} has {size} bytes, at most {limit} were expected")]
    TooLarge {
        /// `<case>/<collection>/<path>`
        at: String,
        /// Its size in bytes.
        size: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The custody log is not as long as the writer believed.
    #[error(
        "the custody log of {at} was expected to have {expected} bytes but has {found}; somebody else has written to it, read it again"
    )]
    LogMoved {
        /// `<case>/<collection>`
        at: String,
        /// Bytes the writer knew of.
        expected: u64,
        /// Bytes there are.
        found: u64,
    },
    /// A checkpoint that covers less than the stored one, or is none.
    #[error(
        "the new checkpoint of {at} covers {new} entries, the stored one {stored}; a log never shrinks"
    )]
    CheckpointBackwards {
        /// `<case>/<collection>`
        at: String,
        /// Entries the new one covers.
        new: u64,
        /// Entries the stored one covers.
        stored: u64,
    },
    /// Something that is no checkpoint.
    #[error(
        "the {which} checkpoint of {at} is none: its second line must be the number of entries"
    )]
    NotACheckpoint {
        /// `<case>/<collection>`
        at: String,
        /// "new" or "stored"
        which: &'static str,
    },
    /// The file system failed.
    #[error("{at}: the store failed to {step}")]
    Io {
        /// `<case>/<collection>/<path>`
        at: String,
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// An object store can't be used as it is set up.
    #[error("the evidence store {place} can't be used: {reason}")]
    Unusable {
        /// `s3://bucket/prefix`
        place: String,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// An object store failed or refused.
    #[error("{at}: the object store failed to {step}")]
    Remote {
        /// `<case>/<collection>/<path>`
        at: String,
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        source: S3Error,
    },
    /// An object store's multipart upload has no more parts.
    #[error(
        "{at} has more than {limit} bytes, which is what the object store can take in one object; collect it into a directory store"
    )]
    Endless {
        /// `<case>/<collection>/<path>`
        at: String,
        /// Bytes that fit.
        limit: u64,
    },
    /// It can't be brought into the form that it is stored in, or back.
    #[error("{at}: {why}")]
    Encoding {
        /// The artifact.
        at: String,
        /// Why.
        why: String,
    },
    /// Legal holds are asked for where there are none.
    #[error("nothing in {place} can be put under a legal hold: {reason}")]
    NoHolds {
        /// The collection's or object's URL.
        place: String,
        /// Why, and what would have them.
        reason: &'static str,
    },
    /// The store hangs.
    #[error("{at}: the store has not taken the next bytes for {seconds} s")]
    Stalled {
        /// `<case>/<collection>/<path>`
        at: String,
        /// How long.
        seconds: u64,
    },
    /// A writer's thread ended without saying why.
    #[error("{at}: the thread that writes it ended unexpectedly")]
    WriterLost {
        /// `<case>/<collection>/<path>`
        at: String,
    },
}

impl StoreError {
    /// Whether what was asked for is not in the store.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. } | Self::NoCollection { .. })
    }

    /// Whether the same may succeed later without anybody doing something.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Busy { .. }
            | Self::Full { .. }
            | Self::Io { .. }
            | Self::LogMoved { .. }
            | Self::Stalled { .. }
            | Self::WriterLost { .. } => true,
            Self::Remote { source, .. } => source.is_passing(),
            _ => false,
        }
    }

    /// Whether the volume is full.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. })
    }

    /// The same once more, for whoever asks next, as far as it tells anything else than "it failed".
    pub(in crate::store) fn again(&self) -> Self {
        match self {
            Self::Full {
                at,
                free,
                root,
                reserve,
            } => Self::Full {
                at: at.clone(),
                free: *free,
                root: root.clone(),
                reserve: *reserve,
            },
            Self::Io { at, step, source } => Self::Io {
                at: at.clone(),
                step,
                source: io::Error::new(source.kind(), source.to_string()),
            },
            other => Self::WriterLost {
                at: other.to_string(),
            },
        }
    }
}
