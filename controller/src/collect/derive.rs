//! Lists a tar while it arrives: what an analyst starts with, written beside the tar.
//!
//! ```text
//! receive loop -> queue -> thread: files, SHA-256 --> pieces -> this task -> the store's writers
//!              -> queue -> thread: files, MD5 -----/
//! ```
//! Two threads, as MD5 alone is slower than everything else: an export waits for the slower one only
//! if that is slower than the runtime. Nothing is read a second time, except after a crash between a
//! tar and its listings: then the stored tar is, see [`Session::derive_missing`].
//!
//! Memory: two queues of chunks, the index's tables, and for each file that is written a block
//! of the store's and the pieces on their way.

use bytes::Bytes;
use futures::TryStreamExt as _;
use impound_evidence::index::{BodyIndex, Changes, FileIndex, Indexed, Kind, Limits};
use impound_evidence::{
    ArtifactRecord, Completeness, EvidencePath, Method, Sha256Hasher, Timestamp,
};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::CollectError;
use super::failure::{Failure, cut};
use super::note::Begun;
use super::receive::ReceiveError;
use super::session::Session;
use crate::describe::describe;
use crate::store::{Content, ObjectWriter, StoreError};

/// Chunks of half a MiB that wait for a thread: as many as wait for the disk, which are the same.
const QUEUE: usize = 16;
/// Bytes of lines from which on they are handed to the writer.
const PIECE: usize = 64 << 10;
/// Pieces on their way to the writers.
const PIECES: usize = 8;
/// Most bytes that a writer takes at once.
const WRITE: usize = 1 << 20;
/// Longest line of a diff: a path has at most 4096 bytes, six characters each.
const LINE: usize = 32 << 10;

/// A file that is made of a tar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Files,
    Sha256,
    Md5,
    Body,
    Changes,
    Index,
    Image,
}

impl What {
    fn of(method: Method) -> &'static [Self] {
        match method {
            Method::Export | Method::Layer => &[
                Self::Files,
                Self::Sha256,
                Self::Md5,
                Self::Body,
                Self::Changes,
                Self::Index,
            ],
            Method::Commit => &[Self::Files, Self::Index, Self::Image],
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
            Self::Index => ("index.json", "application/json"),
            Self::Image => ("image.json", "application/json"),
        }
    }
}

/// Where a tar's bytes go besides the store.
pub(super) struct Tap {
    queues: Vec<mpsc::Sender<Bytes>>,
    verdict: oneshot::Receiver<Completeness>,
}

impl Tap {
    /// Gives the next bytes to every thread; waits while one is behind.
    pub(super) async fn send(&self, chunk: &Bytes) -> Result<(), ReceiveError> {
        for queue in &self.queues {
            let sent = queue.send(chunk.clone()).await;
            sent.map_err(|_| ReceiveError::HasherLost)?;
        }
        Ok(())
    }

    /// Whether the tar is complete. Ends the threads' work.
    pub(super) async fn end(self) -> Result<Completeness, ReceiveError> {
        drop(self.queues);
        self.verdict.await.map_err(|_| ReceiveError::HasherLost)
    }
}

/// The files that are being made of one tar.
pub(super) struct Deriving {
    outputs: Vec<Output>,
    diff: Option<EvidencePath>,
    pieces: mpsc::Receiver<(What, Vec<u8>)>,
    index: JoinHandle<Indexed>,
}

/// One of them, on its way into the store.
pub(super) struct Output {
    /// None: what is made of more than one tar.
    what: Option<What>,
    begun: Begun,
    path: EvidencePath,
    writer: Box<dyn ObjectWriter>,
    hasher: Sha256Hasher,
    size: u64,
    failure: Option<StoreError>,
    /// Why it does not have everything that it should.
    truncated: Option<String>,
}

impl Output {
    /// Leaves nothing of it.
    pub(super) async fn abort(self) -> Result<(), StoreError> {
        self.writer.abort().await
    }

    pub(super) fn new(
        what: Option<What>,
        path: EvidencePath,
        begun: Begun,
        writer: Box<dyn ObjectWriter>,
    ) -> Self {
        Self {
            what,
            begun,
            path,
            writer,
            hasher: Sha256Hasher::new(),
            size: 0,
            failure: None,
            truncated: None,
        }
    }

    /// Does nothing after a failure, which `finish_outputs` reports.
    pub(super) async fn write(&mut self, bytes: Vec<u8>) {
        let mut bytes = Bytes::from(bytes);
        while !bytes.is_empty() && self.failure.is_none() {
            let piece = bytes.split_to(bytes.len().min(WRITE));
            self.hasher.update(&piece);
            self.size += piece.len() as u64;
            // The tar goes on: its listings can be made again, the tar can't.
            self.failure = self.writer.write(piece).await.err();
        }
    }
}

impl Deriving {
    /// Writes what the threads make until they end. Runs beside the receiving loop.
    pub(super) async fn spool(&mut self) {
        while let Some((what, bytes)) = self.pieces.recv().await {
            self.write(what, bytes).await;
        }
    }

    async fn write(&mut self, what: What, bytes: Vec<u8>) {
        let of = self
            .outputs
            .iter_mut()
            .find(|output| output.what == Some(what));
        if let Some(output) = of {
            output.write(bytes).await;
        }
    }
}

impl Session<'_> {
    /// Opens the files for a tar that is going to arrive, or is read again; none if it is no tar.
    pub(super) async fn begin_deriving(
        &self,
        tar: &EvidencePath,
        of: &Begun,
    ) -> Result<Option<(Deriving, Tap)>, Failure> {
        let mut wanted = Vec::new();
        for what in What::of(of.method) {
            let (name, media_type) = what.name();
            let path = self.path(&format!("{tar}.{name}"), "the name of a tar")?;
            let begun = Begun {
                media_type: media_type.to_owned(),
                method: Method::Derived,
                api_call: String::new(),
                source_id: of.source_id.clone(),
                derived_from: vec![tar.clone()],
                consistency: of.consistency,
                clock_offset_ms: None,
                started: None,
                received_started: Timestamp::now(),
            };
            wanted.push((*what, path, begun));
        }
        if wanted.is_empty() {
            return Ok(None);
        }
        self.note(|note| {
            for (_, path, begun) in &wanted {
                note.begun.insert(path.clone(), begun.clone());
            }
        })
        .await?;
        let mut outputs = Vec::new();
        for (what, path, begun) in wanted {
            match self.collector.store.writer(&self.lock, &path).await {
                Ok(writer) => outputs.push(Output::new(Some(what), path, begun, writer)),
                Err(error) => {
                    self.abort(outputs).await?;
                    return Err(match error.is_full() {
                        true => Failure::store(&error),
                        false => Failure::Fatal(self.store_error(error)),
                    });
                }
            }
        }
        let diff = match of.method {
            Method::Export | Method::Layer => self.diff_of(tar).await?,
            _ => None,
        };
        let (deriving, tap) = start(outputs, of.method, diff);
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

    /// Stores what was written, all of it or nothing.
    pub(super) async fn finish_outputs(&self, outputs: Vec<Output>) -> Result<(), Failure> {
        let mut objects = Vec::new();
        let mut failed = None;
        for mut output in outputs {
            failed = failed.or(output.failure.take());
            let content = Content {
                size: output.size,
                sha256: output.hasher.finish(),
            };
            let mut record = super::attempt::record(&output.path, &output.begun, content, None);
            if let Some(reason) = output.truncated {
                let reasons = vec![reason];
                record.completeness = Completeness::Incomplete { reasons };
            }
            objects.push((record, output.writer));
        }
        if let Some(error) = failed {
            for (_, writer) in objects {
                let aborted = writer.abort().await;
                aborted.map_err(|error| self.store_error(error))?;
            }
            return Err(Failure::store(&error));
        }
        self.finish_together(objects).await.map(drop)
    }

    /// Keeps the listings of a tar that was kept as `tar` though it is incomplete.
    pub(super) async fn keep_deriving(
        &self,
        deriving: Deriving,
        tar: &EvidencePath,
    ) -> Result<(), Failure> {
        let reason = format!("made from {tar}, which is incomplete");
        for mut output in self.last_lines(deriving, tar).await? {
            output.begun.derived_from = vec![tar.clone()];
            let mut left = output
                .writer
                .keep()
                .await
                .map_err(|error| self.store_error(error))?;
            let full = left.take_failure().is_some_and(|error| error.is_full());
            if full || output.failure.is_some() {
                let discarded = left.discard().await;
                discarded.map_err(|error| self.store_error(error))?;
            } else {
                self.keep(left, &output.begun, vec![reason.clone()], None)
                    .await?;
            }
        }
        Ok(())
    }

    /// Leaves nothing of the listings.
    pub(super) async fn drop_deriving(&self, mut deriving: Deriving) -> Result<(), CollectError> {
        deriving.pieces.close();
        self.abort(deriving.outputs).await
    }

    /// Makes the listings of stored tars that have none: a crash came between the two, or the store
    /// had no room. What can't be made is recorded as missing.
    pub(super) async fn derive_missing(&self) -> Result<(), CollectError> {
        let stored = self.all_stored();
        let find = |path: &EvidencePath| stored.iter().find(|record| record.path == *path);
        for tar in &stored {
            let listed = |record: &ArtifactRecord| record.derived_from.contains(&tar.path);
            let is_tar = !What::of(tar.method).is_empty();
            // The attempt that broke off has a whole one beside it.
            if !is_tar || stored.iter().any(listed) || impound_evidence::superseded(tar, find) {
                continue;
            }
            let name = tar.path.as_str();
            let intended = match tar.completeness.is_complete() {
                true => name,
                false => name.rsplit_once(".partial-").map_or(name, |(name, _)| name),
            };
            let intended = self.path(intended, "the name of a tar")?;
            let Err(failure) = self.derive_again(tar, &intended).await else {
                continue;
            };
            let (why, _) = failure.reason()?;
            self.record_failed(&format!("listing {}", tar.path), &why)
                .await?;
            let files = format!("{}.{}", tar.path, What::Files.name().0);
            let why = format!("the tar is stored, and could not be listed: {why}");
            self.miss(&self.path(&files, "the name of a tar")?, false, why);
        }
        Ok(())
    }

    async fn derive_again(
        &self,
        tar: &ArtifactRecord,
        intended: &EvidencePath,
    ) -> Result<(), Failure> {
        let begun = super::attempt::begun_of(tar);
        let Some((mut deriving, tap)) = self.begin_deriving(intended, &begun).await? else {
            return Ok(());
        };
        let read = async {
            let mut reader = self.collector.store.read(&self.at, &tar.path, 0).await?;
            while let Some(chunk) = reader.chunks.try_next().await? {
                tap.send(&chunk).await?;
            }
            tap.end().await
        };
        let (read, ()) = futures::join!(read, deriving.spool());
        match read {
            Ok(_) if tar.completeness.is_complete() => {
                self.finish_deriving(deriving, &tar.path).await
            }
            Ok(_) => self.keep_deriving(deriving, &tar.path).await,
            Err(error) => {
                self.drop_deriving(deriving).await?;
                Err(Failure::now(cut(describe(&error)), false))
            }
        }
    }

    /// What is only known at the end: the changes that the tar doesn't have, the verdict, the image.
    async fn last_lines(
        &self,
        mut deriving: Deriving,
        tar: &EvidencePath,
    ) -> Result<Vec<Output>, Failure> {
        // After a broken stream there may be some left.
        deriving.spool().await;
        let lost = || Failure::now("the thread that lists it ended unexpectedly", true);
        let indexed = (&mut deriving.index).await.map_err(|_| lost())?;
        if let (Some(changes), Some(diff)) = (&indexed.changes, deriving.diff.clone()) {
            let mut rest = Vec::new();
            let mut lines = self.lines(&diff).await?;
            while let Some(line) = lines
                .next()
                .await
                .map_err(|error| self.store_error(error))?
            {
                rest.extend(changes.rest(&line).unwrap_or_default());
                if rest.len() >= PIECE {
                    deriving
                        .write(What::Changes, std::mem::take(&mut rest))
                        .await;
                }
            }
            deriving.write(What::Changes, rest).await;
        }
        let mut summary = indexed.summary;
        summary.of = tar.to_string();
        // A container can have more names than are listed: what lacks some must not be called complete.
        if let Some(reason) = summary.truncated() {
            let lists = deriving.outputs.iter_mut();
            for list in lists.filter(|output| output.what != Some(What::Index)) {
                list.truncated = Some(reason.clone());
            }
        }
        deriving.write(What::Index, summary.encode()).await;
        if let Some(mut image) = indexed.image {
            image.of = tar.to_string();
            deriving.write(What::Image, image.encode()).await;
        }
        Ok(deriving.outputs)
    }

    /// The diff that lies beside a tar, and what it says.
    async fn diff_of(
        &self,
        tar: &EvidencePath,
    ) -> Result<Option<(EvidencePath, Changes)>, CollectError> {
        let Some((directory, _)) = tar.as_str().rsplit_once('/') else {
            return Ok(None);
        };
        let path = self.path(&format!("{directory}/diff.jsonl"), "the name of a diff")?;
        if self.stored(&path).is_none() {
            return Ok(None);
        }
        let mut changes = Changes::new();
        let mut lines = self.lines(&path).await?;
        while let Some(line) = lines
            .next()
            .await
            .map_err(|error| self.store_error(error))?
        {
            changes.add(&line);
        }
        Ok(Some((path, changes)))
    }

    /// The lines of a stored file of ours.
    pub(super) async fn lines(&self, path: &EvidencePath) -> Result<Lines, CollectError> {
        let reader = self.collector.store.read(&self.at, path, 0).await;
        let reader = reader.map_err(|error| self.store_error(error))?;
        Ok(Lines {
            chunks: reader.chunks,
            text: Vec::new(),
            at: 0,
        })
    }

    async fn abort(&self, outputs: Vec<Output>) -> Result<(), CollectError> {
        for output in outputs {
            let aborted = output.writer.abort().await;
            aborted.map_err(|error| self.store_error(error))?;
        }
        Ok(())
    }
}

/// A stored file, line by line; one that is too long is left out.
pub(super) struct Lines {
    chunks: futures::stream::BoxStream<'static, Result<Bytes, StoreError>>,
    text: Vec<u8>,
    at: usize,
}

impl Lines {
    /// The next line without its newline.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<u8>>, StoreError> {
        loop {
            let rest = self.text.get(self.at..).unwrap_or_default();
            if let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line = rest.get(..end).unwrap_or_default().to_vec();
                self.at += end + 1;
                if line.len() <= LINE_LIMIT {
                    return Ok(Some(line));
                }
                continue;
            }
            // Of a line that is too long, its end is waited for and its beginning not kept.
            let keep = rest.len().min(LINE_LIMIT + 1);
            let rest = rest.get(..keep).unwrap_or_default().to_vec();
            self.text = rest;
            self.at = 0;
            match self.chunks.try_next().await? {
                Some(chunk) => self.text.extend_from_slice(&chunk),
                None => return Ok(None),
            }
        }
    }
}

/// Longest line that is read: a path of 4096 bytes, six characters each, and its file's line.
const LINE_LIMIT: usize = 4 * LINE;

/// Starts the threads.
fn start(
    outputs: Vec<Output>,
    method: Method,
    diff: Option<(EvidencePath, Changes)>,
) -> (Deriving, Tap) {
    let (diff, changes) = diff.unzip();
    let (to_writers, pieces) = mpsc::channel(PIECES);
    let (to_files, chunks) = mpsc::channel(QUEUE);
    let (say, verdict) = oneshot::channel();
    let mut queues = vec![to_files];
    let kind = match method {
        Method::Export | Method::Layer => Kind::FileSystem(changes.unwrap_or_default()),
        Method::Commit => Kind::Image,
        _ => Kind::Other,
    };
    let to = to_writers.clone();
    let index = tokio::task::spawn_blocking(move || list(chunks, kind, &to, say));
    if matches!(method, Method::Export | Method::Layer) {
        let (to_body, chunks) = mpsc::channel(QUEUE);
        queues.push(to_body);
        tokio::task::spawn_blocking(move || body(chunks, &to_writers));
    }
    let deriving = Deriving {
        outputs,
        diff,
        pieces,
        index,
    };
    (deriving, Tap { queues, verdict })
}

type Pieces = mpsc::Sender<(What, Vec<u8>)>;

fn list(
    mut chunks: mpsc::Receiver<Bytes>,
    kind: Kind,
    to: &Pieces,
    say: oneshot::Sender<Completeness>,
) -> Indexed {
    let mut index = FileIndex::new(kind, Limits::default());
    while let Some(chunk) = chunks.blocking_recv() {
        index.update(&chunk);
        let lines = index.lines();
        hand_on(to, What::Files, &mut lines.files, PIECE);
        hand_on(to, What::Sha256, &mut lines.sha256, PIECE);
        hand_on(to, What::Changes, &mut lines.changes, PIECE);
    }
    let mut indexed = index.finish();
    hand_on(to, What::Files, &mut indexed.lines.files, 1);
    hand_on(to, What::Sha256, &mut indexed.lines.sha256, 1);
    hand_on(to, What::Changes, &mut indexed.lines.changes, 1);
    // Nobody listens any more after a stream that broke off.
    let _ = say.send(indexed.summary.completeness.clone());
    indexed
}

fn body(mut chunks: mpsc::Receiver<Bytes>, to: &Pieces) {
    let mut index = BodyIndex::new(Limits::default());
    while let Some(chunk) = chunks.blocking_recv() {
        index.update(&chunk);
        let lines = index.lines();
        hand_on(to, What::Body, &mut lines.body, PIECE);
        hand_on(to, What::Md5, &mut lines.md5, PIECE);
    }
    let mut lines = index.finish();
    hand_on(to, What::Body, &mut lines.body, 1);
    hand_on(to, What::Md5, &mut lines.md5, 1);
}

/// Lines from `enough` bytes on. Nobody takes them once the attempt was given up.
fn hand_on(to: &Pieces, what: What, lines: &mut Vec<u8>, enough: usize) {
    if lines.len() >= enough {
        let _ = to.blocking_send((what, std::mem::take(lines)));
    }
}
