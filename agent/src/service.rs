//! The gRPC service: requests are checked, the runtime is asked, answers are streamed.
//!
//! One place maps errors to statuses ([`status`]), one logs calls and reads the case id ([`call`]).

mod call;
mod commit;
mod containers;
mod diff;
mod freeze;
mod isolation;
mod layer;
pub(crate) mod status;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use futures::StreamExt;
use impound_evidence::Completeness;
use impound_proto::agent::v1::agent_server;
use impound_proto::agent::v1::{
    ArtifactHeader, ArtifactMessage, CommitRequest, CommitResponse, DiffMessage, DiffRequest,
    ExportRequest, FreezeRequest, FreezeResponse, InfoRequest, InfoResponse,
    InspectContainerRequest, InspectIsolationRequest, InspectIsolationResponse, IsolateRequest,
    IsolateResponse, LayerRequest, LiftIsolationRequest, LiftIsolationResponse,
    ListContainersRequest, ListContainersResponse, ProbeIsolationRequest, ProbeIsolationResponse,
    RemoveImageRequest, RemoveImageResponse, SaveImageRequest, ThawRequest, ThawResponse,
};
use impound_proto::{BULK_STREAMS, NodeName};
use tokio::sync::{Mutex, Semaphore};
use tonic::{Request, Response, Status};

use crate::Disk;
use crate::freeze::Freezer;
use crate::isolate::Isolation;
use crate::runtime::{ContainerRuntime, Image, ImageReference, RuntimeError};
use crate::serve::REQUEST_LIMIT;
use crate::stream::{self, CHUNK, Check, Outgoing};
use call::Call;

/// Layers that are read at the same time. More wait.
const CAPTURES: usize = 2;

/// Descriptions of containers in memory at the same time, each at most 16 MiB. More wait.
const INSPECTIONS: usize = 2;

/// Label of an image that an agent made: the case it belongs to.
pub const CASE_LABEL: &str = "dev.impound.case";

/// Label of an image that an agent made: full id of the container it was made of.
pub const SOURCE_LABEL: &str = "dev.impound.source-container";

/// The service of one node's agent.
pub struct Service {
    shared: Arc<Shared>,
}

/// What outlives a call: a commit goes on when its caller leaves.
struct Shared {
    node: NodeName,
    executable_sha256: [u8; 32],
    runtime: Arc<dyn ContainerRuntime>,
    disk: Disk,
    /// Concurrent commits from one base image can fail in the runtime.
    commits: Mutex<()>,
    bulk: Arc<Semaphore>,
    inspections: Arc<Semaphore>,
    captures: Arc<Semaphore>,
    /// `None`: not allowed on this node.
    isolation: Option<Isolation>,
    freezer: Arc<Freezer>,
}

impl Service {
    /// The service of `node`, reading from `runtime`. `executable_sha256` is told to whoever asks.
    /// With `allow_isolation` it also isolates pods, which needs more privilege, see
    /// [`isolate`](crate::isolate). Freezes are recorded in the directory `frozen`.
    #[must_use]
    pub fn new(
        node: NodeName,
        runtime: Arc<dyn ContainerRuntime>,
        disk: Disk,
        executable_sha256: [u8; 32],
        allow_isolation: bool,
        frozen: PathBuf,
    ) -> Self {
        let freezer = Arc::new(Freezer::new(Arc::clone(&runtime), frozen));
        Self {
            shared: Arc::new(Shared {
                node,
                executable_sha256,
                isolation: allow_isolation.then(|| Isolation::new(Arc::clone(&runtime))),
                runtime,
                disk,
                commits: Mutex::new(()),
                bulk: Arc::new(Semaphore::new(BULK_STREAMS)),
                inspections: Arc::new(Semaphore::new(INSPECTIONS)),
                captures: Arc::new(Semaphore::new(CAPTURES)),
                freezer,
            }),
        }
    }
}

impl Service {
    /// Ready to be added to a server.
    pub(crate) fn served(self) -> agent_server::AgentServer<Self> {
        agent_server::AgentServer::new(self).max_decoding_message_size(REQUEST_LIMIT)
    }

    /// What freezes, for the agent's start and end.
    pub(crate) fn freezer(&self) -> Arc<Freezer> {
        Arc::clone(&self.shared.freezer)
    }
}

#[tonic::async_trait]
impl agent_server::Agent for Service {
    type InspectContainerStream = Outgoing<ArtifactMessage>;
    type DiffStream = Outgoing<DiffMessage>;
    type ExportStream = Outgoing<ArtifactMessage>;
    type LayerStream = Outgoing<ArtifactMessage>;
    type SaveImageStream = Outgoing<ArtifactMessage>;

    async fn info(&self, request: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        let call = Call::begin("Info", &request)?;
        call.run(self.shared.info()).await
    }

    async fn list_containers(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Result<Response<ListContainersResponse>, Status> {
        let call = Call::begin("ListContainers", &request)?;
        call.run(self.shared.list(request.into_inner())).await
    }

    async fn inspect_container(
        &self,
        request: Request<InspectContainerRequest>,
    ) -> Result<Response<Self::InspectContainerStream>, Status> {
        let call = Call::begin("InspectContainer", &request)?;
        call.run(self.shared.inspect(&call, &request.get_ref().container_id))
            .await
    }

    async fn diff(
        &self,
        request: Request<DiffRequest>,
    ) -> Result<Response<Self::DiffStream>, Status> {
        let call = Call::begin("Diff", &request)?;
        call.run(self.shared.diff(&call, &request.get_ref().container_id))
            .await
    }

    async fn export(
        &self,
        request: Request<ExportRequest>,
    ) -> Result<Response<Self::ExportStream>, Status> {
        let call = Call::begin("Export", &request)?;
        call.run(self.shared.export(&call, &request.get_ref().container_id))
            .await
    }

    async fn layer(
        &self,
        request: Request<LayerRequest>,
    ) -> Result<Response<Self::LayerStream>, Status> {
        let call = Call::begin("Layer", &request)?;
        call.run(self.shared.layer(&call, &request.get_ref().container_id))
            .await
    }

    async fn commit(
        &self,
        request: Request<CommitRequest>,
    ) -> Result<Response<CommitResponse>, Status> {
        let call = Call::begin("Commit", &request)?;
        call.run(commit::commit(&self.shared, &call, request.into_inner()))
            .await
    }

    async fn save_image(
        &self,
        request: Request<SaveImageRequest>,
    ) -> Result<Response<Self::SaveImageStream>, Status> {
        let call = Call::begin("SaveImage", &request)?;
        call.run(self.shared.save(&call, &request.get_ref().reference))
            .await
    }

    async fn remove_image(
        &self,
        request: Request<RemoveImageRequest>,
    ) -> Result<Response<RemoveImageResponse>, Status> {
        let call = Call::begin("RemoveImage", &request)?;
        call.run(self.shared.remove(&request.get_ref().reference))
            .await
    }

    async fn isolate(
        &self,
        request: Request<IsolateRequest>,
    ) -> Result<Response<IsolateResponse>, Status> {
        let call = Call::begin("Isolate", &request)?;
        call.run(self.shared.isolate(request.into_inner())).await
    }

    async fn inspect_isolation(
        &self,
        request: Request<InspectIsolationRequest>,
    ) -> Result<Response<InspectIsolationResponse>, Status> {
        let call = Call::begin("InspectIsolation", &request)?;
        call.run(self.shared.inspect_isolation(request.into_inner()))
            .await
    }

    async fn lift_isolation(
        &self,
        request: Request<LiftIsolationRequest>,
    ) -> Result<Response<LiftIsolationResponse>, Status> {
        let call = Call::begin("LiftIsolation", &request)?;
        call.run(self.shared.lift_isolation(request.into_inner()))
            .await
    }

    async fn probe_isolation(
        &self,
        request: Request<ProbeIsolationRequest>,
    ) -> Result<Response<ProbeIsolationResponse>, Status> {
        let call = Call::begin("ProbeIsolation", &request)?;
        call.run(self.shared.probe_isolation(request.into_inner()))
            .await
    }

    async fn freeze(
        &self,
        request: Request<FreezeRequest>,
    ) -> Result<Response<FreezeResponse>, Status> {
        let call = Call::begin("Freeze", &request)?;
        call.run(self.shared.freeze(request.into_inner())).await
    }

    async fn thaw(&self, request: Request<ThawRequest>) -> Result<Response<ThawResponse>, Status> {
        let call = Call::begin("Thaw", &request)?;
        call.run(self.shared.thaw(request.into_inner())).await
    }
}

impl Shared {
    async fn info(&self) -> Result<InfoResponse, Status> {
        let runtime_version = self
            .runtime
            .version()
            .await
            .map_err(|error| status::of(&error))?;
        Ok(InfoResponse {
            node: self.node.to_string(),
            runtime: self.runtime.name().to_owned(),
            runtime_version,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            executable_sha256: self.executable_sha256.to_vec(),
            now: Some(SystemTime::now().into()),
        })
    }

    async fn inspect(
        &self,
        call: &Call,
        container_id: &str,
    ) -> Result<Outgoing<ArtifactMessage>, Status> {
        let id = self.resolve(call, container_id).await?;
        let closed = |_| Status::unavailable("the agent is shutting down");
        let slot = Arc::clone(&self.inspections)
            .acquire_owned()
            .await
            .map_err(closed)?;
        let started = SystemTime::now();
        let reading = self
            .runtime
            .inspect(&id)
            .await
            .map_err(|error| status::of(&error))?;
        let header = header(id.as_str(), "application/json", reading.api_call, started);
        let check = Check::Known(json_completeness(&reading.bytes));
        let chunks = chunks(reading.bytes);
        Ok(stream::artifact(header, chunks, check, slot, call.span()))
    }

    async fn export(
        &self,
        call: &Call,
        container_id: &str,
    ) -> Result<Outgoing<ArtifactMessage>, Status> {
        let id = self.resolve(call, container_id).await?;
        let slot = self.bulk_slot()?;
        let started = SystemTime::now();
        let reading = self
            .runtime
            .export(&id)
            .await
            .map_err(|error| status::of(&error))?;
        let header = header(id.as_str(), "application/x-tar", reading.api_call, started);
        Ok(stream::artifact(
            header,
            reading.bytes,
            Check::Tar,
            slot,
            call.span(),
        ))
    }

    async fn save(
        &self,
        call: &Call,
        reference: &str,
    ) -> Result<Outgoing<ArtifactMessage>, Status> {
        let reference = parse(reference)?;
        let image = self.own_image(&reference).await?.ok_or_else(|| {
            Status::not_found(format!("there is no image {reference} on this node"))
        })?;
        let slot = self.bulk_slot()?;
        self.disk
            .require(image.size, "save")
            .map_err(|error| status::disk(&error))?;
        let started = SystemTime::now();
        let reading = self
            .runtime
            .save(&reference)
            .await
            .map_err(|error| status::of(&error))?;
        let header = header(&image.id, "application/x-tar", reading.api_call, started);
        Ok(stream::artifact(
            header,
            reading.bytes,
            Check::Tar,
            slot,
            call.span(),
        ))
    }

    async fn remove(&self, reference: &str) -> Result<RemoveImageResponse, Status> {
        let reference = parse(reference)?;
        let Some(image) = self.own_image(&reference).await? else {
            return Ok(RemoveImageResponse::default());
        };
        let started = SystemTime::now();
        let done = self
            .runtime
            .remove_image(&reference)
            .await
            .map_err(|error| status::of(&error))?;
        let removed = done.answer;
        tracing::info!(%reference, image = image.id, removed, "removed an image");
        Ok(RemoveImageResponse {
            removed,
            api_call: done.api_call,
            started: Some(started.into()),
            finished: Some(SystemTime::now().into()),
        })
    }

    /// An image that an agent made; any other image is refused.
    async fn own_image(&self, reference: &ImageReference) -> Result<Option<Image>, Status> {
        let found = self
            .runtime
            .image(reference)
            .await
            .map_err(|error| status::of(&error))?;
        match found {
            Some(image) if !is_ours(&image) => Err(Status::failed_precondition(format!(
                "image {reference} was not made by an impound agent (it lacks the label {CASE_LABEL} or \
                 {SOURCE_LABEL}) and is left alone"
            ))),
            other => Ok(other),
        }
    }

    fn bulk_slot(&self) -> Result<tokio::sync::OwnedSemaphorePermit, Status> {
        Arc::clone(&self.bulk).try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!(
                "at most {BULK_STREAMS} exports and saves run at the same time on a node: try again when \
                 one has ended"
            ))
        })
    }
}

fn is_ours(image: &Image) -> bool {
    image.labels.contains_key(CASE_LABEL) && image.labels.contains_key(SOURCE_LABEL)
}

fn parse(reference: &str) -> Result<ImageReference, Status> {
    reference
        .parse()
        .map_err(|error| Status::invalid_argument(format!("reference: {error}")))
}

fn header(
    source_id: &str,
    media_type: &str,
    api_call: String,
    started: SystemTime,
) -> ArtifactHeader {
    ArtifactHeader {
        source_id: source_id.to_owned(),
        media_type: media_type.to_owned(),
        api_call,
        started: Some(started.into()),
    }
}

/// A description is complete if it is one JSON document.
fn json_completeness(bytes: &Bytes) -> Completeness {
    match serde_json::from_slice::<serde::de::IgnoredAny>(bytes) {
        Ok(_) => Completeness::Complete,
        Err(error) => Completeness::incomplete(format!("it is not one JSON document: {error}")),
    }
}

fn chunks(mut bytes: Bytes) -> crate::runtime::ByteStream {
    let mut pieces: Vec<Result<Bytes, RuntimeError>> = Vec::new();
    while !bytes.is_empty() {
        pieces.push(Ok(bytes.split_to(CHUNK.min(bytes.len()))));
    }
    futures::stream::iter(pieces).boxed()
}
