//! An instant as the evidence writes it: UTC, microseconds, one spelling.

use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime, UtcOffset};

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
        OffsetDateTime::now_utc().into()
    }

    /// As the type of the `time` crate, in UTC.
    #[must_use]
    pub fn to_utc(self) -> OffsetDateTime {
        self.0.assume_utc()
    }
}

/// Text that is no instant.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("expected a UTC time like 2026-01-31T03:04:05.678901Z, got {0:?}")]
pub struct TimestampError(String);

impl From<OffsetDateTime> for Timestamp {
    fn from(time: OffsetDateTime) -> Self {
        let utc = time.to_offset(UtcOffset::UTC);
        let whole = utc.nanosecond() - utc.nanosecond() % 1000;
        let utc = utc.replace_nanosecond(whole).unwrap_or(utc);
        Self(PrimitiveDateTime::new(utc.date(), utc.time()))
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        OffsetDateTime::from(time).into()
    }
}

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
    use time::macros::datetime;

    use super::*;

    #[test]
    fn one_instant_has_one_spelling() {
        let time = Timestamp::from(datetime!(2026-01-31 04:04:05.678901999 +1));
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
}
