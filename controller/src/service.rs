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
mod hold;
mod isolation;
mod quarantines;
mod refused;
mod status;
mod sweeps;

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use impound_proto::controller::v1 as wire;
use impound_proto::controller::v1::controller_server::Controller;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use crate::reconcile::Context;
use crate::store::Store;
use authorise::{Need, requester};
pub use count::Counted;
pub use refused::Refusals;

/// The gRPC service of the controller.
pub struct Service {
    /// Shared with the reconcilers.
    pub context: Arc<Context>,
    /// Where the evidence is.
    pub store: Arc<dyn Store>,
    /// Writes down who was refused what.
    pub refusals: Arc<Refusals>,
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
        let case = request.get_ref().case_id.clone();
        let who = self
            .admit(&request, Need::Respond, "quarantine", &case)
            .await?;
        let request = request.into_inner();
        if request.dry_run {
            return quarantines::plan(self, request).await.map(Response::new);
        }
        let answer = quarantines::create(self, who.clone(), request).await;
        self.noted(&who, "quarantine", &case, answer).await
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
        let asked = request.get_ref();
        let found = quarantines::find(self, &asked.namespace, &asked.name).await;
        let case = found.map(|found| found.spec.case).unwrap_or_default();
        let who = self
            .admit(&request, Need::Respond, "release", &case)
            .await?;
        let answer = quarantines::release(self, who.clone(), request.into_inner()).await;
        self.noted(&who, "release", &case, answer).await
    }

    async fn plan_release(
        &self,
        request: Request<wire::ReleaseQuarantineRequest>,
    ) -> Result<Response<wire::Plan>, Status> {
        let asked = request.get_ref();
        let found = quarantines::find(self, &asked.namespace, &asked.name).await;
        let case = found.map(|found| found.spec.case).unwrap_or_default();
        self.admit(&request, Need::Respond, "plan release", &case)
            .await?;
        quarantines::plan_release(self, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn create_collection(
        &self,
        request: Request<wire::CreateCollectionRequest>,
    ) -> Result<Response<wire::Collection>, Status> {
        let case = request.get_ref().case_id.clone();
        let who = self
            .admit(&request, Need::Respond, "collect", &case)
            .await?;
        let answer = collections::create(self, who.clone(), request.into_inner()).await;
        self.noted(&who, "collect", &case, answer).await
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

    async fn create_sweep(
        &self,
        request: Request<wire::CreateSweepRequest>,
    ) -> Result<Response<wire::CreateSweepResponse>, Status> {
        let case = request.get_ref().case_id.clone();
        let who = self.admit(&request, Need::Respond, "sweep", &case).await?;
        let request = request.into_inner();
        if request.dry_run {
            return sweeps::plan(self, request).await.map(Response::new);
        }
        let answer = sweeps::create(self, who.clone(), request).await;
        self.noted(&who, "sweep", &case, answer).await
    }

    async fn get_sweep(
        &self,
        request: Request<wire::GetSweepRequest>,
    ) -> Result<Response<wire::Sweep>, Status> {
        requester(&request, Need::Look)?;
        let found = sweeps::find(self, &request.get_ref().name).await?;
        Ok(Response::new(sweeps::shown(&found)))
    }

    async fn list_sweeps(
        &self,
        request: Request<wire::ListSweepsRequest>,
    ) -> Result<Response<wire::ListSweepsResponse>, Status> {
        requester(&request, Need::Look)?;
        sweeps::list(self, request.into_inner())
            .await
            .map(Response::new)
    }

    type WatchSweepStream = Answers<wire::Sweep>;

    async fn watch_sweep(
        &self,
        request: Request<wire::WatchSweepRequest>,
    ) -> Result<Response<Self::WatchSweepStream>, Status> {
        requester(&request, Need::Look)?;
        sweeps::watch(self, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn set_sweep(
        &self,
        request: Request<wire::SetSweepRequest>,
    ) -> Result<Response<wire::Sweep>, Status> {
        let found = sweeps::find(self, &request.get_ref().name).await;
        let case = found.map(|found| found.spec.case).unwrap_or_default();
        let who = self
            .admit(&request, Need::Respond, "change sweep", &case)
            .await?;
        let answer = sweeps::set(self, &who, request.into_inner()).await;
        self.noted(&who, "change sweep", &case, answer).await
    }

    type ListSweepTargetsStream = Answers<wire::ListSweepTargetsResponse>;

    async fn list_sweep_targets(
        &self,
        request: Request<wire::ListSweepTargetsRequest>,
    ) -> Result<Response<Self::ListSweepTargetsStream>, Status> {
        requester(&request, Need::Look)?;
        sweeps::targets(self, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn list_evidence(
        &self,
        request: Request<wire::ListEvidenceRequest>,
    ) -> Result<Response<wire::ListEvidenceResponse>, Status> {
        let case = request.get_ref().case_id.clone();
        self.admit(&request, Need::Look, "list evidence", &case)
            .await?;
        evidence::list(self, request.into_inner())
            .await
            .map(Response::new)
    }

    type ReadEvidenceStream = Answers<wire::ReadEvidenceResponse>;

    async fn read_evidence(
        &self,
        request: Request<wire::ReadEvidenceRequest>,
    ) -> Result<Response<Self::ReadEvidenceStream>, Status> {
        let case = request.get_ref().case_id.clone();
        let who = self
            .admit(&request, Need::Keep, "read evidence", &case)
            .await?;
        let answer = evidence::read(self, &who, request.into_inner()).await;
        self.noted(&who, "read evidence", &case, answer).await
    }

    async fn verify_evidence(
        &self,
        request: Request<wire::VerifyEvidenceRequest>,
    ) -> Result<Response<wire::VerifyEvidenceResponse>, Status> {
        let case = request.get_ref().case_id.clone();
        let who = self
            .admit(&request, Need::Respond, "verify evidence", &case)
            .await?;
        let answer = evidence::verify(self, &who, request.into_inner()).await;
        self.noted(&who, "verify evidence", &case, answer).await
    }

    async fn hold_evidence(
        &self,
        request: Request<wire::HoldEvidenceRequest>,
    ) -> Result<Response<wire::HoldEvidenceResponse>, Status> {
        let case = request.get_ref().case_id.clone();
        let call = match request.get_ref().lift {
            true => "lift hold of evidence",
            false => "hold evidence",
        };
        let who = self.admit(&request, Need::Keep, call, &case).await?;
        let answer = hold::hold(self, &who, request.into_inner()).await;
        self.noted(&who, call, &case, answer).await
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
