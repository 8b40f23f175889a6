//! Sparse files: where the bytes that a tar has of them belong, so that a listing can hash the file that
//! an extraction makes, and `impound` can make it. GNU's four forms: the old one in the header, and 0.0, 0.1 and
//! 1.0 in PAX records
//! ([the forms](https://www.gnu.org/software/tar/manual/html_section/Sparse-Formats.html)).
//!
//! Only a map that readers agree about is followed: islands in order, apart, of whole blocks but for the
//! last, ending where the file does, with exactly the bytes that are there. Memory: at most
//! [`ISLANDS`] times 16 bytes for the one member that is open.

use super::header::{BLOCK, sparse_entry};
use super::member::Member;

/// Most islands that are followed, 2 MiB of them: twice what our agent writes of one file.
pub(super) const ISLANDS: usize = 1 << 17;

/// Bytes of one entry of the old form's map, and entries in a block that continues it.
pub(super) const ENTRY: usize = 24;
const CONTINUED: usize = 21;

/// How a sparse member says where its bytes belong.
#[derive(Clone, Debug)]
pub enum Sparse {
    /// In its header, which more blocks may continue: what the header has.
    Header(Map),
    /// In records.
    Records(Map),
    /// Before its bytes.
    Contents,
    /// In no way that readers agree about.
    Unclear,
}

/// Islands of data: offset and length, in the order of the bytes.
#[derive(Clone, Debug, Default)]
pub struct Map {
    islands: Vec<(u64, u64)>,
    /// What can't be followed, or is too long.
    wrong: bool,
    /// The old form's empty entry came, which ends it.
    ended: bool,
}

impl Map {
    /// Adds an island.
    pub(super) fn push(&mut self, offset: u64, length: u64) {
        match self.islands.len() < ISLANDS {
            true => self.islands.push((offset, length)),
            false => self.wrong = true,
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.islands.len() as u64
    }

    pub(super) fn spoil(&mut self) {
        self.wrong = true;
    }

    /// Adds entries of the old form.
    pub(super) fn entries(&mut self, entries: &[u8]) {
        for entry in entries.chunks_exact(ENTRY) {
            match sparse_entry(entry) {
                Some(None) => self.ended = true,
                // Behind the end GNU tar reads none, and Go does.
                Some(Some((offset, length))) if !self.ended => self.push(offset, length),
                _ => self.wrong = true,
            }
        }
    }

    /// Bytes of holes in a file of `size` bytes of which `data` are in the tar.
    fn holes(&self, size: u64, data: u64) -> Result<u64, Unexpanded> {
        if self.wrong {
            return Err(Unexpanded::Map);
        }
        let (mut end, mut found, mut short) = (0, 0_u64, false);
        for (offset, length) in &self.islands {
            let apart = *offset >= end;
            // GNU tar pads each island to a block, others only the last.
            let misplaced = *length > 0 && (short || !offset.is_multiple_of(BLOCK));
            end = offset.checked_add(*length).ok_or(Unexpanded::Map)?;
            found = found.saturating_add(*length);
            if !apart || misplaced {
                return Err(Unexpanded::Map);
            }
            short |= !length.is_multiple_of(BLOCK);
        }
        match found == data && end == size {
            true => Ok(size - data),
            false => Err(Unexpanded::Map),
        }
    }
}

/// What comes next of a sparse file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// Bytes that the tar has.
    Data(&'a [u8]),
    /// As many zeros, which it has not.
    Hole(u64),
}

/// Why a sparse file is not put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unexpanded {
    /// Its map can't be followed, or readers disagree about it.
    Map,
    /// Its holes are more than are left of the limit.
    Holes,
}

/// Puts one sparse file together as its bytes pass.
pub struct Expansion {
    phase: Result<Phase, Unexpanded>,
    size: u64,
    stored: u64,
    /// Most bytes of holes.
    most: u64,
}

enum Phase {
    /// The map may go on.
    Map(Map),
    /// Inside the map that stands before the bytes.
    Text(Text),
    Data {
        islands: std::vec::IntoIter<(u64, u64)>,
        /// What is still to come of the island that is being filled.
        left: u64,
        /// Bytes of the file so far.
        at: u64,
        holes: u64,
    },
}

impl Expansion {
    /// At a sparse member's first byte; `most` bytes of holes are written at most. The member's map is
    /// taken out of it.
    #[must_use]
    pub fn of(member: &mut Member, most: u64) -> Option<Self> {
        let phase = match member.sparse.as_mut()? {
            Sparse::Header(map) | Sparse::Records(map) => Ok(Phase::Map(std::mem::take(map))),
            Sparse::Contents => Ok(Phase::Text(Text::default())),
            Sparse::Unclear => Err(Unexpanded::Map),
        };
        Some(Self {
            phase,
            size: member.size,
            stored: member.stored,
            most,
        })
    }

    /// Takes a block that continues the header's map.
    pub fn map(&mut self, block: &[u8]) {
        if let Ok(Phase::Map(map)) = &mut self.phase {
            map.entries(block.get(..CONTINUED * ENTRY).unwrap_or_default());
        }
    }

    /// Takes the next of the contents; `to` gets the file's, in order.
    pub fn update(&mut self, mut bytes: &[u8], mut to: impl FnMut(Part<'_>)) {
        self.settle();
        if let Ok(Phase::Text(text)) = &mut self.phase {
            bytes = text.take(bytes);
            self.settle();
        }
        let Ok(Phase::Data {
            islands, left, at, ..
        }) = &mut self.phase
        else {
            return;
        };
        while !bytes.is_empty() {
            if *left == 0 {
                // As many bytes come as the islands have.
                let Some((offset, length)) = islands.next() else {
                    return;
                };
                if offset > *at {
                    to(Part::Hole(offset - *at));
                }
                (*at, *left) = (offset, length);
            }
            let (island, rest) = super::walk::split(bytes, *left);
            to(Part::Data(island));
            *at += island.len() as u64;
            *left -= island.len() as u64;
            bytes = rest;
        }
    }

    /// The rest of the file; how many bytes of holes it has. All contents came.
    ///
    /// # Errors
    /// If it is not put together; then `to` never got anything of it.
    pub fn finish(mut self, mut to: impl FnMut(Part<'_>)) -> Result<u64, Unexpanded> {
        self.settle();
        match self.phase? {
            Phase::Data { at, holes, .. } => {
                if self.size > at {
                    to(Part::Hole(self.size - at));
                }
                Ok(holes)
            }
            _ => Err(Unexpanded::Map),
        }
    }

    /// Once the map is whole: whether and how the file is put together.
    fn settle(&mut self) {
        let (map, before) = match &mut self.phase {
            Ok(Phase::Map(map)) => (map, 0),
            Ok(Phase::Text(text)) if text.is_over() => (&mut text.map, text.came),
            _ => return,
        };
        let holes = match self.stored.checked_sub(before) {
            Some(data) => map.holes(self.size, data),
            None => Err(Unexpanded::Map),
        };
        self.phase = holes.and_then(|holes| match holes <= self.most {
            true => Ok(Phase::Data {
                islands: std::mem::take(&mut map.islands).into_iter(),
                left: 0,
                at: 0,
                holes,
            }),
            false => Err(Unexpanded::Holes),
        });
    }
}

/// The map of form 1.0: lines of digits, first how many islands, then offset and length of each, up to
/// the end of a block.
#[derive(Default)]
struct Text {
    came: u64,
    /// Digits of the line that is being read.
    number: Option<u64>,
    /// Numbers that are still to come; none before the first.
    expected: Option<u64>,
    offset: Option<u64>,
    map: Map,
}

impl Text {
    fn has_all(&self) -> bool {
        self.expected == Some(0) || self.map.wrong
    }

    fn is_over(&self) -> bool {
        self.has_all() && (self.came.is_multiple_of(BLOCK) || self.map.wrong)
    }

    /// Takes what belongs to the map and its padding; what follows.
    fn take<'a>(&mut self, mut bytes: &'a [u8]) -> &'a [u8] {
        while let Some((byte, rest)) = bytes.split_first()
            && !self.is_over()
        {
            if !self.has_all() {
                self.byte(*byte);
            }
            self.came += 1;
            bytes = rest;
        }
        bytes
    }

    fn byte(&mut self, byte: u8) {
        match (byte, self.number) {
            (b'0'..=b'9', number) => {
                let digit = u64::from(byte - b'0');
                let number = number.unwrap_or(0).checked_mul(10);
                self.number = number.and_then(|number| number.checked_add(digit));
                self.map.wrong |= self.number.is_none();
            }
            (b'\n', Some(number)) => {
                self.number = None;
                self.line(number);
            }
            _ => self.map.spoil(),
        }
    }

    fn line(&mut self, number: u64) {
        let Some(expected) = self.expected else {
            self.expected = number.checked_mul(2);
            self.map.wrong |= number > ISLANDS as u64;
            return;
        };
        self.expected = expected.checked_sub(1);
        match self.offset.take() {
            None => self.offset = Some(number),
            Some(offset) => self.map.push(offset, number),
        }
    }
}
