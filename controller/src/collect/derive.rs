//! Lists a tar while it arrives: what an analyst starts with, written beside the tar.
//!
//! ```text
//! receive loop -> queue -> thread: files, SHA-256 --> pieces -> a task -> the store's writers
//!              -> queue -> thread: files, MD5 -----/
//! ```
//! Two threads, as MD5 alone is slower than everything else. A live file system waits for nobody: its listings get
//! what nothing else wants of the processors. One that can't keep up stops where it is, and goes on from there with the
//! stored tar, beside the commits and images that follow, which leave time for it: see [`later`]. So each makes one
//! pass over the tar. Only after a crash or a failure of theirs is one begun again, see [`Session::derive_missing`].
//! No failure of a listing costs a tar.
//!
//! Memory: two queues of chunks, the index's tables, and for each file that is written a block
//! of the store's and the pieces on their way.

use impound_evidence::index::{Changes, Indexed};
use impound_evidence::{ArtifactRecord, EvidencePath, Method, Timestamp};

use super::CollectError;
use super::failure::Failure;
use super::note::Begun;
use super::session::Session;
use crate::store::StoreError;
pub(super) use later::{Arrivals, Stored, Tars, tars};
pub(super) use output::Output;
use spool::Spool;
pub(super) use threads::Tap;
use threads::{Lost, PIECE, Pace, Threads};

mod later;
mod lines;
mod output;
mod spool;
mod threads;

/// A file that is made of a tar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Files,
    Sha256,
    Md5,
    Body,
    Changes,
    Image,
    Index,
}

impl What {
    /// What is made of a tar that comes by this method. The index comes last: once it is kept, all were.
    pub(super) fn of(method: Method) -> &'static [Self] {
        match method {
            Method::Export | Method::Layer => &[
                Self::Files,
                Self::Sha256,
                Self::Md5,
                Self::Body,
                Self::Changes,
                Self::Index,
            ],
            Method::Commit => &[Self::Files, Self::Image, Self::Index],
            _ => &[],
        }
    }

    /// Behind the tar's name, and media type.
    fn name(self) -> (&'static str, &'static str) {
        match self {
            Self::Files => ("files.jsonl", "application/jsonl"),
            Self::Sha256 => ("hashes.sha256", "text/plain"),
            Self::Md5 => ("hashes.md5", "text/plain"),
            Self::Body => ("bodyfile", "text/plain"),
            Self::Changes => ("changes.jsonl", "application/jsonl"),
            Self::Image => ("image.json", "application/json"),
            Self::Index => ("index.json", "application/json"),
        }
    }
}

/// The files that are being made of one tar.
pub(super) struct Deriving {
    diff: Option<EvidencePath>,
    threads: Threads,
    spool: Spool,
}

impl Deriving {
    /// Whether the tar was faster than its listings.
    pub(super) fn is_behind(&self) -> bool {
        self.threads.are_behind()
    }
}

impl Session<'_> {
    /// What a tar is to have beside it: without a diff there are no changes to list.
    pub(super) fn listings(
        &self,
        tar: &EvidencePath,
        method: Method,
    ) -> Result<Vec<What>, CollectError> {
        let mut wanted = What::of(method).to_vec();
        if wanted.contains(&What::Changes) && self.diff_of(tar)?.is_none() {
            wanted.retain(|what| *what != What::Changes);
        }
        Ok(wanted)
    }

    /// Opens files for a tar that is `arriving` as `tar`, or is stored; none if none is `wanted`.
    pub(super) async fn begin_deriving(
        &self,
        tar: &EvidencePath,
        of: &Begun,
        wanted: &[What],
        arriving: bool,
    ) -> Result<Option<(Deriving, Tap)>, Failure> {
        if wanted.is_empty() {
            return Ok(None);
        }
        let diff = match wanted.contains(&What::Changes) {
            true => self.diff_of(tar)?,
            false => None,
        };
        let changes = match &diff {
            Some(diff) => Some(
                self.changes(diff)
                    .await
                    .map_err(|error| Failure::store(&error))?,
            ),
            None => None,
        };
        let mut files = Vec::new();
        for what in wanted {
            let begun = Begun {
                media_type: what.name().1.to_owned(),
                method: Method::Derived,
                api_call: String::new(),
                source_id: of.source_id.clone(),
                derived_from: sources(*what, tar, diff.as_ref()),
                consistency: of.consistency,
                clock_offset_ms: None,
                started: None,
                received_started: Timestamp::now(),
            };
            files.push((*what, self.listing(tar, *what)?, begun));
        }
        self.note(|note| {
            let begun = files
                .iter()
                .map(|(_, path, begun)| (path.clone(), begun.clone()));
            note.begun.extend(begun);
        })
        .await?;
        let mut outputs = Vec::new();
        for (what, path, begun) in files {
            match self.open_output(Some(what), path, begun).await {
                Ok(output) => outputs.push(output),
                Err(failure) => {
                    self.drop_outputs(outputs).await;
                    return Err(failure);
                }
            }
        }
        let body = wanted.contains(&What::Body) || wanted.contains(&What::Md5);
        let live = matches!(of.method, Method::Export | Method::Layer);
        let pace = match arriving {
            false => Pace::Stored,
            // From a store on the network it would come a second time.
            true if live && self.collector.store.is_local() => Pace::Hurried,
            true => Pace::InStep,
        };
        let (threads, tap, pieces) = threads::start(of.method, changes, body, pace);
        let deriving = Deriving {
            diff,
            threads,
            spool: Spool::start(outputs, pieces),
        };
        Ok(Some((deriving, tap)))
    }

    /// Finishes and stores the listings of a tar that is stored, whole.
    pub(super) async fn finish_deriving(
        &self,
        deriving: Deriving,
        tar: &EvidencePath,
    ) -> Result<(), Failure> {
        let outputs = self.last_lines(deriving, tar).await?;
        self.finish_outputs(outputs).await
    }

    /// Keeps the listings of a tar that was kept as `tar` though it is incomplete.
    pub(super) async fn keep_deriving(
        &self,
        deriving: Deriving,
        tar: &EvidencePath,
    ) -> Result<(), Failure> {
        let diff = deriving.diff.clone();
        let mut outputs = self.last_lines(deriving, tar).await?;
        for output in &mut outputs {
            if let Some(what) = output.what {
                output.begun.derived_from = sources(what, tar, diff.as_ref());
            }
        }
        let reason = format!("made from {tar}, which is incomplete");
        self.keep_outputs(outputs, &reason).await
    }

    /// Leaves nothing of the listings.
    pub(super) async fn drop_deriving(&self, deriving: Deriving) {
        let outputs = deriving.spool.stop().await;
        self.drop_outputs(outputs).await;
    }

    /// The files with what is only known at the end: the changes that the tar doesn't have, the verdict, the
    /// image. Leaves nothing of the listings if it fails.
    async fn last_lines(
        &self,
        deriving: Deriving,
        tar: &EvidencePath,
    ) -> Result<Vec<Output>, Failure> {
        let lost =
            |_: Lost| Failure::now("a thread that lists it ended early or stood still", true);
        let mut outputs = deriving.spool.end().await.map_err(lost)?;
        let written = match deriving.threads.end().await {
            Ok(indexed) => {
                let diff = deriving.diff.as_ref();
                self.write_last_lines(&mut outputs, indexed, diff, tar)
                    .await
            }
            Err(error) => Err(lost(error)),
        };
        match written {
            Ok(()) => Ok(outputs),
            Err(failure) => {
                self.drop_outputs(outputs).await;
                Err(failure)
            }
        }
    }

    async fn write_last_lines(
        &self,
        outputs: &mut [Output],
        indexed: Indexed,
        diff: Option<&EvidencePath>,
        tar: &EvidencePath,
    ) -> Result<(), Failure> {
        if let (Some(changes), Some(diff)) = (&indexed.changes, diff) {
            let mut rest = Vec::new();
            let failed = |error| Failure::store(&error);
            let mut lines = self.lines(diff).await.map_err(failed)?;
            while let Some(line) = lines.next().await.map_err(failed)? {
                rest.extend(changes.rest(&line).unwrap_or_default());
                if rest.len() >= PIECE {
                    spool::write(outputs, What::Changes, std::mem::take(&mut rest)).await;
                }
            }
            spool::write(outputs, What::Changes, rest).await;
        }
        let mut summary = indexed.summary;
        summary.of = tar.to_string();
        // A container can have more names than are listed: what lacks some must not be called complete.
        if let Some(reason) = summary.truncated() {
            let lists = outputs.iter_mut();
            for list in lists.filter(|output| output.what != Some(What::Index)) {
                list.truncated = Some(reason.clone());
            }
        }
        spool::write(outputs, What::Index, summary.encode()).await;
        if let Some(mut image) = indexed.image {
            image.of = tar.to_string();
            spool::write(outputs, What::Image, image.encode()).await;
        }
        Ok(())
    }

    /// Where a tar's listing goes.
    fn listing(&self, tar: &EvidencePath, what: What) -> Result<EvidencePath, CollectError> {
        self.path(&format!("{tar}.{}", what.name().0), "the name of a tar")
    }

    /// The list of changes that a tar should have beside it and can't get, as this run can't read the diff.
    pub(super) fn unjoined(
        &self,
        tar: &EvidencePath,
        method: Method,
    ) -> Result<Option<EvidencePath>, CollectError> {
        let diff = self.stored_diff(tar)?;
        if !What::of(method).contains(&What::Changes)
            || !diff.is_some_and(|diff| self.is_sealed_off(&diff))
        {
            return Ok(None);
        }
        let path = self.listing(tar, What::Changes)?;
        Ok(Some(path).filter(|path| self.stored(path).is_none()))
    }

    /// The diff that lies beside a tar, if it is stored and this run can read it.
    fn diff_of(&self, tar: &EvidencePath) -> Result<Option<EvidencePath>, CollectError> {
        let readable = self
            .stored_diff(tar)?
            .filter(|diff| !self.is_sealed_off(diff));
        Ok(readable.map(|diff| diff.path))
    }

    fn stored_diff(&self, tar: &EvidencePath) -> Result<Option<ArtifactRecord>, CollectError> {
        let Some((directory, _)) = tar.as_str().rsplit_once('/') else {
            return Ok(None);
        };
        let path = self.path(&format!("{directory}/diff.jsonl"), "the name of a diff")?;
        Ok(self.stored(&path))
    }

    async fn changes(&self, diff: &EvidencePath) -> Result<Changes, StoreError> {
        let mut changes = Changes::new();
        let mut lines = self.lines(diff).await?;
        while let Some(line) = lines.next().await? {
            changes.add(&line);
        }
        Ok(changes)
    }
}

/// What a listing is made from: whoever has these can make it again and compare.
fn sources(what: What, tar: &EvidencePath, diff: Option<&EvidencePath>) -> Vec<EvidencePath> {
    let diff = diff.filter(|_| what == What::Changes);
    [tar].into_iter().chain(diff).cloned().collect()
}
