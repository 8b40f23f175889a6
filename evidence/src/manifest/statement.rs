//! The in-toto Statement around a manifest, and its one encoding.
//!
//! The encoding is JSON, indented by two spaces, fields in the order of the types, absent fields
//! left out, one newline at the end.

use std::borrow::Cow;
use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{ArtifactRecord, MANIFEST_LIMIT, Manifest};
use crate::digest::Sha256;
use crate::names::EvidencePath;

/// `_type` of an in-toto Statement v1.
pub const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";

/// `predicateType` of our manifest.
pub const PREDICATE_TYPE: &str = "https://impound.dev/evidence/v1";

/// Bytes that are no manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Too long to be read.
    #[error("expected a manifest of at most {MANIFEST_LIMIT} bytes, got {0}")]
    TooLong(u64),
    /// No JSON of the expected form; says line, column and what was expected.
    #[error("expected an in-toto Statement with an Impound manifest: {0}")]
    Form(String),
    /// Another kind of Statement.
    #[error("expected {field} {expected:?}, got {got:?}")]
    Type {
        /// The field.
        field: &'static str,
        /// Our type.
        expected: &'static str,
        /// What stands there.
        got: String,
    },
    /// Subjects and artifacts are two lists of the same files, and these differ.
    #[error(
        "subject {at} is {subject}, and artifact {at} is {artifact}; they must be the same files in the same order"
    )]
    Subject {
        /// Position in both lists, 0 the first.
        at: usize,
        /// What the subjects have there.
        subject: String,
        /// What the artifacts have there.
        artifact: String,
    },
    /// The artifacts are not in order.
    #[error(
        "artifact {at}, {path}, does not come after the one before it; artifacts are ordered by path and each stands once"
    )]
    Order {
        /// Position, 0 the first.
        at: usize,
        /// Its path.
        path: EvidencePath,
    },
    /// An artifact's stored form is not one that it can have.
    #[error(
        "artifact {at}, {path}, is said to be stored as {stored}, which must be its path and what its encodings put behind it, and no other artifact"
    )]
    Stored {
        /// Position, 0 the first.
        at: usize,
        /// Its path.
        path: EvidencePath,
        /// The file that is to hold it.
        stored: EvidencePath,
    },
    /// Readable, but not as we would write it: something was edited or re-formatted.
    #[error(
        "its bytes are not the canonical encoding of what they say; the first difference is at byte {0}"
    )]
    NotCanonical(usize),
}

impl Manifest {
    /// The bytes of `manifest.json`, which are also what is signed.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut sorted = Cow::Borrowed(self);
        if !self.artifacts.is_sorted_by(|a, b| a.path < b.path) {
            sorted
                .to_mut()
                .artifacts
                .sort_by(|a, b| a.path.cmp(&b.path));
        }
        let statement = Statement {
            kind: STATEMENT_TYPE.to_owned(),
            subject: sorted.artifacts.iter().map(Subject::of).collect(),
            predicate_type: PREDICATE_TYPE.to_owned(),
            predicate: sorted,
        };
        // Serialising to memory fails only for maps with keys that are no strings; there are none.
        let mut bytes = serde_json::to_vec_pretty(&statement).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }

    /// The manifest in `bytes`, if they are exactly what [`Manifest::encode`] writes.
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() as u64 > MANIFEST_LIMIT {
            return Err(ManifestError::TooLong(bytes.len() as u64));
        }
        let form = |error: serde_json::Error| ManifestError::Form(error.to_string());
        // The types first: another kind of Statement should be called that, not malformed.
        let types: Types = serde_json::from_slice(bytes).map_err(form)?;
        types.check()?;
        let statement: Statement<'_> = serde_json::from_slice(bytes).map_err(form)?;
        let manifest = statement.predicate.into_owned();
        same_files(&statement.subject, &manifest.artifacts)?;
        let pairs = manifest
            .artifacts
            .iter()
            .zip(manifest.artifacts.iter().skip(1));
        for (at, (before, record)) in pairs.enumerate() {
            if before.path >= record.path {
                return Err(ManifestError::Order {
                    at: at + 1,
                    path: record.path.clone(),
                });
            }
        }
        let mut files = BTreeSet::new();
        for (at, record) in manifest.artifacts.iter().enumerate() {
            if let Some(stored) = &record.stored
                && (!stored.is_of(&record.path)
                    || manifest.artifact(&stored.path).is_some()
                    || !files.insert(&stored.path))
            {
                return Err(ManifestError::Stored {
                    at,
                    path: record.path.clone(),
                    stored: stored.path.clone(),
                });
            }
        }
        let canonical = manifest.encode();
        if canonical != bytes {
            let same = canonical
                .iter()
                .zip(bytes)
                .take_while(|(a, b)| a == b)
                .count();
            return Err(ManifestError::NotCanonical(same));
        }
        Ok(manifest)
    }
}

#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Statement<'a> {
    #[serde(rename = "_type")]
    #[cfg_attr(test, schemars(extend("const" = STATEMENT_TYPE)))]
    kind: String,
    /// Every artifact, by its path below the collection.
    subject: Vec<Subject>,
    #[serde(rename = "predicateType")]
    #[cfg_attr(test, schemars(extend("const" = PREDICATE_TYPE)))]
    predicate_type: String,
    predicate: Cow<'a, Manifest>,
}

#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Subject {
    name: EvidencePath,
    digest: DigestSet,
}

#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct DigestSet {
    sha256: Sha256,
}

impl Subject {
    fn of(record: &ArtifactRecord) -> Self {
        Self {
            name: record.path.clone(),
            digest: DigestSet {
                sha256: record.sha256,
            },
        }
    }
}

/// Only the types of a Statement of any kind.
#[derive(Deserialize)]
struct Types {
    #[serde(rename = "_type")]
    kind: String,
    #[serde(rename = "predicateType")]
    predicate_type: String,
}

impl Types {
    fn check(&self) -> Result<(), ManifestError> {
        for (field, expected, got) in [
            ("_type", STATEMENT_TYPE, &self.kind),
            ("predicateType", PREDICATE_TYPE, &self.predicate_type),
        ] {
            if got != expected {
                return Err(ManifestError::Type {
                    field,
                    expected,
                    got: got.chars().take(200).collect(),
                });
            }
        }
        Ok(())
    }
}

fn same_files(subjects: &[Subject], artifacts: &[ArtifactRecord]) -> Result<(), ManifestError> {
    let shown = |subject: Option<&Subject>| match subject {
        Some(subject) => format!("{} with SHA-256 {}", subject.name, subject.digest.sha256),
        None => "not there".to_owned(),
    };
    for at in 0..subjects.len().max(artifacts.len()) {
        let subject = subjects.get(at);
        let artifact = artifacts.get(at).map(Subject::of);
        if subject != artifact.as_ref() {
            return Err(ManifestError::Subject {
                at,
                subject: shown(subject),
                artifact: shown(artifact.as_ref()),
            });
        }
    }
    Ok(())
}
