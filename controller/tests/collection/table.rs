//! The isolation of a pod as the agent of `agent.rs` has it: one table, set or not. What is tried connects
//! as long as it is not set.

use std::time::SystemTime;

use super::State;
use impound_proto::agent::v1::*;

/// Where the pod's own node is reached.
const NODE: &str = "10.0.0.254";
const SANDBOX: &str = "5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a";
const NETNS: u64 = 4_026_532_566;

pub(super) fn isolate(state: &mut State) -> IsolateResponse {
    let installed = !state.isolated;
    state.isolated = true;
    IsolateResponse {
        table: "inet impound".into(),
        sandbox_id: SANDBOX.into(),
        netns_inode: NETNS,
        installed,
        since: Some(SystemTime::now().into()),
        node_addresses: vec![NODE.into()],
        ..Default::default()
    }
}

pub(super) fn inspect(state: &State) -> InspectIsolationResponse {
    InspectIsolationResponse {
        isolated: state.isolated,
        present: state.isolated,
        sandbox_id: SANDBOX.into(),
        netns_inode: NETNS,
        since: Some(SystemTime::now().into()),
        node_addresses: vec![NODE.into()],
        ..Default::default()
    }
}

pub(super) fn lift(state: &mut State) -> LiftIsolationResponse {
    let removed = std::mem::take(&mut state.isolated);
    LiftIsolationResponse { removed }
}

pub(super) fn probe(state: &State, request: ProbeIsolationRequest) -> ProbeIsolationResponse {
    let outcome = if state.isolated {
        ProbeOutcome::TimedOut
    } else {
        ProbeOutcome::Connected
    };
    let node = ProbeTarget {
        address: NODE.into(),
        port: request.node_port,
    };
    let out = request.from_pod.into_iter().chain([node]);
    let out = out.map(|target| (true, target));
    let into = request.from_node.into_iter().map(|target| (false, target));
    let now = SystemTime::now();
    ProbeIsolationResponse {
        results: out
            .chain(into)
            .map(|(from_pod, target)| ProbeResult {
                from_pod,
                target: Some(target),
                outcome: outcome.into(),
                elapsed_ms: 1,
                ..Default::default()
            })
            .collect(),
        sandbox_id: SANDBOX.into(),
        netns_inode: NETNS,
        started: Some(now.into()),
        finished: Some((now + std::time::Duration::from_millis(1)).into()),
    }
}
