//! Isolation of a pod at the node, as gRPC: requests are parsed, results put into messages.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime};

use impound_proto::ISOLATION_OFF;
use impound_proto::agent::v1::{
    self as proto, AllowDirection, AllowProtocol, AllowRule, InspectIsolationRequest,
    InspectIsolationResponse, IsolateRequest, IsolateResponse, IsolationWeakness,
    IsolationWeaknessKind, LiftIsolationRequest, LiftIsolationResponse, PodSelector,
    ProbeIsolationRequest, ProbeIsolationResponse, ProbeOutcome, ProbeResult, ProbeTarget,
    TrafficCount,
};
use tonic::Status;

use super::{Shared, status};
use crate::isolate::Isolation;
use crate::isolate::allow::{Allow, Direction, Protocol};
use crate::isolate::node_access::NodeAccess;
use crate::isolate::probe::{Attempt, Outcome};
use crate::isolate::record::{Holder, Label, Record};
use crate::isolate::rules::Exceptions;
use crate::isolate::sandbox::Pod;
use crate::isolate::weakness::{Kind, Weakness};

/// Exceptions of one isolation. Each is two rules; a case needs a few.
const ALLOWED: usize = 64;

/// Targets of one probe in each direction: enough to compare, too few to scan a network.
const TARGETS: usize = 16;

/// Addresses and probed ports of one pod.
const ADDRESSES: usize = 8;
const PORTS: usize = 16;

/// What an attempt may take, ms. The default leaves room for one repetition of the first packet.
const TIMEOUT_MS: std::ops::RangeInclusive<u32> = 100..=10_000;
const DEFAULT_TIMEOUT_MS: u32 = 2_000;

impl Shared {
    pub(super) async fn isolate(&self, request: IsolateRequest) -> Result<IsolateResponse, Status> {
        let isolation = self.isolation()?;
        let pod = pod(request.pod)?;
        let holder = holder(&request.case_id, &request.quarantine)?;
        let exceptions = exceptions(request.allow, request.drop_loopback)?;
        let access = node_access(request.node_access)?;
        let done = isolation
            .isolate(&pod, holder, &exceptions, &access)
            .await
            .map_err(|error| status::isolation(&error))?;
        let (since, case_id, quarantine) = record(done.record);
        Ok(IsolateResponse {
            table: "inet impound".to_owned(),
            sandbox_id: done.place.sandbox,
            netns_inode: done.place.netns_inode,
            installed: done.installed,
            replaced: done.replaced,
            since,
            case_id,
            quarantine,
            weaknesses: done.weaknesses.into_iter().map(weakness).collect(),
            node_addresses: texts(&done.node_addresses),
        })
    }

    pub(super) async fn inspect_isolation(
        &self,
        request: InspectIsolationRequest,
    ) -> Result<InspectIsolationResponse, Status> {
        let isolation = self.isolation()?;
        let pod = pod(request.pod)?;
        let exceptions = exceptions(request.allow, request.drop_loopback)?;
        let access = node_access(request.node_access)?;
        let found = isolation
            .inspect(&pod, &exceptions, &access)
            .await
            .map_err(|error| status::isolation(&error))?;
        let (since, case_id, quarantine) = record(found.record);
        let count = |(packets, bytes)| Some(TrafficCount { packets, bytes });
        Ok(InspectIsolationResponse {
            isolated: found.present && found.differences.is_empty(),
            present: found.present,
            differences: found.differences,
            rules: found.rules,
            dropped_in: count(found.dropped.input),
            dropped_out: count(found.dropped.output),
            dropped_forward: count(found.dropped.forward),
            sandbox_id: found.place.sandbox,
            netns_inode: found.place.netns_inode,
            since,
            case_id,
            quarantine,
            weaknesses: found.weaknesses.into_iter().map(weakness).collect(),
            node_addresses: texts(&found.node_addresses),
        })
    }

    pub(super) async fn lift_isolation(
        &self,
        request: LiftIsolationRequest,
    ) -> Result<LiftIsolationResponse, Status> {
        let isolation = self.isolation()?;
        let pod = pod(request.pod)?;
        let holder = holder(&request.case_id, &request.quarantine)?;
        let removed = isolation
            .lift(&pod, &holder, request.force)
            .await
            .map_err(|error| status::isolation(&error))?;
        Ok(LiftIsolationResponse { removed })
    }

    pub(super) async fn probe_isolation(
        &self,
        request: ProbeIsolationRequest,
    ) -> Result<ProbeIsolationResponse, Status> {
        let isolation = self.isolation()?;
        let pod = pod(request.pod)?;
        let from_pod = targets("from_pod", &request.from_pod)?;
        let from_node = targets("from_node", &request.from_node)?;
        let node_port = match request.node_port {
            0 => None,
            given => Some(port("node_port", given)?),
        };
        if from_pod.is_empty() && from_node.is_empty() {
            return Err(Status::invalid_argument(
                "expected at least one target in from_pod or from_node, found none",
            ));
        }
        let limit = match request.timeout_ms {
            0 => DEFAULT_TIMEOUT_MS,
            given if TIMEOUT_MS.contains(&given) => given,
            given => {
                return Err(Status::invalid_argument(format!(
                    "timeout_ms: expected {} to {}, found {given}",
                    TIMEOUT_MS.start(),
                    TIMEOUT_MS.end()
                )));
            }
        };
        let started = SystemTime::now();
        let limit = Duration::from_millis(limit.into());
        let probed = isolation
            .probe(&pod, &from_pod, &from_node, node_port, limit)
            .await
            .map_err(|error| status::isolation(&error))?;
        let from_pod = probed.from_pod.into_iter().map(|one| result(true, one));
        let from_node = probed.from_node.into_iter().map(|one| result(false, one));
        Ok(ProbeIsolationResponse {
            results: from_pod.chain(from_node).collect(),
            sandbox_id: probed.place.sandbox,
            netns_inode: probed.place.netns_inode,
            started: Some(started.into()),
            finished: Some(SystemTime::now().into()),
        })
    }

    fn isolation(&self) -> Result<&Isolation, Status> {
        self.isolation.as_ref().ok_or_else(|| {
            Status::failed_precondition(format!(
                "{ISOLATION_OFF} on {}: start its agent with --allow-isolation \
                 (IMPOUND_ALLOW_ISOLATION=true), hostPID and the capabilities SYS_ADMIN, NET_ADMIN and \
                 SYS_PTRACE",
                self.node
            ))
        })
    }
}

fn pod(selector: Option<PodSelector>) -> Result<Pod, Status> {
    match selector {
        Some(PodSelector {
            namespace,
            name,
            uid,
        }) if !namespace.is_empty() && !name.is_empty() && !uid.is_empty() => Ok(Pod {
            namespace,
            name,
            uid,
        }),
        _ => Err(Status::invalid_argument(
            "pod: expected namespace, name and uid, one of them is empty",
        )),
    }
}

fn holder(case: &str, quarantine: &str) -> Result<Holder, Status> {
    let label = |field: &str, text: &str| {
        text.parse::<Label>()
            .map_err(|error| Status::invalid_argument(format!("{field}: {error}")))
    };
    Ok(Holder {
        case: label("case_id", case)?,
        quarantine: label("quarantine", quarantine)?,
    })
}

fn exceptions(rules: Vec<AllowRule>, drop_loopback: bool) -> Result<Exceptions, Status> {
    if rules.len() > ALLOWED {
        return Err(Status::invalid_argument(format!(
            "allow: expected at most {ALLOWED} rules, found {}",
            rules.len()
        )));
    }
    let allow = rules
        .into_iter()
        .enumerate()
        .map(|(number, rule)| {
            allow(&rule).map_err(|why| {
                Status::invalid_argument(format!("allow, rule {}: {why}", number + 1))
            })
        })
        .collect::<Result<_, _>>()?;
    Ok(Exceptions {
        allow,
        drop_loopback,
    })
}

fn allow(rule: &AllowRule) -> Result<Allow, String> {
    Ok(Allow {
        direction: match rule.direction() {
            AllowDirection::Egress => Direction::Egress,
            AllowDirection::Ingress => Direction::Ingress,
            AllowDirection::Unspecified => {
                return Err(format!(
                    "direction: expected egress or ingress, found {}",
                    rule.direction
                ));
            }
        },
        protocol: match rule.protocol() {
            AllowProtocol::Tcp => Protocol::Tcp,
            AllowProtocol::Udp => Protocol::Udp,
            AllowProtocol::Unspecified => {
                return Err(format!(
                    "protocol: expected TCP or UDP, found {}",
                    rule.protocol
                ));
            }
        },
        cidr: rule
            .cidr
            .parse()
            .map_err(|error| format!("cidr: {error}"))?,
        port: match rule.port {
            0 => None,
            port => Some(
                u16::try_from(port)
                    .map_err(|_| format!("port: expected 0 to 65535, found {port}"))?,
            ),
        },
    })
}

fn node_access(access: Option<proto::NodeAccess>) -> Result<NodeAccess, Status> {
    let access = access.unwrap_or_default();
    let (addresses, ports) = (access.pod_addresses.len(), access.ports.len());
    if addresses > ADDRESSES || ports > PORTS {
        return Err(Status::invalid_argument(format!(
            "node_access: expected at most {ADDRESSES} addresses and {PORTS} ports, found {addresses} and {ports}"
        )));
    }
    let address = |text: &String| {
        text.parse().map_err(|_| {
            let shown: String = text.chars().take(64).collect();
            Status::invalid_argument(format!(
                "node_access: expected an IP address of the pod, found {shown:?}"
            ))
        })
    };
    Ok(NodeAccess {
        pod_addresses: access
            .pod_addresses
            .iter()
            .map(address)
            .collect::<Result<_, _>>()?,
        ports: access
            .ports
            .iter()
            .map(|given| port("node_access", *given))
            .collect::<Result<_, _>>()?,
    })
}

fn port(field: &str, given: u32) -> Result<u16, Status> {
    u16::try_from(given)
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| {
            Status::invalid_argument(format!(
                "{field}: expected a port from 1 to 65535, found {given}"
            ))
        })
}

fn texts(addresses: &[IpAddr]) -> Vec<String> {
    addresses.iter().map(IpAddr::to_string).collect()
}

fn targets(field: &str, targets: &[ProbeTarget]) -> Result<Vec<SocketAddr>, Status> {
    if targets.len() > TARGETS {
        return Err(Status::invalid_argument(format!(
            "{field}: expected at most {TARGETS} targets, found {}",
            targets.len()
        )));
    }
    targets
        .iter()
        .map(|target| {
            let address: Option<IpAddr> = target.address.parse().ok();
            let port = u16::try_from(target.port).ok().filter(|port| *port != 0);
            address
                .zip(port)
                .map(SocketAddr::from)
                .ok_or_else(|| {
                    let shown: String = target.address.chars().take(64).collect();
                    Status::invalid_argument(format!(
                        "{field}: expected an IP address and a port from 1 to 65535, found {shown:?} and {}",
                        target.port
                    ))
                })
        })
        .collect()
}

fn record(record: Option<Record>) -> (Option<prost_types::Timestamp>, String, String) {
    match record {
        None => (None, String::new(), String::new()),
        Some(record) => (
            Some(record.since.into()),
            record.holder.case.to_string(),
            record.holder.quarantine.to_string(),
        ),
    }
}

fn weakness(weakness: Weakness) -> IsolationWeakness {
    let kind = match weakness.kind {
        Kind::NetAdmin => IsolationWeaknessKind::NetAdmin,
        Kind::NetAdminObtainable => IsolationWeaknessKind::NetAdminObtainable,
        Kind::NetRaw => IsolationWeaknessKind::NetRaw,
        Kind::NetRawObtainable => IsolationWeaknessKind::NetRawObtainable,
        Kind::PacketSocket => IsolationWeaknessKind::PacketSocket,
        Kind::Outside => IsolationWeaknessKind::Outside,
        Kind::SysAdmin => IsolationWeaknessKind::SysAdmin,
        Kind::NotExamined => IsolationWeaknessKind::NotExamined,
    };
    IsolationWeakness {
        kind: kind.into(),
        detail: weakness.detail,
    }
}

fn result(from_pod: bool, attempt: Attempt) -> ProbeResult {
    let outcome = match attempt.outcome {
        Outcome::Connected => ProbeOutcome::Connected,
        Outcome::Refused => ProbeOutcome::Refused,
        Outcome::TimedOut => ProbeOutcome::TimedOut,
        Outcome::Unreachable => ProbeOutcome::Unreachable,
        Outcome::Failed => ProbeOutcome::Failed,
    };
    ProbeResult {
        from_pod,
        target: Some(proto::ProbeTarget {
            address: attempt.target.ip().to_string(),
            port: attempt.target.port().into(),
        }),
        outcome: outcome.into(),
        errno: attempt.errno,
        error: attempt.error,
        elapsed_ms: u32::try_from(attempt.elapsed.as_millis()).unwrap_or(u32::MAX),
    }
}
