//! What the controller's answers look like as JSON and YAML: lower camel case, times as RFC 3339,
//! and what is not set left out.

mod sweep;

use impound_proto::controller::v1 as wire;
use serde::Serialize;

use crate::human::exact;
pub(crate) use sweep::{Sweep, SweepPlan, SweepTarget};

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Quarantine {
    namespace: String,
    name: String,
    case: String,
    reason: String,
    requested_by: String,
    pod: String,
    pod_uid: String,
    node: String,
    phase: String,
    message: String,
    steps: Vec<Step>,
    checks: Vec<Check>,
    #[serde(skip_serializing_if = "String::is_empty")]
    verdict: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    isolation: Option<NodeIsolation>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    attempts: Vec<Attempt>,
    warnings: Vec<String>,
    neighbours: Vec<Neighbour>,
    #[serde(skip_serializing_if = "String::is_empty")]
    collection: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    later_collections: Vec<LaterCollection>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<String>,
}

/// A collection of what a container was restarted to.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct LaterCollection {
    name: String,
    reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    phase: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
}

/// Another pod of the suspect's node.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Neighbour {
    namespace: String,
    pod: String,
    state: String,
    message: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeIsolation {
    in_force: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    problem: String,
    sandbox: String,
    netns_inode: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<String>,
    allow: Vec<AllowRule>,
    probe_ports: Vec<u32>,
    node_addresses: Vec<String>,
    drop_loopback: bool,
    weaknesses: Vec<String>,
    dropped_packets_in: u64,
    dropped_packets_out: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct AllowRule {
    direction: String,
    protocol: String,
    cidr: String,
    port: u32,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Attempt {
    from_pod: bool,
    target: String,
    about: String,
    before: String,
    after: String,
    permitted: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Step {
    name: String,
    state: String,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    started: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finished: Option<String>,
    attempts: u32,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Check {
    name: String,
    state: String,
    message: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Collection {
    namespace: String,
    name: String,
    case: String,
    reason: String,
    requested_by: String,
    pod: String,
    pod_uid: String,
    node: String,
    phase: String,
    message: String,
    artifacts: Vec<Artifact>,
    #[serde(skip_serializing_if = "String::is_empty")]
    location: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    manifest_sha256: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finished: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Artifact {
    path: String,
    state: String,
    bytes: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    sha256: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    started: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    finished: Option<String>,
}

/// What was followed to its end.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Followed {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) quarantine: Option<Quarantine>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) collection: Option<Collection>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Plan {
    calls: Vec<Call>,
    warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Call {
    step: String,
    method: String,
    path: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    content_type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<serde_json::Value>,
    purpose: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EvidenceFile {
    case: String,
    collection: String,
    path: String,
    size: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    sha256: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    completeness: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Container {
    id: String,
    name: String,
    image: String,
    state: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<String>,
    pod_namespace: String,
    pod_name: String,
    container_name: String,
    attempt: u32,
    sandbox: bool,
    known_to_kubernetes: bool,
}

/// The body of a call: the JSON it is, or as text.
pub(crate) fn body(text: &str) -> Option<serde_json::Value> {
    match text {
        "" => None,
        text => Some(serde_json::from_str(text).unwrap_or_else(|_| text.into())),
    }
}

impl From<&wire::Quarantine> for Quarantine {
    fn from(q: &wire::Quarantine) -> Self {
        Self {
            namespace: q.namespace.clone(),
            name: q.name.clone(),
            case: q.case_id.clone(),
            reason: q.reason.clone(),
            requested_by: q.requested_by.clone(),
            pod: q.pod.clone(),
            pod_uid: q.pod_uid.clone(),
            node: q.node.clone(),
            phase: q.phase.clone(),
            message: q.message.clone(),
            steps: q.steps.iter().map(Step::from).collect(),
            checks: q.facts.iter().map(Check::from).collect(),
            verdict: q.verdict.clone(),
            isolation: q.isolation.as_ref().map(NodeIsolation::from),
            attempts: q.attempts.iter().map(Attempt::from).collect(),
            warnings: q.warnings.clone(),
            neighbours: q.evictions.iter().map(Neighbour::from).collect(),
            collection: q.collection.clone(),
            later_collections: q.later_collections.iter().map(later).collect(),
            created: exact(q.created.as_ref()),
        }
    }
}

fn later(later: &wire::LaterCollection) -> LaterCollection {
    LaterCollection {
        name: later.name.clone(),
        reason: later.reason.clone(),
        phase: later.phase.clone(),
        message: later.message.clone(),
    }
}

impl From<&wire::NodeIsolation> for NodeIsolation {
    fn from(isolation: &wire::NodeIsolation) -> Self {
        let rule = |rule: &wire::AllowRule| AllowRule {
            direction: rule.direction.clone(),
            protocol: rule.protocol.clone(),
            cidr: rule.cidr.clone(),
            port: rule.port,
        };
        Self {
            in_force: isolation.in_force,
            problem: isolation.problem.clone(),
            sandbox: isolation.sandbox_id.clone(),
            netns_inode: isolation.netns_inode,
            since: exact(isolation.since.as_ref()),
            allow: isolation.allow.iter().map(rule).collect(),
            probe_ports: isolation.probe_ports.clone(),
            node_addresses: isolation.node_addresses.clone(),
            drop_loopback: isolation.drop_loopback,
            weaknesses: isolation.weaknesses.clone(),
            dropped_packets_in: isolation.dropped_packets_in,
            dropped_packets_out: isolation.dropped_packets_out,
        }
    }
}

impl From<&wire::ConnectionAttempt> for Attempt {
    fn from(attempt: &wire::ConnectionAttempt) -> Self {
        Self {
            from_pod: attempt.from_pod,
            target: attempt.target.clone(),
            about: attempt.about.clone(),
            before: attempt.before.clone(),
            after: attempt.after.clone(),
            permitted: attempt.permitted,
        }
    }
}

impl From<&wire::Step> for Step {
    fn from(step: &wire::Step) -> Self {
        Self {
            name: step.name.clone(),
            state: step.state.clone(),
            message: step.message.clone(),
            started: exact(step.started.as_ref()),
            finished: exact(step.finished.as_ref()),
            attempts: step.attempts,
        }
    }
}

impl From<&wire::Eviction> for Neighbour {
    fn from(eviction: &wire::Eviction) -> Self {
        Self {
            namespace: eviction.namespace.clone(),
            pod: eviction.pod.clone(),
            state: eviction.state.clone(),
            message: eviction.message.clone(),
        }
    }
}

impl From<&wire::Fact> for Check {
    fn from(fact: &wire::Fact) -> Self {
        Self {
            name: fact.name.clone(),
            state: fact.state.clone(),
            message: fact.message.clone(),
        }
    }
}

impl From<&wire::Collection> for Collection {
    fn from(c: &wire::Collection) -> Self {
        Self {
            namespace: c.namespace.clone(),
            name: c.name.clone(),
            case: c.case_id.clone(),
            reason: c.reason.clone(),
            requested_by: c.requested_by.clone(),
            pod: c.pod.clone(),
            pod_uid: c.pod_uid.clone(),
            node: c.node.clone(),
            phase: c.phase.clone(),
            message: c.message.clone(),
            artifacts: c.artifacts.iter().map(Artifact::from).collect(),
            location: c.location.clone(),
            manifest_sha256: c.manifest_sha256.clone(),
            created: exact(c.created.as_ref()),
            finished: exact(c.finished.as_ref()),
        }
    }
}

impl From<&wire::CollectedArtifact> for Artifact {
    fn from(artifact: &wire::CollectedArtifact) -> Self {
        Self {
            path: artifact.path.clone(),
            state: artifact.state.clone(),
            bytes: artifact.bytes,
            sha256: artifact.sha256.clone(),
            message: artifact.message.clone(),
            started: exact(artifact.started.as_ref()),
            finished: exact(artifact.finished.as_ref()),
        }
    }
}

impl From<&wire::Plan> for Plan {
    fn from(plan: &wire::Plan) -> Self {
        let call = |call: &wire::ApiCall| Call {
            step: call.step.clone(),
            method: call.method.clone(),
            path: call.path.clone(),
            content_type: call.content_type.clone(),
            body: body(&call.body),
            purpose: call.purpose.clone(),
        };
        Self {
            calls: plan.calls.iter().map(call).collect(),
            warnings: plan.warnings.clone(),
        }
    }
}

impl From<&wire::EvidenceFile> for EvidenceFile {
    fn from(file: &wire::EvidenceFile) -> Self {
        Self {
            case: file.case_id.clone(),
            collection: file.collection.clone(),
            path: file.path.clone(),
            size: file.size,
            sha256: file.sha256.clone(),
            completeness: file.completeness.clone(),
        }
    }
}

impl From<&wire::NodeContainer> for Container {
    fn from(container: &wire::NodeContainer) -> Self {
        Self {
            id: container.id.clone(),
            name: container.name.clone(),
            image: container.image.clone(),
            state: container.state.clone(),
            created: exact(container.created.as_ref()),
            pod_namespace: container.pod_namespace.clone(),
            pod_name: container.pod_name.clone(),
            container_name: container.container_name.clone(),
            attempt: container.attempt,
            sandbox: container.sandbox,
            known_to_kubernetes: container.known_to_kubernetes,
        }
    }
}
