//! The two names that grow: the custody log and its checkpoint.
//!
//! The log is extended under an exclusive lock and only from exactly the size that the writer knew,
//! so that two writers can't fork it. The checkpoint is replaced by rename; its temporary file lies
//! beside the collection, not in it, so that a crash leaves no stray file in the evidence.

use std::os::fd::OwnedFd;

use impound_evidence::{CHECKPOINT, CHECKPOINT_LIMIT, CUSTODY, LINE_LIMIT};
use rustix::fs::{self, AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::reader;
use super::tree::{TEMPORARY, Tree};
use crate::store::{CollectionId, StoreError, checkpoint_entries};

/// A note holds some hundred bytes for each container.
const NOTE_LIMIT: u64 = 16 << 20;

/// Adds `lines` to a log of exactly `size` bytes and returns its new size. Blocks.
pub(super) fn append(
    tree: &Tree,
    at: &CollectionId,
    size: u64,
    lines: &[u8],
) -> Result<u64, StoreError> {
    let name = format!("{at}/{CUSTODY}");
    let failed = |step| {
        let name = name.clone();
        move |error| tree.failed(&name, step, error)
    };
    if !lines.ends_with(b"\n") {
        return Err(StoreError::Reserved {
            at: name,
            reason: "the custody log takes whole lines only",
        });
    }
    let directory = tree.collection(at)?;
    let log = locked_log(tree, at, &directory)?;
    let found = length(&log).map_err(failed("look at it"))?;
    if found != size {
        if found < size || !is_torn(&log, size, found).map_err(failed("read it"))? {
            return Err(StoreError::LogMoved {
                at: at.to_string(),
                expected: size,
                found,
            });
        }
        tracing::warn!(collection = %at, bytes = found - size, "cutting off an unfinished custody line of a crash");
        fs::ftruncate(&log, size).map_err(failed("cut off an unfinished line"))?;
    }
    let written = write_all(&log, size, lines).and_then(|()| fs::fsync(&log));
    if let Err(error) = written {
        // Nobody was told of these bytes yet; the next append would cut them off too.
        let _ = fs::ftruncate(&log, size);
        return Err(tree.failed(&name, "extend it", error));
    }
    if size == 0 {
        tree.sync(&name, &directory)?;
    }
    Ok(size + lines.len() as u64)
}

/// Puts `checkpoint` in the place of the stored one. Blocks.
pub(super) fn checkpoint(
    tree: &Tree,
    at: &CollectionId,
    checkpoint: &[u8],
) -> Result<(), StoreError> {
    let name = format!("{at}/{CHECKPOINT}");
    let entries = |bytes: &[u8], which| {
        checkpoint_entries(bytes).ok_or_else(|| StoreError::NotACheckpoint {
            at: at.to_string(),
            which,
        })
    };
    let new = entries(checkpoint, "new")?;
    let directory = tree.collection(at)?;
    // The log's lock also keeps two checkpoints from racing.
    let _log = locked_log(tree, at, &directory)?;
    if let Some((file, _)) = tree.regular(&directory, CHECKPOINT, &name)? {
        let stored = entries(
            &reader::all(tree, &name, &file, CHECKPOINT_LIMIT)?,
            "stored",
        )?;
        if new < stored {
            return Err(StoreError::CheckpointBackwards {
                at: at.to_string(),
                new,
                stored,
            });
        }
    }
    replace(tree, at, &name, (&directory, CHECKPOINT), checkpoint)
}

/// The collector's note, if there is one. Blocks.
pub(super) fn note(tree: &Tree, at: &CollectionId) -> Result<Option<Vec<u8>>, StoreError> {
    let name = format!("{at} (note)");
    let Some(case) = tree.case(&at.case)? else {
        return Ok(None);
    };
    match tree.regular(&case, &note_name(at), &name)? {
        Some((file, _)) => reader::all(tree, &name, &file, NOTE_LIMIT).map(Some),
        None => Ok(None),
    }
}

/// Replaces the collector's note; removes it if `note` is empty. Blocks.
pub(super) fn save_note(tree: &Tree, at: &CollectionId, note: &[u8]) -> Result<(), StoreError> {
    let name = format!("{at} (note)");
    let case = tree
        .case(&at.case)?
        .ok_or_else(|| StoreError::NoCollection { at: at.to_string() })?;
    if !note.is_empty() {
        return replace(tree, at, &name, (&case, &note_name(at)), note);
    }
    match fs::unlinkat(&case, note_name(at), AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => tree.sync(&name, &case),
        Err(error) => Err(tree.failed(&name, "remove it", error)),
    }
}

fn note_name(at: &CollectionId) -> String {
    format!(".note-{}", at.name)
}

/// Writes a temporary file in the case's directory and renames it over `to`.
fn replace(
    tree: &Tree,
    at: &CollectionId,
    name: &str,
    (directory, file_name): (&OwnedFd, &str),
    bytes: &[u8],
) -> Result<(), StoreError> {
    let case = tree
        .case(&at.case)?
        .ok_or_else(|| StoreError::NoCollection { at: at.to_string() })?;
    let temporary = format!("{TEMPORARY}{}-{file_name}", at.name);
    let flags =
        OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let replace = || {
        let file = fs::openat(&case, temporary.as_str(), flags, Mode::RUSR | Mode::WUSR)?;
        write_all(&file, 0, bytes)?;
        fs::fsync(&file)?;
        fs::renameat(&case, temporary.as_str(), directory, file_name)
    };
    replace().map_err(|error| tree.failed(name, "replace it", error))?;
    tree.sync(name, directory)
}

/// The log, made if there is none, under an exclusive lock that ends when it is closed.
fn locked_log(tree: &Tree, at: &CollectionId, directory: &OwnedFd) -> Result<OwnedFd, StoreError> {
    let name = format!("{at}/{CUSTODY}");
    let flags =
        OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let opened = fs::openat(directory, CUSTODY, flags, Mode::RUSR | Mode::WUSR);
    let log = match opened {
        Err(Errno::LOOP) => {
            return Err(StoreError::Planted {
                at: name,
                expected: "regular file",
            });
        }
        other => other.map_err(|error| tree.failed(&name, "open it", error))?,
    };
    // Held for one append, so waiting is short.
    fs::flock(&log, FlockOperation::LockExclusive)
        .map_err(|error| tree.failed(&name, "lock it", error))?;
    Ok(log)
}

/// Whether the bytes behind `size` are the beginning of one line, as a crash leaves it.
fn is_torn(log: &OwnedFd, size: u64, found: u64) -> rustix::io::Result<bool> {
    if found - size > LINE_LIMIT as u64 {
        return Ok(false);
    }
    let mut bytes = vec![0; usize::try_from(found - size).unwrap_or(0)];
    let read = rustix::io::pread(log, bytes.as_mut_slice(), size)?;
    Ok(read == bytes.len() && !bytes.contains(&b'\n'))
}

fn length(file: &OwnedFd) -> rustix::io::Result<u64> {
    fs::fstat(file).map(|stat| u64::try_from(stat.st_size).unwrap_or(0))
}

fn write_all(file: &OwnedFd, mut at: u64, mut bytes: &[u8]) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(file, bytes, at) {
            Ok(taken) => {
                at += taken as u64;
                bytes = bytes.get(taken..).unwrap_or_default();
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
