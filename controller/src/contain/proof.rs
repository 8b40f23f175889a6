//! What the node's table and the connection attempts prove, as facts. Pure.
//!
//! A connection that nobody answered before proves nothing when nobody answers afterwards; one that is
//! let through on request proves nothing either.

use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::Pod;

use super::isolation::{describe, listed, permits};
use super::plan::uses_node_network;
use crate::resources::{
    AllowDirection, AttemptOrigin, AttemptOutcome, AttemptStatus, Fact, FactState, IsolationStatus,
    TableState, WeaknessStatus,
};

/// The table is in the pod's network namespace, exactly as it was set.
pub const NODE_ISOLATED: &str = "NodeIsolated";
/// What the pod could connect to before, it can't any more.
pub const OUTGOING_BLOCKED: &str = "OutgoingBlocked";
/// What could connect to the pod before, can't any more.
pub const INCOMING_BLOCKED: &str = "IncomingBlocked";
/// Nothing in the pod can get past the table or take it away.
pub const NO_WAY_PAST: &str = "NoWayPast";

/// What a missing proof leaves open.
const OPEN: &str = "whether the network plugin enforces the policy, and whether connections that \
                    existed go on, is not known";

/// The facts about the node. `why_not` says why there is no isolation, where there is none.
#[must_use]
pub fn facts(
    pod: &Pod,
    isolation: Option<&IsolationStatus>,
    attempts: &[AttemptStatus],
    why_not: &str,
) -> Vec<Fact> {
    // The facts of the API say all there is to say of it.
    if uses_node_network(pod) {
        return Vec::new();
    }
    let Some(isolation) = isolation else {
        return vec![
            unverified(
                NODE_ISOLATED,
                format!("not isolated at its node: {why_not}"),
            ),
            blocked_by_policy(attempts),
            unverified(
                INCOMING_BLOCKED,
                format!("not tested, since a policy lets a pod's own node in; {OPEN}"),
            ),
        ];
    };
    vec![
        node_isolated(isolation),
        blocked(isolation, attempts, AttemptOrigin::Pod),
        blocked(isolation, attempts, AttemptOrigin::Node),
        no_way_past(&isolation.weaknesses),
    ]
}

/// Whether an attempt before containment tells something also where the node has set no table.
#[must_use]
pub fn tells_without_a_table(attempt: &AttemptStatus) -> bool {
    attempt.from == AttemptOrigin::Pod && !attempt.permitted && answered(attempt.before)
}

/// What attempts out of the pod show of the policy alone, as the network plugin enforces it.
fn blocked_by_policy(attempts: &[AttemptStatus]) -> Fact {
    let out = attempts.iter();
    let out = out.filter(|attempt| attempt.from == AttemptOrigin::Pod && !attempt.permitted);
    let still: Vec<&AttemptStatus> = out.filter(|attempt| answered(attempt.after)).collect();
    let tried = attempts.iter();
    let tried: Vec<&AttemptStatus> = tried
        .filter(|attempt| tells_without_a_table(attempt))
        .collect();
    let all_silent = tried.iter().all(|attempt| is_silence(attempt.after));
    let listed = |attempts: Vec<&AttemptStatus>| {
        let targets: Vec<String> = attempts.into_iter().map(target).collect();
        targets.join(", ")
    };
    if !still.is_empty() {
        Fact {
            name: OUTGOING_BLOCKED.into(),
            state: FactState::False,
            message: format!(
                "out of the pod, {} still answers: the network plugin does not enforce the policy",
                listed(still)
            ),
        }
    } else if !tried.is_empty() && all_silent {
        Fact {
            name: OUTGOING_BLOCKED.into(),
            state: FactState::True,
            message: format!(
                "out of the pod, {} answered before and does not any more",
                listed(tried)
            ),
        }
    } else {
        unverified(OUTGOING_BLOCKED, format!("not tested; {OPEN}"))
    }
}

/// Whether the isolation lets an attempt pass, on request or for a probe.
#[must_use]
pub fn is_permitted(isolation: &IsolationStatus, from: AttemptOrigin, target: SocketAddr) -> bool {
    match from {
        AttemptOrigin::Pod => isolation
            .allow
            .iter()
            .any(|rule| permits(rule, AllowDirection::Egress, target.ip(), target.port())),
        AttemptOrigin::Node => {
            let port = target.port();
            isolation.probe_ports.contains(&u32::from(port))
                || isolation
                    .node_addresses
                    .iter()
                    .filter_map(|address| address.parse::<IpAddr>().ok())
                    .any(|node| {
                        let ingress = AllowDirection::Ingress;
                        let mut rules = isolation.allow.iter();
                        rules.any(|rule| permits(rule, ingress, node, port))
                    })
        }
    }
}

fn node_isolated(isolation: &IsolationStatus) -> Fact {
    let short: String = isolation.sandbox.chars().take(12).collect();
    match isolation.state {
        TableState::InForce => Fact {
            name: NODE_ISOLATED.into(),
            state: FactState::True,
            message: format!(
                "the node's table drops everything in and out in network namespace {} of sandbox {short}{}",
                isolation.netns_inode,
                exceptions(isolation)
            ),
        },
        TableState::Missing => Fact {
            name: NODE_ISOLATED.into(),
            state: FactState::False,
            message: format!("the node's table is not in force: {}", isolation.problem),
        },
        TableState::Unknown => unverified(
            NODE_ISOLATED,
            format!(
                "the node's table was in force when it was last seen; now {}",
                isolation.problem
            ),
        ),
    }
}

/// What passes nevertheless, to be appended to a sentence; empty if nothing does.
#[must_use]
pub fn exceptions(isolation: &IsolationStatus) -> String {
    let mut passes: Vec<String> = isolation.allow.iter().map(describe).collect();
    if !isolation.probe_ports.is_empty() {
        passes.push(format!(
            "TCP from the node itself ({}) to port {}, for the kubelet's probes (connections that the node masquerades, \
             e.g. those that came through a NodePort, look the same and pass as well)",
            isolation.node_addresses.join(", "),
            listed(&isolation.probe_ports)
        ));
    }
    if passes.is_empty() {
        String::new()
    } else {
        format!(", except {}", passes.join("; "))
    }
}

fn blocked(isolation: &IsolationStatus, attempts: &[AttemptStatus], from: AttemptOrigin) -> Fact {
    let (name, way) = match from {
        AttemptOrigin::Pod => (OUTGOING_BLOCKED, "out of the pod"),
        AttemptOrigin::Node => (INCOMING_BLOCKED, "from the node to the pod"),
    };
    if isolation.state != TableState::InForce {
        return unverified(name, format!("no table is known to be in force; {OPEN}"));
    }
    let tried = || {
        attempts
            .iter()
            .filter(|attempt| attempt.from == from && !attempt.permitted)
    };
    let still: Vec<String> = tried()
        .filter(|one| answered(one.after))
        .map(target)
        .collect();
    if !still.is_empty() {
        return Fact {
            name: name.into(),
            state: FactState::False,
            message: format!("{way}, {} still answers", still.join(", ")),
        };
    }
    let before: Vec<&AttemptStatus> = tried().filter(|one| answered(one.before)).collect();
    let unanswered = |one: &&AttemptStatus| is_silence(one.after);
    let targets: Vec<String> = before.iter().copied().map(target).collect();
    if before.is_empty() {
        let why = if tried().any(|one| one.before.is_some()) {
            "nothing that was tried answered before the isolation, so silence afterwards proves nothing"
        } else {
            "nothing was tried before the isolation (the agent did not answer in time, or the controller was restarted), so there is nothing to compare with"
        };
        unverified(name, format!("{way}: {why}"))
    } else if before.iter().all(unanswered) {
        Fact {
            name: name.into(),
            state: FactState::True,
            message: format!(
                "{way}, {} answered before and does not any more",
                targets.join(", ")
            ),
        }
    } else {
        unverified(
            name,
            format!(
                "{way}, {} answered before and could not be tried again",
                targets.join(", ")
            ),
        )
    }
}

fn no_way_past(weaknesses: &[WeaknessStatus]) -> Fact {
    let (open, other): (Vec<_>, Vec<_>) = weaknesses.iter().partition(|weakness| weakness.open);
    let details = |weaknesses: Vec<&WeaknessStatus>| {
        let details: Vec<&str> = weaknesses.iter().map(|one| one.detail.as_str()).collect();
        details.join("; ")
    };
    if !open.is_empty() {
        return Fact {
            name: NO_WAY_PAST.into(),
            state: FactState::False,
            message: format!("the node's table may not hold: {}", details(open)),
        };
    }
    if !other.is_empty() {
        return unverified(
            NO_WAY_PAST,
            format!("the node's table can't rule out: {}", details(other)),
        );
    }
    Fact {
        name: NO_WAY_PAST.into(),
        state: FactState::True,
        message: "no process of the pod could get past the node's table or take it away".into(),
    }
}

/// Whether somebody answered, so traffic flows.
fn answered(outcome: Option<AttemptOutcome>) -> bool {
    matches!(
        outcome,
        Some(AttemptOutcome::Connected | AttemptOutcome::Refused)
    )
}

/// Whether nobody answered, though it was tried.
fn is_silence(outcome: Option<AttemptOutcome>) -> bool {
    matches!(
        outcome,
        Some(AttemptOutcome::TimedOut | AttemptOutcome::Unreachable)
    )
}

fn target(attempt: &AttemptStatus) -> String {
    format!("{} ({})", attempt.target, attempt.about)
}

fn unverified(name: &str, message: String) -> Fact {
    Fact {
        name: name.into(),
        state: FactState::Unverified,
        message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn isolation() -> IsolationStatus {
        IsolationStatus {
            state: TableState::InForce,
            probe_ports: vec![80],
            node_addresses: vec!["172.17.0.1".into()],
            ..Default::default()
        }
    }

    fn attempt(
        from: AttemptOrigin,
        before: Option<AttemptOutcome>,
        after: Option<AttemptOutcome>,
    ) -> AttemptStatus {
        AttemptStatus {
            from,
            target: "10.0.0.1:443".into(),
            about: "the Kubernetes API".into(),
            before,
            after,
            permitted: false,
        }
    }

    fn outgoing(isolation: &IsolationStatus, attempts: &[AttemptStatus]) -> FactState {
        let facts = facts(&Pod::default(), Some(isolation), attempts, "");
        facts
            .iter()
            .find(|fact| fact.name == OUTGOING_BLOCKED)
            .unwrap()
            .state
    }

    #[test]
    fn only_what_answered_before_and_is_silent_now_proves_that_traffic_is_blocked() {
        use AttemptOutcome::{Connected, Failed, Refused, TimedOut};
        let cases = [
            (Some(Connected), Some(TimedOut), FactState::True),
            (Some(Refused), Some(TimedOut), FactState::True),
            (Some(TimedOut), Some(TimedOut), FactState::Unverified),
            (None, Some(TimedOut), FactState::Unverified),
            (Some(Connected), Some(Failed), FactState::Unverified),
            (Some(Connected), None, FactState::Unverified),
            (Some(Connected), Some(Connected), FactState::False),
            (None, Some(Refused), FactState::False),
        ];
        for (before, after, expected) in cases {
            let tried = [attempt(AttemptOrigin::Pod, before, after)];
            assert_eq!(
                outgoing(&isolation(), &tried),
                expected,
                "{before:?} {after:?}"
            );
        }
        assert_eq!(outgoing(&isolation(), &[]), FactState::Unverified);
    }

    #[test]
    fn without_a_table_attempts_out_of_the_pod_show_whether_the_policy_is_enforced() {
        use AttemptOutcome::{Connected, TimedOut};
        let cases = [
            (Some(Connected), Some(TimedOut), FactState::True),
            (Some(Connected), Some(Connected), FactState::False),
            (None, Some(Connected), FactState::False),
            (Some(Connected), None, FactState::Unverified),
            (Some(TimedOut), Some(TimedOut), FactState::Unverified),
        ];
        let found = |attempt: AttemptStatus| {
            let facts = facts(&Pod::default(), None, &[attempt], "no agent");
            let of = |name| facts.iter().find(|fact| fact.name == name).unwrap().state;
            assert_eq!(of(NODE_ISOLATED), FactState::Unverified);
            assert_eq!(of(INCOMING_BLOCKED), FactState::Unverified);
            of(OUTGOING_BLOCKED)
        };
        for (before, after, expected) in cases {
            let out = attempt(AttemptOrigin::Pod, before, after);
            assert_eq!(found(out.clone()), expected, "{before:?} {after:?}");
            // The pod's own node may always be reached, and reach the pod.
            let own_node = AttemptStatus {
                permitted: true,
                ..out
            };
            assert_eq!(found(own_node), FactState::Unverified);
            let into = attempt(AttemptOrigin::Node, before, after);
            assert_eq!(found(into), FactState::Unverified);
        }
    }

    #[test]
    fn what_may_pass_is_no_proof_in_either_direction() {
        let mut passes = attempt(
            AttemptOrigin::Pod,
            Some(AttemptOutcome::Connected),
            Some(AttemptOutcome::Connected),
        );
        passes.permitted = true;
        assert_eq!(outgoing(&isolation(), &[passes]), FactState::Unverified);
        let node = |port| SocketAddr::new("10.1.2.3".parse().unwrap(), port);
        assert!(is_permitted(&isolation(), AttemptOrigin::Node, node(80)));
        assert!(!is_permitted(&isolation(), AttemptOrigin::Node, node(1)));
    }

    #[test]
    fn a_table_that_is_not_seen_now_proves_nothing() {
        use AttemptOutcome::{Connected, TimedOut};
        let tried = [attempt(AttemptOrigin::Pod, Some(Connected), Some(TimedOut))];
        for state in [TableState::Missing, TableState::Unknown] {
            let isolation = IsolationStatus {
                state,
                ..isolation()
            };
            assert_eq!(outgoing(&isolation, &tried), FactState::Unverified);
        }
    }
}
