//! `before/*`: the Kubernetes objects as they were, out of the job.

use impound_evidence::{ArtifactRecord, Completeness, Method, Timestamp};
use serde_json::Value;

use super::CollectError;
use super::session::Session;
use crate::seal;
use crate::store::Content;

impl Session<'_> {
    pub(super) async fn store_before(&self) -> Result<(), CollectError> {
        for (name, bytes) in &self.job.before {
            let path = self.path(&format!("before/{name}"), "the name of an object")?;
            if self.stored(&path).is_some() {
                continue;
            }
            self.board.running(&path, 1, bytes.len() as u64);
            let content = Content::of(bytes);
            let object = Object::of(bytes);
            let now = Timestamp::now();
            let record = ArtifactRecord {
                path: path.clone(),
                size: content.size,
                sha256: content.sha256,
                media_type: "application/json".to_owned(),
                method: Method::KubernetesObject,
                api_call: object.api_call(),
                source_id: object.uid,
                derived_from: Vec::new(),
                completeness: Completeness::Complete,
                started: None,
                finished: None,
                received_started: now,
                received_finished: now,
            };
            self.record_read(&[&record], None).await?;
            let written = seal::write(&self.collector.store, &self.lock, &path, bytes).await;
            let receipt = written.map_err(|error| self.store_error(error))?;
            self.record_stored(vec![(record, receipt)]).await?;
        }
        Ok(())
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
    Some(Object::of(bytes).uid).filter(|uid| !uid.is_empty())
}
