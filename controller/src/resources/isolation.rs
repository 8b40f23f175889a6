//! Isolation at the node, as a Quarantine holds it: what is wished, what is in force, what proves it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the pod is isolated in its own network namespace, by its node's agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IsolationSpec {
    /// Whether it is. Unset: as the controller was started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// What may pass nevertheless.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub allow: Vec<AllowRule>,
    /// Drop also what the kubelet's probes send. A liveness probe that fails restarts the container, and
    /// what it changed is soon lost.
    #[serde(default)]
    pub drop_probes: bool,
    /// Drop traffic inside the pod (loopback) as well.
    #[serde(default)]
    pub drop_loopback: bool,
}

/// One permitted kind of connection. Answers to it pass as well.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AllowRule {
    /// Who connects to whom.
    pub direction: AllowDirection,
    /// The other end, e.g. "10.0.0.0/8", or an address alone. Bits after the prefix are zero.
    #[schemars(length(min = 2, max = 43))]
    pub cidr: String,
    /// Its transport protocol.
    pub protocol: AllowProtocol,
    /// The port that is connected to. 0: any.
    #[serde(default)]
    #[schemars(range(max = 65535))]
    pub port: u32,
}

/// Who connects to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum AllowDirection {
    /// The pod to the other end.
    Egress,
    /// The other end to the pod.
    Ingress,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum AllowProtocol {
    /// With connections.
    #[serde(rename = "TCP")]
    Tcp,
    /// Without.
    #[serde(rename = "UDP")]
    Udp,
}

/// The table in the pod's network namespace, as the agent last saw it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IsolationStatus {
    /// Whether it was there exactly as set at the last look.
    #[serde(default)]
    pub state: TableState,
    /// Why it is not in force, or not known to be.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub problem: String,
    /// When it was last seen, by the controller's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub looked: Option<MicroTime>,
    /// Full id of the pod's sandbox, whose network namespace it is.
    #[serde(default)]
    pub sandbox: String,
    /// Inode of the network namespace, as `readlink /proc/<pid>/ns/net` shows it.
    #[serde(default)]
    pub netns_inode: u64,
    /// Since when it is there, by the node's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<MicroTime>,
    /// What may pass on request.
    #[serde(default)]
    pub allow: Vec<AllowRule>,
    /// TCP ports of the pod that its node may connect to, for the kubelet's probes.
    #[serde(default)]
    pub probe_ports: Vec<u32>,
    /// The addresses that the node does it from.
    #[serde(default)]
    pub node_addresses: Vec<String>,
    /// Whether traffic inside the pod is dropped as well.
    #[serde(default)]
    pub drop_loopback: bool,
    /// What could get past the table or take it away.
    #[serde(default)]
    pub weaknesses: Vec<WeaknessStatus>,
    /// Packets dropped since `since`: towards the pod, and from it.
    #[serde(default)]
    pub dropped_in: u64,
    /// As above.
    #[serde(default)]
    pub dropped_out: u64,
}

/// Whether the table is there exactly as it was set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum TableState {
    /// It is.
    InForce,
    /// It is not there, or another, and could not be set again.
    Missing,
    /// The agent could not be asked at the last look.
    #[default]
    Unknown,
}

/// Something that the table can't hold.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WeaknessStatus {
    /// What it is.
    pub kind: WeaknessKind,
    /// Whether a process can use it now, or has: the pod is not called isolated then.
    pub open: bool,
    /// What was found and what it means, for people.
    pub detail: String,
}

/// Kinds of weaknesses, as the agent tells them apart (`IsolationWeaknessKind`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum WeaknessKind {
    /// One that this version does not know.
    Unspecified,
    /// CAP_NET_ADMIN is held: the table can be removed from inside.
    NetAdmin,
    /// CAP_NET_ADMIN can be had.
    NetAdminObtainable,
    /// CAP_NET_RAW is held: packet sockets send and receive past the table.
    NetRaw,
    /// CAP_NET_RAW can be had.
    NetRawObtainable,
    /// A packet socket is open.
    PacketSocket,
    /// A process of the pod is in another network namespace.
    Outside,
    /// CAP_SYS_ADMIN is held: other namespaces can be entered.
    SysAdmin,
    /// A process could not be looked at.
    NotExamined,
}

impl WeaknessKind {
    /// Whether it gets past the table now, or takes it away, with nothing more than itself.
    #[must_use]
    pub fn is_open(self) -> bool {
        matches!(
            self,
            Self::NetAdmin | Self::SysAdmin | Self::PacketSocket | Self::Outside
        )
    }
}

/// A connection that is tried before and after the isolation.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AttemptStatus {
    /// Out of the pod's network namespace, or out of the node's towards the pod.
    pub from: AttemptOrigin,
    /// Address and port.
    pub target: String,
    /// What it is, for people, e.g. "cluster DNS".
    pub about: String,
    /// How it ended before the isolation; none: it was not made in time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<AttemptOutcome>,
    /// How it ended afterwards; none: it was not made yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<AttemptOutcome>,
    /// It is let through on request or for a probe, so it says nothing about the isolation.
    #[serde(default)]
    pub permitted: bool,
}

/// Where a connection is tried from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum AttemptOrigin {
    /// The pod's network namespace.
    Pod,
    /// The node's.
    Node,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum AttemptOutcome {
    /// Traffic flows in both directions.
    Connected,
    /// Somebody answered with a refusal: traffic flows, too.
    Refused,
    /// Nobody answered.
    TimedOut,
    /// There is no way, or it is not permitted.
    Unreachable,
    /// It could not be tried, which says nothing.
    Failed,
}

/// How far containment is proved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum Verdict {
    /// Traffic can flow, or a controller or Service still holds the pod.
    NotContained,
    /// At the Kubernetes API, as far as the network plugin enforces the policy.
    Contained,
    /// Also at the node: the table is in force, and what connected before does not any more.
    Isolated,
}
