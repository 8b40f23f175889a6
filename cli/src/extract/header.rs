//! What an entry's header says beside its name: when it was modified, and whether its contents can be read.

use std::io::{self, Read};

use rustix::fs::Timespec;
use tar::Entry;

/// Whether an entry's contents stand in the tar in a form that the parser doesn't know.
pub(super) fn unreadable<R: Read>(entry: &mut Entry<'_, R>) -> io::Result<Option<&'static str>> {
    for record in entry.pax_extensions()?.into_iter().flatten() {
        if record?.key_bytes().starts_with(b"GNU.sparse.") {
            return Ok(Some(
                "it is a sparse file in PAX form, which is not read here",
            ));
        }
    }
    Ok(None)
}

/// The entry's modification time: of its PAX record if it has one, which may have fractions.
pub(super) fn mtime<R: Read>(entry: &mut Entry<'_, R>) -> Result<Timespec, &'static str> {
    let wrong = "its modification time is none that can be set";
    let mut exact = None;
    if let Ok(Some(records)) = entry.pax_extensions() {
        for record in records
            .flatten()
            .filter(|record| record.key_bytes() == b"mtime")
        {
            exact = Some(record.value().ok().and_then(seconds).ok_or(wrong)?);
        }
    }
    match exact {
        Some(exact) => Ok(exact),
        None => {
            let whole = entry.header().mtime().map_err(|_| wrong)?;
            // The kernel takes 64 bits; no file system holds years beyond this one.
            let tv_sec = i64::try_from(whole).map_err(|_| wrong)?;
            Ok(Timespec { tv_sec, tv_nsec: 0 })
        }
    }
}

/// Decimal seconds since 1970, perhaps negative, perhaps with a fraction.
fn seconds(text: &str) -> Option<Timespec> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let tv_sec: i64 = whole.parse().ok()?;
    let digits: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let nanos: i64 = digits.parse().ok().filter(|nanos| *nanos >= 0)?;
    match whole.starts_with('-') && nanos > 0 {
        true => Some(Timespec {
            tv_sec: tv_sec.checked_sub(1)?,
            tv_nsec: 1_000_000_000 - nanos,
        }),
        false => Some(Timespec {
            tv_sec,
            tv_nsec: nanos,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_pax_records_have_fractions_and_may_lie_before_1970() {
        let time = |text| seconds(text).map(|time| (time.tv_sec, time.tv_nsec));
        assert_eq!(time("1700000000"), Some((1_700_000_000, 0)));
        assert_eq!(time("1700000000.5"), Some((1_700_000_000, 500_000_000)));
        assert_eq!(time("-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time("1.0000000019"), Some((1, 1)));
        for wrong in ["", "x", "1.-5", "1.2.3", "99999999999999999999"] {
            assert_eq!(time(wrong), None, "{wrong:?}");
        }
    }
}
