//! A container's diff, joined with its file system as that passes.
//!
//! The diff was read before the export: what it calls added may be gone by then, and what the
//! suspect did in between is in the tar and not in the diff.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use serde::Deserialize;

use super::line::json;
use super::paths::PathHasher;
use super::tables::AsItIs;

/// Most changes that are joined: 17 bytes each in a table that then has 2^19 places, 9 MiB. Later
/// ones are listed without their file.
const JOINED: usize = 450_000;

/// Longest line of a diff that is read, in bytes: a path of 4096 bytes, six characters each, and
/// some more.
const LINE_LIMIT: usize = 32 << 10;

/// What happened to a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum ChangeKind {
    /// It was not in the image.
    #[serde(rename = "A")]
    Added,
    /// It is not as it was in the image; also a directory below which something changed.
    #[serde(rename = "C")]
    Changed,
    /// It is in the image and gone.
    #[serde(rename = "D")]
    Deleted,
}

/// One change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// What happened.
    pub kind: ChangeKind,
}

/// A container's diff: the hashes of its paths.
#[derive(Clone)]
pub struct Changes {
    hasher: PathHasher,
    known: HashMap<u64, Known, BuildHasherDefault<AsItIs>>,
    limit: usize,
    /// Whether members of the tar were left out.
    truncated: bool,
}

#[derive(Clone, Copy)]
struct Known {
    kind: ChangeKind,
    found: bool,
}

/// A line of `diff.jsonl`.
#[derive(Deserialize)]
struct DiffLine {
    kind: ChangeKind,
    path: String,
}

impl ChangeKind {
    /// As `docker diff` prints it.
    #[must_use]
    pub fn letter(self) -> &'static str {
        match self {
            Self::Added => "A",
            Self::Changed => "C",
            Self::Deleted => "D",
        }
    }
}

impl Default for Changes {
    fn default() -> Self {
        Self::new()
    }
}

impl Changes {
    /// No changes.
    #[must_use]
    pub fn new() -> Self {
        Self::with_limit(JOINED)
    }

    /// No changes, of which at most `limit` are to be joined.
    #[must_use]
    pub fn with_limit(limit: usize) -> Self {
        Self {
            hasher: PathHasher::new(),
            known: HashMap::default(),
            limit,
            truncated: false,
        }
    }

    /// Takes a line of `diff.jsonl` without its newline; one that is none is left out.
    pub fn add(&mut self, line: &[u8]) {
        if self.known.len() >= self.limit {
            return;
        }
        if let Some(DiffLine { kind, path }) = read(line) {
            let hash = self.hasher.hash(path.as_bytes());
            self.known.insert(hash, Known { kind, found: false });
        }
    }

    /// The line of `changes.jsonl`, with its newline, for a line of `diff.jsonl` whose path was not
    /// found in the tar: deleted, gone since, or beyond a limit.
    #[must_use]
    pub fn rest(&self, line: &[u8]) -> Option<Vec<u8>> {
        let DiffLine { kind, path } = read(line)?;
        let known = self.known.get(&self.hasher.hash(path.as_bytes()));
        if known.is_some_and(|known| known.found && known.kind == kind) {
            return None;
        }
        let mut text = format!("{{\"kind\":\"{}\",\"path\":", kind.letter()).into_bytes();
        text.extend_from_slice(&json(&path));
        let why = match (kind, known) {
            (ChangeKind::Deleted, _) => None,
            (_, Some(_)) if self.truncated => {
                Some("it is not among the members that are listed, and not all of the tar's are")
            }
            (_, Some(_)) => Some("it is not in the tar"),
            (_, None) => Some("it is one of more changes than are joined"),
        };
        if let Some(why) = why {
            text.extend_from_slice(b",\"no_file\":");
            text.extend_from_slice(&json(why));
        }
        text.extend_from_slice(b"}\n");
        Some(text)
    }

    /// Not every member was looked up: what was not found may be in the tar.
    pub(super) fn truncate(&mut self) {
        self.truncated = true;
    }

    pub(super) fn hasher(&self) -> PathHasher {
        self.hasher.clone()
    }

    /// What the diff says of a member with this path, whose hash is `hash`.
    pub(super) fn find(&mut self, hash: u64, path: &[u8]) -> Option<Change> {
        if self.known.is_empty() {
            return None;
        }
        // The engine's JSON has U+FFFD for each byte that is no UTF-8.
        let hash = match str::from_utf8(path) {
            Ok(_) => hash,
            Err(_) => self.hasher.hash(&replaced(path)),
        };
        let known = self.known.get_mut(&hash)?;
        // A file that was deleted and made again is in the tar, and the diff's word is kept.
        known.found = true;
        Some(Change { kind: known.kind })
    }
}

fn read(line: &[u8]) -> Option<DiffLine> {
    (line.len() <= LINE_LIMIT).then(|| serde_json::from_slice(line).ok())?
}

/// As Go's JSON encoder writes bytes that are no UTF-8: one U+FFFD for each.
fn replaced(path: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(path.len());
    for chunk in path.utf8_chunks() {
        text.extend_from_slice(chunk.valid().as_bytes());
        for _ in chunk.invalid() {
            text.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
    text
}
