//! Paths of members: what is odd about them, and a hash that is the same for every spelling.

use std::hash::{BuildHasher, Hasher, RandomState};

use crate::tar::{Anomaly, FileType, Member};

/// Hashes paths, component by component, with a key of this process: a suspect can't make two paths
/// that collide. 64 bits: among a million paths the chance of one wrong match is 1 to 37 million.
#[derive(Clone)]
pub(super) struct PathHasher(RandomState);

impl PathHasher {
    pub(super) fn new() -> Self {
        Self(RandomState::new())
    }

    /// The path's hash; `ancestor` is called with those of the directories that it leads through.
    /// Every spelling of a path has one hash: `./a//b/`, `/a/b` and `a/b`.
    pub(super) fn each(&self, path: &[u8], mut ancestor: impl FnMut(u64)) -> u64 {
        let mut hasher = self.0.build_hasher();
        let mut parts = components(path).peekable();
        while let Some(part) = parts.next() {
            hasher.write(part);
            hasher.write_u8(b'/');
            if parts.peek().is_some() {
                ancestor(hasher.finish());
            }
        }
        hasher.finish()
    }

    pub(super) fn hash(&self, path: &[u8]) -> u64 {
        self.each(path, |_| {})
    }
}

/// The names of a path, without empty ones and `.`.
pub(super) fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
}

/// Adds what is odd about a member's path, link and time.
pub(super) fn examine(member: &mut Member) {
    let path = member.path.as_slice();
    let is_root = member.kind == FileType::Directory && components(path).next().is_none();
    let outside = member
        .link
        .as_deref()
        .is_some_and(|link| leads_out(member.kind, path, link));
    let found = &mut member.anomalies;
    found.add_if(path.is_empty(), Anomaly::EmptyPath);
    found.add_if(
        path.first() == Some(&b'/') && !is_root,
        Anomaly::AbsolutePath,
    );
    found.add_if(
        components(path).any(|part| part == b".."),
        Anomaly::ParentTraversal,
    );
    found.add_if(
        path.iter().any(u8::is_ascii_control),
        Anomaly::ControlCharacters,
    );
    found.add_if(str::from_utf8(path).is_err(), Anomaly::NotUtf8);
    found.add_if(outside, Anomaly::LinkOutside);
    let absurd = member
        .mtime
        .is_some_and(|time| super::line::date(time).is_none());
    found.add_if(absurd, Anomaly::AbsurdTime);
}

/// Whether a link's target is outside the root. An absolute target of a symbolic link is not:
/// inside the container that is its own root, and every image has hundreds.
fn leads_out(kind: FileType, path: &[u8], link: &[u8]) -> bool {
    let absolute = link.first() == Some(&b'/');
    // A hard link names another member, from the root.
    if kind == FileType::HardLink {
        return absolute || components(link).any(|part| part == b"..");
    }
    if absolute {
        return false;
    }
    let climb = |depth: usize, part: &[u8]| match part {
        b".." => depth.checked_sub(1),
        _ => Some(depth + 1),
    };
    let Some(depth) = components(path).try_fold(0, climb) else {
        return true;
    };
    components(link)
        .try_fold(depth.saturating_sub(1), climb)
        .is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_path_has_one_hash() {
        let hasher = PathHasher::new();
        let one = hasher.hash(b"etc/passwd");
        for same in [
            "/etc/passwd",
            "./etc/passwd",
            "etc//passwd/",
            "etc/./passwd",
        ] {
            assert_eq!(hasher.hash(same.as_bytes()), one, "{same}");
        }
        for other in ["etcpasswd", "etc/passw/d", "passwd", "etc", "etc/passwd/x"] {
            assert_ne!(hasher.hash(other.as_bytes()), one, "{other}");
        }
        let mut ancestors = Vec::new();
        hasher.each(b"a/b/c", |hash| ancestors.push(hash));
        assert_eq!(ancestors, [hasher.hash(b"a"), hasher.hash(b"a/b")]);
    }

    #[test]
    fn a_link_leads_out_only_if_it_climbs_above_the_root() {
        let symlink =
            |path: &str, link: &str| leads_out(FileType::Symlink, path.as_bytes(), link.as_bytes());
        assert!(!symlink("etc/alternatives/x", "/usr/bin/x"));
        assert!(!symlink("usr/lib/a", "../../etc/b"));
        assert!(symlink("usr/lib/a", "../../../etc/b"));
        assert!(symlink("a", ".."));
        assert!(!symlink("a", "b/../c"));
        let hard = |link: &str| leads_out(FileType::HardLink, b"x", link.as_bytes());
        assert!(!hard("etc/passwd"));
        assert!(hard("/etc/passwd"));
        assert!(hard("a/../../etc/passwd"));
    }
}
