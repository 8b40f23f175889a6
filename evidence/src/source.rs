//! Where a collection is read from when it is checked: a directory, or a store that can do the same.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::names::EvidencePath;

/// Most files and directories of one collection.
pub const FILE_LIMIT: usize = 1_000_000;

/// A collection that can be listed and read. Threads read several files at once.
pub trait EvidenceSource: Sync {
    /// Every file, and everything that can't be evidence.
    fn list(&self) -> io::Result<Listing>;

    /// Opens a file for one read from its start. `NotFound` if it isn't there.
    fn open(&self, path: &EvidencePath) -> io::Result<OpenFile>;
}

/// What is in a collection.
#[derive(Debug, Default)]
pub struct Listing {
    /// Files, in any order.
    pub files: Vec<EvidencePath>,
    /// What is no file of evidence: its name as text, and what is wrong with it.
    pub refused: Vec<(String, String)>,
    /// Directories with nothing in them, which are no evidence either.
    pub empty: Vec<EvidencePath>,
}

/// A file being read.
pub struct OpenFile {
    /// Bytes, as its metadata says.
    pub size: u64,
    /// Its contents.
    pub reader: Box<dyn Read + Send>,
}

/// A collection in a directory.
///
/// Nothing outside the directory is ever opened: links are not followed, at any depth, also when
/// somebody exchanges a directory for a link meanwhile. Devices, pipes and sockets are refused.
pub struct DirSource {
    root: PathBuf,
    handle: OwnedFd,
}

impl DirSource {
    /// The collection in the directory `root`, which may itself be named through links.
    pub fn open(root: impl AsRef<Path>) -> io::Result<Self> {
        let root = root.as_ref().to_owned();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let handle = rustix::fs::open(&root, flags, Mode::empty())?;
        Ok(Self { root, handle })
    }

    /// The directory as it was given.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A handle on the directory of these names below the root, with no link on the way.
    fn directory<'a>(&self, names: impl Iterator<Item = &'a str>) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut handle = rustix::fs::openat(&self.handle, ".", flags, Mode::empty())?;
        for name in names {
            handle = rustix::fs::openat(&handle, name, flags, Mode::empty())?;
        }
        Ok(handle)
    }

    /// Lists one directory into `listing`; its subdirectories go to `todo`.
    fn list_one(
        &self,
        directory: Option<&EvidencePath>,
        listing: &mut Listing,
        todo: &mut Vec<EvidencePath>,
    ) -> io::Result<()> {
        let handle = self.directory(directory.into_iter().flat_map(EvidencePath::segments))?;
        let below = |name: &str| match directory {
            Some(directory) => format!("{directory}/{name}"),
            None => name.to_owned(),
        };
        let mut is_empty = true;
        for entry in Dir::read_from(&handle)? {
            let entry = entry?;
            let name = entry.file_name();
            if [&b"."[..], b".."].contains(&name.to_bytes()) {
                continue;
            }
            is_empty = false;
            if listing.files.len() + listing.refused.len() + todo.len() >= FILE_LIMIT {
                return Err(io::Error::other(format!(
                    "expected at most {FILE_LIMIT} files and directories, got more"
                )));
            }
            let shown = below(&name.to_bytes().escape_ascii().to_string());
            let path = match name.to_str().ok().and_then(|name| below(name).parse().ok()) {
                Some(path) => path,
                None => {
                    listing
                        .refused
                        .push((shown, "has a name that no evidence can have".to_owned()));
                    continue;
                }
            };
            let kind = rustix::fs::statat(&handle, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode;
            match FileType::from_raw_mode(kind) {
                FileType::RegularFile => listing.files.push(path),
                FileType::Directory => todo.push(path),
                other => listing.refused.push((
                    shown,
                    format!("is {}, evidence is plain files only", kind_name(other)),
                )),
            }
        }
        if is_empty {
            listing.empty.extend(directory.cloned());
        }
        Ok(())
    }
}

impl EvidenceSource for DirSource {
    fn list(&self) -> io::Result<Listing> {
        let mut listing = Listing::default();
        let mut todo = Vec::new();
        self.list_one(None, &mut listing, &mut todo)?;
        while let Some(directory) = todo.pop() {
            self.list_one(Some(&directory), &mut listing, &mut todo)
                .map_err(|error| io::Error::new(error.kind(), format!("{directory}: {error}")))?;
        }
        Ok(listing)
    }

    fn open(&self, path: &EvidencePath) -> io::Result<OpenFile> {
        let mut names: Vec<&str> = path.segments().collect();
        let name = names.pop().ok_or(io::ErrorKind::NotFound)?;
        let directory = self.directory(names.into_iter())?;
        // Without NONBLOCK, opening a pipe would wait for a writer.
        let flags =
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let handle = match rustix::fs::openat(&directory, name, flags, Mode::empty()) {
            Err(Errno::LOOP) => {
                return Err(io::Error::other(
                    "is a symbolic link, evidence is plain files only",
                ));
            }
            handle => handle?,
        };
        let file = File::from(handle);
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("is no plain file"));
        }
        Ok(OpenFile {
            size: metadata.len(),
            reader: Box::new(file),
        })
    }
}

fn kind_name(kind: FileType) -> &'static str {
    match kind {
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a pipe",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        _ => "something else than a file",
    }
}
