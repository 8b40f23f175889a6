//! `bodyfile` and `hashes.md5`: for tools that know files by their MD5.
//!
//! The body file is that of The Sleuth Kit 3:
//! `MD5|name|inode|mode_as_string|UID|GID|size|atime|mtime|ctime|crtime`.

use std::io::Write as _;

use md5::{Digest as _, Md5};

use super::contents::Contents;
use super::room::Room;
use super::{Limits, sums};
use crate::tar::{FileType, Member, TarTime, Visitor, Walk};

/// Lists a tar with MD5 hashes as its bytes pass.
pub struct BodyIndex {
    walk: Walk,
    listing: Listing,
}

/// What a body index has to write, in pieces, to be taken away between two updates.
#[derive(Debug, Default)]
pub struct BodyLines {
    /// Of `bodyfile`.
    pub body: Vec<u8>,
    /// Of `hashes.md5`.
    pub md5: Vec<u8>,
}

impl BodyIndex {
    /// An index at the first byte.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            walk: Walk::default(),
            listing: Listing {
                room: Room::new(&limits),
                holes: limits.holes,
                open: None,
                lines: BodyLines::default(),
            },
        }
    }

    /// Takes the next bytes, any number of them.
    pub fn update(&mut self, bytes: &[u8]) {
        self.walk.update(bytes, &mut self.listing);
    }

    /// The lines so far, to be taken away.
    pub fn lines(&mut self) -> &mut BodyLines {
        &mut self.listing.lines
    }

    /// The rest of the lines.
    #[must_use]
    pub fn finish(mut self) -> BodyLines {
        self.listing.close(true);
        self.listing.lines
    }
}

struct Listing {
    room: Room,
    /// Bytes of holes that are still hashed.
    holes: u64,
    open: Option<(Member, Option<Contents<Md5>>)>,
    lines: BodyLines,
}

impl Visitor for Listing {
    fn member(&mut self, mut member: Member) {
        self.close(true);
        if !self.room.take(&member) {
            return;
        }
        super::paths::examine(&mut member);
        let contents = Contents::begin(&mut member, self.holes, Md5::new());
        self.open = Some((member, contents));
    }

    fn map(&mut self, block: &[u8]) {
        if let Some((_, Some(contents))) = &mut self.open {
            contents.map(block);
        }
    }

    fn contents(&mut self, bytes: &[u8]) {
        if let Some((_, Some(contents))) = &mut self.open {
            contents.update(bytes);
        }
    }

    fn end(&mut self) {
        self.close(false);
    }
}

impl Listing {
    fn close(&mut self, broken: bool) {
        let Some((member, contents)) = self.open.take() else {
            return;
        };
        // What keeps a file from having a hash is said in files.jsonl.
        let md5 = contents
            .filter(|_| !broken)
            .and_then(|contents| contents.finish(&mut self.holes).ok())
            .map(Md5::finalize);
        let md5 = md5.as_ref().map(|digest| digest.as_slice());
        body(&mut self.lines.body, &member, md5);
        if let Some(md5) = md5 {
            sums::write(&mut self.lines.md5, md5, &member);
        }
    }
}

/// Adds a member's line. As `fls -m /` writes it, but for two characters that would end a field:
/// `|` becomes `%7C` and `%` before two hexadecimal digits `%25`, which `mactime` turns back.
fn body(to: &mut Vec<u8>, member: &Member, md5: Option<&[u8]>) {
    match md5 {
        Some(digest) => sums::hex(to, digest),
        None => to.push(b'0'),
    }
    to.push(b'|');
    if member.path.first() != Some(&b'/') {
        to.push(b'/');
    }
    name(to, member.path.strip_prefix(b"./").unwrap_or(&member.path));
    if let (FileType::Symlink, Some(link)) = (member.kind, &member.link) {
        to.extend_from_slice(b" -> ");
        name(to, link);
    }
    let mode = mode(member.kind, member.mode.unwrap_or_default());
    let time = |time: Option<TarTime>| time.map_or(0, |time| time.seconds.max(0));
    // No inode: a tar has none. Writing to memory doesn't fail.
    let _ = writeln!(
        to,
        "|0|{mode}|{}|{}|{}|{}|{}|{}|{}",
        member.uid.unwrap_or_default(),
        member.gid.unwrap_or_default(),
        member.size,
        time(member.atime),
        time(member.mtime),
        time(member.ctime),
        time(member.born),
    );
}

fn name(to: &mut Vec<u8>, text: &[u8]) {
    for (at, byte) in text.iter().enumerate() {
        let is_escape = || {
            let digits = text.get(at + 1..at + 3);
            digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
        };
        match byte {
            b'|' => to.extend_from_slice(b"%7C"),
            b'%' if is_escape() => to.extend_from_slice(b"%25"),
            // As fls: a newline would begin a line of the suspect's choice.
            byte if byte.is_ascii_control() => to.push(b'^'),
            byte => to.push(*byte),
        }
    }
}

/// As `fls` prints it: the type in the directory, the type of the file, permissions.
fn mode(kind: FileType, mode: u32) -> String {
    let letter = match kind {
        FileType::File | FileType::HardLink => 'r',
        FileType::Symlink => 'l',
        FileType::CharacterDevice => 'c',
        FileType::BlockDevice => 'b',
        FileType::Directory => 'd',
        FileType::Fifo => 'p',
        FileType::Unknown => '-',
    };
    let bit = |bit: u32, set: char| if mode & bit != 0 { set } else { '-' };
    // Set-id and sticky bits stand in the place of an execute bit, in capitals without it.
    let special = |special: u32, execute: u32, both: char| match (mode & special, mode & execute) {
        (0, 0) => '-',
        (0, _) => 'x',
        (_, 0) => both.to_ascii_uppercase(),
        _ => both,
    };
    [
        letter,
        '/',
        letter,
        bit(0o400, 'r'),
        bit(0o200, 'w'),
        special(0o4000, 0o100, 's'),
        bit(0o040, 'r'),
        bit(0o020, 'w'),
        special(0o2000, 0o010, 's'),
        bit(0o004, 'r'),
        bit(0o002, 'w'),
        special(0o1000, 0o001, 't'),
    ]
    .into_iter()
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_can_neither_end_a_field_nor_begin_a_line() {
        let mut text = Vec::new();
        name(&mut text, b"a|b\n0|/etc/passwd|%41%zz%4");
        assert_eq!(text, b"a%7Cb^0%7C/etc/passwd%7C%2541%zz%4");
    }

    #[test]
    fn modes_are_written_as_fls_writes_them() {
        assert_eq!(mode(FileType::File, 0o755), "r/rrwxr-xr-x");
        assert_eq!(mode(FileType::File, 0o4711), "r/rrws--x--x");
        assert_eq!(mode(FileType::Directory, 0o1777), "d/drwxrwxrwt");
        assert_eq!(mode(FileType::File, 0o6644), "r/rrwSr-Sr--");
        assert_eq!(mode(FileType::Symlink, 0o777), "l/lrwxrwxrwx");
    }
}
