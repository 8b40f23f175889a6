//! `Collection`: one pod's evidence, on its way from the node into the store.

#![expect(
    clippy::duplicated_attributes,
    reason = "clippy reads the columns as repeated attributes"
)]
#![expect(
    unreachable_pub,
    reason = "the derive repeats the type where nobody reaches it"
)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{CASE_PATTERN, NAME_PATTERN, RECIPIENT_PATTERN, TEXT_PATTERN};

/// What is to be collected. Fixed at creation.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, Deserialize, Serialize)]
#[kube(
    group = "impound.dev",
    version = "v1alpha1",
    kind = "Collection",
    namespaced,
    status = "CollectionStatus",
    category = "impound",
    doc = "Takes one pod's evidence off its node into the store.",
    printcolumn(name = "Pod", type_ = "string", json_path = ".spec.pod"),
    printcolumn(name = "Node", type_ = "string", json_path = ".spec.node"),
    printcolumn(name = "Case", type_ = "string", json_path = ".spec.case"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Bytes", type_ = "integer", json_path = ".status.bytes"),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.message",
        priority = "1"
    ),
    printcolumn(
        name = "Location",
        type_ = "string",
        json_path = ".status.location",
        priority = "1"
    )
)]
#[x_kube(validation = Rule::new("self == oldSelf").message("a collection can't be changed: create another one"))]
#[serde(rename_all = "camelCase")]
pub struct CollectionSpec {
    /// Name of the pod in this namespace.
    #[schemars(length(min = 1, max = 253), regex(pattern = NAME_PATTERN))]
    pub pod: String,
    /// metadata.uid that the pod must have. Without it, the pod that has the name when the
    /// collection is first seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    /// Node whose agent is asked. Without it, the node that the pod runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = NAME_PATTERN))]
    pub node: Option<String>,
    /// Case id, as in `Quarantine`.
    #[schemars(length(min = 1, max = 63), regex(pattern = CASE_PATTERN))]
    pub case: String,
    /// Why, for the custody log.
    #[schemars(length(min = 1, max = 1024), regex(pattern = TEXT_PATTERN))]
    pub reason: String,
    /// Who asked, as in `Quarantine`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 4096))]
    pub requested_by: String,
    /// Pause each container while its image is committed.
    #[serde(default)]
    pub pause: bool,
    /// Pause the pod's containers while they are exported, for no longer than their probes stand.
    #[serde(default)]
    pub freeze: bool,
    /// Who can read the evidence: public keys of age X25519 recipients, besides those whom the controller encrypts
    /// everything to. None of either: it is not encrypted.
    #[serde(default)]
    #[schemars(length(max = 16), inner(length(min = 62, max = 62), regex(pattern = RECIPIENT_PATTERN)))]
    pub encrypt_to: Vec<String>,
    /// Name of the Quarantine in the same namespace that it belongs to. The first one has the
    /// Quarantine's name, or if that is taken the one that its status says: the recorded objects are
    /// stored with it, and the node's other pods get a quick inspect and diff. Later ones are of what
    /// containers were restarted to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quarantine: Option<String>,
}

/// What became of it. Written by the controller only.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CollectionStatus {
    /// Where the collection stands.
    #[serde(default)]
    pub phase: CollectionPhase,
    /// What the phase means, for people.
    #[serde(default)]
    pub message: String,
    /// Whether inspect and diff of every container have been stored, or have failed visibly.
    #[serde(default)]
    pub quick_done: bool,
    /// metadata.uid of the pod that was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    /// Node that was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The artifacts so far.
    #[serde(default)]
    pub artifacts: Vec<ArtifactStatus>,
    /// Bytes stored.
    #[serde(default)]
    pub bytes: u64,
    /// What was asked for and is not there, each with its reason.
    #[serde(default)]
    pub missing: Vec<String>,
    /// Where the evidence is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
    /// Whether the store keeps what it has, as it was found when the controller started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<String>,
    /// SHA-256 of manifest.json, hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest_sha256: Option<String>,
    /// When work began, by the controller's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<MicroTime>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<MicroTime>,
    /// Replica that works on it, or did so last: `<its Lease>/<its process>`. Another one takes the collection once
    /// that Lease is not renewed any more. Empty if it was let go of after a failure: whoever comes next takes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<String>,
    /// How often work was begun: more than once after a crash or an unreachable agent.
    #[serde(default)]
    pub attempts: u32,
}

impl CollectionStatus {
    /// What came of it, for people: where the evidence is and what it lacks, or why there is none.
    #[must_use]
    pub fn outcome(&self) -> String {
        let location = self.location.clone().unwrap_or_default();
        match self.phase {
            CollectionPhase::Sealed => format!("sealed at {location}"),
            CollectionPhase::Partial => format!(
                "sealed at {location}, but not complete: {}",
                self.missing.join("; ")
            ),
            _ => self.message.clone(),
        }
    }
}

/// Where a collection stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum CollectionPhase {
    /// Not looked at yet.
    #[default]
    Pending,
    /// Evidence is on its way.
    Collecting,
    /// Everything asked for is stored, re-read, complete and signed.
    Sealed,
    /// What could be had is stored, re-read and signed; the manifest names what is missing.
    Partial,
    /// There is no signed manifest; the message says why.
    Failed,
}

impl CollectionPhase {
    /// Nothing more happens.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Sealed | Self::Partial | Self::Failed)
    }
}

/// One artifact on its way.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ArtifactStatus {
    /// Path below the collection.
    pub path: String,
    /// How it stands.
    pub state: ArtifactState,
    /// Bytes so far.
    #[serde(default)]
    pub bytes: u64,
    /// SHA-256 in hexadecimal, once stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Why it is incomplete or failed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// How an artifact stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum ArtifactState {
    /// Asked for.
    Pending,
    /// Bytes are flowing.
    Running,
    /// Stored, re-read and complete.
    Stored,
    /// Stored and re-read, but it ended early.
    Incomplete,
    /// Not stored.
    Failed,
}
