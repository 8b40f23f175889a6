//! `/proc/PID/mountinfo`: where a process's root comes from. Format: proc_pid_mountinfo(5).

/// One mount.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mount {
    /// Of its file system: major and minor number.
    pub(super) device: (u32, u32),
    /// Type of its file system, e.g. "overlay".
    pub(super) kind: String,
    /// Options of its file system, as the kernel shows them.
    options: String,
}

/// The mount that is the root: the last one there, which lies over the others.
pub(super) fn root(text: &str) -> Option<Mount> {
    text.lines().rev().find_map(|line| {
        let (own, system) = line.split_once(" - ")?;
        let mut own = own.split(' ').skip(2);
        let (major, minor) = own.next()?.split_once(':')?;
        if own.nth(1)? != "/" {
            return None;
        }
        let mut system = system.split(' ');
        Some(Mount {
            device: (major.parse().ok()?, minor.parse().ok()?),
            kind: system.next()?.to_owned(),
            options: system.nth(1)?.to_owned(),
        })
    })
}

impl Mount {
    /// An option's value.
    pub(super) fn option(&self, name: &str) -> Option<String> {
        let mut options = self.options.split(',');
        options.find_map(|option| {
            let (key, value) = option.split_once('=')?;
            (key == name).then(|| unescape(value))
        })
    }
}

/// The kernel writes space, tab, newline, backslash and comma as a backslash and three octal digits.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        let octal = behind
            .get(..3)
            .filter(|_| *first == b'\\')
            .and_then(|digits| {
                let digits = str::from_utf8(digits).ok()?;
                u8::from_str_radix(digits, 8).ok()
            });
        bytes.push(octal.unwrap_or(*first));
        rest = match octal {
            Some(_) => behind.get(3..).unwrap_or_default(),
            None => behind,
        };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCKER: &str = "\
733 600 0:59 / / rw,relatime master:294 - overlay overlay rw,lowerdir=/var/lib/docker/overlay2/l/A:/var/lib/docker/overlay2/l/B,upperdir=/var/lib/docker/overlay2/48f9/diff,workdir=/var/lib/docker/overlay2/48f9/work
734 733 0:62 / /proc rw,nosuid - proc proc rw
735 733 254:0 /var/lib/docker/containers/x/hosts /etc/hosts rw,relatime - ext4 /dev/vda rw
";

    #[test]
    fn the_root_of_a_container_names_its_writable_layer() {
        let mount = root(DOCKER).unwrap();
        assert_eq!((mount.kind.as_str(), mount.device), ("overlay", (0, 59)));
        assert_eq!(
            mount.option("upperdir").unwrap(),
            "/var/lib/docker/overlay2/48f9/diff"
        );
        assert_eq!(mount.option("metacopy"), None);
    }

    #[test]
    fn a_root_that_was_mounted_over_counts_and_escapes_are_read() {
        let text = format!(
            "{DOCKER}900 733 0:70 / / rw - overlay none rw,upperdir=/a\\040b\\054c\\134d,lowerdir=/x\n"
        );
        let mount = root(&text).unwrap();
        assert_eq!(mount.device, (0, 70));
        assert_eq!(mount.option("upperdir").unwrap(), "/a b,c\\d");
        assert_eq!(root("nonsense\n1 2 3\n"), None);
        assert_eq!(unescape("\\9x\\04"), "\\9x\\04");
    }

    #[test]
    fn fuzz_mountinfo_any_text_has_a_root_or_none() {
        let seeds = [
            DOCKER.as_bytes().to_vec(),
            b"900 733 0:70 / / rw - overlay none rw,upperdir=/a\\040b\\054c\\134d,metacopy=on\n"
                .to_vec(),
        ];
        impound_fuzz::run("mountinfo", &seeds, |_, bytes| {
            let text = String::from_utf8_lossy(&bytes);
            if let Some(mount) = root(&text) {
                assert!(!mount.kind.contains(' '));
                for name in ["upperdir", "metacopy", ""] {
                    // Bytes that are no UTF-8 become three.
                    let value = mount.option(name).unwrap_or_default();
                    assert!(value.len() <= 3 * text.len());
                }
            }
        });
    }
}
