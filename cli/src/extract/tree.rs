//! The directory that evidence is extracted below, and the only way anything is written there.
//!
//! Every name is resolved by the kernel from a handle on that directory with `openat2`, which refuses
//! links anywhere on the way (`RESOLVE_NO_SYMLINKS`) and whatever lies outside (`RESOLVE_BENEATH`), also
//! when somebody exchanges a directory for a link meanwhile. Files are new or nothing is written.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, ErrorKind, Read as _, Seek as _, Write as _};
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
    times: Times,
}

/// Modification times that directories get once nothing more is written into them. In a file without a
/// name: a tar may have a million directories.
struct Times(BufWriter<File>);

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
                times: Times::create(&root)?,
                root,
                last: None,
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

    /// Takes away a file that [`Tree::file`] made.
    pub(super) fn remove(&mut self, name: &Name) -> Result<(), Errno> {
        let parent = self.parent(name)?;
        rustix::fs::unlinkat(parent, name.file_name(), AtFlags::empty())
    }

    /// Whether something of exactly this name is there.
    pub(super) fn has(&self, name: &Name) -> bool {
        self.open(name.parent()).is_ok_and(|parent| {
            rustix::fs::statat(&parent, name.file_name(), AtFlags::SYMLINK_NOFOLLOW).is_ok()
        })
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
        match mtime {
            Some(mtime) => self.times.add(name, mtime),
            None => Ok(()),
        }
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
                &as_modified(mtime),
                AtFlags::SYMLINK_NOFOLLOW,
            ),
            None => Ok(()),
        }
    }

    /// Another name for a plain file that is there; `NOENT` if there is none.
    pub(super) fn hard_link(&mut self, name: &Name, old: &Name) -> Result<(), Errno> {
        let nothing = |error| match error {
            Errno::LOOP | Errno::NOTDIR | Errno::NAMETOOLONG => Errno::NOENT,
            error => error,
        };
        let from = self.open(old.parent()).map_err(nothing)?;
        let kind = rustix::fs::statat(&from, old.file_name(), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(nothing)?;
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

    /// Gives the directories their times; `failed` is told of those that could not be set.
    pub(super) fn finish(
        mut self,
        mut failed: impl FnMut(Name, Errno) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut times = self.times.read()?;
        while let Some((name, mtime)) = next(&mut times)? {
            let set = self.open(name.parent()).and_then(|parent| {
                let flags = AtFlags::SYMLINK_NOFOLLOW;
                rustix::fs::utimensat(&parent, name.file_name(), &as_modified(mtime), flags)
            });
            if let Err(error) = set {
                failed(name, error)?;
            }
        }
        Ok(())
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

impl Times {
    /// In the directory, which is empty.
    fn create(root: &OwnedFd) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let unnamed = rustix::fs::openat(root, ".", flags | OFlags::TMPFILE, FILE_MODE);
        let file = match unnamed {
            // Not every file system has files without a name; one whose name is taken away is the same.
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => {
                let (name, new) = (".impound-times", OFlags::CREATE | OFlags::EXCL);
                let file = rustix::fs::openat(root, name, flags | new, FILE_MODE)?;
                rustix::fs::unlinkat(root, name, AtFlags::empty())?;
                file
            }
            unnamed => unnamed?,
        };
        Ok(Self(BufWriter::new(File::from(file))))
    }

    fn add(&mut self, name: &Name, mtime: Timespec) -> Result<(), Errno> {
        let bytes = name.as_bytes();
        let head = [mtime.tv_sec, mtime.tv_nsec, bytes.len() as i64].map(i64::to_le_bytes);
        self.0
            .write_all(head.as_flattened())
            .and_then(|()| self.0.write_all(bytes))
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }

    fn read(&mut self) -> io::Result<BufReader<File>> {
        self.0.flush()?;
        let mut file = self.0.get_ref().try_clone()?;
        file.rewind()?;
        Ok(BufReader::new(file))
    }
}

fn next(times: &mut BufReader<File>) -> io::Result<Option<(Name, Timespec)>> {
    let mut number = || -> io::Result<i64> {
        let mut bytes = [0; 8];
        times.read_exact(&mut bytes)?;
        Ok(i64::from_le_bytes(bytes))
    };
    let tv_sec = match number() {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    };
    let (tv_nsec, length) = (number()?, number()?);
    let mut name = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    times.read_exact(&mut name)?;
    let name = Name::parse(&name).map_err(io::Error::other)?;
    Ok(name.map(|name| (name, Timespec { tv_sec, tv_nsec })))
}

/// Sets a file's modification time.
pub(super) fn set_mtime(file: &File, mtime: Timespec) -> Result<(), Errno> {
    rustix::fs::futimens(file, &as_modified(mtime))
}

fn step(from: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat2(from, path, flags, Mode::empty(), RESOLVE)
}

fn as_modified(mtime: Timespec) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: mtime,
    }
}
