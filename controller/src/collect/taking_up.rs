//! A collection that an earlier run has begun: what of it is there.

use std::collections::BTreeMap;

use impound_evidence::{BUNDLE, CHECKPOINT, CHECKPOINT_STAMP, CUSTODY, Event, MANIFEST};

use super::CollectError;
use super::session::{Session, in_store};

impl Session<'_> {
    /// Compares what the log says with what the store holds, and settles what was cut off.
    pub(super) async fn take_up(&self) -> Result<(), CollectError> {
        let recorded = |event| {
            let of_event = self
                .entries
                .iter()
                .filter(move |entry| entry.event == event);
            let records = of_event.filter_map(|entry| entry.artifact.as_ref());
            records
                .map(|record| (record.stored_path().clone(), record.clone()))
                .collect::<BTreeMap<_, _>>()
        };
        let (read, mut stored) = (recorded(Event::Read), recorded(Event::Stored));
        let files = self
            .collector
            .store
            .list(&self.at)
            .await
            .map_err(|error| self.store_error(error))?;
        let sealing = self.is_sealing().await;
        for file in files {
            if [MANIFEST, BUNDLE, CUSTODY, CHECKPOINT].contains(&file.path.as_str())
                || (sealing && file.path.as_str() == CHECKPOINT_STAMP)
            {
                continue;
            }
            let known = stored.remove(&file.path);
            let named_only = known.is_none();
            // Without `Stored`: the crash came between the naming and its entry.
            let Some(record) = known.or_else(|| read.get(&file.path).cloned()) else {
                return Err(CollectError::Foreign {
                    at: self.at.to_string(),
                    path: file.path,
                });
            };
            let checked = self
                .collector
                .store
                .recheck(&self.lock, &file.path, in_store(&record))
                .await;
            let receipt = checked.map_err(|error| self.store_error(error))?;
            let taken_over = self.take_over(&record).await;
            taken_over.map_err(|error| self.store_error(error))?;
            if named_only {
                self.record_stored(vec![(record, receipt)]).await?;
            } else {
                self.shown(&record);
                self.count(record, &receipt)?;
            }
        }
        if let Some((path, _)) = stored.pop_first() {
            return Err(CollectError::Gone {
                at: self.at.to_string(),
                path,
            });
        }
        for path in self
            .collector
            .store
            .leftovers(&self.lock)
            .await
            .map_err(|error| self.store_error(error))?
        {
            self.settle(&path, &read).await?;
        }
        let closed = self
            .all_stored()
            .iter()
            .filter(|record| self.is_sealed_off(record))
            .count();
        if closed > 0 && !sealing && !self.noted(|note| note.closed.is_some()).await {
            let warning = format!(
                "{closed} artifacts were encrypted by an earlier run: they are whole, and what would be made of them now is missing"
            );
            self.warn("encrypted artifacts", warning).await?;
        }
        Ok(())
    }
}
