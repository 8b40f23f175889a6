//! What comes from no node: `before/*`, the Kubernetes objects as they were, out of the job; and the script
//! that checks the collection.

use std::borrow::Cow;

use futures::future::try_join_all;
use impound_evidence::{
    ArtifactRecord, Completeness, Consistency, EvidencePath, Method, SCRIPT, Timestamp, VERIFY_SH,
};
use serde_json::Value;

use super::CollectError;
use super::note::Begun;
use super::session::Session;
use crate::seal;
use crate::store::Content;

impl Session<'_> {
    /// Stores what needs no agent: the Kubernetes objects as they were before the containment, and the script that
    /// checks a collection without us.
    pub(super) async fn store_before(&self) -> Result<(), CollectError> {
        let script = Small {
            path: self.path(SCRIPT, "the script")?,
            method: Method::Program,
            media_type: "application/x-sh",
            api_call: String::new(),
            source_id: String::new(),
            bytes: VERIFY_SH.as_bytes(),
        };
        let mut all = vec![script];
        for (name, bytes) in &self.job.before {
            let path = self.path(&format!("before/{name}"), "the name of an object")?;
            all.push(Small::object(path, bytes));
        }
        self.store_small(all).await
    }

    /// Stores the JSON of a Kubernetes object under its name, once.
    pub(super) async fn store_object(
        &self,
        path: &EvidencePath,
        bytes: &[u8],
    ) -> Result<(), CollectError> {
        self.store_small(vec![Small::object(path.clone(), bytes)])
            .await
    }

    /// Stores what is here, each once: all are recorded before the first is written.
    async fn store_small(&self, mut all: Vec<Small<'_>>) -> Result<(), CollectError> {
        all.retain(|small| self.stored(&small.path).is_none());
        if all.is_empty() {
            return Ok(());
        }
        for small in &all {
            self.board.running(&small.path, 1, small.bytes.len() as u64);
        }
        let mut records = Vec::new();
        let mut contents = Vec::new();
        for small in &all {
            let mut record = small.record();
            // What checks a collection must be readable without a key.
            let encryption = self
                .encryption
                .as_ref()
                .filter(|_| small.method != Method::Program);
            contents.push(match encryption {
                None => Cow::Borrowed(small.bytes),
                Some(encryption) => {
                    let encoded = encryption.encode(small.bytes);
                    let (bytes, encoded) = encoded.map_err(|source| CollectError::Encryption {
                        at: self.at.to_string(),
                        source,
                    })?;
                    let form = encoded.form(&small.path);
                    record.stored = Some(form.map_err(|error| self.too_long(error))?);
                    Cow::Owned(bytes)
                }
            });
            records.push(record);
        }
        self.record_read(&records.iter().collect::<Vec<_>>())
            .await?;
        let written = contents.iter().zip(records).map(|(bytes, record)| async {
            let store = &self.collector.store;
            let written = seal::write(store, &self.lock, record.stored_path(), bytes);
            let receipt = written.await.map_err(|error| self.store_error(error))?;
            Ok::<_, CollectError>((record, receipt))
        });
        let written = try_join_all(written).await?;
        self.record_stored(written).await
    }
}

/// A file whose bytes are here.
struct Small<'b> {
    path: EvidencePath,
    method: Method,
    media_type: &'static str,
    api_call: String,
    source_id: String,
    bytes: &'b [u8],
}

impl<'b> Small<'b> {
    /// Of a Kubernetes object as JSON.
    fn object(path: EvidencePath, bytes: &'b [u8]) -> Self {
        let object = Object::of(bytes);
        Self {
            path,
            method: Method::KubernetesObject,
            media_type: "application/json",
            api_call: object.api_call(),
            source_id: object.uid,
            bytes,
        }
    }

    fn record(&self) -> ArtifactRecord {
        let begun = Begun {
            media_type: self.media_type.to_owned(),
            method: self.method,
            api_call: self.api_call.clone(),
            source_id: self.source_id.clone(),
            derived_from: Vec::new(),
            // One answer, of one version of the object; a script of ours does not change at all.
            consistency: Consistency::Frozen,
            started: None,
            clock_offset_ms: None,
            received_started: Timestamp::now(),
        };
        let content = Content::of(self.bytes);
        begun.record(&self.path, content, Completeness::Complete, None)
    }
}

/// Kinds that are read. Each one's plural is its name in lower case and an "s".
const KINDS: [&str; 10] = [
    "CronJob",
    "DaemonSet",
    "Deployment",
    "Job",
    "Node",
    "Pod",
    "Quarantine",
    "ReplicaSet",
    "ReplicationController",
    "StatefulSet",
];

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

    /// The request that it is the answer to. Of a kind that we don't read, and so don't know the path of, in words.
    fn api_call(&self) -> String {
        let (api, kind, name) = (&self.api_version, &self.kind, &self.name);
        let namespace = match self.namespace.as_str() {
            "" => String::new(),
            namespace => format!("namespaces/{namespace}/"),
        };
        if !KINDS.contains(&kind.as_str()) {
            return format!("GET {api} {kind} {namespace}{name}");
        }
        let root = if api.contains('/') { "apis" } else { "api" };
        let plural = kind.to_ascii_lowercase();
        format!("GET /{root}/{api}/{namespace}{plural}s/{name}")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_call_is_the_request_that_the_api_server_answered() {
        for (json, call) in [
            (
                r#"{"apiVersion":"v1","kind":"Pod","metadata":{"namespace":"shop","name":"web"}}"#,
                "GET /api/v1/namespaces/shop/pods/web",
            ),
            (
                r#"{"apiVersion":"v1","kind":"Node","metadata":{"name":"worker2"}}"#,
                "GET /api/v1/nodes/worker2",
            ),
            (
                r#"{"apiVersion":"apps/v1","kind":"ReplicaSet","metadata":{"namespace":"shop","name":"web-1"}}"#,
                "GET /apis/apps/v1/namespaces/shop/replicasets/web-1",
            ),
            (
                r#"{"apiVersion":"example.com/v1","kind":"Fish","metadata":{"namespace":"shop","name":"f"}}"#,
                "GET example.com/v1 Fish namespaces/shop/f",
            ),
        ] {
            assert_eq!(Object::of(json.as_bytes()).api_call(), call);
        }
    }
}
