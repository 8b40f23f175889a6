//! ReplicaSets: as many active pods as wanted.

use serde_json::{Value, json};

use super::owned::{self, active, ready};
use crate::json;
use crate::refusal::Outcome;
use crate::state::State;
use crate::store::Object;

const TABLE: &str = "replicasets.apps";
const NAME: &str = "replicaset-controller";

pub(super) fn sync(state: &mut State, namespace: &str) -> Outcome<()> {
    for set in state.store.list(TABLE, namespace) {
        sync_one(state, &set)?;
    }
    Ok(())
}

fn sync_one(state: &mut State, set: &Object) -> Outcome<()> {
    let claimed = owned::claim(state, "pods", set, "kube-controller-manager", active)?;
    if json::terminating(set) {
        return Ok(());
    }
    let mut pods: Vec<Object> = claimed.iter().filter(|pod| active(pod)).cloned().collect();
    let terminating = claimed.iter().filter(|pod| json::terminating(pod)).count();
    let wanted = usize::try_from(json::number(set, "/spec/replicas").unwrap_or(1)).unwrap_or(0);
    while pods.len() < wanted {
        let Some(pod) = owned::make_pod(state, set, owned::from_template(set), NAME) else {
            break;
        };
        pods.push(pod);
    }
    if pods.len() > wanted {
        // Those that serve least go first: unbound, not ready, youngest.
        pods.sort_by_key(|pod| {
            let bound = !json::text(pod, "/spec/nodeName").is_empty();
            let youth = std::cmp::Reverse(state.store.born(pod));
            (bound, ready(pod), youth)
        });
        for pod in pods.drain(..pods.len() - wanted) {
            owned::delete_pod(state, set, &pod, NAME);
        }
    }
    let ready = pods.iter().filter(|pod| ready(pod)).count();
    let labels = json::map(set, "/spec/template/metadata/labels")
        .cloned()
        .unwrap_or_default();
    let labeled = pods.iter().filter(|pod| {
        labels
            .iter()
            .all(|(key, value)| json::labels(pod).and_then(|labels| labels.get(key)) == Some(value))
    });
    let mut status = json!({"replicas": pods.len(), "terminatingReplicas": terminating,
                            "observedGeneration": json::number(set, "/metadata/generation")});
    put_counts(
        &mut status,
        &[
            ("fullyLabeledReplicas", labeled.count()),
            ("readyReplicas", ready),
            ("availableReplicas", ready),
        ],
    );
    // Made or deleted pods changed nothing in the set itself, so it is still current.
    owned::write_status(state, TABLE, set, status)
}

/// Counters that Go leaves out when they are zero.
pub(super) fn put_counts(status: &mut Value, counts: &[(&str, usize)]) {
    for (field, count) in counts {
        if *count > 0 {
            json::put(status, &[field], *count);
        }
    }
}
