//! Headers of a PAX tar (POSIX.1-2001 pax, "extended header"), and the vendor records that GNU tar, star
//! and libarchive made common: `SCHILY.*`, `GNU.sparse.*`, `LIBARCHIVE.creationtime`.

/// Everything in a tar begins at a multiple of this, bytes.
pub(super) const BLOCK: u64 = 512;

/// Longest name or link target in a ustar header, bytes.
const NAME: usize = 100;

/// Largest number in an octal field of 7 digits (owners), and of 11 (size, time).
const SEVEN: u64 = 0o777_7777;
const ELEVEN: u64 = 0o777_7777_7777;

/// What kind of member it is: ustar's type flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File = b'0' as isize,
    HardLink = b'1' as isize,
    Symlink = b'2' as isize,
    Character = b'3' as isize,
    Block = b'4' as isize,
    Directory = b'5' as isize,
    Fifo = b'6' as isize,
}

/// A member's header, in numbers as the kernel gives them.
pub(super) struct Header<'a> {
    /// A directory's ends with a slash.
    pub(super) path: &'a [u8],
    pub(super) kind: Kind,
    /// Permissions, set-id and sticky bits.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Bytes that follow the header.
    pub(super) stored: u64,
    /// Seconds since 1970; exact ones are a record.
    pub(super) mtime: i64,
    /// Target of a link, else empty.
    pub(super) link: &'a [u8],
    /// Of a device.
    pub(super) device: (u32, u32),
    /// Of a sparse file with a map before its contents: its size with its holes.
    pub(super) sparse: Option<u64>,
}

/// Records of one PAX header.
#[derive(Default)]
pub(super) struct Records(Vec<u8>);

impl Records {
    /// Adds `<length> <key>=<value>\n`, the length counting itself.
    pub(super) fn add(&mut self, key: &[u8], value: &[u8]) {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        self.0.extend_from_slice(length.to_string().as_bytes());
        self.0.push(b' ');
        self.0.extend_from_slice(key);
        self.0.push(b'=');
        self.0.extend_from_slice(value);
        self.0.push(b'\n');
    }

    /// A time, exact to the nanosecond. `nanos` count up, also before 1970.
    pub(super) fn time(&mut self, key: &str, seconds: i64, nanos: u32) {
        let text = match (seconds, nanos) {
            (seconds, 0) => seconds.to_string(),
            (0.., nanos) => format!("{seconds}.{nanos:09}"),
            (_, nanos) => format!(
                "-{}.{:09}",
                (seconds + 1).unsigned_abs(),
                1_000_000_000_u32.saturating_sub(nanos)
            ),
        };
        self.add(key.as_bytes(), text.as_bytes());
    }

    /// An extended attribute. GNU tar writes `=` and `%` in names like this, as a record's key ends at `=`.
    pub(super) fn attribute(&mut self, name: &[u8], value: &[u8]) {
        let mut key = b"SCHILY.xattr.".to_vec();
        for byte in name {
            match byte {
                b'=' => key.extend_from_slice(b"%3D"),
                b'%' => key.extend_from_slice(b"%25"),
                byte => key.push(*byte),
            }
        }
        self.add(&key, value);
    }
}

/// All that stands before a member's contents: a PAX header with `records` and what ustar has no room for,
/// and the ustar header.
pub(super) fn encode(header: &Header<'_>, mut records: Records) -> Vec<u8> {
    let mut path = header.path;
    let made_up;
    if let Some(size) = header.sparse {
        records.add(b"GNU.sparse.major", b"1");
        records.add(b"GNU.sparse.minor", b"0");
        records.add(b"GNU.sparse.name", header.path);
        records.add(b"GNU.sparse.realsize", size.to_string().as_bytes());
        // As GNU tar does: who doesn't know of sparse files doesn't take it for the file itself.
        made_up = beside(header.path, b"GNUSparseFile.0");
        path = &made_up;
    }
    if path.len() > NAME {
        records.add(b"path", path);
    }
    if header.link.len() > NAME {
        records.add(b"linkpath", header.link);
    }
    for (key, value, most) in [
        ("uid", u64::from(header.uid), SEVEN),
        ("gid", u64::from(header.gid), SEVEN),
        ("size", header.stored, ELEVEN),
    ] {
        if value > most {
            records.add(key.as_bytes(), value.to_string().as_bytes());
        }
    }
    let mut bytes = Vec::new();
    if !records.0.is_empty() {
        let extension = Header {
            path: &beside(header.path, b"PaxHeaders.0"),
            kind: Kind::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            stored: records.0.len() as u64,
            mtime: 0,
            link: b"",
            device: (0, 0),
            sparse: None,
        };
        bytes = ustar(&extension, extension.path, b'x');
        bytes.append(&mut records.0);
        bytes.resize(bytes.len().next_multiple_of(BLOCK as usize), 0);
    }
    bytes.append(&mut ustar(header, path, header.kind as u8));
    bytes
}

/// `<directory>/<between>/<name>`
fn beside(path: &[u8], between: &[u8]) -> Vec<u8> {
    let path = path.strip_suffix(b"/").unwrap_or(path);
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
    let above = path.strip_suffix(name).unwrap_or_default();
    [above, between, b"/", name].concat()
}

fn ustar(header: &Header<'_>, path: &[u8], flag: u8) -> Vec<u8> {
    let mut block = Vec::with_capacity(BLOCK as usize);
    let mut text = |value: &[u8], width: usize| {
        let end = block.len() + width;
        block.extend_from_slice(value.get(..width).unwrap_or(value));
        block.resize(end, 0);
    };
    let octal = |value: u64, width: usize, most: u64| {
        let value = if value > most { 0 } else { value };
        let digits = width - 1;
        format!("{value:0digits$o}").into_bytes()
    };
    text(path, NAME);
    text(&octal(u64::from(header.mode), 8, SEVEN), 8);
    text(&octal(u64::from(header.uid), 8, SEVEN), 8);
    text(&octal(u64::from(header.gid), 8, SEVEN), 8);
    text(&octal(header.stored, 12, ELEVEN), 12);
    let mtime = u64::try_from(header.mtime).unwrap_or(0);
    text(&octal(mtime, 12, ELEVEN), 12);
    // The checksum counts itself as spaces.
    text(b"        ", 8);
    text(&[flag], 1);
    text(header.link, NAME);
    text(b"ustar\x0000", 8);
    text(b"", 64);
    let (major, minor) = header.device;
    text(&octal(u64::from(major), 8, SEVEN), 8);
    text(&octal(u64::from(minor), 8, SEVEN), 8);
    block.resize(BLOCK as usize, 0);
    let sum: u64 = block.iter().copied().map(u64::from).sum();
    let checksum = format!("{sum:06o}\0 ");
    for (place, byte) in block.iter_mut().skip(148).zip(checksum.bytes()) {
        *place = byte;
    }
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_its_own_length() {
        for length in [1, 5, 6, 7, 84, 85, 86, 87, 980, 985, 986, 987, 9990] {
            let mut records = Records::default();
            records.add(b"k", &b"v".repeat(length));
            let text = String::from_utf8(records.0).unwrap();
            let (stated, _) = text.split_once(' ').unwrap();
            assert_eq!(stated.parse::<usize>().unwrap(), text.len(), "{length}");
        }
    }

    #[test]
    fn times_are_exact_also_before_1970() {
        let mut records = Records::default();
        records.time("mtime", 1_700_000_000, 123_456_789);
        records.time("mtime", 5, 0);
        records.time("mtime", -2, 500_000_000);
        records.time("mtime", -1, 1);
        let text = String::from_utf8(records.0).unwrap();
        let values: Vec<&str> = text
            .lines()
            .map(|line| line.split_once('=').unwrap().1)
            .collect();
        assert_eq!(
            values,
            ["1700000000.123456789", "5", "-1.500000000", "-0.999999999"]
        );
    }
}
