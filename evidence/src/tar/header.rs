//! One tar header block.

use super::anomaly::{Anomalies, Anomaly};
use super::member::{FileType, TarTime};
use super::sparse::Map;

/// Length of a block in bytes; everything in a tar starts at a multiple of it.
pub(super) const BLOCK: u64 = 512;

/// A block that is being filled as bytes pass.
#[derive(Default)]
pub(super) struct Block(Vec<u8>);

impl Block {
    /// Takes what is missing from `bytes`; the rest of them.
    pub(super) fn fill<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let (taken, rest) = super::walk::split(bytes, BLOCK - self.0.len() as u64);
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
    /// An extension of the member that follows, and its size in bytes.
    Extension(Extension, u64),
    /// "X": Solaris's extended header.
    Solaris,
    Member(Box<Fields>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Extension {
    /// "x": records for the next member.
    Pax,
    /// "g": records for all members that follow.
    GlobalPax,
    /// GNU "L": the next member's name.
    LongName,
    /// GNU "K": the next member's link target.
    LongLink,
}

/// What a member's header says, before its extensions.
pub(super) struct Fields {
    pub(super) kind: FileType,
    pub(super) typeflag: u8,
    /// Bytes of contents after the header, below 2^63.
    pub(super) size: u64,
    /// With ustar's prefix.
    pub(super) path: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) mode: Option<u32>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<TarTime>,
    pub(super) user: Vec<u8>,
    pub(super) group: Vec<u8>,
    pub(super) device: Option<(u64, u64)>,
    /// Of a GNU sparse file ("S").
    pub(super) sparse: Option<OldSparse>,
    pub(super) anomalies: Anomalies,
}

/// What the header of a GNU sparse file says more.
pub(super) struct OldSparse {
    /// The map goes on in the next block.
    pub(super) continues: bool,
    /// The file's size with its holes.
    pub(super) real_size: Option<u64>,
    /// The map's first entries.
    pub(super) map: Map,
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
        let posix = magic == b"ustar\x0000";
        let gnu = magic == b"ustar  \0";
        // Before ustar there was no magic; nothing but zeros stands there then.
        if !posix && !gnu && magic.iter().any(|byte| *byte != 0) {
            return Err(format!(
                "expected the magic \"ustar\", got \"{}\"",
                magic.escape_ascii()
            ));
        }
        let size = number(field(124, 136)).ok_or_else(|| {
            format!(
                "expected a size, got \"{}\"",
                field(124, 136).escape_ascii()
            )
        })?;
        let typeflag = field(156, 157).first().copied().unwrap_or_default();
        match typeflag {
            b'X' => return Ok(Self::Solaris),
            b'x' => return Ok(Self::Extension(Extension::Pax, size)),
            b'g' => return Ok(Self::Extension(Extension::GlobalPax, size)),
            b'L' => return Ok(Self::Extension(Extension::LongName, size)),
            b'K' => return Ok(Self::Extension(Extension::LongLink, size)),
            _ => {}
        }
        let mut anomalies = Anomalies::default();
        let kind = FileType::of(typeflag);
        anomalies.add_if(kind == FileType::Unknown, Anomaly::UnknownType);
        let numbers = [(100, 108), (108, 116), (116, 124), (124, 136), (136, 148)];
        for (from, to) in numbers {
            let marked = field(from, to).first().is_some_and(|first| *first >= 0x80);
            anomalies.add_if(marked, Anomaly::Base256);
        }
        let mut checked = |value: Option<u64>| {
            anomalies.add_if(value.is_none(), Anomaly::BadNumber);
            value
        };
        let mode = checked(number(field(100, 108)));
        let (uid, gid) = (
            checked(number(field(108, 116))),
            checked(number(field(116, 124))),
        );
        let is_device = matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
        let device = match is_device {
            true => checked(number(field(329, 337))).zip(checked(number(field(337, 345)))),
            false => None,
        };
        let mtime = signed(field(136, 148));
        anomalies.add_if(mtime.is_none(), Anomaly::BadNumber);
        let prefix = match posix {
            true => text(field(345, 500)),
            false => &[],
        };
        let path = match prefix {
            [] => text(field(0, 100)).to_vec(),
            prefix => [prefix, b"/", text(field(0, 100))].concat(),
        };
        let named = posix || gnu;
        let owner = |from, to| match named {
            true => text(field(from, to)).to_vec(),
            false => Vec::new(),
        };
        Ok(Self::Member(Box::new(Fields {
            kind,
            typeflag,
            size,
            path,
            link: text(field(157, 257)).to_vec(),
            mode: mode.map(|mode| (mode & 0o7777) as u32),
            uid,
            gid,
            mtime: mtime.map(|seconds| TarTime { seconds, nanos: 0 }),
            user: owner(265, 297),
            group: owner(297, 329),
            device,
            sparse: (typeflag == b'S').then(|| {
                let mut map = Map::default();
                map.entries(field(386, 482));
                OldSparse {
                    continues: field(482, 483) != [0],
                    real_size: number(field(483, 495)),
                    map,
                }
            }),
            anomalies,
        })))
    }
}

/// Whether a block of a GNU sparse map says that another one follows.
pub(super) fn sparse_continues(block: &[u8]) -> bool {
    block.get(504) != Some(&0)
}

/// Offset and length of one entry of a GNU sparse map. `None` if they are none, and none within if the
/// entry is empty.
pub(super) fn sparse_entry(entry: &[u8]) -> Option<Option<(u64, u64)>> {
    let (offset, length) = entry.split_at_checked(12)?;
    match (offset.first()?, length.first()?) {
        (0, 0) => Some(None),
        _ => Some(Some((number(offset)?, number(length)?))),
    }
}

/// A text field up to its NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
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
    u64::try_from(signed(field)?).ok()
}

/// As `number`, and base-256 may be negative.
fn signed(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    // Base-256: the bits after the mark, most significant byte first, in two's complement.
    if matches!(*first, 0x80 | 0xff) {
        let start = if *first == 0xff { -1 } else { 0 };
        return rest.iter().try_fold(start, |value: i64, byte| {
            value.checked_mul(256)?.checked_add(i64::from(*byte))
        });
    }
    let blanks = field.iter().take_while(|byte| **byte == b' ').count();
    let (_, field) = field.split_at_checked(blanks)?;
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
            .fold(0, |value, digit| value * 8 + i64::from(digit - b'0')),
    )
}
