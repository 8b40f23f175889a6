//! Lists tars that are stored: what was seen to the end while it arrived is only finished, what fell behind is given
//! the rest.

use std::sync::Arc;

use futures::TryStreamExt as _;
use impound_evidence::{ArtifactRecord, EvidencePath, without_suffixes};
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};

use super::{Deriving, What};
use crate::collect::CollectError;
use crate::collect::attempt::begun_of;
use crate::collect::failure::{Failure, cut};
use crate::collect::session::Session;
use crate::describe::describe;
use crate::store::StoreError;

/// A tar that is stored, and what is being made of it.
pub(in crate::collect) struct Unlisted {
    tar: EvidencePath,
    deriving: Deriving,
    /// Of one that waits for the rest of its tar.
    place: Option<OwnedSemaphorePermit>,
}

/// To where the tars of a collection go that are stored and not listed yet; nothing: no other comes.
pub(in crate::collect) struct Tars {
    /// Their listings are finished beside everything else.
    seen: mpsc::Sender<Option<Unlisted>>,
    /// Their listings lack a part of them.
    behind: mpsc::UnboundedSender<Option<Unlisted>>,
}

/// From where they come.
pub(in crate::collect) struct Stored {
    seen: mpsc::Receiver<Option<Unlisted>>,
    behind: mpsc::UnboundedReceiver<Option<Unlisted>>,
}

/// The two ends. Those that are behind are as many as the containers have file systems.
pub(in crate::collect) fn tars() -> (Tars, Stored) {
    let (to_seen, seen) = mpsc::channel(1);
    let (to_behind, behind) = mpsc::unbounded_channel();
    let tars = Tars {
        seen: to_seen,
        behind: to_behind,
    };
    (tars, Stored { seen, behind })
}

/// Counts live file systems on their way: what reads stored tars again stands aside for them.
#[derive(Default)]
pub(in crate::collect) struct Arrivals(watch::Sender<usize>);

impl Arrivals {
    /// One begins; it ends when that is dropped.
    pub(in crate::collect) fn begin(&self) -> Arrival<'_> {
        self.0.send_modify(|arriving| *arriving += 1);
        Arrival(self)
    }

    /// Waits until none is on its way.
    async fn none(&self) {
        // The sender lives as long as this borrow.
        let _ = self.0.subscribe().wait_for(|arriving| *arriving == 0).await;
    }
}

/// A live file system on its way.
pub(in crate::collect) struct Arrival<'a>(&'a Arrivals);

impl Drop for Arrival<'_> {
    fn drop(&mut self) {
        self.0.0.send_modify(|arriving| *arriving -= 1);
    }
}

impl Session<'_> {
    /// Has the listings of a tar that is stored finished while others arrive, or between them if it was too fast.
    pub(in crate::collect) async fn finish_listing_later(
        &self,
        tar: EvidencePath,
        deriving: Deriving,
    ) {
        let behind = deriving.is_behind();
        let mut unlisted = Unlisted {
            tar,
            deriving,
            place: None,
        };
        // If nobody takes it, the run has failed.
        if !behind {
            let _ = self.tars.seen.send(Some(unlisted)).await;
            return;
        }
        match Arc::clone(&self.collector.behind).try_acquire_owned() {
            Ok(place) => {
                unlisted.place = Some(place);
                let _ = self.tars.behind.send(Some(unlisted));
            }
            // Begun again at the end: it would hold its queues and tables for as long as others are on their way.
            Err(_) => self.drop_deriving(unlisted.deriving).await,
        }
    }

    /// Tells that no other tar comes.
    pub(in crate::collect) async fn no_more_tars(&self) {
        let _ = self.tars.behind.send(None);
        let _ = self.tars.seen.send(None).await;
    }

    /// Lists tars until no other comes. What fails is recorded and made again at the end.
    pub(in crate::collect) async fn list_tars(
        &self,
        tars: &mut Stored,
    ) -> Result<(), CollectError> {
        let Stored { seen, behind } = tars;
        futures::try_join!(self.finish_listings(seen), self.catch_up_all(behind)).map(drop)
    }

    async fn finish_listings(
        &self,
        seen: &mut mpsc::Receiver<Option<Unlisted>>,
    ) -> Result<(), CollectError> {
        while let Some(Some(Unlisted { tar, deriving, .. })) = seen.recv().await {
            let listed = self.finish_deriving(deriving, &tar).await;
            self.record_unlisted(&tar, listed).await?;
        }
        Ok(())
    }

    /// Finishes listings that the tar was too fast for, while no live file system is on its way.
    async fn catch_up_all(
        &self,
        behind: &mut mpsc::UnboundedReceiver<Option<Unlisted>>,
    ) -> Result<(), CollectError> {
        while let Some(Some(Unlisted {
            tar,
            deriving,
            place: _place,
        })) = behind.recv().await
        {
            let Some(record) = self.stored(&tar) else {
                continue;
            };
            let listed = self.list_rest(deriving, &record).await;
            self.record_unlisted(&tar, listed).await?;
        }
        Ok(())
    }

    /// Makes the listings that stored tars lack: a crash came between the two, the store had no room, or a
    /// thread failed. What can't be made is recorded as missing.
    pub(in crate::collect) async fn derive_missing(&self) -> Result<(), CollectError> {
        let stored = self.all_stored();
        let find = |path: &EvidencePath| stored.iter().find(|record| record.path == *path);
        for tar in &stored {
            // The attempt that broke off has a whole one beside it.
            if What::of(tar.method).is_empty() || impound_evidence::superseded(tar, find) {
                continue;
            }
            let name = tar.path.as_str();
            let intended = match tar.completeness.is_complete() {
                true => name,
                false => name.rsplit_once(".partial-").map_or(name, |(name, _)| name),
            };
            // Of a tar that was cut off while it was encrypted nobody here can read what there is.
            if without_suffixes(intended) != intended {
                continue;
            }
            let intended = self.path(intended, "the name of a tar")?;
            let unjoined = self.unjoined(&intended, tar.method)?;
            if let Some(changes) = unjoined.filter(|_| tar.completeness.is_complete()) {
                let why = "the diff that it is made of was encrypted by an earlier run, and only its recipients can read it";
                self.record_failed(&format!("listing {}", tar.path), why)
                    .await?;
                self.miss(&changes, false, why.to_owned());
            }
            let lacking = self.lacking(&stored, tar, &intended)?;
            let Some(first) = lacking.first() else {
                continue;
            };
            let listed = self.derive_again(tar, &intended, &lacking).await;
            if let Some(why) = self.record_unlisted(&tar.path, listed).await? {
                let why = format!("the tar is stored, and could not be listed: {why}");
                self.miss(&self.listing(&tar.path, *first)?, false, why);
            }
        }
        Ok(())
    }

    /// Records that a tar is not `listed`, and returns why; nothing if it is.
    pub(in crate::collect) async fn record_unlisted(
        &self,
        tar: &EvidencePath,
        listed: Result<(), Failure>,
    ) -> Result<Option<String>, CollectError> {
        let Err(failure) = listed else {
            return Ok(None);
        };
        let (why, _) = failure.reason()?;
        self.record_failed(&format!("listing {tar}"), &why).await?;
        Ok(Some(why))
    }

    /// The listings that are not there of a stored tar. Of a broken one those without a line were not kept.
    fn lacking(
        &self,
        stored: &[ArtifactRecord],
        tar: &ArtifactRecord,
        intended: &EvidencePath,
    ) -> Result<Vec<What>, CollectError> {
        let mut lacking = Vec::new();
        for what in self.listings(intended, tar.method)? {
            let path = self.listing(intended, what)?;
            let kept = format!("{path}.partial-");
            let is_there = |record: &ArtifactRecord| match tar.completeness.is_complete() {
                true => record.path == path,
                false => {
                    record.derived_from.contains(&tar.path)
                        && record.path.as_str().starts_with(&kept)
                }
            };
            if !stored.iter().any(is_there) {
                lacking.push(what);
            }
        }
        if !tar.completeness.is_complete() && !lacking.contains(&What::Index) {
            lacking.clear();
        }
        Ok(lacking)
    }

    async fn derive_again(
        &self,
        tar: &ArtifactRecord,
        intended: &EvidencePath,
        wanted: &[What],
    ) -> Result<(), Failure> {
        tracing::info!(case = %self.at.case, collection = %self.at.name, path = %tar.path, "a stored tar is read again for its listings");
        let begun = begun_of(tar);
        let Some((deriving, _)) = self.begin_deriving(intended, &begun, wanted, false).await?
        else {
            return Ok(());
        };
        self.list_rest(deriving, tar).await
    }

    /// Ends the listings of a stored tar that have not seen all of it.
    async fn list_rest(&self, deriving: Deriving, tar: &ArtifactRecord) -> Result<(), Failure> {
        match self.catch_up(&deriving, tar).await {
            Ok(()) if tar.completeness.is_complete() => {
                self.finish_deriving(deriving, &tar.path).await
            }
            Ok(()) => self.keep_deriving(deriving, &tar.path).await,
            Err(failure) => {
                self.drop_deriving(deriving).await;
                Err(failure)
            }
        }
    }

    /// Gives the listings of a stored tar the bytes that they have not seen.
    async fn catch_up(&self, deriving: &Deriving, tar: &ArtifactRecord) -> Result<(), Failure> {
        let mut behind = deriving.threads.behind();
        let Some(mut at) = behind.from() else {
            return Ok(());
        };
        let read = async {
            let mut chunks = self.read(tar, at).await?;
            while let Some(chunk) = chunks.try_next().await? {
                self.arrivals.none().await;
                behind.give(at, &chunk).await;
                at += chunk.len() as u64;
            }
            Ok::<(), StoreError>(())
        };
        let read = read.await;
        read.map_err(|error| {
            behind.lose();
            Failure::now(cut(describe(&error)), false)
        })
    }
}
