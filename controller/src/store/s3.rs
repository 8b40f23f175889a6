//! A store in a bucket: `<prefix>/<case>/<collection>/<path>`, one object for each file.
//!
//! ```text
//! write() -> part of 5 MiB and more -> UploadPart, SHA-256 checked by the server   \ until its end
//!         -> hashing thread                                                        /
//! finish() -> CompleteMultipartUpload, if nothing has the name -> that version read back and hashed
//!          -> locked -> record removed: only now the object has its name
//! ```
//! What is below `unfinished/` (see [`keys`]) says which names are not given yet: a record is created, if
//! there is none, before the first part of an object is uploaded, and removed after the object was
//! read back. An object with a record has no name yet: it is not listed, and a crash at any point
//! leaves it to [`Store::leftover`]. Small objects need none: one request, which does not replace
//! anything, creates them whole.
//!
//! No name is written twice, by whomever: every object of evidence is created under the condition
//! that nothing has its name (`If-None-Match: *`), which the store must support; it is tried at start.
//!
//! The custody log is a row of objects, `custody/<offset>.jsonl`, each created at the offset where the
//! one before it ends, so that two writers can't fork it; readers see one `custody.jsonl`. The
//! checkpoint is replaced only if it is still the one that was read.
//!
//! Memory of a running writer: the part that it fills and up to three that are uploaded, all writers
//! together uploading at most [`UPLOADING`] bytes or one part. A part has 5 MiB in the first 5 GiB of
//! an object, 64 MiB from the 114th GiB on; see [`parts`].

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use impound_evidence::{CaseId, CollectionName, EvidencePath};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::{
    CollectionId, CollectionLock, Content, Holdable, ObjectReader, ObjectWriter, Receipt, Store,
    StoreError, StoredEvidence, StoredFile, Unfinished, WriteOnce,
};
use crate::locked::locked;
use bucket::{Bucket, Created, Purpose, attempt};
use http::Http;
use unfinished::Left;

mod bucket;
pub mod config;
mod credentials;
mod error;
mod hashing;
mod http;
mod keys;
mod log;
mod parts;
mod proof;
mod reader;
mod sign;
mod source;
mod unfinished;
mod upload;
mod writer;
mod xml;

pub use config::S3Config;
pub use error::S3Error;

/// Bytes that all writers together have on their way to the store: enough to fill the network while
/// each fills its next part, and a bound of this process's memory.
const UPLOADING: u32 = 48 << 20;
/// Objects of one collection that are listed, as in the directory store.
const MOST_FILES: usize = 1_000_000;
/// Largest note.
const NOTE_LIMIT: u64 = 16 << 20;

/// A store in a bucket. Replicas may use one bucket at the same time.
#[derive(Clone)]
pub struct S3Store {
    inner: Arc<Inner>,
}

struct Inner {
    bucket: Bucket,
    write_once: WriteOnce,
    runtime: Handle,
    uploading: Arc<Semaphore>,
    /// Collections that this process writes to. Other replicas are kept out by the lease that the
    /// reconciler holds, and in the last instance by the conditions of every write.
    locked: Mutex<HashSet<CollectionId>>,
    /// Keys that this process has writers for.
    open: Mutex<HashSet<String>>,
    /// Where custody logs end, as this process knows it.
    ends: Mutex<HashMap<CollectionId, log::End>>,
}

impl S3Store {
    /// Opens the bucket: sees that it can be used, and tries whether it keeps what it has.
    ///
    /// # Errors
    /// [`StoreError::Unusable`] if the bucket can't be reached, read or written, or if it does not
    /// refuse to create an object twice.
    pub async fn open(config: S3Config) -> Result<Self, StoreError> {
        let place = config.place.to_string();
        let unusable = |reason: String| StoreError::Unusable {
            place: place.clone(),
            reason,
        };
        if config.lock.is_some_and(|lock| lock.retain.is_zero()) {
            return Err(unusable(
                "Object Lock needs a retention of at least a day".into(),
            ));
        }
        if config.legal_hold && config.lock.is_none() {
            return Err(unusable(
                "a legal hold is only put on objects that are locked too".into(),
            ));
        }
        let for_http = config.clone();
        let http = tokio::task::spawn_blocking(move || Http::new(&for_http))
            .await
            .map_err(|_| unusable("the thread that reads certificates ended".into()))?
            .map_err(unusable)?;
        let bucket = Bucket { http, config };
        let write_once = proof::prove(&bucket).await.map_err(unusable)?;
        match &write_once {
            WriteOnce::Proven => {
                tracing::info!(store = %place, "the store is write-once: deleting, replacing and shortening the lock of an object were refused")
            }
            WriteOnce::NotProven(reason) => {
                tracing::warn!(store = %place, reason, "the store is not proven to be write-once")
            }
        }
        Ok(Self {
            inner: Arc::new(Inner {
                bucket,
                write_once,
                runtime: Handle::current(),
                uploading: Arc::new(Semaphore::new(UPLOADING as usize)),
                locked: Mutex::default(),
                open: Mutex::default(),
                ends: Mutex::default(),
            }),
        })
    }

    /// Aborts uploads below the prefix that no record knows of: of writers that died between two
    /// requests. Those of records are left to their collections. Returns how many.
    ///
    /// # Errors
    /// If the store can't be asked.
    pub async fn collect_garbage(
        &self,
        older_than: std::time::Duration,
    ) -> Result<usize, StoreError> {
        let inner = &self.inner;
        let place = &inner.bucket.config.place;
        let failed = |source| StoreError::Remote {
            at: place.to_string(),
            step: "look for abandoned uploads",
            source,
        };
        let limit = time::OffsetDateTime::now_utc() - older_than;
        let prefix = place.key("");
        let mut aborted = 0;
        for upload in inner.bucket.uploads(&prefix).await.map_err(failed)? {
            let begun = time::OffsetDateTime::parse(
                &upload.initiated,
                &time::format_description::well_known::Rfc3339,
            );
            if begun.is_ok_and(|begun| begun > limit) {
                continue;
            }
            let known = match keys::record_of(place, &upload.key) {
                Some(record) => inner.bucket.head(&record).await.map_err(failed)?.is_some(),
                // Somebody else's, or of a case that is none of ours.
                None => true,
            };
            if !known {
                let gone = inner.bucket.abort_upload(&upload.key, &upload.upload_id);
                gone.await.map_err(failed)?;
                aborted += 1;
            }
        }
        Ok(aborted)
    }
}

impl Inner {
    /// Fails if there is no such collection.
    async fn require(&self, at: &CollectionId) -> Result<(), StoreError> {
        let marker = keys::marker(&self.bucket.config.place, at);
        match self.bucket.head(&marker).await {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(StoreError::NoCollection { at: at.to_string() }),
            Err(source) => Err(remote(&at.to_string(), "look for it", source)),
        }
    }

    /// The paths of objects that have no name yet.
    async fn records(&self, at: &CollectionId) -> Result<Vec<EvidencePath>, StoreError> {
        let prefix = keys::records(&self.bucket.config.place, at);
        let failed = |source| remote(&at.to_string(), "list what is unfinished", source);
        let listed = self
            .bucket
            .list(&prefix, None, MOST_FILES)
            .await
            .map_err(failed)?;
        let path = |key: &str| key.strip_prefix(&prefix).unwrap_or(key).parse();
        let paths = listed.iter().map(|object| path(&object.key));
        let mut paths = paths
            .collect::<Result<Vec<EvidencePath>, _>>()
            .map_err(|source| StoreError::ForeignName {
                at: at.to_string(),
                source: Box::new(source),
            })?;
        paths.sort();
        Ok(paths)
    }

    /// Every object below a collection but the custody log's, ordered by path, and keys that are no
    /// paths.
    async fn objects(
        &self,
        at: &CollectionId,
    ) -> Result<(Vec<StoredFile>, Vec<String>), StoreError> {
        let prefix = keys::collection(&self.bucket.config.place, at);
        let failed = |source| remote(&at.to_string(), "list it", source);
        let listed = self
            .bucket
            .list(&prefix, None, MOST_FILES)
            .await
            .map_err(failed)?;
        let (mut files, mut refused) = (Vec::new(), Vec::new());
        for object in listed {
            let name = object.key.strip_prefix(&prefix).unwrap_or(&object.key);
            match name.parse::<EvidencePath>() {
                Ok(path) if keys::is_segment(&path) => {}
                Ok(path) => files.push(StoredFile {
                    path,
                    size: object.size,
                }),
                Err(_) => refused.push(name.escape_default().to_string()),
            }
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok((files, refused))
    }

    fn key(&self, at: &CollectionId, path: &EvidencePath) -> String {
        keys::object(&self.bucket.config.place, at, path)
    }
}

/// An entry of a set, taken out when dropped.
struct Held<T: std::hash::Hash + Eq + Send + 'static> {
    inner: Arc<Inner>,
    of: fn(&Inner) -> &Mutex<HashSet<T>>,
    entry: T,
}

impl<T: std::hash::Hash + Eq + Clone + Send> Held<T> {
    /// None if it is held already.
    fn take(inner: &Arc<Inner>, of: fn(&Inner) -> &Mutex<HashSet<T>>, entry: T) -> Option<Self> {
        let new = locked(of(inner)).insert(entry.clone());
        new.then(|| Self {
            inner: Arc::clone(inner),
            of,
            entry,
        })
    }
}

impl<T: std::hash::Hash + Eq + Send> Drop for Held<T> {
    fn drop(&mut self) {
        locked((self.of)(&self.inner)).remove(&self.entry);
    }
}

#[async_trait]
impl Store for S3Store {
    fn is_local(&self) -> bool {
        false
    }

    /// A bucket has no directories.
    async fn prune(&self, _: &CollectionLock) -> Result<(), StoreError> {
        Ok(())
    }

    async fn create_collection(&self, at: &CollectionId) -> Result<(), StoreError> {
        let bucket = &self.inner.bucket;
        let key = keys::marker(&bucket.config.place, at);
        let content = bytes::Bytes::from(format!("{{\"collection\":\"{at}\"}}\n"));
        let sha256 = impound_evidence::Sha256::of(&content);
        let body = http::Chunks::new(vec![content]);
        let attempt = attempt();
        let created = bucket.create(&key, body, sha256, &attempt, Purpose::Control);
        match created.await {
            Ok(Created::Ours(_)) => Ok(()),
            Ok(Created::Taken) => Err(StoreError::CollectionExists { at: at.to_string() }),
            Err(source) => Err(remote(&at.to_string(), "create it", source)),
        }
    }

    async fn collections(&self, case: &CaseId) -> Result<Vec<CollectionName>, StoreError> {
        let bucket = &self.inner.bucket;
        let prefix = keys::case(&bucket.config.place, case);
        let listed = bucket.list_below(&prefix).await;
        let listed =
            listed.map_err(|source| remote(case.as_str(), "list its collections", source))?;
        let named = listed.iter().map(|name| name.parse());
        let mut names = named
            .collect::<Result<Vec<CollectionName>, _>>()
            .map_err(|source| StoreError::ForeignName {
                at: case.to_string(),
                source: Box::new(source),
            })?;
        names.sort();
        Ok(names)
    }

    async fn lock(&self, at: &CollectionId) -> Result<CollectionLock, StoreError> {
        self.inner.require(at).await?;
        let held = Held::take(&self.inner, |inner| &inner.locked, at.clone());
        let held = held.ok_or_else(|| StoreError::Busy { at: at.to_string() })?;
        Ok(CollectionLock::new(at.clone(), Arc::new(held)))
    }

    async fn writer(
        &self,
        lock: &CollectionLock,
        at: &EvidencePath,
    ) -> Result<Box<dyn ObjectWriter>, StoreError> {
        let writer = writer::Writer::open(&self.inner, lock, at).await?;
        Ok(Box::new(writer))
    }

    async fn leftovers(&self, lock: &CollectionLock) -> Result<Vec<EvidencePath>, StoreError> {
        self.inner.records(lock.collection()).await
    }

    async fn leftover(
        &self,
        lock: &CollectionLock,
        at: &EvidencePath,
    ) -> Result<Option<Box<dyn Unfinished>>, StoreError> {
        Left::recover(&self.inner, lock, at).await
    }

    async fn recheck(
        &self,
        lock: &CollectionLock,
        at: &EvidencePath,
        expected: Content,
    ) -> Result<Receipt, StoreError> {
        let key = self.inner.key(lock.collection(), at);
        let name = keys::name(lock.collection(), at);
        let found = reader::reread(&self.inner, &name, &key, None, Some(expected)).await?;
        unfinished::expected(&name, expected, &found)?;
        // A crash may have come between its completion and its lock.
        let stored = unfinished::lock(&self.inner.bucket, &key, found.stored).await;
        let stored = stored.map_err(|source| remote(&name, "lock it", source))?;
        Ok(unfinished::receipt(
            &self.inner.bucket,
            &key,
            at,
            found.digests,
            stored,
        ))
    }

    async fn list(&self, at: &CollectionId) -> Result<Vec<StoredFile>, StoreError> {
        self.inner.require(at).await?;
        // Before the objects: an object whose record goes in between is listed or not, both true.
        let unfinished: HashSet<_> = self.inner.records(at).await?.into_iter().collect();
        let (mut files, refused) = self.inner.objects(at).await?;
        if let Some(name) = refused.into_iter().next() {
            return Err(StoreError::Planted {
                at: format!("{at}/{name}"),
                expected: "file with a name that evidence can have",
            });
        }
        files.retain(|file| !unfinished.contains(&file.path));
        if let Some(log) = log::file(&self.inner, at).await? {
            files.push(log);
            files.sort_by(|a, b| a.path.cmp(&b.path));
        }
        Ok(files)
    }

    async fn size(
        &self,
        at: &CollectionId,
        path: &EvidencePath,
    ) -> Result<Option<u64>, StoreError> {
        if log::is_log(path) {
            return Ok(log::file(&self.inner, at).await?.map(|file| file.size));
        }
        let found = reader::named(&self.inner, at, path).await?;
        if found.is_none() {
            self.inner.require(at).await?;
        }
        Ok(found.map(|head| head.size))
    }

    async fn read(
        &self,
        at: &CollectionId,
        path: &EvidencePath,
        offset: u64,
    ) -> Result<ObjectReader, StoreError> {
        reader::open(&self.inner, at, path, offset).await
    }

    async fn read_small(
        &self,
        at: &CollectionId,
        path: &EvidencePath,
        limit: u64,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        reader::small(&self.inner, at, path, limit).await
    }

    async fn append_log(
        &self,
        at: &CollectionId,
        size: u64,
        lines: Vec<u8>,
    ) -> Result<u64, StoreError> {
        log::append(&self.inner, at, size, lines).await
    }

    async fn replace_checkpoint(
        &self,
        at: &CollectionId,
        checkpoint: Vec<u8>,
    ) -> Result<(), StoreError> {
        log::checkpoint(&self.inner, at, checkpoint).await
    }

    fn evidence(&self, at: &CollectionId) -> StoredEvidence {
        StoredEvidence::new(source::Source::new(Arc::clone(&self.inner), at.clone()))
    }

    async fn note(&self, at: &CollectionId) -> Result<Option<Vec<u8>>, StoreError> {
        let bucket = &self.inner.bucket;
        let name = format!("{at} (note)");
        let found = bucket.small(&keys::note(&bucket.config.place, at)).await;
        let found = found.map_err(|source| remote(&name, "read it", source))?;
        Ok(found.map(|(_, bytes)| bytes.to_vec()))
    }

    async fn save_note(&self, lock: &CollectionLock, note: Vec<u8>) -> Result<(), StoreError> {
        let (bucket, at) = (&self.inner.bucket, lock.collection());
        let name = format!("{at} (note)");
        let key = keys::note(&bucket.config.place, at);
        if note.len() as u64 > NOTE_LIMIT {
            return Err(StoreError::TooLarge {
                at: name,
                size: note.len() as u64,
                limit: NOTE_LIMIT,
            });
        }
        let saved = match note.is_empty() {
            true => bucket.purge(&key).await,
            false => bucket.replace(&key, note.into()).await,
        };
        saved.map_err(|source| remote(&name, "save it", source))
    }

    fn location(&self, at: &CollectionId) -> String {
        let place = &self.inner.bucket.config.place;
        format!("s3://{}/{}", place.bucket, place.key(&at.to_string()))
    }

    /// Nobody can say, but it is asked for something: whoever wants to know wants to know too
    /// whether the store answers.
    async fn free_bytes(&self) -> Result<u64, StoreError> {
        let bucket = &self.inner.bucket;
        let place = &bucket.config.place;
        let asked = bucket.head(&keys::canary(place, "none")).await;
        asked.map_err(|source| remote(&place.to_string(), "answer", source))?;
        Ok(u64::MAX)
    }

    fn holds_all(&self) -> bool {
        self.inner.bucket.config.legal_hold
    }

    async fn holdable(&self, at: &CollectionId) -> Result<Vec<Holdable>, StoreError> {
        let bucket = &self.inner.bucket;
        if bucket.config.lock.is_none() {
            return Err(StoreError::NoHolds {
                place: self.location(at),
                reason: "the controller runs without --store-lock, so it is not known to lock objects",
            });
        }
        let prefix = keys::collection(&bucket.config.place, at);
        let versions = bucket.versions_below(&prefix, MOST_FILES).await;
        let versions = versions.map_err(|source| remote(&at.to_string(), "list it", source))?;
        let holdable = versions.into_iter().map(|version| Holdable {
            key: version.key,
            version: Some(version.version_id).filter(|version| version != "null"),
        });
        Ok(holdable.collect())
    }

    async fn hold(&self, object: &Holdable, on: bool) -> Result<(), StoreError> {
        let held = self
            .inner
            .bucket
            .hold(&object.key, object.version.as_deref(), on);
        let step = if on {
            "put a legal hold on it"
        } else {
            "lift its legal hold"
        };
        held.await
            .map_err(|source| remote(&object.key, step, source))
    }

    async fn try_writing(&self) -> Result<(), StoreError> {
        let bucket = &self.inner.bucket;
        let key = keys::canary(&bucket.config.place, &bucket::attempt());
        let written = bucket.replace(&key, bytes::Bytes::from_static(b"written to try it out\n"));
        written
            .await
            .map_err(|source| remote(&key, "write it", source))?;
        let removed = bucket.purge(&key).await;
        removed.map_err(|source| remote(&key, "remove it", source))
    }

    fn write_once(&self) -> WriteOnce {
        self.inner.write_once.clone()
    }
}

fn remote(at: &str, step: &'static str, source: S3Error) -> StoreError {
    StoreError::Remote {
        at: at.to_owned(),
        step,
        source,
    }
}
