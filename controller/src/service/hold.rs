//! Legal holds over gRPC: put on every object of a sealed collection, or lifted. The custody log has it first,
//! and what the store then did not do.

use futures::{StreamExt as _, stream};
use impound_evidence::{BUNDLE, Entry, Event, EvidencePath, case_log};
use impound_proto::PeerId;
use impound_proto::controller::v1 as wire;
use tonic::Status;

use super::authorise::Requester;
use super::evidence::{collection_id, entry, log};
use super::quarantines::REASON_LIMIT;
use super::{Service, status};
use crate::describe::describe;

/// Requests to the store at the same time.
const AT_ONCE: usize = 8;
/// Most problems that are named.
const PROBLEMS: usize = 100;

pub(super) async fn hold(
    service: &Service,
    who: &Requester,
    request: wire::HoldEvidenceRequest,
) -> Result<wire::HoldEvidenceResponse, Status> {
    status::checked_text("reason", &request.reason, REASON_LIMIT)?;
    let at = collection_id(&request.case_id, &request.collection)?;
    if case_log().is_ok_and(|log| log == at.name) {
        return Err(Status::invalid_argument(format!(
            "{at} is the case's custody log, which goes on: hold its collections, each of which has a copy"
        )));
    }
    let bundle: EvidencePath = BUNDLE.parse().map_err(|error| status::of_name(&error))?;
    let of_store = |error| status::of_store(&error);
    let objects = service.store.holdable(&at).await.map_err(of_store)?;
    let sealed = service.store.size(&at, &bundle).await.map_err(of_store)?;
    if sealed.is_none() {
        return Err(Status::failed_precondition(format!(
            "collection {at} is not sealed, and what is still to come would not be held: wait until `impound status collection/{}` says Sealed",
            at.name
        )));
    }
    let (on, count) = (!request.lift, objects.len());
    let word = if on { "put on" } else { "lifted from" };
    let what = format!("legal hold {word} {count} objects");
    log(
        service,
        &at,
        entry(Event::Hold, who, what).because(request.reason),
    )
    .await?;
    let store = &service.store;
    let done = stream::iter(objects).map(|object| async move {
        let held = store.hold(&object, on).await;
        held.map_err(|error| format!("{}: {}", object.key, describe(&error)))
    });
    let done: Vec<_> = done.buffer_unordered(AT_ONCE).collect().await;
    let mut problems: Vec<String> = done.into_iter().filter_map(Result::err).collect();
    problems.sort();
    let failed = problems.len();
    if let Some(first) = problems.first() {
        let what = format!("legal hold not {word} {failed} of {count} objects");
        let entry = Entry::new(Event::Failed, PeerId::Controller.to_string(), what);
        log(service, &at, entry.because(first.clone())).await?;
    }
    problems.truncate(PROBLEMS);
    Ok(wire::HoldEvidenceResponse {
        objects: (count - failed) as u64,
        problems,
        failed: failed as u64,
    })
}
