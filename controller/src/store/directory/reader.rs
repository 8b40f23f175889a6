//! Reads stored files, for the gRPC service and the custody log.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use impound_evidence::EvidencePath;
use rustix::io::Errno;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::tree::{self, Tree};
use crate::store::{CollectionId, ObjectReader, StoreError};

/// Bytes of one piece: what one gRPC chunk may hold.
const PIECE: usize = 1024 * 1024;
/// Pieces read ahead.
const AHEAD: usize = 2;

/// Opens a file and starts a thread that reads it from `offset`. Blocks.
pub(super) fn open(
    tree: &Arc<Tree>,
    at: &CollectionId,
    path: &EvidencePath,
    offset: u64,
) -> Result<ObjectReader, StoreError> {
    let name = tree::name(at, path);
    let (file, size) = tree
        .file(at, path)?
        .ok_or_else(|| StoreError::NotFound { at: name.clone() })?;
    let (sender, receiver) = mpsc::channel(AHEAD);
    let tree = Arc::clone(tree);
    tokio::task::spawn_blocking(move || {
        let mut from = offset;
        loop {
            let piece = piece(&tree, &name, &file, from).transpose();
            let Some(piece) = piece else { return };
            from += piece.as_ref().map_or(0, |bytes| bytes.len() as u64);
            let failed = piece.is_err();
            // A reader that went away wants no more.
            if sender.blocking_send(piece).is_err() || failed {
                return;
            }
        }
    });
    Ok(ObjectReader {
        size,
        chunks: ReceiverStream::new(receiver).boxed(),
    })
}

/// A whole file of at most `limit` bytes, if it is there. Blocks.
pub(super) fn small(
    tree: &Tree,
    at: &CollectionId,
    path: &EvidencePath,
    limit: u64,
) -> Result<Option<Vec<u8>>, StoreError> {
    let name = tree::name(at, path);
    match tree.file(at, path)? {
        Some((file, _)) => all(tree, &name, &file, limit).map(Some),
        None => Ok(None),
    }
}

/// An open file of at most `limit` bytes. Blocks.
pub(super) fn all(
    tree: &Tree,
    name: &str,
    file: &OwnedFd,
    limit: u64,
) -> Result<Vec<u8>, StoreError> {
    let mut bytes = Vec::new();
    while let Some(piece) = piece(tree, name, file, bytes.len() as u64)? {
        bytes.extend_from_slice(&piece);
        if bytes.len() as u64 > limit {
            return Err(StoreError::TooLarge {
                at: name.to_owned(),
                size: bytes.len() as u64,
                limit,
            });
        }
    }
    Ok(bytes)
}

/// The next bytes, or nothing at the end.
fn piece(tree: &Tree, name: &str, file: &OwnedFd, from: u64) -> Result<Option<Bytes>, StoreError> {
    let mut bytes = vec![0; PIECE];
    let read = loop {
        match rustix::io::pread(file, bytes.as_mut_slice(), from) {
            Err(Errno::INTR) => {}
            other => break other.map_err(|error| tree.failed(name, "read it", error))?,
        }
    };
    bytes.truncate(read);
    Ok((read > 0).then(|| Bytes::from(bytes)))
}
