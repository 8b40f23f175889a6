//! Listings of evidence go into the custody log of their case, and never fill it.
//!
//! What somebody lists is written before it is answered. The same list of the same caller is then only counted, and
//! written once in ten minutes with how often it was repeated: whoever may look, and no more, could otherwise close
//! a log, which only grows, to every collection of its case.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use impound_evidence::{CaseId, CollectionName, Entry, Event, Timestamp};
use tokio::sync::Mutex;

use super::authorise::Requester;
use crate::describe::describe;
use crate::seal::{CustodyAppender, SealError};

/// Pause before the same list is written again.
const PAUSE: Duration = Duration::from_secs(600);
/// Most lists that are told apart; past that each is written.
const MOST: usize = 10_000;

/// What was listed lately.
pub struct Listings {
    custody: Arc<CustodyAppender>,
    pause: Duration,
    most: usize,
    recent: Mutex<HashMap<Listing, Repeated>>,
}

/// Who listed how much of what.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Listing {
    pub(super) case: CaseId,
    /// None for all of the case.
    pub(super) collection: Option<CollectionName>,
    pub(super) who: Requester,
    pub(super) files: usize,
}

/// What came since something was written.
#[derive(Default)]
struct Repeated {
    more: u64,
    last: Option<Timestamp>,
}

impl Listings {
    /// `custody` writes the logs.
    #[must_use]
    pub fn new(custody: Arc<CustodyAppender>) -> Arc<Self> {
        Self::with(custody, PAUSE, MOST)
    }

    fn with(custody: Arc<CustodyAppender>, pause: Duration, most: usize) -> Arc<Self> {
        Arc::new(Self {
            custody,
            pause,
            most,
            recent: Mutex::default(),
        })
    }

    /// Writes what was only counted so far: nothing more comes.
    pub async fn finish(&self) {
        let recent = std::mem::take(&mut *self.recent.lock().await);
        for (listing, repeated) in recent {
            self.write_repeated(&listing, repeated).await;
        }
    }

    /// Writes a list down, or counts it with its like.
    ///
    /// # Errors
    /// If it can't be written: it must not be answered then.
    pub(super) async fn note(self: &Arc<Self>, listing: Listing) -> Result<(), SealError> {
        // Those that come while the first is being written are written as well: counted is only what is behind one
        // that is in the log.
        if let Some(repeated) = self.recent.lock().await.get_mut(&listing) {
            repeated.more += 1;
            repeated.last = Some(Timestamp::now());
            return Ok(());
        }
        self.write(&listing, None).await?;
        let mut recent = self.recent.lock().await;
        if recent.len() < self.most && !recent.contains_key(&listing) {
            recent.insert(listing.clone(), Repeated::default());
            tokio::spawn(Arc::clone(self).repeat(listing));
        }
        Ok(())
    }

    /// Writes how often a list was repeated, as long as it is.
    async fn repeat(self: Arc<Self>, listing: Listing) {
        loop {
            tokio::time::sleep(self.pause).await;
            let mut recent = self.recent.lock().await;
            let repeated = match recent.get_mut(&listing) {
                Some(repeated) if repeated.more > 0 => std::mem::take(repeated),
                _ => {
                    recent.remove(&listing);
                    return;
                }
            };
            drop(recent);
            self.write_repeated(&listing, repeated).await;
        }
    }

    async fn write_repeated(&self, listing: &Listing, repeated: Repeated) {
        let Repeated { more, last } = repeated;
        let Some(last) = last.filter(|_| more > 0) else {
            return;
        };
        let why = format!("and {more} more of the same until {last}");
        if let Err(error) = self.write(listing, Some(why)).await {
            // They were answered behind one that is in the log; the process's log has each.
            tracing::error!(case = %listing.case, more, error = %describe(&error), "lists that were counted are not in the custody log");
        }
    }

    async fn write(&self, listing: &Listing, why: Option<String>) -> Result<(), SealError> {
        let what = format!("names, sizes and digests of {} files", listing.files);
        let mut entry = Entry::new(Event::Accessed, listing.who.id.as_str(), what);
        entry.certificate_sha256 = listing.who.certificate;
        entry.why = why;
        if let Some(name) = &listing.collection {
            entry = entry.of(name);
        }
        let written = self.custody.append_to_case(&listing.case, vec![entry]);
        written.await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use impound_evidence::SigningKey;

    use super::*;
    use crate::store::Store;
    use crate::store::directory::DirectoryStore;

    struct Scene {
        _dir: tempfile::TempDir,
        custody: Arc<CustodyAppender>,
        listings: Arc<Listings>,
    }

    impl Scene {
        fn new(pause: Duration, most: usize) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let store: Arc<dyn Store> = Arc::new(DirectoryStore::open(dir.path()).unwrap());
            let key = Arc::new(SigningKey::generate().unwrap());
            let custody = Arc::new(CustodyAppender::new(store, key, Vec::new()));
            Self {
                listings: Listings::with(custody.clone(), pause, most),
                custody,
                _dir: dir,
            }
        }

        async fn list(&self, who: &str, files: usize) {
            let listing = Listing {
                case: "INC-1".parse().unwrap(),
                collection: None,
                who: Requester {
                    id: who.to_owned(),
                    certificate: None,
                },
                files,
            };
            self.listings.note(listing).await.unwrap();
        }

        /// Who and why of every list in the log, without times.
        async fn log(&self) -> Vec<(String, String)> {
            let entries = self.custody.of_case(&"INC-1".parse().unwrap()).await;
            let of = |entry: Entry| {
                let why = entry.why.unwrap_or_default();
                let why = why.split(" until ").next().unwrap().to_owned();
                (entry.who, why)
            };
            entries.unwrap().into_iter().map(of).collect()
        }
    }

    fn line(who: &str, why: &str) -> (String, String) {
        (who.to_owned(), why.to_owned())
    }

    #[tokio::test]
    async fn a_list_is_written_before_it_is_answered_and_its_repetitions_are_counted() {
        let scene = Scene::new(PAUSE, 10);
        for _ in 0..200 {
            scene.list("eve", 3).await;
        }
        scene.list("eve", 4).await;
        scene.list("ada", 3).await;
        let at_once = [line("eve", ""), line("eve", ""), line("ada", "")];
        assert_eq!(scene.log().await, at_once);
        scene.listings.finish().await;
        let all = [&at_once[..], &[line("eve", "and 199 more of the same")]];
        assert_eq!(scene.log().await, all.concat());
    }

    #[tokio::test]
    async fn a_list_that_goes_on_is_written_once_in_a_pause_and_one_too_many_to_tell_apart_each_time()
     {
        let scene = Scene::new(Duration::from_millis(300), 1);
        scene.list("eve", 3).await;
        scene.list("eve", 3).await;
        scene.list("ada", 3).await;
        scene.list("ada", 3).await;
        let at_once = [line("eve", ""), line("ada", ""), line("ada", "")];
        assert_eq!(scene.log().await, at_once);
        let counted = [&at_once[..], &[line("eve", "and 1 more of the same")]].concat();
        while scene.log().await != counted {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // Nothing more came: it is forgotten, and the next one is written at once.
        while !scene.listings.recent.lock().await.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        scene.list("eve", 3).await;
        assert_eq!(scene.log().await.last(), Some(&line("eve", "")));
    }
}
