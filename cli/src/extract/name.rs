//! A path below the target that can't lead elsewhere once it exists, and where links may point.

/// A path of plain names: not empty, no `.`, `..`, empty name or NUL.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Name(Vec<u8>);

/// Deeper than any file system is used; each level costs a system call.
const DEPTH_LIMIT: usize = 512;

impl Name {
    /// The name in a tar, which may begin with `/` or `./`; none for the root itself.
    pub(super) fn parse(raw: &[u8]) -> Result<Option<Self>, &'static str> {
        let mut name = Vec::with_capacity(raw.len());
        let mut depth = 0;
        for part in raw.split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => continue,
                b".." => return Err("its name leads up (..)"),
                part if part.contains(&0) => return Err("its name holds a NUL byte"),
                part => {
                    if !name.is_empty() {
                        name.push(b'/');
                    }
                    name.extend_from_slice(part);
                }
            }
            depth += 1;
        }
        if depth > DEPTH_LIMIT {
            return Err("it lies deeper than 512 directories");
        }
        Ok((!name.is_empty()).then_some(Self(name)))
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The directory that it is in, empty for the root.
    pub(super) fn parent(&self) -> &[u8] {
        let end = self.0.iter().rposition(|byte| *byte == b'/');
        self.0.get(..end.unwrap_or(0)).unwrap_or_default()
    }

    /// The last name.
    pub(super) fn file_name(&self) -> &[u8] {
        self.0
            .rsplit(|byte| *byte == b'/')
            .next()
            .unwrap_or_default()
    }

    /// Directories between the root and it.
    fn depth(&self) -> usize {
        self.0.iter().filter(|byte| **byte == b'/').count()
    }

    /// As `name` with upper and lower case made one: equal for names that some file systems can't
    /// hold side by side.
    pub(super) fn folded(&self) -> Vec<u8> {
        match std::str::from_utf8(&self.0) {
            Ok(text) => text.to_lowercase().into_bytes(),
            Err(_) => self.0.to_ascii_lowercase(),
        }
    }
}

/// What a symbolic link at `at` may point to so that it means what it meant with the container's root
/// as root, and can't lead out of the target.
///
/// The answer goes up first and then only down by names. `..` at its begin is taken from the link's own
/// directory, which is a real one at a known depth; every link on the way down is one of ours too. With
/// `..` after a name that would not hold, because the name may be another link.
pub(super) fn link_target(at: &Name, target: &[u8]) -> Result<Vec<u8>, &'static str> {
    let mut parts: Vec<&[u8]> = target
        .split(|byte| *byte == b'/')
        .filter(|part| !matches!(*part, b"" | b"."))
        .collect();
    let ups = parts.iter().take_while(|part| **part == b"..").count();
    parts.drain(..ups);
    if parts.contains(&&b".."[..]) {
        return Err("it goes up after a name, so where it leads depends on other links");
    }
    let ups = match target.first() {
        None => return Err("it has no target"),
        Some(b'/') => at.depth(),
        // Above the root is the root.
        Some(_) => ups.min(at.depth()),
    };
    let parts: Vec<&[u8]> = std::iter::repeat_n(&b".."[..], ups).chain(parts).collect();
    Ok(match parts.is_empty() {
        true => b".".to_vec(),
        false => parts.join(&b'/'),
    })
}

/// Bytes of a name as text: what is no UTF-8 as `\xNN`. Of one that is longer than the kernel takes the
/// beginning.
pub(super) fn shown(bytes: &[u8]) -> String {
    const SHOWN: usize = 4096;
    let part = bytes.get(..SHOWN).unwrap_or(bytes);
    let mut text = String::with_capacity(part.len());
    for chunk in part.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    if part.len() < bytes.len() {
        text.push_str(&format!(" ... ({} bytes)", bytes.len()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::parse(text.as_bytes()).unwrap().unwrap()
    }

    #[test]
    fn a_name_stays_below_the_root() {
        for (raw, expected) in [
            ("etc/passwd", "etc/passwd"),
            ("/etc/passwd", "etc/passwd"),
            ("./a//b/./c/", "a/b/c"),
            ("...", "..."),
        ] {
            assert_eq!(name(raw).as_bytes(), expected.as_bytes());
        }
        for root in ["", "/", ".", "./", "//./"] {
            assert_eq!(Name::parse(root.as_bytes()), Ok(None));
        }
        let deep = "a/".repeat(513);
        for bad in ["..", "../x", "a/../../x", "a/..", "/..", "a\0b", &deep] {
            assert!(Name::parse(bad.as_bytes()).is_err(), "{bad:?} was taken");
        }
        assert_eq!(name("a/b/c").parent(), b"a/b");
        assert_eq!(
            (name("c").parent(), name("a/c").file_name()),
            (&b""[..], &b"c"[..])
        );
    }

    #[test]
    fn a_link_means_what_it_meant_in_the_container_or_is_refused() {
        for (at, target, expected) in [
            ("bin", "usr/bin", "usr/bin"),
            ("dev/stdout", "/proc/self/fd/1", "../proc/self/fd/1"),
            ("a/b/l", "/", "../.."),
            ("l", "/", "."),
            ("l", "../../../etc/passwd", "etc/passwd"),
            ("a/l", "../../etc/passwd", "../etc/passwd"),
            ("a/l", "/../../etc/passwd", "../etc/passwd"),
            ("a/l", "./x//y/", "x/y"),
        ] {
            let kept = link_target(&name(at), target.as_bytes()).unwrap();
            assert_eq!(shown(&kept), expected, "{at} -> {target}");
        }
        for bad in ["", "x/../..", "x/..", "/x/../../y", "../x/../../y"] {
            assert!(
                link_target(&name("a/b/l"), bad.as_bytes()).is_err(),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_shown_as_numbers() {
        assert_eq!(shown(b"caf\xe9 \xff.txt"), "caf\\xe9 \\xff.txt");
    }
}
