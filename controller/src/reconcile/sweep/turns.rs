//! Whose turn it is, within the sweep's bounds; and which nodes are given up.

use std::collections::HashSet;

use super::look;
use super::memory::{Place, Target, Work};
use super::next_step::to_begin;
use crate::reconcile::Context;
use crate::resources::{Sweep, TargetState};

/// Who is to be looked at. Silent nodes are tried again besides, and take up no place.
pub(super) fn chosen(sweep: &Sweep, work: &Work) -> Vec<Target> {
    let (places, nodes) = work.looks.held();
    let mut chosen = turns(sweep, work, |place, node| {
        work.silent.contains_key(node)
            || nodes.contains(node)
            || places.contains(place)
            || work.is_barred(place)
    });
    chosen.truncate(look::MOST.saturating_sub(work.looks.len()));
    chosen
}

/// Whose turn it is within the sweep's bounds, of those that are not `barred`.
pub(super) fn turns(
    sweep: &Sweep,
    work: &Work,
    barred: impl Fn(&Place, &str) -> bool,
) -> Vec<Target> {
    let states = work.states();
    let places: Vec<_> = states.clone().map(|(place, ..)| place).collect();
    let barred = |at: usize, node: &str| places.get(at).is_some_and(|place| barred(place, node));
    let targets = states.map(|(_, target, status)| (&*target.node, status.state));
    let chosen = to_begin(targets, (sweep.spec.at_once, sweep.spec.per_node), barred);
    let chosen: Vec<_> = chosen
        .into_iter()
        .filter_map(|at| places.get(at).copied())
        .collect();
    work.targets(&chosen)
}

/// Nodes whose agents don't answer are tried as long as there is other work, and at least for as long as a
/// collection waits for its agent.
pub(super) fn give_up_silent_nodes(work: &mut Work, context: &Context) {
    let patience = context.agent_patience();
    let waiting = work.of(TargetState::Waiting);
    work.silent
        .retain(|node, _| waiting.iter().any(|target| target.pod.node == *node));
    let places: HashSet<_> = waiting.iter().map(|target| target.place).collect();
    work.refused.retain(|place, _| places.contains(place));
    let given_up = |target: &Target| {
        let node = &target.pod.node;
        let why = work.given_up(node, patience)?;
        let seconds = patience.as_secs();
        Some(format!(
            "no agent answered on node {node} for {seconds} s: {why}"
        ))
    };
    let (counts, ..) = work.summary();
    let silent = |target: &Target| work.silent.contains_key(&target.pod.node);
    if counts.running > 0 || !waiting.iter().all(silent) {
        return;
    }
    let ended: Vec<_> = waiting
        .iter()
        .filter(|target| !work.uncertain.contains(&target.place))
        .filter_map(|target| Some((target.place, given_up(target)?)))
        .collect();
    for (place, why) in ended {
        work.set(place, TargetState::Failed, &why, 0);
    }
}
