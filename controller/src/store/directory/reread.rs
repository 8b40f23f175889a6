//! Reads written bytes back from the disk and hashes them, some MiB behind the writer.
//!
//! What this proves. Only ranges that an `fdatasync` has covered are read, and they are read with
//! direct I/O, past the page cache, so the digest is over what the device gives back after it was
//! told to make it durable. (A device's own volatile cache may still answer.) Where the file system
//! has no direct I/O, the page cache is asked to drop the range first, which after the sync it does
//! unless somebody else has the pages mapped.

use std::os::fd::OwnedFd;
use std::sync::mpsc;

use impound_evidence::{Digests, DigestsHasher};

use super::aligned::BLOCK;
use super::direct::DirectFile;
use super::tree::Tree;
use crate::store::StoreError;

/// How far the writer got.
pub(super) enum Mark {
    /// Bytes that are durable, a multiple of the block.
    Synced(u64),
    /// All bytes are durable; this many there are.
    End(u64),
}

/// Reads what `marks` allow and returns the digests at the end; nothing if the writer stopped
/// before it. `name` is for errors. Blocks.
pub(super) fn follow(
    tree: &Tree,
    name: &str,
    file: OwnedFd,
    marks: &mpsc::Receiver<Mark>,
) -> Result<Option<Digests>, StoreError> {
    let mut hash = Rehash::new(tree, name, file);
    while let Ok(mark) = marks.recv() {
        match mark {
            Mark::Synced(to) => hash.advance(to)?,
            Mark::End(size) => {
                hash.advance(size)?;
                return hash.end().map(Some);
            }
        }
    }
    Ok(None)
}

/// Reads a whole file that nobody writes to. Blocks.
pub(super) fn whole(tree: &Tree, name: &str, file: OwnedFd) -> Result<Digests, StoreError> {
    let mut hash = Rehash::new(tree, name, file);
    hash.advance(u64::MAX)?;
    hash.end()
}

struct Rehash<'a> {
    file: DirectFile<'a>,
    hasher: DigestsHasher,
}

impl<'a> Rehash<'a> {
    fn new(tree: &'a Tree, name: &'a str, file: OwnedFd) -> Self {
        Self {
            file: DirectFile::new(tree, name, file, 0),
            hasher: DigestsHasher::new(),
        }
    }

    /// Hashes up to `to` or the end of the file.
    fn advance(&mut self, to: u64) -> Result<(), StoreError> {
        loop {
            let bytes = self.file.next(to, BLOCK as u64)?;
            if bytes.is_empty() {
                return Ok(());
            }
            self.hasher.update(bytes);
        }
    }

    /// Also of a file that goes on: the digest of all of it can't be mistaken for that of the expected bytes.
    fn end(mut self) -> Result<Digests, StoreError> {
        // Not by reading on behind a short last block: direct I/O only begins at multiples of the block size.
        if self.file.size()? != self.file.at() {
            self.advance(u64::MAX)?;
        }
        Ok(self.hasher.finish())
    }
}
