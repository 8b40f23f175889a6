//! One tar into one directory: which members become what, and which are left out. The tar is read by the
//! parser that listed it (`files.jsonl`): what is extracted is what was listed.

use std::collections::HashSet;
use std::fs::File;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};

use impound_evidence::{
    Anomaly, Completeness, Expansion, FileType, Member, Part, Sha256, Sha256Hasher, TarVisitor,
    TarWalk,
};
use rustix::fs::Timespec;
use rustix::io::Errno;

use super::name::{Name, link_target, shown};
use super::pattern::Pattern;
use super::remarks::{Kind, Remarks};
use super::tree::{Tree, set_mtime};

/// Space that is left to others on the file system.
const RESERVE: u64 = 64 << 20;

/// What a tar may be small and still become.
const RATIO_FREE: u64 = 1 << 20;

/// Most names that are compared without regard to case: a table of 18 MiB is full then.
const NAMES: usize = 7 << 18;

/// What one extraction may cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Bytes of files, with their holes.
    pub(crate) bytes: u64,
    /// Entries of a tar.
    pub(crate) entries: u64,
    /// Bytes written for each byte that is read; holes are not written.
    pub(crate) ratio: u64,
}

/// What was made.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub(crate) struct Made {
    pub(crate) files: u64,
    pub(crate) directories: u64,
    pub(crate) links: u64,
    /// Of files, with their holes.
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

/// Memory: what the walk keeps (3 MiB), a buffer, and 9 bytes for each name, at most 18 MiB.
pub(super) struct Extraction<'a> {
    tree: Tree,
    wanted: &'a [Pattern],
    limits: Limits,
    /// Bytes that may still be written, by the ratio to the source.
    writable: u64,
    made: &'a mut Made,
    remarks: &'a mut Remarks,
    /// Prefix of the paths in remarks: the layer.
    within: String,
    hash: RandomState,
    /// Hashes of names with case folded.
    folded: HashSet<u64>,
    members: u64,
    /// The file whose contents come.
    open: Option<Open>,
    /// Once nothing more is extracted.
    stop: Option<Stop>,
}

/// A file that is being written.
struct Open {
    name: Name,
    file: File,
    size: u64,
    written: u64,
    sparse: Option<Expansion>,
    mtime: Option<Timespec>,
}

/// Why nothing more is extracted.
enum Stop {
    /// A limit.
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
        Self {
            tree,
            wanted,
            limits,
            writable: size.saturating_mul(limits.ratio).saturating_add(RATIO_FREE),
            made,
            remarks,
            within: String::new(),
            hash: RandomState::new(),
            folded: HashSet::new(),
            members: 0,
            open: None,
            stop: None,
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
        let room = self.room().min(self.writable);
        room.saturating_mul(2).saturating_add(64 << 20)
    }

    /// Extracts what is wanted, as far as the tar goes, and reads it to its end, but no more than `all`
    /// bytes.
    ///
    /// # Errors
    /// If this machine fails; what is wrong with the tar is a remark.
    pub(super) fn run(
        mut self,
        mut reader: impl Read,
        all: u64,
        watch: &dyn Fn(u64),
    ) -> io::Result<Ended> {
        let (mut walk, mut hasher) = (TarWalk::default(), Sha256Hasher::new());
        let mut buffer = vec![0; 256 << 10];
        let mut came = 0;
        let unread = loop {
            let n = match reader.read(&mut buffer) {
                Ok(0) => break None,
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => break Some(error.to_string()),
            };
            came += n as u64;
            if came > all {
                break Some(format!("it has more than the {all} bytes that it may have"));
            }
            let bytes = buffer.get(..n).unwrap_or_default();
            hasher.update(bytes);
            walk.update(bytes, &mut self);
            watch(n as u64);
            self.failed()?;
        };
        let broken_off = self.broken_off();
        self.note(broken_off);
        self.failed()?;
        let mut completeness = walk.finish();
        let unread = unread.map(|why| format!("the tar can't be read to its end: {why}"));
        if let Some(why) = &unread {
            completeness = Completeness::incomplete(why);
        }
        let stopped = match (self.stop.take(), &completeness) {
            (Some(Stop::Rest(why)), _) => Some(why),
            (_, Completeness::Incomplete { reasons }) => Some(reasons.join("; ")),
            _ => None,
        };
        let (tree, remarks, within) = (self.tree, self.remarks, self.within);
        if let Some(why) = stopped {
            let why = format!("everything from here on is left out: {why}");
            remarks.add(Kind::LeftOut, within.clone(), why)?;
        }
        tree.finish(|name, error| {
            let path = format!("{within}{}", shown(name.as_bytes()));
            let why = format!("its modification time could not be set: {error}");
            remarks.add(Kind::Changed, path, why)
        })?;
        Ok(Ended {
            sha256: unread.is_none().then(|| hasher.finish()),
            completeness,
        })
    }

    /// Bytes that files may still have.
    fn room(&self) -> u64 {
        self.limits.bytes.saturating_sub(self.made.bytes)
    }

    fn note(&mut self, result: Result<(), Stop>) {
        if let Err(stop) = result {
            self.open = None;
            self.stop.get_or_insert(stop);
        }
    }

    fn failed(&mut self) -> io::Result<()> {
        match self.stop.take_if(|stop| matches!(stop, Stop::Failed(_))) {
            Some(Stop::Failed(error)) => Err(io::Error::new(
                error.kind(),
                format!("stopped after {} bytes: {error}", self.made.bytes),
            )),
            _ => Ok(()),
        }
    }

    fn begin(&mut self, mut member: Member) -> Result<(), Stop> {
        self.members += 1;
        if self.members > self.limits.entries {
            return Err(Stop::Rest(format!(
                "it has more than {} entries (--max-entries)",
                self.limits.entries
            )));
        }
        let raw = std::mem::take(&mut member.path);
        let slash = raw.ends_with(b"/") && member.kind == FileType::File;
        let directory = member.kind == FileType::Directory || (slash && member.stored == 0);
        let name = match Name::parse(&raw) {
            Ok(Some(name)) => name,
            Ok(None) if directory => return Ok(()),
            Ok(None) => return self.leave_out(&raw, "it has no name"),
            Err(why) => return self.leave_out(&raw, why),
        };
        if !self.is_wanted(&name) {
            return Ok(());
        }
        if member.anomalies.has(Anomaly::PathTooLong) {
            return self.leave_out(&raw, "its name or its target is longer than 16 KiB");
        }
        if slash && !directory {
            return self.leave_out(
                &raw,
                "its name ends as a directory's does, and it has contents",
            );
        }
        self.odd(&member, &name, &raw)?;
        let mtime = match member.mtime {
            Some(time) => Some(Timespec {
                tv_sec: time.seconds,
                tv_nsec: time.nanos.into(),
            }),
            None => {
                self.remark(Kind::Changed, &raw, "its modification time is none")?;
                None
            }
        };
        let made = match member.kind {
            FileType::File if !directory => return self.file(member, name, mtime),
            FileType::File | FileType::Directory => {
                let made = self.tree.directory(&name, mtime);
                self.made.directories += u64::from(made.is_ok());
                made
            }
            FileType::Symlink => {
                return self.symlink(&name, &member.link.unwrap_or_default(), mtime);
            }
            FileType::HardLink => return self.hard_link(&name, &member.link.unwrap_or_default()),
            // Overlayfs's mark in a writable layer; a container's file system has no such device.
            FileType::CharacterDevice if member.device == Some((0, 0)) => {
                let why = "the container deleted the file of this name that its image has";
                return self.remark(Kind::Noted, &raw, why);
            }
            FileType::CharacterDevice | FileType::BlockDevice => {
                return self.leave_out(&raw, "it is a device");
            }
            FileType::Fifo => return self.leave_out(&raw, "it is a pipe"),
            FileType::Unknown => {
                let kind = member.typeflag.escape_ascii();
                let why = format!("it is of a type that is not known, '{kind}'");
                return self.leave_out(&raw, &why);
            }
        };
        self.refused(&raw, made)
    }

    /// What somebody should know of a member whatever becomes of it.
    fn odd(&mut self, member: &Member, name: &Name, raw: &[u8]) -> Result<(), Stop> {
        if raw.starts_with(b"/") {
            let why = "its name is absolute; it lies below the target";
            self.remark(Kind::Noted, raw, why)?;
        }
        for anomaly in [Anomaly::PathConflict, Anomaly::LinkConflict] {
            if member.anomalies.has(anomaly) {
                self.remark(Kind::Noted, raw, anomaly.meaning())?;
            }
        }
        if self.folded.len() < NAMES {
            let is_new = self.folded.insert(self.hash.hash_one(name.folded()));
            // The very same name is left out when it can't be made; a directory may come twice.
            if !is_new && !self.tree.has(name) {
                let why = "another entry has this name but for upper and lower case: not every file system can hold both";
                self.remark(Kind::Noted, raw, why)?;
            }
            if self.folded.len() == NAMES {
                let why = format!(
                    "names behind this one, the {NAMES}th, are not compared for upper and lower case"
                );
                self.remark(Kind::Noted, raw, &why)?;
            }
        }
        let mut lost = Vec::new();
        for (attribute, value) in &member.xattrs {
            match attribute.strip_prefix(b"trusted.overlay.") {
                Some(b"opaque") if value == b"y" => {
                    let why = "it takes the place of the image's directory, of which nothing shows";
                    self.remark(Kind::Noted, raw, why)?;
                }
                // Overlayfs's own bookkeeping.
                Some(_) => {}
                None => lost.push(shown(attribute)),
            }
        }
        if !lost.is_empty() {
            let why = format!("its extended attributes are not kept: {}", lost.join(", "));
            self.remark(Kind::Changed, raw, shown(why.as_bytes()).as_str())?;
        }
        let set_id = member.mode.is_some_and(|mode| mode & 0o6000 != 0);
        if set_id && matches!(member.kind, FileType::File | FileType::Directory) {
            let why = "its set-user-id or set-group-id bit is not kept";
            self.remark(Kind::Changed, raw, why)?;
        }
        Ok(())
    }

    fn file(
        &mut self,
        mut member: Member,
        name: Name,
        mtime: Option<Timespec>,
    ) -> Result<(), Stop> {
        let raw = name.as_bytes();
        let (size, stored) = (member.size, member.stored);
        for (bytes, most, option) in [
            (size, self.room(), "--max-bytes"),
            (stored, self.writable, "--max-ratio"),
        ] {
            if bytes > most {
                let why = format!(
                    "it has {bytes} bytes, more than the {most} that may still be written ({option})"
                );
                return self.leave_out(raw, &why);
            }
        }
        let free = self.tree.free()?;
        if free < stored.saturating_add(RESERVE) {
            return Err(Stop::Rest(format!(
                "{} of {stored} bytes does not fit: {free} bytes are free here",
                shown(raw)
            )));
        }
        let file = match self.tree.file(&name) {
            Ok(file) => file,
            Err(error) => return self.refused(raw, Err(error)),
        };
        self.writable = self.writable.saturating_sub(stored);
        self.open = Some(Open {
            file,
            size,
            written: 0,
            sparse: Expansion::of(&mut member, u64::MAX),
            mtime,
            name,
        });
        Ok(())
    }

    /// All contents of the open file came.
    fn close(&mut self) -> Result<(), Stop> {
        let Some(mut open) = self.open.take() else {
            return Ok(());
        };
        if let Some(sparse) = open.sparse.take() {
            let mut wrote = Ok(());
            let expanded = sparse.finish(|part| wrote = open.write(part));
            wrote?;
            if expanded.is_err() {
                self.tree.remove(&open.name).map_err(io::Error::from)?;
                let why = "it is a sparse file whose map can't be followed, or is read differently by other programs";
                return self.leave_out(open.name.as_bytes(), why);
            }
            // A hole at its end is no byte that was written.
            open.file.set_len(open.size)?;
        }
        self.settle(&open)
    }

    /// The tar ended; a file that is open then is kept as far as it came.
    fn broken_off(&mut self) -> Result<(), Stop> {
        let Some(open) = self.open.take() else {
            return Ok(());
        };
        self.settle(&open)?;
        let (written, size) = (open.written, open.size);
        let why = format!("the tar ends within it: {written} of {size} bytes are here");
        self.leave_out(open.name.as_bytes(), &why)
    }

    fn settle(&mut self, open: &Open) -> Result<(), Stop> {
        self.made.files += 1;
        self.made.bytes += open.written;
        if let Some(Err(error)) = open.mtime.map(|mtime| set_mtime(&open.file, mtime)) {
            let why = format!("its modification time could not be set: {error}");
            self.remark(Kind::Changed, open.name.as_bytes(), &why)?;
        }
        Ok(())
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
        let made = match Name::parse(target) {
            Ok(Some(old)) => self.tree.hard_link(name, &old),
            Ok(None) => Err(Errno::NOENT),
            Err(why) => {
                let why = format!("it is a hard link to {to}, and of that {why}");
                return self.leave_out(raw, &why);
            }
        };
        if made == Err(Errno::NOENT) {
            let why = format!("it is a hard link to {to}, which is no file that was extracted");
            return self.leave_out(raw, &why);
        }
        self.made.links += u64::from(made.is_ok());
        self.refused(raw, made)
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

impl TarVisitor for Extraction<'_> {
    fn member(&mut self, member: Member) {
        if self.stop.is_none() {
            let begun = self.begin(member);
            self.note(begun);
        }
    }

    fn map(&mut self, block: &[u8]) {
        if let Some(sparse) = self.open.as_mut().and_then(|open| open.sparse.as_mut()) {
            sparse.map(block);
        }
    }

    fn contents(&mut self, bytes: &[u8]) {
        if let Some(open) = &mut self.open {
            let wrote = open.contents(bytes);
            self.note(wrote.map_err(Stop::Failed));
        }
    }

    fn end(&mut self) {
        let closed = self.close();
        self.note(closed);
    }
}

impl Open {
    fn contents(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(mut sparse) = self.sparse.take() else {
            return self.write(Part::Data(bytes));
        };
        let mut wrote = Ok(());
        sparse.update(bytes, |part| {
            if wrote.is_ok() {
                wrote = self.write(part);
            }
        });
        self.sparse = Some(sparse);
        wrote
    }

    fn write(&mut self, part: Part<'_>) -> io::Result<()> {
        self.written += match part {
            Part::Data(bytes) => {
                self.file.write_all(bytes)?;
                bytes.len() as u64
            }
            Part::Hole(length) => {
                let most = |_| io::Error::other("a hole is larger than a file can be");
                let step = i64::try_from(length).map_err(most)?;
                self.file.seek(SeekFrom::Current(step))?;
                length
            }
        };
        Ok(())
    }
}
