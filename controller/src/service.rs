//! What responders and incident-response platforms call, over gRPC with mutual TLS.
//!
//! Requests become custom resources, which the reconcilers work on: a request that was answered
//! survives a restart. Evidence is read straight from the store.

mod authorise;
mod collections;
mod containers;
mod convert;
mod count;
mod evidence;
mod isolation;
mod quarantines;
mod status;

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use impound_evidence::VerifyingKey;
use impound_proto::controller::v1 as wire;
use impound_proto::controller::v1::controller_server::Controller;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use crate::reconcile::Context;
use crate::store::Store;
use authorise::{Need, requester};
pub use count::Counted;

/// The gRPC service of the controller.
pub struct Service {
    /// Shared with the reconcilers.
    pub context: Arc<Context>,
    /// Where the evidence is.
    pub store: Arc<dyn Store>,
    /// Keys that a manifest may be signed with.
    pub keys: Vec<VerifyingKey>,
    /// Whoever verifies holds the one permit.
    pub verifying: Semaphore,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Controller for Service {
    async fn create_quarantine(
        &self,
        request: Request<wire::CreateQuarantineRequest>,
    ) -> Result<Response<wire::CreateQuarantineResponse>, Status> {
        let who = requester(&request, Need::Respond)?;
        let request = request.into_inner();
        let answer = if request.dry_run {
            quarantines::plan(self, request).await
        } else {
            quarantines::create(self, who, request).await
        };
        answer.map(Response::new)
    }

    async fn get_quarantine(
        &self,
        request: Request<wire::GetQuarantineRequest>,
    ) -> Result<Response<wire::Quarantine>, Status> {
        requester(&request, Need::Look)?;
        let request = request.into_inner();
        let found = quarantines::find(self, &request.namespace, &request.name).await?;
        Ok(Response::new(convert::quarantine(&found)))
    }

    async fn list_quarantines(
        &self,
        request: Request<wire::ListQuarantinesRequest>,
    ) -> Result<Response<wire::ListQuarantinesResponse>, Status> {
        requester(&request, Need::Look)?;
        quarantines::list(self, request.into_inner())
            .await
            .map(Response::new)
    }

    type WatchQuarantineStream = Answers<wire::Quarantine>;

    async fn watch_quarantine(
        &self,
        request: Request<wire::WatchQuarantineRequest>,
    ) -> Result<Response<Self::WatchQuarantineStream>, Status> {
        requester(&request, Need::Look)?;
        quarantines::watch(self, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn release_quarantine(
        &self,
        request: Request<wire::ReleaseQuarantineRequest>,
    ) -> Result<Response<wire::Quarantine>, Status> {
        let who = requester(&request, Need::Respond)?;
        quarantines::release(self, who, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn create_collection(
        &self,
        request: Request<wire::CreateCollectionRequest>,
    ) -> Result<Response<wire::Collection>, Status> {
        let who = requester(&request, Need::Respond)?;
        collections::create(self, who, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn get_collection(
        &self,
        request: Request<wire::GetCollectionRequest>,
    ) -> Result<Response<wire::Collection>, Status> {
        requester(&request, Need::Look)?;
        collections::get(self, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn list_collections(
        &self,
        request: Request<wire::ListCollectionsRequest>,
    ) -> Result<Response<wire::ListCollectionsResponse>, Status> {
        requester(&request, Need::Look)?;
        collections::list(self, request.into_inner())
            .await
            .map(Response::new)
    }

    type WatchCollectionStream = Answers<wire::Collection>;

    async fn watch_collection(
        &self,
        request: Request<wire::WatchCollectionRequest>,
    ) -> Result<Response<Self::WatchCollectionStream>, Status> {
        requester(&request, Need::Look)?;
        collections::watch(self, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn list_evidence(
        &self,
        request: Request<wire::ListEvidenceRequest>,
    ) -> Result<Response<wire::ListEvidenceResponse>, Status> {
        requester(&request, Need::Look)?;
        evidence::list(self, request.into_inner())
            .await
            .map(Response::new)
    }

    type ReadEvidenceStream = Answers<wire::ReadEvidenceResponse>;

    async fn read_evidence(
        &self,
        request: Request<wire::ReadEvidenceRequest>,
    ) -> Result<Response<Self::ReadEvidenceStream>, Status> {
        let who = requester(&request, Need::Read)?;
        evidence::read(self, who, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn verify_evidence(
        &self,
        request: Request<wire::VerifyEvidenceRequest>,
    ) -> Result<Response<wire::VerifyEvidenceResponse>, Status> {
        let who = requester(&request, Need::Respond)?;
        // Each re-reads a whole collection: one at a time, so that nobody starves the store.
        let _alone = self.verifying.try_acquire().map_err(|_| {
            Status::resource_exhausted(
                "a verification is running already: try again when it has ended",
            )
        })?;
        evidence::verify(self, who, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn list_containers(
        &self,
        request: Request<wire::ListContainersRequest>,
    ) -> Result<Response<wire::ListContainersResponse>, Status> {
        requester(&request, Need::Look)?;
        containers::list(self, request.into_inner())
            .await
            .map(Response::new)
    }
}
