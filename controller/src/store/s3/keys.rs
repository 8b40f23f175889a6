//! Which key what has.
//!
//! ```text
//! <prefix>/<case>/<collection>/<path>                       evidence
//! <prefix>/<case>/<collection>/custody/<offset>.jsonl       the custody log, in pieces
//! <prefix>/<case>/<collection>/custody.checkpoint
//! <prefix>/.impound/collections/<case>/<collection>/collection.json   that there is a collection
//! <prefix>/.impound/collections/<case>/<collection>/note.json         the collector's note
//! <prefix>/.impound/collections/<case>/<collection>/unfinished/<path> that <path> has no name yet
//! <prefix>/.impound/collections/<case>/<collection>/custody/<offset>-<end>.jsonl   some pieces of the log, joined
//! <prefix>/.impound/canary/<uuid>                           what was tried at start
//! ```
//! A case begins with no dot, so nothing of a case is below `.impound`.

use impound_evidence::{CHECKPOINT, CUSTODY, CaseId, EvidencePath};

use super::config::Place;
use crate::store::{CollectionId, StoreError};

const COLLECTIONS: &str = ".impound/collections";
const SEGMENTS: &str = "custody";
/// Digits of an offset: keys are ordered as their offsets are.
const DIGITS: usize = 12;
/// Longest key of the protocol, in bytes.
const LONGEST_KEY: usize = 1024;
/// As in the directory store, so that every collection can be copied into one.
const LONGEST_NAME: usize = 235;

pub(super) fn collection(place: &Place, at: &CollectionId) -> String {
    place.key(&format!("{at}/"))
}

pub(super) fn object(place: &Place, at: &CollectionId, path: &EvidencePath) -> String {
    place.key(&format!("{at}/{path}"))
}

pub(super) fn case(place: &Place, case: &CaseId) -> String {
    place.key(&format!("{COLLECTIONS}/{case}/"))
}

pub(super) fn marker(place: &Place, at: &CollectionId) -> String {
    place.key(&format!("{COLLECTIONS}/{at}/collection.json"))
}

pub(super) fn note(place: &Place, at: &CollectionId) -> String {
    place.key(&format!("{COLLECTIONS}/{at}/note.json"))
}

pub(super) fn records(place: &Place, at: &CollectionId) -> String {
    place.key(&format!("{COLLECTIONS}/{at}/unfinished/"))
}

pub(super) fn record(place: &Place, at: &CollectionId, path: &EvidencePath) -> String {
    format!("{}{path}", records(place, at))
}

/// The record of the object that has this key; nothing if it is none of a collection.
pub(super) fn record_of(place: &Place, key: &str) -> Option<String> {
    let below = key.strip_prefix(&place.key(""))?;
    let (case, rest) = below.split_once('/')?;
    let (collection, path) = rest.split_once('/')?;
    let at = CollectionId {
        case: case.parse().ok()?,
        name: collection.parse().ok()?,
    };
    Some(record(place, &at, &path.parse().ok()?))
}

pub(super) fn canary(place: &Place, attempt: &str) -> String {
    place.key(&format!(".impound/canary/{attempt}"))
}

/// What keys of the custody log's pieces begin with.
pub(super) fn segments(place: &Place, at: &CollectionId) -> String {
    place.key(&format!("{at}/{SEGMENTS}/"))
}

/// The piece of the custody log that begins at `offset`, in bytes.
pub(super) fn segment(place: &Place, at: &CollectionId, offset: u64) -> String {
    format!("{}{offset:0DIGITS$}.jsonl", segments(place, at))
}

/// Where a piece begins, from its name.
pub(super) fn segment_offset(name: &str) -> Option<u64> {
    number(name.strip_suffix(".jsonl")?)
}

/// What keys of copies of several pieces begin with.
pub(super) fn copies(place: &Place, at: &CollectionId) -> String {
    place.key(&format!("{COLLECTIONS}/{at}/{SEGMENTS}/"))
}

/// A copy of the pieces of the custody log from `offset` to `end`, in bytes.
pub(super) fn joined(place: &Place, at: &CollectionId, offset: u64, end: u64) -> String {
    let below = copies(place, at);
    format!("{below}{offset:0DIGITS$}-{end:0DIGITS$}.jsonl")
}

/// Where such a copy begins and ends, from its name.
pub(super) fn joined_range(name: &str) -> Option<(u64, u64)> {
    let (offset, end) = name.strip_suffix(".jsonl")?.split_once('-')?;
    Some((number(offset)?, number(end)?))
}

fn number(digits: &str) -> Option<u64> {
    let plain = digits.len() == DIGITS && digits.bytes().all(|c| c.is_ascii_digit());
    plain.then(|| digits.parse().ok())?
}

/// Whether a path is among those of the custody log's pieces.
pub(super) fn is_segment(path: &EvidencePath) -> bool {
    path.segments().next() == Some(SEGMENTS) && path.segments().count() > 1
}

/// How errors call an object.
pub(super) fn name(at: &CollectionId, path: &EvidencePath) -> String {
    format!("{at}/{path}")
}

/// Refuses names that belong to the store itself, or don't fit.
pub(super) fn writable(
    place: &Place,
    at: &CollectionId,
    path: &EvidencePath,
) -> Result<(), StoreError> {
    let reserved = |reason| {
        Err(StoreError::Reserved {
            at: name(at, path),
            reason,
        })
    };
    if path.segments().any(|segment| segment.starts_with(".tmp-")) {
        return reserved("names that begin with .tmp- are those of unfinished objects");
    }
    if path.as_str() == CUSTODY || path.as_str() == CHECKPOINT || is_segment(path) {
        return reserved("the custody log grows, it is not written as an object");
    }
    if path.file_name().len() > LONGEST_NAME {
        return reserved("a file name may have at most 235 characters");
    }
    if record(place, at, path).len() > LONGEST_KEY {
        return reserved("with its case and collection it is longer than a key may be");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuzz_key_a_name_in_the_bucket_is_one_that_we_would_give_or_none() {
        let place: Place = "s3://evidence/team-a".parse().unwrap();
        let at = CollectionId {
            case: "INC-7".parse().unwrap(),
            name: "web-5d4f".parse().unwrap(),
        };
        let own = format!("{at}/before/pod.json");
        let seeds = [
            place.key(&own),
            format!("{:0DIGITS$}.jsonl", 4096),
            format!("{:0DIGITS$}-{:0DIGITS$}.jsonl", 0, 4096),
        ];
        impound_fuzz::run("key", &seeds.map(String::into_bytes), |_, bytes| {
            let text = String::from_utf8_lossy(&bytes);
            if let Some(record) = record_of(&place, &text) {
                assert!(record.starts_with(&place.key(COLLECTIONS)), "{record}");
                assert!(!record.contains("/../"), "{record}");
            }
            if let Some(offset) = segment_offset(&text) {
                assert_eq!(
                    segment(&place, &at, offset),
                    format!("{}{text}", segments(&place, &at))
                );
            }
            if let Some((offset, end)) = joined_range(&text) {
                assert_eq!(
                    joined(&place, &at, offset, end),
                    format!("{}{text}", copies(&place, &at))
                );
            }
        });
    }
}
