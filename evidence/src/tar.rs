//! Tars as their bytes stream by: whether they have really ended, and which members they have.
//!
//! A container runtime may end an export cleanly, with a good status, in the middle of a file. The
//! one proof that everything came is the tar's own end: two zero blocks where a member would
//! begin. The agent walks what it reads, the controller what it receives, and [`crate::verify()`]
//! what is stored; the controller also lists what it sees, see [`crate::index`], and `impound evidence
//! extract` makes files of it, see [`Visitor`]. All of it is this one parser.
//!
//! Memory: one header, a PAX header or long name of at most 1 MiB, and the map of one sparse file, at
//! most 2 MiB. Contents are never kept.
//!
//! The walk is strict where readers of tars disagree about where the next member starts (a size
//! given twice, a directory with contents): such a tar is reported incomplete, never guessed at.
//! Where readers only disagree about what a member is called, it is an [`Anomaly`] of that member.

mod anomaly;
mod header;
mod member;
mod pax;
mod sparse;
mod walk;

use serde::{Deserialize, Serialize};

pub use anomaly::{Anomalies, Anomaly};
pub use member::{FileType, Member, PATH_LIMIT, TarTime};
pub use sparse::{Expansion, Map, Part, Sparse, Unexpanded};
pub use walk::{Visitor, Walk};

/// What an artifact's own format says about its end.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case", deny_unknown_fields)]
pub enum Completeness {
    /// The format says that it ended, e.g. a tar with its two zero blocks.
    Complete,
    /// It ended early or can't be followed. The bytes are evidence and are kept, but marked.
    Incomplete {
        /// Why, one sentence each, never empty.
        #[cfg_attr(test, schemars(length(min = 1)))]
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

/// A walk over a tar as its bytes pass, for its end only. Understands ustar, GNU (base-256 sizes,
/// long names, sparse files) and PAX.
#[derive(Default)]
pub struct TarEnd(Box<Walk>);

impl TarEnd {
    /// A walk at the first byte.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes, any number of them.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes, &mut ());
    }

    /// The verdict once every byte was given.
    #[must_use]
    pub fn finish(self) -> Completeness {
        self.0.finish()
    }
}

#[cfg(test)]
pub(crate) mod tests;
