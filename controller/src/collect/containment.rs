//! `containment.json`: the Quarantine as it stood when everything else was stored: steps, checks,
//! warnings, evictions, drift and credentials, for whoever reads the evidence years later.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use impound_evidence::{Alteration, AlterationKind, EvidencePath};
use serde::Deserialize;

use super::CollectError;
use super::session::Session;

/// File name in a collection.
const NAME: &str = "containment.json";

/// Attempts at reading it, each after a longer pause: an API that is away for a moment must not turn
/// into a collection that is partial.
const ATTEMPTS: u32 = 4;

/// Where the record of the pod's containment is read from.
#[async_trait]
pub trait Containment: Send + Sync {
    /// The object as the API server gives it, as JSON.
    ///
    /// # Errors
    /// In words.
    async fn read(&self) -> Result<Vec<u8>, String>;
}

/// The containment that a collection belongs to.
#[derive(Clone)]
pub struct ContainmentSource(pub Arc<dyn Containment>);

impl fmt::Debug for ContainmentSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ContainmentSource")
    }
}

impl Session<'_> {
    /// Stores it, once; without one to be had the collection is partial and says why.
    pub(super) async fn store_containment(&self) -> Result<(), CollectError> {
        let Some(ContainmentSource(source)) = &self.job.containment else {
            return Ok(());
        };
        let path = self.path(NAME, "the record of the containment")?;
        if self.stored(&path).is_some() {
            return Ok(());
        }
        let mut attempt = 1;
        loop {
            match source.read().await {
                Ok(bytes) => {
                    self.note_isolation(&path, &bytes).await?;
                    return self.store_object(&path, &bytes).await;
                }
                Err(why) if attempt >= ATTEMPTS => {
                    let why = format!("the Quarantine could not be read: {why}");
                    self.record_failed(path.as_str(), &why).await?;
                    self.miss(&path, false, why);
                    return Ok(());
                }
                Err(why) => {
                    tracing::warn!(case = %self.at.case, reason = why, "the Quarantine is read again");
                    attempt += 1;
                    tokio::time::sleep(self.collector.retry.before(attempt)).await;
                }
            }
        }
    }

    /// Notes the table in the pod's network namespace as something that was changed on the node, once.
    async fn note_isolation(
        &self,
        at: &EvidencePath,
        quarantine: &[u8],
    ) -> Result<(), CollectError> {
        let Some(isolated) = isolation(at, quarantine) else {
            return Ok(());
        };
        self.note(|note| {
            let is_it = |one: &Alteration| one.kind == AlterationKind::Isolate;
            if !note.alterations.iter().any(is_it) {
                note.alterations.push(isolated);
            }
        })
        .await
    }
}

/// What isolation at the node changed, as the status of the Quarantine has it; nothing if there is none.
fn isolation(at: &EvidencePath, quarantine: &[u8]) -> Option<Alteration> {
    #[derive(Deserialize)]
    struct Object {
        status: Option<Status>,
    }
    #[derive(Deserialize)]
    struct Status {
        isolation: Option<Table>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Table {
        #[serde(default)]
        sandbox: String,
        #[serde(default)]
        netns_inode: u64,
        since: Option<String>,
    }
    let object: Object = serde_json::from_slice(quarantine).ok()?;
    let table = object.status?.isolation?;
    // Never set.
    if table.sandbox.is_empty() {
        return None;
    }
    let namespace = table.netns_inode;
    Some(Alteration {
        kind: AlterationKind::Isolate,
        source_id: table.sandbox,
        api_call: format!(
            "nftables over netlink: table inet impound in network namespace {namespace}"
        ),
        effect: "everything in and out of the pod is dropped, but for what containment.json names"
            .to_owned(),
        artifacts: vec![at.clone()],
        started: table.since.and_then(|since| since.parse().ok()),
        finished: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_that_was_set_is_an_alteration_of_the_node_and_one_that_was_not_is_none() {
        let at = "containment.json".parse().unwrap();
        let set = br#"{"status":{"isolation":{"state":"InForce","sandbox":"abc","netnsInode":4026532566,"since":"2026-01-31T03:04:05.678901Z"}}}"#;
        let isolated = isolation(&at, set).unwrap();
        assert_eq!(
            (isolated.kind, isolated.source_id.as_str()),
            (AlterationKind::Isolate, "abc")
        );
        assert!(isolated.api_call.ends_with("network namespace 4026532566"));
        assert_eq!(
            isolated.started.unwrap().to_string(),
            "2026-01-31T03:04:05.678901Z"
        );
        for never in [
            &br#"{"status":{"isolation":{"state":"Unknown","problem":"off"}}}"#[..],
            br#"{"status":{}}"#,
            b"{}",
        ] {
            assert_eq!(isolation(&at, never), None);
        }
    }
}
