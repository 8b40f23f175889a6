//! The one verify path: whether a collection is exactly what was signed, and whether it is complete.
//!
//! `impound verify` runs it on a copy, the controller on its store. It needs the collection and the
//! public key, no network and no trust in who stores the evidence. Files are streamed, two or more at
//! a time, each in 1 MiB reads.
//!
//! Nothing large is read on the word of a manifest that nobody vouches for: without a good signature
//! by a given key, files are only looked at for presence and size, and the custody log not at all.
//!
//! What it can't see: a collection that is missing altogether, a counter-signature that was taken away,
//! and whether the case's log, which goes on after the seal, was cut back: keep its newest checkpoint
//! elsewhere for that.

mod artifacts;
mod custody;
mod signatures;
mod stamp;

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::io::Read;
use std::sync::Arc;

use serde::Serialize;

use crate::age::Identity;
use crate::bundle::{BUNDLE_LIMIT, OpenBundle};
use crate::custody::LogHead;
use crate::digest::Sha256;
use crate::manifest::{MANIFEST_LIMIT, Manifest, Outcome};
use crate::names::EvidencePath;
use crate::sign::VerifyingKey;
use crate::source::{EvidenceSource, Listing};
use crate::stamp::{CheckpointStamp, StampAuthority};
use crate::{BUNDLE, CHECKPOINT, CHECKPOINT_STAMP, CUSTODY, MANIFEST};

pub use stamp::Stamped;

/// Checks a whole collection against `keys`.
#[must_use]
pub fn verify(source: &impl EvidenceSource, keys: &[VerifyingKey]) -> Verdict {
    verify_watched(source, keys, &Given::default(), &|_| ())
}

/// What whoever checks has besides the keys.
#[derive(Clone, Default)]
pub struct Given {
    /// The time-stamping authority that is trusted: what it says is checked.
    pub authority: Option<Arc<StampAuthority>>,
    /// What opens encrypted artifacts: then each must hold what the manifest says. Where there is nothing to open one
    /// with, only the stored bytes are checked, and [`Verdict::closed`] says of how many files.
    pub identities: Vec<Identity>,
}

/// Checks a whole collection and tells `watch` as it goes, from several threads.
#[must_use]
pub fn verify_watched(
    source: &impl EvidenceSource,
    keys: &[VerifyingKey],
    given: &Given,
    watch: &(dyn Fn(Progress<'_>) + Sync),
) -> Verdict {
    let mut verdict = Verdict::default();
    if keys.is_empty() {
        verdict.problem("", "no public key was given to check the signatures with");
    }
    let listing = match source.list() {
        Ok(listing) => Files::new(listing),
        Err(error) => {
            verdict.problem("", format!("the collection can't be listed: {error}"));
            return verdict;
        }
    };
    if let Some(manifest) = signed_manifest(source, keys, &mut verdict) {
        watch(Progress::Manifest(&manifest));
        let signed = verdict.key.is_some();
        let identities = given.identities.as_slice();
        artifacts::check(
            source,
            &listing,
            &manifest,
            signed.then_some(identities),
            watch,
            &mut verdict,
        );
        strangers(&listing, &manifest, &mut verdict);
        custody::check(source, keys, &manifest, signed, &mut verdict);
        stamp::check(
            source,
            given.authority.as_deref(),
            &manifest,
            signed,
            &mut verdict,
        );
        signatures::check(source, &listing, keys, &mut verdict);
        if !signed {
            verdict.problem(
                "",
                "nothing more was checked than which files are there and their sizes: the manifest is not signed by a given key",
            );
        }
        for (path, contradiction) in manifest.contradictions() {
            let path = path.map_or_else(|| MANIFEST.to_owned(), |path| path.to_string());
            verdict.problem(path, contradiction);
        }
        verdict.outcome = Some(manifest.outcome);
        verdict.manifest = Some(manifest);
    }
    verdict
}

/// What a check is at.
#[derive(Debug)]
pub enum Progress<'a> {
    /// The manifest was read: this much is to be checked.
    Manifest(&'a Manifest),
    /// So many more bytes of artifacts were read.
    Bytes(u64),
}

/// The result of a check.
#[derive(Debug, Default, Serialize)]
pub struct Verdict {
    /// Everything wrong, the most fundamental first.
    pub problems: Vec<Problem>,
    /// What is odd and breaks nothing: a person should look at it.
    pub warnings: Vec<Problem>,
    /// Encrypted files whose contents were not compared with the manifest, as nothing was given that opens them: only
    /// that they are the files that were signed.
    pub closed: u64,
    /// Those among them that none of the identities opens which were given, and to none of which the manifest says that
    /// the collection is encrypted: whoever asked for a check of the contents has not got it.
    pub unopened: u64,
    /// Files read.
    pub files: u64,
    /// Bytes read.
    pub bytes: u64,
    /// What the manifest says of itself. Only to be believed if intact.
    pub outcome: Option<Outcome>,
    /// SHA-256 of the signed manifest.
    pub manifest_sha256: Option<Sha256>,
    /// The key that signed; none if no given one did.
    pub key: Option<Sha256>,
    /// Keys of people who vouched for the manifest besides, of those given.
    pub countersigned: Vec<Sha256>,
    /// Keys that were not given and are said to have signed the manifest besides.
    pub unchecked: Vec<String>,
    /// The custody log's head, over all its entries.
    pub custody: Option<LogHead>,
    /// What a time-stamping authority says; none if none was asked, or if what is there is not good.
    pub timestamp: Option<Stamped>,
    /// The manifest. Only to be believed if intact.
    #[serde(skip)]
    pub manifest: Option<Manifest>,
}

/// One thing wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The file, or what stands where one should be; empty for the collection as a whole.
    pub path: String,
    /// What was expected and what came.
    pub message: String,
}

impl Verdict {
    /// Every file is what was signed, nothing is missing of it and nothing was added.
    #[must_use]
    pub fn intact(&self) -> bool {
        self.problems.is_empty() && self.manifest.is_some()
    }

    /// Intact, and everything that was asked for is there.
    #[must_use]
    pub fn complete(&self) -> bool {
        self.intact() && self.outcome == Some(Outcome::Complete)
    }

    fn problem(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.problems.push(Problem {
            path: path.into(),
            message: message.into(),
        });
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.as_str() {
            "" => f.write_str(&self.message),
            path => write!(f, "{path}: {}", self.message),
        }
    }
}

/// What is there, for quick look-up.
struct Files {
    files: BTreeSet<EvidencePath>,
    refused: Vec<(String, String)>,
    refused_names: HashSet<String>,
    empty: Vec<EvidencePath>,
}

impl Files {
    fn new(mut listing: Listing) -> Self {
        listing.refused.sort();
        listing.empty.sort();
        Self {
            files: listing.files.into_iter().collect(),
            refused_names: listing
                .refused
                .iter()
                .map(|(name, _)| name.clone())
                .collect(),
            refused: listing.refused,
            empty: listing.empty,
        }
    }

    /// Whether `path`, or a directory on the way to it, is something that can't be evidence. That is
    /// reported as such, not as a missing file besides.
    fn refuses(&self, path: &EvidencePath) -> bool {
        let path = path.as_str();
        path.match_indices('/')
            .filter_map(|(end, _)| path.get(..end))
            .chain([path])
            .any(|path| self.refused_names.contains(path))
    }
}

/// The manifest that the bundle signs; without a good bundle the one in `manifest.json`, so that the
/// rest can be looked at as well.
fn signed_manifest(
    source: &impl EvidenceSource,
    keys: &[VerifyingKey],
    verdict: &mut Verdict,
) -> Option<Manifest> {
    let bundle = read(source, BUNDLE, BUNDLE_LIMIT, verdict).and_then(|bytes| {
        OpenBundle::decode(&bytes)
            .map_err(|error| verdict.problem(BUNDLE, error.to_string()))
            .ok()
    });
    let signed = bundle.and_then(|bundle| match bundle.verify(keys) {
        Ok(key) => {
            verdict.key = Some(key.key_id());
            Some(bundle.payload)
        }
        Err(error) => {
            verdict.problem(BUNDLE, error.to_string());
            None
        }
    });
    let stored = read(source, MANIFEST, MANIFEST_LIMIT, verdict);
    if let (Some(signed), Some(stored)) = (&signed, &stored)
        && signed != stored
    {
        let same = signed
            .iter()
            .zip(stored)
            .take_while(|(a, b)| a == b)
            .count();
        verdict.problem(
            MANIFEST,
            format!("is not the manifest that was signed, from byte {same} on; what follows is checked against the signed one"),
        );
    }
    let bytes = signed.or(stored)?;
    match Manifest::decode(&bytes) {
        Ok(manifest) => {
            let signer = keys.iter().find(|key| verdict.key == Some(key.key_id()));
            if let Some(objection) = signer.and_then(|key| key.objection(manifest.created)) {
                verdict.warnings.push(Problem {
                    path: MANIFEST.to_owned(),
                    message: objection,
                });
            }
            verdict.manifest_sha256 = Some(Sha256::of(&bytes));
            Some(manifest)
        }
        Err(error) => {
            verdict.problem(MANIFEST, error.to_string());
            None
        }
    }
}

/// Whatever is there and not in the manifest.
fn strangers(listing: &Files, manifest: &Manifest, verdict: &mut Verdict) {
    for (path, wrong) in &listing.refused {
        verdict.problem(path.clone(), wrong.clone());
    }
    let stamped = matches!(manifest.timestamp, Some(CheckpointStamp::Token { .. }));
    for path in &listing.files {
        let ours = [MANIFEST, BUNDLE, CUSTODY, CHECKPOINT].contains(&path.as_str())
            || signatures::is_one(path)
            || (stamped && path.as_str() == CHECKPOINT_STAMP);
        if !ours && manifest.stored_artifact(path).is_none() {
            verdict.problem(path.as_str(), "is there and not in the manifest");
        }
    }
    for path in &listing.empty {
        // Where an artifact should be, that is missing, and said.
        let has_artifacts = manifest
            .artifacts
            .iter()
            .any(|record| record.path.is_below(path));
        if !has_artifacts {
            verdict.problem(path.as_str(), "is an empty directory, and no evidence");
        }
    }
}

/// A whole small file, or a problem.
fn read(
    source: &impl EvidenceSource,
    name: &str,
    limit: u64,
    verdict: &mut Verdict,
) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let result = name
        .parse()
        .map_err(std::io::Error::other)
        .and_then(|path| source.open(&path))
        .and_then(|file| file.reader.take(limit + 1).read_to_end(&mut bytes));
    match result {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            verdict.problem(name, "is not there");
            None
        }
        Err(error) => {
            verdict.problem(name, format!("can't be read: {error}"));
            None
        }
        Ok(size) if size as u64 > limit => {
            verdict.problem(name, format!("expected at most {limit} bytes, got more"));
            None
        }
        Ok(size) => {
            verdict.files += 1;
            verdict.bytes += size as u64;
            Some(bytes)
        }
    }
}

#[cfg(test)]
mod tests;
