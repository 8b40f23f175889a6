//! The custody log, which grows, in a store where nothing does.
//!
//! Every append is one object, created under the condition that nothing has its name, and its name is
//! the offset where the log ended: of two writers that know the same end, one gets it. Nothing is torn
//! by a crash, as an object is there whole or not at all. Readers see the pieces as one file.
//!
//! So that a long log is not read in as many requests as it has entries, some hundred pieces at a time are
//! joined: a copy of them in one object, whose name says where it begins and ends. The pieces stay and are the
//! log; the copies only save requests, and lie with what is the store's own.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use impound_evidence::{CHECKPOINT, CUSTODY, EvidencePath, Sha256};

use super::bucket::{Created, Purpose, attempt};
use super::hashing::hashed;
use super::http::Chunks;
use super::reader::Download;
use super::{Inner, MOST_FILES, keys, locked, remote};
use crate::describe::describe;
use crate::store::{CollectionId, ObjectReader, StoreError, StoredFile, checkpoint_entries};

/// Pieces that are read at the same time; most have less than a KiB.
const AHEAD: usize = 16;
/// Tries to replace a checkpoint that others replace too.
const TRIES: u32 = 8;
/// Pieces from which on they are joined: reading so many takes about a second.
const JOIN: u32 = 256;
/// Most bytes that are joined: they are held in memory meanwhile.
const JOINED: u64 = 16 << 20;

/// Where a log ends, as this process knows it.
#[derive(Clone, Copy)]
pub(super) struct End {
    /// Where its last piece begins.
    last: u64,
    bytes: u64,
    /// Pieces behind the last joined ones.
    single: u32,
}

pub(super) fn is_log(path: &EvidencePath) -> bool {
    path.as_str() == CUSTODY
}

/// The log as a file, if there is one.
pub(super) async fn file(
    inner: &Inner,
    at: &CollectionId,
) -> Result<Option<StoredFile>, StoreError> {
    let pieces = pieces(inner, at, 0).await?;
    let Some(last) = pieces.last() else {
        return Ok(None);
    };
    let path = CUSTODY.parse().map_err(|source| StoreError::Name {
        at: CUSTODY.to_owned(),
        source: Box::new(source),
    })?;
    Ok(Some(StoredFile {
        path,
        size: last.end(),
    }))
}

/// Reads the log from `offset`.
pub(super) async fn open(
    inner: &Arc<Inner>,
    at: &CollectionId,
    offset: u64,
) -> Result<ObjectReader, StoreError> {
    let name = format!("{at}/{CUSTODY}");
    // Whoever asks for what is behind the end that is known wants only what is new.
    let known = locked(&inner.ends).get(at).copied();
    let known = known.filter(|end| end.bytes == offset);
    let pieces = pieces(inner, at, known.map_or(0, |end| end.last)).await?;
    let Some(last) = pieces.last() else {
        return Err(StoreError::NotFound { at: name });
    };
    let size = last.end();
    let single = pieces.iter().filter(|piece| !piece.joined);
    let single = u32::try_from(single.count()).unwrap_or(u32::MAX);
    let end = End {
        last: last.offset,
        bytes: size,
        // The last one that was known is among them again.
        single: known.map_or(single, |end| (end.single + single).saturating_sub(1)),
    };
    locked(&inner.ends).insert(at.clone(), end);
    let wanted = pieces.into_iter().filter(move |piece| piece.end() > offset);
    let (inner, at) = (Arc::clone(inner), at.clone());
    let read = move |piece: Piece| {
        let (inner, at) = (Arc::clone(&inner), at.clone());
        async move {
            let chunks = piece.read(&inner, &at, offset).await?;
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
    inner: &Arc<Inner>,
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
    if known.is_none_or(|end| end.bytes != size) {
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
            let single = known.map_or(0, |end| end.single) + 1;
            let join = single >= JOIN;
            let known = End {
                last: size,
                bytes: end,
                single: if join { 0 } else { single },
            };
            locked(&inner.ends).insert(at.clone(), known);
            if join && let Err(error) = join_pieces(inner, at).await {
                let error = describe(&error);
                tracing::warn!(collection = %at, error, "the custody log's pieces are not joined yet");
            }
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

/// Copies the pieces behind the last joined ones into one.
async fn join_pieces(inner: &Arc<Inner>, at: &CollectionId) -> Result<(), StoreError> {
    let mut bytes = 0;
    let pieces = pieces(inner, at, 0).await?;
    let single = pieces.into_iter().filter(|piece| !piece.joined);
    let few = single.take_while(|piece| {
        bytes += piece.size;
        bytes <= JOINED
    });
    let few: Vec<Piece> = few.collect();
    let (Some(first), Some(last)) = (few.first(), few.last()) else {
        return Ok(());
    };
    let place = &inner.bucket.config.place;
    let key = keys::joined(place, at, first.offset, last.end());
    let (of, read_at) = (Arc::clone(inner), at.clone());
    let read = few.into_iter().map(move |piece| {
        let (inner, at) = (Arc::clone(&of), read_at.clone());
        async move { piece.read(&inner, &at, 0).await }
    });
    let read: Vec<Vec<Bytes>> = stream::iter(read).buffered(AHEAD).try_collect().await?;
    let body = Chunks::new(read.into_iter().flatten().collect());
    let failed = |source| remote(&format!("{at}/{CUSTODY}"), "join its pieces", source);
    let (body, sha256) = hashed(body).await.map_err(failed)?;
    let attempt = attempt();
    let created = inner
        .bucket
        .create(&key, body, sha256, &attempt, Purpose::Evidence);
    // Another replica may have made the same.
    created.await.map(drop).map_err(failed)
}

/// One object of the log.
struct Piece {
    key: String,
    offset: u64,
    size: u64,
    /// Whether it is a copy of several.
    joined: bool,
}

impl Piece {
    fn end(&self) -> u64 {
        self.offset.saturating_add(self.size)
    }

    /// Its bytes from `offset` of the log on.
    async fn read(
        &self,
        inner: &Arc<Inner>,
        at: &CollectionId,
        offset: u64,
    ) -> Result<Vec<Bytes>, StoreError> {
        let name = format!("{at}/{CUSTODY}");
        let from = offset.saturating_sub(self.offset);
        let download = Download::open(inner, &name, &self.key, None, from).await?;
        let chunks: Vec<Bytes> = download.pieces().try_collect().await?;
        let found: u64 = chunks.iter().map(|chunk| chunk.len() as u64).sum();
        match from + found == self.size {
            true => Ok(chunks),
            false => Err(gap(at, self.offset)),
        }
    }
}

/// The log's pieces, each beginning where the one before it ends: from the one on that begins at `from`, or as
/// few as there are from the beginning on.
async fn pieces(inner: &Inner, at: &CollectionId, from: u64) -> Result<Vec<Piece>, StoreError> {
    let place = &inner.bucket.config.place;
    let failed = |source| remote(&format!("{at}/{CUSTODY}"), "list its pieces", source);
    let (mut pieces, mut end) = (Vec::<Piece>::new(), from);
    if from == 0 {
        let prefix = keys::copies(place, at);
        let listed = inner.bucket.list(&prefix, None, MOST_FILES);
        for object in listed.await.map_err(failed)? {
            let name = object.key.strip_prefix(&prefix).unwrap_or_default();
            let Some((offset, until)) = keys::joined_range(name) else {
                continue;
            };
            let piece = Piece {
                joined: true,
                offset,
                size: object.size,
                key: object.key,
            };
            if until != piece.end() {
                return Err(gap(at, offset));
            }
            // Two replicas may have joined more and fewer.
            let longer = |last: &Piece| last.offset == offset && until > last.end();
            if let Some(last) = pieces.last_mut().filter(|last| longer(last)) {
                end = until;
                *last = piece;
            } else if offset == end {
                end = until;
                pieces.push(piece);
            }
        }
    }
    let prefix = keys::segments(place, at);
    // Keys are ordered as their offsets are.
    let after = end.checked_sub(1);
    let after = after.map(|before| keys::segment(place, at, before));
    let listed = inner.bucket.list(&prefix, after.as_deref(), MOST_FILES);
    for object in listed.await.map_err(failed)? {
        let name = object.key.strip_prefix(&prefix).unwrap_or_default();
        if keys::segment_offset(name) != Some(end) || object.size == 0 {
            return Err(gap(at, end));
        }
        let piece = Piece {
            joined: false,
            offset: end,
            size: object.size,
            key: object.key,
        };
        end = piece.end();
        pieces.push(piece);
    }
    Ok(pieces)
}

fn gap(at: &CollectionId, offset: u64) -> StoreError {
    StoreError::Planted {
        at: format!("{at}/custody (at byte {offset})"),
        expected: "row of pieces that each begin where the one before ends",
    }
}
