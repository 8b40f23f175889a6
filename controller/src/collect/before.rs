//! What comes from no node: `before/*`, the Kubernetes objects as they were, out of the job; and the script
//! that checks the collection.

use impound_evidence::{
    Completeness, Consistency, EvidencePath, Method, SCRIPT, Timestamp, VERIFY_SH,
};
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
        let object = Object::of(bytes);
        let (api_call, source_id) = (object.api_call(), object.uid);
        let method = Method::KubernetesObject;
        self.store_small(
            path,
            method,
            "application/json",
            (api_call, source_id),
            bytes,
        )
        .await
    }

    /// Stores the script that checks a collection without us.
    pub(super) async fn store_script(&self) -> Result<(), CollectError> {
        let path = self.path(SCRIPT, "the script")?;
        let source = (String::new(), String::new());
        let bytes = VERIFY_SH.as_bytes();
        self.store_small(&path, Method::Program, "application/x-sh", source, bytes)
            .await
    }

    /// Stores bytes that are here, once. `source`: API call and source id.
    async fn store_small(
        &self,
        path: &EvidencePath,
        method: Method,
        media_type: &str,
        (api_call, source_id): (String, String),
        bytes: &[u8],
    ) -> Result<(), CollectError> {
        if self.stored(path).is_some() {
            return Ok(());
        }
        self.board.running(path, 1, bytes.len() as u64);
        let begun = Begun {
            media_type: media_type.to_owned(),
            method,
            api_call,
            source_id,
            derived_from: Vec::new(),
            // One answer, of one version of the object; a script of ours does not change at all.
            consistency: Consistency::Frozen,
            started: None,
            clock_offset_ms: None,
            received_started: Timestamp::now(),
        };
        let record = begun.record(path, Content::of(bytes), Completeness::Complete, None);
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
