//! Last hop of the data path: the custody log grows here, and a collection is signed here.
//!
//! A case has one log, `<case>/custody/custody.jsonl`; a collection gets a copy of it as it is when the
//! collection is sealed, and does not change any more after that.
//!
//! Order of a seal: every artifact has its receipt (it was re-read from the store and matched) and
//! the log says `Verified`; then the copy of the log and its checkpoint, and an authority's timestamp of
//! that if one is asked; then `manifest.json`, which names that head; then `manifest.sigstore.json`, and only
//! with that file a collection is sealed; then the log says `Sealed`. A crash at any point before the signature leaves a collection that is visibly
//! not.

use std::sync::Arc;

use impound_evidence::{
    BUNDLE, BUNDLE_LIMIT, BundleError, CHECKPOINT, CHECKPOINT_LIMIT, CUSTODY, Checkpoint,
    CheckpointError, CustodyError, Entry, Event, EvidencePath, KeyError, LogHead, MANIFEST,
    MANIFEST_LIMIT, Manifest, ManifestError, NameError, OpenBundle, Sha256, VerifyingKey,
    sign_manifest,
};
use thiserror::Error;

use crate::store::{CollectionId, CollectionLock, Content, Store, StoreError};
use log::small;
pub use log::{CustodyAppender, LogCopy, log_of};

mod log;

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
    /// No more room.
    #[error(
        "the custody log {at} is full: what is left of it is kept for collections that are begun; go on with another case"
    )]
    Full {
        /// `<case>/<collection>`
        at: CollectionId,
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

/// Seals a collection whose artifacts all have their receipts, and whose log is there ([`copy_log`]). What an
/// earlier attempt has written must be exactly what this one would write: a manifest that somebody else put
/// there is never signed, and no name is written twice.
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
        open.is_some_and(|open| open.payload == bytes && open.verify(custody.trusted()).is_ok())
    });
    let warning = custody.objection(manifest.created);
    if !signed {
        if let Some(warning) = &warning {
            // Sealed all the same: a warning that a person reads is better than no seal.
            tracing::warn!(case = %at.case, collection = %at.name, warning, "signs with a key that is not in use");
        }
        let bundle = sign_manifest(&bytes, custody.key())?;
        write_once(store, lock, BUNDLE, &bundle).await?;
    }
    let manifest_sha256 = Sha256::of(&bytes);
    // It comes after the signature.
    let is_it = |entry: &Entry| entry.event == Event::Sealed;
    let logged = signed && custody.entries(at).await?.iter().any(is_it);
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
    let there = log::lines(store, at).await?;
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
        Some(signed) => match Checkpoint::open(&signed, custody.trusted()) {
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
