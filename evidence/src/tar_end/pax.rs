//! The records of one PAX header: only a member's size matters here.

/// The `size` record among `<length> <key>=<value>\n` records, if there is one. The error says
/// what is wrong with the records.
pub(super) fn size(mut text: &[u8]) -> Result<Option<u64>, String> {
    let mut size = None;
    while !text.is_empty() {
        let (record, rest) = record(text).ok_or_else(|| {
            format!(
                "expected \"<length> <key>=<value>\" and a newline, got \"{}\"",
                shown(text)
            )
        })?;
        if let Some(value) = record.strip_prefix(b"size=") {
            let value = decimal(value)
                .ok_or_else(|| format!("expected a size below 2^63, got \"{}\"", shown(value)))?;
            if size.replace(value).is_some() {
                return Err("it gives the size twice".to_owned());
            }
        }
        text = rest;
    }
    Ok(size)
}

/// The first record without its length and newline, and what follows it.
fn record(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = text.iter().position(|byte| *byte == b' ')?;
    let length = decimal(text.get(..space)?)?;
    let (record, rest) = text.split_at_checked(usize::try_from(length).ok()?)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    record.contains(&b'=').then_some((record, rest))
}

/// Digits only, below 2^63.
fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 19 || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value: u64 = str::from_utf8(text).ok()?.parse().ok()?;
    i64::try_from(value).is_ok().then_some(value)
}

fn shown(text: &[u8]) -> String {
    text.get(..40).unwrap_or(text).escape_ascii().to_string()
}
