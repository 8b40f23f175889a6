//! One tar into one directory: which entries become what, and which are left out.

use std::collections::HashSet;
use std::fs::File;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, Read, Write as _};

use impound_evidence::{Completeness, Sha256};
use rustix::fs::Timespec;
use rustix::io::Errno;
use tar::{Entry, EntryType};

use super::header::{mtime, unreadable};
use super::input::{Bounds, Input};
use super::name::{Name, link_target, shown};
use super::pattern::Pattern;
use super::remarks::{Kind, Remarks};
use super::tree::{Tree, set_mtime};

/// Space that is left to others on the file system.
const RESERVE: u64 = 64 << 20;

/// What a tar may be small and still become.
const RATIO_FREE: u64 = 1 << 20;

/// What one extraction may cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Bytes written.
    pub(crate) bytes: u64,
    /// Entries of a tar.
    pub(crate) entries: u64,
    /// Bytes written for each byte that is read.
    pub(crate) ratio: u64,
}

/// What was made.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub(crate) struct Made {
    pub(crate) files: u64,
    pub(crate) directories: u64,
    pub(crate) links: u64,
    pub(crate) bytes: u64,
}

impl Made {
    pub(super) fn is_nothing(&self) -> bool {
        self.files + self.directories + self.links == 0
    }
}

/// How a tar ended.
pub(super) struct Ended {
    /// Over all its bytes; none if it could not be read to its end, which is a remark.
    pub(super) sha256: Option<Sha256>,
    pub(super) completeness: Completeness,
}

pub(super) struct Extraction<'a> {
    tree: Tree,
    wanted: &'a [Pattern],
    limits: Limits,
    /// Bytes that the source may become.
    room: u64,
    made: &'a mut Made,
    remarks: &'a mut Remarks,
    /// Prefix of the paths in remarks: the layer.
    within: String,
    hash: RandomState,
    /// Hashes of names with case folded, and of the files that are there.
    folded: HashSet<u64>,
    files: HashSet<u64>,
    buffer: Vec<u8>,
}

/// Why nothing more is extracted.
enum Stop {
    /// The tar, or a limit.
    Rest(String),
    /// This machine.
    Failed(io::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

impl<'a> Extraction<'a> {
    /// `size`: bytes of the source as stored.
    pub(super) fn new(
        tree: Tree,
        size: u64,
        wanted: &'a [Pattern],
        limits: Limits,
        made: &'a mut Made,
        remarks: &'a mut Remarks,
    ) -> Self {
        let room = limits
            .bytes
            .min(size.saturating_mul(limits.ratio).saturating_add(RATIO_FREE));
        Self {
            tree,
            wanted,
            limits,
            room,
            made,
            remarks,
            within: String::new(),
            hash: RandomState::new(),
            folded: HashSet::new(),
            files: HashSet::new(),
            buffer: vec![0; 256 << 10],
        }
    }

    /// Names `layer` in every remark.
    pub(super) fn within(mut self, layer: &str) -> Self {
        self.within = format!("{layer}/");
        self
    }

    /// Most bytes that a compressed tar of this size may be: twice what may come of it, because it
    /// also has headers.
    pub(super) fn decompressed(&self) -> u64 {
        self.room.saturating_mul(2).saturating_add(64 << 20)
    }

    /// Extracts what is wanted, as far as the tar goes, and reads it to its end, but no more than `all`
    /// bytes.
    ///
    /// # Errors
    /// If this machine fails; what is wrong with the tar is a remark.
    pub(super) fn run(
        mut self,
        reader: impl Read,
        all: u64,
        watch: &dyn Fn(u64),
    ) -> io::Result<Ended> {
        let bounds = Bounds::new(all);
        let mut input = Input::new(reader, &bounds, watch);
        let stopped = self.entries(&mut input, &bounds);
        let ended = stopped.is_ok();
        let written = self.made.bytes;
        match stopped {
            Ok(()) => {}
            Err(Stop::Rest(why)) => {
                let why = format!("everything from here on is left out: {why}");
                self.remarks.add(Kind::LeftOut, self.within.clone(), why)?;
            }
            Err(Stop::Failed(error)) => {
                let what = format!("stopped after {written} bytes: {error}");
                return Err(io::Error::new(error.kind(), what));
            }
        }
        for (name, error) in self.tree.finish() {
            let path = format!("{}{}", self.within, shown(name.as_bytes()));
            let why = format!("its modification time could not be set: {error}");
            self.remarks.add(Kind::Changed, path, why)?;
        }
        let why = match input.finish() {
            Ok((sha256, completeness, more)) => {
                if more && ended {
                    let why = "more than zeros comes after the end of the tar; nothing of it is extracted";
                    self.remarks.add(Kind::LeftOut, self.within, why)?;
                }
                return Ok(Ended {
                    sha256: Some(sha256),
                    completeness,
                });
            }
            Err(error) => format!("the tar can't be read to its end: {error}"),
        };
        self.remarks.add(Kind::LeftOut, self.within, why.clone())?;
        Ok(Ended {
            sha256: None,
            completeness: Completeness::Incomplete { reasons: vec![why] },
        })
    }

    fn entries<R: Read>(&mut self, input: &mut Input<'_, R>, bounds: &Bounds) -> Result<(), Stop> {
        let mut archive = tar::Archive::new(input);
        let broken = |error: io::Error| Stop::Rest(format!("the tar is broken: {error}"));
        let mut number = 0;
        for entry in archive.entries().map_err(broken)? {
            let mut entry = entry.map_err(broken)?;
            number += 1;
            if number > self.limits.entries {
                return Err(Stop::Rest(format!(
                    "it has more than {} entries (--max-entries)",
                    self.limits.entries
                )));
            }
            // Of a sparse file the header has what lies in the tar, the entry what it becomes.
            let stored = match entry.header().entry_type() {
                EntryType::GNUSparse => entry.header().entry_size().unwrap_or(0),
                _ => entry.size(),
            };
            bounds.entry(entry.raw_file_position(), stored);
            self.entry(&mut entry)?;
        }
        Ok(())
    }

    fn entry<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<(), Stop> {
        let raw = entry.path_bytes().into_owned();
        let name = match Name::parse(&raw) {
            Ok(Some(name)) => name,
            Ok(None) => return Ok(()),
            Err(why) => return self.leave_out(&raw, why),
        };
        if !self.is_wanted(&name) {
            return Ok(());
        }
        if raw.starts_with(b"/") {
            self.remark(
                Kind::Noted,
                &raw,
                "its name is absolute; it lies below the target",
            )?;
        }
        if !self.folded.insert(self.hash.hash_one(name.folded())) {
            self.same_name(&name, &raw)?;
        }
        let mtime = match mtime(entry) {
            Ok(mtime) => Some(mtime),
            Err(why) => {
                self.remark(Kind::Changed, &raw, why)?;
                None
            }
        };
        let kind = entry.header().entry_type();
        let directory = kind.is_dir() || (kind.is_file() && raw.ends_with(b"/"));
        let made = match kind {
            _ if directory => {
                let made = self.tree.directory(&name, mtime);
                self.made.directories += u64::from(made.is_ok());
                made
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                return self.file(entry, &name, mtime);
            }
            EntryType::Symlink => {
                return self.symlink(&name, &entry.link_name_bytes().unwrap_or_default(), mtime);
            }
            EntryType::Link => {
                return self.hard_link(&name, &entry.link_name_bytes().unwrap_or_default());
            }
            EntryType::Char | EntryType::Block => return self.leave_out(&raw, "it is a device"),
            EntryType::Fifo => return self.leave_out(&raw, "it is a pipe"),
            EntryType::XGlobalHeader => return Ok(()),
            other => {
                let kind = other.as_byte().escape_ascii().to_string();
                return self.leave_out(
                    &raw,
                    &format!("it is of a type that is not known, '{kind}'"),
                );
            }
        };
        self.refused(&raw, made)
    }

    fn file<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        name: &Name,
        mtime: Option<Timespec>,
    ) -> Result<(), Stop> {
        let raw = name.as_bytes();
        let size = entry.size();
        let broken = |error: io::Error| Stop::Rest(format!("the tar is broken: {error}"));
        if let Some(why) = unreadable(entry).map_err(broken)? {
            return self.leave_out(raw, why);
        }
        if size > self.room.saturating_sub(self.made.bytes) {
            let why = format!(
                "it has {size} bytes, more than the {} that may still be written (--max-bytes, --max-ratio)",
                self.room.saturating_sub(self.made.bytes)
            );
            return self.leave_out(raw, &why);
        }
        let free = self.tree.free()?;
        if free < size.saturating_add(RESERVE) {
            return Err(Stop::Rest(format!(
                "{} of {size} bytes does not fit: {free} bytes are free here",
                shown(raw)
            )));
        }
        let mut file = match self.tree.file(name) {
            Ok(file) => file,
            Err(error) => return self.refused(raw, Err(error)),
        };
        let written = self.copy(entry, &mut file)?;
        self.made.files += 1;
        self.made.bytes += written;
        self.files.insert(self.hash.hash_one(raw));
        if let Some(Err(error)) = mtime.map(|mtime| set_mtime(&file, mtime)) {
            let why = format!("its modification time could not be set: {error}");
            self.remark(Kind::Changed, raw, &why)?;
        }
        if written < size {
            let why = format!("the tar ends within it: {written} of {size} bytes are here");
            return self.leave_out(raw, &why);
        }
        if entry.header().mode().is_ok_and(|mode| mode & 0o6000 != 0) {
            self.remark(
                Kind::Changed,
                raw,
                "its set-user-id or set-group-id bit is not kept",
            )?;
        }
        Ok(())
    }

    fn copy(&mut self, from: &mut impl Read, to: &mut File) -> Result<u64, Stop> {
        let mut written = 0;
        loop {
            let n = match from.read(&mut self.buffer) {
                Ok(0) => return Ok(written),
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Stop::Rest(format!("the tar can't be read: {error}"))),
            };
            to.write_all(self.buffer.get(..n).unwrap_or_default())?;
            written += n as u64;
        }
    }

    fn symlink(&mut self, name: &Name, target: &[u8], mtime: Option<Timespec>) -> Result<(), Stop> {
        let kept = match link_target(name, target) {
            Ok(kept) => kept,
            Err(why) => {
                let why = format!("it is a link to {}, and {why}", shown(target));
                return self.leave_out(name.as_bytes(), &why);
            }
        };
        let made = self.tree.symlink(name, &kept, mtime);
        if made.is_ok() {
            self.made.links += 1;
            if kept != target {
                let why = format!(
                    "it is a link to {}, kept as {}, which is the same below the target",
                    shown(target),
                    shown(&kept)
                );
                return self.remark(Kind::Changed, name.as_bytes(), &why);
            }
        }
        self.refused(name.as_bytes(), made)
    }

    fn hard_link(&mut self, name: &Name, target: &[u8]) -> Result<(), Stop> {
        let raw = name.as_bytes();
        let to = shown(target);
        let old = match Name::parse(target) {
            Ok(Some(old)) if self.files.contains(&self.hash.hash_one(old.as_bytes())) => old,
            Ok(_) => {
                let why = format!("it is a hard link to {to}, which is no file that was extracted");
                return self.leave_out(raw, &why);
            }
            Err(why) => {
                let why = format!("it is a hard link to {to}, and of that {why}");
                return self.leave_out(raw, &why);
            }
        };
        let made = self.tree.hard_link(name, &old);
        if made.is_ok() {
            self.made.links += 1;
            self.files.insert(self.hash.hash_one(raw));
        }
        self.refused(raw, made)
    }

    /// A second name that is the first one but for case, or exactly.
    fn same_name(&mut self, name: &Name, raw: &[u8]) -> Result<(), Stop> {
        // The very same name is left out when it can't be made; a directory may come twice.
        if self.files.contains(&self.hash.hash_one(name.as_bytes())) {
            return Ok(());
        }
        self.remark(
            Kind::Noted,
            raw,
            "another entry has this name but for upper and lower case, or has it too: not every file system can hold both",
        )
    }

    fn is_wanted(&self, name: &Name) -> bool {
        let mut wanted = self.wanted.iter();
        self.wanted.is_empty() || wanted.any(|pattern| pattern.matches(name.as_bytes()))
    }

    /// What the kernel says to an entry; a file system that fails or is full ends the extraction.
    fn refused(&mut self, raw: &[u8], made: Result<(), Errno>) -> Result<(), Stop> {
        let why = match made {
            Ok(()) => return Ok(()),
            Err(Errno::EXIST) => {
                "something of this name is there already; it is not overwritten".to_owned()
            }
            Err(Errno::LOOP) => {
                "a link is on the way to it; nothing is written through links".to_owned()
            }
            Err(Errno::NOTDIR) => "what should be one of its directories is none".to_owned(),
            Err(Errno::NAMETOOLONG) => "its name is longer than this file system takes".to_owned(),
            Err(Errno::INVAL | Errno::ILSEQ) => {
                "this file system does not take its name".to_owned()
            }
            Err(Errno::MLINK) => {
                "its file has as many hard links as this file system takes".to_owned()
            }
            Err(Errno::PERM | Errno::OPNOTSUPP) => {
                "this file system can't hold such an entry".to_owned()
            }
            Err(Errno::NOENT) => "the file that it links to is not there".to_owned(),
            Err(error) => return Err(Stop::Failed(error.into())),
        };
        self.leave_out(raw, &why)
    }

    fn leave_out(&mut self, raw: &[u8], why: &str) -> Result<(), Stop> {
        self.remark(Kind::LeftOut, raw, why)
    }

    fn remark(&mut self, kind: Kind, raw: &[u8], why: &str) -> Result<(), Stop> {
        let path = format!("{}{}", self.within, shown(raw));
        Ok(self.remarks.add(kind, path, why)?)
    }
}
