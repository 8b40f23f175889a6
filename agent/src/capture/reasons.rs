//! What a capture could not read, for its trailer.

use std::sync::{Arc, Mutex, PoisonError};

/// Reasons that are told one by one; the others are counted.
const TOLD: usize = 15;

/// Longest path in a reason, bytes.
const PATH: usize = 200;

/// Why what was captured is not all that was there. Shared between the thread that reads and the stream
/// that ends with the verdict.
#[derive(Clone, Default)]
pub(crate) struct Reasons(Arc<Mutex<Noted>>);

#[derive(Default)]
struct Noted {
    told: Vec<String>,
    more: u64,
}

impl Reasons {
    /// Notes what happened at a path.
    pub(super) fn add(&self, path: &[u8], what: &str) {
        let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if noted.told.len() < TOLD {
            let shown = path.get(..PATH).unwrap_or(path).escape_ascii();
            noted.told.push(format!("\"{shown}\" {what}"));
        } else {
            noted.more += 1;
        }
    }

    /// One sentence each, at most 16.
    pub(crate) fn told(&self) -> Vec<String> {
        let noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = noted.told.clone();
        if noted.more > 0 {
            all.push(format!("and {} more", noted.more));
        }
        all
    }

    /// How many hold these reasons: the thread that reads is one until it ends.
    #[cfg(test)]
    pub(super) fn held_by(&self) -> usize {
        Arc::strong_count(&self.0)
    }
}
