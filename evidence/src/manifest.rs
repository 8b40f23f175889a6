//! `manifest.json`: an in-toto Statement that names every artifact of a collection by its SHA-256
//! and says what a sceptic asks: who, why, what, where from, when, by which call, how complete, what
//! was changed on the node, what is missing.
//!
//! The controller encodes it once a collection is stored, signs exactly those bytes and writes them
//! last. There is one encoding: [`Manifest::decode`] refuses bytes that it would not write itself.

mod record;
pub(crate) mod statement;

use serde::{Deserialize, Serialize};

use crate::age::Recipient;
use crate::custody::LogHead;
use crate::digest::Sha256;
use crate::names::{CaseId, CollectionName, EvidencePath};
use crate::stamp::CheckpointStamp;
use crate::stored::{plain_paths, without_suffixes};
use crate::tar::Completeness;
use crate::timestamp::Timestamp;

pub use record::{
    Agent, Alteration, AlterationKind, ArtifactRecord, Build, Consistency, Container,
    ContainerRole, LockMode, Method, Node, Omission, Pod, StorageClaim, StorageLock,
    StorageReceipt, WriteOnce,
};
pub use statement::{ManifestError, PREDICATE_TYPE, STATEMENT_TYPE};

/// Longest manifest that is read, in bytes: about 50 000 artifacts.
pub const MANIFEST_LIMIT: u64 = 64 << 20;

/// What one collection is: the predicate of the Statement. Its subjects are `artifacts`.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The case that the evidence belongs to.
    pub case: CaseId,
    /// The collection's name, unique within the case.
    pub collection: CollectionName,
    /// Whether all that was asked for is here.
    pub outcome: Outcome,
    /// Identity in the requester's certificate, e.g. `spiffe://impound.dev/responder/responder/ada`.
    pub requested_by: String,
    /// Whether that is only claimed, by a Kubernetes object, as of [`crate::Entry::claimed`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub claimed: bool,
    /// SHA-256 of that certificate, DER; none if the requester is only claimed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requester_certificate_sha256: Option<Sha256>,
    /// The requester's reason, word for word.
    pub reason: String,
    /// When this manifest was made. The controller's clock, as everywhere without another note.
    pub created: Timestamp,
    /// The controller that collected.
    pub controller: Build,
    /// What names the cluster: the uid of its `kube-system` namespace.
    pub cluster: String,
    /// The node that the evidence was read off.
    pub node: Node,
    /// The suspect pod.
    pub pod: Pod,
    /// `<namespace>/<name>` of the Quarantine that asked for the collection, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantine: Option<String>,
    /// The agents that read, one for each connection whose identity or clock differed.
    pub agents: Vec<Agent>,
    /// The containers that were looked at, the suspect's and its neighbours'.
    pub containers: Vec<Container>,
    /// Every stored file but the manifest, its bundle and the custody log; ordered by path, which
    /// [`Manifest::encode`] sees to.
    pub artifacts: Vec<ArtifactRecord>,
    /// What was asked for and is not here at all.
    pub missing: Vec<Missing>,
    /// What collecting changed on the node.
    pub alterations: Vec<Alteration>,
    /// What this way of collecting can't see, see [`OMISSIONS`], and each mount of the suspect's containers with
    /// its place and kind; of each artifact, see [`Omission`].
    pub omissions: Vec<String>,
    /// Whether the store was seen to keep what it has; none if the controller did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<StorageClaim>,
    /// The public keys that artifacts are encrypted to; each of their owners can read all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub encrypted_to: Vec<Recipient>,
    /// The custody log when this manifest was made: its first `size` entries have this root.
    pub custody: LogHead,
    /// Whether a time-stamping authority dated that head's checkpoint; none if none was to be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<CheckpointStamp>,
}

/// Whether all that was asked for is here.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Everything that was asked for is stored and complete. Broken attempts may lie beside it, see
    /// [`Manifest::superseded`].
    Complete,
    /// Something is missing or incomplete; the manifest names it.
    Partial,
}

/// Something that was asked for and is not here.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Missing {
    /// Where it would be.
    pub path: EvidencePath,
    /// Why it is not there, one sentence.
    pub reason: String,
}

/// What reading a container through its runtime leaves out, for [`Manifest::omissions`].
pub const OMISSIONS: &[&str] = &[
    "Memory, processes, open sockets and other state of running processes are not collected.",
    "Volumes, tmpfs mounts and /dev/shm are not part of a container's file system and not collected.",
    "Files that were deleted while a process still had them open are not collected.",
    "In exports and images the runtime cuts modification times to whole seconds, keeps of extended attributes only security.capability, and writes sparse files out in full.",
    "The runtime's diff names parent directories as changed and gives no times or contents.",
    "Integrity is proved from receipt by the controller on; a compromised node could have lied about what it read.",
];

impl Manifest {
    /// What in the manifest contradicts itself, one sentence each with the path it is about.
    #[must_use]
    pub fn contradictions(&self) -> Vec<(Option<EvidencePath>, String)> {
        let mut found = Vec::new();
        for record in &self.artifacts {
            if record.receipt.is_none() || record.chunk_root.is_none() {
                found.push((
                    Some(record.path.clone()),
                    "has no receipt of the store, so nobody says that it was re-read there"
                        .to_owned(),
                ));
            }
            let encrypted = match (self.encrypted_to.is_empty(), record.is_encrypted()) {
                (true, true) => Some("is encrypted, and the manifest names nobody who can read it"),
                (false, false) if !record.may_be_plain() => {
                    Some("is not encrypted, and yet the manifest says that the collection is")
                }
                _ => None,
            };
            if let Some(wrong) = encrypted {
                found.push((Some(record.path.clone()), wrong.to_owned()));
            }
            if let Completeness::Incomplete { reasons } = &record.completeness {
                if reasons.is_empty() {
                    found.push((
                        Some(record.path.clone()),
                        "is said to be incomplete and no reason is given".to_owned(),
                    ));
                }
                if self.outcome == Outcome::Complete && !self.superseded(record) {
                    found.push((
                        Some(record.path.clone()),
                        "is incomplete, and yet the manifest says the collection is complete"
                            .to_owned(),
                    ));
                }
            }
        }
        for missing in &self.missing {
            if self.outcome == Outcome::Complete {
                found.push((
                    Some(missing.path.clone()),
                    "is missing, and yet the manifest says the collection is complete".to_owned(),
                ));
            }
            if self.artifact(&missing.path).is_some() {
                found.push((
                    Some(missing.path.clone()),
                    "is said to be missing and is also an artifact".to_owned(),
                ));
            }
        }
        found
    }

    /// The record of the artifact at `path`. Only for a manifest in its order, as `decode` gives it.
    #[must_use]
    pub fn artifact(&self, path: &EvidencePath) -> Option<&ArtifactRecord> {
        let at = self
            .artifacts
            .binary_search_by(|record| record.path.cmp(path))
            .ok()?;
        self.artifacts.get(at)
    }

    /// The record of the artifact that the file at `path` holds, in whatever form. As [`Manifest::artifact`].
    #[must_use]
    pub fn stored_artifact(&self, path: &EvidencePath) -> Option<&ArtifactRecord> {
        let whole = self
            .artifact(path)
            .filter(|record| record.stored_path() == path);
        whole.or_else(|| {
            plain_paths(path).find_map(|plain| {
                self.artifact(&plain)
                    .filter(|record| record.stored_path() == path)
            })
        })
    }

    /// Whether `record` is a broken attempt at an artifact that is here complete: it takes nothing
    /// from the outcome. Only for a manifest in its order, as `decode` gives it.
    #[must_use]
    pub fn superseded(&self, record: &ArtifactRecord) -> bool {
        superseded(record, |path| self.artifact(path))
    }

    /// SHA-256 of the encoding: what names this manifest.
    #[must_use]
    pub fn sha256(&self) -> Sha256 {
        Sha256::of(&self.encode())
    }
}

/// As [`Manifest::superseded`], before there is a manifest: whether `record`, incomplete and kept as
/// `<path>.partial-<n>` with `n` from 1 on, stands beside a complete one that `find` has at `<path>`. Of one that was
/// cut off while it was encoded, that is the path without the encodings' suffixes.
pub fn superseded<'r>(
    record: &ArtifactRecord,
    find: impl Fn(&EvidencePath) -> Option<&'r ArtifactRecord>,
) -> bool {
    let whole = match record.path.as_str().rsplit_once(".partial-") {
        Some((path, n)) if is_count(n) => path,
        _ => return false,
    };
    let is_whole = |path: &str| {
        let path = path.parse().ok();
        path.and_then(|path| find(&path))
            .is_some_and(|whole| whole.completeness.is_complete())
    };
    !record.completeness.is_complete() && (is_whole(whole) || is_whole(without_suffixes(whole)))
}

/// Whether it is a number from 1 on, as the name of a broken attempt ends with it.
pub(crate) fn is_count(n: &str) -> bool {
    n.bytes().all(|digit| digit.is_ascii_digit()) && !n.is_empty() && !n.starts_with('0')
}

#[cfg(test)]
pub(crate) mod tests;
