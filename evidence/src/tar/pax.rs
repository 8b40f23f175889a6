//! The records of one PAX header: `<length> <key>=<value>\n`, one after the other.

use super::anomaly::{Anomalies, Anomaly};
use super::member::{PATH_LIMIT, TarTime};
use super::sparse::Map;

/// Most extended attributes of one member that are listed: a file has a handful, and Linux keeps
/// the list of their names below 64 KiB.
const XATTR_LIMIT: usize = 256;

/// Longest text that members inherit from a global header, in bytes: as much as a header's own field
/// holds. More would make a tar of empty members many times as large in its listings.
const INHERITED: usize = 100;

/// What PAX records say, as far as it matters here. The last of several records of one key counts,
/// as POSIX says; a second one is an anomaly.
#[derive(Clone, Default)]
pub(super) struct Pax {
    pub(super) size: Option<u64>,
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) user: Option<Vec<u8>>,
    pub(super) group: Option<Vec<u8>>,
    pub(super) mtime: Option<TarTime>,
    pub(super) atime: Option<TarTime>,
    pub(super) ctime: Option<TarTime>,
    /// libarchive's record of the time of birth, which our layers have.
    pub(super) born: Option<TarTime>,
    /// Name without `SCHILY.xattr.`, as GNU tar sets it, and value.
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// GNU sparse 0.0, 0.1 and 1.0 say so here, whatever the member's type.
    pub(super) sparse: bool,
    pub(super) sparse_name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    /// Of sparse 0.0, a record for each number, and of 0.1, one record.
    pub(super) map: Option<Map>,
    map_offset: Option<u64>,
    /// How many islands that map is said to have; GNU tar follows none without.
    pub(super) map_length: Option<u64>,
    /// Major and minor version of the sparse form.
    pub(super) sparse_version: (Option<u64>, Option<u64>),
    pub(super) anomalies: Anomalies,
}

impl Pax {
    /// Reads all records. The error says what makes the member's size unknown: a record that can't
    /// be read, or a size that is none or given twice.
    pub(super) fn read(mut text: &[u8]) -> Result<Self, String> {
        let mut pax = Self::default();
        while !text.is_empty() {
            let (key, value, rest) = record(text).ok_or_else(|| {
                format!(
                    "expected \"<length> <key>=<value>\" and a newline, got \"{}\"",
                    shown(text)
                )
            })?;
            pax.take(key, value)?;
            text = rest;
        }
        Ok(pax)
    }

    /// What members inherit if it is a global header. Extended attributes they don't: readers
    /// disagree, and up to a mebibyte would be listed again for each member.
    pub(super) fn inherited(mut self) -> Self {
        self.anomalies
            .add_if(self.describes(), Anomaly::GlobalRecord);
        self.xattrs = Vec::new();
        self.map = None;
        let texts = [
            &mut self.path,
            &mut self.link,
            &mut self.user,
            &mut self.group,
        ];
        for text in texts.into_iter().flatten() {
            self.anomalies
                .add_if(text.len() > INHERITED, Anomaly::PathTooLong);
            text.truncate(INHERITED);
        }
        self
    }

    /// Whether it says anything that a global header should not say of all members.
    fn describes(&self) -> bool {
        self.path.is_some()
            || self.link.is_some()
            || self.uid.is_some()
            || self.gid.is_some()
            || self.user.is_some()
            || self.group.is_some()
            || self.mtime.is_some()
            || self.sparse
            || !self.xattrs.is_empty()
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        match key {
            b"size" => {
                let value = decimal(value).ok_or_else(|| {
                    format!("expected a size below 2^63, got \"{}\"", shown(value))
                })?;
                if self.size.replace(value).is_some() {
                    return Err("it gives the size twice".to_owned());
                }
            }
            b"path" => set_text(&mut self.path, value, &mut self.anomalies),
            b"linkpath" => set_text(&mut self.link, value, &mut self.anomalies),
            b"uname" => set_text(&mut self.user, value, &mut self.anomalies),
            b"gname" => set_text(&mut self.group, value, &mut self.anomalies),
            b"uid" => set(&mut self.uid, value, decimal, &mut self.anomalies),
            b"gid" => set(&mut self.gid, value, decimal, &mut self.anomalies),
            b"mtime" => set(&mut self.mtime, value, time, &mut self.anomalies),
            b"atime" => set(&mut self.atime, value, time, &mut self.anomalies),
            b"ctime" => set(&mut self.ctime, value, time, &mut self.anomalies),
            b"LIBARCHIVE.creationtime" => {
                set(&mut self.born, value, time, &mut self.anomalies);
            }
            b"GNU.sparse.name" => {
                self.sparse = true;
                set_text(&mut self.sparse_name, value, &mut self.anomalies);
            }
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => {
                self.sparse = true;
                set(&mut self.real_size, value, decimal, &mut self.anomalies);
            }
            key if key.starts_with(b"GNU.sparse.") => {
                self.sparse = true;
                self.sparse_record(key, value);
            }
            key => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattr(&unescaped(name), value);
                }
            }
        }
        Ok(())
    }

    /// What is said once for each island is no record given twice.
    fn sparse_record(&mut self, key: &[u8], value: &[u8]) {
        let (major, minor) = &mut self.sparse_version;
        match key {
            b"GNU.sparse.major" => set(major, value, decimal, &mut self.anomalies),
            b"GNU.sparse.minor" => set(minor, value, decimal, &mut self.anomalies),
            b"GNU.sparse.numblocks" => {
                set(&mut self.map_length, value, decimal, &mut self.anomalies);
            }
            b"GNU.sparse.map" => {
                let twice = self.map.is_some();
                let mut numbers = value.split(|byte| *byte == b',').map(decimal);
                let map = self.map.insert(Map::default());
                while let Some(offset) = numbers.next() {
                    match offset.zip(numbers.next().flatten()) {
                        Some((offset, length)) => map.push(offset, length),
                        None => map.spoil(),
                    }
                }
                if twice {
                    map.spoil();
                }
            }
            b"GNU.sparse.offset" => {
                let map = self.map.get_or_insert_default();
                if self.map_offset.is_some() || decimal(value).is_none() {
                    map.spoil();
                }
                self.map_offset = decimal(value);
            }
            b"GNU.sparse.numbytes" => {
                let map = self.map.get_or_insert_default();
                match self.map_offset.take().zip(decimal(value)) {
                    Some((offset, length)) => map.push(offset, length),
                    None => map.spoil(),
                }
            }
            _ => {}
        }
    }

    fn xattr(&mut self, name: &[u8], value: &[u8]) {
        if let Some(known) = self.xattrs.iter_mut().find(|(known, _)| known == name) {
            self.anomalies.add(Anomaly::DuplicateRecord);
            known.1 = value.to_vec();
        } else if self.xattrs.len() < XATTR_LIMIT {
            self.xattrs.push((name.to_vec(), value.to_vec()));
        } else {
            self.anomalies.add(Anomaly::TooManyXattrs);
        }
    }
}

/// A key can't have `=`: GNU tar writes `%3D`, and `%25` for `%`.
fn unescaped(mut name: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(name.len());
    while let Some((first, rest)) = name.split_first() {
        let escaped = |text| name.strip_prefix(text);
        let (byte, rest) = match (escaped(b"%3D".as_slice()), escaped(b"%25".as_slice())) {
            (Some(rest), _) => (b'=', rest),
            (_, Some(rest)) => (b'%', rest),
            _ => (*first, rest),
        };
        plain.push(byte);
        name = rest;
    }
    plain
}

/// An empty value takes an earlier one back, as POSIX says.
fn set_text(place: &mut Option<Vec<u8>>, value: &[u8], anomalies: &mut Anomalies) {
    anomalies.add_if(value.contains(&0), Anomaly::NulInRecord);
    anomalies.add_if(value.len() > PATH_LIMIT, Anomaly::PathTooLong);
    let value = value.get(..PATH_LIMIT).unwrap_or(value);
    let value = (!value.is_empty()).then(|| value.to_vec());
    anomalies.add_if(place.is_some(), Anomaly::DuplicateRecord);
    *place = value;
}

fn set<T>(
    place: &mut Option<T>,
    value: &[u8],
    read: impl Fn(&[u8]) -> Option<T>,
    anomalies: &mut Anomalies,
) {
    let read = read(value);
    anomalies.add_if(
        read.is_none() && !value.is_empty(),
        Anomaly::MalformedRecord,
    );
    anomalies.add_if(place.is_some(), Anomaly::DuplicateRecord);
    *place = read;
}

/// Key and value of the first record, and what follows it.
fn record(text: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = text.iter().take(20).position(|byte| *byte == b' ')?;
    let length = decimal(text.get(..space)?)?;
    let (record, rest) = text.split_at_checked(usize::try_from(length).ok()?)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((record.get(..equals)?, record.get(equals + 1..)?, rest))
}

/// Digits only, below 2^63.
fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 19 || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value: u64 = str::from_utf8(text).ok()?.parse().ok()?;
    i64::try_from(value).is_ok().then_some(value)
}

/// Seconds since 1970 with a sign and a fraction of any length, cut to nanoseconds.
fn time(text: &[u8]) -> Option<TarTime> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = match text.iter().position(|byte| *byte == b'.') {
        Some(dot) => (text.get(..dot)?, text.get(dot + 1..)?),
        None => (text, &[][..]),
    };
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let seconds = i64::try_from(decimal(whole)?).ok()?;
    let digits = fraction.iter().copied().chain(std::iter::repeat(b'0'));
    let nanos = digits
        .take(9)
        .fold(0u32, |value, digit| value * 10 + u32::from(digit - b'0'));
    Some(match (negative, nanos) {
        (false, nanos) => TarTime { seconds, nanos },
        (true, 0) => TarTime {
            seconds: -seconds,
            nanos: 0,
        },
        // Counted up from the second below.
        (true, nanos) => TarTime {
            seconds: -seconds - 1,
            nanos: 1_000_000_000 - nanos,
        },
    })
}

fn shown(text: &[u8]) -> String {
    text.get(..40).unwrap_or(text).escape_ascii().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_signs_and_fractions() {
        let read = |text: &str| time(text.as_bytes()).map(|time| (time.seconds, time.nanos));
        assert_eq!(
            read("1700000000.123456789123"),
            Some((1_700_000_000, 123_456_789))
        );
        assert_eq!(read("5"), Some((5, 0)));
        assert_eq!(read("5."), Some((5, 0)));
        assert_eq!(read("-1.5"), Some((-2, 500_000_000)));
        assert_eq!(read("-1"), Some((-1, 0)));
        assert_eq!(read("9223372036854775807"), Some((i64::MAX, 0)));
        for wrong in [
            "",
            "-",
            ".5",
            "1e3",
            "+1",
            "1.x",
            "9223372036854775808",
            "--1",
        ] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
