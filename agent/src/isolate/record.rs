//! What a table says about itself: for which case and quarantine it is there, and since when. Kept as
//! its comment, so that any agent, and anybody with `nft`, can read it.

use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

/// What a table says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) holder: Holder,
    pub(crate) since: SystemTime,
}

/// For what a table is there, as recorded in its comment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) case: Label,
    pub(crate) quarantine: Label,
}

/// 1 to 64 of `A-Z a-z 0-9 . _ - /`: a table has room for two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Label(String);

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Holder { case, quarantine } = &self.holder;
        let since = prost_types::Timestamp::from(self.since);
        let seconds = prost_types::Timestamp { nanos: 0, ..since };
        write!(
            f,
            "impound case={case} quarantine={quarantine} since={seconds}"
        )
    }
}

impl FromStr for Record {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut words = text.split(' ');
        let mut field = |name: &str| words.next().and_then(|word| word.strip_prefix(name));
        field("impound").filter(|rest| rest.is_empty()).ok_or(())?;
        let case = field("case=").ok_or(())?.parse().map_err(drop)?;
        let quarantine = field("quarantine=").ok_or(())?.parse().map_err(drop)?;
        let since: prost_types::Timestamp = field("since=").ok_or(())?.parse().map_err(drop)?;
        Ok(Self {
            holder: Holder { case, quarantine },
            since: since.try_into().map_err(drop)?,
        })
    }
}

impl FromStr for Label {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Self, LabelError> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte);
        if (1..=64).contains(&text.len()) && text.bytes().all(fits) {
            Ok(Self(text.to_owned()))
        } else {
            Err(LabelError {
                found: text.chars().take(200).collect(),
            })
        }
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Not fit to be recorded in a table.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected 1 to 64 of A-Z a-z 0-9 . _ - /, found {found:?}")]
pub(crate) struct LabelError {
    found: String,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_record_survives_the_kernel() {
        let longest = "q".repeat(64);
        let record = Record {
            holder: Holder {
                case: "INC-2026-001".parse().unwrap(),
                quarantine: longest.parse().unwrap(),
            },
            since: SystemTime::UNIX_EPOCH + Duration::from_secs(1_764_000_000),
        };
        let text = record.to_string();
        assert!(
            text.len() < 255 && text.ends_with("since=2025-11-24T16:00:00Z"),
            "{text}"
        );
        assert_eq!(text.parse(), Ok(record));
        for broken in [
            "",
            "impound",
            "impound case=a quarantine=b",
            "impound case=a b quarantine=b since=2025-11-24T16:00:00Z",
            "impoundcase=a quarantine=b since=2025-11-24T16:00:00Z",
            "impound case=a quarantine=b since=yesterday",
        ] {
            assert_eq!(broken.parse::<Record>(), Err(()), "{broken}");
        }
        for label in ["", "a b", "ä", "a=b", &"q".repeat(65)] {
            assert!(label.parse::<Label>().is_err(), "{label}");
        }
    }

    #[test]
    fn fuzz_record_a_comment_that_is_taken_is_told_again_as_it_was() {
        let seed = "impound case=INC-7 quarantine=shop/web-5d4f since=2025-11-24T16:00:00Z";
        impound_fuzz::run("record", &[seed.into()], |_, bytes| {
            let text = String::from_utf8_lossy(&bytes);
            if let Ok(record) = text.parse::<Record>() {
                let told = record.to_string();
                let again = told.parse::<Record>().unwrap();
                assert_eq!(again.holder, record.holder);
                assert_eq!(again.to_string(), told);
            }
        });
    }
}
