//! Which tokens a certificate was issued for: a token that somebody has copied is of no use with another key.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How long a token is remembered: longer than projected tokens live (the kubelet asks for an hour at most
/// for ours, and replaces them at 80 % of that).
const REMEMBERED: Duration = Duration::from_secs(2 * 60 * 60);

/// Tokens remembered at a time; more than agents of the largest cluster (5,000 nodes) use in that time.
const LIMIT: usize = 50_000;

/// Token ids with the digest of the request that each was used for.
#[derive(Default)]
pub(super) struct UsedTokens {
    seen: HashMap<String, ([u8; 32], Instant)>,
}

impl UsedTokens {
    /// Whether a token may be used for this request: never used before, or for the very same (an answer
    /// that was lost is asked for again). A token without an id, of a Kubernetes before 1.30, can't be told
    /// from others and is refused by the caller's rules before.
    pub(super) fn admit(&mut self, credential: &str, request: [u8; 32]) -> bool {
        if let Some((before, _)) = self.seen.get(credential) {
            return *before == request;
        }
        if self.seen.len() >= LIMIT {
            self.seen
                .retain(|_, (_, since)| since.elapsed() < REMEMBERED);
        }
        // Full of fresh ones: rather refuse than forget.
        if self.seen.len() >= LIMIT {
            return false;
        }
        self.seen
            .insert(credential.to_owned(), (request, Instant::now()));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copied_token_is_of_no_use_with_another_key_and_a_lost_answer_can_be_had_again() {
        let mut used = UsedTokens::default();
        assert!(used.admit("JTI=1", [1; 32]));
        assert!(used.admit("JTI=1", [1; 32]));
        assert!(!used.admit("JTI=1", [2; 32]));
        assert!(used.admit("JTI=2", [2; 32]));
    }
}
