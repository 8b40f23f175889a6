//! Isolation in the wire contract: a request's wishes parsed, a quarantine's state as messages.

use impound_proto::controller::v1 as wire;
use tonic::Status;

use super::convert::micro;
use crate::resources::{
    AllowDirection, AllowProtocol, AllowRule, AttemptOrigin, AttemptOutcome, AttemptStatus,
    IsolationSpec, IsolationStatus, TableState,
};

/// Rules of one isolation, as the schema says.
const RULES: usize = 32;

/// What a request wishes.
pub(super) fn spec(isolation: Option<wire::Isolation>) -> Result<IsolationSpec, Status> {
    let isolation = isolation.unwrap_or_default();
    if isolation.allow.len() > RULES {
        return Err(Status::invalid_argument(format!(
            "isolation.allow: expected at most {RULES} rules, found {}",
            isolation.allow.len()
        )));
    }
    Ok(IsolationSpec {
        enabled: isolation.enabled,
        allow: isolation
            .allow
            .into_iter()
            .map(parsed)
            .collect::<Result<_, _>>()?,
        drop_probes: isolation.drop_probes,
        drop_loopback: isolation.drop_loopback,
    })
}

/// What is in force at the node.
pub(super) fn in_force(isolation: &IsolationStatus) -> wire::NodeIsolation {
    wire::NodeIsolation {
        in_force: isolation.state == TableState::InForce,
        problem: isolation.problem.clone(),
        looked: isolation.looked.as_ref().map(micro),
        sandbox_id: isolation.sandbox.clone(),
        netns_inode: isolation.netns_inode,
        since: isolation.since.as_ref().map(micro),
        allow: isolation.allow.iter().map(rule).collect(),
        probe_ports: isolation.probe_ports.clone(),
        node_addresses: isolation.node_addresses.clone(),
        drop_loopback: isolation.drop_loopback,
        weaknesses: isolation
            .weaknesses
            .iter()
            .map(|weakness| weakness.detail.clone())
            .collect(),
        dropped_packets_in: isolation.dropped_in,
        dropped_packets_out: isolation.dropped_out,
    }
}

/// A connection that was tried.
pub(super) fn attempt(attempt: &AttemptStatus) -> wire::ConnectionAttempt {
    let word = |outcome: Option<AttemptOutcome>| {
        outcome.map_or_else(String::new, |outcome| format!("{outcome:?}"))
    };
    wire::ConnectionAttempt {
        from_pod: attempt.from == AttemptOrigin::Pod,
        target: attempt.target.clone(),
        about: attempt.about.clone(),
        before: word(attempt.before),
        after: word(attempt.after),
        permitted: attempt.permitted,
    }
}

fn parsed(rule: wire::AllowRule) -> Result<AllowRule, Status> {
    let wrong = |field: &str, expected: &str, found: &str| {
        let found: String = found.chars().take(64).collect();
        Status::invalid_argument(format!(
            "isolation.allow.{field}: expected {expected}, found {found:?}"
        ))
    };
    Ok(AllowRule {
        direction: match rule.direction.as_str() {
            "Egress" => AllowDirection::Egress,
            "Ingress" => AllowDirection::Ingress,
            other => return Err(wrong("direction", "Egress or Ingress", other)),
        },
        protocol: match rule.protocol.as_str() {
            "TCP" => AllowProtocol::Tcp,
            "UDP" => AllowProtocol::Udp,
            other => return Err(wrong("protocol", "TCP or UDP", other)),
        },
        cidr: rule.cidr,
        port: rule.port,
    })
}

fn rule(rule: &AllowRule) -> wire::AllowRule {
    wire::AllowRule {
        direction: format!("{:?}", rule.direction),
        cidr: rule.cidr.clone(),
        protocol: match rule.protocol {
            AllowProtocol::Tcp => "TCP".into(),
            AllowProtocol::Udp => "UDP".into(),
        },
        port: rule.port,
    }
}
