//! The list of a sweep: in which order its pods are taken, and what their rosters, cases and collections are called.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use crate::resources::SweepTarget;
use crate::resources::sweep::CASE_TARGETS;

/// Longest name of a collection, as [`impound_evidence::CollectionName`] has it.
const COLLECTION_NAME: usize = 63;
/// How much of a sweep's uid is in the names of its collections: tells sweeps of one case apart.
const UID_LENGTH: usize = 8;

/// A pod that is selected, and how soon it should be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    haste: Haste,
    target: SweepTarget,
}

/// What is about to be gone comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Haste {
    /// It is being deleted.
    Ending,
    /// It runs to an end, and what has ended is cleared away.
    Passing,
    /// It stays until somebody ends it.
    Staying,
    /// It is on no node.
    Nowhere,
}

impl Found {
    /// A pod as the API server lists it.
    #[must_use]
    pub fn of(pod: &Pod) -> Self {
        let spec = pod.spec.as_ref();
        let node = spec.and_then(|spec| spec.node_name.clone());
        let restarts = spec.and_then(|spec| spec.restart_policy.as_deref());
        let haste = if node.is_none() {
            Haste::Nowhere
        } else if pod.metadata.deletion_timestamp.is_some() {
            Haste::Ending
        } else if restarts.is_some_and(|policy| policy != "Always") {
            Haste::Passing
        } else {
            Haste::Staying
        };
        Self {
            haste,
            target: SweepTarget {
                namespace: pod.namespace().unwrap_or_default(),
                pod: pod.name_any(),
                uid: pod.uid().unwrap_or_default(),
                node: node.unwrap_or_default(),
            },
        }
    }
}

/// What is about to be gone first; then each node's pods in turn, so that no node waits for another's to be done, nor
/// works for all its pods in a row. The same pods are always in the same order.
#[must_use]
pub fn ordered(mut found: Vec<Found>) -> Vec<SweepTarget> {
    let key = |one: &Found| {
        let SweepTarget {
            namespace,
            pod,
            uid,
            node,
        } = one.target.clone();
        (one.haste, node, namespace, pod, uid)
    };
    found.sort_by_cached_key(key);
    let mut turns: HashMap<(Haste, String), usize> = HashMap::new();
    let mut in_turn: Vec<(Haste, usize, SweepTarget)> = Vec::with_capacity(found.len());
    for Found { haste, target } in found {
        let turn = turns.entry((haste, target.node.clone())).or_default();
        in_turn.push((haste, *turn, target));
        *turn += 1;
    }
    // Stable: nodes stay in order within a turn.
    in_turn.sort_by_key(|(haste, turn, _)| (*haste, *turn));
    in_turn.into_iter().map(|(_, _, target)| target).collect()
}

/// The case that the target with this number (from 1) belongs to.
#[must_use]
pub fn case_of(case: &str, number: usize) -> String {
    match number.saturating_sub(1) / CASE_TARGETS {
        0 => case.to_owned(),
        part => format!("{case}.part-{}", part + 1),
    }
}

/// Name of the collection of the target with this number, for the sweep with this uid.
#[must_use]
pub fn collection_name(sweep: &str, target: &SweepTarget, number: usize) -> String {
    let sweep: String = sweep.chars().take(UID_LENGTH).collect();
    let end = format!("-{sweep}-{number}");
    let room = COLLECTION_NAME.saturating_sub(end.len());
    let pod: String = target.pod.chars().take(room).collect();
    format!("{}{end}", pod.trim_end_matches(['-', '.']))
}

/// How many targets there are for each of something, by its name.
#[must_use]
pub fn shares<'t>(
    targets: &'t [SweepTarget],
    of: impl Fn(&'t SweepTarget) -> &'t str,
) -> BTreeMap<String, u32> {
    let mut shares = BTreeMap::new();
    for target in targets {
        let share: &mut u32 = shares.entry(of(target).to_owned()).or_default();
        *share = share.saturating_add(1);
    }
    shares
}

#[cfg(test)]
mod tests {
    use impound_evidence::{CaseId, CollectionName};
    use serde_json::json;

    use super::*;

    fn found(name: &str, node: &str, more: serde_json::Value) -> Found {
        let mut pod = json!({
            "metadata": { "name": name, "namespace": "shop", "uid": name },
            "spec": { "nodeName": node, "containers": [], "restartPolicy": "Always" },
        });
        if node.is_empty() {
            pod["spec"]["nodeName"] = json!(null);
        }
        for (key, value) in more.as_object().unwrap() {
            pod.pointer_mut(key).unwrap().clone_from(value);
        }
        Found::of(&serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn what_is_about_to_be_gone_comes_first_and_nodes_take_turns() {
        let mut ending = json!({ "/metadata": { "name": "ending", "namespace": "shop", "uid": "e",
            "deletionTimestamp": "2026-01-01T00:00:00Z" } });
        let mut all = vec![
            found("a1", "a", json!({})),
            found("a2", "a", json!({})),
            found("a3", "a", json!({})),
            found("b1", "b", json!({})),
            found("nowhere", "", json!({})),
            found("job", "b", json!({ "/spec/restartPolicy": "Never" })),
            found("ending", "a", ending.take()),
        ];
        let names = |all: Vec<Found>| -> Vec<String> {
            ordered(all).into_iter().map(|target| target.pod).collect()
        };
        let expected = ["ending", "job", "a1", "b1", "a2", "a3", "nowhere"];
        assert_eq!(names(all.clone()), expected);
        all.reverse();
        assert_eq!(names(all), expected);
    }

    #[test]
    fn every_target_has_a_valid_name_of_its_own_and_every_thousand_a_valid_case() {
        let sweep = "0a1b2c3d-0000-0000-0000-000000000000";
        let long = SweepTarget {
            pod: format!("{}.{}", "a".repeat(46), "b".repeat(200)),
            ..SweepTarget::default()
        };
        let short = SweepTarget {
            pod: "web".into(),
            ..SweepTarget::default()
        };
        for number in [1, 10_000] {
            for target in [&long, &short] {
                let name = collection_name(sweep, target, number);
                name.parse::<CollectionName>().unwrap();
                assert!(name.ends_with(&format!("-0a1b2c3d-{number}")), "{name}");
            }
        }
        let case = "c".repeat(crate::resources::sweep::SWEEP_CASE);
        assert_eq!(case_of(&case, 1), case);
        assert_eq!(case_of(&case, 1000), case);
        assert_eq!(case_of("INC-7", 1001), "INC-7.part-2");
        case_of(&case, 10_000).parse::<CaseId>().unwrap();
        assert_eq!(case_of("INC-7", 10_000), "INC-7.part-10");
    }
}
