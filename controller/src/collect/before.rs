//! `before/*`: the Kubernetes objects as they were, out of the job.

use impound_evidence::{Completeness, Consistency, EvidencePath, Method, Timestamp};
use serde_json::Value;

use super::CollectError;
use super::note::Begun;
use super::session::Session;
use crate::seal;
use crate::store::Content;

impl Session<'_> {
    pub(super) async fn store_before(&self) -> Result<(), CollectError> {
        for (name, bytes) in &self.job.before {
            let path = self.path(&format!("before/{name}"), "the name of an object")?;
            self.store_object(&path, bytes).await?;
        }
        Ok(())
    }

    /// Stores the JSON of a Kubernetes object under its name, once.
    pub(super) async fn store_object(
        &self,
        path: &EvidencePath,
        bytes: &[u8],
    ) -> Result<(), CollectError> {
        if self.stored(path).is_some() {
            return Ok(());
        }
        self.board.running(path, 1, bytes.len() as u64);
        let object = Object::of(bytes);
        let begun = Begun {
            media_type: "application/json".to_owned(),
            method: Method::KubernetesObject,
            api_call: object.api_call(),
            source_id: object.uid,
            derived_from: Vec::new(),
            // One answer, of one version of the object.
            consistency: Consistency::Frozen,
            started: None,
            clock_offset_ms: None,
            received_started: Timestamp::now(),
        };
        let content = Content::of(bytes);
        let record = begun.record(path, content, Completeness::Complete, None);
        self.record_read(&[&record]).await?;
        let written = seal::write(&self.collector.store, &self.lock, path, bytes).await;
        let receipt = written.map_err(|error| self.store_error(error))?;
        self.record_stored(vec![(record, receipt)]).await
    }
}

/// What names an object, as far as its JSON says.
struct Object {
    api_version: String,
    kind: String,
    namespace: String,
    name: String,
    uid: String,
}

impl Object {
    fn of(bytes: &[u8]) -> Self {
        let value: Value = serde_json::from_slice(bytes).unwrap_or_default();
        let text = |pointer| {
            value
                .pointer(pointer)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        Self {
            api_version: text("/apiVersion"),
            kind: text("/kind"),
            namespace: text("/metadata/namespace"),
            name: text("/metadata/name"),
            uid: text("/metadata/uid"),
        }
    }

    /// In words: the plural of the API path is not in the object.
    fn api_call(&self) -> String {
        let namespace = if self.namespace.is_empty() {
            String::new()
        } else {
            format!("{}/", self.namespace)
        };
        format!(
            "GET {} {} {namespace}{}",
            self.api_version, self.kind, self.name
        )
    }
}

/// metadata.uid of the object in `bytes`, if it has one.
pub(super) fn uid(bytes: &[u8]) -> Option<String> {
    text(bytes, "/metadata/uid")
}

/// status.nodeInfo.bootID of the Node in `bytes`, if it has one.
pub(super) fn boot_id(bytes: &[u8]) -> Option<String> {
    text(bytes, "/status/nodeInfo/bootID")
}

fn text(bytes: &[u8], pointer: &str) -> Option<String> {
    let value: Value = serde_json::from_slice(bytes).ok()?;
    let text = value.pointer(pointer)?.as_str()?;
    Some(text.to_owned()).filter(|text| !text.is_empty())
}
