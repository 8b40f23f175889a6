//! Decides what a quarantine needs next, from nothing but what is recorded. Pure.

use crate::contain::facts::{NO_POLICY_ALLOWS, TRAFFIC_BLOCKED, is_gone};
use crate::contain::plugin::facts::NO_PLUGIN_POLICY_ALLOWS;
use crate::contain::proof::{INCOMING_BLOCKED, NO_WAY_PAST, NODE_ISOLATED, OUTGOING_BLOCKED};
use crate::resources::{
    CollectionPhase, CollectionStatus, FactState, QuarantinePhase, QuarantineSpec,
    QuarantineStatus, StepName, StepState, StepStatus, Undo, Verdict, WeaknessKind,
};

/// Steps that contain the pod, in their safe order: the node takes no new pods before the
/// replacement is made, and every policy is as it must be before the label that it selects. What the
/// network plugin's own policies add never keeps the strip waiting.
pub const CONTAINMENT: [StepName; 7] = [
    StepName::Cordon,
    StepName::Protect,
    StepName::Policy,
    StepName::Exclude,
    StepName::Strip,
    StepName::Deny,
    StepName::LabelNode,
];

/// Steps of a release: containment in reverse.
pub const RELEASE: [StepName; 8] = [
    StepName::UndoIsolate,
    StepName::UndoLabelNode,
    StepName::UndoDeny,
    StepName::UndoStrip,
    StepName::UndoExclude,
    StepName::UndoPolicy,
    StepName::UndoProtect,
    StepName::UndoCordon,
];

/// Attempts after which the policy or the strip keeps nothing else waiting than the evictions: isolation at the
/// node and the evidence are needed all the more.
pub const BLOCKED_AFTER: u32 = 3;

/// Attempts, half a minute in all, after which a quarantine whose policy or strip is still
/// refused is called failed. They go on being tried.
const CALLED_FAILED_AFTER: u32 = 7;

/// What a quarantine needs next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Observe and plan; nothing was changed yet.
    Plan,
    /// Carry out a containment step.
    Contain(StepName),
    /// Have the node's agent isolate the pod.
    Isolate,
    /// Check the facts.
    Verify,
    /// Begin to try again what connected before the isolation.
    Prove,
    /// Wait until that has been tried, which takes over a second and keeps nothing else waiting.
    AwaitProof,
    /// Have the neighbours' quick inspect and diff taken, as first part of the collection.
    Neighbours,
    /// Work on the evictions.
    Evict,
    /// Take over how the collection ended.
    Collect,
    /// Wait until the collection changes.
    AwaitCollection,
    /// Wait until the step that is refused again and again succeeds.
    AwaitContainment,
    /// Everything else has ended; a collection of what a container was restarted to has not.
    AwaitLater,
    /// Everything is done or has failed: say which.
    Finish,
    /// Carry out a release step.
    Undo(StepName),
    /// Every release step ended.
    FinishRelease,
    /// A release is asked for but refused in the present state.
    RefuseRelease,
    /// Nothing to do until somebody changes the object.
    Rest,
}

/// The next step of a quarantine; `collection` is the status of its Collection, if it exists.
#[must_use]
pub fn next(
    spec: &QuarantineSpec,
    status: &QuarantineStatus,
    collection: Option<&CollectionStatus>,
) -> Next {
    use QuarantinePhase as Phase;
    if matches!(status.phase, Phase::Refused | Phase::Released) {
        return Next::Rest;
    }
    if status.phase == Phase::Releasing || (release_is_due(spec, status, collection)) {
        return RELEASE
            .into_iter()
            .find(|step| is_wanted(status, *step) && !ended(status, *step))
            .map_or(Next::FinishRelease, Next::Undo);
    }
    let work = work(spec, status, collection);
    if spec.release.is_some() && matches!(work, Next::Rest) {
        return Next::RefuseRelease;
    }
    work
}

/// Whether evidence is safe enough for a release: sealed and complete, all of it, or not wanted at all.
#[must_use]
pub fn evidence_is_safe(
    spec: &QuarantineSpec,
    status: &QuarantineStatus,
    collection: Option<&CollectionStatus>,
) -> bool {
    let sealed = Some(CollectionPhase::Sealed);
    let mut later = status.later_collections.iter();
    spec.skip_collection
        || (collection.map(|collection| collection.phase) == sealed
            && later.all(|later| later.phase == sealed))
}

/// Whether the facts say that the pod is contained.
/// A fact that could not be checked is no proof, and one that is seen to be untrue counts against it.
/// A policy that still allows traffic matters no more where the node is proved to drop it. A pod that is
/// not changed is contained by its node's table, or not at all.
#[must_use]
pub fn is_contained(status: &QuarantineStatus) -> bool {
    let is = |name: &&str, state| {
        let mut facts = status.facts.iter();
        facts.any(|fact| fact.name == *name && fact.state == state)
    };
    let flows = [TRAFFIC_BLOCKED, OUTGOING_BLOCKED, INCOMING_BLOCKED];
    if flows.iter().any(|name| is(name, FactState::False)) {
        return false;
    }
    let allowing = [NO_POLICY_ALLOWS, NO_PLUGIN_POLICY_ALLOWS];
    if allowing.iter().any(|name| is(name, FactState::False)) && !is_proved_at_node(status) {
        return false;
    }
    let untouched = |undo: &Undo| undo.untouched.is_some();
    if status.undo.as_ref().is_some_and(untouched) {
        return is(&NODE_ISOLATED, FactState::True) && !is(&NO_WAY_PAST, FactState::False);
    }
    let needed = [
        "Labelled",
        "OwnerReleased",
        "NoEndpoints",
        "PolicySelectsPod",
    ];
    needed.iter().all(|name| is(name, FactState::True))
}

/// What the facts add up to; `None` as long as none is known, and of a pod that is gone.
#[must_use]
pub fn verdict(status: &QuarantineStatus) -> Option<Verdict> {
    if status.facts.is_empty() || is_gone(&status.facts) {
        return None;
    }
    Some(match (is_contained(status), is_proved_at_node(status)) {
        (false, _) => Verdict::NotContained,
        (true, false) => Verdict::Contained,
        (true, true) => Verdict::Isolated,
    })
}

/// The table is in force, what connected before does not, and nothing in the pod is seen that gets past.
fn is_proved_at_node(status: &QuarantineStatus) -> bool {
    let is = |name: &str, state| {
        let mut facts = status.facts.iter();
        facts.any(|fact| fact.name == name && fact.state == state)
    };
    [NODE_ISOLATED, OUTGOING_BLOCKED, INCOMING_BLOCKED]
        .iter()
        .all(|name| is(name, FactState::True))
        && !is(NO_WAY_PAST, FactState::False)
        && !may_send_raw(status)
}

/// A process holds CAP_NET_RAW, as Docker gives it to every root container: it can open a packet socket at
/// any moment, whose frames come past the table. Nothing is wrong with it, and nothing is proved.
fn may_send_raw(status: &QuarantineStatus) -> bool {
    let isolation = status.isolation.iter();
    isolation
        .flat_map(|isolation| &isolation.weaknesses)
        .any(|weakness| weakness.kind == WeaknessKind::NetRaw)
}

fn release_is_due(
    spec: &QuarantineSpec,
    status: &QuarantineStatus,
    collection: Option<&CollectionStatus>,
) -> bool {
    spec.release.as_ref().is_some_and(|release| {
        // Before the plan is stored nothing is changed, so there is nothing to undo.
        status.undo.is_some() && (release.force || evidence_is_safe(spec, status, collection))
    })
}

fn work(
    spec: &QuarantineSpec,
    status: &QuarantineStatus,
    collection: Option<&CollectionStatus>,
) -> Next {
    if status.undo.is_none() {
        return Next::Plan;
    }
    let blocked = blocked(status);
    if let Some(step) = unended(status).filter(|_| blocked.is_none()) {
        return Next::Contain(step);
    }
    // An agent that does not answer keeps nobody waiting: what failed once is tried again later.
    if matches!(
        state(status, StepName::Isolate),
        None | Some(StepState::Running)
    ) {
        return Next::Isolate;
    }
    if !ended(status, StepName::Verify) {
        return Next::Verify;
    }
    // The collection begins before anything is waited for.
    if state(status, StepName::Neighbours).is_none() {
        return Next::Neighbours;
    }
    if !ended(status, StepName::Isolate) {
        return Next::Isolate;
    }
    if state(status, StepName::Prove).is_none() {
        return Next::Prove;
    }
    if !ended(status, StepName::Neighbours) {
        return Next::Neighbours;
    }
    if !ended(status, StepName::Collect)
        && (spec.skip_collection
            || collection.is_some_and(|collection| collection.phase.is_final()))
    {
        return Next::Collect;
    }
    // Neighbours are only moved away from a pod that its steps have contained.
    if !ended(status, StepName::Evict) && blocked.is_none() {
        return Next::Evict;
    }
    if !ended(status, StepName::Collect) {
        return Next::AwaitCollection;
    }
    if !ended(status, StepName::Prove) {
        return Next::AwaitProof;
    }
    if blocked.is_some_and(|step| step.attempts < CALLED_FAILED_AFTER) {
        return Next::AwaitContainment;
    }
    if state(status, StepName::CollectAgain).is_some_and(|state| !state.is_final()) {
        return Next::AwaitLater;
    }
    if !status.phase.is_final() {
        return Next::Finish;
    }
    Next::Rest
}

/// The policy or the strip, if it was refused so often that nothing but the evictions waits for it any more. The
/// other steps that contain are given up instead.
#[must_use]
pub fn blocked(status: &QuarantineStatus) -> Option<&StepStatus> {
    let step = unended(status)?;
    let mut recorded = status.steps.iter();
    recorded.find(|recorded| {
        recorded.name == step
            && matches!(step, StepName::Policy | StepName::Strip)
            && recorded.state == StepState::Waiting
            && recorded.attempts >= BLOCKED_AFTER
    })
}

/// The first step that contains and has not ended.
fn unended(status: &QuarantineStatus) -> Option<StepName> {
    let mut steps = CONTAINMENT.into_iter();
    steps.find(|step| is_wanted(status, *step) && !ended(status, *step))
}

/// Steps about which the plan says nothing don't exist for this quarantine.
#[must_use]
pub fn is_wanted(status: &QuarantineStatus, step: StepName) -> bool {
    let undo = status.undo.as_ref();
    let untouched = undo.is_some_and(|undo| undo.untouched.is_some());
    match step {
        StepName::Protect
        | StepName::Policy
        | StepName::Strip
        | StepName::UndoStrip
        | StepName::UndoPolicy
        | StepName::UndoProtect
            if untouched =>
        {
            false
        }
        StepName::Exclude | StepName::UndoExclude => {
            undo.is_some_and(|undo| !undo.policies.is_empty())
        }
        StepName::Deny | StepName::UndoDeny => undo.is_some_and(|undo| !undo.denies.is_empty()),
        _ => true,
    }
}

/// Whether a step is done, failed or skipped.
#[must_use]
pub fn ended(status: &QuarantineStatus, step: StepName) -> bool {
    state(status, step).is_some_and(StepState::is_final)
}

/// How a step stands, `None` if it was not begun.
#[must_use]
pub fn state(status: &QuarantineStatus, step: StepName) -> Option<StepState> {
    status
        .steps
        .iter()
        .find(|recorded| recorded.name == step)
        .map(|recorded| recorded.state)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::{DenyUndo, Fact, LaterCollection, PolicyUndo, ReleaseSpec};

    /// A quarantine whose plan has every step.
    fn status(done: &[StepName]) -> QuarantineStatus {
        let undo = Undo {
            policies: vec![PolicyUndo::default()],
            denies: vec![DenyUndo::default()],
            ..Undo::default()
        };
        QuarantineStatus {
            undo: Some(undo),
            steps: done
                .iter()
                .map(|name| step(*name, StepState::Done))
                .collect(),
            ..QuarantineStatus::default()
        }
    }

    fn step(name: StepName, state: StepState) -> StepStatus {
        StepStatus {
            name,
            state,
            message: String::new(),
            started: None,
            finished: None,
            attempts: 1,
            intended: Vec::new(),
        }
    }

    fn sealed() -> CollectionStatus {
        CollectionStatus {
            phase: CollectionPhase::Sealed,
            quick_done: true,
            ..Default::default()
        }
    }

    #[test]
    fn nothing_is_changed_before_the_plan_is_recorded() {
        assert_eq!(
            next(
                &QuarantineSpec::default(),
                &QuarantineStatus::default(),
                None
            ),
            Next::Plan
        );
    }

    #[test]
    fn the_steps_come_in_the_safe_order() {
        let spec = QuarantineSpec::default();
        let mut done = Vec::new();
        for expected in CONTAINMENT {
            assert_eq!(next(&spec, &status(&done), None), Next::Contain(expected));
            done.push(expected);
        }
        assert_eq!(next(&spec, &status(&done), None), Next::Isolate);
        done.push(StepName::Isolate);
        assert_eq!(next(&spec, &status(&done), None), Next::Verify);
        done.push(StepName::Verify);
        assert_eq!(next(&spec, &status(&done), None), Next::Neighbours);
        done.push(StepName::Neighbours);
        assert_eq!(next(&spec, &status(&done), None), Next::Prove);
        done.push(StepName::Prove);
        assert_eq!(next(&spec, &status(&done), None), Next::Evict);
        done.push(StepName::Evict);
        assert_eq!(next(&spec, &status(&done), None), Next::AwaitCollection);
        assert_eq!(next(&spec, &status(&done), Some(&sealed())), Next::Collect);
        done.push(StepName::Collect);
        assert_eq!(next(&spec, &status(&done), Some(&sealed())), Next::Finish);
    }

    #[test]
    fn steps_of_which_the_plan_says_nothing_do_not_exist() {
        let mut status = status(&[StepName::Cordon, StepName::Protect, StepName::Policy]);
        status.undo = Some(Undo::default());
        let spec = QuarantineSpec::default();
        assert_eq!(next(&spec, &status, None), Next::Contain(StepName::Strip));
        status.steps.push(step(StepName::Strip, StepState::Done));
        assert_eq!(
            next(&spec, &status, None),
            Next::Contain(StepName::LabelNode)
        );
    }

    #[test]
    fn a_failed_helper_step_does_not_keep_the_pod_uncontained() {
        let mut status = status(&[]);
        status.steps.push(step(StepName::Cordon, StepState::Failed));
        assert_eq!(
            next(&QuarantineSpec::default(), &status, None),
            Next::Contain(StepName::Protect)
        );
    }

    #[test]
    fn a_blocked_eviction_never_delays_the_end_of_the_collection() {
        let mut status = status(&CONTAINMENT);
        for name in [
            StepName::Isolate,
            StepName::Verify,
            StepName::Prove,
            StepName::Neighbours,
        ] {
            status.steps.push(step(name, StepState::Done));
        }
        status.steps.push(step(StepName::Evict, StepState::Waiting));
        assert_eq!(
            next(&QuarantineSpec::default(), &status, Some(&sealed())),
            Next::Collect
        );
    }

    #[test]
    fn a_proof_that_takes_its_time_delays_nothing_but_the_end() {
        let spec = QuarantineSpec::default();
        let mut status = status(&CONTAINMENT);
        for name in [StepName::Isolate, StepName::Verify] {
            status.steps.push(step(name, StepState::Done));
        }
        status
            .steps
            .push(step(StepName::Neighbours, StepState::Waiting));
        assert_eq!(next(&spec, &status, None), Next::Prove);
        status.steps.push(step(StepName::Prove, StepState::Running));
        assert_eq!(next(&spec, &status, None), Next::Neighbours);
        status.steps.push(step(StepName::Evict, StepState::Waiting));
        let neighbours = |step: &&mut StepStatus| step.name == StepName::Neighbours;
        let waited = status.steps.iter_mut().find(neighbours);
        waited.unwrap().state = StepState::Done;
        assert_eq!(next(&spec, &status, None), Next::Evict);
        assert_eq!(next(&spec, &status, Some(&sealed())), Next::Collect);
        let evicted = |step: &&mut StepStatus| step.name == StepName::Evict;
        let waited = status.steps.iter_mut().find(evicted);
        waited.unwrap().state = StepState::Done;
        assert_eq!(next(&spec, &status, None), Next::AwaitCollection);
        status.steps.push(step(StepName::Collect, StepState::Done));
        assert_eq!(next(&spec, &status, None), Next::AwaitProof);
    }

    #[test]
    fn a_refused_policy_or_strip_keeps_nothing_waiting_but_the_evictions() {
        let spec = QuarantineSpec::default();
        for refused in [StepName::Policy, StepName::Strip] {
            let before = CONTAINMENT.iter().take_while(|step| **step != refused);
            let before: Vec<StepName> = before.copied().collect();
            let mut status = status(&before);
            let mut waiting = step(refused, StepState::Waiting);
            waiting.attempts = BLOCKED_AFTER - 1;
            status.steps.push(waiting);
            assert_eq!(next(&spec, &status, None), Next::Contain(refused));
            status.steps.last_mut().unwrap().attempts = BLOCKED_AFTER;
            for (ended, expected) in [
                (StepName::Isolate, Next::Isolate),
                (StepName::Verify, Next::Verify),
                (StepName::Neighbours, Next::Neighbours),
                (StepName::Prove, Next::Prove),
            ] {
                assert_eq!(next(&spec, &status, None), expected);
                status.steps.push(step(ended, StepState::Done));
            }
            assert_eq!(next(&spec, &status, None), Next::AwaitCollection);
            assert_eq!(next(&spec, &status, Some(&sealed())), Next::Collect);
            status.steps.push(step(StepName::Collect, StepState::Done));
            assert_eq!(next(&spec, &status, None), Next::AwaitContainment);
            let position = before.len();
            status.steps[position].attempts = CALLED_FAILED_AFTER;
            assert_eq!(next(&spec, &status, None), Next::Finish);
            status.phase = QuarantinePhase::Failed;
            assert_eq!(next(&spec, &status, None), Next::Rest);
            status.steps[position].state = StepState::Done;
            let after = CONTAINMENT.iter().skip(position + 1);
            for next_one in after {
                assert_eq!(next(&spec, &status, None), Next::Contain(*next_one));
                status.steps.push(step(*next_one, StepState::Done));
            }
            assert_eq!(next(&spec, &status, None), Next::Evict);
        }
    }

    #[test]
    fn no_other_step_that_contains_is_passed_over() {
        let spec = QuarantineSpec::default();
        for name in CONTAINMENT {
            if matches!(name, StepName::Policy | StepName::Strip) {
                continue;
            }
            let before = CONTAINMENT.iter().take_while(|step| **step != name);
            let mut status = status(&before.copied().collect::<Vec<_>>());
            let mut waiting = step(name, StepState::Waiting);
            waiting.attempts = 100;
            status.steps.push(waiting);
            assert_eq!(next(&spec, &status, None), Next::Contain(name));
        }
    }

    #[test]
    fn release_waits_for_sealed_evidence_unless_forced() {
        let mut spec = QuarantineSpec {
            release: Some(ReleaseSpec::default()),
            ..Default::default()
        };
        let mut status = status(&CONTAINMENT);
        assert_eq!(next(&spec, &status, None), Next::Isolate);
        status.phase = QuarantinePhase::Incomplete;
        for name in [
            StepName::Isolate,
            StepName::Verify,
            StepName::Prove,
            StepName::Neighbours,
            StepName::Evict,
            StepName::Collect,
        ] {
            status.steps.push(step(name, StepState::Failed));
        }
        assert_eq!(next(&spec, &status, None), Next::RefuseRelease);
        assert_eq!(
            next(&spec, &status, Some(&sealed())),
            Next::Undo(StepName::UndoIsolate)
        );
        spec.release = Some(ReleaseSpec {
            force: true,
            ..Default::default()
        });
        assert_eq!(
            next(&spec, &status, None),
            Next::Undo(StepName::UndoIsolate)
        );
    }

    #[test]
    fn a_later_collection_keeps_only_the_last_word_and_an_unforced_release_waiting() {
        let mut spec = QuarantineSpec::default();
        let mut status = status(&CONTAINMENT);
        for name in [StepName::Isolate, StepName::Verify, StepName::Neighbours] {
            status.steps.push(step(name, StepState::Done));
        }
        status.steps.push(step(StepName::Prove, StepState::Running));
        status.steps.push(step(StepName::Collect, StepState::Done));
        let waiting = step(StepName::CollectAgain, StepState::Waiting);
        status.steps.push(waiting);
        status.later_collections = vec![LaterCollection {
            name: "q-0123456789ab".into(),
            container: String::new(),
            reason: String::new(),
            request: String::new(),
            phase: None,
            message: String::new(),
        }];
        assert_eq!(next(&spec, &status, None), Next::Evict);
        status.steps.push(step(StepName::Evict, StepState::Done));
        assert_eq!(next(&spec, &status, None), Next::AwaitProof);
        status.steps.retain(|step| step.name != StepName::Prove);
        status.steps.push(step(StepName::Prove, StepState::Done));
        let sealed = sealed();
        for (phase, expected) in [
            (None, Next::AwaitLater),
            (Some(CollectionPhase::Collecting), Next::AwaitLater),
            (
                Some(CollectionPhase::Sealed),
                Next::Undo(StepName::UndoIsolate),
            ),
        ] {
            status.later_collections[0].phase = phase;
            spec.release = None;
            assert_eq!(next(&spec, &status, Some(&sealed)), Next::AwaitLater);
            spec.release = Some(ReleaseSpec::default());
            assert_eq!(next(&spec, &status, Some(&sealed)), expected);
        }
        // As the first one does.
        status.later_collections[0].phase = Some(CollectionPhase::Partial);
        status.phase = QuarantinePhase::Incomplete;
        let again = |step: &&mut StepStatus| step.name == StepName::CollectAgain;
        status.steps.iter_mut().find(again).unwrap().state = StepState::Failed;
        assert_eq!(next(&spec, &status, Some(&sealed)), Next::RefuseRelease);
        spec.release = Some(ReleaseSpec {
            force: true,
            ..Default::default()
        });
        let undo = Next::Undo(StepName::UndoIsolate);
        assert_eq!(next(&spec, &status, Some(&sealed)), undo);
    }

    #[test]
    fn an_agent_that_does_not_answer_keeps_neither_verification_nor_collection_waiting() {
        let spec = QuarantineSpec::default();
        let mut status = status(&CONTAINMENT);
        status
            .steps
            .push(step(StepName::Isolate, StepState::Waiting));
        assert_eq!(next(&spec, &status, None), Next::Verify);
        status.steps.push(step(StepName::Verify, StepState::Done));
        assert_eq!(next(&spec, &status, None), Next::Neighbours);
        let neighbours = step(StepName::Neighbours, StepState::Waiting);
        status.steps.push(neighbours);
        assert_eq!(next(&spec, &status, None), Next::Isolate);
    }

    #[test]
    fn a_pod_is_called_isolated_only_by_every_fact_that_proves_it() {
        let facts = [
            "Labelled",
            "OwnerReleased",
            "NoEndpoints",
            "PolicySelectsPod",
            NO_POLICY_ALLOWS,
            NODE_ISOLATED,
            OUTGOING_BLOCKED,
            INCOMING_BLOCKED,
            NO_WAY_PAST,
        ];
        let with = |changed: &str, state| QuarantineStatus {
            facts: facts
                .iter()
                .map(|name| Fact {
                    name: (*name).into(),
                    state: if *name == changed {
                        state
                    } else {
                        FactState::True
                    },
                    message: String::new(),
                })
                .collect(),
            ..Default::default()
        };
        let said = |changed: &str, state| verdict(&with(changed, state)).unwrap();
        assert_eq!(said("", FactState::True), Verdict::Isolated);
        for at_the_api in [
            "Labelled",
            "OwnerReleased",
            "NoEndpoints",
            "PolicySelectsPod",
        ] {
            assert_eq!(
                said(at_the_api, FactState::Unverified),
                Verdict::NotContained
            );
        }
        for at_the_node in [NODE_ISOLATED, OUTGOING_BLOCKED, INCOMING_BLOCKED] {
            assert_eq!(said(at_the_node, FactState::Unverified), Verdict::Contained);
        }
        assert_eq!(said(NODE_ISOLATED, FactState::False), Verdict::Contained);
        assert_eq!(
            said(OUTGOING_BLOCKED, FactState::False),
            Verdict::NotContained
        );
        assert_eq!(
            said(INCOMING_BLOCKED, FactState::False),
            Verdict::NotContained
        );
        assert_eq!(said(NO_WAY_PAST, FactState::Unverified), Verdict::Isolated);
        assert_eq!(said(NO_WAY_PAST, FactState::False), Verdict::Contained);
        // The node drops what the policy allows; unproved, it may not.
        assert_eq!(said(NO_POLICY_ALLOWS, FactState::False), Verdict::Isolated);
        let mut allowed = with(NO_POLICY_ALLOWS, FactState::False);
        allowed.facts.retain(|fact| fact.name != OUTGOING_BLOCKED);
        assert_eq!(verdict(&allowed), Some(Verdict::NotContained));
        assert_eq!(verdict(&QuarantineStatus::default()), None);
        let gone = QuarantineStatus {
            facts: crate::contain::facts::gone(),
            ..Default::default()
        };
        assert!(!is_contained(&gone));
        assert_eq!(verdict(&gone), None);
    }

    #[test]
    fn release_is_containment_in_reverse() {
        let spec = QuarantineSpec {
            skip_collection: true,
            release: Some(ReleaseSpec::default()),
            ..Default::default()
        };
        let mut status = status(&CONTAINMENT);
        for expected in RELEASE {
            assert_eq!(next(&spec, &status, None), Next::Undo(expected));
            status.steps.push(step(expected, StepState::Done));
        }
        assert_eq!(next(&spec, &status, None), Next::FinishRelease);
    }

    #[test]
    fn a_pod_that_is_not_changed_is_contained_by_its_node_s_table_or_not_at_all() {
        let with = |held: &[(&str, FactState)]| {
            let mut status = status(&[]);
            status.undo = Some(Undo {
                untouched: Some("it is a static pod".into()),
                ..Undo::default()
            });
            status.facts = held
                .iter()
                .map(|(name, state)| Fact {
                    name: (*name).into(),
                    state: *state,
                    message: String::new(),
                })
                .collect();
            status
        };
        use FactState::{False, True, Unverified};
        let nothing = with(&[("PodUnchanged", True), ("NodeCordoned", True)]);
        assert_eq!(verdict(&nothing), Some(Verdict::NotContained));
        let table = (NODE_ISOLATED, True);
        let cases: [(&[(&str, FactState)], Verdict); 4] = [
            (&[table, (OUTGOING_BLOCKED, Unverified)], Verdict::Contained),
            (
                &[table, (OUTGOING_BLOCKED, True), (INCOMING_BLOCKED, True)],
                Verdict::Isolated,
            ),
            (&[table, (NO_WAY_PAST, False)], Verdict::NotContained),
            (&[(NODE_ISOLATED, Unverified)], Verdict::NotContained),
        ];
        for (facts, expected) in cases {
            assert_eq!(verdict(&with(facts)), Some(expected), "{facts:?}");
        }
        let steps: Vec<StepName> = CONTAINMENT
            .into_iter()
            .chain(RELEASE)
            .filter(|step| is_wanted(&nothing, *step))
            .collect();
        use StepName::{Cordon, LabelNode, UndoCordon, UndoIsolate, UndoLabelNode};
        assert_eq!(
            steps,
            [Cordon, LabelNode, UndoIsolate, UndoLabelNode, UndoCordon]
        );
    }
}
