//! Reads a file in order, from the device if the file system allows that.
//!
//! Direct I/O reads past the page cache: half the processor time of reading through it, nothing that counts as
//! this process's memory in its cgroup, and what comes is what the device has.

use std::num::NonZeroU64;
use std::os::fd::OwnedFd;

use rustix::fs::{self, Advice, OFlags};
use rustix::io::Errno;

use super::aligned::{ALIGNMENT, Block};
use super::tree::Tree;
use crate::store::StoreError;

/// A file that is read from the device, block by block.
pub(super) struct DirectFile<'a> {
    tree: &'a Tree,
    name: &'a str,
    file: OwnedFd,
    direct: bool,
    block: Block,
    at: u64,
    /// Without direct I/O: up to where the page cache was asked to let go.
    dropped: u64,
}

impl<'a> DirectFile<'a> {
    /// `name` is for errors, `at` the byte to begin with. The descriptor must share its offset and flags with
    /// nobody.
    pub(super) fn new(tree: &'a Tree, name: &'a str, file: OwnedFd, at: u64) -> Self {
        let direct = fs::fcntl_setfl(&file, OFlags::DIRECT).is_ok();
        Self {
            tree,
            name,
            file,
            direct,
            block: Block::new(),
            at,
            dropped: 0,
        }
    }

    /// Where the next bytes are.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// The next bytes before `to`, at most `most`; none at `to`, or if the file ends there.
    pub(super) fn next(&mut self, to: u64, most: u64) -> Result<&[u8], StoreError> {
        let wanted = to.saturating_sub(self.at).min(most);
        // Direct I/O begins at multiples of the block size, and ends there.
        let skipped = self.at % ALIGNMENT as u64;
        let read = match wanted {
            0 => 0,
            _ => self.read(self.at - skipped, skipped + wanted, to)?,
        };
        let from = usize::try_from(skipped).unwrap_or(usize::MAX);
        let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
        let end = read.min(from.saturating_add(wanted));
        let space = self.block.space(skipped + wanted as u64);
        let bytes = space.get(from..end).unwrap_or_default();
        self.at += bytes.len() as u64;
        Ok(bytes)
    }

    /// The size of the file now, bytes.
    pub(super) fn size(&self) -> Result<u64, StoreError> {
        let stat = fs::fstat(&self.file)
            .map_err(|error| self.tree.failed(self.name, "look at it", error))?;
        Ok(u64::try_from(stat.st_size).unwrap_or(0))
    }

    /// Reads some of `length` bytes from `at` on, and what shares the last one's page.
    fn read(&mut self, at: u64, length: u64, to: u64) -> Result<usize, StoreError> {
        loop {
            if !self.direct {
                self.drop_pages(at, to);
            }
            match rustix::io::pread(&self.file, self.block.space(length), at) {
                Ok(read) => return Ok(read),
                Err(Errno::INTR) => {}
                // Another alignment than ours, or a file system that only finds out now.
                Err(Errno::INVAL) if self.direct => {
                    self.direct = false;
                    fs::fcntl_setfl(&self.file, OFlags::empty()).map_err(|error| {
                        self.tree.failed(self.name, "turn direct I/O off", error)
                    })?;
                }
                Err(error) => return Err(self.tree.failed(self.name, "read it back", error)),
            }
        }
    }

    /// Advice only: nothing follows from its failure.
    fn drop_pages(&mut self, at: u64, to: u64) {
        if to > self.dropped {
            // No length: to the end of the file.
            let length = NonZeroU64::new(to - at).filter(|_| to < u64::MAX);
            let _ = fs::fadvise(&self.file, at, length, Advice::DontNeed);
            self.dropped = to;
        }
    }
}
