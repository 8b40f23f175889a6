//! `pods/eviction`: a delete that asks the disruption budgets first.

use http::Method;
use serde_json::{Value, json};

use super::{Call, Reply};
use crate::clock;
use crate::json;
use crate::refusal::{Outcome, Refusal};
use crate::selector::Selector;
use crate::state::{By, DeleteOptions, State};
use crate::store::Object;

const BUDGETS: &str = "poddisruptionbudgets.policy";

pub(super) fn answer(call: &Call<'_>) -> Outcome<Reply> {
    if call.request.method != Method::POST {
        return Err(Refusal::method_not_allowed());
    }
    let eviction = call.request.json()?;
    let target = &call.target;
    if json::name(&eviction) != target.name {
        return Err(Refusal::bad_request(
            "name in URL does not match name in Eviction object",
        ));
    }
    let options = DeleteOptions::read(eviction.get("deleteOptions").unwrap_or(&Value::Null));
    let dry_run = call.request.dry_run()
        || json::list(&eviction, "/deleteOptions/dryRun")
            .iter()
            .any(|item| item == "All");
    call.core.shared.with(|state| {
        super::subresource::ask(state, call, "CREATE", &eviction, dry_run)?;
        let pod = state.get(&call.resource, &target.namespace, &target.name)?;
        check_uid(call, &pod, &options)?;
        let budget = blocking_budget(state, &pod)?;
        if dry_run {
            return Ok(());
        }
        if let Some(budget) = budget {
            let name = target.name.clone();
            state.change(BUDGETS, &budget, "status", "kube-apiserver", |budget| {
                let allowed = json::number(budget, "/status/disruptionsAllowed").unwrap_or(0);
                json::put(budget, &["status", "disruptionsAllowed"], allowed - 1);
                json::put(budget, &["status", "disruptedPods", &name], clock::now());
            })?;
        }
        if !json::terminating(&pod) {
            state.change("pods", &pod, "status", "kube-apiserver", disrupt)?;
        }
        state
            .delete(
                &call.resource,
                &target.namespace,
                &target.name,
                &options,
                // Nobody asks the policies about this delete.
                &By::unasked("kube-apiserver"),
            )
            .map(drop)
    })?;
    Ok(Reply::json(
        201,
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}),
    ))
}

fn check_uid(call: &Call<'_>, pod: &Value, options: &DeleteOptions) -> Outcome<()> {
    match &options.uid {
        Some(uid) if uid != json::uid(pod) => Err(Refusal::precondition(
            &call.resource,
            json::name(pod),
            format!(
                "the UID in the precondition ({uid}) does not match the UID in record ({}). \
                 The object might have been deleted and then recreated",
                json::uid(pod)
            ),
        )),
        _ => Ok(()),
    }
}

fn disrupt(pod: &mut Value) {
    if let Some(conditions) = json::entry_list(pod, &["status", "conditions"]) {
        conditions.retain(|condition| json::text(condition, "/type") != "DisruptionTarget");
        conditions.push(json!({
            "type": "DisruptionTarget", "status": "True", "lastProbeTime": null,
            "lastTransitionTime": clock::now(), "reason": "EvictionByEvictionAPI",
            "message": "Eviction API: evicting",
        }));
    }
}

/// The budget that pays for the eviction; none if no budget minds. A refusal if one does.
fn blocking_budget(state: &State, pod: &Value) -> Outcome<Option<Object>> {
    if json::terminating(pod)
        || matches!(
            json::text(pod, "/status/phase"),
            "Succeeded" | "Failed" | "Pending"
        )
    {
        return Ok(None);
    }
    let mut budgets = state.store.list(BUDGETS, json::namespace(pod));
    budgets.retain(|budget| {
        Selector::of_object(budget.pointer("/spec/selector"))
            .is_some_and(|s| s.matches(json::labels(pod)))
    });
    let budget = match budgets.as_slice() {
        [] => return Ok(None),
        [one] => one.clone(),
        _ => {
            return Err(Refusal::internal(
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            ));
        }
    };
    let status = |field: &str| json::number(&budget, &format!("/status/{field}")).unwrap_or(0);
    let name = json::name(&budget);
    if status("observedGeneration") < json::number(&budget, "/metadata/generation").unwrap_or(0) {
        let cause = format!("The disruption budget {name} is still being processed by the server.");
        // Only here does the real server say when to come again.
        return Err(Refusal::disruption_budget(cause, Some(10)));
    }
    let healthy =
        status("currentHealthy") >= status("desiredHealthy") && status("desiredHealthy") > 0;
    let policy = json::text(&budget, "/spec/unhealthyPodEvictionPolicy");
    if json::condition(pod, "Ready") != "True" && (policy == "AlwaysAllow" || healthy) {
        return Ok(None);
    }
    if status("disruptionsAllowed") <= 0 {
        let cause = format!(
            "The disruption budget {name} needs {} healthy pods and has {} currently",
            status("desiredHealthy"),
            status("currentHealthy")
        );
        return Err(Refusal::disruption_budget(cause, None));
    }
    Ok(Some(budget))
}
