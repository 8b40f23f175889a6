//! The calls that isolate a pod at its node: what is asked of the agent there, within how long, and its
//! answers as they are recorded.
//!
//! Nothing here decides: [`crate::contain::isolation`] says what is asked, [`crate::reconcile::isolating`]
//! when.

use std::collections::BTreeSet;
use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use impound_proto::agent::v1 as wire;
use impound_proto::tls::explain;
use impound_proto::{CASE_METADATA, ISOLATION_OFF};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use thiserror::Error;
use tokio::time::timeout;
use tonic::{Code, Request, Response, Status};

use crate::agents::{AgentConnection, AgentConnector};
use crate::contain::isolation::{addresses, declared_ports, probe_ports};
use crate::contain::observe;
use crate::describe::describe;
use crate::kubernetes::read;
use crate::resources::{
    AttemptOrigin, AttemptOutcome, AttemptStatus, IsolationStatus, QuarantineSpec, TableState,
    WeaknessKind, WeaknessStatus, now,
};

/// Longest time for one call, the connection included. A healthy agent needs some 50 ms; a node that
/// swallows packets must not keep containment waiting.
const LIMIT: Duration = Duration::from_secs(3);

/// A port of the pod at which nothing listens (TCPMUX, which nobody runs): its refusal shows that packets
/// come in and answers go out, also where every port that listens stays open for the kubelet's probes.
const CONTROL_PORT: u16 = 1;

/// Targets that the agent takes in each direction.
const TARGETS: usize = 16;

/// Longest text of the agent's that is recorded, in characters.
const TEXT: usize = 512;

/// Why an agent did not do what it was asked.
#[derive(Debug, Error)]
pub enum CallError {
    /// It was started without the flag, so it never will.
    #[error("{0}")]
    Off(String),
    /// Its node's runtime has no such pod.
    #[error("{0}")]
    NoSuchPod(String),
    /// It can't be reached, or refuses in the present state.
    #[error("{0}")]
    Failed(String),
}

/// Connection attempts of one call, each with the latest moment at which it can have ended.
#[derive(Clone, Debug, Default)]
pub struct Tried {
    /// How they ended, as `before` of an attempt.
    pub attempts: Vec<(AttemptStatus, Timestamp)>,
}

/// What is tried, in both directions.
#[derive(Clone, Debug, Default)]
pub struct Targets {
    from_pod: Vec<(SocketAddr, String)>,
    from_node: Vec<(SocketAddr, String)>,
}

impl Targets {
    /// Out of the pod: the Kubernetes API, the cluster's DNS (and, as the agent adds it, the pod's own
    /// node). Towards it: the ports that it declares or is probed at, and one at which nothing listens.
    /// A Service that can't be read is left out.
    pub async fn of(client: &Client, pod: &Pod) -> Self {
        let kubernetes = "/api/v1/namespaces/default/services/kubernetes";
        let dns = "/api/v1/namespaces/kube-system/services?labelSelector=k8s-app%3Dkube-dns";
        let (api, dns) = tokio::join!(
            read(client, kubernetes),
            observe::list::<Service>(client, dns)
        );
        let api: Option<Service> = api
            .ok()
            .flatten()
            .and_then(|raw| serde_json::from_value(raw).ok());
        let of = |services: Vec<Service>, port, about: &str| {
            let addresses = services.into_iter().flat_map(cluster_addresses);
            addresses
                .map(|address| (SocketAddr::new(address, port), about.to_owned()))
                .collect::<Vec<_>>()
        };
        let mut from_pod = of(api.into_iter().collect(), 443, "the Kubernetes API");
        from_pod.extend(of(dns.unwrap_or_default(), 53, "the cluster's DNS"));
        from_pod.truncate(TARGETS);
        let mut ports: BTreeSet<u16> = declared_ports(pod);
        ports.extend(probe_ports(pod));
        ports.remove(&CONTROL_PORT);
        let room = TARGETS / addresses(pod).len().max(1);
        let mut ports: Vec<(u16, String)> = ports
            .into_iter()
            .take(room.saturating_sub(1))
            .map(|port| (port, "a port of the pod".to_owned()))
            .collect();
        ports.push((
            CONTROL_PORT,
            "a port of the pod at which nothing listens".to_owned(),
        ));
        let from_node = addresses(pod).into_iter().flat_map(|address| {
            let ports = ports.clone();
            ports
                .into_iter()
                .map(move |(port, about)| (SocketAddr::new(address, port), about))
        });
        Self {
            from_node: from_node.take(TARGETS).collect(),
            from_pod,
        }
    }

    /// What a target is; `None` for the pod's own node, which the agent adds.
    fn about(&self, origin: AttemptOrigin, target: &str) -> Option<String> {
        let known = match origin {
            AttemptOrigin::Pod => &self.from_pod,
            AttemptOrigin::Node => &self.from_node,
        };
        let known = known.iter().find(|(known, _)| known.to_string() == target);
        known.map(|(_, about)| about.clone())
    }
}

/// Sets the table and reads it back.
///
/// # Errors
/// [`CallError`]; the table may be there nevertheless if no answer came.
pub async fn isolate(
    agents: &AgentConnector,
    node: &str,
    asked: wire::IsolateRequest,
    spec: &QuarantineSpec,
) -> Result<IsolationStatus, CallError> {
    within(LIMIT, async {
        let mut agent = connect(agents, node).await?;
        let ports = asked.node_access.clone().unwrap_or_default().ports;
        let case = asked.case_id.clone();
        let set = answer(agent.client.isolate(of_case(asked, &case)).await)?;
        Ok(IsolationStatus {
            state: TableState::InForce,
            problem: String::new(),
            looked: Some(now()),
            sandbox: cut(set.sandbox_id),
            netns_inode: set.netns_inode,
            since: instant(set.since),
            allow: spec.isolation.allow.clone(),
            probe_ports: ports,
            node_addresses: set.node_addresses.into_iter().map(cut).collect(),
            drop_loopback: spec.isolation.drop_loopback,
            weaknesses: weaknesses(set.weaknesses),
            dropped_in: 0,
            dropped_out: 0,
        })
    })
    .await
}

/// What is there now, compared with what [`isolate`] sets: as it is to be recorded, or how it differs.
///
/// # Errors
/// [`CallError`]
pub async fn inspect(
    agents: &AgentConnector,
    node: &str,
    asked: &wire::IsolateRequest,
    before: &IsolationStatus,
) -> Result<Result<IsolationStatus, String>, CallError> {
    within(LIMIT, async {
        let mut agent = connect(agents, node).await?;
        let request = wire::InspectIsolationRequest {
            pod: asked.pod.clone(),
            allow: asked.allow.clone(),
            drop_loopback: asked.drop_loopback,
            node_access: asked.node_access.clone(),
        };
        let found = answer(agent.client.inspect_isolation(of_case(request, &asked.case_id)).await)?;
        if !found.isolated {
            let anew = found.sandbox_id != before.sandbox;
            return Ok(Err(match (anew, found.present) {
                (true, _) => format!(
                    "the pod's sandbox was made anew ({}), with a network namespace that has no table",
                    cut(found.sandbox_id)
                ),
                (false, false) => "the table was removed".to_owned(),
                (false, true) => format!(
                    "the table was changed: {}",
                    cut(found.differences.join("; "))
                ),
            }));
        }
        let packets = |count: Option<wire::TrafficCount>| count.map_or(0, |count| count.packets);
        Ok(Ok(IsolationStatus {
            state: TableState::InForce,
            problem: String::new(),
            looked: Some(now()),
            sandbox: cut(found.sandbox_id),
            netns_inode: found.netns_inode,
            since: instant(found.since),
            node_addresses: found.node_addresses.into_iter().map(cut).collect(),
            weaknesses: weaknesses(found.weaknesses),
            dropped_in: packets(found.dropped_in),
            dropped_out: packets(found.dropped_out),
            ..before.clone()
        }))
    })
    .await
}

/// Removes the table, if it is there.
///
/// # Errors
/// [`CallError`]
pub async fn lift(
    agents: &AgentConnector,
    node: &str,
    request: wire::LiftIsolationRequest,
) -> Result<Lifted, CallError> {
    let lifted = within(LIMIT, async {
        let mut agent = connect(agents, node).await?;
        let case = request.case_id.clone();
        let lifted = agent.client.lift_isolation(of_case(request, &case)).await;
        Ok(answer(lifted)?.removed)
    });
    match lifted.await {
        Ok(true) => Ok(Lifted::Removed),
        Ok(false) => Ok(Lifted::NoTable),
        Err(CallError::NoSuchPod(_)) => Ok(Lifted::NoPod),
        Err(error) => Err(error),
    }
}

/// What became of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifted {
    /// It was there and is removed.
    Removed,
    /// The pod had none.
    NoTable,
    /// The node's runtime has no such pod, so no table either.
    NoPod,
}

/// Tries connections in both directions, each for at most `limit`.
///
/// # Errors
/// [`CallError`]
pub async fn probe(
    agents: &AgentConnector,
    node: &str,
    pod: wire::PodSelector,
    case: &str,
    targets: &Targets,
    node_port: u16,
    limit: Duration,
) -> Result<Tried, CallError> {
    let wired = |targets: &[(SocketAddr, String)]| {
        let target = |(target, _): &(SocketAddr, String)| wire::ProbeTarget {
            address: target.ip().to_string(),
            port: target.port().into(),
        };
        targets.iter().map(target).collect()
    };
    let request = wire::ProbeIsolationRequest {
        pod: Some(pod),
        from_pod: wired(&targets.from_pod),
        from_node: wired(&targets.from_node),
        timeout_ms: u32::try_from(limit.as_millis()).unwrap_or(u32::MAX),
        node_port: node_port.into(),
    };
    within(LIMIT + limit, async {
        let mut agent = connect(agents, node).await?;
        let probed = answer(agent.client.probe_isolation(of_case(request, case)).await)?;
        let answered = Timestamp::now();
        let took = span(probed.started.as_ref(), probed.finished.as_ref());
        let attempts = probed.results.into_iter().filter_map(|result| {
            let target = result.target.clone()?;
            let target = SocketAddr::new(
                target.address.parse().ok()?,
                u16::try_from(target.port).ok()?,
            );
            let from = if result.from_pod {
                AttemptOrigin::Pod
            } else {
                AttemptOrigin::Node
            };
            let target = target.to_string();
            // By durations alone, since the node's clock may be wrong: the answer left when all attempts
            // were over, and this one had been over for that long.
            let about = targets.about(from, &target);
            let over_for = took.saturating_sub(Duration::from_millis(result.elapsed_ms.into()));
            let ended = answered.checked_sub(over_for).unwrap_or(answered);
            Some((
                AttemptStatus {
                    // Without a table: policies let a pod and its own node talk.
                    permitted: from == AttemptOrigin::Node || about.is_none(),
                    about: about
                        .unwrap_or_else(|| format!("port {node_port} of the pod's own node")),
                    from,
                    target,
                    before: Some(outcome(result.outcome())),
                    after: None,
                },
                ended,
            ))
        });
        Ok(Tried {
            attempts: attempts.collect(),
        })
    })
    .await
}

async fn connect(agents: &AgentConnector, node: &str) -> Result<AgentConnection, CallError> {
    agents
        .connect(node)
        .await
        .map_err(|error| CallError::Failed(describe(&error)))
}

async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, CallError>>,
) -> Result<T, CallError> {
    timeout(limit, call).await.unwrap_or_else(|_| {
        Err(CallError::Failed(format!(
            "the agent did not answer within {} s",
            limit.as_secs()
        )))
    })
}

fn answer<T>(answered: Result<Response<T>, Status>) -> Result<T, CallError> {
    answered.map(Response::into_inner).map_err(|status| {
        let text = format!("the agent answered: {}", cut(explain(&status)));
        match status.code() {
            Code::NotFound => CallError::NoSuchPod(text),
            Code::FailedPrecondition if status.message().starts_with(ISOLATION_OFF) => {
                CallError::Off(text)
            }
            _ => CallError::Failed(text),
        }
    })
}

/// A request that both ends' logs know by its case.
fn of_case<T>(message: T, case: &str) -> Request<T> {
    let mut request = Request::new(message);
    // Cases are ASCII without controls, so they are metadata.
    if let Ok(case) = case.parse() {
        request.metadata_mut().insert(CASE_METADATA, case);
    }
    request
}

fn cluster_addresses(service: Service) -> Vec<std::net::IpAddr> {
    let spec = service.spec.unwrap_or_default();
    let all: BTreeSet<String> = spec
        .cluster_ips
        .into_iter()
        .flatten()
        .chain(spec.cluster_ip)
        .collect();
    all.iter()
        .filter_map(|address| address.parse().ok())
        .collect()
}

fn weaknesses(found: Vec<wire::IsolationWeakness>) -> Vec<WeaknessStatus> {
    found
        .into_iter()
        .map(|weakness| {
            let kind = weakness_kind(weakness.kind());
            WeaknessStatus {
                kind,
                open: kind.is_open(),
                detail: cut(weakness.detail),
            }
        })
        .collect()
}

fn weakness_kind(kind: wire::IsolationWeaknessKind) -> WeaknessKind {
    use wire::IsolationWeaknessKind as Kind;
    match kind {
        Kind::Unspecified => WeaknessKind::Unspecified,
        Kind::NetAdmin => WeaknessKind::NetAdmin,
        Kind::NetAdminObtainable => WeaknessKind::NetAdminObtainable,
        Kind::NetRaw => WeaknessKind::NetRaw,
        Kind::NetRawObtainable => WeaknessKind::NetRawObtainable,
        Kind::PacketSocket => WeaknessKind::PacketSocket,
        Kind::Outside => WeaknessKind::Outside,
        Kind::SysAdmin => WeaknessKind::SysAdmin,
        Kind::NotExamined => WeaknessKind::NotExamined,
    }
}

fn outcome(outcome: wire::ProbeOutcome) -> AttemptOutcome {
    use wire::ProbeOutcome as Outcome;
    match outcome {
        Outcome::Connected => AttemptOutcome::Connected,
        Outcome::Refused => AttemptOutcome::Refused,
        Outcome::TimedOut => AttemptOutcome::TimedOut,
        Outcome::Unreachable => AttemptOutcome::Unreachable,
        Outcome::Failed | Outcome::Unspecified => AttemptOutcome::Failed,
    }
}

fn span(
    started: Option<&prost_types::Timestamp>,
    ended: Option<&prost_types::Timestamp>,
) -> Duration {
    let nanos = |time: &prost_types::Timestamp| {
        i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos)
    };
    let span = started
        .zip(ended)
        .map(|(started, ended)| nanos(ended) - nanos(started));
    let span = span.and_then(|span| u64::try_from(span).ok());
    Duration::from_nanos(span.unwrap_or_default())
}

fn instant(time: Option<prost_types::Timestamp>) -> Option<MicroTime> {
    let time = time?;
    Timestamp::new(time.seconds, time.nanos).ok().map(MicroTime)
}

fn cut(text: String) -> String {
    text.chars().take(TEXT).collect()
}
