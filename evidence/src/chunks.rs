//! The chunk tree of an artifact: a Merkle tree over its bytes in chunks of 1 MiB, so that a part of
//! a large file can be checked without the rest.
//!
//! Hashed as RFC 6962 hashes a log: a leaf is `SHA-256(0x00 ‖ chunk)`, a node
//! `SHA-256(0x01 ‖ left ‖ right)`, and a file of no bytes has the root `SHA-256()`. The controller
//! computes the root while it re-reads an artifact from the store; [`crate::verify`] computes it again.
//! Whoever has all leaf hashes, or an inclusion proof, checks one chunk with [`crate::verify_inclusion`].

use crate::digest::{Sha256, Sha256Hasher};
use crate::merkle;

/// Bytes of a chunk; the last one is shorter. 1 MiB: what is streamed at once, and a leaf for each
/// makes a tree of 32 KiB for a GiB.
pub const CHUNK_SIZE: u64 = 1 << 20;

/// Size, SHA-256 and chunk tree of one byte string: what an artifact is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digests {
    /// Bytes.
    pub size: u64,
    /// Over all of them.
    pub sha256: Sha256,
    /// Root of the chunk tree.
    pub chunk_root: Sha256,
}

/// Computes [`Digests`] over bytes as they pass. Memory: a digest for each level of the tree.
#[derive(Clone)]
pub struct DigestsHasher {
    size: u64,
    whole: Sha256Hasher,
    chunk: Sha256Hasher,
    /// Bytes still missing from the chunk.
    room: u64,
    tree: merkle::Growing,
}

impl Digests {
    /// Of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = DigestsHasher::new();
        hasher.update(bytes);
        hasher.finish()
    }
}

impl Default for DigestsHasher {
    fn default() -> Self {
        Self::new()
    }
}

impl DigestsHasher {
    /// A hasher that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self {
            size: 0,
            whole: Sha256Hasher::new(),
            chunk: merkle::leaf_hasher(),
            room: CHUNK_SIZE,
            tree: merkle::Growing::default(),
        }
    }

    /// Bytes taken so far.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.size += bytes.len() as u64;
        self.whole.update(bytes);
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = usize::try_from(self.room).unwrap_or(usize::MAX);
            let (now, later) = rest.split_at(room.min(rest.len()));
            self.chunk.update(now);
            self.room -= now.len() as u64;
            if self.room == 0 {
                self.end_chunk();
            }
            rest = later;
        }
    }

    /// The digests of all bytes taken.
    #[must_use]
    pub fn finish(mut self) -> Digests {
        if self.room < CHUNK_SIZE {
            self.end_chunk();
        }
        Digests {
            size: self.size,
            sha256: self.whole.finish(),
            chunk_root: self.tree.root(),
        }
    }

    fn end_chunk(&mut self) {
        let chunk = std::mem::replace(&mut self.chunk, merkle::leaf_hasher());
        self.tree.push(chunk.finish());
        self.room = CHUNK_SIZE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_rfc_6962s_over_chunks_however_the_bytes_come() {
        let bytes: Vec<u8> = (0..7 * CHUNK_SIZE + 5).map(|n| (n % 251) as u8).collect();
        for chunks in 0..=7 {
            for more in [0, 1, 5] {
                let bytes = &bytes[..(chunks * CHUNK_SIZE) as usize + more];
                let leaves: Vec<_> = bytes
                    .chunks(CHUNK_SIZE as usize)
                    .map(merkle::leaf)
                    .collect();
                let mut hasher = DigestsHasher::new();
                for part in bytes.chunks(700_001) {
                    hasher.update(part);
                }
                let expected = Digests {
                    size: bytes.len() as u64,
                    sha256: Sha256::of(bytes),
                    chunk_root: merkle::root(&leaves),
                };
                assert_eq!(hasher.finish(), expected, "{chunks} chunks and {more}");
                assert_eq!(Digests::of(bytes), expected);
            }
        }
    }

    #[test]
    fn a_part_is_checked_without_the_rest() {
        let bytes: Vec<u8> = (0..3 * CHUNK_SIZE + 9).map(|n| (n % 251) as u8).collect();
        let chunks: Vec<_> = bytes.chunks(CHUNK_SIZE as usize).collect();
        let leaves: Vec<_> = chunks.iter().map(|chunk| merkle::leaf(chunk)).collect();
        let root = Digests::of(&bytes).chunk_root;
        let proof = merkle::inclusion(2, &leaves);
        assert!(crate::verify_inclusion(chunks[2], 2, 4, root, &proof));
        assert!(!crate::verify_inclusion(chunks[1], 2, 4, root, &proof));
    }
}
