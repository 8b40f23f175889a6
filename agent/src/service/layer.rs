//! A container's writable layer, read by the agent itself.

use std::sync::Arc;
use std::time::SystemTime;

use impound_proto::agent::v1::ArtifactMessage;
use tonic::Status;

use super::call::Call;
use super::{Shared, header, status};
use crate::capture::{Captured, locate};
use crate::stream::{self, Check, Outgoing};

impl Shared {
    pub(super) async fn layer(
        &self,
        call: &Call,
        container_id: &str,
    ) -> Result<Outgoing<ArtifactMessage>, Status> {
        let id = self.resolve(call, container_id).await?;
        let closed = |_| Status::unavailable("the agent is shutting down");
        let slot = Arc::clone(&self.captures)
            .acquire_owned()
            .await
            .map_err(closed)?;
        let started = SystemTime::now();
        let failed = |error| status::capture(&error);
        let layer = locate(self.runtime.as_ref(), &id).await.map_err(failed)?;
        let source = layer.source().to_owned();
        let Captured { bytes, reasons } = layer.read(call.span()).map_err(failed)?;
        let header = header(id.as_str(), "application/x-tar", source, started);
        let check = Check::Captured(reasons);
        Ok(stream::artifact(header, bytes, check, slot, call.span()))
    }
}
