//! A collection's custody log against its checkpoint and the manifest: all three are of one moment.

use std::io::{BufReader, Read};

use super::{Verdict, read};
use crate::custody::{
    CHECKPOINT_LIMIT, Checkpoint, CustodyLog, ENTRY_LIMIT, Entry, Event, LINE_LIMIT, origin,
};
use crate::manifest::Manifest;
use crate::names::EvidencePath;
use crate::sign::VerifyingKey;
use crate::source::EvidenceSource;
use crate::{CHECKPOINT, CUSTODY};

/// Most problems reported of single entries: a forged log could have a million.
const SHOWN: usize = 1000;

/// `signed`: whether the manifest is; the log is not read otherwise.
pub(super) fn check(
    source: &impl EvidenceSource,
    keys: &[VerifyingKey],
    manifest: &Manifest,
    signed: bool,
    verdict: &mut Verdict,
) {
    let origin = origin(&manifest.case);
    let checkpoint = read(source, CHECKPOINT, CHECKPOINT_LIMIT, verdict).and_then(|bytes| {
        Checkpoint::open(&bytes, keys)
            .map_err(|error| verdict.problem(CHECKPOINT, error.to_string()))
            .ok()
    });
    if !signed {
        return;
    }
    let mut stored = Stored::new(manifest);
    let Some(log) = read_log(source, origin, &mut stored, verdict) else {
        return;
    };
    verdict.custody = Some(log.head());
    let sealed = manifest.custody;
    if let Some(checkpoint) = checkpoint {
        if checkpoint.origin != log.origin() {
            let wrong = format!(
                "expected the checkpoint of {}, got that of {}",
                log.origin(),
                checkpoint.origin
            );
            verdict.problem(CHECKPOINT, wrong);
        } else if checkpoint.head != sealed {
            verdict.problem(
                CHECKPOINT,
                format!(
                    "covers {} entries with root {}, and the manifest was made over {} with root {}; another checkpoint was put in its place",
                    checkpoint.head.size, checkpoint.head.root, sealed.size, sealed.root
                ),
            );
        }
    }
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
        Some(_) if log.size() > sealed.size => verdict.problem(
            CUSTODY,
            format!(
                "the manifest was made over {} entries, and {} are there; entries were added",
                sealed.size,
                log.size()
            ),
        ),
        Some(_) => stored.report(verdict),
    }
}

/// The log; none after a problem.
fn read_log(
    source: &impl EvidenceSource,
    origin: String,
    stored: &mut Stored<'_>,
    verdict: &mut Verdict,
) -> Option<CustodyLog> {
    let opened = CUSTODY
        .parse()
        .map_err(std::io::Error::other)
        .and_then(|path: EvidencePath| source.open(&path));
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            verdict.problem(CUSTODY, "is not there");
            return None;
        }
        Err(error) => {
            verdict.problem(CUSTODY, format!("can't be read: {error}"));
            return None;
        }
    };
    verdict.files += 1;
    verdict.bytes += file.size;
    // A file that grows while it is read must not be read for ever.
    let limit = ENTRY_LIMIT.saturating_mul(LINE_LIMIT as u64);
    let lines = BufReader::with_capacity(LINE_LIMIT, file.reader.take(limit));
    match CustodyLog::read(origin, lines, |entry| stored.take(&entry)) {
        Ok(log) => Some(log),
        Err(error) => {
            verdict.problem(CUSTODY, error.to_string());
            None
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
        // A case's log tells of its other collections, too.
        if entry.event != Event::Stored
            || entry
                .collection
                .as_ref()
                .is_some_and(|of| *of != self.manifest.collection)
        {
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
