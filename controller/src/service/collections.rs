//! Collections over gRPC: created, found, watched while bytes flow.

use futures::StreamExt;
use impound_evidence::{CaseId, CollectionName, case_log};
use impound_proto::controller::v1 as wire;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;
use kube::api::{Api, ListParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use uuid::Uuid;

use super::authorise::Requester;
use super::quarantines::{REASON_LIMIT, base_name};
use super::{Answers, Service, convert, status};
use crate::contain::observe;
use crate::kubernetes::from_kube;
use crate::progress::CollectionProgress;
use crate::reconcile::custody;
use crate::resources::{Collection, CollectionSpec};
use crate::store::CollectionId;

pub(super) async fn create(
    service: &Service,
    who: Requester,
    request: wire::CreateCollectionRequest,
) -> Result<wire::Collection, Status> {
    status::checked_name("namespace", &request.namespace)?;
    status::checked_name("pod", &request.pod)?;
    status::checked_text("reason", &request.reason, REASON_LIMIT)?;
    let case: CaseId = request
        .case_id
        .parse()
        .map_err(|error| status::of_name(&error))?;
    let (_, pod) = observe::suspect(&service.context.client, &request.namespace, &request.pod)
        .await
        .map_err(|error| status::of_observe(&error))?;
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    if !request.pod_uid.is_empty() && request.pod_uid != uid {
        return Err(Status::failed_precondition(format!(
            "pod {}/{} has uid {uid}, expected {}: it was re-created, so what was suspect is gone; leave the uid out to collect the one that is there",
            request.namespace, request.pod, request.pod_uid
        )));
    }
    let node = pod.spec.and_then(|spec| spec.node_name);
    let Some(node) = node else {
        return Err(Status::failed_precondition(format!(
            "pod {}/{} is not scheduled to a node: there is nothing to collect; `kubectl describe pod` says what it waits for",
            request.namespace, request.pod
        )));
    };
    let name = collection_name(&request)?;
    if name == case_log().map_err(|error| status::of_name(&error))? {
        return Err(Status::invalid_argument(format!(
            "no collection can be called {name}: the case's custody log is; choose another --name"
        )));
    }
    status::checked_recipients(&request.encrypt_to)?;
    let at = CollectionId {
        case: case.clone(),
        name: name.clone(),
    };
    let stored = service.context.collector.is_stored(&at).await;
    if stored.map_err(|error| status::of_store(&error))? {
        return Err(exists(&format!("collection {name} of case {case}")));
    }
    let there = api(service, &request.namespace)
        .get_opt(name.as_str())
        .await;
    if let Some(there) = there.map_err(|error| status::of_kube("GET", "collections", error))? {
        return Err(exists_in_namespace(&there));
    }
    // Asked now, so that a node without an agent is an answer and not a collection that fails.
    service
        .context
        .agents
        .connect(&node)
        .await
        .map_err(|error| status::of_agent(&error))?;
    let id = Uuid::new_v4();
    let pod = (request.pod.as_str(), Some(uid.as_str()));
    let subject = custody::request("collection", &request.namespace, name.as_str(), pod, id);
    let by = (who.id.as_str(), who.certificate);
    custody::authorised(&service.context, &case, by, &subject, &request.reason)
        .await
        .map_err(Status::unavailable)?;
    let mut collection = Collection::new(
        name.as_str(),
        CollectionSpec {
            pod: request.pod,
            pod_uid: Some(uid),
            node: Some(node),
            case: request.case_id,
            reason: request.reason,
            requested_by: who.id,
            pause: request.pause,
            freeze: request.freeze,
            encrypt_to: request.encrypt_to,
            quarantine: None,
        },
    );
    collection.metadata.annotations = Some([(custody::REQUEST.into(), id.to_string())].into());
    match api(service, &request.namespace)
        .create(&PostParams::default(), &collection)
        .await
    {
        Ok(created) => Ok(convert::collection(&created, None)),
        Err(error) => {
            let error = from_kube("POST", "collections", error);
            let why = crate::describe::describe(&error);
            if let Err(problem) = custody::withdrawn(&service.context, &case, &subject, &why).await
            {
                tracing::error!(%case, problem, "that nothing was made is not in the custody log");
            }
            match error {
                error if error.is_conflict() => Err(exists(&format!(
                    "collection {name} in namespace {}",
                    request.namespace
                ))),
                error => Err(status::of_api(&error)),
            }
        }
    }
}

pub(super) async fn get(
    service: &Service,
    request: wire::GetCollectionRequest,
) -> Result<wire::Collection, Status> {
    let found = find(service, &request.namespace, &request.name).await?;
    Ok(convert::collection(&found, live(service, &found).as_ref()))
}

pub(super) async fn list(
    service: &Service,
    request: wire::ListCollectionsRequest,
) -> Result<wire::ListCollectionsResponse, Status> {
    let client = service.context.client.clone();
    let api: Api<Collection> = if request.namespace.is_empty() {
        Api::all(client)
    } else {
        status::checked_name("namespace", &request.namespace)?;
        Api::namespaced(client, &request.namespace)
    };
    let mut items = api
        .list(&ListParams::default())
        .await
        .map_err(|error| status::of_kube("GET", "collections", error))?
        .items;
    items.retain(|item| request.case_id.is_empty() || item.spec.case == request.case_id);
    items.sort_by_key(|item| item.metadata.creation_timestamp.clone());
    let collections = items
        .iter()
        .map(|item| convert::collection(item, live(service, item).as_ref()));
    Ok(wire::ListCollectionsResponse {
        collections: collections.collect(),
    })
}

/// The object's changes, and the bytes in between if this replica is the one that collects.
pub(super) async fn watch(
    service: &Service,
    request: wire::WatchCollectionRequest,
) -> Result<Answers<wire::Collection>, Status> {
    let found = find(service, &request.namespace, &request.name).await?;
    let mut objects = watcher::watch_object(api(service, &request.namespace), &request.name)
        .default_backoff()
        .boxed();
    let context = service.context.clone();
    let (send, answers) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut object = found;
        loop {
            let mut progress = context.running.progress(&object);
            let seen = progress
                .as_mut()
                .map(|progress| progress.borrow_and_update().clone());
            let over = is_final(&object);
            let answer = convert::collection(&object, seen.as_ref());
            if send.send(Ok(answer)).await.is_err() || over {
                return;
            }
            tokio::select! {
                change = objects.next() => match change {
                    Some(Ok(Some(newer))) => object = newer,
                    Some(Ok(None)) | None => return,
                    // The watch is begun again by itself.
                    Some(Err(_)) => {}
                },
                () = changed(progress) => {}
                () = send.closed() => return,
            }
        }
    });
    Ok(ReceiverStream::new(answers).boxed())
}

async fn changed(progress: Option<tokio::sync::watch::Receiver<CollectionProgress>>) {
    let ended = match progress {
        Some(mut progress) => progress.changed().await.is_err(),
        None => true,
    };
    if ended {
        // Nothing more comes this way; the object says how it ended.
        std::future::pending::<()>().await;
    }
}

fn live(service: &Service, collection: &Collection) -> Option<CollectionProgress> {
    let progress = service.context.running.progress(collection)?;
    let seen = progress.borrow().clone();
    Some(seen)
}

fn is_final(collection: &Collection) -> bool {
    collection
        .status
        .as_ref()
        .is_some_and(|status| status.phase.is_final())
}

async fn find(service: &Service, namespace: &str, name: &str) -> Result<Collection, Status> {
    status::checked_name("namespace", namespace)?;
    status::checked_name("name", name)?;
    let found = api(service, namespace).get_opt(name).await;
    found
        .map_err(|error| status::of_kube("GET", name, error))?
        .ok_or_else(|| {
            Status::not_found(format!(
                "no collection is named {name} in namespace {namespace}: see `impound list collections`"
            ))
        })
}

fn collection_name(request: &wire::CreateCollectionRequest) -> Result<CollectionName, Status> {
    let name = if request.name.is_empty() {
        // Seconds since 1970 tell collections of one pod apart.
        base_name(&request.pod, &Timestamp::now().as_second().to_string(), 10)
    } else {
        request.name.clone()
    };
    name.parse().map_err(|error| status::of_name(&error))
}

fn exists(what: &str) -> Status {
    Status::already_exists(format!(
        "{what} exists: a collection is never written twice; choose another --name"
    ))
}

fn exists_in_namespace(there: &Collection) -> Status {
    exists(&format!(
        "collection {} in namespace {} (of case {})",
        there.name_any(),
        there.namespace().unwrap_or_default(),
        there.spec.case
    ))
}

fn api(service: &Service, namespace: &str) -> Api<Collection> {
    Api::namespaced(service.context.client.clone(), namespace)
}
