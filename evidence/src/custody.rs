//! `custody.jsonl`: who did what to a case's evidence, when and why, as an append-only Merkle log.
//!
//! A case has one log, which goes on as long as anybody asks for, reads, holds or checks its evidence.
//! A collection holds the log's beginning as it was when its manifest was made, with a checkpoint of its
//! own: it is whole by itself and never changes, and the log that is presented later must be shown to
//! begin with exactly these entries ([`CustodyLog::check`], or a consistency proof).
//!
//! One JSON object a line. The leaves of the log are the exact bytes of the lines without their
//! newline, hashed as RFC 6962 says. `custody.checkpoint` signs the log's head, and the manifest
//! holds the head from when it was made, so cutting, changing or re-ordering lines shows.
//!
//! The writer appends a line, then replaces the checkpoint. After a crash between the two the
//! checkpoint covers a prefix: [`CustodyLog::read`] the lines, check the old checkpoint with
//! [`CustodyLog::check`], sign a new one.

mod checkpoint;

use std::io::BufRead;

use serde::{Deserialize, Serialize};

use crate::digest::Sha256;
use crate::manifest::ArtifactRecord;
use crate::merkle;
use crate::names::{CaseId, CollectionName, NameError};
use crate::sign::{KeyError, Signer};
use crate::timestamp::Timestamp;

pub use checkpoint::{CHECKPOINT_LIMIT, Checkpoint, CheckpointError};

/// Longest line, in bytes without its newline.
pub const LINE_LIMIT: usize = 1 << 20;

/// Most entries of one log.
pub const ENTRY_LIMIT: u64 = 1_000_000;

/// One line of the log.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Position in the log, 0 the first. [`CustodyLog::append`] sets it.
    pub seq: u64,
    /// When it was written. The controller's clock.
    pub time: Timestamp,
    /// What happened.
    pub event: Event,
    /// The collection that it happened to; none if it happened to the case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collection: Option<CollectionName>,
    /// Identity in the certificate of who did it.
    pub who: String,
    /// Whether `who` is only said: by a Kubernetes object, which anybody may have written who may
    /// write such objects, and not by a certificate that was shown to the controller.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub claimed: bool,
    /// SHA-256 of that certificate, DER: names can be given again. Of the controller's own entries there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_sha256: Option<Sha256>,
    /// What it happened to or with, for people.
    pub what: String,
    /// Why: the requester's reason, or what went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The agent's clock minus the controller's, milliseconds, if an agent took part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_offset_ms: Option<i64>,
    /// The artifact that was read or stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact: Option<ArtifactRecord>,
}

/// What happened to the evidence.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// Somebody asked for the collection.
    Requested,
    /// Their role allowed it.
    Authorised,
    /// The pod was contained.
    Contained,
    /// An artifact came whole from its source and is about to get its name in the store.
    Read,
    /// An artifact has its name in the store, and its bytes were re-read and fit.
    Stored,
    /// The collection was re-read and checked.
    Verified,
    /// The manifest was signed and stored.
    Sealed,
    /// Somebody looked at a file.
    Accessed,
    /// Somebody took a copy.
    Exported,
    /// The quarantine was undone.
    Released,
    /// Something failed; `why` says what.
    Failed,
    /// The store was told to keep something for as long as nobody lifts that, or that was lifted.
    Hold,
    /// A request was refused; `why` says why.
    Refused,
}

/// Head of a log: how many entries, and the Merkle root over them.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogHead {
    /// Entries.
    pub size: u64,
    /// RFC 6962 Merkle Tree Hash over them.
    pub root: Sha256,
}

/// A custody log in memory: 32 bytes an entry.
#[derive(Clone, Debug)]
pub struct CustodyLog {
    origin: String,
    leaves: Vec<Sha256>,
    /// Bytes of their lines, newlines included.
    bytes: u64,
    /// Over all leaves, so that the head costs little however long the log is.
    tree: merkle::Growing,
}

impl Entry {
    /// The same about a collection.
    #[must_use]
    pub fn of(mut self, collection: &CollectionName) -> Self {
        self.collection = Some(collection.clone());
        self
    }

    /// The same with a reason.
    #[must_use]
    pub fn because(mut self, why: impl Into<String>) -> Self {
        self.why = Some(why.into());
        self
    }

    /// The same by whoever has this certificate.
    #[must_use]
    pub fn with_certificate(mut self, sha256: Sha256) -> Self {
        self.certificate_sha256 = Some(sha256);
        self
    }

    /// An entry of now. `seq` comes with [`CustodyLog::append`].
    #[must_use]
    pub fn new(event: Event, who: impl Into<String>, what: impl Into<String>) -> Self {
        Self {
            seq: 0,
            time: Timestamp::now(),
            event,
            collection: None,
            who: who.into(),
            claimed: false,
            certificate_sha256: None,
            what: what.into(),
            why: None,
            clock_offset_ms: None,
            artifact: None,
        }
    }

    /// The entry in a line without its newline, if it is exactly what we would write.
    pub fn decode(line: &[u8]) -> Result<Self, EntryError> {
        let entry: Self =
            serde_json::from_slice(line).map_err(|error| EntryError::Form(error.to_string()))?;
        if entry.encode() != line {
            return Err(EntryError::NotCanonical);
        }
        Ok(entry)
    }

    /// The line, without its newline.
    fn encode(&self) -> Vec<u8> {
        // Serialising to memory fails only for maps with keys that are no strings; there are none.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// The origin of a case's log: `impound.dev/<case>`.
#[must_use]
pub fn origin(case: &CaseId) -> String {
    format!("impound.dev/{case}")
}

/// What stands where collections stand and holds the case's log: `<case>/custody/custody.jsonl`. No
/// collection may be called that.
pub fn case_log() -> Result<CollectionName, NameError> {
    "custody".parse()
}

impl CustodyLog {
    /// An empty log. `origin` as [`origin`] gives it.
    #[must_use]
    pub fn new(origin: impl Into<String>) -> Self {
        Self {
            origin: origin.into(),
            leaves: Vec::new(),
            bytes: 0,
            tree: merkle::Growing::default(),
        }
    }

    /// `line`: without its newline.
    fn push(&mut self, line: &[u8]) {
        let leaf = merkle::leaf(line);
        self.leaves.push(leaf);
        self.bytes += line.len() as u64 + 1;
        self.tree.push(leaf);
    }

    /// A log from its lines. Every entry is handed to `each` and not kept: the memory needed is one
    /// line and 32 bytes an entry.
    pub fn read(
        origin: impl Into<String>,
        lines: impl BufRead,
        each: impl FnMut(Entry),
    ) -> Result<Self, CustodyError> {
        let mut log = Self::new(origin);
        log.extend(lines, each)?;
        Ok(log)
    }

    /// Reads what comes behind the entries that are here already, as [`CustodyLog::read`].
    pub fn extend(
        &mut self,
        mut lines: impl BufRead,
        mut each: impl FnMut(Entry),
    ) -> Result<(), CustodyError> {
        let mut line = Vec::new();
        loop {
            line.clear();
            // One more than the limit and the newline, to tell a line that is too long.
            std::io::Read::take(&mut lines, LINE_LIMIT as u64 + 2).read_until(b'\n', &mut line)?;
            if line.is_empty() {
                return Ok(());
            }
            let number = self.size() + 1;
            let whole = line.pop_if(|last| *last == b'\n').is_some();
            if line.len() > LINE_LIMIT {
                return Err(CustodyError::LineTooLong { line: number });
            }
            if !whole {
                return Err(CustodyError::Torn { line: number });
            }
            if number > ENTRY_LIMIT {
                return Err(CustodyError::Full);
            }
            let entry = Entry::decode(&line).map_err(|error| CustodyError::Entry {
                line: number,
                error,
            })?;
            if entry.seq != self.size() {
                return Err(CustodyError::Sequence {
                    line: number,
                    expected: self.size(),
                    got: entry.seq,
                });
            }
            self.push(&line);
            each(entry);
        }
    }

    /// Adds an entry, giving it its `seq`. Returns the bytes to append to `custody.jsonl`, newline
    /// included.
    pub fn append(&mut self, entry: Entry) -> Result<Vec<u8>, CustodyError> {
        let line = self.lines([entry])?;
        self.push(line.strip_suffix(b"\n").unwrap_or(&line));
        Ok(line)
    }

    /// The lines that `entries` will be behind those that are here, each with its `seq`. They are not added:
    /// once they are stored, [`CustodyLog::extend`] does that.
    pub fn lines(&self, entries: impl IntoIterator<Item = Entry>) -> Result<Vec<u8>, CustodyError> {
        let mut lines = Vec::new();
        for (seq, mut entry) in (self.size()..).zip(entries) {
            if seq >= ENTRY_LIMIT {
                return Err(CustodyError::Full);
            }
            entry.seq = seq;
            let line = entry.encode();
            if line.len() > LINE_LIMIT {
                return Err(CustodyError::LineTooLong { line: seq + 1 });
            }
            lines.extend_from_slice(&line);
            lines.push(b'\n');
        }
        Ok(lines)
    }

    /// Number of entries.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.leaves.len() as u64
    }

    /// Bytes of all lines, newlines included.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The log's origin.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The head over all entries.
    #[must_use]
    pub fn head(&self) -> LogHead {
        LogHead {
            size: self.size(),
            root: self.tree.root(),
        }
    }

    /// The head when the log had `size` entries, `None` if it never had so many.
    #[must_use]
    pub fn head_at(&self, size: u64) -> Option<LogHead> {
        if size == self.size() {
            return Some(self.head());
        }
        let leaves = self.leaves.get(..usize::try_from(size).ok()?)?;
        Some(LogHead {
            size,
            root: merkle::root(leaves),
        })
    }

    /// The bytes of `custody.checkpoint` for all entries.
    pub fn checkpoint(&self, key: &dyn Signer) -> Result<Vec<u8>, KeyError> {
        self.checkpoint_of(self.head(), key)
    }

    /// As [`CustodyLog::checkpoint`], for a head that the log had earlier.
    pub fn checkpoint_of(&self, head: LogHead, key: &dyn Signer) -> Result<Vec<u8>, KeyError> {
        Checkpoint {
            origin: self.origin.clone(),
            head,
        }
        .sign(key)
    }

    /// Whether this log is the one that `checkpoint` is of, and has grown from it: what to ask
    /// before an earlier checkpoint is replaced.
    pub fn check(&self, checkpoint: &Checkpoint) -> Result<(), CustodyError> {
        if checkpoint.origin != self.origin {
            return Err(CustodyError::Origin {
                expected: self.origin.clone(),
                got: checkpoint.origin.clone(),
            });
        }
        match self.head_at(checkpoint.head.size) {
            None => Err(CustodyError::Cut {
                entries: self.size(),
                covered: checkpoint.head.size,
            }),
            Some(head) if head != checkpoint.head => Err(CustodyError::Root {
                size: head.size,
                expected: checkpoint.head.root,
                got: head.root,
            }),
            Some(_) => Ok(()),
        }
    }

    /// Hashes that prove, with [`verify_inclusion`], that entry `seq` is in the log of `size`
    /// entries. `None` if there is no such entry or size.
    #[must_use]
    pub fn inclusion_proof(&self, seq: u64, size: u64) -> Option<Vec<Sha256>> {
        let leaves = self.leaves.get(..usize::try_from(size).ok()?)?;
        let seq = usize::try_from(seq)
            .ok()
            .filter(|seq| *seq < leaves.len())?;
        Some(merkle::inclusion(seq, leaves))
    }

    /// Hashes that prove, with [`verify_consistency`], that the log of `size` entries begins with
    /// the log of `old` entries. `None` unless `0 < old <= size`.
    #[must_use]
    pub fn consistency_proof(&self, old: u64, size: u64) -> Option<Vec<Sha256>> {
        let leaves = self.leaves.get(..usize::try_from(size).ok()?)?;
        let old = usize::try_from(old)
            .ok()
            .filter(|old| (1..=leaves.len()).contains(old))?;
        Some(merkle::consistency(old, leaves))
    }
}

/// A line that is no entry.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// No JSON of the expected form.
    #[error("expected a custody entry: {0}")]
    Form(String),
    /// Readable, but not as we would write it.
    #[error("its bytes are not the canonical encoding of what they say; the line was edited")]
    NotCanonical,
}

/// A log that is none, or another one than expected. Lines are counted from 1.
#[derive(Debug, thiserror::Error)]
pub enum CustodyError {
    /// The lines can't be read.
    #[error("could not be read")]
    Io(#[from] std::io::Error),
    /// A line that is no entry.
    #[error("line {line}: {error}")]
    Entry {
        /// Its number.
        line: u64,
        /// What is wrong.
        error: EntryError,
    },
    /// An entry out of place.
    #[error(
        "line {line}: expected entry {expected}, got entry {got}; lines were removed, added or moved"
    )]
    Sequence {
        /// Its number.
        line: u64,
        /// The `seq` that belongs there.
        expected: u64,
        /// The `seq` that stands there.
        got: u64,
    },
    /// A line that breaks off.
    #[error("line {line}: the file ends without a newline; the last line is cut")]
    Torn {
        /// Its number.
        line: u64,
    },
    /// A line over the limit.
    #[error("line {line}: expected at most {LINE_LIMIT} bytes")]
    LineTooLong {
        /// Its number.
        line: u64,
    },
    /// Too many entries.
    #[error("expected at most {ENTRY_LIMIT} entries, got more")]
    Full,
    /// Another log's checkpoint.
    #[error("expected the checkpoint of {expected}, got that of {got}")]
    Origin {
        /// This log.
        expected: String,
        /// The checkpoint's.
        got: String,
    },
    /// Fewer entries than were signed.
    #[error(
        "the checkpoint covers {covered} entries, and only {entries} are there; the log was cut"
    )]
    Cut {
        /// Entries there.
        entries: u64,
        /// Entries signed.
        covered: u64,
    },
    /// Other entries than were signed.
    #[error(
        "expected the first {size} entries to have root {expected}, they have {got}; entries were changed"
    )]
    Root {
        /// Entries signed.
        size: u64,
        /// Their signed root.
        expected: Sha256,
        /// The root of those there.
        got: Sha256,
    },
}

#[cfg(test)]
mod tests;
