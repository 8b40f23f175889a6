//! What is odd about a member or a tar: things that a sceptic asks about, or that make two readers
//! of one tar see two different trees.

use serde::{Serialize, Serializer};

/// One kind of oddity. `files.jsonl` names it by [`Anomaly::name`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Anomaly {
    /// The path begins with a slash.
    AbsolutePath,
    /// The path has a `..`.
    ParentTraversal,
    /// The path is empty.
    EmptyPath,
    /// The path has control characters, e.g. a newline.
    ControlCharacters,
    /// The path is no UTF-8.
    NotUtf8,
    /// The path or link target is longer than what is listed of it.
    PathTooLong,
    /// An earlier member has the same path.
    DuplicatePath,
    /// A link whose target is outside the tar's root.
    LinkOutside,
    /// The path leads through an earlier member that is a symbolic link.
    ThroughLink,
    /// A plain file whose name ends with a slash: some readers make a directory of it.
    TrailingSlash,
    /// A type that no format defines; taken for a file, as POSIX says.
    UnknownType,
    /// More than a tebibyte, more than a container's file system has.
    AbsurdSize,
    /// A modification time outside the years 1 to 9999.
    AbsurdTime,
    /// A modification time before 1970.
    NegativeTime,
    /// A number in GNU's base-256 form, which readers of plain ustar don't understand.
    Base256,
    /// A number that is none; taken as absent.
    BadNumber,
    /// The header and its extension give two paths: readers see one or the other.
    PathConflict,
    /// The header and its extension give two sizes: readers see other members.
    SizeConflict,
    /// The header and its extension give two link targets.
    LinkConflict,
    /// A PAX header gives one value twice.
    DuplicateRecord,
    /// A PAX path, link target or name contains a NUL: some readers cut there.
    NulInRecord,
    /// A PAX value that is none of its kind; ignored.
    MalformedRecord,
    /// A global PAX header sets a path, link target, owner, time or extended attribute for all members
    /// behind it; of extended attributes nothing is listed, of texts 100 bytes.
    GlobalRecord,
    /// More extended attributes than are listed.
    TooManyXattrs,
    /// A sparse file: a map and its data stand in the tar. Its hash is that of the file with its holes.
    Sparse,
    /// A sparse file whose map can't be followed, or which readers follow differently: it has no hash.
    SparseMap,
    /// A sparse file with more holes than are hashed: it has no hash.
    NotHashed,
    /// Named by a GNU extension, which readers of plain ustar take for a file of its own.
    GnuLongName,
    /// Bytes behind the end of the tar.
    TrailingBytes,
    /// Another tar behind the end of the tar: some readers see its members too.
    Concatenated,
}

impl Anomaly {
    /// Every kind.
    pub const ALL: [Self; 30] = [
        Self::AbsolutePath,
        Self::ParentTraversal,
        Self::EmptyPath,
        Self::ControlCharacters,
        Self::NotUtf8,
        Self::PathTooLong,
        Self::DuplicatePath,
        Self::LinkOutside,
        Self::ThroughLink,
        Self::TrailingSlash,
        Self::UnknownType,
        Self::AbsurdSize,
        Self::AbsurdTime,
        Self::NegativeTime,
        Self::Base256,
        Self::BadNumber,
        Self::PathConflict,
        Self::SizeConflict,
        Self::LinkConflict,
        Self::DuplicateRecord,
        Self::NulInRecord,
        Self::MalformedRecord,
        Self::GlobalRecord,
        Self::TooManyXattrs,
        Self::Sparse,
        Self::SparseMap,
        Self::NotHashed,
        Self::GnuLongName,
        Self::TrailingBytes,
        Self::Concatenated,
    ];

    /// As it is called in files.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.words().0
    }

    /// One sentence for people.
    #[must_use]
    pub fn meaning(self) -> &'static str {
        self.words().1
    }

    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::AbsolutePath => (
                "absolute_path",
                "the path begins with a slash: it could be written outside the target directory",
            ),
            Self::ParentTraversal => (
                "parent_traversal",
                "the path has a \"..\": it could be written outside the target directory",
            ),
            Self::EmptyPath => ("empty_path", "the path is empty"),
            Self::ControlCharacters => (
                "control_characters",
                "the path has control characters, e.g. a newline",
            ),
            Self::NotUtf8 => ("not_utf8", "the path is not UTF-8"),
            Self::PathTooLong => (
                "path_too_long",
                "the path or link target is longer than what is listed of it",
            ),
            Self::DuplicatePath => (
                "duplicate_path",
                "an earlier member has the same path: readers keep the first or the last",
            ),
            Self::LinkOutside => (
                "link_outside",
                "a link whose target is outside the root of the tar",
            ),
            Self::ThroughLink => (
                "through_link",
                "the path leads through an earlier member that is a symbolic link",
            ),
            Self::TrailingSlash => (
                "trailing_slash",
                "a plain file whose name ends with a slash: some readers make a directory of it",
            ),
            Self::UnknownType => (
                "unknown_type",
                "a type that no tar format defines, taken for a plain file",
            ),
            Self::AbsurdSize => ("absurd_size", "it claims more than a tebibyte"),
            Self::AbsurdTime => (
                "absurd_time",
                "its modification time is outside the years 1 to 9999",
            ),
            Self::NegativeTime => (
                "negative_time",
                "its modification time is before the year 1970",
            ),
            Self::Base256 => (
                "base256",
                "a number in GNU's base-256 form: readers of plain ustar see another one",
            ),
            Self::BadNumber => ("bad_number", "a number field holds none, taken as absent"),
            Self::PathConflict => (
                "path_conflict",
                "the header and its extension give two paths: readers see one or the other",
            ),
            Self::SizeConflict => (
                "size_conflict",
                "the header and its PAX extension give two sizes: readers see other members",
            ),
            Self::LinkConflict => (
                "link_conflict",
                "the header and its extension give two link targets",
            ),
            Self::DuplicateRecord => (
                "duplicate_record",
                "its PAX header gives one value twice: readers take the first or the last",
            ),
            Self::NulInRecord => (
                "nul_in_record",
                "a PAX value contains a NUL: some readers cut there",
            ),
            Self::MalformedRecord => (
                "malformed_record",
                "a PAX value is none of its kind, ignored",
            ),
            Self::GlobalRecord => (
                "global_record",
                "a global PAX header sets its path, link target, owner, time or extended attributes",
            ),
            Self::TooManyXattrs => (
                "too_many_xattrs",
                "it has more extended attributes than are listed",
            ),
            Self::Sparse => (
                "sparse",
                "a sparse file: a map and its data stand in the tar, the hash is the whole file's",
            ),
            Self::SparseMap => (
                "sparse_map",
                "a sparse file whose map can't be followed or which readers follow differently, so it has no hash",
            ),
            Self::NotHashed => (
                "not_hashed",
                "a sparse file with more holes than are hashed, so it has no hash",
            ),
            Self::GnuLongName => (
                "gnu_long_name",
                "named by a GNU extension: readers of plain ustar take that for a file of its own",
            ),
            Self::TrailingBytes => ("trailing_bytes", "bytes behind the end of the tar"),
            Self::Concatenated => (
                "concatenated",
                "another tar behind the end of the tar: some readers see its members too",
            ),
        }
    }

    fn bit(self) -> u32 {
        1 << (self as u32)
    }
}

/// A set of oddities. Serialised as a list of names, in the order of [`Anomaly::ALL`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Anomalies(u32);

impl Anomalies {
    /// Adds one.
    pub fn add(&mut self, anomaly: Anomaly) {
        self.0 |= anomaly.bit();
    }

    /// Adds one if it is so.
    pub fn add_if(&mut self, so: bool, anomaly: Anomaly) {
        if so {
            self.add(anomaly);
        }
    }

    /// Adds all of another set.
    pub fn join(&mut self, other: Self) {
        self.0 |= other.0;
    }

    /// Whether it has this one.
    #[must_use]
    pub fn has(self, anomaly: Anomaly) -> bool {
        self.0 & anomaly.bit() != 0
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0 == 0
    }

    /// Each one.
    pub fn iter(self) -> impl Iterator<Item = Anomaly> {
        Anomaly::ALL.into_iter().filter(move |one| self.has(*one))
    }
}

impl Serialize for Anomalies {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter().map(Anomaly::name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_anomaly_has_a_bit_and_a_name_of_its_own() {
        let mut all = Anomalies::default();
        let mut names = std::collections::HashSet::new();
        for anomaly in Anomaly::ALL {
            assert!(!all.has(anomaly), "{anomaly:?} shares a bit");
            all.add(anomaly);
            assert!(names.insert(anomaly.name()), "{anomaly:?} shares a name");
        }
        assert_eq!(all.iter().count(), Anomaly::ALL.len());
    }
}
