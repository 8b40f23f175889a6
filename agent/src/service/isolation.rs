//! Isolation of a pod at the node, as gRPC.

use impound_proto::agent::v1::{
    InspectIsolationRequest, InspectIsolationResponse, IsolateRequest, IsolateResponse,
    LiftIsolationRequest, LiftIsolationResponse, ProbeIsolationRequest, ProbeIsolationResponse,
};
use tonic::Status;

use super::Shared;

impl Shared {
    pub(super) async fn isolate(&self, _: IsolateRequest) -> Result<IsolateResponse, Status> {
        Err(Status::unimplemented("isolation at the node"))
    }

    pub(super) async fn inspect_isolation(
        &self,
        _: InspectIsolationRequest,
    ) -> Result<InspectIsolationResponse, Status> {
        Err(Status::unimplemented("isolation at the node"))
    }

    pub(super) async fn lift_isolation(
        &self,
        _: LiftIsolationRequest,
    ) -> Result<LiftIsolationResponse, Status> {
        Err(Status::unimplemented("isolation at the node"))
    }

    pub(super) async fn probe_isolation(
        &self,
        _: ProbeIsolationRequest,
    ) -> Result<ProbeIsolationResponse, Status> {
        Err(Status::unimplemented("isolation at the node"))
    }
}
