//! Copies evidence out of the store: streamed, resumed, checked, never overwriting.
//!
//! A file is written as `.<name>.part` beside its place, hashed as it comes, flushed to disk and only
//! then given its name. An interrupted copy of a file whose digest the manifest has goes on at the bytes
//! that are there, which are hashed again first; others start anew, since nothing would tell what an
//! earlier run left from what the store has now. The custody log is the exception in everything: it has no digest in the manifest, and
//! the case's grows (by our own reads, too), so its checkpoint is read first, the log cut to what that
//! covers, and a copy that is there already must be its beginning.

pub(crate) mod opened;
mod place;

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use impound_evidence::{
    CHECKPOINT, CUSTODY, CaseId, CollectionName, EvidencePath, Sha256, Sha256Hasher,
};
use impound_proto::controller::v1 as wire;
use impound_proto::controller::v1::read_evidence_response::Message;
use serde::Serialize;

use crate::client::Client;
use crate::failure::Failure;
use place::{Place, Readers};

/// How often a transfer is tried again without a byte of progress.
const ATTEMPTS: u32 = 6;

/// Pause before it is tried again, doubled each time.
const PAUSE: Duration = Duration::from_millis(500);

/// One file to copy.
pub(crate) struct Wanted {
    pub(crate) path: EvidencePath,
    pub(crate) size: u64,
    /// From the manifest; none for the manifest itself, its bundle and the custody log.
    pub(crate) sha256: Option<Sha256>,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// Copied now.
    Copied,
    /// It was there already, with the same bytes.
    Kept,
    /// It was there already and has grown.
    Extended,
}

impl State {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Copied => "copied",
            Self::Kept => "kept",
            Self::Extended => "extended",
        }
    }
}

impl Wanted {
    /// From the controller's list, which is not trusted with paths.
    pub(crate) fn parse(file: &wire::EvidenceFile) -> Result<Self, Failure> {
        let wrong = |error: &dyn std::fmt::Display| {
            Failure::Failed(format!(
                "the controller lists a file that can't be: {error}"
            ))
        };
        Ok(Self {
            path: file.path.parse().map_err(|error| wrong(&error))?,
            size: file.size,
            sha256: match file.sha256.as_str() {
                "" => None,
                sha256 => Some(sha256.parse().map_err(|error| wrong(&error))?),
            },
        })
    }
}

/// Copies files of one collection to below one directory.
pub(crate) struct Download<'a> {
    client: &'a Client,
    case: &'a CaseId,
    collection: &'a CollectionName,
    root: &'a Path,
    /// The checkpoint, waiting for the log that it covers.
    checkpoint: Option<Place>,
}

/// Told how many bytes of a file are there.
type Progress<'p> = &'p mut dyn FnMut(u64) -> Result<(), Failure>;

impl<'a> Download<'a> {
    pub(crate) fn new(
        client: &'a Client,
        case: &'a CaseId,
        collection: &'a CollectionName,
        root: &'a Path,
    ) -> Self {
        Self {
            client,
            case,
            collection,
            root,
            checkpoint: None,
        }
    }

    /// Copies one file. What became of it, and its size.
    pub(crate) async fn file(
        &mut self,
        file: &Wanted,
        progress: Progress<'_>,
    ) -> Result<(State, u64), Failure> {
        let place = Place::prepare(self.root, &file.path, Readers::Umask)?;
        match file.path.as_str() {
            CHECKPOINT => {
                let mut part = place.part_afresh()?;
                let (_, size) = self.fill(file, &mut part, progress).await?;
                let state = match place.compare_with_part(&mut part)? {
                    place::Comparison::Absent => State::Copied,
                    place::Comparison::Same => State::Kept,
                    place::Comparison::Beginning | place::Comparison::Other => State::Extended,
                };
                self.checkpoint = Some(place);
                Ok((state, size))
            }
            CUSTODY => self.custody(file, &place, progress).await,
            _ => self.fixed(file, &place, progress).await,
        }
    }

    /// Gives the checkpoint its name, once the log is there.
    pub(crate) fn finish(mut self) -> Result<(), Failure> {
        match self.checkpoint.take() {
            Some(place) => place.replace(),
            None => Ok(()),
        }
    }

    /// A file that never changes.
    async fn fixed(
        &self,
        file: &Wanted,
        place: &Place,
        progress: Progress<'_>,
    ) -> Result<(State, u64), Failure> {
        let there = place.hash()?;
        if let (Some((got, size)), Some(expected)) = (there, file.sha256) {
            return match got == expected {
                true => {
                    progress(size)?;
                    Ok((State::Kept, size))
                }
                false => Err(place.differs(expected, got)),
            };
        }
        let mut part = match file.sha256 {
            Some(_) => place.part()?,
            None => place.part_afresh()?,
        };
        if part.metadata()?.len() > file.size {
            part.set_len(0)?;
        }
        let resumed = part.metadata()?.len() > 0;
        let (mut got, mut size) = self.fill(file, &mut part, progress).await?;
        if resumed && file.sha256.is_some_and(|expected| got != expected) {
            // What an earlier run left may be damaged; what comes in one piece can't be blamed on it.
            part.set_len(0)?;
            (got, size) = self.fill(file, &mut part, progress).await?;
        }
        if let Some(expected) = file.sha256
            && got != expected
        {
            place.discard()?;
            return Err(Failure::Failed(format!(
                "{}: expected SHA-256 {expected}, got {got}; the file in the store was changed. Nothing was kept; `evidence verify {} {}` checks the whole collection",
                file.path, self.case, self.collection
            )));
        }
        if let Some((there, _)) = there {
            // The manifest or its bundle: no digest was known before.
            place.discard()?;
            return match there == got {
                true => Ok((State::Kept, size)),
                false => Err(place.differs(got, there)),
            };
        }
        part.sync_all()?;
        place.install()?;
        Ok((State::Copied, size))
    }

    /// The custody log: only what the checkpoint covers, and never less than is there already.
    async fn custody(
        &self,
        file: &Wanted,
        place: &Place,
        progress: Progress<'_>,
    ) -> Result<(State, u64), Failure> {
        let mut part = place.part_afresh()?;
        let (_, mut size) = self.fill(file, &mut part, progress).await?;
        if let Some(checkpoint) = &self.checkpoint {
            let entries = covered(&checkpoint.read_part()?)?;
            size = cut(&mut part, entries)?;
        }
        part.sync_all()?;
        let state = match place.compare_with_part(&mut part)? {
            place::Comparison::Absent => State::Copied,
            place::Comparison::Same => State::Kept,
            place::Comparison::Beginning => State::Extended,
            place::Comparison::Other => {
                return Err(Failure::Failed(format!(
                    "{}: the log in the store does not continue this copy; one of them was cut or changed. The store's is kept as {}",
                    place.target().display(),
                    place.part_path().display()
                )));
            }
        };
        match state {
            State::Kept => place.discard()?,
            _ => place.replace()?,
        }
        Ok((state, size))
    }

    /// Fills `part` up to the end of the file, from where it is. Digest and size of all of it.
    async fn fill(
        &self,
        file: &Wanted,
        part: &mut File,
        progress: Progress<'_>,
    ) -> Result<(Sha256, u64), Failure> {
        let mut hasher = Sha256Hasher::new();
        let mut there = hash_into(&mut hasher, part)?;
        let mut pause = PAUSE;
        let mut failed = 0;
        loop {
            let before = there;
            let failure = match self
                .stream(file, part, &mut hasher, &mut there, progress)
                .await
            {
                Ok(Streamed::Whole) => return Ok((hasher.finish(), there)),
                Ok(Streamed::TooLong) => {
                    part.set_len(0)?;
                    part.rewind()?;
                    hasher = Sha256Hasher::new();
                    there = 0;
                    failed += 1;
                    if failed >= ATTEMPTS {
                        return Err(Failure::Failed(format!(
                            "{}: the file in the store keeps getting shorter",
                            file.path
                        )));
                    }
                    continue;
                }
                Err(failure) => failure,
            };
            // Without a digest nothing would tell two versions of a file put together; the log only grows.
            let resumable = file.sha256.is_some() || file.path.as_str() == CUSTODY;
            failed = if there > before && resumable {
                0
            } else {
                failed + 1
            };
            if !failure.is_passing() || failed >= ATTEMPTS {
                return Err(failure);
            }
            if !resumable {
                part.set_len(0)?;
                part.rewind()?;
                hasher = Sha256Hasher::new();
                there = 0;
            }
            tokio::time::sleep(pause).await;
            pause = if failed == 0 { PAUSE } else { pause * 2 };
        }
    }

    /// One call: appends to `part` what comes.
    async fn stream(
        &self,
        file: &Wanted,
        part: &mut File,
        hasher: &mut Sha256Hasher,
        there: &mut u64,
        progress: Progress<'_>,
    ) -> Result<Streamed, Failure> {
        let asked = wire::ReadEvidenceRequest {
            case_id: self.case.to_string(),
            collection: self.collection.to_string(),
            path: file.path.to_string(),
            offset: *there,
        };
        let passing = |status: tonic::Status| Failure::of_call(&status);
        let wrong = |what: String| Failure::Failed(format!("{}: {what}", file.path));
        let mut stream = self
            .client
            .grpc()
            .read_evidence(asked)
            .await
            .map_err(passing)?
            .into_inner();
        let mut size = None;
        let mut call = Sha256Hasher::new();
        progress(*there)?;
        while let Some(response) = stream.message().await.map_err(passing)? {
            match (response.message, size) {
                (Some(Message::Header(header)), None) => {
                    let known = file
                        .sha256
                        .map(|sha256| sha256.to_string())
                        .unwrap_or_default();
                    if header.sha256 != known {
                        return Err(wrong(format!(
                            "listed with SHA-256 {known:?}, and now sent with {:?}",
                            header.sha256
                        )));
                    }
                    if header.size < *there {
                        return Ok(Streamed::TooLong);
                    }
                    size = Some(header.size);
                }
                (Some(Message::Chunk(chunk)), Some(size)) => {
                    let end = there.saturating_add(chunk.data.len() as u64);
                    if chunk.offset != *there || end > size {
                        return Err(wrong(format!(
                            "expected the bytes from {there} of {size}, got {} from {}",
                            chunk.data.len(),
                            chunk.offset
                        )));
                    }
                    part.write_all(&chunk.data)
                        .map_err(|error| wrong(format!("can't be written: {error}")))?;
                    hasher.update(&chunk.data);
                    call.update(&chunk.data);
                    *there = end;
                    progress(end)?;
                }
                (Some(Message::Trailer(trailer)), Some(size)) => {
                    let got = call.finish();
                    if trailer.sha256 != got.to_string() {
                        return Err(wrong(format!(
                            "sent with SHA-256 {}, received {got}; it was changed on the way",
                            trailer.sha256
                        )));
                    }
                    if *there != size {
                        return Err(wrong(format!("expected {size} bytes, got {there}")));
                    }
                    return Ok(Streamed::Whole);
                }
                _ => {
                    return Err(wrong(
                        "expected a header, chunks and a trailer, in this order".to_owned(),
                    ));
                }
            }
        }
        Err(Failure::Unreachable(format!(
            "{}: the transfer broke off after {there} bytes",
            file.path
        )))
    }
}

enum Streamed {
    Whole,
    /// More is here than there is in the store.
    TooLong,
}

/// Hashes a file from its start; leaves it at its end. Its size.
fn hash_into(hasher: &mut Sha256Hasher, file: &mut File) -> Result<u64, Failure> {
    file.rewind()?;
    let mut buffer = vec![0; 1 << 20];
    let mut size = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(size),
            n => {
                hasher.update(buffer.get(..n).unwrap_or_default());
                size += n as u64;
            }
        }
    }
}

/// The number of entries that a checkpoint says it covers. `verify` checks whether it is right.
fn covered(checkpoint: &str) -> Result<u64, Failure> {
    checkpoint
        .lines()
        .nth(1)
        .and_then(|line| line.parse().ok())
        .ok_or_else(|| {
            Failure::Failed(format!(
                "{CHECKPOINT}: expected the number of entries in line 2"
            ))
        })
}

/// Cuts the log in `part` to its first `entries` lines. Its size then.
fn cut(part: &mut File, entries: u64) -> Result<u64, Failure> {
    part.rewind()?;
    let mut lines = BufReader::with_capacity(1 << 20, &*part);
    let (mut size, mut counted) = (0, 0);
    while counted < entries {
        let buffer = lines.fill_buf()?;
        if buffer.is_empty() {
            return Err(Failure::Failed(format!(
                "{CUSTODY}: its checkpoint covers {entries} entries, and the store sent only {counted}; the log was cut"
            )));
        }
        let n = match buffer.iter().position(|byte| *byte == b'\n') {
            Some(at) => {
                counted += 1;
                at + 1
            }
            None => buffer.len(),
        };
        lines.consume(n);
        size += n as u64;
    }
    part.set_len(size)?;
    part.seek(SeekFrom::End(0))?;
    Ok(size)
}

/// A path that the user gave, joined with one that can't leave it.
fn below(root: &Path, path: &EvidencePath) -> PathBuf {
    path.segments()
        .fold(root.to_owned(), |directory, name| directory.join(name))
}
