//! Makes the list of a sweep, once.
//!
//! The rosters are written first, under names that nobody else makes; then one write of the sweep's status, guarded by
//! its version, names them. Whatever comes in between, a crash or another controller, there is either no list or one.
//! Rosters of a list that did not become it go with the sweep.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, PostParams};
use kube::runtime::controller::Action;
use kube::{Resource, ResourceExt};
use uuid::Uuid;

use super::{ended, save};
use crate::kubernetes::from_kube;
use crate::reconcile::{Context, ReconcileError};
use crate::resources::sweep::{ROSTER_TARGETS, SWEEP_CASE, SWEEP_LABEL, SWEEP_NAME};
use crate::resources::{
    Sweep, SweepCounts, SweepPhase, SweepRoster, SweepRosterSpec, SweepStatus, now,
};
use crate::sweep::list::{case_of, shares};
use crate::sweep::{SelectError, select};

/// The reference that makes something the sweep's.
pub(super) fn owned_by(sweep: &Sweep) -> Vec<OwnerReference> {
    sweep.controller_owner_ref(&()).into_iter().collect()
}

/// Lists what the sweep selects now and records that.
///
/// # Errors
/// If the API does not answer as it should; the list is then made anew.
pub(super) async fn expand(sweep: &Sweep, context: &Context) -> Result<Action, ReconcileError> {
    let name = sweep.name_any();
    if name.len() > SWEEP_NAME || sweep.spec.case.len() > SWEEP_CASE {
        let why = format!(
            "the name has {} characters and the case {}: at most {SWEEP_NAME} and {SWEEP_CASE} are allowed",
            name.len(),
            sweep.spec.case.len()
        );
        return refuse(sweep, context, why).await;
    }
    let selected = match select(&context.client, &sweep.spec.select, &context.settings).await {
        Ok(selected) => selected,
        Err(SelectError::Refused(why)) => return refuse(sweep, context, why).await,
        Err(SelectError::Api(error)) => return Err(error.into()),
    };
    let left_out = selected.left_out();
    let targets = selected.targets;
    let nodes = shares(&targets, |target| &target.node);
    let namespaces = shares(&targets, |target| &target.namespace);
    let count = |many: usize| u32::try_from(many).unwrap_or(u32::MAX);
    let mut status = SweepStatus {
        phase: SweepPhase::Running,
        message: format!("{} pods are to be collected", targets.len()),
        expanded: Some(now()),
        targets: count(targets.len()),
        nodes: count(nodes.keys().filter(|node| !node.is_empty()).count()),
        namespaces: count(namespaces.len()),
        left_out,
        counts: SweepCounts {
            waiting: count(targets.len()),
            ..SweepCounts::default()
        },
        ..SweepStatus::default()
    };
    // Tells this list from one that another attempt began to write.
    let attempt: String = Uuid::new_v4()
        .simple()
        .to_string()
        .chars()
        .take(8)
        .collect();
    let api = Api::<SweepRoster>::all(context.client.clone());
    for (number, some) in targets.chunks(ROSTER_TARGETS).enumerate() {
        let first = number * ROSTER_TARGETS + 1;
        let mut roster = SweepRoster::new(
            &format!("{name}-{attempt}-{}", number + 1),
            SweepRosterSpec {
                sweep: name.clone(),
                case: case_of(&sweep.spec.case, first),
                first: count(first),
                targets: some.to_vec(),
            },
        );
        roster.metadata.owner_references = Some(owned_by(sweep));
        roster.metadata.labels = Some([(SWEEP_LABEL.into(), name.clone())].into());
        api.create(&PostParams::default(), &roster)
            .await
            .map_err(|error| from_kube("POST", "sweeprosters", error))?;
        status.rosters.push(roster.name_any());
    }
    save(sweep, &mut status, context).await?;
    tracing::info!(
        case = sweep.spec.case,
        sweep = name,
        targets = status.targets,
        nodes = status.nodes,
        "the list is made"
    );
    Ok(Action::requeue(std::time::Duration::ZERO))
}

/// Ends a sweep that has no list.
pub(super) async fn refuse(
    sweep: &Sweep,
    context: &Context,
    why: String,
) -> Result<Action, ReconcileError> {
    let mut status = SweepStatus {
        phase: SweepPhase::Refused,
        message: why,
        finished: Some(now()),
        ..SweepStatus::default()
    };
    save(sweep, &mut status, context).await?;
    ended(context, sweep, &status);
    Ok(Action::await_change())
}
