//! What an analyst starts with: listings, hashes and a body file of a tar, made while it arrives.
//!
//! Place in the data path: the controller gives every byte of an export or saved image to a
//! [`FileIndex`] and a [`BodyIndex`] (two threads, one hash each) while it stores it; their lines go
//! to the store as they come. The tar is never re-packed, extracted or read again. What the files
//! look like is described in `evidence/FORMATS.md`.
//!
//! ```text
//! tar bytes -> FileIndex -> files.jsonl, hashes.sha256, changes.jsonl, index.json, image.json
//!           -> BodyIndex -> bodyfile, hashes.md5
//! ```
//! The tar comes from a suspect container: nothing in it is believed, everything is bounded, see
//! [`Limits`]. What is over a limit is not listed, in any of the files, and
//! [`Summary::truncated`] says so. Memory: at most 32 MiB
//! at all limits, little more than 1 MiB for usual containers.

mod body;
mod changes;
mod contents;
mod image;
mod line;
mod paths;
mod room;
mod summary;
mod sums;
mod tables;

use crate::digest::Sha256Hasher;
use crate::tar::{Anomaly, FileType, Member, Visitor, Walk};

pub use body::{BodyIndex, BodyLines};
pub use changes::{Change, ChangeKind, Changes};
pub use image::ImageDescription;
pub use summary::{AnomalyCount, Summary};

use contents::Contents;
use image::Capture;
use paths::PathHasher;
use room::Room;
use tables::Set;

/// Bounds of an index. The defaults are what the controller uses; smaller ones are for tests.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most members that are listed. A node's disk has about one inode for 16 KiB: 160 GiB of
    /// nothing but files.
    pub members: u64,
    /// Most bytes of names, link targets, owners and extended attributes that are listed, over all
    /// members: 10 million members have 1 GiB at 100 bytes each. With six characters for a byte in
    /// JSON this bounds what a tar of nothing but names can make us write.
    pub metadata: u64,
    /// Most paths that are examined for duplicates: 8 bytes each in a table that then has 2^20
    /// places, 9 MiB and for a moment half as much again.
    pub paths: usize,
    /// Most symbolic links that later paths are compared with: 2^17 places, 1 MiB.
    pub links: usize,
    /// Most bytes of sparse files' holes that are hashed, over all members: a hole of any size costs a tar
    /// nothing, and hashing a gibibyte of zeros a second or two.
    pub holes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            members: 10_000_000,
            metadata: 1 << 30,
            paths: 900_000,
            links: 110_000,
            holes: 4 << 30,
        }
    }
}

/// Lists a tar with SHA-256 hashes as its bytes pass.
pub struct FileIndex {
    walk: Walk,
    listing: Listing,
}

/// What an index has to write, in pieces. Whoever feeds it takes them away between two updates.
///
/// A member's lines are in proportion to its own bytes in the tar, as nothing long is inherited from
/// global headers: one update of 1 MiB adds less than 24 MiB at worst (headers full of control
/// characters, six characters each, that the diff names too), usually less than 1 MiB.
#[derive(Debug, Default)]
pub struct FileLines {
    /// Of `files.jsonl`.
    pub files: Vec<u8>,
    /// Of `hashes.sha256`.
    pub sha256: Vec<u8>,
    /// Of `changes.jsonl`; only with [`Changes`].
    pub changes: Vec<u8>,
}

/// What an index knows at the end.
pub struct Indexed {
    /// The last lines.
    pub lines: FileLines,
    /// For `index.json`.
    pub summary: Summary,
    /// Which changes were found in the tar.
    pub changes: Option<Changes>,
    /// For `image.json`, if the tar was announced as a saved image.
    pub image: Option<ImageDescription>,
}

/// What kind of tar it is.
#[derive(Default)]
pub enum Kind {
    /// A container's file system, with what its diff says.
    FileSystem(Changes),
    /// A saved image: its configuration and history are kept.
    Image,
    /// Neither.
    #[default]
    Other,
}

impl FileIndex {
    /// An index at the first byte.
    #[must_use]
    pub fn new(kind: Kind, limits: Limits) -> Self {
        let (changes, image) = match kind {
            Kind::FileSystem(changes) => (Some(changes), None),
            Kind::Image => (None, Some(Capture::default())),
            Kind::Other => (None, None),
        };
        let hasher = changes
            .as_ref()
            .map_or_else(PathHasher::new, Changes::hasher);
        Self {
            walk: Walk::default(),
            listing: Listing {
                limits,
                hasher,
                seen: Set::new(limits.paths),
                links: Set::new(limits.links),
                changes,
                image,
                open: None,
                lines: FileLines::default(),
                summary: Summary::default(),
                room: Room::new(&limits),
                holes: limits.holes,
            },
        }
    }

    /// Takes the next bytes, any number of them.
    pub fn update(&mut self, bytes: &[u8]) {
        self.walk.update(bytes, &mut self.listing);
    }

    /// The lines so far, to be taken away.
    pub fn lines(&mut self) -> &mut FileLines {
        &mut self.listing.lines
    }

    /// The verdict, and the rest of the lines.
    #[must_use]
    pub fn finish(mut self) -> Indexed {
        let listing = &mut self.listing;
        listing.close(true);
        let mut summary = std::mem::take(&mut listing.summary);
        summary.bytes = self.walk.position();
        summary.members = self.walk.members();
        for anomaly in self.walk.anomalies().iter() {
            summary.count(anomaly, None);
        }
        if listing.seen.is_full() {
            summary.not_examined.push(format!(
                "Only the first {} paths were examined for duplicates.",
                listing.limits.paths
            ));
        }
        if listing.links.is_full() {
            summary.not_examined.push(format!(
                "Only the first {} symbolic links were compared with later paths.",
                listing.limits.links
            ));
        }
        let unhashed = summary.count_of(Anomaly::NotHashed);
        if unhashed > 0 {
            summary.not_examined.push(format!(
                "{unhashed} sparse files have no hash: holes of up to {} bytes are hashed, over all files.",
                listing.limits.holes
            ));
        }
        if let Some(truncated) = summary.truncated() {
            summary.not_examined.push(format!(
                "{truncated} The limit is {} members or {} bytes of names and attributes.",
                listing.limits.members, listing.limits.metadata
            ));
            if let Some(changes) = &mut listing.changes {
                changes.truncate();
            }
            if let Some(image) = &mut listing.image {
                image.truncate(&truncated);
            }
        }
        summary.completeness = self.walk.finish();
        Indexed {
            lines: self.listing.lines,
            summary,
            changes: self.listing.changes,
            image: self.listing.image.map(Capture::finish),
        }
    }
}

/// What sees the members.
struct Listing {
    limits: Limits,
    hasher: PathHasher,
    seen: Set,
    links: Set,
    changes: Option<Changes>,
    image: Option<Capture>,
    open: Option<Open>,
    lines: FileLines,
    summary: Summary,
    room: Room,
    /// Bytes of holes that are still hashed.
    holes: u64,
}

/// The member whose contents pass.
struct Open {
    member: Member,
    /// Of its path, and what the diff says of it.
    change: Option<Change>,
    contents: Option<Contents<Sha256Hasher>>,
    came: u64,
}

impl Visitor for Listing {
    fn member(&mut self, mut member: Member) {
        // A member that ends the walk by being contradictory is never ended.
        self.close(true);
        if !self.room.take(&member) {
            return;
        }
        paths::examine(&mut member);
        let mut through = false;
        let links = &self.links;
        let hash = self.hasher.each(&member.path, |ancestor| {
            through |= links.has(ancestor);
        });
        member.anomalies.add_if(through, Anomaly::ThroughLink);
        // The root itself is in every export once, as "./" or "/"; twice is twice.
        let twice = self.seen.insert(hash) == Some(false);
        member.anomalies.add_if(twice, Anomaly::DuplicatePath);
        if member.kind == FileType::Symlink {
            self.links.insert(hash);
        }
        let change = self
            .changes
            .as_mut()
            .and_then(|changes| changes.find(hash, &member.path));
        if let Some(image) = &mut self.image {
            image.begin(&member);
        }
        self.open = Some(Open {
            contents: Contents::begin(&mut member, self.holes, Sha256Hasher::new()),
            member,
            change,
            came: 0,
        });
    }

    fn map(&mut self, block: &[u8]) {
        let open = self.open.as_mut();
        if let Some(contents) = open.and_then(|open| open.contents.as_mut()) {
            contents.map(block);
        }
    }

    fn contents(&mut self, bytes: &[u8]) {
        if let Some(open) = &mut self.open {
            open.came += bytes.len() as u64;
            if let Some(contents) = &mut open.contents {
                contents.update(bytes);
            }
            if let Some(image) = &mut self.image {
                image.contents(bytes);
            }
        }
    }

    fn end(&mut self) {
        self.close(false);
    }
}

impl Listing {
    /// Writes the lines of the member whose contents are over, or broke off.
    fn close(&mut self, broken: bool) {
        let Some(mut open) = self.open.take() else {
            return;
        };
        let contents = open.contents.filter(|_| !broken);
        let sha256 = match contents.map(|contents| contents.finish(&mut self.holes)) {
            Some(Ok(hasher)) => Some(hasher.finish()),
            Some(Err(anomaly)) => {
                open.member.anomalies.add(anomaly);
                None
            }
            None => None,
        };
        let member = &open.member;
        self.summary.list(member, open.came);
        let line = line::file(member, sha256, broken.then_some(open.came));
        self.lines.files.extend_from_slice(&line);
        self.lines.files.push(b'\n');
        if let Some(sha256) = &sha256 {
            sums::write(&mut self.lines.sha256, sha256.as_bytes(), member);
        }
        if let Some(change) = open.change {
            line::change(&mut self.lines.changes, change, &member.path, &line);
        }
        if let Some(image) = &mut self.image {
            image.end(member, sha256);
        }
    }
}

#[cfg(test)]
mod tests;
