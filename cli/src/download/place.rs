//! Where one copied file goes: its name, and the `.part` beside it until it is whole.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read as _, Seek as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use impound_evidence::{EvidencePath, Sha256, Sha256Hasher};
use rustix::fs::{CWD, OFlags, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::{below, hash_into};
use crate::failure::Failure;

pub(super) struct Place {
    target: PathBuf,
    part: PathBuf,
    parent: PathBuf,
    readers: Readers,
}

/// A file that is there against the one that came.
pub(super) enum Comparison {
    Absent,
    Same,
    /// What is there is how the one that came begins.
    Beginning,
    Other,
}

/// Who may read what is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Readers {
    /// Whom the process' umask lets: evidence as it is stored.
    Umask,
    /// Its user alone: what is encrypted for everybody else.
    Owner,
}

impl Readers {
    fn directory(self) -> DirBuilder {
        let mut directory = DirBuilder::new();
        directory.mode(self.mode(0o777));
        directory
    }

    /// Of the bits of `all` those that are for these.
    fn mode(self, all: u32) -> u32 {
        match self {
            Self::Umask => all,
            Self::Owner => all & 0o700,
        }
    }
}

impl Place {
    /// Makes the directories down to the file. None of them may be a link: a copy must not land
    /// elsewhere.
    pub(super) fn prepare(
        root: &Path,
        path: &EvidencePath,
        readers: Readers,
    ) -> Result<Self, Failure> {
        let at = |path: &Path, error: &dyn std::fmt::Display| {
            Failure::Failed(format!("{} can't be written: {error}", path.display()))
        };
        readers
            .directory()
            .recursive(true)
            .create(root)
            .map_err(|error| at(root, &error))?;
        let mut parent = root.to_owned();
        let mut names: Vec<&str> = path.segments().collect();
        names.pop();
        for name in names {
            parent.push(name);
            match readers.directory().create(&parent) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    let kind =
                        fs::symlink_metadata(&parent).map_err(|error| at(&parent, &error))?;
                    if !kind.is_dir() {
                        return Err(at(&parent, &"it is no directory"));
                    }
                }
                made => made.map_err(|error| at(&parent, &error))?,
            }
        }
        let part = parent.join(format!(".{}.part", path.file_name()));
        Ok(Self {
            target: below(root, path),
            part,
            parent,
            readers,
        })
    }

    pub(super) fn target(&self) -> &Path {
        &self.target
    }

    pub(super) fn part_path(&self) -> &Path {
        &self.part
    }

    pub(super) fn exists(&self) -> Result<bool, Failure> {
        match fs::symlink_metadata(&self.target) {
            Ok(kind) if kind.is_file() => Ok(true),
            Ok(_) => {
                Err(self.wrong("is there and is no plain file; remove it or choose another --to"))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(self.wrong(&format!("can't be looked at: {error}"))),
        }
    }

    /// Digest and size of the file, if it is there.
    pub(super) fn hash(&self) -> Result<Option<(Sha256, u64)>, Failure> {
        if !self.exists()? {
            return Ok(None);
        }
        let mut hasher = Sha256Hasher::new();
        let mut file = File::open(&self.target)?;
        let size = hash_into(&mut hasher, &mut file)?;
        Ok(Some((hasher.finish(), size)))
    }

    /// The `.part`, with what an earlier copy left in it. Only one copy at a time may write it.
    pub(super) fn part(&self) -> Result<File, Failure> {
        let nofollow = i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or_default();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(self.readers.mode(0o666))
            .custom_flags(nofollow)
            .open(&self.part)
            .map_err(|error| {
                Failure::Failed(format!("{} can't be written: {error}", self.part.display()))
            })?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(Failure::Failed(format!(
                "{} is being written by another copy; wait for it",
                self.part.display()
            ))),
            Err(TryLockError::Error(error)) => Err(error.into()),
        }
    }

    /// The `.part`, empty.
    pub(super) fn part_afresh(&self) -> Result<File, Failure> {
        let part = self.part()?;
        part.set_len(0)?;
        Ok(part)
    }

    pub(super) fn read_part(&self) -> Result<String, Failure> {
        Ok(fs::read_to_string(&self.part)?)
    }

    /// What is there against `part`.
    pub(super) fn compare_with_part(&self, part: &mut File) -> Result<Comparison, Failure> {
        if !self.exists()? {
            return Ok(Comparison::Absent);
        }
        let mut there = File::open(&self.target)?;
        let (old, new) = (there.metadata()?.len(), part.metadata()?.len());
        part.rewind()?;
        let (mut a, mut b) = (vec![0; 1 << 16], vec![0; 1 << 16]);
        loop {
            let n = there.read(&mut a)?;
            if n == 0 {
                return Ok(if old == new {
                    Comparison::Same
                } else {
                    Comparison::Beginning
                });
            }
            let (Some(a), Some(b)) = (a.get(..n), b.get_mut(..n)) else {
                return Ok(Comparison::Other);
            };
            match part.read_exact(b) {
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                    return Ok(Comparison::Other);
                }
                read => read?,
            }
            if a != b {
                return Ok(Comparison::Other);
            }
        }
    }

    /// Gives the `.part` its name, if nothing has it. The file must be flushed.
    pub(super) fn install(&self) -> Result<(), Failure> {
        let exists = || self.wrong("appeared meanwhile and was not overwritten");
        match renameat_with(CWD, &self.part, CWD, &self.target, RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => return Err(exists()),
            // A file system without this flag (some network ones): look first.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
                if self.exists()? {
                    return Err(exists());
                }
                fs::rename(&self.part, &self.target)?;
            }
            renamed => renamed.map_err(io::Error::from)?,
        }
        self.flush_directory()
    }

    /// Puts the `.part` in the file's place. Only for what may grow.
    pub(super) fn replace(&self) -> Result<(), Failure> {
        File::open(&self.part)?.sync_all()?;
        fs::rename(&self.part, &self.target)?;
        self.flush_directory()
    }

    /// Removes the `.part`.
    pub(super) fn discard(&self) -> Result<(), Failure> {
        Ok(fs::remove_file(&self.part)?)
    }

    pub(super) fn differs(&self, expected: Sha256, got: Sha256) -> Failure {
        self.wrong(&format!(
            "is there with other contents and was not overwritten: expected SHA-256 {expected}, got {got}; remove it or choose another --to"
        ))
    }

    fn wrong(&self, what: &str) -> Failure {
        Failure::Failed(format!("{} {what}", self.target.display()))
    }

    fn flush_directory(&self) -> Result<(), Failure> {
        Ok(File::open(&self.parent)?.sync_all()?)
    }
}
