//! Writes one object: fills parts, uploads them while the next is filled, hashes all of it meanwhile.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use impound_evidence::EvidencePath;
use tokio::task::JoinSet;

use super::bucket::{Created, Purpose, attempt};
use super::hashing::{Hashing, hashed};
use super::http::Chunks;
use super::unfinished::{Left, Record};
use super::xml::Part;
use super::{Held, Inner, UPLOADING, keys, parts, remote};
use crate::store::{CollectionLock, Content, ObjectWriter, Receipt, StoreError, Unfinished};

/// Parts of one object on their way: two hide the latency of the one that is just answered.
const PARTS: usize = 3;

/// The running writer of one object.
pub(super) struct Writer {
    target: Target,
    hashing: Hashing<Content>,
    /// The part that is filled.
    filling: Vec<Bytes>,
    filled: u64,
    upload: Option<Upload>,
}

/// The object that is written, while nothing else in this process writes it.
pub(super) struct Target {
    pub(super) inner: Arc<Inner>,
    pub(super) lock: CollectionLock,
    pub(super) path: EvidencePath,
    pub(super) key: String,
    pub(super) attempt: String,
    _held: Held<String>,
}

struct Upload {
    id: Arc<str>,
    /// An earlier try may have started one more.
    doubtful: bool,
    started: u32,
    running: JoinSet<Result<Part, super::S3Error>>,
    done: Vec<Part>,
}

impl Target {
    pub(super) fn take(
        inner: &Arc<Inner>,
        lock: &CollectionLock,
        path: &EvidencePath,
        attempt: String,
    ) -> Result<Self, StoreError> {
        let key = inner.key(lock.collection(), path);
        let held = Held::take(inner, |inner| &inner.open, key.clone());
        Ok(Self {
            _held: held.ok_or_else(|| StoreError::Leftover {
                at: keys::name(lock.collection(), path),
            })?,
            inner: Arc::clone(inner),
            lock: lock.clone(),
            path: path.clone(),
            key,
            attempt,
        })
    }

    pub(super) fn name(&self) -> String {
        keys::name(self.lock.collection(), &self.path)
    }

    pub(super) fn record(&self) -> String {
        let place = &self.inner.bucket.config.place;
        keys::record(place, self.lock.collection(), &self.path)
    }

    fn lost(&self) -> StoreError {
        StoreError::WriterLost { at: self.name() }
    }

    pub(super) fn failed(
        &self,
        step: &'static str,
    ) -> impl Fn(super::S3Error) -> StoreError + use<> {
        let name = self.name();
        move |source| remote(&name, step, source)
    }
}

impl Writer {
    pub(super) async fn open(
        inner: &Arc<Inner>,
        lock: &CollectionLock,
        path: &EvidencePath,
    ) -> Result<Self, StoreError> {
        keys::writable(&inner.bucket.config.place, lock.collection(), path)?;
        let target = Target::take(inner, lock, path, attempt())?;
        let failed = target.failed("look for it");
        if inner
            .bucket
            .head(&target.record())
            .await
            .map_err(&failed)?
            .is_some()
        {
            return Err(StoreError::Leftover { at: target.name() });
        }
        if inner
            .bucket
            .head(&target.key)
            .await
            .map_err(&failed)?
            .is_some()
        {
            return Err(StoreError::ObjectExists { at: target.name() });
        }
        Ok(Self {
            target,
            hashing: Hashing::of_content(),
            filling: Vec::new(),
            filled: 0,
            upload: None,
        })
    }

    /// Sends the filled part on its way.
    async fn send(&mut self) -> Result<(), StoreError> {
        let number = match &self.upload {
            Some(upload) => upload.started + 1,
            None => {
                self.upload = Some(self.begin().await?);
                1
            }
        };
        if number > parts::MOST {
            return Err(StoreError::Endless {
                at: self.target.name(),
                limit: parts::most_bytes(),
            });
        }
        let Some(upload) = &mut self.upload else {
            return Err(self.target.lost());
        };
        while upload.running.len() >= PARTS {
            upload.next(&self.target).await?;
        }
        // Often at first, when little is there to be lost; later every record is long.
        let often = if number <= 64 { 4 } else { 64 };
        if number.is_multiple_of(often) {
            upload.record(&self.target).await?;
        }
        let bytes = std::mem::take(&mut self.filling);
        self.filled = 0;
        upload.started = number;
        let (inner, key) = (Arc::clone(&self.target.inner), self.target.key.clone());
        let id = Arc::clone(&upload.id);
        // Waits here, where it holds the stream up, and not with the part in a task.
        let weight = Chunks::new(bytes.clone()).len().min(u64::from(UPLOADING));
        let room = Arc::clone(&inner.uploading)
            .acquire_many_owned(u32::try_from(weight).unwrap_or(UPLOADING))
            .await
            .map_err(|_| self.target.lost())?;
        upload.running.spawn(async move {
            let _room = room;
            let body = Chunks::new(bytes);
            let (body, sha256) = hashed(body).await?;
            let part = inner.bucket.upload_part(&key, &id, number, body, sha256);
            part.await
        });
        Ok(())
    }

    /// The record first: whatever of the upload is left by a crash, the record tells of it.
    async fn begin(&self) -> Result<Upload, StoreError> {
        let (target, bucket) = (&self.target, &self.target.inner.bucket);
        let record = Record::new(&target.attempt);
        let (body, sha256) = record.encode();
        let key = target.record();
        let made = bucket.create(&key, body, sha256, &target.attempt, Purpose::Control);
        match made.await.map_err(target.failed("record its beginning"))? {
            Created::Ours(_) => {}
            Created::Taken => return Err(StoreError::Leftover { at: target.name() }),
        }
        let started = bucket.start_upload(&target.key, &target.attempt, false);
        let (id, doubtful) = started.await.map_err(target.failed("begin its upload"))?;
        let saved = bucket.replace(&key, record.with_upload(&id, &[]).bytes());
        saved.await.map_err(target.failed("record its upload"))?;
        Ok(Upload {
            id: id.into(),
            doubtful,
            started: 0,
            running: JoinSet::new(),
            done: Vec::new(),
        })
    }

    /// Everything that was written, as parts of the upload that are there, or in memory.
    async fn end(mut self) -> (Target, Option<Content>, Ended, Option<StoreError>) {
        let mut failure = None;
        if self.upload.is_some() && self.filled > 0 {
            failure = self.send().await.err();
        }
        let Self {
            target,
            hashing,
            filling,
            upload,
            ..
        } = self;
        let content = hashing.end().await;
        let Some(mut upload) = upload else {
            return (target, content, Ended::Memory(filling), failure);
        };
        while !upload.running.is_empty() {
            if let Err(error) = upload.next(&target).await {
                failure.get_or_insert(error);
            }
        }
        if upload.doubtful && failure.is_none() {
            failure = upload.abort_others(&target).await.err();
        }
        upload.done.sort_by_key(|part| part.part_number);
        // Only parts without a gap are the beginning of what was written.
        let whole = upload.done.iter().zip(1..);
        let whole = whole.take_while(|(part, number)| part.part_number == *number);
        upload.done.truncate(whole.count());
        if let Err(error) = upload.record(&target).await {
            failure.get_or_insert(error);
        }
        let ended = Ended::Parts {
            upload: upload.id,
            parts: upload.done,
        };
        (target, content, ended, failure)
    }
}

/// What a writer that has ended leaves behind.
pub(super) enum Ended {
    Memory(Vec<Bytes>),
    Parts { upload: Arc<str>, parts: Vec<Part> },
}

#[async_trait]
impl ObjectWriter for Writer {
    async fn write(&mut self, data: Bytes) -> Result<(), StoreError> {
        let sent = self.hashing.chunks.send(data.clone()).await;
        sent.map_err(|_| self.target.lost())?;
        self.filled += data.len() as u64;
        self.filling.push(data);
        let number = self.upload.as_ref().map_or(1, |upload| upload.started + 1);
        if self.filled >= parts::size(number) {
            self.send().await?;
        }
        Ok(())
    }

    async fn finish(self: Box<Self>, expected: Content) -> Result<Receipt, StoreError> {
        let (target, content, ended, failure) = self.end().await;
        if let Some(failure) = failure {
            return Err(failure);
        }
        let found = content.ok_or_else(|| target.lost())?;
        if found != expected {
            return Err(StoreError::Mismatch {
                at: target.name(),
                expected: expected.into(),
                found: found.into(),
            });
        }
        Left::of(target, found, ended)
            .await?
            .name_it(expected)
            .await
    }

    async fn keep(self: Box<Self>) -> Result<Box<dyn Unfinished>, StoreError> {
        let (target, content, ended, failure) = self.end().await;
        let content = content.ok_or_else(|| target.lost())?;
        let mut left = Left::of(target, content, ended).await?;
        left.failure = failure;
        Ok(Box::new(left))
    }

    async fn abort(self: Box<Self>) -> Result<(), StoreError> {
        let Self { target, upload, .. } = *self;
        let Some(mut upload) = upload else {
            // Its beginning may have failed between the record and the upload.
            return Left::remove(&target).await;
        };
        upload.running.shutdown().await;
        Left::remove(&target).await
    }
}

impl Upload {
    /// Waits for one of the running parts.
    async fn next(&mut self, target: &Target) -> Result<(), StoreError> {
        match self.running.join_next().await {
            None => Ok(()),
            Some(Err(_)) => Err(target.lost()),
            Some(Ok(part)) => {
                self.done
                    .push(part.map_err(target.failed("take a part of it"))?);
                Ok(())
            }
        }
    }

    /// Records which parts are there: for whoever finds them after a crash.
    async fn record(&self, target: &Target) -> Result<(), StoreError> {
        let record = Record::new(&target.attempt).with_upload(&self.id, &self.done);
        let key = target.record();
        let saved = target.inner.bucket.replace(&key, record.bytes());
        saved.await.map_err(target.failed("record its parts"))
    }

    /// Ends what a try whose answer was lost may have started.
    async fn abort_others(&self, target: &Target) -> Result<(), StoreError> {
        let bucket = &target.inner.bucket;
        let failed = target.failed("end an abandoned upload");
        for upload in bucket.uploads(&target.key).await.map_err(&failed)? {
            if upload.key == target.key && *upload.upload_id != *self.id {
                let gone = bucket.abort_upload(&target.key, &upload.upload_id);
                gone.await.map_err(&failed)?;
            }
        }
        Ok(())
    }
}
