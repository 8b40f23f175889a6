//! `Quarantine`: one suspect pod, what was done to it and how to undo it.

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

use super::collection::CollectionPhase;
use super::isolation::{AttemptStatus, IsolationSpec, IsolationStatus, Verdict};
use super::undo::{Before, Undo};
use super::{CASE_PATTERN, NAME_PATTERN, RECIPIENT_PATTERN, TEXT_PATTERN};

/// What a responder asks for. Everything but `release` is fixed at creation.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, Deserialize, Serialize)]
#[kube(
    group = "impound.dev",
    version = "v1alpha1",
    kind = "Quarantine",
    namespaced,
    status = "QuarantineStatus",
    shortname = "quar",
    category = "impound",
    doc = "Contains one suspect pod and collects its evidence.",
    printcolumn(name = "Pod", type_ = "string", json_path = ".spec.pod"),
    printcolumn(name = "Node", type_ = "string", json_path = ".status.node"),
    printcolumn(name = "Case", type_ = "string", json_path = ".spec.case"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Verdict", type_ = "string", json_path = ".status.verdict"),
    printcolumn(name = "Evidence", type_ = "string", json_path = ".status.collection"),
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
    )
)]
#[serde(rename_all = "camelCase")]
pub struct QuarantineSpec {
    /// Name of the suspect pod in this namespace.
    #[schemars(length(min = 1, max = 253), regex(pattern = NAME_PATTERN))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("the pod of a quarantine can't be changed: create another quarantine"))]
    pub pod: String,
    /// metadata.uid that the pod must have. Without it, the pod that has the name when the
    /// quarantine is first seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self == oldSelf").message("the pod of a quarantine can't be changed: create another quarantine"))]
    pub pod_uid: Option<String>,
    /// Case id: 1 to 63 letters, digits, "-", "_" or ".", first and last a letter or digit, no "..".
    #[schemars(length(min = 1, max = 63), regex(pattern = CASE_PATTERN))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("the case of a quarantine can't be changed: create another quarantine"))]
    pub case: String,
    /// Why, for the custody log.
    #[schemars(length(min = 1, max = 1024), regex(pattern = TEXT_PATTERN))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("only `release` of a quarantine can be changed: create another quarantine"))]
    pub reason: String,
    /// Who asked. Set from the client certificate for requests over gRPC; for an object made with
    /// kubectl it is a claim.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 4096))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("only `release` of a quarantine can be changed: create another quarantine"))]
    pub requested_by: String,
    /// Leave the other pods of the node where they are.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("only `release` of a quarantine can be changed: create another quarantine"))]
    pub keep_neighbours: bool,
    /// Evict pods that no controller would recreate.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("only `release` of a quarantine can be changed: create another quarantine"))]
    pub evict_unmanaged: bool,
    /// Evict pods with emptyDir volumes, whose data is then lost.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("only `release` of a quarantine can be changed: create another quarantine"))]
    pub delete_empty_dir_data: bool,
    /// Also take the suspect out of NetworkPolicies that allow it traffic and that it can't leave by
    /// its labels: their podSelector is narrowed so that it selects no pod with the suspect label.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("only `release` of a quarantine can be changed: create another quarantine"))]
    pub exclude_from_policies: bool,
    /// Contain only, collect nothing.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("only `release` of a quarantine can be changed: create another quarantine"))]
    pub skip_collection: bool,
    /// Pause each container while its image is committed.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("only `release` of a quarantine can be changed: create another quarantine"))]
    pub pause: bool,
    /// How the pod is isolated by its node's agent.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("only `release` of a quarantine can be changed: create another quarantine"))]
    pub isolation: IsolationSpec,
    /// Pause the pod's containers while the full collection reads them, for no longer than its own
    /// probes stand.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("only `release` of a quarantine can be changed: create another quarantine"))]
    pub freeze: bool,
    /// Who can read the evidence: public keys of age X25519 recipients, besides those whom the controller encrypts
    /// everything to. None of either: it is not encrypted.
    #[serde(default)]
    #[schemars(length(max = 16), inner(length(min = 62, max = 62), regex(pattern = RECIPIENT_PATTERN)))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("only `release` of a quarantine can be changed: create another quarantine"))]
    pub encrypt_to: Vec<String>,
    /// Set it to undo the quarantine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<ReleaseSpec>,
}

/// The wish to undo a quarantine.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReleaseSpec {
    /// Why, for the custody log.
    #[schemars(length(min = 1, max = 1024))]
    pub reason: String,
    /// Who asked, as in `QuarantineSpec.requestedBy`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub requested_by: String,
    /// Also when the evidence is not sealed.
    #[serde(default)]
    pub force: bool,
}

/// What became of it. Written by the controller only.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct QuarantineStatus {
    /// Where the quarantine stands.
    #[serde(default)]
    pub phase: QuarantinePhase,
    /// What the phase means for this pod, for people.
    #[serde(default)]
    pub message: String,
    /// metadata.generation that the status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// metadata.uid of the pod that was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    /// Node that the pod runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Kind and name of the pod's controller before containment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Steps in the order in which they were begun.
    #[serde(default)]
    pub steps: Vec<StepStatus>,
    /// What was checked after containment.
    #[serde(default)]
    pub facts: Vec<Fact>,
    /// Consequences and limits, one sentence each.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// The calls that containment makes, in order, stored before the first of them.
    #[serde(default)]
    pub plan: Vec<ApiCall>,
    /// What release needs to put back, stored before the first change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undo: Option<Undo>,
    /// The objects as they were before the first change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Before>,
    /// The node's other pods and what became of them.
    #[serde(default)]
    pub evictions: Vec<EvictionStatus>,
    /// Name of the Collection in the same namespace, once it is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collection: Option<String>,
    /// Name that it is made under if the quarantine's own is somebody else's. Recorded before it is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub collection_name: Option<String>,
    /// Collections that are made because a container was started or restarted after the first one had ended, oldest
    /// first. At most 5.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub later_collections: Vec<LaterCollection>,
    /// First 12 digits of the id of each of the pod's containers of which a collection that has ended holds a complete
    /// export.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exported: Vec<String>,
    /// What the suspect could act with, and the commands that revoke it.
    #[serde(default)]
    pub credentials: Vec<Credential>,
    /// What others took away or stood in the way with since containment, what was put back, and what was lost. The
    /// last 50.
    #[serde(default)]
    pub drift: Vec<Drift>,
    /// How far containment is proved by the facts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
    /// What is in force at the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<IsolationStatus>,
    /// Connections that are tried before and after the isolation.
    #[serde(default)]
    pub attempts: Vec<AttemptStatus>,
}

impl QuarantineStatus {
    /// Name of the first collection of the quarantine of this name, made or not: its own, unless that is taken.
    #[must_use]
    pub fn first_collection<'n>(&'n self, quarantine: &'n str) -> &'n str {
        self.collection_name.as_deref().unwrap_or(quarantine)
    }
}

/// A collection of what a container was restarted to. Recorded before its object is made.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LaterCollection {
    /// Name of the Collection in the same namespace.
    pub name: String,
    /// Id of the container that it is made for, as the pod's status has it. It takes the pod's others too.
    pub container: String,
    /// Why it is made, for people.
    pub reason: String,
    /// Id of the request in the custody log, a random UUID.
    pub request: String,
    /// Where it stands, as last seen; none as long as its object is not known to be made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<CollectionPhase>,
    /// How it ended, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// Something that the suspect could act with.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Credential {
    /// Token, ServiceAccount, CloudIdentity, RoleBinding, ClusterRoleBinding or Secret; CloudIdentities or Bindings if
    /// they could not be read.
    pub kind: String,
    /// Name of the object.
    pub name: String,
    /// What it allows, for people.
    pub grants: String,
    /// The command that takes it away, or why there is none. Impound never runs it.
    pub revoke: String,
}

/// Something that happened to a contained pod.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Drift {
    /// When it was seen, by the controller's clock.
    pub time: MicroTime,
    /// Restored, NotRestored, EvidenceLoss, PodGone, PolicyChanged, MirrorMadeAnew or NameTaken.
    pub reason: String,
    /// What it was, for people.
    pub what: String,
}

/// Where a quarantine stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum QuarantinePhase {
    /// Not looked at yet.
    #[default]
    Pending,
    /// Containment steps are under way: the pod is not contained yet.
    Containing,
    /// The pod is contained at the Kubernetes API; eviction and collection go on.
    Contained,
    /// Contained, neighbours evicted, evidence sealed and complete.
    Complete,
    /// Contained, but something could not be done; the message and the steps say what.
    Incomplete,
    /// Nothing was changed, because the pod can't be contained safely.
    Refused,
    /// Containment did not succeed; the message says what is changed and what is not.
    Failed,
    /// Recorded changes are being undone.
    Releasing,
    /// Every recorded change is undone.
    Released,
}

impl QuarantinePhase {
    /// Nothing is in force any more, or ever was.
    #[must_use]
    pub fn is_over(self) -> bool {
        matches!(self, Self::Refused | Self::Released)
    }

    /// Nothing more happens by itself.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(
            self,
            Self::Complete | Self::Incomplete | Self::Refused | Self::Failed | Self::Released
        )
    }
}

/// One call to the Kubernetes API, or to a node's agent, exactly as it is sent.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApiCall {
    /// Step it belongs to.
    pub step: StepName,
    /// HTTP method; `gRPC` for a call to a node's agent.
    pub method: String,
    /// Path below the API server, with query; for a call to an agent its node and the gRPC method.
    pub path: String,
    /// Content type of the body; empty without a body.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub content_type: String,
    /// JSON text; empty without a body.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub body: String,
    /// What it is for, for people.
    pub purpose: String,
}

/// The steps of containment, in their safe order, and those of release.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize, JsonSchema,
)]
pub enum StepName {
    /// Node made unschedulable, own taint and autoscaler annotations set.
    Cordon,
    /// Disruption budget that keeps the suspect from being evicted.
    Protect,
    /// NetworkPolicy that denies all traffic of pods with the suspect label.
    Policy,
    /// Pods with the suspect label taken out of NetworkPolicies that would allow them traffic.
    Exclude,
    /// Labels that owner and Services select by taken off and the suspect label put on, in one patch.
    Strip,
    /// The same denial in the network plugin's own policy kinds, which win over its allow rules.
    Deny,
    /// Node labelled as suspect.
    LabelNode,
    /// Pod isolated in its own network namespace, by its node's agent.
    Isolate,
    /// Facts checked against the API.
    Verify,
    /// Connections that succeeded before the isolation tried again.
    Prove,
    /// Quick inspect and diff of every container on the node.
    Neighbours,
    /// The node's other pods evicted.
    Evict,
    /// Full collection sealed.
    Collect,
    /// What containers were restarted to since then collected too.
    CollectAgain,
    /// Isolation at the node lifted.
    UndoIsolate,
    /// Node labels taken off.
    UndoLabelNode,
    /// The network plugin's policies removed, if no other quarantine needs them.
    UndoDeny,
    /// Suspect label taken off and the original labels put back.
    UndoStrip,
    /// NetworkPolicies select pods with the suspect label again, if no other quarantine needs it.
    UndoExclude,
    /// NetworkPolicy removed, if no other quarantine needs it.
    UndoPolicy,
    /// Disruption budget removed.
    UndoProtect,
    /// Node schedulable again, if it was before and no other quarantine needs it.
    UndoCordon,
}

impl std::fmt::Display for StepName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}

/// One step and how it went.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StepStatus {
    /// Which step.
    pub name: StepName,
    /// How it stands.
    pub state: StepState,
    /// Result, or what is waited for, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// When it was begun, by the controller's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<MicroTime>,
    /// When it ended, by the controller's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<MicroTime>,
    /// How often it was tried.
    #[serde(default)]
    pub attempts: u32,
    /// Of a release step under way: what its calls are to bring about, recorded before they are sent. Whatever of
    /// it needs no call any more afterwards, this step has done, also if a crash or a lost answer hides it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub intended: Vec<String>,
}

/// How a step stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum StepState {
    /// Begun.
    Running,
    /// Something outside must happen first; the message says what.
    Waiting,
    /// Its effect was seen.
    Done,
    /// It has no effect and is not tried again.
    Failed,
    /// Not needed or not wanted; the message says why.
    Skipped,
}

impl StepState {
    /// Whether the step will not be worked on again.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Skipped)
    }
}

/// One thing that was checked.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct Fact {
    /// What was checked, e.g. `OwnerReleased`.
    pub name: String,
    /// What was found.
    pub state: FactState,
    /// For people: what was seen, and what to do if it is not true.
    pub message: String,
}

/// Outcome of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum FactState {
    /// Seen to be so.
    True,
    /// Seen not to be so.
    False,
    /// Could not be checked; the message says why.
    Unverified,
}

/// One of the node's other pods.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EvictionStatus {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// metadata.uid: a pod re-created under the same name is another one.
    pub uid: String,
    /// What became of it.
    pub state: EvictionState,
    /// Why it waits or stays, and what would change that.
    #[serde(default)]
    pub message: String,
    /// When eviction was last asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tried: Option<MicroTime>,
    /// Seconds from `tried` on during which the API server asked not to be asked again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u32>,
}

/// What became of a pod that shared the suspect's node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum EvictionState {
    /// To be evicted.
    Pending,
    /// Eviction was refused for now, e.g. by a disruption budget.
    Blocked,
    /// Eviction was granted; the pod is terminating.
    Evicting,
    /// The pod is gone from the node.
    Gone,
    /// Left alone on purpose; the message says why.
    Kept,
    /// Could not be evicted in time.
    Failed,
}
