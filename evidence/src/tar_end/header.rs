//! One tar header block: just what is needed to find the next one.

/// Length of a block in bytes; everything in a tar starts at a multiple of it.
pub(super) const BLOCK: u64 = 512;

/// A block that is being filled as bytes pass.
#[derive(Default)]
pub(super) struct Block(Vec<u8>);

impl Block {
    /// Takes what is missing from `bytes`; the rest of them.
    pub(super) fn fill<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let (taken, rest) = super::split(bytes, BLOCK - self.0.len() as u64);
        self.0.extend_from_slice(taken);
        rest
    }

    /// The block, once all of it came.
    pub(super) fn full(&self) -> Option<&[u8]> {
        (self.0.len() as u64 == BLOCK).then_some(&self.0)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

pub(super) enum Header {
    /// A zero block: half of the end.
    Zero,
    Member(Member),
}

pub(super) struct Member {
    pub(super) kind: Kind,
    /// Bytes of contents after the header, below 2^63.
    pub(super) size: u64,
    /// The short name, escaped, for messages only.
    pub(super) name: String,
    /// A GNU sparse map goes on in the next block.
    pub(super) sparse_continues: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Regular files, and types nobody defined: POSIX says to treat them as files.
    Contents,
    /// Links, directories and devices: never followed by contents.
    HeaderOnly,
    /// GNU sparse file: the map may go on in further blocks.
    Sparse,
    /// "x": records for the next member.
    Pax,
    /// "g": records for all members that follow.
    GlobalPax,
    /// GNU "L" and "K": the next member's name or link target.
    LongName,
}

impl Header {
    /// Reads a full block. The error says what was expected and what came.
    pub(super) fn read(block: &[u8]) -> Result<Self, String> {
        if block.iter().all(|byte| *byte == 0) {
            return Ok(Self::Zero);
        }
        let field = |from: usize, to: usize| block.get(from..to).unwrap_or_default();
        checksum(block, field(148, 156))?;
        let magic = field(257, 265);
        let known = [&b"ustar\x0000"[..], b"ustar  \0"].contains(&magic);
        // Before ustar there was no magic; nothing but zeros stands there then.
        if !known && magic.iter().any(|byte| *byte != 0) {
            return Err(format!(
                "expected the magic \"ustar\", got \"{}\"",
                magic.escape_ascii()
            ));
        }
        let kind = match field(156, 157) {
            b"1" | b"2" | b"3" | b"4" | b"5" | b"6" => Kind::HeaderOnly,
            b"S" => Kind::Sparse,
            b"x" => Kind::Pax,
            b"g" => Kind::GlobalPax,
            b"L" | b"K" => Kind::LongName,
            _ => Kind::Contents,
        };
        let name = field(0, 100);
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(Self::Member(Member {
            kind,
            size: number(field(124, 136)).ok_or_else(|| {
                format!(
                    "expected a size, got \"{}\"",
                    field(124, 136).escape_ascii()
                )
            })?,
            name: name.escape_ascii().to_string(),
            sparse_continues: field(482, 483) != [0],
        }))
    }
}

/// Whether a block of a GNU sparse map says that another one follows.
pub(super) fn sparse_continues(block: &[u8]) -> bool {
    block.get(504) != Some(&0)
}

/// The sum of the header's bytes with the checksum field taken as spaces. Some old writers summed
/// signed bytes, and readers take either.
fn checksum(block: &[u8], field: &[u8]) -> Result<(), String> {
    let stated = number(field)
        .ok_or_else(|| format!("expected a checksum, got \"{}\"", field.escape_ascii()))?;
    let spaces = 8 * i64::from(b' ');
    let sum = |value: fn(u8) -> i64| -> i64 {
        let all: i64 = block.iter().map(|byte| value(*byte)).sum();
        all - field.iter().map(|byte| value(*byte)).sum::<i64>() + spaces
    };
    let unsigned = sum(i64::from);
    let signed = sum(|byte| i64::from(byte.cast_signed()));
    if [unsigned, signed].contains(&i64::try_from(stated).unwrap_or(-1)) {
        return Ok(());
    }
    Err(format!(
        "its checksum should be {unsigned}, and {stated} stands there"
    ))
}

/// A number field: octal digits between spaces and NULs, or GNU base-256. `None` if it is neither,
/// negative, or 2^63 and more.
fn number(field: &[u8]) -> Option<u64> {
    let (first, rest) = field.split_first()?;
    if *first == 0x80 {
        // Base-256: the bits after the mark, most significant byte first.
        let value = rest.iter().try_fold(0u64, |value, byte| {
            value.checked_mul(256)?.checked_add(u64::from(*byte))
        })?;
        return i64::try_from(value).is_ok().then_some(value);
    }
    let field = field.trim_ascii_start();
    let digits = field
        .iter()
        .take_while(|byte| (b'0'..=b'7').contains(byte))
        .count();
    let (digits, end) = field.split_at_checked(digits)?;
    if !end.iter().all(|byte| matches!(byte, 0 | b' ')) {
        return None;
    }
    // At most 12 digits fit the field: 36 bits.
    Some(
        digits
            .iter()
            .fold(0, |value, digit| value * 8 + u64::from(digit - b'0')),
    )
}
