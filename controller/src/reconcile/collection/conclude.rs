//! What follows from how the work on a collection ended: its last phase, or that it is tried again.

use std::time::Duration;

use impound_evidence::Outcome;

use crate::collect::{CollectError, SealedCollection};
use crate::describe::describe;
use crate::resources::{CollectionPhase, CollectionStatus, now};
use crate::seal::SealError;
use crate::store::StoreError;

/// Failed attempts before a collection that can't be written or sealed is given up.
const ATTEMPTS: u32 = 4;

/// The pause before the next one.
pub(super) const PAUSE: Duration = Duration::from_secs(5);

/// How long a collection that somebody else holds in the store is waited for before that counts as failed attempts. A
/// replica whose node has died holds its lock until the NFS server gives its client up: after 90 s by default
/// (nfsv4leasetime of Linux' nfsd), and after some minutes where an administrator wants it so.
const HELD: Duration = Duration::from_secs(600);

/// Records the end; returns a pause if the collection is to be tried again. `held` is how long it has met nothing but
/// somebody else's hold in the store.
pub(super) fn conclude(
    status: &mut CollectionStatus,
    outcome: Result<SealedCollection, CollectError>,
    held: Duration,
) -> Option<Duration> {
    match outcome {
        Ok(sealed) => {
            seal(status, sealed);
            None
        }
        Err(error) if is_held(&error) && held < HELD => {
            status.message = again(&error);
            Some(PAUSE)
        }
        Err(error) if error.is_transient() && status.attempts + 1 < ATTEMPTS => {
            status.attempts += 1;
            status.message = again(&error);
            Some(PAUSE)
        }
        Err(error) => {
            status.attempts += 1;
            let (attempts, why) = (status.attempts, describe(&error));
            fail(status, format!("given up after {attempts} attempts: {why}"));
            None
        }
    }
}

/// Whether somebody else writes there, so that nothing was tried.
pub(super) fn is_held(error: &CollectError) -> bool {
    match error {
        CollectError::Store { source, .. } => matches!(source, StoreError::Busy { .. }),
        CollectError::Seal { source, .. } => {
            matches!(**source, SealError::Store(StoreError::Busy { .. }))
        }
        _ => false,
    }
}

pub(super) fn fail(status: &mut CollectionStatus, reason: String) {
    status.phase = CollectionPhase::Failed;
    status.message = reason;
    status.finished = Some(now());
}

fn again(error: &CollectError) -> String {
    format!("tried again in {} s: {}", PAUSE.as_secs(), describe(error))
}

fn seal(status: &mut CollectionStatus, sealed: SealedCollection) {
    let complete = sealed.outcome == Outcome::Complete;
    status.phase = if complete {
        CollectionPhase::Sealed
    } else {
        CollectionPhase::Partial
    };
    status.missing = sealed.missing;
    status.message = if complete {
        "everything asked for is stored, re-read, complete and signed".into()
    } else {
        format!(
            "signed, but {} are missing or incomplete",
            status.missing.len()
        )
    };
    for warning in sealed.warnings {
        status.message.push_str("; ");
        status.message.push_str(&warning);
    }
    status.location = Some(sealed.location);
    status.storage = Some(sealed.storage);
    status.manifest_sha256 = Some(sealed.manifest_sha256.to_string());
    status.finished = Some(now());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(source: StoreError) -> Result<SealedCollection, CollectError> {
        let at = "INC-1/web".to_owned();
        Err(CollectError::Store { at, source })
    }

    fn held() -> Result<SealedCollection, CollectError> {
        let at = "INC-1/web".to_owned();
        failed(StoreError::Busy { at })
    }

    #[test]
    fn a_collection_that_a_dead_replica_still_holds_in_the_store_is_waited_for_for_minutes() {
        let mut status = CollectionStatus::default();
        for seconds in (0..HELD.as_secs()).step_by(5) {
            let pause = conclude(&mut status, held(), Duration::from_secs(seconds));
            assert_eq!(pause, Some(PAUSE), "{status:?}");
        }
        assert!(
            !status.phase.is_final() && status.attempts == 0,
            "{status:?}"
        );
        assert!(
            status.message.contains("another task or replica"),
            "{status:?}"
        );
    }

    #[test]
    fn one_that_is_held_for_ever_ends_and_says_why() {
        let mut status = CollectionStatus::default();
        let pauses = (0..ATTEMPTS).map(|_| conclude(&mut status, held(), HELD));
        let pauses = pauses.flatten().count();
        assert_eq!(u32::try_from(pauses).unwrap(), ATTEMPTS - 1);
        assert_eq!(status.phase, CollectionPhase::Failed);
        assert!(
            status.message.contains("another task or replica"),
            "{status:?}"
        );
    }

    #[test]
    fn another_failure_that_may_pass_is_tried_again_and_counted() {
        let mut status = CollectionStatus::default();
        let stalled = || {
            let at = "INC-1/web".to_owned();
            failed(StoreError::Stalled { at, seconds: 1 })
        };
        for attempt in 1..ATTEMPTS {
            assert_eq!(
                conclude(&mut status, stalled(), Duration::ZERO),
                Some(PAUSE)
            );
            assert_eq!(status.attempts, attempt);
        }
        assert_eq!(conclude(&mut status, stalled(), Duration::ZERO), None);
        assert_eq!(status.phase, CollectionPhase::Failed);
    }
}
