//! A member as a reader of tars sees it: its header with the extensions that belong to it.

use super::anomaly::{Anomalies, Anomaly};
use super::header::Fields;
use super::pax::Pax;
use super::sparse::Sparse;

/// Longest path or link target that is kept, in bytes; of a longer one the beginning is. Linux
/// takes 4096 bytes in one call, and no runtime exports a path that it can't open in one.
pub const PATH_LIMIT: usize = 16 << 10;

/// From here on a size is absurd: more than a container's writable layer ever has.
const ABSURD: u64 = 1 << 40;

/// A PAX size below this would have fitted the header, so that a header with another one deceives.
const OCTAL_SIZES: u64 = 1 << 33;

/// One member of a tar.
#[derive(Clone, Debug)]
pub struct Member {
    /// 1 the first; extension headers are not counted.
    pub number: u64,
    /// Where its header block is, bytes from the tar's beginning.
    pub offset: u64,
    /// As it stands in the tar, at most [`PATH_LIMIT`] bytes; of a directory without the slash at
    /// its end.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: FileType,
    /// The type as it stands in the header.
    pub typeflag: u8,
    /// Permissions with set-id and sticky bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u64>,
    /// Owning group.
    pub gid: Option<u64>,
    /// Owner's name, if the tar has it.
    pub user: Vec<u8>,
    /// Group's name, if the tar has it.
    pub group: Vec<u8>,
    /// Bytes of the file; of a sparse one with its holes.
    pub size: u64,
    /// Bytes of contents in the tar.
    pub stored: u64,
    /// Last modification.
    pub mtime: Option<TarTime>,
    /// Last access, rarely there.
    pub atime: Option<TarTime>,
    /// Last change, rarely there.
    pub ctime: Option<TarTime>,
    /// Birth, rarely there.
    pub born: Option<TarTime>,
    /// Target of a link; at most [`PATH_LIMIT`] bytes.
    pub link: Option<Vec<u8>>,
    /// Major and minor number of a device.
    pub device: Option<(u64, u64)>,
    /// Extended attributes: name and value.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// If it is sparse, how it says where its bytes belong.
    pub sparse: Option<Sparse>,
    /// What is odd about its header; its path is not looked at here.
    pub anomalies: Anomalies,
}

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FileType {
    /// A plain file.
    File,
    /// A further name of an earlier member.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharacterDevice,
    /// A block device.
    BlockDevice,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
    /// Of a type that no format defines, or only GNU's incremental and multi-volume ones.
    Unknown,
}

/// Seconds since 1970 and nanoseconds of the second, counted upwards also before 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TarTime {
    /// Whole seconds.
    pub seconds: i64,
    /// Below 10^9.
    pub nanos: u32,
}

impl FileType {
    pub(super) fn of(typeflag: u8) -> Self {
        match typeflag {
            0 | b'0' | b'7' | b'S' => Self::File,
            b'1' => Self::HardLink,
            b'2' => Self::Symlink,
            b'3' => Self::CharacterDevice,
            b'4' => Self::BlockDevice,
            b'5' => Self::Directory,
            b'6' => Self::Fifo,
            _ => Self::Unknown,
        }
    }

    /// Whether contents follow its header.
    pub(crate) fn has_contents(self) -> bool {
        matches!(self, Self::File | Self::Unknown)
    }

    /// As `files.jsonl` calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::HardLink => "hardlink",
            Self::Symlink => "symlink",
            Self::CharacterDevice => "char",
            Self::BlockDevice => "block",
            Self::Directory => "dir",
            Self::Fifo => "fifo",
            Self::Unknown => "unknown",
        }
    }
}

/// What extension headers said about the member that follows.
#[derive(Default)]
pub(super) struct Extensions {
    pub(super) any: bool,
    pub(super) pax: Option<Pax>,
    pub(super) long_name: Option<Vec<u8>>,
    pub(super) long_link: Option<Vec<u8>>,
    pub(super) anomalies: Anomalies,
}

impl Member {
    /// What a reader makes of it that knows PAX and GNU extensions: a PAX record wins over a GNU
    /// long name, both over the header, and a member's own records over global ones.
    pub(super) fn new(
        fields: Fields,
        extensions: Extensions,
        global: &Pax,
        number: u64,
        offset: u64,
    ) -> Self {
        let mut anomalies = fields.anomalies;
        anomalies.join(extensions.anomalies);
        let pax = extensions.pax.unwrap_or_default();
        anomalies.join(pax.anomalies);
        anomalies.join(global.anomalies);

        let long = extensions.long_name.is_some() || extensions.long_link.is_some();
        anomalies.add_if(long, Anomaly::GnuLongName);
        // Of a sparse file the writer makes up the header's path and the PAX one, so that readers who don't
        // know of sparse files don't overwrite anything with what they take for it.
        let shown = pax.path.as_ref().or(extensions.long_name.as_ref());
        if let Some(name) = &pax.sparse_name {
            let made_up = is_made_up(shown.unwrap_or(&fields.path), name);
            anomalies.add_if(!made_up, Anomaly::PathConflict);
        }
        let path = chosen(
            &fields.path,
            extensions.long_name,
            pax.path,
            global.path.as_ref(),
            Anomaly::PathConflict,
            &mut anomalies,
        );
        let named_sparse = pax.sparse_name.is_some();
        let mut path = pax.sparse_name.unwrap_or(path);
        match fields.kind {
            FileType::Directory => {
                while path.len() > 1 && path.last() == Some(&b'/') {
                    path.pop();
                }
            }
            FileType::File => {
                anomalies.add_if(path.last() == Some(&b'/'), Anomaly::TrailingSlash);
            }
            _ => {}
        }
        let link = chosen(
            &fields.link,
            extensions.long_link,
            pax.link,
            global.link.as_ref(),
            Anomaly::LinkConflict,
            &mut anomalies,
        );
        let is_link = matches!(fields.kind, FileType::HardLink | FileType::Symlink);

        let stored = pax.size.unwrap_or(fields.size);
        let deceives = stored != fields.size && stored < OCTAL_SIZES;
        anomalies.add_if(deceives, Anomaly::SizeConflict);
        let in_header = fields.sparse.as_ref();
        let real_size = pax
            .real_size
            .or(in_header.and_then(|sparse| sparse.real_size));
        let sparse = match (fields.sparse, pax.sparse) {
            (None, false) => None,
            (Some(sparse), false) => Some(Sparse::Header(sparse.map)),
            (Some(_), true) => Some(Sparse::Unclear),
            (None, true) => Some(match (pax.sparse_version, pax.map) {
                ((None, None) | (Some(0), Some(0 | 1)), Some(map))
                    if pax.map_length == Some(map.len()) =>
                {
                    Sparse::Records(map)
                }
                ((Some(1), Some(0)), None) => Sparse::Contents,
                _ => Sparse::Unclear,
            }),
        };
        anomalies.add_if(sparse.is_some(), Anomaly::Sparse);
        // Who doesn't take it for sparse doesn't take the sparse file's name either.
        let named = named_sparse && matches!(sparse, Some(Sparse::Unclear));
        anomalies.add_if(named, Anomaly::PathConflict);
        let size = real_size.filter(|_| sparse.is_some()).unwrap_or(stored);
        anomalies.add_if(size.max(stored) >= ABSURD, Anomaly::AbsurdSize);
        let mtime = pax.mtime.or(global.mtime).or(fields.mtime);
        anomalies.add_if(
            mtime.is_some_and(|time| time.seconds < 0),
            Anomaly::NegativeTime,
        );

        Self {
            number,
            offset,
            path,
            kind: fields.kind,
            typeflag: fields.typeflag,
            mode: fields.mode,
            uid: pax.uid.or(global.uid).or(fields.uid),
            gid: pax.gid.or(global.gid).or(fields.gid),
            user: pax
                .user
                .or_else(|| global.user.clone())
                .unwrap_or(fields.user),
            group: pax
                .group
                .or_else(|| global.group.clone())
                .unwrap_or(fields.group),
            size,
            stored,
            mtime,
            atime: pax.atime.or(global.atime),
            ctime: pax.ctime.or(global.ctime),
            born: pax.born,
            link: is_link.then_some(link),
            device: fields.device,
            xattrs: pax.xattrs,
            sparse,
            anomalies,
        }
    }

    /// Its path for a message: escaped, and not a page long.
    pub(super) fn shown(&self) -> String {
        const SHOWN: usize = 200;
        let path = self.path.get(..SHOWN).unwrap_or(&self.path);
        format!("\"{}\" (member {})", path.escape_ascii(), self.number)
    }
}

/// The path or link target that counts; an anomaly if readers that don't know one of the extensions
/// see a really different one.
fn chosen(
    header: &[u8],
    long: Option<Vec<u8>>,
    pax: Option<Vec<u8>>,
    global: Option<&Vec<u8>>,
    conflict: Anomaly,
    anomalies: &mut Anomalies,
) -> Vec<u8> {
    let disagree = long.iter().chain(&pax).any(|other| !agree(header, other))
        || long.as_ref().zip(pax.as_ref()).is_some_and(|(a, b)| a != b);
    anomalies.add_if(disagree, conflict);
    pax.or(long)
        .or_else(|| global.cloned())
        .unwrap_or_else(|| header.to_vec())
}

/// Whether `shown` is what writers show of a sparse file `name` to readers that don't know of such: its name in
/// a directory `GNUSparseFile.<number>` beside it (GNU tar, libarchive), or as much of that as a header holds.
fn is_made_up(shown: &[u8], name: &[u8]) -> bool {
    const FIELD: usize = 100;
    let cut = shown.len() >= FIELD;
    let plain = |path| <[u8]>::strip_prefix(path, b"./").unwrap_or(path);
    let (shown, name) = (plain(shown), plain(name));
    let slash = name.iter().rposition(|byte| *byte == b'/');
    let at = slash.map_or(0, |slash| slash + 1);
    let (directory, base) = name.split_at_checked(at).unwrap_or_default();
    let mut rest = shown;
    for part in [directory, b"GNUSparseFile.", b"<number>", b"/", base] {
        if cut && rest.is_empty() {
            return true;
        }
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let next = match part {
            b"<number>" => rest.get(digits..).filter(|_| digits > 0),
            part if cut && part.starts_with(rest) => return true,
            part => rest.strip_prefix(part),
        };
        match next {
            Some(next) => rest = next,
            None => return false,
        }
    }
    rest.is_empty()
}

/// Whether `short`, in the header, is what writers put there for `long`: the same if it fits, else
/// its beginning, with what is not ASCII as it is, left out (Go) or as `?` (Python).
fn agree(short: &[u8], long: &[u8]) -> bool {
    const FIELD: usize = 100;
    if short == long {
        return true;
    }
    if long.len() <= FIELD && long.is_ascii() {
        return false;
    }
    let short = short.strip_suffix(b"/").unwrap_or(short);
    // A beginning must be one: an empty name would agree with everything.
    if short.is_empty() && !matches!(long.first(), Some(128..)) {
        return false;
    }
    let begins =
        |with: &mut dyn Iterator<Item = u8>| short.iter().all(|byte| with.next() == Some(*byte));
    let left_out = &mut long.iter().copied().filter(u8::is_ascii);
    let marked = String::from_utf8_lossy(long);
    let marked = &mut marked
        .chars()
        .map(|c| u8::try_from(c).ok().filter(u8::is_ascii).unwrap_or(b'?'));
    begins(&mut long.iter().copied()) || begins(left_out) || begins(marked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_sparse_file_only_the_name_that_its_writer_makes_up_is_no_conflict() {
        let long = [&[b'd'; 90][..], b"/", &[b'e'; 90], b"/f"].concat();
        let shown = [&[b'd'; 90][..], b"/", &[b'e'; 90], b"/GNUSparseFile.77/f"].concat();
        for (shown, name, so) in [
            (&b"sp/GNUSparseFile.21773/file"[..], &b"sp/file"[..], true),
            (b"./GNUSparseFile.1/file", b"file", true),
            (b"GNUSparseFile.0/file", b"./file", true),
            (&shown, &long, true),
            (&shown[..100], &long, true),
            (&shown[..195], &long, true),
            (&shown[..99], &long, false),
            (b"sp/file", b"sp/file", false),
            (b"etc/passwd", b"tmp/x", false),
            (b"GNUSparseFile.1/passwd", b"tmp/x", false),
            (b"other/GNUSparseFile.1/file", b"sp/file", false),
            (b"sp/GNUSparseFile./file", b"sp/file", false),
            (b"sp/GNUSparseFile.1/file2", b"sp/file", false),
        ] {
            let (text, of) = (shown.escape_ascii(), name.escape_ascii());
            assert_eq!(is_made_up(shown, name), so, "{text} of {of}");
        }
    }

    #[test]
    fn a_header_agrees_with_a_path_that_it_can_only_hold_in_part() {
        let long = [b"d".repeat(120), b"/f".to_vec()].concat();
        assert!(agree(&long[..100], &long));
        assert!(agree(b"caf", "café".as_bytes()), "Go leaves out");
        assert!(agree(b"caf?x", "caféx".as_bytes()), "Python marks");
        assert!(agree("café".as_bytes(), "café".as_bytes()));
        assert!(!agree(b"etc/passwd", b"etc/shadow"));
        assert!(!agree(b"", &long), "an empty name says nothing");
        assert!(!agree(b"etc", b"etc/passwd"), "it would have fitted");
        assert!(!agree(b"other", &long));
    }
}
