//! A set of path hashes that never grows past its limit.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};

/// Up to a number of 64-bit keyed hashes, 9 bytes each.
pub(super) struct Set {
    hashes: HashSet<u64, BuildHasherDefault<AsItIs>>,
    limit: usize,
    full: bool,
}

impl Set {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            hashes: HashSet::default(),
            limit,
            full: false,
        }
    }

    /// Whether it is new; nothing if it is not known, as the set is full.
    pub(super) fn insert(&mut self, hash: u64) -> Option<bool> {
        if self.hashes.contains(&hash) {
            return Some(false);
        }
        if self.hashes.len() >= self.limit {
            self.full = true;
            return None;
        }
        Some(self.hashes.insert(hash))
    }

    pub(super) fn has(&self, hash: u64) -> bool {
        !self.hashes.is_empty() && self.hashes.contains(&hash)
    }

    /// Whether something was left out.
    pub(super) fn is_full(&self) -> bool {
        self.full
    }
}

/// The keys are keyed hashes already.
#[derive(Default)]
pub(super) struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}
