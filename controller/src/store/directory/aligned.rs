//! A block of memory that direct I/O accepts: it begins at a multiple of the page size.

/// Most bytes of one block, the unit of writing and re-reading. Measured on a virtio disk: 256 KiB is
/// slower by half; 1 MiB is as fast as this on an idle machine, but on a busy one each block also
/// costs a wait for the processor.
pub(super) const BLOCK: usize = 4 * 1024 * 1024;
/// Bytes of the first block of an object: most have less.
const FIRST: usize = 64 * 1024;
/// Devices ask for 512 or 4096.
pub(super) const ALIGNMENT: usize = 4096;

/// A block that is filled piece by piece. It begins small and grows with what its object turns out to have, so
/// that the many small ones cost little memory.
pub(super) struct Block {
    memory: Vec<u8>,
    start: usize,
    size: usize,
    filled: usize,
}

impl Block {
    pub(super) fn new() -> Self {
        Self::of(FIRST)
    }

    fn of(size: usize) -> Self {
        let memory = vec![0; size + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        // `align_offset` may decline; an unaligned block still works, by way of the page cache.
        Self {
            start: if start < ALIGNMENT { start } else { 0 },
            memory,
            size,
            filled: 0,
        }
    }

    /// Takes what fits of `data` and returns the rest.
    pub(super) fn fill<'a>(&mut self, data: &'a [u8]) -> &'a [u8] {
        let (taken, rest) = data
            .split_at_checked(self.size - self.filled)
            .unwrap_or((data, &[]));
        let at = self.start + self.filled;
        if let Some(free) = self.memory.get_mut(at..at + taken.len()) {
            free.copy_from_slice(taken);
            self.filled += taken.len();
        }
        rest
    }

    pub(super) fn is_full(&self) -> bool {
        self.filled == self.size
    }

    /// What was filled in.
    pub(super) fn bytes(&self) -> &[u8] {
        self.memory
            .get(self.start..self.start + self.filled)
            .unwrap_or_default()
    }

    /// Empties it; a block that was full is four times as large from now on, up to the most.
    pub(super) fn clear(&mut self) {
        if self.is_full() && self.size < BLOCK {
            *self = Self::of((self.size * 4).min(BLOCK));
        }
        self.filled = 0;
    }

    /// Room to read `wanted` bytes into: as many, in whole pages, but not more than a block.
    pub(super) fn space(&mut self, wanted: u64) -> &mut [u8] {
        let wanted = usize::try_from(wanted).unwrap_or(BLOCK).min(BLOCK);
        let wanted = wanted.next_multiple_of(ALIGNMENT);
        if wanted > self.size {
            *self = Self::of(wanted);
        }
        self.memory
            .get_mut(self.start..self.start + wanted)
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_holds_exactly_what_was_filled_in_and_grows() {
        let mut block = Block::new();
        for size in [FIRST, 4 * FIRST, 16 * FIRST, BLOCK, BLOCK] {
            let data: Vec<u8> = (0..size + 10).map(|n| (n % 251) as u8).collect();
            assert!(block.fill(&data[..7]).is_empty() && !block.is_full());
            assert_eq!(block.fill(&data[7..]), &data[size..]);
            assert!(block.is_full());
            assert_eq!(block.bytes(), &data[..size]);
            assert_eq!(block.bytes().as_ptr() as usize % ALIGNMENT, 0);
            block.clear();
            assert!(block.bytes().is_empty());
        }
    }

    #[test]
    fn room_to_read_into_is_what_is_wanted_in_whole_pages() {
        let mut block = Block::new();
        for (wanted, room) in [
            (1, ALIGNMENT),
            (ALIGNMENT as u64, ALIGNMENT),
            (FIRST as u64 + 1, FIRST + ALIGNMENT),
            (u64::MAX, BLOCK),
            (5, ALIGNMENT),
        ] {
            let space = block.space(wanted);
            assert_eq!(space.len(), room);
            assert_eq!(space.as_ptr() as usize % ALIGNMENT, 0);
        }
    }
}
