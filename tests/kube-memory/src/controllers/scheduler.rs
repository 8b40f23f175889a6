//! The scheduler: binds pending pods to the fitting node with the fewest pods, or says why none fits.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Teller, tell, tolerate};
use crate::clock;
use crate::json;
use crate::refusal::Outcome;
use crate::state::State;
use crate::store::Object;

const TELLER: Teller<'static> = Teller {
    component: "default-scheduler",
    host: "",
};

pub(super) fn sync(state: &mut State) -> Outcome<()> {
    let pods = state.store.list("pods", "");
    let nodes = state.store.list("nodes", "");
    let mut load: BTreeMap<String, usize> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| !super::owned::finished(pod)) {
        *load
            .entry(json::text(pod, "/spec/nodeName").to_owned())
            .or_default() += 1;
    }
    for pod in &pods {
        let waiting = json::text(pod, "/spec/nodeName").is_empty()
            && !json::terminating(pod)
            && json::text(pod, "/spec/schedulerName") == "default-scheduler"
            && json::list(pod, "/spec/schedulingGates").is_empty();
        if !waiting {
            continue;
        }
        let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
        let mut best: Option<((Reverse<i64>, usize), &Object)> = None;
        for node in &nodes {
            match unfit(pod, node) {
                Some(reason) => *reasons.entry(reason).or_default() += 1,
                None => {
                    let here = load.get(json::name(node)).copied().unwrap_or(0);
                    let rank = (Reverse(preference(pod, node)), here);
                    if best.is_none_or(|(least, _)| rank < least) {
                        best = Some((rank, node));
                    }
                }
            }
        }
        match best {
            Some((_, node)) => {
                bind(state, pod, json::name(node))?;
                *load.entry(json::name(node).to_owned()).or_default() += 1;
            }
            None => refuse(state, pod, nodes.len(), &reasons),
        }
    }
    Ok(())
}

/// Binds a pod and tells of it.
pub(crate) fn bind(state: &mut State, pod: &Value, node: &str) -> Outcome<()> {
    let condition = scheduled(pod, "True", "", "");
    let bound = state.change("pods", pod, "binding", "kube-scheduler", |pod| {
        json::put(pod, &["spec", "nodeName"], node);
        set_condition(pod, condition);
    })?;
    let message = format!(
        "Successfully assigned {}/{} to {node}",
        json::namespace(pod),
        json::name(pod)
    );
    tell(state, &bound, "", false, "Scheduled", &message, TELLER);
    Ok(())
}

fn scheduled(pod: &Value, status: &str, reason: &str, message: &str) -> Value {
    let mut condition = json!({
        "type": "PodScheduled", "observedGeneration": json::number(pod, "/metadata/generation"),
        "status": status, "lastProbeTime": null, "lastTransitionTime": clock::now(),
    });
    if !reason.is_empty() {
        json::put(&mut condition, &["reason"], reason);
        json::put(&mut condition, &["message"], message);
    }
    condition
}

pub(super) fn set_condition(object: &mut Value, condition: Value) {
    let kind = json::text(&condition, "/type").to_owned();
    if let Some(list) = json::entry_list(object, &["status", "conditions"]) {
        match list
            .iter_mut()
            .find(|found| json::text(found, "/type") == kind)
        {
            Some(found) => *found = condition,
            None => list.push(condition),
        }
    }
}

fn refuse(state: &mut State, pod: &Object, nodes: usize, reasons: &BTreeMap<String, usize>) {
    let mut parts: Vec<String> = reasons
        .iter()
        .map(|(reason, count)| format!("{count} {reason}"))
        .collect();
    parts.sort();
    let message = format!(
        "0/{nodes} nodes are available: {}. no new claims to deallocate, preemption: 0/{nodes} nodes are available: \
         {nodes} Preemption is not helpful for scheduling.",
        parts.join(", ")
    );
    let known = json::list(pod, "/status/conditions")
        .iter()
        .any(|condition| json::text(condition, "/message") == message);
    if known {
        return;
    }
    let condition = scheduled(pod, "False", "Unschedulable", &message);
    let changed = state.change("pods", pod, "status", "kube-scheduler", |pod| {
        set_condition(pod, condition)
    });
    if tolerate("unschedulable pod", changed).is_some() {
        tell(state, pod, "", true, "FailedScheduling", &message, TELLER);
    }
}

/// Why a pod can't be bound to a node; none if it can.
pub(super) fn unfit(pod: &Value, node: &Value) -> Option<String> {
    let unschedulable = json!({"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"});
    if json::truth(node, "/spec/unschedulable") && !tolerates(pod, &unschedulable) {
        return Some("node(s) were unschedulable".to_owned());
    }
    for taint in json::list(node, "/spec/taints") {
        if json::text(taint, "/effect") != "PreferNoSchedule" && !tolerates(pod, taint) {
            let (key, value) = (json::text(taint, "/key"), json::text(taint, "/value"));
            return Some(format!("node(s) had untolerated taint {{{key}: {value}}}"));
        }
    }
    let selected = json::map(pod, "/spec/nodeSelector")
        .into_iter()
        .flatten()
        .all(|(key, value)| json::labels(node).and_then(|labels| labels.get(key)) == Some(value));
    if !selected || !affine(pod, node) {
        return Some("node(s) didn't match Pod's node affinity/selector".to_owned());
    }
    None
}

/// Whether one of the pod's tolerations covers a taint.
pub(super) fn tolerates(pod: &Value, taint: &Value) -> bool {
    json::list(pod, "/spec/tolerations")
        .iter()
        .any(|toleration| {
            let text = |field: &str| json::text(toleration, field);
            let effect =
                text("/effect").is_empty() || text("/effect") == json::text(taint, "/effect");
            let key = text("/key").is_empty() || text("/key") == json::text(taint, "/key");
            let value =
                text("/operator") == "Exists" || text("/value") == json::text(taint, "/value");
            // An empty key tolerates every taint, but only with Exists.
            effect && key && value && (!text("/key").is_empty() || text("/operator") == "Exists")
        })
}

/// Required node affinity: one term must hold, and in it all expressions.
fn affine(pod: &Value, node: &Value) -> bool {
    let Some(required) =
        pod.pointer("/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution")
    else {
        return true;
    };
    json::list(required, "/nodeSelectorTerms")
        .iter()
        .any(|term| matches(term, node))
}

/// Preferred node affinity: the weights of the terms that hold, added up.
fn preference(pod: &Value, node: &Value) -> i64 {
    let path = "/spec/affinity/nodeAffinity/preferredDuringSchedulingIgnoredDuringExecution";
    json::list(pod, path)
        .iter()
        .filter(|preferred| {
            preferred
                .get("preference")
                .is_some_and(|term| matches(term, node))
        })
        .filter_map(|preferred| preferred.get("weight").and_then(Value::as_i64))
        .sum()
}

/// Whether every expression of a node selector term holds; an empty term matches nothing.
fn matches(term: &Value, node: &Value) -> bool {
    let (expressions, fields) = (
        json::list(term, "/matchExpressions"),
        json::list(term, "/matchFields"),
    );
    (!expressions.is_empty() || !fields.is_empty())
        && expressions.iter().all(|expression| {
            let label =
                json::labels(node).and_then(|labels| labels.get(json::text(expression, "/key")));
            holds(expression, label.and_then(Value::as_str))
        })
        && fields
            .iter()
            .all(|field| holds(field, Some(json::name(node))))
}

fn holds(expression: &Value, value: Option<&str>) -> bool {
    let values = json::list(expression, "/values");
    let listed = value.is_some_and(|value| values.iter().any(|wanted| wanted == value));
    let number = |text: Option<&str>| text.and_then(|text| text.parse::<i64>().ok());
    let limit = number(values.first().and_then(Value::as_str));
    match json::text(expression, "/operator") {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => number(value)
            .zip(limit)
            .is_some_and(|(value, limit)| value > limit),
        "Lt" => number(value)
            .zip(limit)
            .is_some_and(|(value, limit)| value < limit),
        _ => false,
    }
}
