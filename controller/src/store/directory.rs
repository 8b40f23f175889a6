//! A store in a directory: `<root>/<case>/<collection>/<path>`.
//!
//! An object is written as `.tmp-<name>` in its own directory and renamed to its name, without
//! replacing anything, only after its bytes were synced and read back. Directories have mode 0700,
//! files 0600 while they grow and 0400 once they have their name. Every step from the root down is
//! opened relative to its parent and never through a symlink, so that something planted in the
//! store is refused, not followed.
//!
//! Memory of a running writer: up to 16 MiB (a queue of chunks and two blocks of 4 MiB); for a
//! small object little more than its size.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use impound_evidence::{CaseId, CollectionName, EvidencePath};

use super::{
    CollectionId, CollectionLock, Content, ObjectReader, ObjectWriter, Receipt, Store, StoreError,
    StoredEvidence, StoredFile, Unfinished, WriteOnce,
};
use source::Source;
use tree::Tree;
use unfinished::Left;

mod aligned;
mod direct;
mod growing;
mod reader;
mod reread;
mod source;
mod tree;
mod unfinished;
mod writer;

#[cfg(test)]
mod tests;

/// A store in a directory. Several processes may use one directory at the same time.
#[derive(Clone)]
pub struct DirectoryStore {
    tree: Arc<Tree>,
}

impl DirectoryStore {
    /// Opens the store at `root`, which must be a directory. Blocks.
    ///
    /// # Errors
    /// [`StoreError::Open`] if it is none.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        Ok(Self {
            tree: Arc::new(Tree::open(root)?),
        })
    }

    /// Runs a file system call where it may block.
    async fn blocking<T, F>(&self, at: &CollectionId, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(Arc<Tree>, CollectionId) -> Result<T, StoreError> + Send + 'static,
    {
        let tree = Arc::clone(&self.tree);
        let at = at.clone();
        let lost = StoreError::WriterLost { at: at.to_string() };
        tokio::task::spawn_blocking(move || work(tree, at))
            .await
            .map_err(|_| lost)?
    }
}

#[async_trait]
impl Store for DirectoryStore {
    fn is_local(&self) -> bool {
        true
    }

    async fn create_collection(&self, at: &CollectionId) -> Result<(), StoreError> {
        self.blocking(at, |tree, at| tree.create_collection(&at))
            .await
    }

    async fn collections(&self, case: &CaseId) -> Result<Vec<CollectionName>, StoreError> {
        let (tree, of) = (Arc::clone(&self.tree), case.clone());
        tokio::task::spawn_blocking(move || tree.collections(&of))
            .await
            .map_err(|_| StoreError::WriterLost {
                at: case.to_string(),
            })?
    }

    async fn lock(&self, at: &CollectionId) -> Result<CollectionLock, StoreError> {
        self.blocking(at, |tree, at| {
            let held = tree.lock(&at)?;
            Ok(CollectionLock::new(at, Arc::new(held)))
        })
        .await
    }

    async fn writer(
        &self,
        lock: &CollectionLock,
        at: &EvidencePath,
    ) -> Result<Box<dyn ObjectWriter>, StoreError> {
        let (lock, path) = (lock.clone(), at.clone());
        let temporary = self
            .blocking(&lock.collection().clone(), move |tree, _| {
                writer::Temporary::create(tree, lock, path)
            })
            .await?;
        Ok(Box::new(writer::Writer::start(temporary)))
    }

    async fn prune(&self, lock: &CollectionLock) -> Result<(), StoreError> {
        self.blocking(lock.collection(), |tree, at| tree.prune(&at))
            .await
    }

    async fn leftovers(&self, lock: &CollectionLock) -> Result<Vec<EvidencePath>, StoreError> {
        self.blocking(lock.collection(), |tree, at| tree.temporaries(&at))
            .await
    }

    async fn leftover(
        &self,
        lock: &CollectionLock,
        at: &EvidencePath,
    ) -> Result<Option<Box<dyn Unfinished>>, StoreError> {
        let (lock, path) = (lock.clone(), at.clone());
        self.blocking(&lock.collection().clone(), move |tree, _| {
            Left::settle(&tree, &lock, path, None)
        })
        .await
    }

    async fn recheck(
        &self,
        lock: &CollectionLock,
        at: &EvidencePath,
        expected: Content,
    ) -> Result<Receipt, StoreError> {
        let path = at.clone();
        self.blocking(lock.collection(), move |tree, at| {
            let name = tree::name(&at, &path);
            let (file, _) = tree
                .file(&at, &path)?
                .ok_or_else(|| StoreError::NotFound { at: name.clone() })?;
            let found = reread::whole(&tree, &name, file)?;
            if Content::from(found) != expected {
                return Err(StoreError::Mismatch {
                    at: name,
                    expected: expected.into(),
                    found: Content::from(found).into(),
                });
            }
            let storage = tree.receipt(&name);
            Ok(Receipt::new(path, found, storage))
        })
        .await
    }

    async fn list(&self, at: &CollectionId) -> Result<Vec<StoredFile>, StoreError> {
        self.blocking(at, |tree, at| tree.files(&at)).await
    }

    async fn size(
        &self,
        at: &CollectionId,
        path: &EvidencePath,
    ) -> Result<Option<u64>, StoreError> {
        let path = path.clone();
        self.blocking(at, move |tree, at| {
            Ok(tree.file(&at, &path)?.map(|(_, size)| size))
        })
        .await
    }

    async fn read(
        &self,
        at: &CollectionId,
        path: &EvidencePath,
        offset: u64,
    ) -> Result<ObjectReader, StoreError> {
        let path = path.clone();
        self.blocking(at, move |tree, at| reader::open(&tree, &at, &path, offset))
            .await
    }

    async fn read_small(
        &self,
        at: &CollectionId,
        path: &EvidencePath,
        limit: u64,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let path = path.clone();
        self.blocking(at, move |tree, at| reader::small(&tree, &at, &path, limit))
            .await
    }

    async fn append_log(
        &self,
        at: &CollectionId,
        size: u64,
        lines: Vec<u8>,
    ) -> Result<u64, StoreError> {
        self.blocking(at, move |tree, at| {
            growing::append(&tree, &at, size, &lines)
        })
        .await
    }

    async fn replace_checkpoint(
        &self,
        at: &CollectionId,
        checkpoint: Vec<u8>,
    ) -> Result<(), StoreError> {
        self.blocking(at, move |tree, at| {
            growing::checkpoint(&tree, &at, &checkpoint)
        })
        .await
    }

    fn evidence(&self, at: &CollectionId) -> StoredEvidence {
        StoredEvidence::new(Source::new(Arc::clone(&self.tree), at.clone()))
    }

    async fn note(&self, at: &CollectionId) -> Result<Option<Vec<u8>>, StoreError> {
        self.blocking(at, |tree, at| growing::note(&tree, &at))
            .await
    }

    async fn save_note(&self, lock: &CollectionLock, note: Vec<u8>) -> Result<(), StoreError> {
        self.blocking(lock.collection(), move |tree, at| {
            growing::save_note(&tree, &at, &note)
        })
        .await
    }

    fn location(&self, at: &CollectionId) -> String {
        self.tree.url(&at.to_string())
    }

    async fn free_bytes(&self) -> Result<u64, StoreError> {
        let tree = Arc::clone(&self.tree);
        tokio::task::spawn_blocking(move || tree.free())
            .await
            .map_err(|_| StoreError::WriterLost {
                at: "the store".to_owned(),
            })?
    }

    async fn try_writing(&self) -> Result<(), StoreError> {
        let tree = Arc::clone(&self.tree);
        tokio::task::spawn_blocking(move || tree.try_writing())
            .await
            .map_err(|_| StoreError::WriterLost {
                at: "the store".to_owned(),
            })?
    }

    fn write_once(&self) -> WriteOnce {
        WriteOnce::NotProven(
            "it is a directory: whoever may write to its volume can change or remove files"
                .to_owned(),
        )
    }
}
