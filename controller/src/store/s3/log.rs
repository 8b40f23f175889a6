//! The custody log, which grows, in a store where nothing does.
//!
//! Every append is one object, created under the condition that nothing has its name, and its name is
//! the offset where the log ended: of two writers that know the same end, one gets it. Nothing is torn
//! by a crash, as an object is there whole or not at all. Readers see the pieces as one file.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use impound_evidence::{CHECKPOINT, CUSTODY, EvidencePath, Sha256};

use super::bucket::{Created, Purpose, attempt};
use super::http::Chunks;
use super::reader::Download;
use super::{Inner, MOST_FILES, keys, locked, remote};
use crate::store::{CollectionId, ObjectReader, StoreError, StoredFile, checkpoint_entries};

/// Pieces that are read at the same time; most have less than a KiB.
const AHEAD: usize = 16;
/// Tries to replace a checkpoint that others replace too.
const TRIES: u32 = 8;

pub(super) fn is_log(path: &EvidencePath) -> bool {
    path.as_str() == CUSTODY
}

/// The log as a file, if there is one.
pub(super) async fn file(
    inner: &Inner,
    at: &CollectionId,
) -> Result<Option<StoredFile>, StoreError> {
    let pieces = pieces(inner, at).await?;
    let Some(last) = pieces.last() else {
        return Ok(None);
    };
    let path = CUSTODY.parse().map_err(|source| StoreError::Name {
        at: CUSTODY.to_owned(),
        source: Box::new(source),
    })?;
    Ok(Some(StoredFile {
        path,
        size: last.offset + last.size,
    }))
}

/// Reads the log from `offset`.
pub(super) async fn open(
    inner: &Arc<Inner>,
    at: &CollectionId,
    offset: u64,
) -> Result<ObjectReader, StoreError> {
    let name = format!("{at}/{CUSTODY}");
    let pieces = pieces(inner, at).await?;
    let Some(last) = pieces.last() else {
        return Err(StoreError::NotFound { at: name });
    };
    let size = last.offset + last.size;
    let wanted = pieces
        .into_iter()
        .filter(move |piece| piece.offset + piece.size > offset);
    let (inner, at) = (Arc::clone(inner), at.clone());
    let read = move |piece: Piece| {
        let (inner, at) = (Arc::clone(&inner), at.clone());
        async move {
            let key = keys::segment(&inner.bucket.config.place, &at, piece.offset);
            let name = format!("{at}/{CUSTODY}");
            let from = offset.saturating_sub(piece.offset);
            let download = Download::open(&inner, &name, &key, None, from).await?;
            let chunks: Vec<Bytes> = download.pieces().try_collect().await?;
            let found: u64 = chunks.iter().map(|chunk| chunk.len() as u64).sum();
            if from + found != piece.size {
                return Err(gap(&at, piece.offset));
            }
            Ok(stream::iter(chunks.into_iter().map(Ok)))
        }
    };
    let chunks = stream::iter(wanted).map(read).buffered(AHEAD).try_flatten();
    Ok(ObjectReader {
        size,
        chunks: chunks.boxed(),
    })
}

/// Adds `lines` to a log of exactly `size` bytes and returns its new size.
pub(super) async fn append(
    inner: &Inner,
    at: &CollectionId,
    size: u64,
    lines: Vec<u8>,
) -> Result<u64, StoreError> {
    let name = format!("{at}/{CUSTODY}");
    if !lines.ends_with(b"\n") {
        return Err(StoreError::Reserved {
            at: name,
            reason: "the custody log takes whole lines only",
        });
    }
    let moved = |found| StoreError::LogMoved {
        at: at.to_string(),
        expected: size,
        found,
    };
    let known = locked(&inner.ends).remove(at);
    if known != Some(size) {
        let found = file(inner, at).await?.map_or(0, |file| file.size);
        if found != size {
            return Err(moved(found));
        }
        if size == 0 {
            inner.require(at).await?;
        }
    }
    let key = keys::segment(&inner.bucket.config.place, at, size);
    let end = size + lines.len() as u64;
    let sha256 = Sha256::of(&lines);
    let body = Chunks::new(vec![lines.into()]);
    let attempt = attempt();
    let created = inner
        .bucket
        .create(&key, body, sha256, &attempt, Purpose::Evidence);
    match created
        .await
        .map_err(|source| remote(&name, "extend it", source))?
    {
        Created::Ours(_) => {
            locked(&inner.ends).insert(at.clone(), end);
            Ok(end)
        }
        Created::Taken => Err(moved(file(inner, at).await?.map_or(0, |file| file.size))),
    }
}

/// Puts `checkpoint` in the place of the stored one.
pub(super) async fn checkpoint(
    inner: &Inner,
    at: &CollectionId,
    checkpoint: Vec<u8>,
) -> Result<(), StoreError> {
    let name = format!("{at}/{CHECKPOINT}");
    let entries = |bytes: &[u8], which| {
        checkpoint_entries(bytes).ok_or_else(|| StoreError::NotACheckpoint {
            at: at.to_string(),
            which,
        })
    };
    let new = entries(&checkpoint, "new")?;
    let key = format!(
        "{}{CHECKPOINT}",
        keys::collection(&inner.bucket.config.place, at)
    );
    let checkpoint = Bytes::from(checkpoint);
    for _ in 0..TRIES {
        let read = inner.bucket.small(&key).await;
        let old = read.map_err(|source| remote(&name, "read it", source))?;
        if let Some((_, bytes)) = &old {
            let stored = entries(bytes, "stored")?;
            if new < stored {
                return Err(StoreError::CheckpointBackwards {
                    at: at.to_string(),
                    new,
                    stored,
                });
            }
        }
        let tag = old.as_ref().map(|(head, _)| head.etag.as_str());
        let swapped = inner.bucket.swap(&key, tag, checkpoint.clone()).await;
        if swapped.map_err(|source| remote(&name, "replace it", source))? {
            return Ok(());
        }
    }
    Err(StoreError::Busy { at: at.to_string() })
}

/// One object of the log.
struct Piece {
    offset: u64,
    size: u64,
}

/// The log's pieces, each beginning where the one before it ends.
async fn pieces(inner: &Inner, at: &CollectionId) -> Result<Vec<Piece>, StoreError> {
    let prefix = keys::segments(&inner.bucket.config.place, at);
    let listed = inner.bucket.list(&prefix, MOST_FILES).await;
    let listed =
        listed.map_err(|source| remote(&format!("{at}/{CUSTODY}"), "list its pieces", source))?;
    let mut pieces: Vec<Piece> = Vec::new();
    for object in listed {
        let name = object.key.strip_prefix(&prefix).unwrap_or_default();
        let end = pieces.last().map_or(0, |last| last.offset + last.size);
        match keys::segment_offset(name) {
            Some(offset) if offset == end && object.size > 0 => pieces.push(Piece {
                offset,
                size: object.size,
            }),
            _ => return Err(gap(at, end)),
        }
    }
    Ok(pieces)
}

fn gap(at: &CollectionId, offset: u64) -> StoreError {
    StoreError::Planted {
        at: format!("{at}/custody (at byte {offset})"),
        expected: "row of pieces that each begin where the one before ends",
    }
}
