//! Time as Kubernetes writes it: whole seconds in metadata, microseconds in Lease and Event times.

use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

const SECONDS: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");
const MICROS: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");

/// Now, as `metav1.Time`.
pub(crate) fn now() -> String {
    after(0)
}

/// Some seconds from now, as `metav1.Time`.
pub(crate) fn after(seconds: i64) -> String {
    (OffsetDateTime::now_utc() + time::Duration::seconds(seconds))
        .format(SECONDS)
        .unwrap_or_default()
}

/// Now, as `metav1.MicroTime`.
pub(crate) fn now_micros() -> String {
    OffsetDateTime::now_utc().format(MICROS).unwrap_or_default()
}

/// Nanoseconds since the epoch: the suffix of event names.
pub(crate) fn nanos() -> i128 {
    OffsetDateTime::now_utc().unix_timestamp_nanos()
}

/// Parses an RFC 3339 time.
pub(crate) fn parse(text: &str) -> Option<OffsetDateTime> {
    OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).ok()
}

/// How long ago, as kubectl's tables print it (`5s`, `3m12s`, `4h`, `2d`).
pub(crate) fn age(text: &str) -> String {
    let Some(then) = parse(text) else {
        return "<unknown>".to_owned();
    };
    let seconds = (OffsetDateTime::now_utc() - then).whole_seconds().max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    if seconds < 120 {
        format!("{seconds}s")
    } else if seconds < 600 && seconds % 60 != 0 {
        format!("{minutes}m{}s", seconds % 60)
    } else if seconds < 10_800 {
        format!("{minutes}m")
    } else if seconds < 28_800 && minutes % 60 != 0 {
        format!("{hours}h{}m", minutes % 60)
    } else if seconds < 172_800 {
        format!("{hours}h")
    } else {
        format!("{days}d")
    }
}
