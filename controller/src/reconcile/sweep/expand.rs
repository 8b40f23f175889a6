//! Makes the list of a sweep, once.
//!
//! The rosters are written first, under names that follow from the sweep's uid; then one write of the sweep's status,
//! guarded by its version, names them. Whatever comes in between, a crash or a status that can't be written, the next
//! attempt goes on with the rosters that are there: there is one set of them, however often it is begun.

use std::collections::HashSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, PostParams};
use kube::runtime::controller::Action;
use kube::{Resource, ResourceExt};

use super::{LOOK_AGAIN, ended, logged, save};
use crate::describe::describe;
use crate::kubernetes::from_kube;
use crate::reconcile::record::shortened;
use crate::reconcile::{Context, ReconcileError};
use crate::resources::sweep::{MOST_TARGETS, ROSTER_TARGETS, SWEEP_CASE, SWEEP_LABEL, SWEEP_NAME};
use crate::resources::{
    Sweep, SweepCounts, SweepPhase, SweepRoster, SweepRosterSpec, SweepStatus, now, recipients,
};
use crate::sweep::list::{case_of, shares};
use crate::sweep::{SelectError, Selected, select};

/// The reference that makes something the sweep's. It does not hold up the sweep's deletion: that would need a right
/// of its own where the API server checks it (OwnerReferencesPermissionEnforcement).
pub(super) fn owned_by(sweep: &Sweep) -> Vec<OwnerReference> {
    let reference = sweep.controller_owner_ref(&());
    let unblocking = reference.map(|reference| OwnerReference {
        block_owner_deletion: None,
        ..reference
    });
    unblocking.into_iter().collect()
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
    if let Err(error) = recipients(&sweep.spec.encrypt_to) {
        return refuse(sweep, context, format!("encryptTo: {error}")).await;
    }
    let mut rosters = match there(sweep, context).await? {
        Ok(rosters) => rosters,
        Err(why) => return refuse(sweep, context, why).await,
    };
    let mut targets: Vec<_> = rosters
        .iter()
        .flat_map(|roster| roster.spec.targets.clone())
        .collect();
    // One that is not full is the last one.
    let complete = targets.len() < rosters.len() * ROSTER_TARGETS;
    let selected = match select(&context.client, &sweep.spec.select, &context.settings).await {
        Ok(selected) => selected,
        Err(SelectError::Refused(_)) if complete => Selected::default(),
        Err(SelectError::Refused(why)) => return refuse(sweep, context, why).await,
        Err(SelectError::Api(error)) => {
            let why = format!("its pods can't be listed now: {}", describe(&error));
            not_yet(sweep, context, why).await?;
            return Err(error.into());
        }
    };
    let left_out = selected.left_out();
    if !complete {
        let known: HashSet<_> = targets.iter().map(|target| target.uid.clone()).collect();
        let further = selected.targets.into_iter();
        targets.extend(further.filter(|target| !known.contains(&target.uid)));
    }
    if targets.len() > MOST_TARGETS {
        let why = format!("more than {MOST_TARGETS} pods were selected while they were listed");
        return refuse(sweep, context, why).await;
    }
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
    let api = Api::<SweepRoster>::all(context.client.clone());
    let chunks = targets.chunks(ROSTER_TARGETS).enumerate();
    for (number, some) in chunks.skip(rosters.len()) {
        let first = number * ROSTER_TARGETS + 1;
        let mut roster = SweepRoster::new(
            &roster_name(sweep, number + 1),
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
        rosters.push(roster);
    }
    status.rosters = rosters.iter().map(ResourceExt::name_any).collect();
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

/// Name of the sweep's roster with this number, from 1.
fn roster_name(sweep: &Sweep, number: usize) -> String {
    let uid: String = sweep.uid().unwrap_or_default().chars().take(8).collect();
    format!("{}-{uid}-{number}", sweep.name_any())
}

/// The rosters that an earlier attempt has made, in order; in words if one of them is somebody else's.
async fn there(
    sweep: &Sweep,
    context: &Context,
) -> Result<Result<Vec<SweepRoster>, String>, ReconcileError> {
    let api = Api::<SweepRoster>::all(context.client.clone());
    let mut rosters = Vec::new();
    for number in 1..=MOST_TARGETS / ROSTER_TARGETS {
        let name = roster_name(sweep, number);
        let read = api.get_opt(&name).await;
        let Some(roster) = read.map_err(|error| from_kube("GET", "sweeproster", error))? else {
            break;
        };
        let first = (number - 1) * ROSTER_TARGETS + 1;
        let owned = roster.owner_references() == owned_by(sweep).as_slice();
        if !owned || roster.spec.case != case_of(&sweep.spec.case, first) {
            return Ok(Err(format!(
                "a SweepRoster {name} is there that is not of this sweep: delete it, and create the sweep again"
            )));
        }
        rosters.push(roster);
    }
    Ok(Ok(rosters))
}

/// Says why there is no list yet.
async fn not_yet(sweep: &Sweep, context: &Context, why: String) -> Result<(), ReconcileError> {
    let mut status = sweep.status.clone().unwrap_or_default();
    let why = shortened(why);
    if status.message == why {
        return Ok(());
    }
    status.message = why;
    save(sweep, &mut status, context).await
}

/// Ends a sweep that has no list.
pub(super) async fn refuse(
    sweep: &Sweep,
    context: &Context,
    why: String,
) -> Result<Action, ReconcileError> {
    let known = sweep.status.clone().unwrap_or_default().state == sweep.spec.state;
    let logging = async {
        if !known && logged::is_of_a_case(sweep) {
            logged::changed(sweep, context).await?;
        }
        logged::refused(sweep, &why, context).await
    };
    if let Err(problem) = logging.await {
        not_yet(sweep, context, problem).await?;
        return Ok(Action::requeue(LOOK_AGAIN));
    }
    let mut status = SweepStatus {
        phase: SweepPhase::Refused,
        message: why,
        state: sweep.spec.state,
        finished: Some(now()),
        ..SweepStatus::default()
    };
    save(sweep, &mut status, context).await?;
    ended(context, sweep, &status);
    Ok(Action::requeue(std::time::Duration::ZERO))
}
