//! When something may be done again, by the uid of the quarantine and what it is: looks at what is in force,
//! and what failed again and again. A restart forgets it, and everything is due at once.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use crate::locked::locked;

/// What this process has put off.
#[derive(Debug, Default)]
pub struct Pace(Mutex<HashMap<String, HashMap<String, Due>>>);

#[derive(Debug)]
struct Due {
    at: Instant,
    failures: u32,
}

impl Pace {
    /// How long to leave it alone yet; `None` if it is due.
    #[must_use]
    pub fn left(&self, quarantine: &str, what: &str) -> Option<Duration> {
        let all = locked(&self.0);
        let due = all.get(quarantine)?.get(what)?;
        let left = due.at.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    /// It is not due before that long.
    pub fn put_off(&self, quarantine: &str, what: &str, pause: Duration) {
        let at = Instant::now() + pause;
        let due = Due { at, failures: 0 };
        let mut all = locked(&self.0);
        let of_quarantine = all.entry(quarantine.to_owned()).or_default();
        of_quarantine.insert(what.to_owned(), due);
    }

    /// It failed: it is put off by `first`, doubled with each failure in a row up to `slowest`. Returns the
    /// pause.
    pub fn failed(
        &self,
        quarantine: &str,
        what: &str,
        first: Duration,
        slowest: Duration,
    ) -> Duration {
        let mut all = locked(&self.0);
        let of_quarantine = all.entry(quarantine.to_owned()).or_default();
        let failures = of_quarantine.get(what).map_or(0, |due| due.failures);
        let pause = first.saturating_mul(1 << failures.min(16)).min(slowest);
        let due = Due {
            at: Instant::now() + pause,
            failures: failures.saturating_add(1),
        };
        of_quarantine.insert(what.to_owned(), due);
        pause
    }

    /// It succeeded.
    pub fn clear(&self, quarantine: &str, what: &str) {
        if let Some(of_quarantine) = locked(&self.0).get_mut(quarantine) {
            of_quarantine.remove(what);
        }
    }

    /// The quarantine with this uid is over.
    pub fn forget(&self, quarantine: &str) {
        locked(&self.0).remove(quarantine);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn what_fails_again_and_again_is_done_more_and_more_slowly_until_it_succeeds() {
        let pace = Pace::default();
        assert_eq!(pace.left("q", "it"), None);
        for expected in [1, 2, 4, 5, 5] {
            let pause = pace.failed("q", "it", SECOND, 5 * SECOND);
            assert_eq!(pause, expected * SECOND);
            let left = pace.left("q", "it").unwrap();
            assert!(left <= pause && left + SECOND > pause, "{left:?}");
            assert_eq!(pace.left("q", "other"), None);
            assert_eq!(pace.left("other", "it"), None);
        }
        pace.clear("q", "it");
        assert_eq!(pace.left("q", "it"), None);
        assert_eq!(pace.failed("q", "it", SECOND, 5 * SECOND), SECOND);
        pace.put_off("q", "it", Duration::ZERO);
        assert_eq!(pace.left("q", "it"), None);
        pace.put_off("q", "it", SECOND);
        pace.forget("q");
        assert_eq!(pace.left("q", "it"), None);
    }
}
