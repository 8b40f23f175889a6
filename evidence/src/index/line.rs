//! One line of `files.jsonl` and of `changes.jsonl`.

use std::borrow::Cow;
use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use time::OffsetDateTime;

use super::changes::Change;
use super::paths::components;
use crate::digest::Sha256;
use crate::tar::{Anomalies, FileType, Member, TarTime};

/// A member of a tar. Fields that say nothing are left out.
#[derive(Serialize)]
struct FileLine<'a> {
    path: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_base64: Option<String>,
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    typeflag: Option<u8>,
    mode: Option<String>,
    uid: Option<u64>,
    gid: Option<u64>,
    #[serde(skip_serializing_if = "str::is_empty")]
    user: Cow<'a, str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    group: Cow<'a, str>,
    size: u64,
    mtime: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtime_unix: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    link: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    link_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<[u64; 2]>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    xattrs: BTreeMap<Cow<'a, str>, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stored: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sha256: Option<Sha256>,
    #[serde(skip_serializing_if = "Option::is_none")]
    broken_at: Option<u64>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    whiteout: bool,
    offset: u64,
    #[serde(skip_serializing_if = "Anomalies::is_empty")]
    anomalies: Anomalies,
}

/// The line of a member without its newline. `broken`: bytes that came of contents that broke off.
pub(super) fn file(member: &Member, sha256: Option<Sha256>, broken: Option<u64>) -> Vec<u8> {
    let (path, path_base64) = text(&member.path);
    let (link, link_base64) = match &member.link {
        None => (None, None),
        Some(link) => {
            let (link, base64) = text(link);
            (Some(link), base64)
        }
    };
    let mtime = member.mtime.and_then(date);
    let line = FileLine {
        path,
        path_base64,
        kind: member.kind.name(),
        typeflag: (member.kind == FileType::Unknown).then_some(member.typeflag),
        mode: member.mode.map(|mode| format!("{mode:04o}")),
        uid: member.uid,
        gid: member.gid,
        user: String::from_utf8_lossy(&member.user),
        group: String::from_utf8_lossy(&member.group),
        size: member.size,
        mtime_unix: member
            .mtime
            .map(|time| time.seconds)
            .filter(|_| mtime.is_none()),
        mtime,
        link,
        link_base64,
        device: member.device.map(|(major, minor)| [major, minor]),
        xattrs: member
            .xattrs
            .iter()
            .map(|(name, value)| (String::from_utf8_lossy(name), STANDARD.encode(value)))
            .collect(),
        stored: member.sparse.is_some().then_some(member.stored),
        sha256,
        broken_at: broken,
        whiteout: is_whiteout(member),
        offset: member.offset,
        anomalies: member.anomalies,
    };
    json(&line)
}

/// Adds the line of a change that the tar has, `line` being its file's.
pub(super) fn change(to: &mut Vec<u8>, change: Change, path: &[u8], line: &[u8]) {
    let mut absolute = Vec::with_capacity(path.len() + 1);
    for part in components(path) {
        absolute.push(b'/');
        absolute.extend_from_slice(part);
    }
    to.extend_from_slice(b"{\"kind\":\"");
    to.extend_from_slice(change.kind.letter().as_bytes());
    to.extend_from_slice(b"\",\"path\":");
    to.extend_from_slice(&json(&String::from_utf8_lossy(&absolute)));
    to.extend_from_slice(b",\"file\":");
    to.extend_from_slice(line);
    to.extend_from_slice(b"}\n");
}

/// Text and text-keyed maps always have a JSON form.
pub(super) fn json<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

/// Bytes as text; if they are no UTF-8, approximately, and then exactly in base64.
fn text(bytes: &[u8]) -> (Cow<'_, str>, Option<String>) {
    match String::from_utf8_lossy(bytes) {
        Cow::Borrowed(text) => (Cow::Borrowed(text), None),
        lossy => (lossy, Some(STANDARD.encode(bytes))),
    }
}

/// A layer's mark that a file of a lower layer is gone: an image's by name, overlayfs's own by device.
fn is_whiteout(member: &Member) -> bool {
    let device = member.kind == FileType::CharacterDevice && member.device == Some((0, 0));
    device
        || components(&member.path)
            .last()
            .is_some_and(|name| name.starts_with(b".wh."))
}

/// RFC 3339 in UTC, with as many digits of a second as are not zero; none outside the years 0 to
/// 9999.
pub(super) fn date(time: TarTime) -> Option<String> {
    let date = OffsetDateTime::from_unix_timestamp(time.seconds).ok()?;
    if !(1..=9999).contains(&date.year()) {
        return None;
    }
    let fraction = match time.nanos {
        0 => String::new(),
        nanos => format!(".{nanos:09}").trim_end_matches('0').to_owned(),
    };
    Some(format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}{fraction}Z",
        date.year(),
        u8::from(date.month()),
        date.day(),
        date.hour(),
        date.minute(),
        date.second(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_have_the_fraction_that_they_need() {
        let date = |seconds, nanos| date(TarTime { seconds, nanos });
        assert_eq!(date(0, 0).unwrap(), "1970-01-01T00:00:00Z");
        assert_eq!(
            date(1_700_000_000, 120_000_000).unwrap(),
            "2023-11-14T22:13:20.12Z"
        );
        assert_eq!(date(-1, 1).unwrap(), "1969-12-31T23:59:59.000000001Z");
        assert_eq!(date(253_402_300_800, 0), None, "the year 10000");
        assert_eq!(
            date(-62_135_596_801, 0),
            None,
            "the year 0, which Python and Timesketch have not"
        );
        assert_eq!(date(-62_135_596_800, 0).unwrap(), "0001-01-01T00:00:00Z");
        assert_eq!(date(i64::MIN, 0), None);
    }
}
