//! A store that stands still after so many operations, as if the process had been killed there, or refuses
//! some of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use impound_controller::store::*;
use impound_evidence::{CaseId, CollectionName, EvidencePath};

/// Counts what changes the store; the call after the last one that is allowed never returns, some
/// of them after their work is done, some before it.
pub(crate) struct Interrupted {
    inner: Arc<dyn Store>,
    gate: Arc<Gate>,
}

pub(crate) struct Gate {
    left: AtomicUsize,
    /// Whether the last operation is still carried out.
    after: bool,
    reached: tokio::sync::Notify,
    refuses: Box<Refuses>,
}

/// Whether an operation is refused. Asked once for each.
type Refuses = dyn Fn(Operation<'_>) -> bool + Send + Sync;

/// What can be refused.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Operation<'a> {
    /// A writer for this path.
    Open(&'a str),
    /// Reading it from this byte on.
    Read(&'a str, u64),
    /// The name of what is durable.
    KeepAs(&'a str),
    /// Telling the truth about the bytes that are durable, without a name yet.
    Reread(&'a str),
    /// These lines in the custody log.
    Append(&'a str),
    /// Bytes for this path; not refused, but put off.
    Write(&'a str),
}

impl Interrupted {
    pub(crate) fn new(inner: Arc<dyn Store>, allowed: usize, after: bool) -> Self {
        let gate = Gate {
            left: AtomicUsize::new(allowed),
            after,
            reached: tokio::sync::Notify::new(),
            refuses: Box::new(|_| false),
        };
        Self {
            inner,
            gate: Arc::new(gate),
        }
    }

    /// Never stands still, but refuses what it is told to, as a disk that fails.
    pub(crate) fn refusing(
        inner: Arc<dyn Store>,
        refuses: impl Fn(Operation<'_>) -> bool + Send + Sync + 'static,
    ) -> Self {
        let gate = Gate {
            left: AtomicUsize::new(usize::MAX),
            after: false,
            reached: tokio::sync::Notify::new(),
            refuses: Box::new(refuses),
        };
        Self {
            inner,
            gate: Arc::new(gate),
        }
    }

    pub(crate) fn gate(&self) -> Arc<Gate> {
        Arc::clone(&self.gate)
    }
}

impl Gate {
    /// Returns once the store stands still.
    pub(crate) async fn reached(&self) {
        self.reached.notified().await;
    }

    fn ask(&self, operation: Operation<'_>) -> Result<(), StoreError> {
        match (self.refuses)(operation) {
            false => Ok(()),
            true => Err(StoreError::Io {
                at: format!("{operation:?}"),
                step: "do that",
                source: std::io::Error::other("the test refuses it"),
            }),
        }
    }

    async fn pass<T>(&self, operation: impl Future<Output = T>) -> T {
        let last = self
            .left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                left.checked_sub(1)
            });
        if last.is_ok() {
            return operation.await;
        }
        if self.after {
            operation.await;
        }
        self.reached.notify_one();
        std::future::pending().await
    }
}

#[async_trait]
impl Store for Interrupted {
    fn is_local(&self) -> bool {
        self.inner.is_local()
    }

    async fn try_writing(&self) -> Result<(), StoreError> {
        self.inner.try_writing().await
    }

    async fn prune(&self, lock: &CollectionLock) -> Result<(), StoreError> {
        self.gate.pass(self.inner.prune(lock)).await
    }

    async fn create_collection(&self, at: &CollectionId) -> Result<(), StoreError> {
        self.gate.pass(self.inner.create_collection(at)).await
    }

    async fn collections(&self, case: &CaseId) -> Result<Vec<CollectionName>, StoreError> {
        self.inner.collections(case).await
    }

    async fn lock(&self, at: &CollectionId) -> Result<CollectionLock, StoreError> {
        self.inner.lock(at).await
    }

    async fn writer(
        &self,
        lock: &CollectionLock,
        at: &EvidencePath,
    ) -> Result<Box<dyn ObjectWriter>, StoreError> {
        self.gate.ask(Operation::Open(at.as_str()))?;
        let inner = self.gate.pass(self.inner.writer(lock, at)).await?;
        Ok(Box::new(Writer {
            inner,
            path: at.clone(),
            gate: Arc::clone(&self.gate),
        }))
    }

    async fn leftovers(&self, lock: &CollectionLock) -> Result<Vec<EvidencePath>, StoreError> {
        self.inner.leftovers(lock).await
    }

    async fn leftover(
        &self,
        lock: &CollectionLock,
        at: &EvidencePath,
    ) -> Result<Option<Box<dyn Unfinished>>, StoreError> {
        let left = self.inner.leftover(lock, at).await?;
        Ok(left.map(|inner| {
            Box::new(Left {
                inner,
                gate: Arc::clone(&self.gate),
            }) as Box<dyn Unfinished>
        }))
    }

    async fn recheck(
        &self,
        lock: &CollectionLock,
        at: &EvidencePath,
        expected: Content,
    ) -> Result<Receipt, StoreError> {
        self.inner.recheck(lock, at, expected).await
    }

    async fn list(&self, at: &CollectionId) -> Result<Vec<StoredFile>, StoreError> {
        self.inner.list(at).await
    }

    async fn size(
        &self,
        at: &CollectionId,
        path: &EvidencePath,
    ) -> Result<Option<u64>, StoreError> {
        self.inner.size(at, path).await
    }

    async fn read(
        &self,
        at: &CollectionId,
        path: &EvidencePath,
        offset: u64,
    ) -> Result<ObjectReader, StoreError> {
        self.gate.ask(Operation::Read(path.as_str(), offset))?;
        self.inner.read(at, path, offset).await
    }

    async fn read_small(
        &self,
        at: &CollectionId,
        path: &EvidencePath,
        limit: u64,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        self.inner.read_small(at, path, limit).await
    }

    async fn append_log(
        &self,
        at: &CollectionId,
        size: u64,
        lines: Vec<u8>,
    ) -> Result<u64, StoreError> {
        let text = std::str::from_utf8(&lines).unwrap();
        self.gate.ask(Operation::Append(text))?;
        self.gate.pass(self.inner.append_log(at, size, lines)).await
    }

    async fn replace_checkpoint(
        &self,
        at: &CollectionId,
        checkpoint: Vec<u8>,
    ) -> Result<(), StoreError> {
        self.gate
            .pass(self.inner.replace_checkpoint(at, checkpoint))
            .await
    }

    fn evidence(&self, at: &CollectionId) -> StoredEvidence {
        self.inner.evidence(at)
    }

    async fn note(&self, at: &CollectionId) -> Result<Option<Vec<u8>>, StoreError> {
        self.inner.note(at).await
    }

    async fn save_note(&self, lock: &CollectionLock, note: Vec<u8>) -> Result<(), StoreError> {
        self.gate.pass(self.inner.save_note(lock, note)).await
    }

    fn location(&self, at: &CollectionId) -> String {
        self.inner.location(at)
    }

    fn write_once(&self) -> WriteOnce {
        self.inner.write_once()
    }

    async fn free_bytes(&self) -> Result<u64, StoreError> {
        self.inner.free_bytes().await
    }
}

struct Writer {
    inner: Box<dyn ObjectWriter>,
    path: EvidencePath,
    gate: Arc<Gate>,
}

#[async_trait]
impl ObjectWriter for Writer {
    async fn write(&mut self, data: Bytes) -> Result<(), StoreError> {
        while (self.gate.refuses)(Operation::Write(self.path.as_str())) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.gate.pass(self.inner.write(data)).await
    }

    async fn finish(self: Box<Self>, expected: Content) -> Result<Receipt, StoreError> {
        self.gate.pass(self.inner.finish(expected)).await
    }

    async fn keep(self: Box<Self>) -> Result<Box<dyn Unfinished>, StoreError> {
        let inner = self.gate.pass(self.inner.keep()).await?;
        Ok(Box::new(Left {
            inner,
            gate: self.gate,
        }))
    }

    async fn abort(self: Box<Self>) -> Result<(), StoreError> {
        self.gate.pass(self.inner.abort()).await
    }
}

struct Left {
    inner: Box<dyn Unfinished>,
    gate: Arc<Gate>,
}

#[async_trait]
impl Unfinished for Left {
    fn intended(&self) -> &EvidencePath {
        self.inner.intended()
    }

    fn content(&self) -> Content {
        match self.gate.ask(Operation::Reread(self.intended().as_str())) {
            Ok(()) => self.inner.content(),
            Err(_) => Content::of(b"a disk that forgets"),
        }
    }

    fn take_failure(&mut self) -> Option<StoreError> {
        self.inner.take_failure()
    }

    async fn keep_as(self: Box<Self>, at: &EvidencePath) -> Result<Receipt, StoreError> {
        self.gate.ask(Operation::KeepAs(at.as_str()))?;
        self.gate.pass(self.inner.keep_as(at)).await
    }

    async fn discard(self: Box<Self>) -> Result<(), StoreError> {
        self.gate.pass(self.inner.discard()).await
    }
}
