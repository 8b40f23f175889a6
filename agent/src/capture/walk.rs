//! The walk over a directory: what is there, in an order that does not depend on the disk's.
//!
//! Every step goes from an open directory to a name in it and through no link. A name is opened as a bare
//! handle first (`O_PATH`, which touches nothing), looked at, and only a plain file or directory is then
//! opened for reading, through that handle: a device that a container puts in a file's place is never opened.

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, Statx, StatxAttributes, StatxFlags, getxattr, listxattr,
    open, openat, readlinkat, statx,
};
use rustix::io::Errno;

use super::output::Output;
use super::reasons::Reasons;
use super::sparse::Map;
use super::tar::{BLOCK, Header, Kind, Records, encode};

/// Most bytes of names of directories that are held in order to be sorted. A larger directory comes in
/// several runs, each sorted.
const NAMES: usize = 16 << 20;

/// What a name costs besides its bytes.
const NAME_COST: usize = 48;

/// Deepest directory: each one that is open takes a descriptor.
const DEPTH: usize = 256;

/// Most bytes of paths that later hard links are compared with. What is over it is written in full.
const LINKS: usize = 16 << 20;

/// Largest list of names, and largest value, of extended attributes that Linux has.
const ATTRIBUTE: usize = 64 << 10;

/// Most bytes of extended attributes of one file: readers take a PAX header of at most 1 MiB.
const ATTRIBUTES: usize = 768 << 10;

/// Why a walk ended early.
#[derive(Debug)]
pub(super) enum Stop {
    /// Nobody reads any more.
    Gone,
    /// The directory itself cannot be read.
    Root(Errno),
}

/// What a walk saw.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) members: u64,
    /// Gone between their directory's reading and their own.
    pub(super) vanished: u64,
    /// Written to while they were read.
    pub(super) changed: u64,
}

/// One walk.
pub(super) struct Walk {
    out: Output,
    reasons: Reasons,
    seen: Seen,
    /// Where we are, without a slash at its end; empty: the root.
    path: Vec<u8>,
    /// Bytes of names that wait in all levels.
    held: usize,
    /// By inode: the path that a file was written under.
    links: HashMap<u64, Vec<u8>>,
    linked: usize,
    /// The file system and mount that is walked.
    place: Place,
    buffer: Vec<u8>,
}

/// A file system, and which mount of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Place {
    device: (u32, u32),
    /// 0 before Linux 5.8.
    mount: u64,
}

impl Place {
    fn of(stat: &Statx) -> Self {
        let known = stat.stx_mask & StatxFlags::MNT_ID.bits() != 0;
        Self {
            device: (stat.stx_dev_major, stat.stx_dev_minor),
            mount: if known { stat.stx_mnt_id } else { 0 },
        }
    }
}

/// A directory that is being read.
struct Level {
    dir: Dir,
    names: std::vec::IntoIter<CString>,
    whole: bool,
    /// Length of the path of the directory above.
    above: usize,
}

impl Walk {
    pub(super) fn new(out: Output, reasons: Reasons) -> Self {
        Self {
            out,
            reasons,
            seen: Seen::default(),
            path: Vec::new(),
            held: 0,
            links: HashMap::new(),
            linked: 0,
            place: Place::default(),
            buffer: Vec::new(),
        }
    }

    /// Writes `root` and all below it as a tar.
    pub(super) fn run(mut self, root: OwnedFd) -> Result<Seen, Stop> {
        let stat = look(root.as_fd()).map_err(Stop::Root)?;
        self.place = Place::of(&stat);
        let dir = readable(&root, OFlags::DIRECTORY).map_err(Stop::Root)?;
        self.plain(&root, &stat, Kind::Directory, b"", (0, 0))?;
        let mut levels = vec![Level::new(dir, 0).map_err(Stop::Root)?];
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.next(&mut self.held, &self.path, &self.reasons) else {
                self.path.truncate(level.above);
                levels.pop();
                continue;
            };
            let above = self.path.len();
            if above > 0 {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(name.as_bytes());
            let below = match level.dir.fd() {
                Ok(parent) => self.entry(parent, &name)?,
                Err(errno) => {
                    self.note("cannot be reached", errno);
                    None
                }
            };
            match below.map(|dir| Level::new(dir, above)) {
                Some(Ok(_)) if levels.len() >= DEPTH => {
                    let what =
                        format!("is deeper than {DEPTH} directories: what is in it is not here");
                    self.reasons.add(&self.path, &what);
                }
                Some(Ok(level)) => {
                    levels.push(level);
                    continue;
                }
                Some(Err(errno)) => self.note("cannot be listed", errno),
                None => {}
            }
            self.path.truncate(above);
        }
        self.out.finish()?;
        Ok(self.seen)
    }

    /// Writes what `name` is; a directory is given back, to be walked.
    fn entry(&mut self, parent: BorrowedFd<'_>, name: &CString) -> Result<Option<OwnedFd>, Stop> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let node = match openat(parent, name, flags, Mode::empty()) {
            Ok(node) => node,
            Err(Errno::NOENT) => {
                self.seen.vanished += 1;
                return Ok(None);
            }
            Err(errno) => {
                self.note("cannot be looked at", errno);
                return Ok(None);
            }
        };
        let stat = match look(node.as_fd()) {
            Ok(stat) => stat,
            Err(errno) => {
                self.note("cannot be looked at", errno);
                return Ok(None);
            }
        };
        if Place::of(&stat) != self.place {
            let what = "is a mount inside of the layer: what is in it is not here";
            self.reasons.add(&self.path, what);
            return Ok(None);
        }
        let kind = FileType::from_raw_mode(stat.stx_mode.into());
        let device = (stat.stx_rdev_major, stat.stx_rdev_minor);
        let whiteout = kind == FileType::CharacterDevice && device == (0, 0);
        // All whiteouts of a layer may be one inode; each marks another file.
        if stat.stx_nlink > 1 && kind != FileType::Directory && !whiteout {
            if let Some(first) = self.links.get(&stat.stx_ino) {
                let first = first.clone();
                self.link(&stat, &first)?;
                return Ok(None);
            }
            let cost = self.path.len() + NAME_COST;
            if self.linked + cost <= LINKS {
                self.linked += cost;
                self.links.insert(stat.stx_ino, self.path.clone());
            }
        }
        match kind {
            FileType::Directory => {
                self.plain(&node, &stat, Kind::Directory, b"", (0, 0))?;
                match readable(&node, OFlags::DIRECTORY) {
                    Ok(dir) => return Ok(Some(dir)),
                    Err(errno) => self.note("cannot be listed", errno),
                }
            }
            FileType::RegularFile => self.file(&node, &stat)?,
            FileType::Symlink => match readlinkat(&node, "", Vec::new()) {
                Ok(to) => self.plain(&node, &stat, Kind::Symlink, to.as_bytes(), (0, 0))?,
                Err(errno) => self.note("has a target that cannot be read", errno),
            },
            FileType::CharacterDevice => {
                self.plain(&node, &stat, Kind::Character, b"", device)?;
            }
            FileType::BlockDevice => self.plain(&node, &stat, Kind::Block, b"", device)?,
            FileType::Fifo => self.plain(&node, &stat, Kind::Fifo, b"", (0, 0))?,
            // Tars have no sockets.
            _ => self.plain(&node, &stat, Kind::File, b"", (0, 0))?,
        }
        Ok(None)
    }

    /// A plain file with its contents. As many bytes as it had when it was looked at, whatever becomes of it.
    fn file(&mut self, node: &OwnedFd, stat: &Statx) -> Result<(), Stop> {
        let size = stat.stx_size;
        if size == 0 {
            return self.plain(node, stat, Kind::File, b"", (0, 0));
        }
        let file = match readable(node, OFlags::NONBLOCK) {
            Ok(file) => file,
            Err(errno) => {
                self.note("cannot be read, its contents are not here", errno);
                return self.plain(node, stat, Kind::File, b"", (0, 0));
            }
        };
        let map = match stat.stx_blocks.saturating_mul(BLOCK) < size {
            // Without a map it is written in full.
            true => Map::of(&file, size).ok().flatten(),
            false => None,
        };
        let records = self.records(node, stat, false);
        let Some(map) = map else {
            self.header(stat, Kind::File, b"", (0, 0), (size, None), records)?;
            self.contents(&file, 0, size)?;
            self.out.pad(size)?;
            return self.look_again(&file, stat);
        };
        let text = map.encode();
        let stored = text.len() as u64 + map.data();
        self.header(stat, Kind::File, b"", (0, 0), (stored, Some(size)), records)?;
        self.out.write(&text)?;
        for (offset, length) in map.islands() {
            self.contents(&file, *offset, *length)?;
        }
        self.out.pad(stored)?;
        self.look_again(&file, stat)
    }

    /// `length` bytes from `offset`; zeros for what is not there any more.
    fn contents(&mut self, file: &OwnedFd, offset: u64, length: u64) -> Result<(), Stop> {
        let mut came = 0;
        while came < length {
            let what = match self.out.read(file, offset + came, length - came)? {
                Ok(0) => format!(
                    "became shorter while it was read: it ended at byte {}",
                    offset + came
                ),
                Ok(count) => {
                    came += count;
                    continue;
                }
                Err(errno) => format!("cannot be read at byte {}: {errno}", offset + came),
            };
            self.reasons
                .add(&self.path, &format!("{what}; the rest is zeros here"));
            return self.out.zeros(length - came);
        }
        Ok(())
    }

    /// What was written to meanwhile is counted: a live file is as consistent as its container.
    fn look_again(&mut self, file: &OwnedFd, before: &Statx) -> Result<(), Stop> {
        let time = |stat: &Statx| (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec);
        if let Ok(after) = look(file.as_fd())
            && (time(&after), after.stx_size) != (time(before), before.stx_size)
        {
            self.seen.changed += 1;
        }
        Ok(())
    }

    /// A member without contents.
    fn plain(
        &mut self,
        node: &OwnedFd,
        stat: &Statx,
        kind: Kind,
        link: &[u8],
        device: (u32, u32),
    ) -> Result<(), Stop> {
        let records = self.records(node, stat, kind == Kind::Character && device == (0, 0));
        self.header(stat, kind, link, device, (0, None), records)
    }

    /// A further name of a file that is written already.
    fn link(&mut self, stat: &Statx, first: &[u8]) -> Result<(), Stop> {
        let records = times(stat);
        self.header(stat, Kind::HardLink, first, (0, 0), (0, None), records)
    }

    fn header(
        &mut self,
        stat: &Statx,
        kind: Kind,
        link: &[u8],
        device: (u32, u32),
        (stored, sparse): (u64, Option<u64>),
        records: Records,
    ) -> Result<(), Stop> {
        let path = match (kind, self.path.as_slice()) {
            (Kind::Directory, []) => b"./".to_vec(),
            (Kind::Directory, path) => [path, b"/"].concat(),
            (_, path) => path.to_vec(),
        };
        let header = Header {
            path: &path,
            kind,
            mode: u32::from(stat.stx_mode) & 0o7777,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            stored,
            mtime: stat.stx_mtime.tv_sec,
            link,
            device,
            sparse,
        };
        self.seen.members += 1;
        self.out.write(&encode(&header, records))
    }

    /// Everything about a file that ustar has no place for.
    fn records(&mut self, node: &OwnedFd, stat: &Statx, whiteout: bool) -> Records {
        let mut records = times(stat);
        if stat.stx_mask & StatxFlags::BTIME.bits() != 0 {
            let born = stat.stx_btime;
            records.time("LIBARCHIVE.creationtime", born.tv_sec, born.tv_nsec);
        }
        let flags: Vec<&str> = [
            (StatxAttributes::IMMUTABLE, "schg"),
            (StatxAttributes::APPEND, "sappnd"),
        ]
        .into_iter()
        .filter_map(|(flag, name)| stat.stx_attributes.contains(flag).then_some(name))
        .collect();
        if !flags.is_empty() {
            records.add(b"SCHILY.fflags", flags.join(",").as_bytes());
        }
        if FileType::from_raw_mode(stat.stx_mode.into()) == FileType::Socket {
            records.add(b"SCHILY.filetype", b"socket");
        }
        if whiteout {
            records.add(b"IMPOUND.whiteout", b"1");
        }
        self.attributes(node, &mut records);
        records
    }

    /// All extended attributes, through the handle: also of what is never opened.
    fn attributes(&mut self, node: &OwnedFd, records: &mut Records) {
        let handle = handle(node);
        self.buffer.clear();
        self.buffer.reserve(ATTRIBUTE);
        match listxattr(&handle, spare_capacity(&mut self.buffer)) {
            Ok(0) | Err(Errno::OPNOTSUPP) => return,
            Ok(_) => {}
            Err(errno) => return self.note("has extended attributes that cannot be listed", errno),
        }
        let names = std::mem::take(&mut self.buffer);
        let mut total = 0;
        let mut sorted: Vec<&[u8]> = names.split(|byte| *byte == 0).collect();
        sorted.sort_unstable();
        for name in sorted.into_iter().filter(|name| !name.is_empty()) {
            self.buffer.clear();
            self.buffer.reserve(ATTRIBUTE);
            match getxattr(&handle, name, spare_capacity(&mut self.buffer)) {
                Ok(length) if total + length + name.len() > ATTRIBUTES => {
                    let what = format!(
                        "has more than {ATTRIBUTES} bytes of extended attributes: not all are here"
                    );
                    self.reasons.add(&self.path, &what);
                    return;
                }
                Ok(length) => {
                    total += length + name.len();
                    records.attribute(name, &self.buffer);
                }
                // Removed since the list.
                Err(Errno::NODATA) => {}
                Err(errno) => {
                    let what = format!(
                        "has the extended attribute {} which cannot be read",
                        name.escape_ascii()
                    );
                    self.note(&what, errno);
                }
            }
        }
    }

    fn note(&self, what: &str, errno: Errno) {
        self.reasons.add(&self.path, &format!("{what}: {errno}"));
    }
}

impl Level {
    fn new(dir: OwnedFd, above: usize) -> Result<Self, Errno> {
        Ok(Self {
            dir: Dir::new(dir)?,
            names: Vec::new().into_iter(),
            whole: false,
            above,
        })
    }

    /// The next name, in order.
    fn next(&mut self, held: &mut usize, path: &[u8], reasons: &Reasons) -> Option<CString> {
        let cost = |name: &CString| name.as_bytes().len() + NAME_COST;
        if self.names.len() == 0 && !self.whole {
            let mut names = Vec::new();
            while names.is_empty() || *held < NAMES {
                let entry = match self.dir.read() {
                    Some(Ok(entry)) => entry,
                    Some(Err(errno)) => {
                        reasons.add(path, &format!("cannot be listed to its end: {errno}"));
                        self.whole = true;
                        break;
                    }
                    None => {
                        self.whole = true;
                        break;
                    }
                };
                let name = entry.file_name();
                if !matches!(name.to_bytes(), b"." | b"..") {
                    let name = name.to_owned();
                    *held += cost(&name);
                    names.push(name);
                }
            }
            names.sort_unstable();
            self.names = names.into_iter();
        }
        let name = self.names.next()?;
        *held = held.saturating_sub(cost(&name));
        Some(name)
    }
}

fn times(stat: &Statx) -> Records {
    let mut records = Records::default();
    for (key, time) in [
        ("mtime", stat.stx_mtime),
        ("atime", stat.stx_atime),
        ("ctime", stat.stx_ctime),
    ] {
        records.time(key, time.tv_sec, time.tv_nsec);
    }
    if stat.stx_nlink > 1 && FileType::from_raw_mode(stat.stx_mode.into()) != FileType::Directory {
        records.add(b"SCHILY.ino", stat.stx_ino.to_string().as_bytes());
        records.add(b"SCHILY.nlink", stat.stx_nlink.to_string().as_bytes());
    }
    records
}

fn look(node: BorrowedFd<'_>) -> Result<Statx, Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
    let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::MNT_ID;
    statx(node, "", flags, wanted)
}

/// What a handle is of, opened for reading. Without leaving a trace in its access time where that is allowed:
/// to the owner, and to who has CAP_FOWNER.
fn readable(node: &OwnedFd, more: OFlags) -> Result<OwnedFd, Errno> {
    let path = handle(node);
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | more;
    match open(&path, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => open(&path, flags, Mode::empty()),
        other => other,
    }
}

/// A handle's own name: the kernel goes straight to what it is of.
fn handle(node: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", node.as_raw_fd())
}
