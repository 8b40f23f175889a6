//! The walk itself: from header to header, telling a visitor what it sees.

use super::Completeness;
use super::anomaly::{Anomalies, Anomaly};
use super::header::{self, BLOCK, Block, Extension, Fields, Header};
use super::member::{Extensions, Member, PATH_LIMIT};
use super::pax::Pax;

/// A PAX header longer than this can't be followed: real ones have a few hundred bytes, and
/// extended attributes of one file at most 64 KiB on common file systems.
const PAX_LIMIT: u64 = 1 << 20;

/// Sees members in the order of the tar.
pub trait Visitor {
    /// A member begins.
    fn member(&mut self, member: Member);
    /// A block that continues the map of the sparse member that began.
    fn map(&mut self, _: &[u8]) {}
    /// The next of its contents.
    fn contents(&mut self, bytes: &[u8]);
    /// All its contents came. Not called for a member that breaks off.
    fn end(&mut self);
}

/// Sees nothing.
impl Visitor for () {
    fn member(&mut self, _: Member) {}
    fn contents(&mut self, _: &[u8]) {}
    fn end(&mut self) {}
}

/// A walk over a tar as its bytes pass: from header to header.
pub struct Walk {
    state: State,
    /// Bytes seen.
    position: u64,
    /// Members whose header was seen, extension headers not counted.
    members: u64,
    /// From extension headers, for the member that follows.
    pending: Extensions,
    /// From global PAX headers, for all members that follow.
    global: Pax,
    /// Whether there was one, whatever it says.
    has_global: bool,
    /// What is odd about the tar as a whole.
    anomalies: Anomalies,
}

enum State {
    /// At a member boundary, with what came of the next block.
    Header(Block),
    /// One zero block came; the next block must be zero too.
    Zero(Block),
    /// Inside a member's contents or their padding.
    Contents { name: String, span: Span },
    /// Inside an extension header.
    Extension {
        which: Extension,
        span: Span,
        text: Vec<u8>,
    },
    /// Inside the continuation of a GNU sparse header; `size` bytes of contents follow it.
    Sparse {
        block: Block,
        name: String,
        size: u64,
    },
    /// Both zero blocks came.
    End,
    /// Something came behind the end, the first byte that is not zero at `at`.
    Behind { at: u64, block: Block },
    /// Not to be followed any further.
    Lost(String),
}

/// Bytes of contents and their padding to full blocks.
struct Span {
    size: u64,
    padded: u64,
    came: u64,
}

impl Span {
    fn new(size: u64) -> Self {
        // Sizes are below 2^63, so this can't overflow.
        let padded = size.div_ceil(BLOCK).saturating_mul(BLOCK);
        Self {
            size,
            padded,
            came: 0,
        }
    }

    /// The contents among `bytes`, how many bytes belong to the span, and the rest.
    fn take<'a>(&mut self, bytes: &'a [u8]) -> (&'a [u8], usize, &'a [u8]) {
        let (taken, rest) = split(bytes, self.padded - self.came);
        let (contents, _padding) = split(taken, self.size.saturating_sub(self.came));
        self.came += taken.len() as u64;
        (contents, taken.len(), rest)
    }

    fn is_over(&self) -> bool {
        self.came == self.padded
    }

    /// Whether `bytes` more bring the last of the contents.
    fn has_all(&self) -> bool {
        self.came >= self.size
    }
}

impl Default for Walk {
    fn default() -> Self {
        Self {
            state: State::Header(Block::default()),
            position: 0,
            members: 0,
            pending: Extensions::default(),
            global: Pax::default(),
            has_global: false,
            anomalies: Anomalies::default(),
        }
    }
}

impl Walk {
    /// Takes the next bytes, any number of them.
    pub fn update(&mut self, mut bytes: &[u8], visitor: &mut impl Visitor) {
        while !bytes.is_empty() {
            let (state, rest) = self.step(bytes, visitor);
            self.position += (bytes.len() - rest.len()) as u64;
            self.state = state;
            bytes = rest;
        }
    }

    /// Members so far.
    pub(crate) fn members(&self) -> u64 {
        self.members
    }

    /// Bytes so far.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// What is odd about the tar as a whole.
    pub(crate) fn anomalies(&self) -> Anomalies {
        self.anomalies
    }

    /// The verdict once every byte was given.
    #[must_use]
    pub fn finish(self) -> Completeness {
        let position = self.position;
        let after = match self.members {
            0 => "before the first member".to_owned(),
            n => format!("after member {n}"),
        };
        Completeness::incomplete(match self.state {
            State::End => return Completeness::Complete,
            State::Lost(reason) => reason,
            State::Behind { at, .. } => behind(at),
            State::Header(_) if position == 0 => {
                "the tar is empty, not even its end is there".to_owned()
            }
            State::Header(block) if block.is_empty() => format!(
                "the tar breaks off at byte {position}, {after}, without the two zero blocks that end a tar"
            ),
            State::Header(_) => {
                format!("the tar breaks off at byte {position}, inside a header {after}")
            }
            State::Zero(_) => format!(
                "the tar breaks off at byte {position}: one zero block came where two end a tar"
            ),
            State::Contents { name, span } if !span.has_all() => format!(
                "the tar breaks off at byte {position}, inside {name}: {} of {} bytes came",
                span.came, span.size
            ),
            State::Contents { name, .. } => {
                format!("the tar breaks off at byte {position}, in the padding after {name}")
            }
            State::Extension {
                which: Extension::Pax | Extension::GlobalPax,
                ..
            } => format!("the tar breaks off at byte {position}, inside a PAX header {after}"),
            State::Extension { .. } => {
                format!("the tar breaks off at byte {position}, inside a long name {after}")
            }
            State::Sparse { name, .. } => {
                format!("the tar breaks off at byte {position}, inside the sparse map of {name}")
            }
        })
    }

    /// The state after the first of `bytes`, and the rest of them.
    fn step<'a>(&mut self, bytes: &'a [u8], visitor: &mut impl Visitor) -> (State, &'a [u8]) {
        match std::mem::replace(&mut self.state, State::End) {
            State::Header(mut block) => {
                let rest = block.fill(bytes);
                let at = self.block_at(bytes, rest);
                let next = match block.full() {
                    None => State::Header(block),
                    Some(full) => self.header(full, at, visitor),
                };
                (next, rest)
            }
            State::Zero(mut block) => {
                let rest = block.fill(bytes);
                let next = match block.full() {
                    None => State::Zero(block),
                    Some(full) if full.iter().all(|byte| *byte == 0) => State::End,
                    Some(_) => State::Lost(format!(
                        "one zero block before byte {}, where two end a tar, and then something else",
                        self.block_at(bytes, rest),
                    )),
                };
                (next, rest)
            }
            State::Contents { name, mut span } => {
                let had_all = span.has_all();
                let (contents, _, rest) = span.take(bytes);
                if !contents.is_empty() {
                    visitor.contents(contents);
                }
                if !had_all && span.has_all() {
                    visitor.end();
                }
                match span.is_over() {
                    true => (State::Header(Block::default()), rest),
                    false => (State::Contents { name, span }, rest),
                }
            }
            State::Extension {
                which,
                mut span,
                mut text,
            } => {
                let (contents, taken, rest) = span.take(bytes);
                // Of a name more than the limit is not kept; a PAX header is never longer than its.
                let room = (PAX_LIMIT as usize).saturating_sub(text.len());
                text.extend_from_slice(contents.get(..room).unwrap_or(contents));
                let next = match span.is_over() {
                    true => self.extension(which, text, self.position + taken as u64),
                    false => State::Extension { which, span, text },
                };
                (next, rest)
            }
            State::Sparse {
                mut block,
                name,
                size,
            } => {
                let rest = block.fill(bytes);
                let next = match block.full() {
                    None => State::Sparse { block, name, size },
                    Some(full) => {
                        visitor.map(full);
                        match header::sparse_continues(full) {
                            true => State::Sparse {
                                block: Block::default(),
                                name,
                                size,
                            },
                            false => contents(name, size, visitor),
                        }
                    }
                };
                (next, rest)
            }
            State::End => match bytes.iter().position(|byte| *byte != 0) {
                None => (State::End, &[]),
                Some(at) => {
                    self.anomalies.add(Anomaly::TrailingBytes);
                    let (_, rest) = split(bytes, at as u64);
                    let at = self.position + at as u64;
                    let block = Block::default();
                    // Only a whole block can be another tar's header.
                    match at.is_multiple_of(BLOCK) {
                        true => (State::Behind { at, block }, rest),
                        false => (State::Lost(behind(at)), &[]),
                    }
                }
            },
            State::Behind { at, mut block } => {
                let rest = block.fill(bytes);
                match block.full() {
                    None => (State::Behind { at, block }, rest),
                    Some(full) => {
                        let is_header = Header::read(full).is_ok();
                        self.anomalies.add_if(is_header, Anomaly::Concatenated);
                        (State::Lost(behind(at)), &[])
                    }
                }
            }
            State::Lost(reason) => (State::Lost(reason), &[]),
        }
    }

    /// Where the block began whose last byte is the last before `rest`.
    fn block_at(&self, bytes: &[u8], rest: &[u8]) -> u64 {
        (self.position + (bytes.len() - rest.len()) as u64).saturating_sub(BLOCK)
    }

    /// What follows the header block that starts at byte `at`.
    fn header(&mut self, block: &[u8], at: u64, visitor: &mut impl Visitor) -> State {
        match Header::read(block) {
            Ok(Header::Zero) if self.pending.any => State::Lost(format!(
                "the tar ends at byte {at} after an extension header whose member is missing"
            )),
            Ok(Header::Zero) => State::Zero(Block::default()),
            Ok(Header::Solaris) => State::Lost(format!(
                "a Solaris extended header at byte {at}; readers disagree whether it gives the next member's size"
            )),
            Ok(Header::Extension(which, size)) => self.begin_extension(which, size, at),
            Ok(Header::Member(fields)) => self.member(*fields, at, visitor),
            Err(wrong) => State::Lost(format!("no tar header at byte {at}: {wrong}")),
        }
    }

    fn begin_extension(&mut self, which: Extension, size: u64, at: u64) -> State {
        let is_pax = matches!(which, Extension::Pax | Extension::GlobalPax);
        if is_pax && size > PAX_LIMIT {
            return State::Lost(format!(
                "the PAX header at byte {at} has {size} bytes; up to {PAX_LIMIT} can be followed"
            ));
        }
        if which == Extension::Pax && self.pending.pax.is_some() {
            return State::Lost(format!("a second PAX header for one member at byte {at}"));
        }
        if which == Extension::GlobalPax && self.pending.any {
            return State::Lost(format!(
                "a global PAX header at byte {at} between a member and its extension header; readers disagree whether that still counts"
            ));
        }
        match which {
            Extension::GlobalPax => self.has_global = true,
            _ => self.pending.any = true,
        }
        match size {
            0 => self.extension(which, Vec::new(), at + BLOCK),
            size => State::Extension {
                which,
                span: Span::new(size),
                text: Vec::new(),
            },
        }
    }

    /// What follows the extension header that ends before byte `end`.
    fn extension(&mut self, which: Extension, text: Vec<u8>, end: u64) -> State {
        let pax = match which {
            Extension::Pax => Pax::read(&text)
                .map(|pax| self.pending.pax = Some(pax))
                .map_err(|wrong| format!("the PAX header before byte {end}: {wrong}")),
            Extension::GlobalPax => match Pax::read(&text) {
                Err(wrong) => Err(format!("the PAX header before byte {end}: {wrong}")),
                Ok(pax) if pax.size.is_some() => Err(format!(
                    "the global PAX header before byte {end} sets a size; readers disagree for which members"
                )),
                Ok(pax) => {
                    self.global = pax.inherited();
                    Ok(())
                }
            },
            Extension::LongName | Extension::LongLink => {
                let mut name = text;
                if let Some(end) = name.iter().position(|byte| *byte == 0) {
                    name.truncate(end);
                }
                let long = name.len() > PATH_LIMIT;
                self.pending.anomalies.add_if(long, Anomaly::PathTooLong);
                name.truncate(PATH_LIMIT);
                let place = match which {
                    Extension::LongLink => &mut self.pending.long_link,
                    _ => &mut self.pending.long_name,
                };
                let twice = place.replace(name).is_some();
                self.pending
                    .anomalies
                    .add_if(twice, Anomaly::DuplicateRecord);
                Ok(())
            }
        };
        match pax {
            Ok(()) => State::Header(Block::default()),
            Err(wrong) => State::Lost(wrong),
        }
    }

    fn member(&mut self, fields: Fields, at: u64, visitor: &mut impl Visitor) -> State {
        self.members += 1;
        let continues = fields
            .sparse
            .as_ref()
            .is_some_and(|sparse| sparse.continues);
        let extensions = std::mem::take(&mut self.pending);
        // Before ustar a directory was a file whose name ends with a slash, and readers look for one in the header's
        // name, in the extension's or in both. Nobody writes such headers with extensions, so that none is read for it.
        let may_be_directory = fields.typeflag == 0
            && (fields.path.ends_with(b"/") || extensions.any || self.has_global);
        let member = Member::new(fields, extensions, &self.global, self.members, at);
        let (name, size, kind) = (member.shown(), member.stored, member.kind);
        visitor.member(member);
        if may_be_directory && size > 0 {
            return State::Lost(format!(
                "{name} at byte {at} is of the old type that is a directory if its name, or the one that an extension gives it, ends with a slash, and has {size} bytes; readers disagree where the next member starts"
            ));
        }
        if !kind.has_contents() && size > 0 {
            return State::Lost(format!(
                "{name} at byte {at} is a link, directory or device and yet has {size} bytes; readers disagree where the next member starts"
            ));
        }
        match continues {
            true => State::Sparse {
                block: Block::default(),
                name,
                size,
            },
            false => contents(name, size, visitor),
        }
    }
}

fn contents(name: String, size: u64, visitor: &mut impl Visitor) -> State {
    match size {
        0 => {
            visitor.end();
            State::Header(Block::default())
        }
        _ => State::Contents {
            name,
            span: Span::new(size),
        },
    }
}

fn behind(at: u64) -> String {
    format!("the tar ends and then more bytes come, the first at byte {at}")
}

pub(super) fn split(bytes: &[u8], at: u64) -> (&[u8], &[u8]) {
    let at = usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
    bytes.split_at_checked(at).unwrap_or((bytes, &[]))
}
