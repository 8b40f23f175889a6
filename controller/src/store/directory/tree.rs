//! The directories of a store: every path is opened segment by segment, relative to an open parent,
//! without following links. Maps what the file system says to the store's errors.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Mutex;

use impound_evidence::{
    CHECKPOINT, CUSTODY, CaseId, CollectionName, EvidencePath, StorageReceipt, Timestamp,
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rustix::fs::{self, AtFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use crate::locked::locked;
use crate::store::{CollectionId, StoreError, StoredFile};

/// Beginning of the name of an object that is not finished.
pub(super) const TEMPORARY: &str = ".tmp-";
/// Beginning of the name of a collection's lock.
const LOCK: &str = ".lock-";
/// A file name has at most 255 bytes; this leaves room for `.tmp-` and for `.partial-<n>`.
const LONGEST_NAME: usize = 235;
/// Bytes that large objects leave free, so that what was collected can still be recorded and sealed:
/// a manifest of thousands of artifacts and its signature have some MiB. On a small volume its part.
const RESERVE: u64 = 512 << 20;
const RESERVE_PART: u64 = 20;
/// Files of one collection that are listed. A collection has some thousand; a directory that
/// somebody fills must not fill our memory.
const MOST_FILES: usize = 1_000_000;

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
/// `NONBLOCK`: opening a planted FIFO must not hang; it has no effect on regular files.
const FILE: OFlags = OFlags::RDONLY
    .union(OFlags::NONBLOCK)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Everything but what a URL's path has as it is.
const IN_A_URL: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'/')
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

/// The root of a store.
pub(super) struct Tree {
    root: OwnedFd,
    path: String,
    /// Bytes of room that are given out and perhaps not written yet.
    taken: Mutex<u64>,
}

/// Room for bytes that are about to be written.
pub(super) struct Room<'t> {
    tree: &'t Tree,
    bytes: u64,
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        *locked(&self.tree.taken) -= self.bytes;
    }
}

impl Tree {
    pub(super) fn open(root: &Path) -> Result<Self, StoreError> {
        let path = root.display().to_string();
        // The root itself may be a link: it comes from the administrator, not from the store.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match fs::open(root, flags, Mode::empty()) {
            Ok(root) => Ok(Self {
                root,
                path,
                taken: Mutex::default(),
            }),
            Err(error) => Err(StoreError::Open {
                path,
                source: error.into(),
            }),
        }
    }

    /// The URL of what is called `name` below the root, RFC 3986: what a path may not have in it is escaped.
    pub(super) fn url(&self, name: &str) -> String {
        let path = format!("{}/{name}", self.path.trim_end_matches('/'));
        format!("file://{}", utf8_percent_encode(&path, IN_A_URL))
    }

    /// What the store says of the object `name`, which was re-read just now. A directory keeps no
    /// versions and locks nothing.
    pub(super) fn receipt(&self, name: &str) -> StorageReceipt {
        StorageReceipt {
            location: self.url(name),
            version: None,
            lock: None,
            verified: Timestamp::now(),
        }
    }

    /// Bytes that can still be written by this user.
    pub(super) fn free(&self) -> Result<u64, StoreError> {
        self.room().map(|(free, _)| free)
    }

    /// Makes a file beside the cases, durably, and removes it.
    pub(super) fn try_writing(&self) -> Result<(), StoreError> {
        let name = format!("{TEMPORARY}{}", uuid::Uuid::new_v4());
        let failed = |step| move |error| self.failed("a file to try it out", step, error);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = fs::openat(&self.root, &name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(failed("create it"))?;
        let written = rustix::io::write(&file, name.as_bytes())
            .map_err(failed("write it"))
            .and_then(|_| fs::fsync(&file).map_err(failed("sync it")));
        fs::unlinkat(&self.root, &name, AtFlags::empty()).map_err(failed("remove it"))?;
        written
    }

    /// Room for the next `bytes` of a large object, until they are written: [`RESERVE`] is left alone, also by
    /// many that are written at the same time.
    pub(super) fn room_for(&self, name: &str, bytes: u64) -> Result<Room<'_>, StoreError> {
        let mut taken = locked(&self.taken);
        let (free, reserve) = self.room()?;
        if free < reserve.saturating_add(*taken).saturating_add(bytes) {
            return Err(StoreError::Full {
                at: name.to_owned(),
                free,
                root: self.path.clone(),
                reserve,
            });
        }
        *taken += bytes;
        Ok(Room { tree: self, bytes })
    }

    /// Bytes free, and how many of them large objects leave alone.
    fn room(&self) -> Result<(u64, u64), StoreError> {
        let stat = fs::fstatvfs(&self.root).map_err(|error| StoreError::Io {
            at: self.path.clone(),
            step: "ask for its free space",
            source: error.into(),
        })?;
        let total = stat.f_blocks.saturating_mul(stat.f_frsize);
        if total == 0 {
            // It does not say, like ramfs: only a write can tell.
            return Ok((u64::MAX, 0));
        }
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        Ok((free, RESERVE.min(total / RESERVE_PART)))
    }

    pub(super) fn create_collection(&self, at: &CollectionId) -> Result<(), StoreError> {
        let name = at.to_string();
        let case = self.below(self.root.as_fd(), at.case.as_str(), at.case.as_str(), true)?;
        match fs::mkdirat(&case, at.name.as_str(), Mode::RWXU) {
            Ok(()) => self.sync(&name, &case),
            Err(Errno::EXIST) => Err(StoreError::CollectionExists { at: name }),
            Err(error) => Err(self.failed(&name, "make its directory", error)),
        }
    }

    /// The open directory of a collection.
    pub(super) fn collection(&self, at: &CollectionId) -> Result<OwnedFd, StoreError> {
        let case = self
            .case(&at.case)?
            .ok_or_else(|| StoreError::NoCollection { at: at.to_string() })?;
        match fs::openat(&case, at.name.as_str(), DIRECTORY, Mode::empty()) {
            Err(Errno::NOENT) => Err(StoreError::NoCollection { at: at.to_string() }),
            other => {
                other.map_err(|error| self.failed(&at.to_string(), "open its directory", error))
            }
        }
    }

    /// The open directory of a case, if there is one.
    pub(super) fn case(&self, case: &CaseId) -> Result<Option<OwnedFd>, StoreError> {
        match fs::openat(&self.root, case.as_str(), DIRECTORY, Mode::empty()) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(self.failed(case.as_str(), "open its directory", error)),
        }
    }

    pub(super) fn collections(&self, case: &CaseId) -> Result<Vec<CollectionName>, StoreError> {
        let Some(directory) = self.case(case)? else {
            return Ok(Vec::new());
        };
        let mut found = Vec::new();
        for (name, _) in self.entries(case.as_str(), &directory)? {
            // Lock files and checkpoints on their way; a collection's name begins with no dot.
            if !name.starts_with('.') {
                let foreign = |source| StoreError::ForeignName {
                    at: case.to_string(),
                    source: Box::new(source),
                };
                found.push(name.parse().map_err(foreign)?);
            }
        }
        found.sort();
        Ok(found)
    }

    /// An exclusive lock on the collection that ends when the descriptor is closed. It is a file
    /// beside the collection, as NFS locks no directories.
    pub(super) fn lock(&self, at: &CollectionId) -> Result<OwnedFd, StoreError> {
        let name = at.to_string();
        self.collection(at)?;
        let case = self
            .case(&at.case)?
            .ok_or_else(|| StoreError::NoCollection { at: name.clone() })?;
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = fs::openat(
            &case,
            format!("{LOCK}{}", at.name),
            flags,
            Mode::RUSR | Mode::WUSR,
        )
        .map_err(|error| self.failed(&name, "open its lock", error))?;
        match fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(file),
            Err(Errno::WOULDBLOCK) => Err(StoreError::Busy { at: name }),
            Err(error) => Err(self.failed(&name, "lock it", error)),
        }
    }

    /// The open directory that holds `path`; with `make` it and its parents are made, durably.
    pub(super) fn parent(
        &self,
        at: &CollectionId,
        path: &EvidencePath,
        make: bool,
    ) -> Result<OwnedFd, StoreError> {
        let name = name(at, path);
        let mut directory = self.collection(at)?;
        let mut segments = path.segments().peekable();
        while let Some(segment) = segments.next() {
            if segments.peek().is_some() {
                directory = self.below(directory.as_fd(), segment, &name, make)?;
            }
        }
        Ok(directory)
    }

    /// The open regular file `path` and its size, if it is there.
    pub(super) fn file(
        &self,
        at: &CollectionId,
        path: &EvidencePath,
    ) -> Result<Option<(OwnedFd, u64)>, StoreError> {
        match self.parent(at, path, false) {
            Ok(directory) => self.regular(&directory, path.file_name(), &name(at, path)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The open regular file `file` of `directory`, if it is there.
    pub(super) fn regular(
        &self,
        directory: &OwnedFd,
        file: &str,
        name: &str,
    ) -> Result<Option<(OwnedFd, u64)>, StoreError> {
        let fd = match fs::openat(directory, file, FILE, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP | Errno::NXIO) => {
                return Err(StoreError::Planted {
                    at: name.to_owned(),
                    expected: "regular file",
                });
            }
            Err(error) => return Err(self.failed(name, "open it", error)),
        };
        let stat = fs::fstat(&fd).map_err(|error| self.failed(name, "look at it", error))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(StoreError::Planted {
                at: name.to_owned(),
                expected: "regular file",
            });
        }
        Ok(Some((fd, u64::try_from(stat.st_size).unwrap_or(0))))
    }

    /// Regular files with a final name, ordered by path.
    pub(super) fn files(&self, at: &CollectionId) -> Result<Vec<StoredFile>, StoreError> {
        let mut files = self.walk(at)?.all_regular(at)?;
        files.retain(|file| !file.path.file_name().starts_with(TEMPORARY));
        Ok(files)
    }

    /// The names that unfinished objects were meant for, ordered by path.
    pub(super) fn temporaries(&self, at: &CollectionId) -> Result<Vec<EvidencePath>, StoreError> {
        let mut found = Vec::new();
        for file in self.walk(at)?.all_regular(at)? {
            if let Some(intended) = file.path.file_name().strip_prefix(TEMPORARY) {
                let parent = file
                    .path
                    .as_str()
                    .strip_suffix(file.path.file_name())
                    .unwrap_or_default();
                let foreign = |_| StoreError::Planted {
                    at: name(at, &file.path),
                    expected: "object of ours",
                };
                found.push(format!("{parent}{intended}").parse().map_err(foreign)?);
            }
        }
        Ok(found)
    }

    /// Removes the directories in which nothing is, deepest first. Nothing is followed.
    pub(super) fn prune(&self, at: &CollectionId) -> Result<(), StoreError> {
        self.prune_below(at, "", &self.collection(at)?)
    }

    fn prune_below(
        &self,
        at: &CollectionId,
        below: &str,
        directory: &OwnedFd,
    ) -> Result<(), StoreError> {
        for (entry, kind) in self.entries(&format!("{at}/{below}"), directory)? {
            let Ok(path) = format!("{below}{entry}").parse::<EvidencePath>() else {
                continue;
            };
            if kind != FileType::Directory {
                continue;
            }
            let shown = name(at, &path);
            let inner = self.below(directory.as_fd(), &entry, &shown, false)?;
            self.prune_below(at, &format!("{path}/"), &inner)?;
            match fs::unlinkat(directory, entry.as_str(), AtFlags::REMOVEDIR) {
                Ok(()) => self.sync(&shown, directory)?,
                Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOENT) => {}
                Err(error) => return Err(self.failed(&shown, "remove it, which is empty", error)),
            }
        }
        Ok(())
    }

    /// Everything in the collection, files ordered by path. Nothing is followed.
    pub(super) fn walk(&self, at: &CollectionId) -> Result<Walk, StoreError> {
        let mut walk = Walk::default();
        let mut open = vec![(String::new(), self.collection(at)?)];
        while let Some((below, directory)) = open.pop() {
            for (entry, kind) in self.entries(&format!("{at}/{below}"), &directory)? {
                let shown = format!("{below}{}", entry.escape_default());
                let Ok(path) = format!("{below}{entry}").parse::<EvidencePath>() else {
                    walk.refused
                        .push((shown, "file with a name that evidence can have"));
                    continue;
                };
                match kind {
                    FileType::Directory => {
                        let inner =
                            self.below(directory.as_fd(), &entry, &name(at, &path), false)?;
                        open.push((format!("{path}/"), inner));
                    }
                    FileType::RegularFile => {
                        let stat =
                            fs::statat(&directory, entry.as_str(), AtFlags::SYMLINK_NOFOLLOW)
                                .map_err(|error| {
                                    self.failed(&name(at, &path), "look at it", error)
                                })?;
                        walk.files.push(StoredFile {
                            path,
                            size: u64::try_from(stat.st_size).unwrap_or(0),
                        });
                    }
                    _ => walk.refused.push((shown, "file or directory")),
                }
                let found = walk.files.len() + walk.refused.len() + open.len();
                if found > MOST_FILES {
                    return Err(StoreError::TooLarge {
                        at: at.to_string(),
                        size: found as u64,
                        limit: MOST_FILES as u64,
                    });
                }
            }
        }
        walk.files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(walk)
    }

    /// Makes a directory's entries durable.
    pub(super) fn sync(&self, name: &str, directory: &OwnedFd) -> Result<(), StoreError> {
        fs::fsync(directory).map_err(|error| self.failed(name, "sync its directory", error))
    }

    /// What a system call's error means for the object `name`.
    pub(super) fn failed(&self, name: &str, step: &'static str, error: Errno) -> StoreError {
        match error {
            Errno::NOSPC | Errno::DQUOT => {
                let (free, reserve) = self.room().unwrap_or((0, 0));
                StoreError::Full {
                    at: name.to_owned(),
                    free,
                    root: self.path.clone(),
                    reserve,
                }
            }
            Errno::LOOP | Errno::NOTDIR => StoreError::Planted {
                at: name.to_owned(),
                expected: "directory",
            },
            error => StoreError::Io {
                at: name.to_owned(),
                step,
                source: error.into(),
            },
        }
    }

    /// The directory `segment` of an open one.
    fn below(
        &self,
        parent: impl AsFd,
        segment: &str,
        name: &str,
        make: bool,
    ) -> Result<OwnedFd, StoreError> {
        let opened = match fs::openat(&parent, segment, DIRECTORY, Mode::empty()) {
            Err(Errno::NOENT) if make => {
                match fs::mkdirat(&parent, segment, Mode::RWXU) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(self.failed(name, "make its directory", error)),
                }
                fs::fsync(&parent)
                    .map_err(|error| self.failed(name, "sync its directory", error))?;
                fs::openat(&parent, segment, DIRECTORY, Mode::empty())
            }
            other => other,
        };
        match opened {
            Err(Errno::NOENT) => Err(StoreError::NotFound {
                at: name.to_owned(),
            }),
            other => other.map_err(|error| self.failed(name, "open its directory", error)),
        }
    }

    /// Names and types of a directory's entries, in no order.
    fn entries(
        &self,
        name: &str,
        directory: &OwnedFd,
    ) -> Result<Vec<(String, FileType)>, StoreError> {
        let failed = |error| self.failed(name, "list its directory", error);
        let mut entries = Vec::new();
        for entry in fs::Dir::read_from(directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let text = entry.file_name().to_string_lossy().into_owned();
            if text == "." || text == ".." {
                continue;
            }
            let kind = match entry.file_type() {
                // Some file systems don't say.
                FileType::Unknown => {
                    let stat = fs::statat(directory, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)
                        .map_err(failed)?;
                    FileType::from_raw_mode(stat.st_mode)
                }
                kind => kind,
            };
            entries.push((text, kind));
            if entries.len() > MOST_FILES {
                return Err(StoreError::TooLarge {
                    at: name.to_owned(),
                    size: entries.len() as u64,
                    limit: MOST_FILES as u64,
                });
            }
        }
        Ok(entries)
    }
}

/// What is in a collection.
#[derive(Default)]
pub(super) struct Walk {
    /// Plain files, unfinished ones too.
    pub(super) files: Vec<StoredFile>,
    /// Names that can't be evidence, and what they should have been.
    pub(super) refused: Vec<(String, &'static str)>,
}

impl Walk {
    /// The files, if there is nothing else.
    fn all_regular(self, at: &CollectionId) -> Result<Vec<StoredFile>, StoreError> {
        match self.refused.into_iter().next() {
            Some((path, expected)) => Err(StoreError::Planted {
                at: format!("{at}/{path}"),
                expected,
            }),
            None => Ok(self.files),
        }
    }
}

/// How errors call an object: `<case>/<collection>/<path>`.
pub(super) fn name(at: &CollectionId, path: &EvidencePath) -> String {
    format!("{at}/{path}")
}

/// Refuses names that belong to the store itself.
pub(super) fn writable(at: &CollectionId, path: &EvidencePath) -> Result<(), StoreError> {
    let reserved = |reason| {
        Err(StoreError::Reserved {
            at: name(at, path),
            reason,
        })
    };
    if path
        .segments()
        .any(|segment| segment.starts_with(TEMPORARY))
    {
        return reserved("names that begin with .tmp- are those of unfinished objects");
    }
    if path.as_str() == CUSTODY || path.as_str() == CHECKPOINT {
        return reserved("the custody log grows, it is not written as an object");
    }
    if path.file_name().len() > LONGEST_NAME {
        return reserved("a file name may have at most 235 characters");
    }
    Ok(())
}
