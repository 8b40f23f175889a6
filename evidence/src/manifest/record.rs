//! The parts of a manifest: artifacts, and the identities of what was read and of who read it.

use serde::{Deserialize, Serialize};

use crate::digest::Sha256;
use crate::names::EvidencePath;
use crate::stored::StoredForm;
use crate::tar::Completeness;
use crate::timestamp::Timestamp;

/// One stored file: what it is, where it came from, and when.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ArtifactRecord {
    /// Where it is below the collection.
    pub path: EvidencePath,
    /// Bytes.
    pub size: u64,
    /// Over all its bytes as received, and, unless it is stored in another form, as re-read from the store.
    pub sha256: Sha256,
    /// Root of the chunk tree of the stored bytes, see [`crate::CHUNK_SIZE`]; none before it is stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chunk_root: Option<Sha256>,
    /// The file that holds it, if that has other bytes than the artifact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stored: Option<StoredForm>,
    /// E.g. `application/x-tar`.
    pub media_type: String,
    /// How it was obtained.
    pub method: Method,
    /// The API call that the bytes came from, e.g. `GET /containers/<id>/export`; of a layer, the directory and
    /// the image that it lies over.
    pub api_call: String,
    /// Full id of the container or image, or uid of the Kubernetes object.
    pub source_id: String,
    /// What it was made from, if it did not come from a source of its own: artifacts of this
    /// collection, from which anybody can make it again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub derived_from: Vec<EvidencePath>,
    /// Whether its source could change while it was read.
    pub consistency: Consistency,
    /// What its own format says about its end.
    pub completeness: Completeness,
    /// What its source has and this way of reading leaves out.
    pub omissions: Vec<Omission>,
    /// When the source was asked. The agent's clock; none for what did not come from an agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
    /// When the source's answer was complete. The agent's clock, as above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<Timestamp>,
    /// The agent's clock minus the controller's, milliseconds, when it was asked; none as above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_offset_ms: Option<i64>,
    /// When the controller asked.
    pub received_started: Timestamp,
    /// When the controller had the last byte.
    pub received_finished: Timestamp,
    /// What the store said; none before it is stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<StorageReceipt>,
}

/// Whether the source of an artifact stood still while it was read.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Consistency {
    /// It could change meanwhile: what was read first may be older than what was read last.
    Live,
    /// It could not at first: it was paused, and went on before the end because its own probes allow no
    /// longer pause.
    PartlyFrozen,
    /// It could not: it was paused or had ended, or it came in one answer of one version.
    Frozen,
}

/// What the store was found to be when the controller started.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StorageClaim {
    /// Whether it keeps what it has.
    pub write_once: WriteOnce,
    /// Why that was not seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Whether a store keeps what it has whoever asks it not to.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WriteOnce {
    /// An object was written under lock; deleting it, replacing it and shortening its lock were
    /// tried, with the controller's credentials, and refused.
    Proven,
    /// That was not tried, or not refused.
    NotProven,
}

/// What the store said of an artifact once it had its name, its bytes were re-read and fit.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StorageReceipt {
    /// Where it is, as a URL, e.g. `file:///var/lib/impound/INC-1/web/before/pod.json` or
    /// `s3://bucket/INC-1/web/before/pod.json`.
    pub location: String,
    /// The store's own name of exactly these bytes there, if it keeps versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// What keeps it from being removed, if the store can do that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lock: Option<StorageLock>,
    /// When it had been re-read and fitted. The controller's clock.
    pub verified: Timestamp,
}

/// A store's own lock on an artifact, as S3 Object Lock.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StorageLock {
    /// Who may lift it.
    pub mode: LockMode,
    /// Until when. The store's clock.
    pub until: Timestamp,
    /// Whether it is held besides, without an end, until somebody lifts the hold.
    pub hold: bool,
}

/// Who may lift a lock.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LockMode {
    /// Who has a right of its own for that.
    Governance,
    /// Nobody.
    Compliance,
}

/// What an artifact's source has and the artifact has not.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Omission {
    /// What is mounted into the container: volumes, tmpfs, /dev/shm, /proc, /sys.
    Mounts,
    /// Files that were deleted while a process still had them open.
    DeletedOpenFiles,
    /// Parts of a second of modification times; all of access and change times.
    PartsOfSeconds,
    /// Extended attributes other than `security.capability`.
    ExtendedAttributes,
    /// Where a sparse file has holes: they are zeros here.
    Holes,
    /// Times and contents: only that something changed, and of directories also if only what is in
    /// them did.
    TimesAndContents,
}

/// How an artifact was obtained.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// A Kubernetes object as the API server gave it.
    KubernetesObject,
    /// The runtime's description of a container.
    Inspect,
    /// What a container changed against its image.
    Diff,
    /// A container's file system, read live.
    Export,
    /// A container's writable layer, read off the node's disk by the agent: what it changed against its image.
    /// With the image that [`Container::image_id`] names it is the container's file system.
    Layer,
    /// A container's file system, frozen into an image and saved.
    Commit,
    /// Made by the controller from other artifacts while they arrived, see
    /// [`ArtifactRecord::derived_from`].
    Derived,
    /// Part of the program that collected: what checks a collection without it.
    Program,
}

impl Method {
    /// What it leaves out, measured on Docker 20.10 with overlay2.
    #[must_use]
    pub fn omissions(self) -> Vec<Omission> {
        match self {
            // What is derived lacks what its sources lack.
            Self::KubernetesObject | Self::Inspect | Self::Derived | Self::Program => Vec::new(),
            Self::Diff => vec![Omission::Mounts, Omission::TimesAndContents],
            Self::Layer => vec![Omission::Mounts, Omission::DeletedOpenFiles],
            Self::Export | Self::Commit => vec![
                Omission::Mounts,
                Omission::DeletedOpenFiles,
                Omission::PartsOfSeconds,
                Omission::ExtendedAttributes,
                Omission::Holes,
            ],
        }
    }
}

/// A build of a program of ours.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Build {
    /// E.g. `impound-controller`.
    pub name: String,
    /// E.g. `0.1.0`.
    pub version: String,
    /// Of the executable file that ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executable_sha256: Option<Sha256>,
}

/// A Kubernetes node.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Name of the Node object.
    pub name: String,
    /// Its metadata.uid, if it was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// Which start of its kernel, the kubelet's word: status.nodeInfo.bootID, if it was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
}

/// A pod.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its metadata.uid.
    pub uid: String,
}

/// An agent as the controller met it.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Agent {
    /// Identity in its certificate, e.g. `spiffe://impound.dev/agent/worker2`.
    pub identity: String,
    /// Of the certificate (DER) that it proved possession of.
    pub certificate_sha256: Sha256,
    /// The agent's own word: its version.
    pub version: String,
    /// The agent's own word: its executable file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executable_sha256: Option<Sha256>,
    /// The agent's own word: the runtime, e.g. `docker`.
    pub runtime: String,
    /// The agent's own word: the runtime's version.
    pub runtime_version: String,
    /// The agent's clock minus the controller's, milliseconds, taken halfway through a call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_offset_ms: Option<i64>,
}

/// A container as the agent listed it.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Container {
    /// Whether it was suspect or stood beside.
    pub role: ContainerRole,
    /// Its pod.
    pub pod: Pod,
    /// Its name in the pod.
    pub name: String,
    /// Full runtime id, 64 hexadecimal digits.
    pub id: String,
    /// Which start of this container in its pod: 0 the first.
    pub attempt: u32,
    /// Image reference as the runtime gave it.
    pub image: String,
    /// Full id of the image: the digest of its configuration.
    pub image_id: String,
    /// What the registry knows the image by, e.g. `docker-pullable://nginx@sha256:…`: the imageID in
    /// the pod's status, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_digest: Option<String>,
    /// The runtime's word when it was listed, e.g. `running`, `exited`.
    pub state: String,
    /// When the runtime made it. The node's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<Timestamp>,
}

/// Why a container was looked at.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerRole {
    /// Of the suspect pod.
    Suspect,
    /// Of another pod on its node.
    Neighbour,
}

/// Something that collecting changed on the node.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alteration {
    /// What was done.
    pub kind: AlterationKind,
    /// Full id of the container or image that it was done to.
    pub source_id: String,
    /// The API call that did it, as it was sent; of several, one after the other.
    pub api_call: String,
    /// What it changed, for people.
    pub effect: String,
    /// The artifacts that it was done for.
    pub artifacts: Vec<EvidencePath>,
    /// When it began. The agent's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
    /// When it was over. The agent's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<Timestamp>,
}

/// What was done to the node.
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AlterationKind {
    /// An image was made of a container: new files on the node's disk.
    Commit,
    /// A container stood still while it was exported or its image was made.
    Pause,
    /// The image that was made is gone from the node again.
    RemoveImage,
    /// The pod was cut off in its own network namespace: a table of nftables there.
    Isolate,
}
