//! Sealed evidence over gRPC: listed, read, verified. Each read, and each list that is not the same as one of a few
//! minutes ago, is written into the custody log before the first byte goes out.

use futures::{StreamExt, TryStreamExt, stream};
use impound_evidence::{
    CaseId, CollectionName, Completeness, Entry, Event, EvidencePath, Given, MANIFEST,
    MANIFEST_LIMIT, Manifest, Outcome, Sha256Hasher, case_log, verify_watched,
};
use impound_proto::controller::v1 as wire;
use tonic::Status;
use wire::read_evidence_response::Message;

use super::authorise::Requester;
use super::listed::Listing;
use super::{Answers, Service, status};
use crate::describe::describe;
use crate::resources::sweep::{CASE_TARGETS, MOST_TARGETS};
use crate::store::{CollectionId, StoredFile};
use crate::sweep::list::case_of;

pub(super) async fn list(
    service: &Service,
    who: &Requester,
    request: wire::ListEvidenceRequest,
) -> Result<wire::ListEvidenceResponse, Status> {
    let case: CaseId = request
        .case_id
        .parse()
        .map_err(|error| status::of_name(&error))?;
    let wanted = match request.collection.as_str() {
        "" => None,
        name => Some(
            name.parse::<CollectionName>()
                .map_err(|error| status::of_name(&error))?,
        ),
    };
    let further = match wanted {
        None => further_cases(&case),
        Some(_) => Vec::new(),
    };
    let mut files = Vec::new();
    for case in std::iter::once(case.clone()).chain(further) {
        let mut names = service
            .store
            .collections(&case)
            .await
            .map_err(|error| status::of_store(&error))?;
        names.retain(|name| wanted.as_ref().is_none_or(|wanted| wanted == name));
        names.sort();
        let before = files.len();
        for name in names {
            let at = CollectionId {
                case: case.clone(),
                name,
            };
            let manifest = manifest(service, &at).await?;
            let stored = service.store.list(&at).await;
            let stored = stored.map_err(|error| status::of_store(&error))?;
            let described = stored
                .iter()
                .map(|file| described(&at, file, manifest.as_ref()));
            files.extend(described);
        }
        let listed = files.len() - before;
        if listed > 0 {
            let listing = Listing {
                case: case.clone(),
                collection: wanted.clone().filter(|name| !is_log_of_case(name)),
                who: who.clone(),
                files: listed,
            };
            let written = service.listings.note(listing).await;
            written.map_err(|error| not_written(&case, &error))?;
        }
    }
    if files.is_empty() {
        return Err(Status::not_found(format!(
            "no evidence of case {case}{} is in the store: see `impound list collections`",
            if request.collection.is_empty() {
                String::new()
            } else {
                format!(" in collection {}", request.collection)
            }
        )));
    }
    Ok(wire::ListEvidenceResponse { files })
}

/// The cases that a sweep of this case may have made besides.
fn further_cases(case: &CaseId) -> Vec<CaseId> {
    let firsts = (1..=MOST_TARGETS).step_by(CASE_TARGETS).skip(1);
    // One that is too long for a sweep has none.
    let cases = firsts.filter_map(|first| case_of(case.as_str(), first).parse().ok());
    cases.collect()
}

pub(super) async fn read(
    service: &Service,
    who: &Requester,
    request: wire::ReadEvidenceRequest,
) -> Result<Answers<wire::ReadEvidenceResponse>, Status> {
    let at = collection_id(&request.case_id, &request.collection)?;
    let path: EvidencePath = request
        .path
        .parse()
        .map_err(|error| status::of_name(&error))?;
    let manifest = manifest(service, &at).await?;
    let reader = service
        .store
        .read(&at, &path, request.offset)
        .await
        .map_err(|error| status::of_store(&error))?;
    // Reading the case's log itself is no access to evidence, and would change what is being read. A collection's
    // copy of it is a file like any other.
    if !is_log_of_case(&at.name) {
        let (event, what) = match request.offset {
            0 => (
                Event::Exported,
                format!("{path}, all {} bytes", reader.size),
            ),
            offset => (Event::Accessed, format!("{path} from byte {offset} on")),
        };
        log(service, &at, entry(event, who, what)).await?;
    }
    let sha256 = manifest
        .as_ref()
        .and_then(|manifest| manifest.stored_artifact(&path))
        .map(|record| record.stored_sha256().to_string())
        .unwrap_or_default();
    let header = Message::Header(wire::ReadEvidenceHeader {
        size: reader.size,
        sha256,
    });
    let chunks = reader.chunks.map_err(|error| status::of_store(&error));
    let start = (chunks, request.offset, Some(Sha256Hasher::new()));
    let body = stream::try_unfold(start, |(mut chunks, offset, hasher)| async move {
        let Some(mut hasher) = hasher else {
            return Ok(None);
        };
        let answer = match chunks.try_next().await? {
            Some(data) => {
                hasher.update(&data);
                let next = offset + data.len() as u64;
                let chunk = wire::EvidenceChunk { offset, data };
                (Message::Chunk(chunk), (chunks, next, Some(hasher)))
            }
            None => {
                let sha256 = hasher.finish().to_string();
                (
                    Message::Trailer(wire::ReadEvidenceTrailer { sha256 }),
                    (chunks, offset, None),
                )
            }
        };
        Ok::<_, Status>(Some(answer))
    });
    let messages = stream::once(async { Ok(header) }).chain(body);
    Ok(messages
        .map_ok(|message| wire::ReadEvidenceResponse {
            message: Some(message),
        })
        .boxed())
}

pub(super) async fn verify(
    service: &Service,
    who: &Requester,
    request: wire::VerifyEvidenceRequest,
) -> Result<wire::VerifyEvidenceResponse, Status> {
    // Each re-reads a whole collection: one at a time, so that nobody starves the store.
    let _alone = service.verifying.try_acquire().map_err(|_| {
        Status::resource_exhausted("a verification is running already: try again when it has ended")
    })?;
    let at = collection_id(&request.case_id, &request.collection)?;
    if is_log_of_case(&at.name) {
        return Err(Status::invalid_argument(format!(
            "{at} is the case's custody log, not a collection: check it with `impound custody verify {}`",
            at.case
        )));
    }
    if service
        .store
        .list(&at)
        .await
        .map_err(|error| status::of_store(&error))?
        .is_empty()
    {
        return Err(Status::not_found(format!(
            "there is no collection {at} in the store: `impound evidence ls {}` lists what there is",
            at.case
        )));
    }
    let source = service.store.evidence(&at);
    let keys = service.context.custody.trusted().to_vec();
    let given = Given {
        authority: service.context.collector.stamp_authority(),
        ..Given::default()
    };
    let verdict =
        tokio::task::spawn_blocking(move || verify_watched(&source, &keys, &given, &|_| ()))
            .await
            .map_err(|error| Status::internal(describe(&error)))?;
    let intact = verdict.intact();
    let word = if intact { "intact" } else { "NOT intact" };
    let mut what = format!(
        "{} files, {} bytes re-read: {word}",
        verdict.files, verdict.bytes
    );
    if verdict.closed > 0 {
        what = format!("{what}; not what is in {} encrypted files", verdict.closed);
    }
    for warning in &verdict.warnings {
        what = format!("{what}; warning: {warning}");
    }
    log(service, &at, entry(Event::Verified, who, what)).await?;
    Ok(wire::VerifyEvidenceResponse {
        intact,
        complete: intact && verdict.outcome == Some(Outcome::Complete),
        problems: verdict.problems.iter().map(ToString::to_string).collect(),
        files: verdict.files,
        bytes: verdict.bytes,
        closed: verdict.closed,
    })
}

/// What the caller does.
pub(super) fn entry(event: Event, who: &Requester, what: String) -> Entry {
    let mut entry = Entry::new(event, who.id.as_str(), what);
    entry.certificate_sha256 = who.certificate;
    entry
}

/// What can't be recorded does not happen.
pub(super) async fn log(service: &Service, at: &CollectionId, entry: Entry) -> Result<(), Status> {
    let written = service.context.custody.append(at, entry).await;
    written.map(drop).map_err(|error| not_written(at, &error))
}

fn not_written(of: &dyn std::fmt::Display, error: &dyn std::error::Error) -> Status {
    let why = describe(error);
    Status::unavailable(format!(
        "the custody log of {of} can't be written, and what can't be recorded is not done: {why}; see `impound doctor`"
    ))
}

/// Whether it is the place of the case's custody log, which is no collection.
fn is_log_of_case(name: &CollectionName) -> bool {
    case_log().is_ok_and(|log| log == *name)
}

async fn manifest(service: &Service, at: &CollectionId) -> Result<Option<Manifest>, Status> {
    let path: EvidencePath = MANIFEST.parse().map_err(|error| status::of_name(&error))?;
    let bytes = service
        .store
        .read_small(at, &path, MANIFEST_LIMIT)
        .await
        .map_err(|error| status::of_store(&error))?;
    // A broken manifest must not keep anybody from looking at the files; verify says what is wrong.
    Ok(bytes.and_then(|bytes| Manifest::decode(&bytes).ok()))
}

fn described(
    at: &CollectionId,
    file: &StoredFile,
    manifest: Option<&Manifest>,
) -> wire::EvidenceFile {
    let record = manifest.and_then(|manifest| manifest.stored_artifact(&file.path));
    wire::EvidenceFile {
        case_id: at.case.to_string(),
        collection: at.name.to_string(),
        path: file.path.to_string(),
        size: file.size,
        sha256: record
            .map(|record| record.stored_sha256().to_string())
            .unwrap_or_default(),
        completeness: match record.map(|record| &record.completeness) {
            Some(Completeness::Complete) => "complete".into(),
            Some(Completeness::Incomplete { .. }) => "incomplete".into(),
            None => String::new(),
        },
    }
}

pub(super) fn collection_id(case: &str, name: &str) -> Result<CollectionId, Status> {
    Ok(CollectionId {
        case: case.parse().map_err(|error| status::of_name(&error))?,
        name: name.parse().map_err(|error| status::of_name(&error))?,
    })
}
