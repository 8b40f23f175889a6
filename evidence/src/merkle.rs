//! RFC 6962 section 2.1: Merkle tree hash, inclusion and consistency proofs; of the custody log over
//! its lines, of an artifact over its chunks.

use crate::digest::{Sha256, Sha256Hasher};

/// Hash of a leaf.
pub(crate) fn leaf(bytes: &[u8]) -> Sha256 {
    let mut hasher = leaf_hasher();
    hasher.update(bytes);
    hasher.finish()
}

/// A hasher that waits for the bytes of a leaf: the prefix keeps leaves and nodes apart.
pub(crate) fn leaf_hasher() -> Sha256Hasher {
    let mut hasher = Sha256Hasher::new();
    hasher.update(&[0]);
    hasher
}

/// Hash of a node over two subtrees.
pub(crate) fn node(left: Sha256, right: Sha256) -> Sha256 {
    let mut hasher = Sha256Hasher::new();
    hasher.update(&[1]);
    hasher.update(left.as_bytes());
    hasher.update(right.as_bytes());
    hasher.finish()
}

/// Merkle Tree Hash over leaf hashes. At most 64 levels deep.
pub(crate) fn root(leaves: &[Sha256]) -> Sha256 {
    match leaves {
        [] => Sha256::of(&[]),
        [one] => *one,
        _ => {
            let (left, right) = halves(leaves);
            node(root(left), root(right))
        }
    }
}

/// The tree over leaves that come one after the other: a leaf costs two hashes on average, and the root
/// one for each level.
#[derive(Clone, Debug, Default)]
pub(crate) struct Growing {
    leaves: u64,
    /// Full subtrees, larger ones first: one for each bit of the number of leaves.
    subtrees: Vec<Sha256>,
}

impl Growing {
    /// Adds a leaf's hash.
    pub(crate) fn push(&mut self, leaf: Sha256) {
        let mut subtree = leaf;
        // As a carry in binary addition: two subtrees of one size become one of the next.
        for _ in 0..self.leaves.trailing_ones() {
            if let Some(left) = self.subtrees.pop() {
                subtree = node(left, subtree);
            }
        }
        self.subtrees.push(subtree);
        self.leaves += 1;
    }

    /// As [`root`] over all leaves.
    pub(crate) fn root(&self) -> Sha256 {
        let joined = self.subtrees.iter().rev().copied();
        let root = joined.reduce(|right, left| node(left, right));
        root.unwrap_or_else(|| Sha256::of(&[]))
    }
}

/// PATH(seq, leaves) of the RFC, from the leaf up.
pub(crate) fn inclusion(seq: usize, leaves: &[Sha256]) -> Vec<Sha256> {
    if leaves.len() <= 1 {
        return Vec::new();
    }
    let (left, right) = halves(leaves);
    let (mut path, sibling) = match seq.checked_sub(left.len()) {
        None => (inclusion(seq, left), root(right)),
        Some(seq) => (inclusion(seq, right), root(left)),
    };
    path.push(sibling);
    path
}

/// PROOF(old, leaves) of the RFC; `0 < old <= leaves.len()`.
pub(crate) fn consistency(old: usize, leaves: &[Sha256]) -> Vec<Sha256> {
    subproof(old, leaves, true)
}

fn subproof(old: usize, leaves: &[Sha256], known: bool) -> Vec<Sha256> {
    if old >= leaves.len() {
        return if known {
            Vec::new()
        } else {
            vec![root(leaves)]
        };
    }
    let (left, right) = halves(leaves);
    let (mut proof, sibling) = match old.checked_sub(left.len()) {
        None | Some(0) => (subproof(old, left, known), root(right)),
        Some(old) => (subproof(old, right, false), root(left)),
    };
    proof.push(sibling);
    proof
}

/// The tree's halves: the left one is the largest power of two below the number of leaves.
fn halves(leaves: &[Sha256]) -> (&[Sha256], &[Sha256]) {
    let half = leaves.len().div_ceil(2).next_power_of_two();
    leaves.split_at_checked(half).unwrap_or((leaves, &[]))
}

/// Whether `proof` shows that the entry with the bytes `line` (no newline) is number `seq` in the log
/// of `size` entries with `root`. RFC 9162 section 2.1.3.2.
#[must_use]
pub fn verify_inclusion(line: &[u8], seq: u64, size: u64, root: Sha256, proof: &[Sha256]) -> bool {
    if seq >= size {
        return false;
    }
    let (mut fnode, mut snode) = (seq, size - 1);
    let mut hash = leaf(line);
    for sibling in proof {
        if snode == 0 {
            return false;
        }
        if fnode & 1 == 1 || fnode == snode {
            hash = node(*sibling, hash);
            while fnode & 1 == 0 && fnode != 0 {
                fnode >>= 1;
                snode >>= 1;
            }
        } else {
            hash = node(hash, *sibling);
        }
        fnode >>= 1;
        snode >>= 1;
    }
    snode == 0 && hash == root
}

/// Whether `proof` shows that the log of `size` entries with `root` begins with the log of `old`
/// entries with `old_root`. RFC 9162 section 2.1.4.2.
#[must_use]
pub fn verify_consistency(
    old: u64,
    old_root: Sha256,
    size: u64,
    root: Sha256,
    proof: &[Sha256],
) -> bool {
    if old == 0 || old > size {
        return false;
    }
    if old == size {
        return proof.is_empty() && old_root == root;
    }
    // The old tree's root is its own first node if it is a full one.
    let given = proof.iter().copied();
    let mut nodes: Box<dyn Iterator<Item = Sha256>> = match old.is_power_of_two() {
        true => Box::new(std::iter::once(old_root).chain(given)),
        false => Box::new(given),
    };
    let (mut fnode, mut snode) = (old - 1, size - 1);
    while fnode & 1 == 1 {
        fnode >>= 1;
        snode >>= 1;
    }
    let Some(first) = nodes.next() else {
        return false;
    };
    let (mut old_hash, mut hash) = (first, first);
    for sibling in nodes {
        if snode == 0 {
            return false;
        }
        if fnode & 1 == 1 || fnode == snode {
            old_hash = node(sibling, old_hash);
            hash = node(sibling, hash);
            while fnode & 1 == 0 && fnode != 0 {
                fnode >>= 1;
                snode >>= 1;
            }
        } else {
            hash = node(hash, sibling);
        }
        fnode >>= 1;
        snode >>= 1;
    }
    snode == 0 && old_hash == old_root && hash == root
}
