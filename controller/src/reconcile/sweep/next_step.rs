//! What a sweep does next, out of what is recorded and the time alone.

use std::collections::HashMap;

use k8s_openapi::jiff::Timestamp;

use crate::resources::{
    SweepCounts, SweepException, SweepPhase, SweepSpec, SweepState, SweepStatus, TargetState,
};

/// Exceptions that the message names.
const NAMED: usize = 3;

/// What is to be done with a sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: it is over.
    Rest,
    /// Its list is to be made.
    Expand,
    /// It ends without a list: there is no use for one any more.
    Drop(Hold),
    /// Its list is to be worked off.
    Work,
}

/// Why nothing more is begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// Until it is resumed.
    Paused,
    /// Its time is over.
    Expired,
    /// Nobody wants the rest.
    Cancelled,
}

/// Decides. A sweep that is paused gets its list all the same: it is about the pods of now.
#[must_use]
pub fn next_step(spec: &SweepSpec, status: &SweepStatus, now: Timestamp) -> Step {
    if status.phase.is_final() {
        return Step::Rest;
    }
    if status.expanded.is_some() {
        return Step::Work;
    }
    match hold(spec, now) {
        Some(hold @ (Hold::Expired | Hold::Cancelled)) => Step::Drop(hold),
        Some(Hold::Paused) | None => Step::Expand,
    }
}

/// Why nothing is begun now; none if it is. What was cancelled stays so, and what has expired is not paused any more.
#[must_use]
pub fn hold(spec: &SweepSpec, now: Timestamp) -> Option<Hold> {
    let expired = spec.expires.as_ref().is_some_and(|time| time.0 <= now);
    match spec.state {
        SweepState::Cancelled => Some(Hold::Cancelled),
        _ if expired => Some(Hold::Expired),
        SweepState::Paused => Some(Hold::Paused),
        SweepState::Running => None,
    }
}

/// The places of the targets to begin now, in the order of the list: no more than `at_once` are under way then, and
/// no more than `per_node` on any node. Those on `barred` nodes, and at places that are, are left alone.
pub fn to_begin<'t>(
    targets: impl Iterator<Item = (&'t str, TargetState)> + Clone,
    (at_once, per_node): (u32, u32),
    barred: impl Fn(usize, &str) -> bool,
) -> Vec<usize> {
    let mut on_node: HashMap<&str, u32> = HashMap::new();
    let mut room = at_once;
    for (node, _) in targets
        .clone()
        .filter(|(_, state)| *state == TargetState::Running)
    {
        room = room.saturating_sub(1);
        *on_node.entry(node).or_default() += 1;
    }
    let mut chosen = Vec::new();
    for (place, (node, state)) in targets.enumerate() {
        if room == 0 {
            break;
        }
        if state != TargetState::Waiting || barred(place, node) {
            continue;
        }
        let here = on_node.entry(node).or_default();
        // Pods on no node take nobody's turn.
        if *here < per_node || node.is_empty() {
            *here += 1;
            room -= 1;
            chosen.push(place);
        }
    }
    chosen
}

/// The phase of a sweep with a list.
#[must_use]
pub fn phase(counts: SweepCounts, hold: Option<Hold>) -> SweepPhase {
    let SweepCounts {
        waiting,
        running,
        sealed,
        partial,
        failed,
        absent,
        expired,
        cancelled,
    } = counts;
    if waiting + running > 0 {
        return match hold {
            Some(Hold::Paused) => SweepPhase::Paused,
            _ => SweepPhase::Running,
        };
    }
    if cancelled > 0 {
        SweepPhase::Cancelled
    } else if sealed > 0 && partial + failed + absent + expired == 0 {
        SweepPhase::Complete
    } else {
        SweepPhase::Partial
    }
}

/// What has become of a sweep, in one line: how many of all are sealed first, then whatever else there is.
#[must_use]
pub fn words(
    phase: SweepPhase,
    counts: SweepCounts,
    exceptions: &[SweepException],
    more: u32,
) -> String {
    let all = counts.waiting
        + counts.running
        + counts.sealed
        + counts.partial
        + counts.failed
        + counts.absent
        + counts.expired
        + counts.cancelled;
    let mut text = match phase {
        SweepPhase::Complete => format!("all {all} sealed and complete"),
        SweepPhase::Partial => format!("Partial: {} of {all} sealed", counts.sealed),
        _ => format!("{} of {all} sealed", counts.sealed),
    };
    for (count, what) in [
        (counts.running, "under way"),
        (counts.waiting, "waiting"),
        (counts.partial, "sealed with something missing"),
        (counts.failed, "failed"),
        (counts.absent, "gone before they could be collected"),
        (counts.expired, "not begun before it expired"),
        (counts.cancelled, "not begun before it was cancelled"),
    ] {
        if count > 0 {
            text.push_str(&format!(", {count} {what}"));
        }
    }
    let of_interest =
        |one: &&SweepException| !matches!(one.state, TargetState::Expired | TargetState::Cancelled);
    let named: Vec<_> = exceptions
        .iter()
        .filter(of_interest)
        .take(NAMED)
        .map(|one| format!("{}/{}: {}", one.namespace, one.pod, one.message))
        .collect();
    if !named.is_empty() {
        text.push_str(": ");
        text.push_str(&named.join("; "));
    }
    let rest = exceptions.iter().filter(of_interest).count() - named.len();
    if rest > 0 || (more > 0 && !named.is_empty()) {
        text.push_str("; and more");
    }
    text
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::SignedDuration;

    use super::*;
    use crate::resources::now;

    fn spec(state: SweepState, expires: Option<Timestamp>) -> SweepSpec {
        SweepSpec {
            state,
            expires: expires.map(Time),
            ..SweepSpec::default()
        }
    }

    #[test]
    fn a_list_is_made_once_and_also_for_a_sweep_that_is_paused() {
        let at = Timestamp::now();
        let new = SweepStatus::default();
        let listed = SweepStatus {
            expanded: Some(now()),
            ..SweepStatus::default()
        };
        for state in [SweepState::Running, SweepState::Paused] {
            assert_eq!(next_step(&spec(state, None), &new, at), Step::Expand);
            assert_eq!(next_step(&spec(state, None), &listed, at), Step::Work);
        }
    }

    #[test]
    fn what_is_cancelled_or_expired_needs_no_list_and_with_one_is_worked_to_its_end() {
        let at = Timestamp::now();
        let past = Some(at - SignedDuration::from_secs(1));
        let new = SweepStatus::default();
        let listed = SweepStatus {
            expanded: Some(now()),
            ..SweepStatus::default()
        };
        for (spec, hold) in [
            (spec(SweepState::Cancelled, None), Hold::Cancelled),
            (spec(SweepState::Cancelled, past), Hold::Cancelled),
            (spec(SweepState::Running, past), Hold::Expired),
            (spec(SweepState::Paused, past), Hold::Expired),
        ] {
            assert_eq!(next_step(&spec, &new, at), Step::Drop(hold));
            assert_eq!(next_step(&spec, &listed, at), Step::Work);
        }
    }

    #[test]
    fn what_is_over_rests_whatever_is_wished() {
        for phase in [
            SweepPhase::Complete,
            SweepPhase::Partial,
            SweepPhase::Cancelled,
            SweepPhase::Refused,
        ] {
            let status = SweepStatus {
                phase,
                ..SweepStatus::default()
            };
            let spec = spec(SweepState::Running, None);
            assert_eq!(next_step(&spec, &status, Timestamp::now()), Step::Rest);
        }
    }

    #[test]
    fn no_more_are_begun_than_the_bounds_allow_in_the_order_of_the_list() {
        use TargetState::{Running, Sealed, Waiting};
        let targets = [
            ("a", Running),
            ("a", Waiting),
            ("b", Waiting),
            ("b", Waiting),
            ("c", Sealed),
            ("c", Waiting),
            ("d", Waiting),
        ];
        let begin = |bounds| to_begin(targets.into_iter(), bounds, |_, _| false);
        assert_eq!(begin((16, 1)), [2, 5, 6]);
        assert_eq!(begin((3, 1)), [2, 5]);
        assert_eq!(begin((16, 2)), [1, 2, 3, 5, 6]);
        assert_eq!(begin((1, 1)), [0_usize; 0]);
        let without_b = to_begin(targets.into_iter(), (16, 1), |_, node| node == "b");
        assert_eq!(
            without_b,
            [5, 6],
            "a node that is left alone holds nobody up"
        );
        let without_2 = to_begin(targets.into_iter(), (16, 1), |place, _| place == 2);
        assert_eq!(without_2, [3, 5, 6], "nor does a target");
    }

    #[test]
    fn an_end_is_complete_only_if_every_target_is() {
        let counts = |sealed, failed, cancelled| SweepCounts {
            sealed,
            failed,
            cancelled,
            ..SweepCounts::default()
        };
        assert_eq!(phase(counts(3, 0, 0), None), SweepPhase::Complete);
        assert_eq!(
            phase(counts(3, 0, 0), Some(Hold::Cancelled)),
            SweepPhase::Complete,
            "it came too late"
        );
        assert_eq!(phase(counts(3, 1, 0), None), SweepPhase::Partial);
        assert_eq!(phase(counts(0, 0, 3), None), SweepPhase::Cancelled);
        let under_way = SweepCounts {
            running: 1,
            cancelled: 9,
            ..SweepCounts::default()
        };
        assert_eq!(phase(under_way, Some(Hold::Cancelled)), SweepPhase::Running);
        assert_eq!(phase(under_way, Some(Hold::Paused)), SweepPhase::Paused);
    }

    #[test]
    fn a_partial_end_says_how_many_are_missing_which_and_why() {
        let counts = SweepCounts {
            sealed: 97,
            failed: 2,
            absent: 1,
            ..SweepCounts::default()
        };
        let exception = SweepException {
            namespace: "shop".into(),
            pod: "web-1".into(),
            node: "worker".into(),
            state: TargetState::Failed,
            message: "no agent".into(),
        };
        let text = words(SweepPhase::Partial, counts, &vec![exception; 2], 1);
        assert_eq!(
            text,
            "Partial: 97 of 100 sealed, 2 failed, 1 gone before they could be collected: shop/web-1: no agent; \
             shop/web-1: no agent; and more"
        );
    }
}
