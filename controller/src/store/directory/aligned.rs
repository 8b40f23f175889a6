//! A block of memory that direct I/O accepts: it begins at a multiple of the page size.

/// Bytes of one block, the unit of writing and re-reading. Measured on a virtio disk: 256 KiB is
/// slower by half; 1 MiB is as fast as this on an idle machine, but on a busy one each block also
/// costs a wait for the processor. Only pages that are used count as memory.
pub(super) const BLOCK: usize = 4 * 1024 * 1024;
/// Devices ask for 512 or 4096.
const ALIGNMENT: usize = 4096;

/// A block that is filled piece by piece.
pub(super) struct Block {
    memory: Vec<u8>,
    start: usize,
    filled: usize,
}

impl Block {
    pub(super) fn new() -> Self {
        let memory = vec![0; BLOCK + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        // `align_offset` may decline; an unaligned block still works, by way of the page cache.
        Self {
            start: if start < ALIGNMENT { start } else { 0 },
            memory,
            filled: 0,
        }
    }

    /// Takes what fits of `data` and returns the rest.
    pub(super) fn fill<'a>(&mut self, data: &'a [u8]) -> &'a [u8] {
        let (taken, rest) = data
            .split_at_checked(BLOCK - self.filled)
            .unwrap_or((data, &[]));
        let at = self.start + self.filled;
        if let Some(free) = self.memory.get_mut(at..at + taken.len()) {
            free.copy_from_slice(taken);
            self.filled += taken.len();
        }
        rest
    }

    pub(super) fn is_full(&self) -> bool {
        self.filled == BLOCK
    }

    /// What was filled in.
    pub(super) fn bytes(&self) -> &[u8] {
        self.memory
            .get(self.start..self.start + self.filled)
            .unwrap_or_default()
    }

    pub(super) fn clear(&mut self) {
        self.filled = 0;
    }

    /// The whole block, to be read into.
    pub(super) fn space(&mut self) -> &mut [u8] {
        self.memory
            .get_mut(self.start..self.start + BLOCK)
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_holds_exactly_what_was_filled_in() {
        let data: Vec<u8> = (0..BLOCK + 10).map(|n| (n % 251) as u8).collect();
        let mut block = Block::new();
        assert!(block.fill(&data[..7]).is_empty() && !block.is_full());
        assert_eq!(block.fill(&data[7..]), &data[BLOCK..]);
        assert!(block.is_full());
        assert_eq!(block.bytes(), &data[..BLOCK]);
        assert_eq!(block.bytes().as_ptr() as usize % ALIGNMENT, 0);
        assert_eq!(block.space().len(), BLOCK);
        block.clear();
        assert!(block.bytes().is_empty());
    }
}
