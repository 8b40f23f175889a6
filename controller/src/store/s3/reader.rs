//! Reads objects: for readers of evidence, and back after they were written.
//!
//! A read that is cut goes on where it was, in the same version; only what has made no progress for
//! a whole budget fails.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use hyper::body::Incoming;
use impound_evidence::{Digests, EvidencePath};

use super::bucket::{Head, StoredAs};
use super::hashing::Hashing;
use super::http::Patience;
use super::{Inner, S3Error, keys, log, remote};
use crate::store::{CollectionId, Content, ObjectReader, StoreError};

/// Bytes of one piece: what one gRPC chunk may hold.
const PIECE: usize = 1 << 20;
/// Progress that makes a cut read a new one.
const PROGRESS: u64 = 1 << 20;
/// Reads of an object that differs from what was written, before the store is not believed any more:
/// bytes can change on the way, and one read that fits proves that the store has them.
const READS: u32 = 3;

/// An object that was read back.
pub(super) struct Reread {
    pub(super) digests: Digests,
    pub(super) stored: StoredAs,
}

/// An object on its way here.
pub(super) struct Download {
    inner: Arc<Inner>,
    name: String,
    key: String,
    head: Head,
    body: Option<Incoming>,
    at: u64,
    patience: Patience,
    renewed_at: u64,
}

/// Reads a whole object and hashes it; again, if it is not `expected`.
pub(super) async fn reread(
    inner: &Arc<Inner>,
    name: &str,
    key: &str,
    version: Option<String>,
    expected: Option<Content>,
) -> Result<Reread, StoreError> {
    let mut reads = 0;
    loop {
        let mut download = Download::open(inner, name, key, version.as_deref(), 0).await?;
        let stored = download.head.stored.clone();
        let hashing = Hashing::of_digests();
        while let Some(piece) = download.next().await? {
            let sent = hashing.chunks.send(piece).await;
            sent.map_err(|_| StoreError::WriterLost {
                at: name.to_owned(),
            })?;
        }
        let digests = hashing.end().await;
        let digests = digests.ok_or_else(|| StoreError::WriterLost {
            at: name.to_owned(),
        })?;
        let content = Content::from(digests);
        reads += 1;
        if expected.is_none_or(|expected| expected == content) || reads == READS {
            return Ok(Reread { digests, stored });
        }
        tracing::warn!(object = name, %content, reads, "was read back otherwise than it was written; it is read again");
    }
}

/// What has this name, if anything has.
pub(super) async fn named(
    inner: &Inner,
    at: &CollectionId,
    path: &EvidencePath,
) -> Result<Option<Head>, StoreError> {
    let name = keys::name(at, path);
    let failed = |source| remote(&name, "look for it", source);
    let record = keys::record(&inner.bucket.config.place, at, path);
    // The record first: one that goes in between leaves an object that has its name.
    if inner.bucket.head(&record).await.map_err(failed)?.is_some() {
        return Ok(None);
    }
    inner
        .bucket
        .head(&inner.key(at, path))
        .await
        .map_err(failed)
}

/// Opens a file for reading from `offset`.
pub(super) async fn open(
    inner: &Arc<Inner>,
    at: &CollectionId,
    path: &EvidencePath,
    offset: u64,
) -> Result<ObjectReader, StoreError> {
    if log::is_log(path) {
        return log::open(inner, at, offset).await;
    }
    let name = keys::name(at, path);
    let Some(head) = named(inner, at, path).await? else {
        return Err(StoreError::NotFound { at: name });
    };
    let download = Download {
        inner: Arc::clone(inner),
        key: inner.key(at, path),
        name,
        body: None,
        at: offset,
        patience: inner.bucket.patience(),
        renewed_at: offset,
        head,
    };
    Ok(ObjectReader {
        size: download.head.size,
        chunks: download.pieces().boxed(),
    })
}

/// A whole file of at most `limit` bytes, if it is there.
pub(super) async fn small(
    inner: &Arc<Inner>,
    at: &CollectionId,
    path: &EvidencePath,
    limit: u64,
) -> Result<Option<Vec<u8>>, StoreError> {
    let mut reader = match open(inner, at, path, 0).await {
        Ok(reader) => reader,
        Err(error) if error.is_not_found() => {
            inner.require(at).await?;
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    if reader.size > limit {
        return Err(StoreError::TooLarge {
            at: keys::name(at, path),
            size: reader.size,
            limit,
        });
    }
    let mut bytes = Vec::new();
    while let Some(piece) = reader.chunks.try_next().await? {
        bytes.extend_from_slice(&piece);
    }
    Ok(Some(bytes))
}

impl Download {
    /// Opens a version of an object; the current one if none is given.
    pub(super) async fn open(
        inner: &Arc<Inner>,
        name: &str,
        key: &str,
        version: Option<&str>,
        offset: u64,
    ) -> Result<Self, StoreError> {
        let mut patience = inner.bucket.patience();
        loop {
            match inner.bucket.open(key, version, 0).await {
                Ok((head, body)) => {
                    return Ok(Self {
                        inner: Arc::clone(inner),
                        name: name.to_owned(),
                        key: key.to_owned(),
                        head,
                        body: (offset == 0).then_some(body),
                        at: offset,
                        patience,
                        renewed_at: offset,
                    });
                }
                Err((error, _)) if error.is_absent() => {
                    return Err(StoreError::NotFound {
                        at: name.to_owned(),
                    });
                }
                Err((error, after)) => patience
                    .wait(error, after)
                    .await
                    .map_err(|error| remote(name, "read it", error))?,
            }
        }
    }

    /// The next bytes, or nothing at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        loop {
            if self.at >= self.head.size {
                return Ok(None);
            }
            match self.try_next().await {
                Ok(piece) => {
                    self.at += piece.len() as u64;
                    if self.at - self.renewed_at >= PROGRESS {
                        self.renewed_at = self.at;
                        self.patience.renew();
                    }
                    return Ok(Some(piece));
                }
                Err((error, after)) => {
                    self.body = None;
                    let again = self.patience.wait(error, after).await;
                    again.map_err(|error| remote(&self.name, "read it", error))?;
                }
            }
        }
    }

    async fn try_next(&mut self) -> Result<Bytes, (S3Error, Option<std::time::Duration>)> {
        let bucket = &self.inner.bucket;
        if self.body.is_none() {
            let version = self.head.stored.version.as_deref();
            let (head, body) = bucket.open(&self.key, version, self.at).await?;
            if (head.size, &head.etag) != (self.head.size, &self.head.etag) {
                let changed = "the object is another than before; somebody replaces it";
                return Err(S3Error::Request(changed.to_owned()).into());
            }
            self.body = Some(body);
        }
        let Some(body) = &mut self.body else {
            return Err(S3Error::Broken("no body".to_owned()).into());
        };
        let piece = bucket.http.piece(body).await?;
        let piece = piece.ok_or_else(|| S3Error::Broken("the body was cut".to_owned()))?;
        if piece.len() as u64 > self.head.size - self.at {
            return Err(S3Error::Broken("the body is too long".to_owned()).into());
        }
        Ok(piece)
    }

    /// The rest, in pieces of at most 1 MiB.
    pub(super) fn pieces(self) -> impl futures::Stream<Item = Result<Bytes, StoreError>> {
        let whole = stream::try_unfold(self, |mut download| async {
            let piece = download.next().await?;
            Ok(piece.map(|piece| (piece, download)))
        });
        whole.map_ok(small_pieces).try_flatten()
    }
}

fn small_pieces(mut piece: Bytes) -> impl futures::Stream<Item = Result<Bytes, StoreError>> {
    stream::iter(std::iter::from_fn(move || {
        let next = piece.split_to(piece.len().min(PIECE));
        (!next.is_empty()).then_some(Ok(next))
    }))
}
