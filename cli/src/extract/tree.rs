//! The directory that evidence is extracted below, and the only way anything is written there.
//!
//! Every name is resolved by the kernel from a handle on that directory with `openat2`, which refuses
//! links anywhere on the way (`RESOLVE_NO_SYMLINKS`) and whatever lies outside (`RESOLVE_BENEATH`), also
//! when somebody exchanges a directory for a link meanwhile. Files are new or nothing is written.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT,
};
use rustix::io::Errno;

use super::name::Name;

/// What was code or secret in a container must not be run or read by others on the analyst's machine:
/// files are the owner's to read and write and nobody's to execute.
const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);

/// Directories are the owner's alone.
const DIRECTORY_MODE: Mode = Mode::RWXU;

const RESOLVE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);

pub(super) struct Tree {
    root: OwnedFd,
    /// The directory that was written to last: tars go through one after the other.
    last: Option<(Vec<u8>, OwnedFd)>,
    /// Modification times that directories get once nothing more is written into them.
    times: Vec<(Name, Timespec)>,
}

impl Tree {
    /// A directory that is new, or there and empty: nothing in it is anybody else's.
    pub(super) fn create(at: &Path) -> io::Result<Self> {
        if let Some(parent) = at.parent() {
            fs::create_dir_all(parent)?;
        }
        match rustix::fs::mkdirat(CWD, at, DIRECTORY_MODE) {
            Err(Errno::EXIST) => {}
            made => made?,
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::open(at, flags, Mode::empty())?;
        for entry in Dir::read_from(&root)? {
            if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
                return Err(io::Error::other(
                    "it is not empty; nothing that is there is overwritten: choose another directory",
                ));
            }
        }
        match rustix::fs::openat2(
            &root,
            ".",
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
            RESOLVE,
        ) {
            Err(Errno::NOSYS) => Err(io::Error::other(
                "this kernel has no openat2 (Linux 5.6), without which nothing is extracted",
            )),
            Err(error) => Err(error.into()),
            Ok(_) => Ok(Self {
                root,
                last: None,
                times: Vec::new(),
            }),
        }
    }

    /// Bytes that are free for this user.
    pub(super) fn free(&self) -> io::Result<u64> {
        let space = rustix::fs::fstatvfs(&self.root)?;
        Ok(space.f_bavail.saturating_mul(space.f_frsize))
    }

    /// A new, empty file.
    pub(super) fn file(&mut self, name: &Name) -> Result<File, Errno> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let parent = self.parent(name)?;
        let file = rustix::fs::openat2(parent, name.file_name(), flags, FILE_MODE, RESOLVE)?;
        Ok(File::from(file))
    }

    /// A directory, which may be there already. Its time is set by [`Tree::finish`].
    pub(super) fn directory(&mut self, name: &Name, mtime: Option<Timespec>) -> Result<(), Errno> {
        let parent = self.parent(name)?;
        match rustix::fs::mkdirat(parent, name.file_name(), DIRECTORY_MODE) {
            Err(Errno::EXIST) => {
                let kind = rustix::fs::statat(parent, name.file_name(), AtFlags::SYMLINK_NOFOLLOW)?;
                if FileType::from_raw_mode(kind.st_mode) != FileType::Directory {
                    return Err(Errno::EXIST);
                }
            }
            made => made?,
        }
        self.times.extend(mtime.map(|mtime| (name.clone(), mtime)));
        Ok(())
    }

    /// A symbolic link; `target` as [`super::name::link_target`] gives it.
    pub(super) fn symlink(
        &mut self,
        name: &Name,
        target: &[u8],
        mtime: Option<Timespec>,
    ) -> Result<(), Errno> {
        let parent = self.parent(name)?;
        rustix::fs::symlinkat(target, parent, name.file_name())?;
        match mtime {
            Some(mtime) => rustix::fs::utimensat(
                parent,
                name.file_name(),
                &times(mtime),
                AtFlags::SYMLINK_NOFOLLOW,
            ),
            None => Ok(()),
        }
    }

    /// Another name for a plain file that is there.
    pub(super) fn hard_link(&mut self, name: &Name, old: &Name) -> Result<(), Errno> {
        let from = self.open(old.parent())?;
        let kind = rustix::fs::statat(&from, old.file_name(), AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(kind.st_mode) != FileType::RegularFile {
            return Err(Errno::NOENT);
        }
        let parent = self.parent(name)?;
        // Without SYMLINK_FOLLOW a link that took the file's place is linked, not what it points to.
        rustix::fs::linkat(
            &from,
            old.file_name(),
            parent,
            name.file_name(),
            AtFlags::empty(),
        )
    }

    /// Gives the directories their times. Those that could not be set are named.
    pub(super) fn finish(self) -> Vec<(Name, Errno)> {
        let set = |name: &Name, mtime: Timespec| {
            let parent = self.open(name.parent())?;
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::utimensat(&parent, name.file_name(), &times(mtime), flags)
        };
        let times = self.times.iter();
        times
            .filter_map(|(name, mtime)| Some((name.clone(), set(name, *mtime).err()?)))
            .collect()
    }

    /// The directory that `name` is in, made if it is not there.
    fn parent(&mut self, name: &Name) -> Result<BorrowedFd<'_>, Errno> {
        let wanted = name.parent();
        if self.last.as_ref().is_none_or(|(last, _)| last != wanted) {
            let handle = match self.open(wanted) {
                Err(Errno::NOENT) => self.make(wanted)?,
                opened => opened?,
            };
            self.last = Some((wanted.to_vec(), handle));
        }
        match &self.last {
            Some((_, handle)) => Ok(handle.as_fd()),
            None => Err(Errno::NOENT),
        }
    }

    fn open(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        step(self.root.as_fd(), if path.is_empty() { b"." } else { path })
    }

    fn make(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let mut handle = self.open(b"")?;
        for name in path.split(|byte| *byte == b'/') {
            match rustix::fs::mkdirat(&handle, name, DIRECTORY_MODE) {
                Err(Errno::EXIST) => {}
                made => made?,
            }
            handle = step(handle.as_fd(), name)?;
        }
        Ok(handle)
    }
}

/// Sets a file's modification time.
pub(super) fn set_mtime(file: &File, mtime: Timespec) -> Result<(), Errno> {
    rustix::fs::futimens(file, &times(mtime))
}

fn step(from: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat2(from, path, flags, Mode::empty(), RESOLVE)
}

fn times(mtime: Timespec) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: mtime,
    }
}
