//! The authority's timestamp of a collection's checkpoint, between the checkpoint and the manifest that names
//! both. What came of it is decided once: by the file that is there, or by the custody log's entry that there
//! is none.

use impound_evidence::{CHECKPOINT_STAMP, CheckpointStamp, Entry, Event, Sha256, TOKEN_LIMIT};

use super::session::Session;
use super::{CollectError, Collector};
use crate::seal;

/// What the custody log calls it when there is none.
const WHAT: &str = "the timestamp of the checkpoint";

impl Session<'_> {
    /// What the manifest says of the timestamp; asks for it if no run before this one has. `settled`: the
    /// authority that is to be asked.
    pub(super) async fn stamp(
        &self,
        settled: Option<String>,
        checkpoint: &[u8],
    ) -> Result<Option<CheckpointStamp>, CollectError> {
        let Some(url) = settled else {
            return Ok(None);
        };
        if let Some(reason) = self.entries.iter().find_map(failed) {
            return Ok(Some(CheckpointStamp::None { reason }));
        }
        let path = self.path(CHECKPOINT_STAMP, "the timestamp")?;
        let authority = self.collector.timestamps.as_deref();
        let authority = authority.filter(|authority| authority.url() == url);
        let there = self
            .collector
            .store
            .read_small(&self.at, &path, TOKEN_LIMIT)
            .await
            .map_err(|error| self.store_error(error))?;
        let token = match (there, authority) {
            (Some(token), Some(authority)) => match authority.check(&token, checkpoint) {
                Ok(()) => token,
                Err(error) => {
                    tracing::error!(case = %self.at.case, collection = %self.at.name, %error, "the timestamp that is there is not good");
                    return Err(CollectError::NotOurs {
                        at: self.at.to_string(),
                        file: CHECKPOINT_STAMP,
                    });
                }
            },
            (Some(token), None) => token,
            (None, Some(authority)) => match authority.stamp(checkpoint).await {
                Ok(token) => {
                    let written =
                        seal::write(&self.collector.store, &self.lock, &path, &token).await;
                    written.map_err(|error| self.store_error(error))?;
                    token
                }
                Err(reason) => return self.without_stamp(reason).await.map(Some),
            },
            (None, None) => {
                let reason = format!("{url} was to be asked, and this controller knows it no more");
                return self.without_stamp(reason).await.map(Some);
            }
        };
        Ok(Some(CheckpointStamp::Token {
            sha256: Sha256::of(&token),
            authority: url,
        }))
    }

    async fn without_stamp(&self, reason: String) -> Result<CheckpointStamp, CollectError> {
        self.record_failed(WHAT, &reason).await?;
        Ok(CheckpointStamp::None { reason })
    }
}

/// Why there is none, if that is what an entry says.
fn failed(entry: &Entry) -> Option<String> {
    let ours = entry.event == Event::Failed && entry.who == Collector::who() && entry.what == WHAT;
    ours.then(|| entry.why.clone()).flatten()
}
