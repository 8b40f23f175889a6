//! Objects that have no name: of a writer that ended early, or of a process that died.

use std::sync::Arc;

use async_trait::async_trait;
use impound_evidence::{Digests, EvidencePath};
use rustix::fs::{self, AtFlags};
use rustix::io::Errno;

use super::reread;
use super::tree::{self, Tree};
use super::writer::{Temporary, temporary_name};
use crate::store::{CollectionLock, Content, Receipt, StoreError, Unfinished};

/// A durable, re-read file without a name.
pub(super) struct Left {
    temporary: Arc<Temporary>,
    digests: Digests,
    failure: Option<StoreError>,
}

impl Left {
    /// What was re-read behind its writer, to the end.
    pub(super) fn reread(temporary: Arc<Temporary>, digests: Digests) -> Self {
        Self {
            temporary,
            digests,
            failure: None,
        }
    }

    /// Makes what is there of `path` durable and hashes it; nothing if it has its name after all.
    /// `failure`: why its writer stopped. Blocks.
    pub(super) fn settle(
        tree: &Arc<Tree>,
        lock: &CollectionLock,
        path: EvidencePath,
        failure: Option<StoreError>,
    ) -> Result<Option<Box<dyn Unfinished>>, StoreError> {
        let at = lock.collection();
        let name = tree::name(at, &path);
        let directory = tree.parent(at, &path, false)?;
        let Some((file, _)) = tree.regular(&directory, &temporary_name(&path), &name)? else {
            return Ok(None);
        };
        let temporary = Temporary {
            tree: Arc::clone(tree),
            directory,
            file,
            path,
            lock: lock.clone(),
        };
        if is_named(&temporary)? {
            // Cut off between the hard link and the removal of the first name.
            temporary.remove()?;
            return Ok(None);
        }
        temporary.settle()?;
        let digests = reread::whole(tree, &name, temporary.reopen()?)?;
        Ok(Some(Box::new(Self {
            temporary: Arc::new(temporary),
            digests,
            failure,
        })))
    }
}

#[async_trait]
impl Unfinished for Left {
    fn intended(&self) -> &EvidencePath {
        &self.temporary.path
    }

    fn content(&self) -> Content {
        self.digests.into()
    }

    fn take_failure(&mut self) -> Option<StoreError> {
        self.failure.take()
    }

    async fn keep_as(self: Box<Self>, at: &EvidencePath) -> Result<Receipt, StoreError> {
        let name = tree::name(self.temporary.lock.collection(), at);
        tree::writable(self.temporary.lock.collection(), at)?;
        let parent = |path: &EvidencePath| {
            path.as_str()
                .rsplit_once('/')
                .map(|(parent, _)| parent.to_owned())
        };
        if parent(at) != parent(&self.temporary.path) {
            return Err(StoreError::Reserved {
                at: name,
                reason: "an unfinished object stays in its directory",
            });
        }
        let at = at.clone();
        let publish = move || self.temporary.publish(&at, self.digests);
        tokio::task::spawn_blocking(publish)
            .await
            .map_err(|_| StoreError::WriterLost { at: name })?
    }

    async fn discard(self: Box<Self>) -> Result<(), StoreError> {
        let name = self.temporary.name();
        let remove = move || self.temporary.remove();
        tokio::task::spawn_blocking(remove)
            .await
            .map_err(|_| StoreError::WriterLost { at: name })?
    }
}

/// Whether the file already has its final name as well.
fn is_named(temporary: &Temporary) -> Result<bool, StoreError> {
    let failed = |error| {
        temporary
            .tree
            .failed(&temporary.name(), "look at it", error)
    };
    let named = match fs::statat(
        &temporary.directory,
        temporary.path.file_name(),
        AtFlags::SYMLINK_NOFOLLOW,
    ) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(false),
        Err(error) => return Err(failed(error)),
    };
    let here = fs::fstat(&temporary.file).map_err(failed)?;
    Ok((named.st_dev, named.st_ino) == (here.st_dev, here.st_ino))
}
