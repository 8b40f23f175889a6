//! `signatures/<key id>.sigstore.json`: people who vouch for the manifest besides the controller, each
//! with a bundle of the same form over the same bytes.
//!
//! They come after the seal, so the manifest can't name them. A good one by a given key counts; one by
//! a key that was not given proves nothing and breaks nothing; any other file there is a problem.

use super::{Files, Verdict, read};
use crate::bundle::{BUNDLE_LIMIT, OpenBundle};
use crate::digest::Sha256;
use crate::names::EvidencePath;
use crate::sign::VerifyingKey;
use crate::source::EvidenceSource;
use crate::{BUNDLE, SIGNATURES};

/// Most that are looked at: each holds the manifest once more.
const MOST: usize = 64;

/// Whether a counter-signature can have this path.
pub(super) fn is_one(path: &EvidencePath) -> bool {
    key_id(path).is_some()
}

/// The key that a counter-signature at `path` is named after.
fn key_id(path: &EvidencePath) -> Option<Sha256> {
    let name = path
        .as_str()
        .strip_prefix(SIGNATURES)?
        .strip_prefix('/')?
        .strip_suffix(".sigstore.json")?;
    name.parse().ok()
}

pub(super) fn check(
    source: &impl EvidenceSource,
    listing: &Files,
    keys: &[VerifyingKey],
    verdict: &mut Verdict,
) {
    let there = listing
        .files
        .iter()
        .filter_map(|path| Some((path, key_id(path)?)));
    for (n, (path, id)) in there.enumerate() {
        if n == MOST {
            verdict.problem(
                SIGNATURES,
                format!("expected at most {MOST} counter-signatures, got more"),
            );
            return;
        }
        let Some(bytes) = read(source, path.as_str(), BUNDLE_LIMIT, verdict) else {
            continue;
        };
        let bundle = match OpenBundle::decode(&bytes) {
            Ok(bundle) => bundle,
            Err(error) => {
                verdict.problem(path.as_str(), error.to_string());
                continue;
            }
        };
        if bundle.hint() != id.to_string() {
            verdict.problem(
                path.as_str(),
                format!(
                    "is named after key {id} and says it is signed with {}",
                    bundle.hint()
                ),
            );
        } else if verdict.manifest_sha256 != Some(Sha256::of(&bundle.payload)) {
            verdict.problem(
                path.as_str(),
                format!("vouches for another manifest than the one that {BUNDLE} signs"),
            );
        } else if !keys.iter().any(|key| key.key_id() == id) {
            verdict.unchecked.push(id.to_string());
        } else if let Err(error) = bundle.verify(keys) {
            verdict.problem(path.as_str(), error.to_string());
        } else {
            verdict.countersigned.push(id);
        }
    }
}
