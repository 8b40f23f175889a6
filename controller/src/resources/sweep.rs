//! `Sweep`: the evidence of many pods, each taken by a `Collection` of its own; and `SweepRoster`, its list.
//!
//! Both are cluster-wide, because pods of several namespaces may be meant, and an object of a namespace can't own
//! one of another.
//!
//! A sweep is expanded once. What it selects at that moment becomes its list, in rosters of up to
//! [`ROSTER_TARGETS`] pods; one write of the sweep's status names them, and only those count. From then on
//! pods that are added are none of its business, and a controller that is started again goes on with the same list.
//! For each target one ordinary Collection is made, in the pod's namespace, owned by the sweep and labelled
//! [`SWEEP_LABEL`], under a name that follows from the sweep's uid and the target's number: so it is made once, however
//! often a controller begins to make it.
//!
//! The objects stay small, whatever is selected: a roster holds one line for each of its pods and below 1 MiB at
//! the worst, the sweep only numbers and the first [`EXCEPTIONS`] pods that are not sealed. etcd takes 1.5 MiB.
//!
//! A case has one custody log, and each of its collections gets a copy: of a sweep with more than [`CASE_TARGETS`]
//! pods each further thousand is a case of its own, `<case>.part-<n>`.

#![expect(
    clippy::duplicated_attributes,
    reason = "clippy reads the columns as repeated attributes"
)]
#![expect(
    unreachable_pub,
    reason = "the derive repeats the type where nobody reaches it"
)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{CASE_PATTERN, NAME_PATTERN, RECIPIENT_PATTERN, TEXT_PATTERN};

/// Label of a Collection that belongs to a sweep: the sweep's name.
pub const SWEEP_LABEL: &str = "impound.dev/sweep";

/// Finalizer that keeps a Sweep under way from being gone before its end.
pub const SWEEP_FINALIZER: &str = "impound.dev/sweep";

/// Most pods of one sweep. More than that is a selection that went wrong, or several sweeps.
pub const MOST_TARGETS: usize = 10_000;
/// Targets in one roster.
pub const ROSTER_TARGETS: usize = 500;
/// Targets whose evidence is in one case: the custody log of a case with a thousand collections has some
/// megabytes, and each of them holds a copy.
pub const CASE_TARGETS: usize = 1000;
/// Pods that are not sealed and that the sweep's own status names.
pub const EXCEPTIONS: usize = 50;
/// Longest message about one target, in bytes.
pub const TARGET_MESSAGE: usize = 256;
/// Longest name of a sweep: it becomes a label's value.
pub const SWEEP_NAME: usize = 63;
/// Longest case of a sweep: `.part-10` comes behind it.
pub const SWEEP_CASE: usize = 54;

/// What is to be swept. Only how it goes on can be changed: `state`, `atOnce`, `perNode` and `expires`.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, Deserialize, Serialize)]
#[kube(
    group = "impound.dev",
    version = "v1alpha1",
    kind = "Sweep",
    status = "SweepStatus",
    category = "impound",
    doc = "Takes the evidence of many pods, each by a Collection of its own. Contains none of them.",
    printcolumn(name = "Case", type_ = "string", json_path = ".spec.case"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Targets", type_ = "integer", json_path = ".status.targets"),
    printcolumn(
        name = "Sealed",
        type_ = "integer",
        json_path = ".status.counts.sealed"
    ),
    printcolumn(
        name = "Running",
        type_ = "integer",
        json_path = ".status.counts.running"
    ),
    printcolumn(
        name = "Waiting",
        type_ = "integer",
        json_path = ".status.counts.waiting"
    ),
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
#[x_kube(validation = Rule::new("self.select == oldSelf.select && self.case == oldSelf.case && self.reason == oldSelf.reason && self.pause == oldSelf.pause && self.freeze == oldSelf.freeze && self.encryptTo == oldSelf.encryptTo && (has(self.requestedBy) ? self.requestedBy : '') == (has(oldSelf.requestedBy) ? oldSelf.requestedBy : '')").message("only state, atOnce, perNode and expires of a sweep can be changed: create another sweep"))]
#[x_kube(validation = Rule::new("oldSelf.state != 'Cancelled' || self.state == 'Cancelled'").message("a sweep that is cancelled stays cancelled: create another sweep"))]
#[serde(rename_all = "camelCase")]
pub struct SweepSpec {
    /// Which pods.
    pub select: Selection,
    /// Case id, as in `Quarantine`, at most 54 characters. Each thousand pods beyond the first are a case of their own,
    /// with `.part-2` and so on behind it.
    #[schemars(length(min = 1, max = 54), regex(pattern = CASE_PATTERN))]
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
    /// Pause each pod's containers while they are exported, for no longer than its probes stand.
    #[serde(default)]
    pub freeze: bool,
    /// Who can read the evidence: public keys of age X25519 recipients, besides those whom the controller encrypts
    /// everything to. None of either: it is not encrypted.
    #[serde(default)]
    #[schemars(length(max = 16), inner(length(min = 62, max = 62), regex(pattern = RECIPIENT_PATTERN)))]
    pub encrypt_to: Vec<String>,
    /// Collections that are under way at the same time.
    #[serde(default = "at_once")]
    #[schemars(range(min = 1, max = 256))]
    pub at_once: u32,
    /// Of these, on one node.
    #[serde(default = "per_node")]
    #[schemars(range(min = 1, max = 16))]
    pub per_node: u32,
    /// From then on nothing is begun any more. What is under way goes on to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Time>,
    /// Whether it goes on.
    #[serde(default)]
    pub state: SweepState,
}

/// As many as the controller receives exports of.
#[must_use]
pub fn at_once() -> u32 {
    16
}

/// A node works for its pods, too.
#[must_use]
pub fn per_node() -> u32 {
    1
}

/// Which pods: those that everything which is given applies to.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[x_kube(validation = Rule::new("self.allNamespaces != (has(self.namespaces) && size(self.namespaces) > 0)").message("name the namespaces, or set allNamespaces, and not both"))]
#[serde(rename_all = "camelCase")]
pub struct Selection {
    /// In every namespace.
    #[serde(default)]
    pub all_namespaces: bool,
    /// In these namespaces, which must be there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 63), regex(pattern = NAME_PATTERN)))]
    pub namespaces: Vec<String>,
    /// With these labels, as `kubectl get --selector` takes them, e.g. `app=web,tier in (front,back)`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 2048))]
    pub labels: String,
    /// On nodes with these labels, in the same form.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 2048))]
    pub node_labels: String,
    /// With a container of one of these images: `sha256:` and 64 digits, which is the digest that the registry knows the
    /// image by or the image's id, or the name as the pod has it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 512), regex(pattern = TEXT_PATTERN)))]
    pub images: Vec<String>,
    /// Of this owner, as `KIND/NAME`, e.g. `Deployment/web`, `CronJob/nightly` or `DaemonSet/proxy`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(
        length(max = 317),
        regex(pattern = r"^$|^[A-Za-z]{1,63}/[a-z0-9]([-.a-z0-9]*[a-z0-9])?$")
    )]
    pub owner: String,
}

/// Whether a sweep goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum SweepState {
    /// It does.
    #[default]
    Running,
    /// Nothing is begun until it is Running again. What is under way goes on to its end.
    Paused,
    /// Nothing is begun any more. What is under way goes on to its end.
    Cancelled,
}

impl SweepState {
    /// What somebody wishes who sets it.
    #[must_use]
    pub fn wish(self) -> &'static str {
        match self {
            Self::Running => "resume",
            Self::Paused => "pause",
            Self::Cancelled => "cancel",
        }
    }
}

/// What became of it. Written by the controller only.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SweepStatus {
    /// Where the sweep stands.
    #[serde(default)]
    pub phase: SweepPhase,
    /// What the phase means, for people.
    #[serde(default)]
    pub message: String,
    /// metadata.generation that the status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The state that it was last seen to be wished in; each other one is in the custody log before.
    #[serde(default)]
    pub state: SweepState,
    /// When the list was made. It doesn't change any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expanded: Option<MicroTime>,
    /// The SweepRosters that are the list, in order.
    #[serde(default)]
    pub rosters: Vec<String>,
    /// Pods on the list, the nodes that they are on, and their namespaces.
    #[serde(default)]
    pub targets: u32,
    /// As above.
    #[serde(default)]
    pub nodes: u32,
    /// As above.
    #[serde(default)]
    pub namespaces: u32,
    /// What was selected and is not on the list, and why.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub left_out: String,
    /// How many targets are in which state.
    #[serde(default)]
    pub counts: SweepCounts,
    /// Bytes stored of collections that have ended.
    #[serde(default)]
    pub bytes: u64,
    /// The first targets that have ended without being sealed and complete. The rosters have all of them.
    #[serde(default)]
    pub exceptions: Vec<SweepException>,
    /// How many there are beyond those.
    #[serde(default)]
    pub more_exceptions: u32,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<MicroTime>,
}

/// Where a sweep stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum SweepPhase {
    /// Its list is not made yet.
    #[default]
    Pending,
    /// Collections are made.
    Running,
    /// None are made until it is resumed.
    Paused,
    /// The evidence of every target is sealed and complete.
    Complete,
    /// It has ended, and the evidence of some targets is missing or incomplete.
    Partial,
    /// It was cancelled, and what was under way has ended.
    Cancelled,
    /// There is no list, and nothing was collected; the message says why.
    Refused,
}

impl SweepPhase {
    /// Nothing more happens.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(
            self,
            Self::Complete | Self::Partial | Self::Cancelled | Self::Refused
        )
    }
}

/// How many targets are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SweepCounts {
    /// See [`TargetState`].
    #[serde(default)]
    pub waiting: u32,
    /// See [`TargetState`].
    #[serde(default)]
    pub running: u32,
    /// See [`TargetState`].
    #[serde(default)]
    pub sealed: u32,
    /// See [`TargetState`].
    #[serde(default)]
    pub partial: u32,
    /// See [`TargetState`].
    #[serde(default)]
    pub failed: u32,
    /// See [`TargetState`].
    #[serde(default)]
    pub absent: u32,
    /// See [`TargetState`].
    #[serde(default)]
    pub expired: u32,
    /// See [`TargetState`].
    #[serde(default)]
    pub cancelled: u32,
}

/// A target that has ended without being sealed and complete.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SweepException {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's node; empty if it had none.
    #[serde(default)]
    pub node: String,
    /// How it ended.
    pub state: TargetState,
    /// Why.
    #[serde(default)]
    pub message: String,
}

/// A part of a sweep's list. Made by the controller only, and never changed.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, Deserialize, Serialize)]
#[kube(
    group = "impound.dev",
    version = "v1alpha1",
    kind = "SweepRoster",
    status = "SweepRosterStatus",
    category = "impound",
    doc = "A part of the list of pods that a Sweep takes the evidence of, and what became of each.",
    printcolumn(name = "Sweep", type_ = "string", json_path = ".spec.sweep"),
    printcolumn(name = "Case", type_ = "string", json_path = ".spec.case"),
    printcolumn(name = "First", type_ = "integer", json_path = ".spec.first"),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[x_kube(validation = Rule::new("self == oldSelf").message("the list of a sweep can't be changed"))]
#[serde(rename_all = "camelCase")]
pub struct SweepRosterSpec {
    /// Name of the sweep.
    #[schemars(length(min = 1, max = 63))]
    pub sweep: String,
    /// The case that the evidence of these targets belongs to.
    #[schemars(length(min = 1, max = 63), regex(pattern = CASE_PATTERN))]
    pub case: String,
    /// Number of the first target; the sweep's first is 1.
    #[schemars(range(min = 1))]
    pub first: u32,
    /// The targets, in the order in which they are begun.
    #[schemars(length(max = 500))]
    pub targets: Vec<SweepTarget>,
}

/// One pod of a sweep.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SweepTarget {
    /// The pod's namespace.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// The pod's name.
    #[schemars(length(min = 1, max = 253))]
    pub pod: String,
    /// The pod's metadata.uid.
    #[schemars(length(min = 1, max = 64))]
    pub uid: String,
    /// The pod's node; empty if it has none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 253))]
    pub node: String,
}

/// What became of the targets of a roster. Written by the controller only.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SweepRosterStatus {
    /// One for each target, in the same order.
    #[serde(default)]
    pub targets: Vec<TargetStatus>,
}

/// What became of a target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TargetStatus {
    /// How it stands.
    #[serde(default)]
    pub state: TargetState,
    /// Why, where that is not plain, at most 256 bytes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Bytes stored, once its collection has ended.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub bytes: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(bytes: &u64) -> bool {
    *bytes == 0
}

/// How a target stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum TargetState {
    /// Not begun.
    #[default]
    Waiting,
    /// It has a Collection.
    Running,
    /// Its evidence is sealed and complete.
    Sealed,
    /// Its evidence is sealed, and something is missing.
    Partial,
    /// There is no sealed evidence.
    Failed,
    /// There was nothing to collect: the pod had ended and was gone, or another had its name, or it was on no node.
    Absent,
    /// It was not begun before the sweep expired.
    Expired,
    /// It was not begun before the sweep was cancelled.
    Cancelled,
}

impl TargetState {
    /// Nothing more happens.
    #[must_use]
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Waiting | Self::Running)
    }

    /// It has ended, and not with sealed and complete evidence.
    #[must_use]
    pub fn is_exception(self) -> bool {
        self.is_final() && self != Self::Sealed
    }
}

impl SweepCounts {
    /// One more in this state.
    pub fn add(&mut self, state: TargetState) {
        let count = match state {
            TargetState::Waiting => &mut self.waiting,
            TargetState::Running => &mut self.running,
            TargetState::Sealed => &mut self.sealed,
            TargetState::Partial => &mut self.partial,
            TargetState::Failed => &mut self.failed,
            TargetState::Absent => &mut self.absent,
            TargetState::Expired => &mut self.expired,
            TargetState::Cancelled => &mut self.cancelled,
        };
        *count = count.saturating_add(1);
    }
}
