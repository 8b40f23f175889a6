//! Where a sparse file has data: the map of GNU tar's sparse format 1.0.

use std::os::fd::AsFd;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::tar::BLOCK;

/// Most islands of one file. What lies behind the last one is written out with its holes as zeros; nothing
/// is lost, and the map stays below 3 MiB.
const ISLANDS: usize = 1 << 16;

/// Islands of data, as offset and length, in order and apart from each other. All begin at a multiple of
/// [`BLOCK`], and end there or at the end of the file: readers disagree about others.
pub(super) struct Map {
    islands: Vec<(u64, u64)>,
    size: u64,
}

impl Map {
    /// The map of a file of `size` bytes; `None` if it has no holes.
    pub(super) fn of(file: impl AsFd, size: u64) -> Result<Option<Self>, Errno> {
        let mut islands: Vec<(u64, u64)> = Vec::new();
        let mut at = 0;
        while at < size {
            let data = match seek(&file, SeekFrom::Data(at)) {
                Ok(data) if data < size => data,
                Ok(_) | Err(Errno::NXIO) => break,
                Err(errno) => return Err(errno),
            };
            let hole = match seek(&file, SeekFrom::Hole(data)) {
                Ok(hole) => hole.min(size),
                // It became shorter.
                Err(Errno::NXIO) => size,
                Err(errno) => return Err(errno),
            };
            let full = islands.len() == ISLANDS;
            let start = data - data % BLOCK;
            let end = match full {
                true => size,
                false => hole.max(data + 1).next_multiple_of(BLOCK).min(size),
            };
            match islands.last_mut() {
                Some((offset, length)) if full || start <= *offset + *length => {
                    *length = end - *offset;
                }
                _ => islands.push((start, end - start)),
            }
            at = end;
        }
        let whole = islands.as_slice() == [(0, size)];
        Ok((!whole && size > 0).then_some(Self { islands, size }))
    }

    pub(super) fn islands(&self) -> &[(u64, u64)] {
        &self.islands
    }

    /// The map as it stands before the islands, in whole blocks.
    pub(super) fn encode(&self) -> Vec<u8> {
        // A hole at the end is said by an island of nothing behind it.
        let end = self
            .islands
            .last()
            .is_none_or(|(offset, length)| offset + length < self.size)
            .then_some((self.size, 0));
        let count = self.islands.len() + usize::from(end.is_some());
        let mut text = format!("{count}\n");
        for (offset, length) in self.islands.iter().copied().chain(end) {
            text.push_str(&format!("{offset}\n{length}\n"));
        }
        let mut text = text.into_bytes();
        text.resize(text.len().next_multiple_of(BLOCK as usize), 0);
        text
    }

    /// Bytes of the islands.
    pub(super) fn data(&self) -> u64 {
        self.islands.iter().map(|(_, length)| length).sum()
    }
}
