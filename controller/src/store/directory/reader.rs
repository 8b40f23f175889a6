//! Reads stored files, for the gRPC service and the custody log.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use impound_evidence::EvidencePath;
use rustix::io::Errno;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::direct::DirectFile;
use super::tree::{self, Tree};
use crate::store::{CollectionId, ObjectReader, StoreError};

/// Bytes of one piece: half of what one gRPC chunk may hold, as what the allocator would map anew for each piece
/// costs more than it is read for.
const PIECE: usize = 512 << 10;
/// Pieces read ahead.
const AHEAD: usize = 4;
/// Bytes from which on a file is read from the device, so many at once: what is smaller (logs, listings) is read
/// again and again.
const LARGE: u64 = 1 << 20;

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
        let read = match size.saturating_sub(offset) < LARGE {
            true => send_cached(&tree, &name, &file, offset, &sender),
            false => send_direct(DirectFile::new(&tree, &name, file, offset), &sender),
        };
        if let Err(error) = read {
            // A reader that went away wants no more.
            let _ = sender.blocking_send(Err(error));
        }
    });
    Ok(ObjectReader {
        size,
        chunks: ReceiverStream::new(receiver).boxed(),
    })
}

type Pieces = mpsc::Sender<Result<Bytes, StoreError>>;

fn send_cached(
    tree: &Tree,
    name: &str,
    file: &OwnedFd,
    mut from: u64,
    to: &Pieces,
) -> Result<(), StoreError> {
    while let Some(piece) = piece(tree, name, file, from)? {
        from += piece.len() as u64;
        if to.blocking_send(Ok(piece)).is_err() {
            break;
        }
    }
    Ok(())
}

fn send_direct(mut file: DirectFile<'_>, to: &Pieces) -> Result<(), StoreError> {
    loop {
        let bytes = file.next(u64::MAX, LARGE)?;
        if bytes.is_empty() {
            return Ok(());
        }
        for piece in bytes.chunks(PIECE) {
            if to.blocking_send(Ok(Bytes::copy_from_slice(piece))).is_err() {
                return Ok(());
            }
        }
    }
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
