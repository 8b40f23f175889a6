//! Every artifact against its record: there, of its size and SHA-256, and a tar to its end. Contents
//! are read only if the records are signed.

use std::collections::HashMap;
use std::io::{ErrorKind, Read};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Files, Progress, Verdict};
use crate::chunks::{Digests, DigestsHasher};
use crate::digest::Sha256;
use crate::manifest::{ArtifactRecord, Manifest};
use crate::source::{EvidenceSource, OpenFile};
use crate::tar::{Completeness, TarEnd};

/// One read. Larger ones gain nothing; smaller ones cost system calls.
const READ: usize = 1 << 20;

/// Most threads: past this the disk is the limit.
const THREADS: usize = 8;

pub(super) fn check(
    source: &impl EvidenceSource,
    listing: &Files,
    manifest: &Manifest,
    signed: bool,
    watch: &(dyn Fn(Progress<'_>) + Sync),
    verdict: &mut Verdict,
) {
    // Largest first, or one large file would be left to a single thread at the end.
    let mut order: Vec<usize> = (0..manifest.artifacts.len()).collect();
    order
        .sort_by_key(|at| std::cmp::Reverse(manifest.artifacts.get(*at).map(|record| record.size)));
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    let work = || {
        let mut buffer = vec![0; READ];
        let mut mine = Vec::new();
        while let Some(at) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Some(record) = manifest.artifacts.get(*at) {
                let found = match open(source, listing, record) {
                    Ok(file) if signed => contents(file, record, &mut buffer, watch),
                    Ok(_) => (0, None),
                    Err(wrong) => (0, Some(wrong)),
                };
                mine.push((*at, found));
            }
        }
        if let Ok(mut results) = results.lock() {
            results.extend(mine);
        }
    };
    let threads = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(THREADS);
    std::thread::scope(|scope| {
        for _ in 1..threads.min(order.len()) {
            scope.spawn(work);
        }
        work();
    });

    let mut results = results.into_inner().unwrap_or_default();
    if results.len() != manifest.artifacts.len() {
        verdict.problem("", "a thread of the check failed; check again");
    }
    results.sort_by_key(|(at, _)| *at);
    let changed = results
        .iter()
        .any(|(_, (_, wrong))| matches!(wrong, Some(Wrong::Changed(_))));
    let known: HashMap<_, _> = match changed {
        // The first of several with the same bytes.
        true => manifest.artifacts.iter().rev(),
        false => [].iter().rev(),
    }
    .map(|record| (record.sha256, &record.path))
    .collect();
    for (at, (bytes, wrong)) in results {
        verdict.bytes += bytes;
        verdict.files += u64::from(signed && (bytes > 0 || wrong.is_none()));
        let Some((wrong, record)) = wrong.zip(manifest.artifacts.get(at)) else {
            continue;
        };
        match wrong {
            Wrong::Refused => {}
            Wrong::Changed(got) => {
                let whose = known.get(&got).map_or_else(
                    || "it was changed".to_owned(),
                    |path| format!("these are the bytes of {path}"),
                );
                verdict.problem(
                    record.path.as_str(),
                    format!("expected SHA-256 {}, got {got}; {whose}", record.sha256),
                );
            }
            Wrong::Other(message) => verdict.problem(record.path.as_str(), message),
        }
    }
}

enum Wrong {
    /// Something that can't be evidence stands there; reported as that.
    Refused,
    /// Of the right size, with this SHA-256.
    Changed(Sha256),
    Other(String),
}

/// The artifact, if it is there and of its size.
fn open(
    source: &impl EvidenceSource,
    listing: &Files,
    record: &ArtifactRecord,
) -> Result<OpenFile, Wrong> {
    if listing.refuses(&record.path) {
        return Err(Wrong::Refused);
    }
    let file = source.open(&record.path).map_err(|error| {
        Wrong::Other(match error.kind() {
            ErrorKind::NotFound => "is in the manifest and not there".to_owned(),
            _ => format!("can't be opened: {error}"),
        })
    })?;
    match file.size == record.size {
        true => Ok(file),
        false => Err(Wrong::Other(format!(
            "expected {} bytes, got {}",
            record.size, file.size
        ))),
    }
}

/// Bytes read of one artifact, and the first thing wrong with them.
fn contents(
    mut file: OpenFile,
    record: &ArtifactRecord,
    buffer: &mut [u8],
    watch: &(dyn Fn(Progress<'_>) + Sync),
) -> (u64, Option<Wrong>) {
    let mut hasher = DigestsHasher::new();
    let complete = record.completeness.is_complete();
    let mut tar = (complete && record.path.as_str().ends_with(".tar")).then(TarEnd::new);
    let mut came = 0;
    loop {
        let part = match file.reader.read(buffer) {
            Ok(0) => break,
            Ok(n) => buffer.get(..n).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => {
                let wrong = format!("can't be read at byte {came}: {error}");
                return (came, Some(Wrong::Other(wrong)));
            }
        };
        came += part.len() as u64;
        hasher.update(part);
        if let Some(tar) = &mut tar {
            tar.update(part);
        }
        watch(Progress::Bytes(part.len() as u64));
    }
    let Digests {
        sha256, chunk_root, ..
    } = hasher.finish();
    if came != record.size {
        let wrong = format!("expected {} bytes, got {came}", record.size);
        return (came, Some(Wrong::Other(wrong)));
    }
    if sha256 != record.sha256 {
        return (came, Some(Wrong::Changed(sha256)));
    }
    if let Some(expected) = record.chunk_root.filter(|root| *root != chunk_root) {
        let wrong = format!("is recorded with the chunk tree {expected}, and has {chunk_root}");
        return (came, Some(Wrong::Other(wrong)));
    }
    match tar.map(TarEnd::finish) {
        Some(Completeness::Incomplete { reasons }) => {
            let wrong = format!("is recorded as complete and is not: {}", reasons.join("; "));
            (came, Some(Wrong::Other(wrong)))
        }
        _ => (came, None),
    }
}
