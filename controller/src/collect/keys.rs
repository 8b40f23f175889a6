//! The keys of encrypted collections whose run has failed and comes again in this process, so that what it has stored
//! can be read by the next one. In memory only, and wiped when the collection is over, or nobody has come for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use impound_evidence::age::Identity;
use tokio::task::AbortHandle;

use crate::locked::locked;
use crate::store::CollectionId;

/// How long a key waits: a collection that somebody else holds in the store is tried for ten minutes.
const PATIENCE: Duration = Duration::from_secs(900);

/// Keys that wait, by their collection.
#[derive(Clone, Default)]
pub(super) struct Keys(Arc<Mutex<HashMap<CollectionId, Waiting>>>);

struct Waiting {
    key: Identity,
    /// Wipes it.
    end: AbortHandle,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.end.abort();
    }
}

impl Keys {
    /// For the collection's next run, if that comes soon.
    pub(super) fn keep(&self, at: CollectionId, key: Identity) {
        let (keys, of) = (self.clone(), at.clone());
        let end = tokio::spawn(async move {
            tokio::time::sleep(PATIENCE).await;
            keys.forget(&of);
        });
        let end = end.abort_handle();
        locked(&self.0).insert(at, Waiting { key, end });
    }

    /// The key of the collection's last run, which is nowhere else then.
    pub(super) fn take(&self, at: &CollectionId) -> Option<Identity> {
        let waiting = locked(&self.0).remove(at);
        waiting.map(|waiting| waiting.key.clone())
    }

    /// Wipes it.
    pub(super) fn forget(&self, at: &CollectionId) {
        drop(self.take(at));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> CollectionId {
        CollectionId {
            case: "INC-1".parse().unwrap(),
            name: name.parse().unwrap(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_given_once_to_its_own_collection_and_wiped_if_nobody_comes() {
        let keys = Keys::default();
        let key = Identity::generate().unwrap();
        keys.keep(id("a"), key.clone());
        keys.keep(id("b"), Identity::generate().unwrap());
        assert!(keys.take(&id("c")).is_none());
        let given = keys.take(&id("a")).unwrap();
        assert_eq!(given.recipient(), key.recipient());
        assert!(keys.take(&id("a")).is_none());
        keys.forget(&id("b"));
        assert!(keys.take(&id("b")).is_none());

        keys.keep(id("a"), key.clone());
        tokio::time::sleep(PATIENCE / 2).await;
        // The one that is kept later waits from then on.
        keys.keep(id("a"), key);
        tokio::time::sleep(PATIENCE * 3 / 4).await;
        assert_eq!(locked(&keys.0).len(), 1);
        tokio::time::sleep(PATIENCE / 2).await;
        assert!(locked(&keys.0).is_empty());
    }
}
