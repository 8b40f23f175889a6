//! Hashes members as the files that an extraction makes of them, sparse ones with zeros in their holes.

use crate::tar::{Anomaly, Expansion, Member, Part, Unexpanded};

/// What takes a file's bytes.
pub(super) trait Hasher {
    fn update(&mut self, bytes: &[u8]);
}

impl Hasher for crate::digest::Sha256Hasher {
    fn update(&mut self, bytes: &[u8]) {
        self.update(bytes);
    }
}

impl Hasher for md5::Md5 {
    fn update(&mut self, bytes: &[u8]) {
        md5::Digest::update(self, bytes);
    }
}

/// The hash of the member whose contents pass.
pub(super) struct Contents<H> {
    hasher: H,
    sparse: Option<Expansion>,
}

impl<H: Hasher> Contents<H> {
    /// None for a member without contents. `holes`: most bytes of holes that are hashed.
    pub(super) fn begin(member: &mut Member, holes: u64, hasher: H) -> Option<Self> {
        member.kind.has_contents().then(|| Self {
            hasher,
            sparse: Expansion::of(member, holes),
        })
    }

    /// Takes a block that continues the member's sparse map.
    pub(super) fn map(&mut self, block: &[u8]) {
        if let Some(sparse) = &mut self.sparse {
            sparse.map(block);
        }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match &mut self.sparse {
            Some(sparse) => sparse.update(bytes, |part| hash(&mut self.hasher, part)),
            None => self.hasher.update(bytes),
        }
    }

    /// The hash once all contents came, or what keeps the file from having one. Holes are taken off
    /// `holes`.
    pub(super) fn finish(mut self, holes: &mut u64) -> Result<H, Anomaly> {
        if let Some(sparse) = self.sparse {
            let hasher = &mut self.hasher;
            let had = sparse
                .finish(|part| hash(hasher, part))
                .map_err(|wrong| match wrong {
                    Unexpanded::Map => Anomaly::SparseMap,
                    Unexpanded::Holes => Anomaly::NotHashed,
                })?;
            *holes = holes.saturating_sub(had);
        }
        Ok(self.hasher)
    }
}

fn hash(hasher: &mut impl Hasher, part: Part<'_>) {
    const ZEROS: [u8; 16 << 10] = [0; 16 << 10];
    match part {
        Part::Data(bytes) => hasher.update(bytes),
        Part::Hole(mut left) => {
            while left > 0 {
                let n = left.min(ZEROS.len() as u64);
                hasher.update(ZEROS.get(..n as usize).unwrap_or_default());
                left -= n;
            }
        }
    }
}
