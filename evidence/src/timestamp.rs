//! An instant as the evidence writes it: UTC, microseconds, one spelling.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime};

/// RFC 3339 with exactly six digits of a second and `Z`, so that one instant has one spelling and
/// text sorts as time.
const FORM: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");

/// An instant, cut to whole microseconds. Displayed and serialised as
/// `2026-01-31T03:04:05.678901Z`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(PrimitiveDateTime);

impl Timestamp {
    /// This machine's clock.
    #[must_use]
    pub fn now() -> Self {
        Self::cut(OffsetDateTime::now_utc())
    }

    /// Seconds since 1970 and the nanoseconds of the second, as gRPC carries an instant. `None`
    /// outside the years 0 to 9999, which alone the text has room for, and for nanoseconds that are
    /// no part of a second: both come from elsewhere and may be anything.
    #[must_use]
    pub fn from_unix(seconds: i64, nanos: i32) -> Option<Self> {
        let nanos = u32::try_from(nanos).ok()?;
        let whole = OffsetDateTime::from_unix_timestamp(seconds).ok()?;
        (0..=9999)
            .contains(&whole.year())
            .then(|| whole.replace_nanosecond(nanos).ok().map(Self::cut))?
    }

    /// As the type of the `time` crate, in UTC.
    #[must_use]
    pub fn to_utc(self) -> OffsetDateTime {
        self.0.assume_utc()
    }

    /// `time` must be UTC.
    fn cut(time: OffsetDateTime) -> Self {
        let whole = time.nanosecond() - time.nanosecond() % 1000;
        let time = time.replace_nanosecond(whole).unwrap_or(time);
        Self(PrimitiveDateTime::new(time.date(), time.time()))
    }
}

/// Text that is no instant.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("expected a UTC time like 2026-01-31T03:04:05.678901Z, got {0:?}")]
pub struct TimestampError(String);

impl FromStr for Timestamp {
    type Err = TimestampError;

    fn from_str(text: &str) -> Result<Self, TimestampError> {
        let wrong = || TimestampError(text.chars().take(40).collect());
        let time = PrimitiveDateTime::parse(text, FORM).map_err(|_| wrong())?;
        // The parser takes a few other spellings (a sign before the year); we take one.
        let time = Self(time);
        if time.to_string() == text {
            Ok(time)
        } else {
            Err(wrong())
        }
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.format(FORM).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_instant_has_one_spelling() {
        let time = Timestamp::from_unix(1_769_828_645, 678_901_999).unwrap();
        assert_eq!(time.to_string(), "2026-01-31T03:04:05.678901Z");
        assert_eq!(time.to_string().parse::<Timestamp>().unwrap(), time);
        for wrong in [
            "",
            "2026-01-31T03:04:05Z",
            "2026-01-31T03:04:05.678Z",
            "2026-01-31T03:04:05.678901234Z",
            "2026-01-31T03:04:05.678901+00:00",
            "2026-01-31 03:04:05.678901Z",
            "+2026-01-31T03:04:05.678901Z",
            "2026-13-31T03:04:05.678901Z",
        ] {
            assert!(wrong.parse::<Timestamp>().is_err(), "{wrong:?} was taken");
        }
    }
    #[test]
    fn an_instant_without_a_spelling_is_none() {
        let text = |seconds, nanos| Timestamp::from_unix(seconds, nanos).map(|t| t.to_string());
        let (first, last) = (-62_167_219_200, 253_402_300_799);
        assert_eq!(text(first, 0).unwrap(), "0000-01-01T00:00:00.000000Z");
        assert_eq!(
            text(-1, 999_999_999).unwrap(),
            "1969-12-31T23:59:59.999999Z"
        );
        assert_eq!(
            text(last, 999_999_999).unwrap(),
            "9999-12-31T23:59:59.999999Z"
        );
        for (seconds, nanos) in [
            (first - 1, 0),
            (last + 1, 0),
            (i64::MIN, 0),
            (i64::MAX, i32::MAX),
            (0, -1),
            (0, 1_000_000_000),
        ] {
            assert_eq!(text(seconds, nanos), None, "{seconds} s {nanos} ns");
        }
    }
}
