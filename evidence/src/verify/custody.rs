//! The custody log against its checkpoint and the manifest.

use std::io::{BufReader, Read};
use std::time::Duration;

use super::{Verdict, read};
use crate::custody::{
    CHECKPOINT_LIMIT, Checkpoint, CustodyError, CustodyLog, ENTRY_LIMIT, Entry, Event, LINE_LIMIT,
    origin,
};
use crate::manifest::Manifest;
use crate::names::EvidencePath;
use crate::sign::VerifyingKey;
use crate::source::EvidenceSource;
use crate::{CHECKPOINT, CUSTODY};

/// Most problems reported of single entries: a forged log could have a million.
const SHOWN: usize = 1000;

/// How long a log is given that is ahead of its checkpoint, and how often. The controller appends,
/// also when somebody reads evidence, and signs right after: milliseconds, seconds on a busy disk.
const PAUSE: Duration = Duration::from_millis(100);
const READS: u32 = 20;

/// The log and its checkpoint are two files: while the log grows they are read until they fit.
/// `signed`: whether the manifest is; the log is not read otherwise.
pub(super) fn check(
    source: &impl EvidenceSource,
    keys: &[VerifyingKey],
    manifest: &Manifest,
    signed: bool,
    verdict: &mut Verdict,
) {
    let mut reads = 1;
    loop {
        let mut found = Verdict::default();
        let growing = once(source, keys, manifest, signed, &mut found);
        if !growing || reads == READS {
            verdict.files += found.files;
            verdict.bytes += found.bytes;
            verdict.problems.extend(found.problems);
            verdict.custody = found.custody;
            return;
        }
        reads += 1;
        source.pause(PAUSE);
    }
}

/// Reads both once. Whether the log looks like one that is being written to.
fn once(
    source: &impl EvidenceSource,
    keys: &[VerifyingKey],
    manifest: &Manifest,
    signed: bool,
    verdict: &mut Verdict,
) -> bool {
    let origin = origin(&manifest.case, &manifest.collection);
    let checkpoint = read(source, CHECKPOINT, CHECKPOINT_LIMIT, verdict).and_then(|bytes| {
        Checkpoint::open(&bytes, keys)
            .map_err(|error| verdict.problem(CHECKPOINT, error.to_string()))
            .ok()
    });
    if !signed {
        return false;
    }
    let mut stored = Stored::new(manifest);
    let log = match read_log(source, origin, &mut stored, verdict) {
        Ok(log) => log,
        Err(torn) => return torn,
    };
    let mut growing = false;
    verdict.custody = Some(log.head());
    if let Some(checkpoint) = &checkpoint {
        match log.check(checkpoint) {
            Err(error) => verdict.problem(CUSTODY, error.to_string()),
            Ok(()) if checkpoint.head.size < log.size() => {
                growing = true;
                verdict.problem(
                    CHECKPOINT,
                    format!(
                        "covers {} of {} entries; either entries were added without a signature or an older checkpoint was put back",
                        checkpoint.head.size,
                        log.size()
                    ),
                );
            }
            Ok(()) => {}
        }
    }
    let sealed = manifest.custody;
    match log.head_at(sealed.size) {
        None => verdict.problem(
            CUSTODY,
            format!(
                "the manifest was made over {} entries, and only {} are there; the log was cut",
                sealed.size,
                log.size()
            ),
        ),
        Some(head) if head != sealed => verdict.problem(
            CUSTODY,
            format!(
                "expected the first {} entries to have root {} as the manifest says, they have {}; entries were changed",
                sealed.size, sealed.root, head.root
            ),
        ),
        Some(_) => stored.report(verdict),
    }
    growing
}

/// The log; or, after a problem, whether only its last line is torn.
fn read_log(
    source: &impl EvidenceSource,
    origin: String,
    stored: &mut Stored<'_>,
    verdict: &mut Verdict,
) -> Result<CustodyLog, bool> {
    let opened = CUSTODY
        .parse()
        .map_err(std::io::Error::other)
        .and_then(|path: EvidencePath| source.open(&path));
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            verdict.problem(CUSTODY, "is not there");
            return Err(false);
        }
        Err(error) => {
            verdict.problem(CUSTODY, format!("can't be read: {error}"));
            return Err(false);
        }
    };
    verdict.files += 1;
    verdict.bytes += file.size;
    // A file that grows while it is read must not be read for ever.
    let limit = ENTRY_LIMIT.saturating_mul(LINE_LIMIT as u64);
    let lines = BufReader::with_capacity(LINE_LIMIT, file.reader.take(limit));
    match CustodyLog::read(origin, lines, |entry| stored.take(&entry)) {
        Ok(log) => Ok(log),
        Err(error) => {
            verdict.problem(CUSTODY, error.to_string());
            Err(matches!(error, CustodyError::Torn { .. }))
        }
    }
}

/// What the log says was stored, against the manifest.
struct Stored<'m> {
    manifest: &'m Manifest,
    /// One for each artifact of the manifest, in its order.
    seen: Vec<bool>,
    wrong: Vec<(String, String)>,
    /// Wrong ones past [`SHOWN`].
    more: u64,
}

impl<'m> Stored<'m> {
    fn new(manifest: &'m Manifest) -> Self {
        Self {
            manifest,
            seen: vec![false; manifest.artifacts.len()],
            wrong: Vec::new(),
            more: 0,
        }
    }

    fn take(&mut self, entry: &Entry) {
        if entry.event != Event::Stored {
            return;
        }
        let seq = entry.seq;
        let Some(record) = &entry.artifact else {
            self.wrong(
                CUSTODY,
                format!("entry {seq} says something was stored and not what"),
            );
            return;
        };
        let path = record.path.as_str();
        if seq >= self.manifest.custody.size {
            self.wrong(
                path,
                format!("entry {seq} of {CUSTODY} says it was stored after the manifest was made"),
            );
            return;
        }
        let at = self
            .manifest
            .artifacts
            .binary_search_by(|known| known.path.cmp(&record.path))
            .ok();
        match at.and_then(|at| self.manifest.artifacts.get(at)) {
            None => self.wrong(
                path,
                format!(
                    "entry {seq} of {CUSTODY} says it was stored, and the manifest does not know it"
                ),
            ),
            Some(known) if known != record => self.wrong(
                path,
                format!("entry {seq} of {CUSTODY} records it otherwise than the manifest"),
            ),
            Some(_) => {}
        }
        if let Some(seen) = at.and_then(|at| self.seen.get_mut(at)) {
            *seen = true;
        }
    }

    fn wrong(&mut self, path: &str, message: String) {
        match self.wrong.len() < SHOWN {
            true => self.wrong.push((path.to_owned(), message)),
            false => self.more += 1,
        }
    }

    /// Only for a log that is the one of the manifest: of another one everything would be wrong.
    fn report(mut self, verdict: &mut Verdict) {
        let unseen: Vec<_> = self
            .manifest
            .artifacts
            .iter()
            .zip(&self.seen)
            .filter(|(_, seen)| !**seen)
            .map(|(record, _)| record.path.to_string())
            .collect();
        for path in unseen {
            self.wrong(&path, format!("no entry of {CUSTODY} says it was stored"));
        }
        for (path, message) in self.wrong {
            verdict.problem(path, message);
        }
        if self.more > 0 {
            verdict.problem(CUSTODY, format!("{} more entries are wrong", self.more));
        }
    }
}
