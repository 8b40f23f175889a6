//! Making an image of a container: one at a time, only if it fits, never over another image.

use std::sync::Arc;
use std::time::SystemTime;

use impound_evidence::CaseId;
use impound_proto::agent::v1::{CommitRequest, CommitResponse};
use tonic::Status;
use tracing::Instrument;

use super::call::Call;
use super::{CASE_LABEL, SOURCE_LABEL, Shared, status};
use crate::runtime::{Commit, ContainerId, ImageReference};

pub(super) async fn commit(
    shared: &Arc<Shared>,
    call: &Call,
    request: CommitRequest,
) -> Result<CommitResponse, Status> {
    let reference = ImageReference::new(&request.repository, &request.tag)
        .map_err(|error| Status::invalid_argument(error.to_string()))?;
    let case: CaseId = request
        .case_id
        .parse()
        .map_err(|error| Status::invalid_argument(format!("case_id: {error}")))?;
    let id = shared.resolve(call, &request.container_id).await?;
    let mut labels = request.labels;
    labels.insert(CASE_LABEL.to_owned(), case.to_string());
    labels.insert(SOURCE_LABEL.to_owned(), id.to_string());
    let commit = Commit {
        reference,
        message: request.message,
        author: request.author,
        labels,
        pause: request.pause,
    };
    // In a task of its own: the runtime does not stop a commit when its caller leaves, so neither the
    // lock nor the log may end with the call.
    let shared = Arc::clone(shared);
    let work = async move { shared.make(&id, &commit).await }.instrument(call.span());
    match tokio::spawn(work).await {
        Ok(made) => made,
        Err(_) => Err(Status::internal(
            "the agent failed during the commit: see its log",
        )),
    }
}

impl Shared {
    async fn make(&self, id: &ContainerId, commit: &Commit) -> Result<CommitResponse, Status> {
        let _one_at_a_time = self.commits.lock().await;
        let reference = &commit.reference;
        if let Some(image) = self
            .runtime
            .image(reference)
            .await
            .map_err(|error| status::of(&error))?
        {
            return Err(Status::failed_precondition(format!(
                "image {reference} exists already ({}), and an image is never replaced: remove it or give \
                 another tag",
                image.id
            )));
        }
        let size = self
            .runtime
            .writable_size(id)
            .await
            .map_err(|error| status::of(&error))?;
        self.disk
            .require(size, "commit")
            .map_err(|error| status::disk(&error))?;
        let started = SystemTime::now();
        let made = self
            .runtime
            .commit(id, commit)
            .await
            .map_err(|error| status::of(&error))?;
        let finished = SystemTime::now();
        let image_id = made.answer;
        tracing::info!(%reference, image = image_id, bytes = size, pause = commit.pause, "committed");
        Ok(CommitResponse {
            image_id,
            reference: reference.to_string(),
            started: Some(started.into()),
            finished: Some(finished.into()),
            api_call: made.api_call,
        })
    }
}
