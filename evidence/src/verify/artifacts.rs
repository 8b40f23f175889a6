//! Every artifact against its record: there, of its size and SHA-256, and a tar to its end. Contents
//! are read only if the records are signed.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::{Files, Progress, Verdict};
use crate::age::{Identity, OpenError};
use crate::chunks::{Digests, DigestsHasher};
use crate::digest::{Sha256, Sha256Hasher};
use crate::manifest::{ArtifactRecord, Manifest};
use crate::source::{EvidenceSource, OpenFile};
use crate::stored::{START, StoredForm, check_start, decode};
use crate::tar::{Completeness, TarEnd};

/// One read. Larger ones gain nothing; smaller ones cost system calls.
const READ: usize = 1 << 20;

/// Most threads: past this the disk is the limit.
const THREADS: usize = 8;

/// `identities`: what opens encrypted artifacts; none if the manifest is not signed, so that no contents are read.
pub(super) fn check(
    source: &impl EvidenceSource,
    listing: &Files,
    manifest: &Manifest,
    identities: Option<&[Identity]>,
    watch: &(dyn Fn(Progress<'_>) + Sync),
    verdict: &mut Verdict,
) {
    // Largest first, or one large file would be left to a single thread at the end.
    let mut order: Vec<usize> = (0..manifest.artifacts.len()).collect();
    order.sort_by_key(|at| {
        std::cmp::Reverse(manifest.artifacts.get(*at).map(ArtifactRecord::stored_size))
    });
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    let work = || {
        let mut buffer = vec![0; READ];
        let mut mine = Vec::new();
        while let Some(at) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Some(record) = manifest.artifacts.get(*at) {
                let found = match open(source, listing, record) {
                    Ok(file) => match identities {
                        Some(identities) => contents(file, record, identities, &mut buffer, watch),
                        None => Found::default(),
                    },
                    Err(wrong) => Found::wrong(wrong),
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
        .any(|(_, found)| matches!(found.wrong, Some(Wrong::Changed(_))));
    let known: HashMap<_, _> = match changed {
        // The first of several with the same bytes.
        true => manifest.artifacts.iter().rev(),
        false => [].iter().rev(),
    }
    .map(|record| (record.stored_sha256(), &record.path))
    .collect();
    let given = identities.unwrap_or_default().iter();
    let given: Vec<_> = given.map(Identity::recipient).collect();
    let ours = manifest.encrypted_to.iter().find(|one| given.contains(one));
    for (at, mut found) in results {
        verdict.bytes += found.bytes;
        verdict.files +=
            u64::from(identities.is_some() && (found.bytes > 0 || found.wrong.is_none()));
        let Some(record) = manifest.artifacts.get(at) else {
            continue;
        };
        let open = identities.is_none_or(|given| !given.is_empty()) || !record.is_encrypted();
        verdict.closed += u64::from(!open || found.not_for_us);
        match ours {
            Some(reader) if found.not_for_us => {
                let wrong = format!("is not encrypted to {reader}, as the manifest says");
                found.wrong = Some(Wrong::Other(wrong));
            }
            _ => verdict.unopened += u64::from(found.not_for_us),
        }
        let Some(wrong) = found.wrong else {
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
                    record.stored_path().as_str(),
                    format!(
                        "expected SHA-256 {}, got {got}; {whose}",
                        record.stored_sha256()
                    ),
                );
            }
            Wrong::Other(message) => verdict.problem(record.stored_path().as_str(), message),
        }
    }
}

/// What one artifact's file was found to be.
#[derive(Default)]
struct Found {
    /// Read of it.
    bytes: u64,
    /// The first thing wrong with it.
    wrong: Option<Wrong>,
    /// Good, and of none of the identities.
    not_for_us: bool,
}

impl Found {
    fn wrong(wrong: Wrong) -> Self {
        Self {
            wrong: Some(wrong),
            ..Self::default()
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
    if listing.refuses(record.stored_path()) {
        return Err(Wrong::Refused);
    }
    let file = source.open(record.stored_path()).map_err(|error| {
        Wrong::Other(match error.kind() {
            ErrorKind::NotFound => "is in the manifest and not there".to_owned(),
            _ => format!("can't be opened: {error}"),
        })
    })?;
    match file.size == record.stored_size() {
        true => Ok(file),
        false => Err(Wrong::Other(format!(
            "expected {} bytes, got {}",
            record.stored_size(),
            file.size
        ))),
    }
}

/// What is in one artifact's file.
fn contents(
    file: OpenFile,
    record: &ArtifactRecord,
    identities: &[Identity],
    buffer: &mut [u8],
    watch: &(dyn Fn(Progress<'_>) + Sync),
) -> Found {
    let tar = record.completeness.is_complete() && record.path.as_str().ends_with(".tar");
    let mut tar = tar.then(TarEnd::new);
    let mut tap = Tap(Arc::new(Mutex::new((file.reader, DigestsHasher::new()))));
    let inside = match &record.stored {
        None => read_all(&mut tap, buffer, |part| {
            if let Some(tar) = &mut tar {
                tar.update(part);
            }
            watch(Progress::Bytes(part.len() as u64));
        }),
        Some(form) => {
            let opened = inside(
                &mut tap,
                (record, form),
                identities,
                &mut tar,
                buffer,
                watch,
            );
            // What is behind the end, or behind what is broken, belongs to the file as well.
            let rest = read_all(&mut tap, buffer, |part| {
                watch(Progress::Bytes(part.len() as u64));
            });
            rest.and(opened)
        }
    };
    let Digests {
        size,
        sha256,
        chunk_root,
    } = tap.digests();
    let found = |wrong| Found {
        bytes: size,
        wrong: Some(wrong),
        not_for_us: false,
    };
    let other = |wrong: String| found(Wrong::Other(wrong));
    // What can't be read is not called changed.
    if let Err(Inside::Unread(error)) = &inside {
        return other(format!("can't be read at byte {size}: {error}"));
    }
    if size != record.stored_size() {
        return other(format!(
            "expected {} bytes, got {size}",
            record.stored_size()
        ));
    }
    if sha256 != record.stored_sha256() {
        return found(Wrong::Changed(sha256));
    }
    if let Some(expected) = record.chunk_root.filter(|root| *root != chunk_root) {
        let wrong = format!("is recorded with the chunk tree {expected}, and has {chunk_root}");
        return other(wrong);
    }
    let good = |not_for_us| Found {
        bytes: size,
        wrong: None,
        not_for_us,
    };
    match (inside, tar.map(TarEnd::finish)) {
        (Ok(()), Some(Completeness::Incomplete { reasons })) => other(format!(
            "is recorded as complete and is not: {}",
            reasons.join("; ")
        )),
        (Ok(()) | Err(Inside::Closed), _) => good(false),
        (Err(Inside::NotForUs), _) => good(true),
        (Err(Inside::Other(wrong)), _) => other(wrong),
        (Err(Inside::Unread(error)), _) => other(format!("can't be read: {error}")),
    }
}

/// A file that is hashed as it is read, by whoever holds a clone.
#[derive(Clone)]
struct Tap(Arc<Mutex<(Box<dyn Read + Send>, DigestsHasher)>>);

impl Tap {
    /// Bytes read so far.
    fn size(&self) -> u64 {
        let tapped = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tapped.1.size()
    }

    fn digests(&self) -> Digests {
        let tapped = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tapped.1.clone().finish()
    }
}

impl Read for Tap {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut tapped = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let n = tapped.0.read(buffer)?;
        tapped.1.update(buffer.get(..n).unwrap_or_default());
        Ok(n)
    }
}

/// What is wrong with a file, or in it, or why nobody looked.
enum Inside {
    Unread(io::Error),
    Other(String),
    /// There is nothing to open it with.
    Closed,
    /// What there is does not open it.
    NotForUs,
}

/// Looks at how an encoded file begins, and compares what is in it with its record, if there is something to open it
/// with.
fn inside(
    tap: &mut Tap,
    (record, form): (&ArtifactRecord, &StoredForm),
    identities: &[Identity],
    tar: &mut Option<TarEnd>,
    buffer: &mut [u8],
    watch: &(dyn Fn(Progress<'_>) + Sync),
) -> Result<(), Inside> {
    let wrong = |error: &dyn std::fmt::Display| Inside::Other(error.to_string());
    let mut start = Vec::new();
    let read = tap.by_ref().take(START).read_to_end(&mut start);
    read.map_err(Inside::Unread)?;
    let mut told = tap.size();
    watch(Progress::Bytes(told));
    check_start(&start, form).map_err(|error| wrong(&error))?;
    let stored = io::Cursor::new(start).chain(tap.clone());
    let mut reader = decode(Box::new(stored), record, identities).map_err(|error| match error {
        OpenError::Closed => Inside::Closed,
        OpenError::NotForUs => Inside::NotForUs,
        OpenError::Io(error) => wrong(&error),
    })?;
    let mut hasher = Sha256Hasher::new();
    let read = read_all(&mut reader, buffer, |part| {
        hasher.update(part);
        if let Some(tar) = tar {
            tar.update(part);
        }
        let read = tap.size();
        watch(Progress::Bytes(read - told));
        told = read;
    });
    if let Err(Inside::Unread(error)) = read {
        return Err(wrong(&error));
    }
    let got = hasher.finish();
    match got == record.sha256 {
        true => Ok(()),
        false => Err(Inside::Other(format!(
            "holds something else: expected SHA-256 {} of what is in it, got {got}",
            record.sha256
        ))),
    }
}

fn read_all(
    reader: &mut dyn Read,
    buffer: &mut [u8],
    mut take: impl FnMut(&[u8]),
) -> Result<(), Inside> {
    loop {
        match reader.read(buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => take(buffer.get(..n).unwrap_or_default()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(Inside::Unread(error)),
        }
    }
}
