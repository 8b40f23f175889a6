//! What a container changed, counted while its list streams by: memory is bounded however long it is.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, BufRead, BufReader, Read};

use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Changes that are all shown; of more, the largest and newest are.
pub(super) const ALL: usize = 150;

/// The largest, the newest, the deleted.
const TOP: usize = 25;

/// Directories that are counted apart; what comes in others is counted together.
const DIRECTORIES: usize = 20_000;

/// Longest line: a path of 4096 bytes with every byte escaped, and its file's attributes.
const LINE: u64 = 256 << 10;

/// One line of `<tar>.changes.jsonl` (see `evidence/FORMATS.md`), or of `diff.jsonl`, which has no `file`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Change {
    pub(super) kind: Kind,
    pub(super) path: String,
    #[serde(default)]
    pub(super) file: Option<File>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(super) enum Kind {
    #[serde(rename = "A")]
    Added,
    #[serde(rename = "C")]
    Changed,
    #[serde(rename = "D")]
    Deleted,
}

/// The file as the exported file system has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct File {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) mode: Option<String>,
    pub(super) size: u64,
    pub(super) mtime: Option<String>,
    pub(super) link: Option<String>,
    pub(super) sha256: Option<String>,
}

impl File {
    pub(super) fn time(&self) -> Option<OffsetDateTime> {
        OffsetDateTime::parse(self.mtime.as_deref()?, &Rfc3339).ok()
    }

    /// Permission bits.
    fn bits(&self) -> u32 {
        let mode = self.mode.as_deref().unwrap_or_default();
        u32::from_str_radix(mode, 8).unwrap_or(0)
    }
}

/// How many were added, changed, deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) added: u64,
    pub(super) changed: u64,
    pub(super) deleted: u64,
}

impl Count {
    pub(super) fn all(&self) -> u64 {
        self.added + self.changed + self.deleted
    }

    fn add(&mut self, kind: Kind) {
        match kind {
            Kind::Added => self.added += 1,
            Kind::Changed => self.changed += 1,
            Kind::Deleted => self.deleted += 1,
        }
    }
}

/// Everything a report tells of a container's changes.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) count: Count,
    /// The first [`ALL`].
    pub(super) first: Vec<Change>,
    /// By directory, most changes first.
    pub(super) directories: Vec<(String, Count)>,
    /// By what they are.
    pub(super) types: BTreeMap<&'static str, Count>,
    /// Files, newest first.
    pub(super) newest: Vec<Change>,
    /// Files, largest first.
    pub(super) largest: Vec<Change>,
    /// The first deleted.
    pub(super) deleted: Vec<String>,
    /// Modification times of what was added or changed.
    pub(super) ages: Ages,
    /// Whether files are described, so that `newest` and `largest` mean something.
    pub(super) described: bool,
}

/// How many files were modified how long before the pod was asked for.
#[derive(Clone, Debug, Default)]
pub(super) struct Ages {
    at: Option<OffsetDateTime>,
    pub(super) count: [u64; AGES.len()],
}

/// Names of the spans, and where each ends, in seconds before the request; the last has no end.
pub(super) const AGES: [(&str, i64); 9] = [
    ("after the request", 0),
    ("in the last 10 minutes before it", 600),
    ("10 minutes to 1 hour before", 3_600),
    ("1 to 6 hours before", 6 * 3_600),
    ("6 to 24 hours before", 24 * 3_600),
    ("1 to 7 days before", 7 * 86_400),
    ("7 to 30 days before", 30 * 86_400),
    ("30 days to 1 year before", 365 * 86_400),
    ("more than 1 year before", i64::MAX),
];

impl Ages {
    fn add(&mut self, time: OffsetDateTime) {
        let Some(at) = self.at else { return };
        let before = (at - time).whole_seconds();
        let before = if time > at { -1 } else { before };
        let span = AGES
            .iter()
            .position(|(_, end)| before < *end || *end == i64::MAX);
        if let Some(count) = span.and_then(|span| self.count.get_mut(span)) {
            *count += 1;
        }
    }
}

impl Changes {
    /// Reads a whole list. `at`: when the pod was asked for.
    ///
    /// # Errors
    /// If it can't be read, or a line is none of a list of changes.
    pub(super) fn read(from: impl Read, at: Option<OffsetDateTime>) -> io::Result<Self> {
        let mut changes = Self::default();
        changes.ages.at = at;
        let mut counting = Counting::default();
        let mut lines = BufReader::with_capacity(256 << 10, from);
        let mut line = Vec::new();
        for number in 1_u64.. {
            line.clear();
            if lines.by_ref().take(LINE).read_until(b'\n', &mut line)? == 0 {
                break;
            }
            let change = serde_json::from_slice(&line).map_err(|error| {
                io::Error::other(format!("line {number} is no change: {error}"))
            })?;
            changes.add(change, &mut counting);
        }
        changes.finish(counting);
        Ok(changes)
    }

    fn add(&mut self, change: Change, counting: &mut Counting) {
        self.count.add(change.kind);
        let (directory, _) = change.path.rsplit_once('/').unwrap_or_default();
        counting.directory(directory).add(change.kind);
        if change.kind == Kind::Deleted && self.deleted.len() < TOP {
            self.deleted.push(change.path.clone());
        }
        if let Some(file) = &change.file {
            self.described = true;
            if change.kind != Kind::Deleted && file.kind != "dir" {
                if let Some(time) = file.time() {
                    self.ages.add(time);
                    top(
                        &mut counting.newest,
                        (Reverse(time), counting.number),
                        &change,
                    );
                }
                top(
                    &mut counting.largest,
                    (Reverse(file.size), counting.number),
                    &change,
                );
            }
        }
        let name = name(&change);
        self.types.entry(name).or_default().add(change.kind);
        counting.number += 1;
        if self.first.len() < ALL {
            self.first.push(change);
        }
    }

    fn finish(&mut self, counting: Counting) {
        self.directories = counting.directories.into_iter().collect();
        // A tie goes by name, so that two reports of one collection are alike.
        self.directories
            .sort_by(|(a, x), (b, y)| y.all().cmp(&x.all()).then_with(|| a.cmp(b)));
        self.newest = counting.newest.into_values().collect();
        self.largest = counting.largest.into_values().collect();
        // `docker diff` names a directory as changed because something in it did.
        if !self.described && self.count.all() as usize == self.first.len() {
            let parents: BTreeSet<String> = self
                .first
                .iter()
                .flat_map(|change| above(&change.path))
                .collect();
            let is_parent =
                |change: &&Change| change.kind == Kind::Changed && parents.contains(&change.path);
            let n = self.first.iter().filter(is_parent).count() as u64;
            if let Some(unknown) = self.types.get_mut(UNKNOWN).filter(|_| n > 0) {
                unknown.changed -= n;
                self.types.entry(DIRECTORY).or_default().changed += n;
            }
        }
    }
}

const UNKNOWN: &str = "not described";
const DIRECTORY: &str = "directory";

/// What a changed thing is, most telling first.
fn name(change: &Change) -> &'static str {
    match &change.file {
        None if change.kind == Kind::Deleted => "no longer there",
        None => UNKNOWN,
        Some(file) => match file.kind.as_str() {
            "file" if file.bits() & 0o6000 != 0 => "file with set-user-id or set-group-id bit",
            "file" if file.bits() & 0o111 != 0 => "executable file",
            "file" => "file",
            "dir" => DIRECTORY,
            "symlink" => "symbolic link",
            "hardlink" => "hard link",
            "char" | "block" => "device",
            "fifo" => "pipe",
            _ => "other",
        },
    }
}

/// The directories above a path.
fn above(path: &str) -> impl Iterator<Item = String> {
    path.match_indices('/')
        .filter(|(at, _)| *at > 0)
        .filter_map(|(at, _)| Some(path.get(..at)?.to_owned()))
}

#[derive(Default)]
struct Counting {
    number: u64,
    directories: HashMap<String, Count>,
    newest: BTreeMap<(Reverse<OffsetDateTime>, u64), Change>,
    largest: BTreeMap<(Reverse<u64>, u64), Change>,
}

impl Counting {
    fn directory(&mut self, path: &str) -> &mut Count {
        let path = if path.is_empty() { "/" } else { path };
        let known = self.directories.len() < DIRECTORIES || self.directories.contains_key(path);
        let path = if known { path } else { "(other directories)" };
        self.directories.entry(path.to_owned()).or_default()
    }
}

fn top<K: Ord>(into: &mut BTreeMap<K, Change>, key: K, change: &Change) {
    if into.len() < TOP || into.last_key_value().is_some_and(|(last, _)| key < *last) {
        into.insert(key, change.clone());
        if into.len() > TOP {
            into.pop_last();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Changes {
        let at = OffsetDateTime::parse("2026-01-31T03:00:00Z", &Rfc3339).unwrap();
        Changes::read(text.as_bytes(), Some(at)).unwrap()
    }

    #[test]
    fn a_described_list_is_counted_by_directory_type_age_and_size() {
        let file = |kind, path: &str, size, mode, mtime| {
            format!(
                r#"{{"kind":"{kind}","path":"{path}","file":{{"path":"x","type":"file","mode":"{mode}","size":{size},"mtime":"{mtime}"}}}}"#
            )
        };
        let text = [
            file("A", "/tmp/.x", 900, "0755", "2026-01-31T02:55:00Z"),
            file("A", "/tmp/late", 10, "0644", "2026-01-31T03:00:01Z"),
            file("C", "/etc/passwd", 20, "4644", "2020-01-01T00:00:00Z"),
            r#"{"kind":"D","path":"/var/log/x"}"#.to_owned(),
        ]
        .join("\n");
        let changes = read(&text);
        assert_eq!(
            changes.count,
            Count {
                added: 2,
                changed: 1,
                deleted: 1
            }
        );
        assert_eq!(
            changes.directories[0],
            (
                "/tmp".to_owned(),
                Count {
                    added: 2,
                    ..Count::default()
                }
            )
        );
        assert_eq!(changes.ages.count, [1, 1, 0, 0, 0, 0, 0, 0, 1]);
        let paths = |list: &[Change]| {
            list.iter()
                .map(|change| change.path.clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(
            paths(&changes.newest),
            ["/tmp/late", "/tmp/.x", "/etc/passwd"]
        );
        assert_eq!(
            paths(&changes.largest),
            ["/tmp/.x", "/etc/passwd", "/tmp/late"]
        );
        assert_eq!(changes.types["executable file"].added, 1);
        assert_eq!(
            changes.types["file with set-user-id or set-group-id bit"].changed,
            1
        );
        assert_eq!(changes.deleted, ["/var/log/x"]);
    }

    #[test]
    fn a_bare_list_tells_directories_by_what_is_in_them() {
        let changes =
            read("{\"kind\":\"C\",\"path\":\"/tmp\"}\n{\"kind\":\"A\",\"path\":\"/tmp/x\"}\n");
        assert!(!changes.described);
        assert_eq!(
            (
                changes.types[DIRECTORY].changed,
                changes.types[UNKNOWN].added
            ),
            (1, 1)
        );
    }

    #[test]
    fn a_long_list_keeps_counts_and_the_tops_only() {
        let text: String = (0..30_000)
            .map(|n| format!("{{\"kind\":\"A\",\"path\":\"/d{n}/f\",\"file\":{{\"type\":\"file\",\"size\":{n}}}}}\n"))
            .collect();
        let changes = read(&text);
        assert_eq!(
            (
                changes.count.added,
                changes.first.len(),
                changes.largest.len()
            ),
            (30_000, ALL, TOP)
        );
        assert_eq!(changes.largest[0].path, "/d29999/f");
        assert_eq!(
            changes.directories[0],
            (
                "(other directories)".to_owned(),
                Count {
                    added: 10_000,
                    ..Count::default()
                }
            )
        );
    }

    #[test]
    fn what_is_no_list_is_refused_with_the_line() {
        let error = Changes::read(
            "{\"kind\":\"A\",\"path\":\"/x\"}\nnonsense\n".as_bytes(),
            None,
        )
        .unwrap_err();
        assert!(
            error.to_string().starts_with("line 2 is no change"),
            "{error}"
        );
    }

    #[test]
    fn fuzz_changes_any_list_is_counted_within_bounds_or_refused() {
        let seed = br#"{"kind":"A","path":"/tmp/x","file":{"path":"tmp/x","type":"file","mode":"4755","size":9,"mtime":"2026-01-31T03:04:05.5Z","sha256":"00"}}
{"kind":"C","path":"/tmp"}
{"kind":"D","path":"/var/log/x"}
"#;
        let at = OffsetDateTime::parse("2026-01-31T03:00:00Z", &Rfc3339).unwrap();
        impound_fuzz::run("report-changes", &[seed.to_vec()], |_, bytes| {
            if let Ok(changes) = Changes::read(&bytes[..], Some(at)) {
                assert!(changes.first.len() <= ALL && changes.newest.len() <= TOP);
                assert!(changes.first.len() as u64 <= changes.count.all());
            }
        });
    }
}
