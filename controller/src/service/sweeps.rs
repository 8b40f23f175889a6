//! Sweeps over gRPC: planned, created, found, watched, paused, resumed, cancelled, and their targets.

use futures::{StreamExt, TryStreamExt, stream};
use impound_evidence::{CaseId, NameError};
use impound_proto::controller::v1 as wire;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;
use kube::api::{Api, ListParams, Patch, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::json;
use tonic::Status;
use uuid::Uuid;

use super::authorise::Requester;
use super::quarantines::REASON_LIMIT;
use super::{Answers, Service, convert, status};
use crate::kubernetes::from_kube;
use crate::reconcile::custody;
use crate::reconcile::record::manager;
use crate::resources::sweep::{CASE_TARGETS, SWEEP_CASE, SWEEP_NAME};
use crate::resources::{
    Selection, Sweep, SweepCounts, SweepException, SweepRoster, SweepSpec, SweepState, SweepTarget,
    TargetStatus, sweep,
};
use crate::sweep::list::{case_of, collection_name, shares};
use crate::sweep::{SelectError, matching, select};

/// What would be taken now.
pub(super) async fn plan(
    service: &Service,
    request: wire::CreateSweepRequest,
) -> Result<wire::CreateSweepResponse, Status> {
    let spec = checked(request, String::new())?;
    let selected = selected(service, &spec.select).await?;
    let left_out = selected.left_out();
    let targets = selected.targets;
    let share = |(name, targets)| wire::Share { name, targets };
    let nodes = shares(&targets, |target| &target.node);
    let namespaces = shares(&targets, |target| &target.namespace);
    let cases = (1..=targets.len()).step_by(CASE_TARGETS);
    Ok(wire::CreateSweepResponse {
        sweep: None,
        plan: Some(wire::SweepPlan {
            targets: u32::try_from(targets.len()).unwrap_or(u32::MAX),
            nodes: nodes.into_iter().map(share).collect(),
            namespaces: namespaces.into_iter().map(share).collect(),
            cases: cases.map(|number| case_of(&spec.case, number)).collect(),
            left_out,
        }),
    })
}

pub(super) async fn create(
    service: &Service,
    who: Requester,
    request: wire::CreateSweepRequest,
) -> Result<wire::CreateSweepResponse, Status> {
    let name = match request.name.as_str() {
        // Seconds since 1970 tell sweeps apart.
        "" => format!("sweep-{}", Timestamp::now().as_second()),
        name => name.to_owned(),
    };
    status::checked_name("name", &name)?;
    if name.len() > SWEEP_NAME {
        return Err(Status::invalid_argument(format!(
            "name has {} characters, at most {SWEEP_NAME} are allowed",
            name.len()
        )));
    }
    let spec = checked(request, who.id.clone())?;
    let case: CaseId = spec
        .case
        .parse()
        .map_err(|error: NameError| status::of_name(&error))?;
    // Listed here only to refuse at once what makes no list; the reconciler lists again.
    selected(service, &spec.select).await?;
    let exists = || {
        Status::already_exists(format!(
            "sweep {name} exists: choose another --name, or see `impound sweep status {name}`"
        ))
    };
    let there = api(service).get_opt(&name).await;
    if there
        .map_err(|error| status::of_kube("GET", "sweeps", error))?
        .is_some()
    {
        return Err(exists());
    }
    let id = Uuid::new_v4();
    let subject = custody::request_of_sweep(&name, &matching::words(&spec.select), id);
    let by = (who.id.as_str(), who.certificate);
    custody::authorised(&service.context, &case, by, &subject, &spec.reason)
        .await
        .map_err(Status::unavailable)?;
    let mut wanted = Sweep::new(&name, spec);
    wanted.metadata.annotations = Some([(custody::REQUEST.into(), id.to_string())].into());
    let error = match api(service).create(&PostParams::default(), &wanted).await {
        Ok(created) => {
            return Ok(wire::CreateSweepResponse {
                sweep: Some(shown(&created)),
                plan: None,
            });
        }
        Err(error) => from_kube("POST", "sweeps", error),
    };
    let why = crate::describe::describe(&error);
    if let Err(problem) = custody::withdrawn(&service.context, &case, &subject, &why).await {
        tracing::error!(%case, problem, "that nothing was made is not in the custody log");
    }
    match error {
        error if error.is_conflict() => Err(exists()),
        error => Err(status::of_api(&error)),
    }
}

pub(super) async fn find(service: &Service, name: &str) -> Result<Sweep, Status> {
    status::checked_name("name", name)?;
    let found = api(service).get_opt(name).await;
    found
        .map_err(|error| status::of_kube("GET", name, error))?
        .ok_or_else(|| {
            Status::not_found(format!(
                "no sweep is named {name}: see `impound sweep list`"
            ))
        })
}

pub(super) async fn list(
    service: &Service,
    request: wire::ListSweepsRequest,
) -> Result<wire::ListSweepsResponse, Status> {
    let all = api(service).list(&ListParams::default()).await;
    let mut items = all
        .map_err(|error| status::of_kube("GET", "sweeps", error))?
        .items;
    items.retain(|item| request.case_id.is_empty() || item.spec.case == request.case_id);
    items.sort_by_key(|item| item.metadata.creation_timestamp.clone());
    Ok(wire::ListSweepsResponse {
        sweeps: items.iter().map(shown).collect(),
    })
}

pub(super) async fn watch(
    service: &Service,
    request: wire::WatchSweepRequest,
) -> Result<Answers<wire::Sweep>, Status> {
    find(service, &request.name).await?;
    let changes = watcher::watch_object(api(service), &request.name)
        .default_backoff()
        // A failed watch is begun again by itself; the stream goes on until the object is deleted.
        .filter_map(|change| async { change.ok() })
        .take_while(|change| std::future::ready(change.is_some()))
        .filter_map(|change| async { change.map(Ok::<_, Status>) });
    // `take_while` would swallow the last one, so the end is made after it.
    let until_over = stream::try_unfold(Some(changes.boxed()), |state| async move {
        let Some(mut changes) = state else {
            return Ok(None);
        };
        let change = changes.try_next().await?;
        Ok(change.map(|sweep| {
            let status = sweep.status.as_ref();
            let over = status.is_some_and(|status| status.phase.is_final());
            (shown(&sweep), (!over).then_some(changes))
        }))
    });
    Ok(until_over.boxed())
}

/// Changes whether a sweep goes on. That it was wished is in the custody log first.
pub(super) async fn set(
    service: &Service,
    who: &Requester,
    request: wire::SetSweepRequest,
) -> Result<wire::Sweep, Status> {
    status::checked_text("reason", &request.reason, REASON_LIMIT)?;
    let state = match request.state.as_str() {
        "Running" => SweepState::Running,
        "Paused" => SweepState::Paused,
        "Cancelled" => SweepState::Cancelled,
        other => {
            return Err(Status::invalid_argument(format!(
                "state is {other:?}, expected Running, Paused or Cancelled"
            )));
        }
    };
    let found = find(service, &request.name).await?;
    let phase = found.status.as_ref().map(|status| status.phase);
    if let Some(phase) = phase.filter(|phase| phase.is_final()) {
        return Err(Status::failed_precondition(format!(
            "sweep {} has ended already ({phase:?}): create another one",
            request.name
        )));
    }
    if found.spec.state == SweepState::Cancelled && state != SweepState::Cancelled {
        return Err(Status::failed_precondition(format!(
            "sweep {} is cancelled and stays so: create another one",
            request.name
        )));
    }
    let case: CaseId = found
        .spec
        .case
        .parse()
        .map_err(|error: NameError| status::of_name(&error))?;
    let uid = found.metadata.uid.clone().unwrap_or_default();
    let subject = custody::wish_of_sweep(state.wish(), &request.name, &uid);
    let by = (who.id.as_str(), who.certificate);
    custody::authorised(&service.context, &case, by, &subject, &request.reason)
        .await
        .map_err(Status::unavailable)?;
    let patch = json!({ "metadata": { "uid": uid }, "spec": { "state": state } });
    let changed = api(service)
        .patch(&request.name, &manager(), &Patch::Merge(patch))
        .await
        .map_err(|error| status::of_kube("PATCH", &request.name, error))?;
    Ok(shown(&changed))
}

/// The targets, a roster at a time.
pub(super) async fn targets(
    service: &Service,
    request: wire::ListSweepTargetsRequest,
) -> Result<Answers<wire::ListSweepTargetsResponse>, Status> {
    let found = find(service, &request.name).await?;
    let uid = found.uid().unwrap_or_default();
    let rosters = found.status.unwrap_or_default().rosters;
    let api = Api::<SweepRoster>::all(service.context.client.clone());
    let answers = stream::iter(rosters).then(move |name| {
        let (api, uid) = (api.clone(), uid.clone());
        async move {
            let roster = api.get(&name).await;
            let roster = roster.map_err(|error| status::of_kube("GET", &name, error))?;
            let first = usize::try_from(roster.spec.first).unwrap_or(usize::MAX);
            let mut states = roster.status.unwrap_or_default().targets;
            states.resize(roster.spec.targets.len(), TargetStatus::default());
            let targets = roster.spec.targets.iter().zip(states);
            let targets = targets.enumerate().map(|(at, (target, state))| {
                let SweepTarget {
                    namespace,
                    pod,
                    uid: pod_uid,
                    node,
                } = target.clone();
                wire::SweepTarget {
                    namespace,
                    pod,
                    pod_uid,
                    node,
                    state: format!("{:?}", state.state),
                    message: state.message,
                    bytes: state.bytes,
                    case_id: roster.spec.case.clone(),
                    collection: collection_name(&uid, target, first.saturating_add(at)),
                }
            });
            Ok(wire::ListSweepTargetsResponse {
                targets: targets.collect(),
            })
        }
    });
    Ok(answers.boxed())
}

/// The wire form.
pub(super) fn shown(object: &Sweep) -> wire::Sweep {
    let metadata = &object.metadata;
    let spec = object.spec.clone();
    let status = object.status.clone().unwrap_or_default();
    let exception = |one: SweepException| wire::SweepTarget {
        namespace: one.namespace,
        pod: one.pod,
        node: one.node,
        state: format!("{:?}", one.state),
        message: one.message,
        ..wire::SweepTarget::default()
    };
    wire::Sweep {
        name: object.name_any(),
        case_id: spec.case,
        reason: spec.reason,
        requested_by: spec.requested_by,
        select: Some(wire::PodSelection {
            all_namespaces: spec.select.all_namespaces,
            namespaces: spec.select.namespaces,
            labels: spec.select.labels,
            node_labels: spec.select.node_labels,
            images: spec.select.images,
            owner: spec.select.owner,
        }),
        at_once: spec.at_once,
        per_node: spec.per_node,
        expires: spec.expires.as_ref().map(convert::second),
        state: format!("{:?}", spec.state),
        phase: format!("{:?}", status.phase),
        message: status.message,
        targets: status.targets,
        nodes: status.nodes,
        namespaces: status.namespaces,
        left_out: status.left_out,
        counts: Some(counts(status.counts)),
        bytes: status.bytes,
        exceptions: status.exceptions.into_iter().map(exception).collect(),
        more_exceptions: status.more_exceptions,
        created: metadata.creation_timestamp.as_ref().map(convert::second),
        expanded: status.expanded.as_ref().map(convert::micro),
        finished: status.finished.as_ref().map(convert::micro),
        resource_version: metadata.resource_version.clone().unwrap_or_default(),
    }
}

fn counts(counts: SweepCounts) -> wire::SweepCounts {
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
    wire::SweepCounts {
        waiting,
        running,
        sealed,
        partial,
        failed,
        absent,
        expired,
        cancelled,
    }
}

fn checked(request: wire::CreateSweepRequest, requested_by: String) -> Result<SweepSpec, Status> {
    status::checked_text("reason", &request.reason, REASON_LIMIT)?;
    let _: CaseId = request
        .case_id
        .parse()
        .map_err(|error| status::of_name(&error))?;
    if request.case_id.len() > SWEEP_CASE {
        return Err(Status::invalid_argument(format!(
            "case_id has {} characters, at most {SWEEP_CASE} are allowed for a sweep",
            request.case_id.len()
        )));
    }
    let wire::PodSelection {
        all_namespaces,
        namespaces,
        labels,
        node_labels,
        images,
        owner,
    } = request.select.unwrap_or_default();
    if all_namespaces != namespaces.is_empty() {
        return Err(Status::invalid_argument(
            "name the namespaces, or select all of them, and not both",
        ));
    }
    let bounded = |field: &str, value: u32, default: u32, most: u32| match value {
        0 => Ok(default),
        value if value <= most => Ok(value),
        value => Err(Status::invalid_argument(format!(
            "{field} is {value}, expected 1 to {most}"
        ))),
    };
    let expires = request.expires.map(|expires| {
        let time = Timestamp::new(expires.seconds, expires.nanos);
        time.map(Time)
            .map_err(|error| Status::invalid_argument(format!("expires is no time: {error}")))
    });
    let expires = expires.transpose()?;
    if expires
        .as_ref()
        .is_some_and(|time| time.0 <= Timestamp::now())
    {
        return Err(Status::invalid_argument(
            "expires is in the past: nothing would be collected",
        ));
    }
    status::checked_recipients(&request.encrypt_to)?;
    Ok(SweepSpec {
        select: Selection {
            all_namespaces,
            namespaces,
            labels,
            node_labels,
            images,
            owner,
        },
        case: request.case_id,
        reason: request.reason,
        requested_by,
        pause: request.pause,
        freeze: request.freeze,
        encrypt_to: request.encrypt_to,
        at_once: bounded("at_once", request.at_once, sweep::at_once(), 256)?,
        per_node: bounded("per_node", request.per_node, sweep::per_node(), 16)?,
        expires,
        state: SweepState::Running,
    })
}

async fn selected(
    service: &Service,
    selection: &Selection,
) -> Result<crate::sweep::Selected, Status> {
    let context = &service.context;
    let selected = select(&context.client, selection, &context.settings).await;
    selected.map_err(|error| match error {
        SelectError::Refused(why) => Status::failed_precondition(why),
        SelectError::Api(error) => status::of_api(&error),
    })
}

fn api(service: &Service) -> Api<Sweep> {
    Api::all(service.context.client.clone())
}
