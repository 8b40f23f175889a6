//! Reads written bytes back from the disk and hashes them, some MiB behind the writer.
//!
//! What this proves. Only ranges that an `fdatasync` has covered are read, and they are read with
//! direct I/O, past the page cache, so the digest is over what the device gives back after it was
//! told to make it durable. (A device's own volatile cache may still answer.) Where the file system
//! has no direct I/O, the page cache is asked to drop the range first, which after the sync it does
//! unless somebody else has the pages mapped.

use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::sync::mpsc;

use impound_evidence::{Digests, DigestsHasher};
use rustix::fs::{self, Advice, OFlags};
use rustix::io::Errno;

use super::aligned::Block;
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
    tree: &'a Tree,
    name: &'a str,
    file: OwnedFd,
    direct: bool,
    block: Block,
    at: u64,
    hasher: DigestsHasher,
}

impl<'a> Rehash<'a> {
    fn new(tree: &'a Tree, name: &'a str, file: OwnedFd) -> Self {
        let direct = fs::fcntl_setfl(&file, OFlags::DIRECT).is_ok();
        Self {
            tree,
            name,
            file,
            direct,
            block: Block::new(),
            at: 0,
            hasher: DigestsHasher::new(),
        }
    }

    /// Hashes up to `to` or the end of the file.
    fn advance(&mut self, to: u64) -> Result<(), StoreError> {
        if !self.direct {
            self.drop_pages(to);
        }
        while self.at < to {
            let left = to - self.at;
            let read = self.read(left)?;
            let wanted = usize::try_from(left).unwrap_or(usize::MAX);
            let Some(bytes) = self.block.space(left).get(..read.min(wanted)) else {
                break;
            };
            if bytes.is_empty() {
                break;
            }
            self.hasher.update(bytes);
            self.at += bytes.len() as u64;
        }
        Ok(())
    }

    /// Fails if the file goes on.
    fn end(mut self) -> Result<Digests, StoreError> {
        // Not behind a short last block: direct I/O can only ask at multiples of the block size.
        let stat = fs::fstat(&self.file)
            .map_err(|error| self.tree.failed(self.name, "look at it", error))?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if size != self.at {
            // Hash all of it, so that the digest can't be mistaken for that of the expected bytes.
            self.advance(u64::MAX)?;
        }
        Ok(self.hasher.finish())
    }

    /// Reads some of the `left` bytes, and what shares the last one's page.
    fn read(&mut self, left: u64) -> Result<usize, StoreError> {
        loop {
            match rustix::io::pread(&self.file, self.block.space(left), self.at) {
                Ok(read) => return Ok(read),
                Err(Errno::INTR) => {}
                // Another alignment than ours, or a file system that only finds out now.
                Err(Errno::INVAL) if self.direct => {
                    self.direct = false;
                    fs::fcntl_setfl(&self.file, OFlags::empty()).map_err(|error| {
                        self.tree.failed(self.name, "turn direct I/O off", error)
                    })?;
                    self.drop_pages(u64::MAX);
                }
                Err(error) => return Err(self.tree.failed(self.name, "read it back", error)),
            }
        }
    }

    /// Advice only: nothing follows from its failure. No length: to the end of the file.
    fn drop_pages(&self, to: u64) {
        let length = if to == u64::MAX {
            None
        } else {
            NonZeroU64::new(to - self.at)
        };
        let _ = fs::fadvise(&self.file, self.at, length, Advice::DontNeed);
    }
}
