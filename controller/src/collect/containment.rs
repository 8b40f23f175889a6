//! `containment.json`: the Quarantine as it stood when everything else was stored: steps, checks,
//! warnings, evictions, drift and credentials, for whoever reads the evidence years later.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

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
                Ok(bytes) => return self.store_object(&path, &bytes).await,
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
}
