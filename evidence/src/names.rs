//! Names that can't be unsafe once they exist: cases, collections, paths, exports and images.
//!
//! Everything that becomes a file name, an object name or an image name in the evidence is parsed
//! here first, on both ends; code behind this border never checks for "..", slashes or controls
//! again.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A case: 1 to 63 letters, digits, `-`, `_` or `.`, first and last a letter or digit, no `..`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CaseId(String);

/// A collection: a DNS-1123 subdomain of at most 63 characters, as the Collection object's name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CollectionName(String);

/// The place of a file below its collection, e.g. `artifacts/worker2/default_web/nginx/diff.txt`.
///
/// Relative and `/`-separated. Segments are 1 to 255 visible ASCII characters without `\`, not
/// `.` or `..`; 1024 characters in all. ASCII only, so that no two paths look alike or become one
/// file on a file system that normalises Unicode.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EvidencePath(String);

/// File name of a container's exported file system: `evidence-compromised-<name>-<short id>.tar`.
///
/// `container` is the container's name, `id` its full runtime id.
pub fn export_name(container: &str, id: &str) -> Result<String, NameError> {
    let container = container_name(container)?;
    Ok(format!(
        "evidence-compromised-{container}-{}.tar",
        short_id(id)?
    ))
}

/// Image repository of a committed container: `compromised-<name>-<short id>`.
///
/// Always a valid repository: upper case becomes lower case and `_` and `.`, which may not stand
/// anywhere in a repository name, become `-`. The short id keeps such names apart.
pub fn image_name(container: &str, id: &str) -> Result<String, NameError> {
    let container: String = container_name(container)?
        .chars()
        .map(|c| match c.to_ascii_lowercase() {
            '_' | '.' => '-',
            c => c,
        })
        .collect();
    Ok(format!("compromised-{container}-{}", short_id(id)?))
}

/// The first 12 digits of a container's full id.
pub fn short_id(id: &str) -> Result<&str, NameError> {
    let hex = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
    if id.len() != 64 || !id.bytes().all(hex) {
        return Err(wrong(
            "a container id",
            "64 lower-case hexadecimal digits",
            id,
        ));
    }
    id.get(..12)
        .ok_or_else(|| wrong("a container id", "64 lower-case hexadecimal digits", id))
}

/// A name of another form than expected.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{what}: expected {expected}, got {got:?}{cut}")]
pub struct NameError {
    what: &'static str,
    expected: &'static str,
    got: String,
    cut: &'static str,
}

impl EvidencePath {
    /// The path of `below`, one or more segments, under this one.
    pub fn join(&self, below: &str) -> Result<Self, NameError> {
        format!("{}/{below}", self.0).parse()
    }

    /// The last segment.
    #[must_use]
    pub fn file_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }

    /// Whether `directory` is a directory on the way to it.
    pub(crate) fn is_below(&self, directory: &Self) -> bool {
        self.0
            .strip_prefix(&directory.0)
            .is_some_and(|rest| rest.starts_with('/'))
    }

    /// The segments, outermost first.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }
}

impl CaseId {
    fn check(text: &str) -> Result<(), NameError> {
        let inner = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
        let outer = |c: Option<&u8>| c.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = text.as_bytes();
        if bytes.len() <= 63
            && bytes.iter().copied().all(inner)
            && outer(bytes.first())
            && outer(bytes.last())
            && !text.contains("..")
        {
            return Ok(());
        }
        Err(wrong(
            "case id",
            "1 to 63 letters, digits, '-', '_' or '.', first and last a letter or digit, no '..'",
            text,
        ))
    }
}

impl CollectionName {
    fn check(text: &str) -> Result<(), NameError> {
        let label = |label: &str| {
            let bytes = label.as_bytes();
            let outer =
                |c: Option<&u8>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
            bytes
                .iter()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == b'-')
                && outer(bytes.first())
                && outer(bytes.last())
        };
        if text.len() <= 63 && text.split('.').all(label) {
            return Ok(());
        }
        Err(wrong(
            "collection name",
            "a DNS subdomain of 1 to 63 characters: lower-case letters, digits, '-' and '.', each part beginning and ending with a letter or digit",
            text,
        ))
    }
}

impl EvidencePath {
    fn check(text: &str) -> Result<(), NameError> {
        let segment = |segment: &str| {
            (1..=255).contains(&segment.len())
                && segment != "."
                && segment != ".."
                && segment.bytes().all(|c| c.is_ascii_graphic() && c != b'\\')
        };
        if text.len() <= 1024 && text.split('/').all(segment) {
            return Ok(());
        }
        Err(wrong(
            "evidence path",
            "a relative path of at most 1024 visible ASCII characters, its parts neither empty nor '.' nor '..' nor over 255 characters, without '\\'",
            text,
        ))
    }
}

/// What Docker lets a container be called, so also every name that Kubernetes allows. The limit
/// of 128 leaves room for the prefix and id in a file name of 255 bytes.
fn container_name(text: &str) -> Result<&str, NameError> {
    let inner = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    let first = text
        .bytes()
        .next()
        .is_some_and(|c| c.is_ascii_alphanumeric());
    if first && text.len() <= 128 && text.bytes().all(inner) {
        return Ok(text);
    }
    Err(wrong(
        "container name",
        "1 to 128 letters, digits, '-', '_' or '.', first a letter or digit",
        text,
    ))
}

fn wrong(what: &'static str, expected: &'static str, got: &str) -> NameError {
    /// Characters of a refused name that an error repeats: enough to recognise it, not a page.
    const SHOWN: usize = 100;
    let shown: String = got.chars().take(SHOWN).collect();
    let cut = if shown.len() < got.len() {
        " (cut)"
    } else {
        ""
    };
    NameError {
        what,
        expected,
        got: shown,
        cut,
    }
}

macro_rules! name_type {
    ($name:ident) => {
        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::check(text)?;
                Ok(Self(text.to_owned()))
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

name_type!(CaseId);
name_type!(CollectionName);
name_type!(EvidencePath);

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn case_ids_are_safe_directory_names() {
        let long = "a".repeat(63);
        for good in ["INC-1", "a", "2024.06_x-1", long.as_str()] {
            assert_eq!(good.parse::<CaseId>().unwrap().to_string(), good);
        }
        let too_long = "a".repeat(64);
        for bad in [
            "",
            ".",
            "..",
            "a..b",
            "-a",
            "a-",
            "a/b",
            "a\\b",
            "a b",
            "a\0b",
            "ä",
            too_long.as_str(),
        ] {
            assert!(bad.parse::<CaseId>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn collection_names_are_names_of_kubernetes_objects() {
        for good in ["web-5d4f-x7", "a.b", "0"] {
            assert!(good.parse::<CollectionName>().is_ok());
        }
        let too_long = "a".repeat(64);
        for bad in [
            "",
            "A",
            "a_b",
            "a..b",
            ".a",
            "a.",
            "-a",
            "a.-b",
            too_long.as_str(),
        ] {
            assert!(bad.parse::<CollectionName>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn paths_stay_below_their_collection() {
        let long = "a".repeat(256);
        let deep = "a/".repeat(512) + "a";
        for bad in [
            "",
            "/",
            "/etc/passwd",
            "a/",
            "a//b",
            ".",
            "..",
            "a/../b",
            "a/..",
            "./a",
            "a/.",
            "a\\b",
            "a\0b",
            "a\nb",
            "a b",
            "ä",
            "a\u{202e}b",
            "a\u{7f}",
            long.as_str(),
            deep.as_str(),
        ] {
            assert!(bad.parse::<EvidencePath>().is_err(), "{bad:?} was taken");
        }
        let path: EvidencePath = "artifacts/worker2/default_web/nginx".parse().unwrap();
        assert_eq!(
            path.join("diff.txt").unwrap().as_str(),
            "artifacts/worker2/default_web/nginx/diff.txt"
        );
        assert_eq!(path.join("diff.txt").unwrap().file_name(), "diff.txt");
        assert!(path.join("../x").is_err());
        assert!(path.join("").is_err());
        assert!(
            "...".parse::<EvidencePath>().is_ok(),
            "three dots are a name"
        );
    }

    #[test]
    fn export_and_image_have_the_names_of_the_procedure() {
        assert_eq!(
            export_name("nginx", ID).unwrap(),
            "evidence-compromised-nginx-0123456789ab.tar"
        );
        assert_eq!(
            image_name("nginx", ID).unwrap(),
            "compromised-nginx-0123456789ab"
        );
        // A repository allows no upper case, and no "_" or "." beside "-".
        assert_eq!(
            image_name("My_.App-", ID).unwrap(),
            "compromised-my--app--0123456789ab"
        );
        for bad in ["", "../x", "a/b", "_a", "a b"] {
            assert!(export_name(bad, ID).is_err(), "{bad:?} was taken");
            assert!(image_name(bad, ID).is_err(), "{bad:?} was taken");
        }
        for bad in [
            "",
            "0123456789ab",
            &ID.to_uppercase(),
            &format!("sha256:{ID}"),
        ] {
            assert!(short_id(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn error_says_what_was_expected_and_what_came() {
        assert_eq!(
            "../x".parse::<CaseId>().unwrap_err().to_string(),
            "case id: expected 1 to 63 letters, digits, '-', '_' or '.', first and last a letter or digit, no '..', got \"../x\""
        );
        let long = "a".repeat(300).parse::<CaseId>().unwrap_err().to_string();
        assert!(long.ends_with("a\" (cut)") && long.len() < 300, "{long}");
    }

    #[test]
    fn an_unsafe_name_cannot_be_deserialised() {
        assert!(serde_json::from_str::<EvidencePath>("\"../x\"").is_err());
        assert!(serde_json::from_str::<CaseId>("\"a/b\"").is_err());
        assert_eq!(
            serde_json::to_string(&"a/b".parse::<EvidencePath>().unwrap()).unwrap(),
            "\"a/b\""
        );
    }
}
