//! Quarantines over gRPC: planned, created, found, watched, released.

use futures::{StreamExt, TryStreamExt, stream};
use impound_evidence::CaseId;
use impound_proto::controller::v1 as wire;
use kube::api::{Api, ListParams, Patch, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::json;
use tonic::Status;
use uuid::Uuid;

use super::authorise::Requester;
use super::{Answers, Service, convert, isolation, status};
use crate::contain::observe;
use crate::contain::plan::NAME_LIMIT;
use crate::contain::settings::FINALIZER;
use crate::kubernetes::from_kube;
use crate::reconcile::collecting;
use crate::reconcile::containing::prepare;
use crate::reconcile::custody;
use crate::reconcile::next_step::evidence_is_safe;
use crate::reconcile::record::{Record, manager};
use crate::reconcile::releasing;
use crate::resources::{
    Quarantine, QuarantinePhase, QuarantineSpec, QuarantineStatus, ReleaseSpec,
};

/// Longest reason, in characters, as the schema says.
pub(super) const REASON_LIMIT: usize = 1024;

/// How much of a pod's uid is in the name of its quarantine.
const UID_LENGTH: usize = 8;

/// How many quarantines of one pod get a name of their own.
const NAMES: u32 = 100;

pub(super) async fn plan(
    service: &Service,
    request: wire::CreateQuarantineRequest,
) -> Result<wire::CreateQuarantineResponse, Status> {
    let (namespace, spec) = checked(request, String::new())?;
    // The uid is part of the name, and the name of the calls.
    let (_, pod) = observe::suspect(&service.context.client, &namespace, &spec.pod)
        .await
        .map_err(|error| status::of_observe(&error))?;
    let name = base_name(
        &spec.pod,
        pod.metadata.uid.as_deref().unwrap_or_default(),
        UID_LENGTH,
    );
    let (_, plan) = prepare(&service.context, &namespace, &name, &spec)
        .await
        .map_err(|error| status::of_observe(&error))?;
    Ok(wire::CreateQuarantineResponse {
        quarantine: None,
        plan: Some(convert::plan(&plan)),
    })
}

pub(super) async fn create(
    service: &Service,
    who: Requester,
    request: wire::CreateQuarantineRequest,
) -> Result<wire::CreateQuarantineResponse, Status> {
    let (namespace, mut spec) = checked(request, who.id)?;
    // Planned here only to refuse at once what can't be contained; the reconciler plans again.
    let (observed, plan) = prepare(&service.context, &namespace, "planned", &spec)
        .await
        .map_err(|error| status::of_observe(&error))?;
    spec.pod_uid = observed.pod.metadata.uid.clone();
    let base = base_name(
        &spec.pod,
        spec.pod_uid.as_deref().unwrap_or_default(),
        UID_LENGTH,
    );
    let case: CaseId = spec.case.parse().map_err(|error| status::of_name(&error))?;
    let stored = service
        .store
        .collections(&case)
        .await
        .map_err(|error| status::of_store(&error))?;
    let api = api(service, &namespace);
    for number in 1..=NAMES {
        let name = if number == 1 {
            base.clone()
        } else {
            format!("{base}-{number}")
        };
        // The collection gets the same name, and a collection is never written twice.
        if stored.iter().any(|collection| collection.as_str() == name) {
            continue;
        }
        // Containment does not wait for a store that is away: then the log says that the requester is
        // only claimed.
        let id = Uuid::new_v4();
        let pod = (spec.pod.as_str(), spec.pod_uid.as_deref());
        let subject = custody::request("quarantine", &namespace, &name, pod, id);
        let context = &service.context;
        let by = (spec.requested_by.as_str(), who.certificate);
        let logged = custody::authorised(context, &case, by, &subject, &spec.reason);
        if let Err(problem) = custody::within(custody::AT_ONCE, logged).await {
            tracing::error!(%case, problem, "a request is not in the custody log");
        }
        let mut quarantine = Quarantine::new(&name, spec.clone());
        quarantine.metadata.finalizers = Some(vec![FINALIZER.into()]);
        quarantine.metadata.annotations = Some([(custody::REQUEST.into(), id.to_string())].into());
        match api.create(&PostParams::default(), &quarantine).await {
            Ok(created) => {
                service.cases.learn(&created);
                return Ok(wire::CreateQuarantineResponse {
                    quarantine: Some(convert::quarantine(&created)),
                    plan: Some(convert::plan(&plan)),
                });
            }
            Err(error) => {
                let error = from_kube("POST", "quarantines", error);
                let why = crate::describe::describe(&error);
                let logged = custody::withdrawn(context, &case, &subject, &why);
                if let Err(problem) = custody::within(custody::AT_ONCE, logged).await {
                    tracing::error!(%case, problem, "that nothing was made is not in the custody log");
                }
                if !error.is_conflict() {
                    return Err(status::of_api(&error));
                }
            }
        }
    }
    Err(Status::already_exists(format!(
        "pod {namespace}/{} has been quarantined {NAMES} times already: delete released quarantines",
        spec.pod
    )))
}

/// The quarantine of that name, or the latest one of the pod of that name.
pub(super) async fn find(
    service: &Service,
    namespace: &str,
    name: &str,
) -> Result<Quarantine, Status> {
    status::checked_name("namespace", namespace)?;
    status::checked_name("name", name)?;
    let api = api(service, namespace);
    let by_name = api
        .get_opt(name)
        .await
        .map_err(|error| status::of_kube("GET", name, error))?;
    if let Some(found) = by_name {
        service.cases.learn(&found);
        return Ok(found);
    }
    let all = api
        .list(&ListParams::default())
        .await
        .map_err(|error| status::of_kube("GET", "quarantines", error))?;
    let latest = all
        .items
        .into_iter()
        .filter(|quarantine| quarantine.spec.pod == name)
        .max_by_key(|quarantine| quarantine.metadata.creation_timestamp.clone());
    latest
        .inspect(|found| service.cases.learn(found))
        .ok_or_else(|| {
            Status::not_found(format!(
                "no quarantine and no quarantined pod is named {name} in namespace {namespace}: \
                 see `impound list`"
            ))
        })
}

pub(super) async fn list(
    service: &Service,
    request: wire::ListQuarantinesRequest,
) -> Result<wire::ListQuarantinesResponse, Status> {
    let client = service.context.client.clone();
    let api: Api<Quarantine> = if request.namespace.is_empty() {
        Api::all(client)
    } else {
        status::checked_name("namespace", &request.namespace)?;
        Api::namespaced(client, &request.namespace)
    };
    let mut items = api
        .list(&ListParams::default())
        .await
        .map_err(|error| status::of_kube("GET", "quarantines", error))?
        .items;
    items.retain(|item| request.case_id.is_empty() || item.spec.case == request.case_id);
    items.sort_by_key(|item| item.metadata.creation_timestamp.clone());
    items.iter().for_each(|item| service.cases.learn(item));
    Ok(wire::ListQuarantinesResponse {
        quarantines: items.iter().map(convert::quarantine).collect(),
    })
}

pub(super) async fn watch(
    service: &Service,
    request: wire::WatchQuarantineRequest,
) -> Result<Answers<wire::Quarantine>, Status> {
    let found = find(service, &request.namespace, &request.name).await?;
    let name = found.metadata.name.clone().unwrap_or_default();
    let changes = watcher::watch_object(api(service, &request.namespace), &name)
        .default_backoff()
        // A failed watch is begun again by itself; the stream goes on until the object is deleted.
        .filter_map(|change| async { change.ok() })
        .take_while(|change| std::future::ready(change.is_some()))
        .filter_map(|change| async { change.map(Ok::<_, Status>) });
    let follow = request.follow;
    // `take_while` would swallow the last one, so the end is made after it.
    let until_settled = stream::try_unfold(Some(changes.boxed()), move |state| async move {
        let Some(mut changes) = state else {
            return Ok(None);
        };
        match changes.try_next().await? {
            None => Ok(None),
            Some(quarantine) => {
                let over = !follow && is_settled(&quarantine);
                let answer = convert::quarantine(&quarantine);
                Ok(Some((answer, (!over).then_some(changes))))
            }
        }
    });
    Ok(until_settled.boxed())
}

pub(super) async fn release(
    service: &Service,
    who: Requester,
    request: wire::ReleaseQuarantineRequest,
) -> Result<wire::Quarantine, Status> {
    status::checked_text("reason", &request.reason, REASON_LIMIT)?;
    let found = find(service, &request.namespace, &request.name).await?;
    let name = found.metadata.name.clone().unwrap_or_default();
    let recorded = found.status.clone().unwrap_or_default();
    refuse_release(service, &found, &recorded, &name, request.force).await?;
    let case: CaseId = found
        .spec
        .case
        .parse()
        .map_err(|error| status::of_name(&error))?;
    let uid = found.metadata.uid.clone().unwrap_or_default();
    let subject = custody::subject("release of quarantine", &request.namespace, &name, &uid);
    let by = (who.id.as_str(), who.certificate);
    custody::authorised(&service.context, &case, by, &subject, &request.reason)
        .await
        .map_err(Status::unavailable)?;
    let release = ReleaseSpec {
        reason: request.reason,
        requested_by: who.id,
        force: request.force,
    };
    let patch =
        json!({ "metadata": { "uid": found.metadata.uid }, "spec": { "release": release } });
    let released = api(service, &request.namespace)
        .patch(&name, &manager(), &Patch::Merge(patch))
        .await
        .map_err(|error| status::of_kube("PATCH", &name, error))?;
    Ok(convert::quarantine(&released))
}

/// What a release would do, without doing it. Refused where the release would be.
pub(super) async fn plan_release(
    service: &Service,
    request: wire::ReleaseQuarantineRequest,
) -> Result<wire::Plan, Status> {
    let found = find(service, &request.namespace, &request.name).await?;
    let name = found.metadata.name.clone().unwrap_or_default();
    let recorded = found.status.clone().unwrap_or_default();
    refuse_release(service, &found, &recorded, &name, request.force).await?;
    let record = Record::new(found, service.context.clone());
    let release = releasing::plan(&record, &service.context)
        .await
        .map_err(|error| status::of_observe(&error))?;
    Ok(convert::calls(&release.calls, &release.warnings))
}

async fn refuse_release(
    service: &Service,
    found: &Quarantine,
    recorded: &QuarantineStatus,
    name: &str,
    force: bool,
) -> Result<(), Status> {
    match recorded.phase {
        QuarantinePhase::Released => {
            return Err(Status::failed_precondition(format!(
                "{name} is released already"
            )));
        }
        QuarantinePhase::Refused => {
            return Err(Status::failed_precondition(format!(
                "{name} changed nothing, so there is nothing to release: {}",
                recorded.message
            )));
        }
        _ => {}
    }
    let record = Record::new(found.clone(), service.context.clone());
    let collection = collecting::find(&record, &service.context, &record.first_collection())
        .await
        .map_err(|error| status::of_api(&error))?
        .and_then(|collection| collection.status);
    if force || evidence_is_safe(&found.spec, recorded, collection.as_ref()) {
        return Ok(());
    }
    Err(Status::failed_precondition(releasing::refusal()))
}

/// Nothing more happens to the object as it is: the phase is final, and it is an answer to the
/// last change of the spec.
fn is_settled(quarantine: &Quarantine) -> bool {
    quarantine.status.as_ref().is_some_and(|status| {
        status.phase.is_final() && status.observed_generation == quarantine.metadata.generation
    })
}

fn checked(
    request: wire::CreateQuarantineRequest,
    requested_by: String,
) -> Result<(String, QuarantineSpec), Status> {
    status::checked_name("namespace", &request.namespace)?;
    status::checked_name("pod", &request.pod)?;
    status::checked_text("reason", &request.reason, REASON_LIMIT)?;
    let _: CaseId = request
        .case_id
        .parse()
        .map_err(|error| status::of_name(&error))?;
    status::checked_recipients(&request.encrypt_to)?;
    let spec = QuarantineSpec {
        pod: request.pod,
        pod_uid: Some(request.pod_uid).filter(|uid| !uid.is_empty()),
        case: request.case_id,
        reason: request.reason,
        requested_by,
        keep_neighbours: request.keep_neighbours,
        evict_unmanaged: request.evict_unmanaged,
        delete_empty_dir_data: request.delete_empty_dir_data,
        exclude_from_policies: request.exclude_from_policies,
        skip_collection: request.skip_collection,
        pause: request.pause,
        isolation: isolation::spec(request.isolation)?,
        freeze: request.freeze,
        encrypt_to: request.encrypt_to,
        release: None,
    };
    Ok((request.namespace, spec))
}

/// Beginnings of a pod's name and of what tells its objects apart, short enough for a label value
/// and a number behind it.
pub(super) fn base_name(pod: &str, distinction: &str, length: usize) -> String {
    const NUMBER: usize = 4;
    let room = NAME_LIMIT - length - NUMBER - 1;
    let pod: String = pod.chars().take(room).collect();
    let distinction: String = distinction.chars().take(length).collect();
    format!("{}-{distinction}", pod.trim_end_matches(['-', '.']))
}

fn api(service: &Service, namespace: &str) -> Api<Quarantine> {
    Api::namespaced(service.context.client.clone(), namespace)
}
