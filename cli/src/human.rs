//! Numbers, times and foreign text as people read them.

use impound_evidence::Timestamp;
use prost_types::Timestamp as Proto;
use time::OffsetDateTime;

/// Bytes with three significant figures, e.g. `1.25 GiB`.
pub(crate) fn bytes(n: u64) -> String {
    let mut value = n as f64;
    for unit in ["B", "KiB", "MiB", "GiB", "TiB"] {
        if value < 1000.0 || unit == "TiB" {
            return match (unit, value) {
                ("B", _) => format!("{n} B"),
                (_, value) if value < 9.995 => format!("{value:.2} {unit}"),
                (_, value) if value < 99.95 => format!("{value:.1} {unit}"),
                _ => format!("{value:.0} {unit}"),
            };
        }
        value /= 1024.0;
    }
    format!("{n} B")
}

/// A span of time, e.g. `0.4s`, `42s`, `3m05s`, `2h07m`.
pub(crate) fn span(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    match whole {
        0..10 => format!("{:.1}s", seconds.max(0.0)),
        10..60 => format!("{whole}s"),
        60..3600 => format!("{}m{:02}s", whole / 60, whole % 60),
        _ => format!("{}h{:02}m", whole / 3600, whole / 60 % 60),
    }
}

/// Between two of the controller's times, if both are there.
pub(crate) fn between(started: Option<&Proto>, finished: Option<&Proto>) -> String {
    match started.and_then(utc).zip(finished.and_then(utc)) {
        Some((started, finished)) => span((finished - started).as_seconds_f64()),
        None => String::new(),
    }
}

/// Time of day, UTC, e.g. `03:04:05Z`.
pub(crate) fn clock(time: Option<&Proto>) -> String {
    time.and_then(utc).map_or_else(String::new, |time| {
        format!(
            "{:02}:{:02}:{:02}Z",
            time.hour(),
            time.minute(),
            time.second()
        )
    })
}

/// Date and time, UTC, e.g. `2026-01-31 03:04:05Z`.
pub(crate) fn date(time: Option<&Proto>) -> String {
    time.and_then(utc)
        .map_or_else(String::new, |at| format!("{} {}", at.date(), clock(time)))
}

/// As machines read it: RFC 3339.
pub(crate) fn exact(time: Option<&Proto>) -> Option<String> {
    time.and_then(|time| Timestamp::from_unix(time.seconds, time.nanos))
        .map(|time| time.to_string())
}

fn utc(time: &Proto) -> Option<OffsetDateTime> {
    let nanoseconds = i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos);
    // Year 10000 and later have no form that everybody reads.
    OffsetDateTime::from_unix_timestamp_nanos(nanoseconds)
        .ok()
        .filter(|time| time.year() < 10_000)
}

/// Text from elsewhere without anything that could steer a terminal or deceive a reader: control
/// characters escaped, and those that reorder text or are not seen.
pub(crate) fn clean(text: &str) -> String {
    let steers = |c: char| {
        c.is_control()
            || matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}')
    };
    text.chars()
        .flat_map(|c| {
            let escaped = steers(c).then(|| c.escape_default());
            let plain = if steers(c) { None } else { Some(c) };
            escaped.into_iter().flatten().chain(plain)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_figures() {
        for (n, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "0.98 KiB"),
            (1536, "1.50 KiB"),
            (10 << 20, "10.0 MiB"),
            (999 << 30, "999 GiB"),
            (u64::MAX, "16777216 TiB"),
        ] {
            assert_eq!(bytes(n), text);
        }
    }

    #[test]
    fn spans_are_short() {
        for (seconds, text) in [
            (-1.0, "0.0s"),
            (0.44, "0.4s"),
            (42.9, "42s"),
            (185.0, "3m05s"),
            (7620.0, "2h07m"),
        ] {
            assert_eq!(span(seconds), text);
        }
    }

    #[test]
    fn foreign_text_cannot_steer_the_terminal() {
        assert_eq!(
            clean("a\u{1b}[31mb\r\nc\u{202e}d\u{200b}e\u{e0041} é"),
            "a\\u{1b}[31mb\\r\\nc\\u{202e}d\\u{200b}e\\u{e0041} é"
        );
    }

    #[test]
    fn fuzz_clean_no_foreign_text_steers_a_terminal_or_begins_a_line() {
        let seed = "a\u{1b}[31mb\r\nc\u{202e}d\u{200b}e\u{e0041} \u{9b}1;1H é \\u{1b}";
        impound_fuzz::run("clean", &[seed.into()], |_, bytes| {
            let shown = clean(&String::from_utf8_lossy(&bytes));
            assert!(!shown.contains(char::is_control), "{shown:?}");
            assert!(
                !shown.contains(['\u{202e}', '\u{2066}', '\u{200b}']),
                "{shown:?}"
            );
            assert_eq!(clean(&shown), shown);
        });
    }

    #[test]
    fn times_out_of_range_are_left_out() {
        let time = |seconds| Proto { seconds, nanos: 0 };
        assert_eq!(clock(Some(&time(i64::MAX))), "");
        assert_eq!(date(Some(&time(253_402_300_800))), "");
        assert_eq!(date(Some(&time(0))), "1970-01-01 00:00:00Z");
    }
}
