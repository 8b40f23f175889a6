//! A stored collection as the verifier reads it, unfinished objects included: they are no evidence,
//! and it should say so.

use std::fs::File;
use std::io;
use std::sync::Arc;

use impound_evidence::{EvidencePath, EvidenceSource, Listing, OpenFile};

use super::tree::Tree;
use crate::store::{CollectionId, StoreError};

pub(super) struct Source {
    tree: Arc<Tree>,
    at: CollectionId,
}

impl Source {
    pub(super) fn new(tree: Arc<Tree>, at: CollectionId) -> Self {
        Self { tree, at }
    }
}

impl EvidenceSource for Source {
    fn list(&self) -> io::Result<Listing> {
        let walk = self.tree.walk(&self.at).map_err(io_error)?;
        let refused = |(path, expected)| (path, format!("is no {expected}"));
        Ok(Listing {
            files: walk.files.into_iter().map(|file| file.path).collect(),
            refused: walk.refused.into_iter().map(refused).collect(),
            ..Listing::default()
        })
    }

    fn open(&self, path: &EvidencePath) -> io::Result<OpenFile> {
        let (file, size) = self
            .tree
            .file(&self.at, path)
            .map_err(io_error)?
            .ok_or(io::ErrorKind::NotFound)?;
        Ok(OpenFile {
            size,
            reader: Box::new(File::from(file)),
        })
    }
}

fn io_error(error: StoreError) -> io::Error {
    match error {
        StoreError::Io { source, .. } => source,
        error if error.is_not_found() => io::Error::new(io::ErrorKind::NotFound, error),
        error => io::Error::other(error),
    }
}
