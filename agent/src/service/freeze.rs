//! Freezes, as gRPC.

use std::time::Duration;

use impound_proto::agent::v1::{FreezeRequest, FreezeResponse, ThawRequest, ThawResponse};
use tonic::Status;

use super::{Shared, status};
use crate::runtime::ContainerId;

/// Containers of one pod.
const CONTAINERS: usize = 64;

/// The longest that a caller may ask for, ms: no probe that a pod has is patient for an hour.
const LIMIT_MS: std::ops::RangeInclusive<u32> = 1..=3_600_000;

impl Shared {
    pub(super) async fn freeze(&self, request: FreezeRequest) -> Result<FreezeResponse, Status> {
        let count = request.container_ids.len();
        if !(1..=CONTAINERS).contains(&count) {
            return Err(Status::invalid_argument(format!(
                "container_ids: expected 1 to {CONTAINERS}, found {count}"
            )));
        }
        if !LIMIT_MS.contains(&request.limit_ms) {
            return Err(Status::invalid_argument(format!(
                "limit_ms: expected {} to {}, found {}",
                LIMIT_MS.start(),
                LIMIT_MS.end(),
                request.limit_ms
            )));
        }
        let ids = request
            .container_ids
            .iter()
            .map(|id| ContainerId::parse(id))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| Status::invalid_argument(format!("container_ids: {error}")))?;
        let limit = Duration::from_millis(request.limit_ms.into());
        let frozen = self
            .freezer
            .freeze(&ids, limit)
            .await
            .map_err(|error| status::freeze(&error))?;
        tracing::info!(freeze = frozen.id, containers = ids.len(), ?limit, "frozen");
        Ok(FreezeResponse {
            freeze_id: frozen.id,
            frozen: Some(frozen.since.into()),
            until: Some(frozen.until.into()),
        })
    }

    pub(super) async fn thaw(&self, request: ThawRequest) -> Result<ThawResponse, Status> {
        let thawed = self.freezer.thaw(&request.freeze_id).await;
        Ok(ThawResponse {
            thawed: thawed.map(|thawed| thawed.at.into()),
            by_deadline: thawed.is_some_and(|thawed| thawed.by_deadline),
        })
    }
}
