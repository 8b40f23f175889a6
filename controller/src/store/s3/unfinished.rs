//! Objects that have no name yet: of a writer that ended, or of a process that died.
//!
//! Multipart uploads can't be read. So the parts are completed to an object under the intended key,
//! which the record beside it keeps from being a name, and that object is read back. Then it gets its
//! name by losing the record; or it is copied, within the store, to the name of a partial one, and
//! removed; or only removed. It is locked last, when it stays.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use impound_evidence::{Digests, EvidencePath, Sha256, StorageReceipt, Timestamp};
use serde::{Deserialize, Serialize};

use super::bucket::{Bucket, Created, Purpose, StoredAs, attempt};
use super::hashing::hashed;
use super::http::Chunks;
use super::writer::{Ended, Target};
use super::xml::Part;
use super::{Inner, S3Error, keys, reader, remote};
use crate::store::{CollectionLock, Content, Receipt, StoreError, Unfinished};

/// That an object has no name yet.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    /// Who writes it.
    attempt: String,
    /// The upload, once it has begun.
    upload: Option<String>,
    /// Parts that are there, with their checksums, which some servers want to be told again.
    #[serde(default)]
    parts: Vec<Part>,
}

impl Record {
    pub(super) fn new(attempt: &str) -> Self {
        Self {
            attempt: attempt.to_owned(),
            upload: None,
            parts: Vec::new(),
        }
    }

    pub(super) fn with_upload(self, id: &str, parts: &[Part]) -> Self {
        Self {
            upload: Some(id.to_owned()),
            parts: parts.to_vec(),
            ..self
        }
    }

    /// The parts that are there without a gap and whose checksums are known.
    fn usable(&self, there: Vec<Part>) -> Vec<Part> {
        let quotes = |tag: &str| tag.trim_matches('"').to_owned();
        let known = |mut part: Part| {
            if part.checksum_sha256.is_none() {
                let same = |ours: &&Part| {
                    ours.part_number == part.part_number && quotes(&ours.etag) == quotes(&part.etag)
                };
                part.checksum_sha256 = self.parts.iter().find(same)?.checksum_sha256.clone();
            }
            part.checksum_sha256.is_some().then_some(part)
        };
        let whole = there.into_iter().zip(1..);
        let whole = whole.take_while(|(part, number)| part.part_number == *number);
        whole.map_while(|(part, _)| known(part)).collect()
    }

    pub(super) fn bytes(&self) -> Bytes {
        // Serialising strings to memory does not fail.
        serde_json::to_vec(self).unwrap_or_default().into()
    }

    pub(super) fn encode(&self) -> (Chunks, Sha256) {
        let bytes = self.bytes();
        let sha256 = Sha256::of(&bytes);
        (Chunks::new(vec![bytes]), sha256)
    }
}

/// Bytes that were re-read, still without a name.
pub(super) struct Left {
    target: Target,
    content: Content,
    bytes: Where,
    pub(super) failure: Option<StoreError>,
}

enum Where {
    /// Less than a part.
    Memory(Vec<Bytes>),
    /// An object under the intended key, and a record.
    Object(StoredAs, Digests),
}

impl Left {
    /// Of a writer that has ended. `content`: what was written to it.
    pub(super) async fn of(
        target: Target,
        content: Content,
        ended: Ended,
    ) -> Result<Self, StoreError> {
        match ended {
            Ended::Memory(chunks) => Ok(Self {
                target,
                content,
                bytes: Where::Memory(chunks),
                failure: None,
            }),
            Ended::Parts { parts, .. } if parts.is_empty() => {
                Self::remove(&target).await?;
                Ok(Self {
                    target,
                    content: Content::of(b""),
                    bytes: Where::Memory(Vec::new()),
                    failure: None,
                })
            }
            Ended::Parts { upload, parts } => {
                let bucket = &target.inner.bucket;
                let completed =
                    bucket.complete_upload(&target.key, &upload, &target.attempt, &parts);
                match completed.await.map_err(target.failed("complete it"))? {
                    Created::Ours(version) => Self::read(target, version, Some(content)).await,
                    Created::Taken => {
                        Self::remove(&target).await?;
                        Err(StoreError::ObjectExists { at: target.name() })
                    }
                }
            }
        }
    }

    /// Of a writer that was cut off, if it has left anything that can be read.
    pub(super) async fn recover(
        inner: &Arc<Inner>,
        lock: &CollectionLock,
        path: &EvidencePath,
    ) -> Result<Option<Box<dyn Unfinished>>, StoreError> {
        let bucket = &inner.bucket;
        let name = keys::name(lock.collection(), path);
        let failed = |source| remote(&name, "look at what is left of it", source);
        let record = keys::record(&bucket.config.place, lock.collection(), path);
        let Some((_, bytes)) = bucket.small(&record).await.map_err(failed)? else {
            return Ok(None);
        };
        // One that can't be read is of a write that nobody was told of.
        let record: Option<Record> = serde_json::from_slice(&bytes).ok();
        let by = record.as_ref().map(|record| record.attempt.clone());
        let target = Target::take(inner, lock, path, by.unwrap_or_default())?;
        match bucket
            .whose(&target.key, &target.attempt)
            .await
            .map_err(failed)?
        {
            Created::Ours(version) => {
                let left = Self::read(target, version, None).await?;
                return Ok(Some(Box::new(left)));
            }
            // Absent, or another writer's.
            Created::Taken => {}
        }
        let upload = record.as_ref().and_then(|record| record.upload.clone());
        let mut parts = Vec::new();
        if let (Some(record), Some(upload)) = (&record, &upload) {
            let there = bucket.parts(&target.key, upload).await.map_err(failed)?;
            parts = record.usable(there.unwrap_or_default());
        }
        let (Some(upload), false) = (upload, parts.is_empty()) else {
            Self::remove(&target).await?;
            return Ok(None);
        };
        let completed = bucket.complete_upload(&target.key, &upload, &target.attempt, &parts);
        match completed.await.map_err(failed)? {
            Created::Ours(version) => {
                let left = Self::read(target, version, None).await?;
                Ok(Some(Box::new(left)))
            }
            Created::Taken => {
                Self::remove(&target).await?;
                Ok(None)
            }
        }
    }

    /// Reads an object back. `expected` makes a difference only to how hard it is tried.
    async fn read(
        target: Target,
        version: Option<String>,
        expected: Option<Content>,
    ) -> Result<Self, StoreError> {
        let (inner, name) = (&target.inner, target.name());
        let reread = reader::reread(inner, &name, &target.key, version, expected).await?;
        Ok(Self {
            target,
            content: reread.digests.into(),
            bytes: Where::Object(reread.stored, reread.digests),
            failure: None,
        })
    }

    /// Gives it the intended name, if it is what was expected.
    pub(super) async fn name_it(self, expected: Content) -> Result<Receipt, StoreError> {
        if self.content != expected {
            return Err(StoreError::Mismatch {
                at: self.target.name(),
                expected: expected.into(),
                found: self.content.into(),
            });
        }
        let path = self.target.path.clone();
        Box::new(self).keep_as(&path).await
    }

    /// Removes the object if it is of this attempt, the upload, and last the record.
    pub(super) async fn remove(target: &Target) -> Result<(), StoreError> {
        let bucket = &target.inner.bucket;
        let failed = target.failed("remove what there is of it");
        let record = target.record();
        let Some((_, bytes)) = bucket.small(&record).await.map_err(&failed)? else {
            return Ok(());
        };
        let found: Option<Record> = serde_json::from_slice(&bytes).ok();
        if found.is_some_and(|record| record.attempt != target.attempt) {
            // Another writer's, which has to look after it itself.
            return Ok(());
        }
        bucket
            .abort_uploads_of(&target.key)
            .await
            .map_err(&failed)?;
        let whose = bucket.whose(&target.key, &target.attempt);
        if matches!(whose.await.map_err(&failed)?, Created::Ours(_)) {
            bucket.purge(&target.key).await.map_err(&failed)?;
        }
        bucket.purge(&record).await.map_err(&failed)
    }

    /// Creates the object `at` from bytes in memory, and reads it back.
    async fn create(
        target: &Target,
        at: &EvidencePath,
        chunks: Vec<Bytes>,
        content: Content,
    ) -> Result<Receipt, StoreError> {
        let (inner, name) = (&target.inner, keys::name(target.lock.collection(), at));
        let key = inner.key(target.lock.collection(), at);
        let failed = |source| remote(&name, "create it", source);
        let (body, sha256) = hashed(Chunks::new(chunks)).await.map_err(failed)?;
        let created = inner
            .bucket
            .create(&key, body, sha256, &target.attempt, Purpose::Evidence);
        let Created::Ours(version) = created.await.map_err(failed)? else {
            return Err(StoreError::ObjectExists { at: name });
        };
        let found = reader::reread(inner, &name, &key, version, Some(content)).await?;
        expected(&name, content, &found)?;
        Ok(receipt(
            &inner.bucket,
            &key,
            at,
            found.digests,
            found.stored,
        ))
    }

    /// Copies the object to `at`, and reads that back.
    async fn copy(&self, at: &EvidencePath, from: &StoredAs) -> Result<Receipt, StoreError> {
        let target = &self.target;
        let (inner, name) = (&target.inner, keys::name(target.lock.collection(), at));
        let key = inner.key(target.lock.collection(), at);
        let source = (target.key.as_str(), from.version.as_deref());
        let attempt = attempt();
        let copied = inner.bucket.copy(source, self.content.size, &key, &attempt);
        let copied = copied
            .await
            .map_err(|source| remote(&name, "copy it", source))?;
        let Created::Ours(version) = copied else {
            return Err(StoreError::ObjectExists { at: name });
        };
        let found = reader::reread(inner, &name, &key, version, Some(self.content)).await?;
        expected(&name, self.content, &found)?;
        Ok(receipt(
            &inner.bucket,
            &key,
            at,
            found.digests,
            found.stored,
        ))
    }
}

#[async_trait]
impl Unfinished for Left {
    fn intended(&self) -> &EvidencePath {
        &self.target.path
    }

    fn content(&self) -> Content {
        self.content
    }

    fn take_failure(&mut self) -> Option<StoreError> {
        self.failure.take()
    }

    async fn keep_as(mut self: Box<Self>, at: &EvidencePath) -> Result<Receipt, StoreError> {
        let (inner, lock) = (&self.target.inner, &self.target.lock);
        keys::writable(&inner.bucket.config.place, lock.collection(), at)?;
        let parent = |path: &EvidencePath| {
            path.as_str()
                .rsplit_once('/')
                .map(|(parent, _)| parent.to_owned())
        };
        if parent(at) != parent(&self.target.path) {
            return Err(StoreError::Reserved {
                at: keys::name(lock.collection(), at),
                reason: "an unfinished object stays in its directory",
            });
        }
        match &mut self.bytes {
            Where::Memory(chunks) => {
                let chunks = std::mem::take(chunks);
                Self::create(&self.target, at, chunks, self.content).await
            }
            Where::Object(stored, digests) if *at == self.target.path => {
                let (bucket, key) = (&inner.bucket, &self.target.key);
                let stored = lock_object(bucket, key, stored).await;
                let stored = stored.map_err(self.target.failed("lock it"))?;
                let named = bucket.purge(&self.target.record()).await;
                named.map_err(self.target.failed("give it its name"))?;
                Ok(receipt(bucket, key, at, *digests, stored))
            }
            Where::Object(stored, _) => {
                let stored = stored.clone();
                let receipt = self.copy(at, &stored).await?;
                Self::remove(&self.target).await?;
                Ok(receipt)
            }
        }
    }

    async fn discard(self: Box<Self>) -> Result<(), StoreError> {
        match self.bytes {
            Where::Memory(_) => Ok(()),
            Where::Object(..) => Self::remove(&self.target).await,
        }
    }
}

/// Locks a version as objects are to be locked, unless it is already; returns how it is then.
pub(super) async fn lock(
    bucket: &Bucket,
    key: &str,
    stored: StoredAs,
) -> Result<StoredAs, S3Error> {
    lock_object(bucket, key, &stored).await
}

async fn lock_object(bucket: &Bucket, key: &str, stored: &StoredAs) -> Result<StoredAs, S3Error> {
    let version = stored.version.as_deref();
    let has = stored.lock.as_ref();
    let mut changed = false;
    if let (Some(policy), Some(until)) = (bucket.config.lock, bucket.locked_until())
        && has.is_none()
    {
        let mode = policy.mode();
        bucket.retain(key, version, mode, until, false).await?;
        changed = true;
    }
    if bucket.config.legal_hold && !has.is_some_and(|lock| lock.hold) {
        bucket.hold(key, version, true).await?;
        changed = true;
    }
    if !changed {
        return Ok(stored.clone());
    }
    let locked = bucket.head_version(key, version).await?;
    let locked = locked.ok_or_else(|| S3Error::Broken("it is gone".to_owned()))?;
    Ok(locked.stored)
}

pub(super) fn expected(
    name: &str,
    expected: Content,
    found: &reader::Reread,
) -> Result<(), StoreError> {
    let found = Content::from(found.digests);
    if found == expected {
        return Ok(());
    }
    Err(StoreError::Mismatch {
        at: name.to_owned(),
        expected: expected.into(),
        found: found.into(),
    })
}

/// Of a version that was read back just now.
pub(super) fn receipt(
    bucket: &Bucket,
    key: &str,
    at: &EvidencePath,
    digests: Digests,
    stored: StoredAs,
) -> Receipt {
    let storage = StorageReceipt {
        location: format!("s3://{}/{key}", bucket.config.place.bucket),
        version: stored.version,
        lock: stored.lock,
        verified: Timestamp::now(),
    };
    Receipt::new(at.clone(), digests, storage)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_end_before_the_first_whose_checksum_nobody_knows() {
        let part = |number: u32, checksum: Option<&str>| Part {
            part_number: number,
            etag: format!("\"e{number}\""),
            checksum_sha256: checksum.map(str::to_owned),
        };
        let numbers = |ours: &[Part], there: Vec<Part>| -> Vec<u32> {
            let record = Record::new("a1").with_upload("u1", ours);
            let usable = record.usable(there).into_iter();
            usable.map(|part| part.part_number).collect()
        };
        let [one, two, three] = [1, 2, 3].map(|number| part(number, Some("AAA=")));
        let bare = part(2, None);
        // Some servers don't list what they were told.
        let there = || vec![one.clone(), bare.clone(), three.clone()];
        assert_eq!(numbers(&[one.clone(), two.clone()], there()), [1, 2, 3]);
        assert_eq!(numbers(&[one.clone(), bare.clone()], there()), [1]);
        assert_eq!(numbers(std::slice::from_ref(&one), there()), [1]);
        assert_eq!(numbers(&[], vec![one.clone(), three.clone()]), [1]);
    }

    #[test]
    fn fuzz_unfinished_any_record_has_parts_without_a_gap() {
        let seed = br#"{"attempt":"a1","upload":"u1","parts":[{"PartNumber":1,"ETag":"\"e1\"","ChecksumSHA256":"AAA="},{"PartNumber":2,"ETag":"e2","ChecksumSHA256":null}]}"#;
        impound_fuzz::run("unfinished", &[seed.to_vec()], |_, bytes| {
            let Ok(record) = serde_json::from_slice::<Record>(&bytes) else {
                return;
            };
            let usable = record.usable(record.parts.clone());
            for (part, number) in usable.iter().zip(1..) {
                assert_eq!(part.part_number, number);
                assert!(part.checksum_sha256.is_some());
            }
            let again: Record = serde_json::from_slice(&record.bytes()).unwrap();
            assert_eq!(again.bytes(), record.bytes());
        });
    }
}
