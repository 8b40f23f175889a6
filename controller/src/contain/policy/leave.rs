//! Which further labels to take off so that NetworkPolicies which allow the pod traffic let go of it.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::networking::v1::NetworkPolicy;

use super::{allowing, pod_selector};
use crate::contain::selector::{Labels, demanded_keys};

/// Label keys to take off besides, each with the policy that lets go without it. `labels` are those that
/// the pod would have; those in `ours` stay. Labels that no policy's leaving needs are not touched, and none
/// goes whose absence `selected` (by an owner or a Service, through `NotIn` or `DoesNotExist`) minds, or that
/// makes as many other policies select the pod.
#[must_use]
pub fn leave(
    policies: &[NetworkPolicy],
    labels: &Labels,
    ours: &BTreeMap<String, String>,
    selected: impl Fn(&Labels) -> bool,
) -> BTreeMap<String, String> {
    let mut left = labels.clone();
    let mut gone = BTreeMap::new();
    // Each round takes a label off, and the number of policies that allow shrinks with it.
    loop {
        let now = allowing(policies, &left).count();
        let candidates: BTreeSet<String> = allowing(policies, &left)
            .filter_map(|policy| policy.spec.as_ref())
            .flat_map(|spec| demanded_keys(&pod_selector(spec)))
            .filter(|key| left.contains_key(key) && !ours.contains_key(key))
            .collect();
        let best = candidates
            .into_iter()
            .filter_map(|key| {
                let without = without(&left, &key);
                let then = allowing(policies, &without).count();
                (then < now && !selected(&without)).then_some((then, key))
            })
            .min();
        let Some((_, key)) = best else {
            return gone;
        };
        let without = without(&left, &key);
        let lets_go = allowing(policies, &left)
            .find(|policy| !allowing(std::slice::from_ref(policy), &without).any(|_| true))
            .and_then(|policy| policy.metadata.name.clone());
        gone.insert(key, lets_go.unwrap_or_default());
        left = without;
    }
}

fn without(labels: &Labels, key: &str) -> Labels {
    let mut labels = labels.clone();
    labels.remove(key);
    labels
}
