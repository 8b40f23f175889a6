//! Lines as `sha256sum -c` and `md5sum -c` read them.

use std::io::Write as _;

use crate::tar::{Anomaly, Member};

/// Adds the line of a file whose contents have this digest. A name with a backslash, newline or
/// carriage return is escaped as coreutils does, with a backslash before the digest.
///
/// A path that leads outside is left out: the tool that checks the list would read there.
pub(super) fn write(to: &mut Vec<u8>, digest: &[u8], member: &Member) {
    let found = member.anomalies;
    let outside = found.has(Anomaly::AbsolutePath)
        || found.has(Anomaly::ParentTraversal)
        || found.has(Anomaly::EmptyPath)
        || member.path.contains(&0);
    if outside {
        return;
    }
    let escaped = member
        .path
        .iter()
        .any(|byte| matches!(byte, b'\\' | b'\n' | b'\r'));
    if escaped {
        to.push(b'\\');
    }
    hex(to, digest);
    to.extend_from_slice(b"  ");
    for byte in &member.path {
        match byte {
            b'\\' => to.extend_from_slice(b"\\\\"),
            b'\n' => to.extend_from_slice(b"\\n"),
            b'\r' => to.extend_from_slice(b"\\r"),
            byte => to.push(*byte),
        }
    }
    to.push(b'\n');
}

/// Writing to memory doesn't fail.
pub(super) fn hex(to: &mut Vec<u8>, digest: &[u8]) {
    for byte in digest {
        let _ = write!(to, "{byte:02x}");
    }
}
