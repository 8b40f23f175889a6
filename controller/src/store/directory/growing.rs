//! The two names that grow: the custody log and its checkpoint.
//!
//! The log is extended under an exclusive lock and only from exactly the size that the writer knew,
//! so that two writers can't fork it. The checkpoint is replaced by rename; its temporary file lies
//! beside the collection, not in it, so that a crash leaves no stray file in the evidence.

use std::os::fd::OwnedFd;

use rustix::fs::{self, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::tree::{TEMPORARY, Tree};
use crate::store::{CUSTODY_CHECKPOINT, CUSTODY_LOG, CollectionId, StoreError};

/// An unfinished last line can't be longer: no entry is.
const LONGEST_LINE: u64 = 1024 * 1024;
/// A checkpoint has three lines and one or two signatures.
const LONGEST_CHECKPOINT: usize = 64 * 1024;

/// Adds `lines` to a log of exactly `size` bytes and returns its new size. Blocks.
pub(super) fn append(tree: &Tree, at: &CollectionId, size: u64, lines: &[u8]) -> Result<u64, StoreError> {
    let name = format!("{at}/{CUSTODY_LOG}");
    let failed = |step| {
        let name = name.clone();
        move |error| tree.failed(&name, step, error)
    };
    if !lines.ends_with(b"\n") {
        return Err(StoreError::Reserved { at: name, reason: "the custody log takes whole lines only" });
    }
    let directory = tree.collection(at)?;
    let log = locked_log(tree, at, &directory)?;
    let found = length(&log).map_err(failed("look at it"))?;
    if found != size {
        if found < size || !is_torn(&log, size, found).map_err(failed("read it"))? {
            return Err(StoreError::LogMoved { at: at.to_string(), expected: size, found });
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
pub(super) fn checkpoint(tree: &Tree, at: &CollectionId, checkpoint: &[u8]) -> Result<(), StoreError> {
    let name = format!("{at}/{CUSTODY_CHECKPOINT}");
    let entries = |bytes: &[u8], which| {
        entries(bytes).ok_or_else(|| StoreError::NotACheckpoint { at: at.to_string(), which })
    };
    let new = entries(checkpoint, "new")?;
    let directory = tree.collection(at)?;
    // The log's lock also keeps two checkpoints from racing.
    let _log = locked_log(tree, at, &directory)?;
    if let Some((file, _)) = tree.regular(&directory, CUSTODY_CHECKPOINT, &name)? {
        let mut bytes = vec![0; LONGEST_CHECKPOINT];
        let read = rustix::io::pread(&file, bytes.as_mut_slice(), 0)
            .map_err(|error| tree.failed(&name, "read it", error))?;
        bytes.truncate(read);
        let stored = entries(&bytes, "stored")?;
        if new < stored {
            return Err(StoreError::CheckpointBackwards { at: at.to_string(), new, stored });
        }
    }
    let case = tree.case(&at.case)?.ok_or_else(|| StoreError::NoCollection { at: at.to_string() })?;
    let temporary = format!("{TEMPORARY}{}.checkpoint", at.name);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let replace = || {
        let file = fs::openat(&case, temporary.as_str(), flags, Mode::RUSR | Mode::WUSR)?;
        write_all(&file, 0, checkpoint)?;
        fs::fsync(&file)?;
        fs::renameat(&case, temporary.as_str(), &directory, CUSTODY_CHECKPOINT)
    };
    replace().map_err(|error| tree.failed(&name, "replace it", error))?;
    tree.sync(&name, &directory)
}

/// The log, made if there is none, under an exclusive lock that ends when it is closed.
fn locked_log(tree: &Tree, at: &CollectionId, directory: &OwnedFd) -> Result<OwnedFd, StoreError> {
    let name = format!("{at}/{CUSTODY_LOG}");
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let opened = fs::openat(directory, CUSTODY_LOG, flags, Mode::RUSR | Mode::WUSR);
    let log = match opened {
        Err(Errno::LOOP) => return Err(StoreError::Planted { at: name, expected: "regular file" }),
        other => other.map_err(|error| tree.failed(&name, "open it", error))?,
    };
    // Held for one append, so waiting is short.
    fs::flock(&log, FlockOperation::LockExclusive).map_err(|error| tree.failed(&name, "lock it", error))?;
    Ok(log)
}

/// Whether the bytes behind `size` are the beginning of one line, as a crash leaves it.
fn is_torn(log: &OwnedFd, size: u64, found: u64) -> rustix::io::Result<bool> {
    if found - size > LONGEST_LINE {
        return Ok(false);
    }
    let mut bytes = vec![0; usize::try_from(found - size).unwrap_or(0)];
    let read = rustix::io::pread(log, bytes.as_mut_slice(), size)?;
    Ok(read == bytes.len() && !bytes.contains(&b'\n'))
}

/// The number of entries in a checkpoint: its second line.
fn entries(checkpoint: &[u8]) -> Option<u64> {
    if checkpoint.len() >= LONGEST_CHECKPOINT {
        return None;
    }
    std::str::from_utf8(checkpoint).ok()?.lines().nth(1)?.parse().ok()
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
