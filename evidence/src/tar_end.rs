//! Whether a tar that streams by has really ended: a bounded walk from header to header.
//!
//! A container runtime may end an export cleanly, with a good status, in the middle of a file. The
//! one proof that everything came is the tar's own end: two zero blocks where a member would
//! begin. The agent walks what it reads, the controller what it receives, and [`crate::verify()`]
//! what is stored.
//!
//! Memory: one header, and a PAX header of at most 1 MiB. Contents are stepped over, names are kept
//! only for the message.
//!
//! The walk is strict where readers of tars disagree about where the next member starts (a size
//! given twice, a directory with contents): such a tar is reported incomplete, never guessed at.

mod header;
mod pax;

use serde::{Deserialize, Serialize};

use header::{BLOCK, Block, Header, Kind};

/// What an artifact's own format says about its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case", deny_unknown_fields)]
pub enum Completeness {
    /// The format says that it ended, e.g. a tar with its two zero blocks.
    Complete,
    /// It ended early or can't be followed. The bytes are evidence and are kept, but marked.
    Incomplete {
        /// Why, one sentence each, never empty.
        reasons: Vec<String>,
    },
}

impl Completeness {
    /// Incomplete for one reason.
    #[must_use]
    pub fn incomplete(reason: impl Into<String>) -> Self {
        Self::Incomplete {
            reasons: vec![reason.into()],
        }
    }

    /// Whether it is complete.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        matches!(self, Self::Complete)
    }
}

/// A walk over a tar as its bytes pass. Understands ustar, GNU (base-256 sizes, long names, sparse
/// files) and PAX.
pub struct TarEnd {
    state: State,
    /// Bytes seen.
    position: u64,
    /// Members whose header was seen, extension headers not counted.
    members: u64,
    /// From extension headers, for the member that follows.
    pending: Pending,
}

/// A PAX header longer than this can't be followed: real ones have a few hundred bytes.
const PAX_LIMIT: u64 = 1 << 20;

#[derive(Default)]
struct Pending {
    extensions: bool,
    pax: bool,
    size: Option<u64>,
}

enum State {
    /// At a member boundary, with what came of the next block.
    Header(Block),
    /// One zero block came; the next block must be zero too.
    Zero(Block),
    /// Inside contents or their padding.
    Contents {
        name: String,
        size: u64,
        came: u64,
        padded: u64,
    },
    /// Inside a PAX header.
    Pax {
        size: u64,
        padded: u64,
        came: u64,
        text: Vec<u8>,
        global: bool,
    },
    /// Inside the continuation of a GNU sparse header; `size` bytes of contents follow it.
    Sparse {
        block: Block,
        name: String,
        size: u64,
    },
    /// Both zero blocks came.
    End,
    /// Not to be followed any further.
    Lost(String),
}

impl TarEnd {
    /// A walk at the first byte.
    #[must_use]
    pub fn new() -> Self {
        Self {
            state: State::Header(Block::default()),
            position: 0,
            members: 0,
            pending: Pending::default(),
        }
    }

    /// Takes the next bytes, any number of them.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (state, rest) = self.step(bytes);
            self.position += (bytes.len() - rest.len()) as u64;
            self.state = state;
            bytes = rest;
        }
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
            State::Contents {
                name, size, came, ..
            } if came < size => format!(
                "the tar breaks off at byte {position}, inside {name}: {came} of {size} bytes came"
            ),
            State::Contents { name, .. } => {
                format!("the tar breaks off at byte {position}, in the padding after {name}")
            }
            State::Pax { .. } => {
                format!("the tar breaks off at byte {position}, inside a PAX header {after}")
            }
            State::Sparse { name, .. } => {
                format!("the tar breaks off at byte {position}, inside the sparse map of {name}")
            }
        })
    }

    /// The state after the first of `bytes`, and the rest of them.
    fn step<'a>(&mut self, bytes: &'a [u8]) -> (State, &'a [u8]) {
        match std::mem::replace(&mut self.state, State::End) {
            State::Header(mut block) => {
                let rest = block.fill(bytes);
                let next = match block.full() {
                    None => State::Header(block),
                    Some(full) => self.member(
                        full,
                        self.position + (bytes.len() - rest.len()) as u64 - BLOCK,
                    ),
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
                        self.position + (bytes.len() - rest.len()) as u64 - BLOCK,
                    )),
                };
                (next, rest)
            }
            State::Contents {
                name,
                size,
                came,
                padded,
            } => {
                let (taken, rest) = split(bytes, padded - came);
                let came = came + taken.len() as u64;
                match came == padded {
                    true => (State::Header(Block::default()), rest),
                    false => (
                        State::Contents {
                            name,
                            size,
                            came,
                            padded,
                        },
                        rest,
                    ),
                }
            }
            State::Pax {
                size,
                padded,
                came,
                mut text,
                global,
            } => {
                let (taken, rest) = split(bytes, padded - came);
                let (wanted, _padding) = split(taken, size.saturating_sub(came));
                text.extend_from_slice(wanted);
                let came = came + taken.len() as u64;
                match came == padded {
                    true => (
                        self.pax(&text, global, self.position + taken.len() as u64),
                        rest,
                    ),
                    false => (
                        State::Pax {
                            size,
                            padded,
                            came,
                            text,
                            global,
                        },
                        rest,
                    ),
                }
            }
            State::Sparse {
                mut block,
                name,
                size,
            } => {
                let rest = block.fill(bytes);
                let next = match block.full() {
                    None => State::Sparse { block, name, size },
                    Some(full) if header::sparse_continues(full) => State::Sparse {
                        block: Block::default(),
                        name,
                        size,
                    },
                    Some(_) => contents(name, size),
                };
                (next, rest)
            }
            State::End => match bytes.iter().position(|byte| *byte != 0) {
                None => (State::End, &[]),
                Some(at) => (
                    State::Lost(format!(
                        "the tar ends and then more bytes come, the first at byte {}",
                        self.position + at as u64,
                    )),
                    &[],
                ),
            },
            State::Lost(reason) => (State::Lost(reason), &[]),
        }
    }

    /// What follows the header block that starts at byte `at`.
    fn member(&mut self, block: &[u8], at: u64) -> State {
        let header = match Header::read(block) {
            Ok(Header::Zero) if self.pending.extensions => {
                return State::Lost(format!(
                    "the tar ends at byte {at} after an extension header whose member is missing"
                ));
            }
            Ok(Header::Zero) => return State::Zero(Block::default()),
            Ok(Header::Member(member)) => member,
            Err(wrong) => return State::Lost(format!("no tar header at byte {at}: {wrong}")),
        };
        match header.kind {
            Kind::Pax | Kind::GlobalPax => {
                let global = header.kind == Kind::GlobalPax;
                if header.size > PAX_LIMIT {
                    return State::Lost(format!(
                        "the PAX header at byte {at} has {} bytes; up to {PAX_LIMIT} can be followed",
                        header.size
                    ));
                }
                if !global && self.pending.pax {
                    return State::Lost(format!("a second PAX header for one member at byte {at}"));
                }
                self.pending.extensions |= !global;
                self.pending.pax |= !global;
                match header.size {
                    0 => State::Header(Block::default()),
                    size => State::Pax {
                        size,
                        padded: padded(size),
                        came: 0,
                        text: Vec::new(),
                        global,
                    },
                }
            }
            Kind::LongName => {
                self.pending.extensions = true;
                contents("a long name".to_owned(), header.size)
            }
            Kind::HeaderOnly | Kind::Contents | Kind::Sparse => {
                self.members += 1;
                let size = std::mem::take(&mut self.pending)
                    .size
                    .unwrap_or(header.size);
                let name = format!("\"{}\" (member {})", header.name, self.members);
                match header.kind {
                    Kind::HeaderOnly if size > 0 => State::Lost(format!(
                        "{name} at byte {at} is a link, directory or device and yet has {size} bytes; readers disagree where the next member starts"
                    )),
                    Kind::Sparse if header.sparse_continues => State::Sparse {
                        block: Block::default(),
                        name,
                        size,
                    },
                    _ => contents(name, size),
                }
            }
        }
    }

    /// What follows the PAX header that ends before byte `end`.
    fn pax(&mut self, text: &[u8], global: bool, end: u64) -> State {
        match pax::size(text) {
            Err(wrong) => State::Lost(format!("the PAX header before byte {end}: {wrong}")),
            Ok(Some(_)) if global => State::Lost(format!(
                "the global PAX header before byte {end} sets a size; readers disagree for which members"
            )),
            Ok(size) => {
                if !global {
                    self.pending.size = size;
                }
                State::Header(Block::default())
            }
        }
    }
}

impl Default for TarEnd {
    fn default() -> Self {
        Self::new()
    }
}

fn contents(name: String, size: u64) -> State {
    match size {
        0 => State::Header(Block::default()),
        _ => State::Contents {
            name,
            size,
            came: 0,
            padded: padded(size),
        },
    }
}

/// `size` up to the next full block. Sizes are below 2^63, so this can't overflow.
fn padded(size: u64) -> u64 {
    size.div_ceil(BLOCK).saturating_mul(BLOCK)
}

fn split(bytes: &[u8], at: u64) -> (&[u8], &[u8]) {
    let at = usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
    bytes.split_at_checked(at).unwrap_or((bytes, &[]))
}

#[cfg(test)]
mod tests;
